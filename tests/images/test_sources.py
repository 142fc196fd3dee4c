"""Images: every way to name one, every mode to RGB, and what is refused."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import struct
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    TextNode,
)
from PIL import Image

from image_files import BOMB, handmade_png
from unified_embeddings.errors import InputError
from unified_embeddings.images import sources
from unified_embeddings.images.decoding import Picture
from unified_embeddings.images.sources import read_picture

MAX_PIXELS = 64_000_000
WHITE, BLACK, RED, GREEN = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def icon(inner: bytes) -> bytes:
    """An ICO whose header says 16 x 16, whatever the image in it is."""
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def decoded(image: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    rgb = read_picture(image).decode(max_pixels)
    assert type(rgb) is Image.Image
    assert rgb.mode == "RGB"
    assert rgb.info == {}
    return rgb


def pixels(image: Any) -> list[tuple[int, ...]]:
    """All pixels, row by row."""
    rgb = decoded(image)
    return [tuple(map(int, pixel)) for pixel in np.asarray(rgb).reshape(-1, 3)]


def photo(width: int = 40, height: int = 30) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


PNG = encoded(Image.new("RGB", (3, 2), RED))
PNG_TEXT = base64.b64encode(PNG).decode()


# ------------------------------------------------------------------------- what an image may be


@pytest.fixture
def red_file(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    path.write_bytes(PNG)
    return path


def test_every_way_to_name_an_image_gives_the_same_key(red_file: Path) -> None:
    wrapped = "\n".join(PNG_TEXT[start : start + 20] for start in range(0, len(PNG_TEXT), 20))
    ways: list[Any] = [
        str(red_file),
        red_file,
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        io.BytesIO(PNG),
        PNG_TEXT,
        f"  {wrapped}\n",
        f"data:image/png;base64,{PNG_TEXT}",
        f"DATA:image/png;charset=x;BASE64, {wrapped} ",
        f"\n data:;base64,{PNG_TEXT}",
        ImageNode(image=PNG_TEXT),
        ImageNode(image=f"data:image/png;base64,{PNG_TEXT}"),
        ImageNode(image_path=str(red_file)),
        ImageNode(image_url=f"data:image/png;base64,{PNG_TEXT}"),
        ImageDocument(image=PNG_TEXT),
        ImageDocument(image=PNG),
        ImageDocument(image_path=str(red_file)),
        Node(image_resource=MediaResource(data=PNG)),
        Node(image_resource=MediaResource(path=red_file)),
        Document(image_resource=MediaResource(data=PNG)),
        SimpleNamespace(image=None, image_path=red_file, image_url="https://example.org/"),
        SimpleNamespace(image_resource=SimpleNamespace(data=PNG, path=None, url=None)),
    ]
    for way in ways:
        picture = read_picture(way)
        assert picture.key == read_picture(PNG).key, way
        assert len(picture.key) == 16
        assert pixels(way) == [RED] * 6


def test_a_stream_is_read_whole_and_keeps_its_position() -> None:
    stream = io.BytesIO(PNG)
    stream.seek(5)
    assert pixels(stream) == [RED] * 6
    assert stream.tell() == 5


def test_a_buffer_may_change_once_it_is_read() -> None:
    buffer = bytearray(PNG)
    picture = read_picture(buffer)
    buffer[:] = bytes(len(buffer))
    assert picture.decode(6).getpixel((0, 0)) == RED


def test_a_file_comes_before_base64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("abcd").write_bytes(PNG)
    assert pixels("abcd") == [RED] * 6


def test_the_first_that_a_node_has_set_counts(red_file: Path) -> None:
    green = base64.b64encode(encoded(Image.new("RGB", (1, 1), GREEN))).decode()
    assert pixels(ImageNode(image=green, image_path=str(red_file))) == [GREEN]
    node = ImageNode(image_path=str(red_file), image_url="https://example.org/x.png")
    assert pixels(node) == [RED] * 6


class Web:
    """A `fetch` that remembers what it was asked."""

    def __init__(self, answer: bytes | Exception = PNG) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def __call__(self, url: str) -> bytes:
        self.asked.append(url)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("url", ["http://example.org/a.png", "HTTPS://example.org/a.png?x=1"])
def test_a_url_is_fetched(url: str) -> None:
    for image in (url, ImageNode(image_url=url), SimpleNamespace(image=None, image_url=url)):
        web = Web()
        picture = read_picture(image, fetch=web)
        assert web.asked == [url]
        assert picture.key == read_picture(PNG).key
    node = Node(image_resource=MediaResource(url="https://example.org/b.png"))
    web = Web()
    read_picture(node, fetch=web)
    assert web.asked == ["https://example.org/b.png"]


def test_urls_are_off_without_fetch() -> None:
    for image in ("https://example.org/a.png", ImageNode(image_url="https://example.org/a.png")):
        with pytest.raises(InputError, match=r"URLs are off.*allow_urls=True") as caught:
            read_picture(image)
        assert caught.value.index is None


def test_messages_keep_a_urls_secrets() -> None:
    with pytest.raises(InputError) as caught:
        read_picture("https://user:word@example.org/a.png?token=hidden#part")
    assert "'https://example.org/a.png'" in str(caught.value)
    assert "word@" not in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "see https://example.org/a.png",
        " https://example.org/a.png",
        "httpss://example.org/a.png",
        "ftp://example.org/a.png",
        "file:///etc/hostname",
        "data:text/plain,https://example.org/a.png",
    ],
)
def test_a_text_that_merely_contains_a_url_is_not_fetched(text: str) -> None:
    web = Web()
    with pytest.raises(InputError):
        read_picture(text, fetch=web)
    with pytest.raises(InputError, match=r"ImageNode.image_url|not in base64"):
        read_picture(ImageNode(image_url=text), fetch=web)
    assert web.asked == []


def test_what_the_network_does_wrong() -> None:
    url = "https://example.org/a.png"
    with pytest.raises(InputError, match=r"could not be fetched \(no route\)"):
        read_picture(url, fetch=Web(OSError("no route")))
    refusal = InputError("not this host")
    with pytest.raises(InputError, match="not this host") as caught:
        read_picture(url, fetch=Web(refusal))
    assert caught.value is refusal
    with pytest.raises(InputError, match="is empty"):
        read_picture(url, fetch=Web(b""))


# --------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("", "empty text"),
        ("  \n", "empty text"),
        (b"", r"bytes \(0\) is empty"),
        (io.BytesIO(), r"BytesIO \(0\) is empty"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,????", r"not in base64.*data:image/png;base64,"),
        ("data:image/png,%89PNG", "not in base64"),
        ("cat.png", "'cat.png' is neither an existing file nor base64"),
        ("a\0b.png", "neither an existing file"),
        ("\ud800", "neither an existing file"),
        ("x" * 300 + ".png", r"neither an existing file nor base64"),
        ("word, " * 2_000_000, r"\(12,000,000 characters\) is neither an existing file"),
        ("file:///tmp/x.png", r"file:// URL.*Pass the path"),
        (Path("no/cat.png"), "no/cat.png: no such file"),
        (Path("a\0b.png"), "cannot be read"),
        ("/tmp", "is a folder"),
        (Path("/tmp"), "is a folder"),
        ("/dev/zero", "not a regular file"),
        (ImageNode(), "the ImageNode has no image"),
        (ImageDocument(), "the ImageDocument has no image"),
        (Document(text="x"), "the Document has no image"),
        (ImageNode(image="/tmp/x.png"), "ImageNode.image .* is not base64"),
        (ImageNode(image_path="no.png"), "no.png: no such file"),
        (TextNode(text="x"), r"expected an image: a path.*got TextNode"),
        (np.zeros((2, 2, 3)), r"got ndarray.*fromarray"),
        (None, "got NoneType"),
        (7, "got int"),
        (Image.new("RGB", (0, 3)), "no pixels"),
    ],
)
def test_what_is_no_image(image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_picture(image)
    assert len(str(caught.value)) < 500


@pytest.mark.skipif(sys.platform != "linux", reason="a file of Linux's that cannot be read")
def test_an_unreadable_file() -> None:
    with pytest.raises(InputError, match="'/proc/self/mem' cannot be read"):
        read_picture("/proc/self/mem")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        read_picture(tmp_path / "pipe")


def test_a_folder_that_may_not_be_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)  # the tests may run as root
    with pytest.raises(InputError, match=r"cannot be read .*Permission denied"):
        read_picture("secret/cat.png")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "none.png").touch()
    with pytest.raises(InputError, match=r"none.png is empty"):
        read_picture(tmp_path / "none.png")


def test_closed_buffers() -> None:
    closed = io.BytesIO(PNG)
    closed.close()
    with pytest.raises(InputError, match="BytesIO cannot be read"):
        read_picture(closed)
    view = memoryview(PNG)
    view.release()
    with pytest.raises(InputError, match="memoryview cannot be read"):
        read_picture(view)


def test_encoded_images_are_bounded(monkeypatch: pytest.MonkeyPatch, red_file: Path) -> None:
    monkeypatch.setattr(sources, "MAX_ENCODED_BYTES", len(PNG))
    read_picture(PNG)
    read_picture(red_file)
    monkeypatch.setattr(sources, "MAX_ENCODED_BYTES", len(PNG) - 1)
    for image in (PNG, bytearray(PNG), io.BytesIO(PNG), red_file, PNG_TEXT):
        with pytest.raises(InputError, match="larger than"):
            read_picture(image)
    with pytest.raises(InputError, match="larger than"):
        read_picture("http://example.org", fetch=Web())


@pytest.mark.skipif(sys.platform == "win32", reason="sparse files")
def test_a_file_above_the_bound(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(sources.MAX_ENCODED_BYTES + 1)
    with pytest.raises(InputError, match=r"huge.png is larger than the 100 MiB"):
        read_picture(tmp_path / "huge.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(photo(), "JPEG")[:400], "cannot be decoded .*Truncated"),
        (encoded(photo())[:400], "cannot be decoded"),
        (PNG[:20], "cannot be decoded"),
        (encoded(photo(), "GIF")[:1000], "cannot be decoded"),
        (encoded(photo(), "TIFF")[:1000], "cannot be decoded"),
        (encoded(photo(), "BMP")[:1000], "cannot be decoded"),
        (encoded(photo(), "WEBP")[:200], "cannot be decoded"),
        (encoded(photo(), "JPEG2000")[:200], "cannot be decoded"),
        (b"GIF89a\1", "cannot be decoded"),
        (b"\0\0\1\0", "cannot be decoded"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not an image in a supported format",
        ),
        (b"%PDF-1.4", "not an image in a supported format"),
        (bytes(1000), "not an image in a supported format"),
        (b"Dear reader,", "not an image in a supported format .*save it as PNG or JPEG"),
        (handmade_png(0, 5, 8, 2, b""), "no pixels|cannot be decoded"),
    ],
)
def test_broken_images(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_picture(data).decode(MAX_PIXELS)
    assert caught.value.index is None
    (tmp_path / "odd.png").write_bytes(data)
    with pytest.raises(InputError, match=r"odd\.png"):
        read_picture(tmp_path / "odd.png").decode(MAX_PIXELS)


def test_a_mistyped_path_that_passes_for_base64_is_named() -> None:
    with pytest.raises(InputError, match=r"'images/cats1' \(no such file, read as base64\)"):
        read_picture("images/cats1").decode(MAX_PIXELS)


def test_long_base64_is_not_repeated() -> None:
    text = base64.b64encode(bytes(1000)).decode()
    with pytest.raises(InputError, match=r"base64 \(1,336 characters\)") as caught:
        read_picture(text).decode(MAX_PIXELS)
    assert "AAAA" not in str(caught.value)
    with pytest.raises(InputError) as caught:
        read_picture(ImageNode(image="!" + text))
    assert "AAAA" not in str(caught.value)


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    code = (
        "import resource, sys\n"
        "from unified_embeddings.errors import InputError\n"
        "from unified_embeddings.images.sources import read_picture\n"
        "read_picture(sys.stdin.buffer.read(70)).decode(10)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    read_picture(sys.stdin.buffer.read()).decode(64_000_000)\n"
        "except InputError as error:\n"
        "    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "    print(grown < 2000, error)\n"
    )
    if sys.platform != "linux":
        pytest.skip("ru_maxrss counts KiB on Linux")
    small = handmade_png(1, 1, 8, 0, b"\0\0").ljust(70, b"\0")
    assert len(small) == 70
    done = subprocess.run(
        [sys.executable, "-c", code], input=small + BOMB, capture_output=True, check=True
    )
    assert done.stdout.startswith(b"True bytes"), done.stdout
    assert b"100,000 x 100,000 pixels, more than the 64,000,000 allowed" in done.stdout


@pytest.mark.parametrize(
    "data",
    [
        BOMB,
        icon(BOMB),
        icon(handmade_png(10_000, 10_000, 8, 2, b"")),
        handmade_png(10_000, 10_000, 8, 2, b""),  # where Pillow itself would only warn
        b"GIF89a" + struct.pack("<HHBBB", 10_000, 10_000, 0, 0, 0) + b";",
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<Iii", 40, 10_000, 10_000)
        + struct.pack("<HHIIiiII", 1, 24, 0, 0, 0, 0, 0, 0),
        b"P6 10000 10000 255\n",
    ],
)  # fmt: skip
def test_bombs(data: bytes) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    start = time.perf_counter()
    picture = read_picture(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="pixels, more than the"):
            picture.decode(MAX_PIXELS)
    assert time.perf_counter() - start < 1
    assert limit == Image.MAX_IMAGE_PIXELS


def test_pillows_own_limit_is_told() -> None:
    # A WebP header of 16,383 x 16,383 pixels, which Pillow refuses while it opens.
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + (16382).to_bytes(3, "little") * 2
    data = b"RIFF" + struct.pack("<I", len(body) + 100) + body + bytes(100)
    with pytest.raises(InputError, match=r"pixels"):
        read_picture(data).decode(10**9)


def test_max_pixels_is_inclusive() -> None:
    for image in (PNG, Image.new("L", (3, 2)), encoded(Image.new("RGBA", (16, 16)), "ICO")):
        size = decoded(image).size
        decoded(image, size[0] * size[1])
        with pytest.raises(InputError, match=r"more than the \d+ allowed"):
            decoded(image, size[0] * size[1] - 1)


# ------------------------------------------------------------------------------------------- modes


def deep(mode: str, values: list[Any]) -> Image.Image:
    kinds = {"I;16B": ">u2", "I": "<i4", "F": "<f4"}
    raw = np.array(values, dtype=kinds.get(mode, "<u2")).tobytes()
    return Image.frombytes(mode, (len(values), 1), raw)


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(value, value, value) for value in values]


def with_info(image: Image.Image, **info: Any) -> Image.Image:
    image.info.update(info)
    return image


def palette(colours: list[tuple[int, ...]], mode: str = "RGB", **info: Any) -> Image.Image:
    """One pixel of each colour."""
    image = Image.frombytes("P", (len(colours), 1), bytes(range(len(colours))))
    image.putpalette([value for colour in colours for value in colour], mode)
    return with_info(image, **info)


def single_pixel(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (1, 1), colour)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (single_pixel("RGB", (1, 2, 3)), [(1, 2, 3)]),
        (single_pixel("L", 7), grey(7)),
        (single_pixel("1", 1), [WHITE]),
        (single_pixel("1", 0), [BLACK]),
        (single_pixel("RGBX", (1, 2, 3, 0)), [(1, 2, 3)]),
        (single_pixel("RGBA", (1, 2, 3, 0)), [WHITE]),
        (single_pixel("RGBA", (1, 2, 3, 255)), [(1, 2, 3)]),
        (
            single_pixel("RGBA", (255, 0, 0, 51)),
            [(255, 204, 204)],
        ),  # a fifth red, four fifths white
        (single_pixel("RGBa", (51, 0, 0, 51)), [(255, 204, 204)]),
        (single_pixel("LA", (0, 51)), grey(204)),
        (single_pixel("La", (0, 51)), grey(204)),
        (single_pixel("CMYK", (0, 0, 0, 0)), [WHITE]),
        (single_pixel("CMYK", (0, 255, 255, 0)), [RED]),
        (single_pixel("YCbCr", (255, 128, 128)), [WHITE]),
        (single_pixel("HSV", (0, 255, 255)), [RED]),
        (single_pixel("HSV", (85, 255, 255)), [GREEN]),
        (deep("I;16", [0, 128, 129, 257 * 7, 65535]), grey(0, 0, 1, 7, 255)),
        (deep("I;16L", [0, 65535]), grey(0, 255)),
        (deep("I;16B", [0, 257 * 7, 65535]), grey(0, 7, 255)),
        (deep("I;16N", [0, 257 * 7, 65535]), grey(0, 7, 255)),
        (deep("I", [0, 257, 65535]), grey(0, 1, 255)),
        (deep("I", [0, 100]), grey(0, 0)),
        (deep("F", [0, 0.5, 1]), grey(0, 128, 255)),
        (deep("F", [0, 0.4, 99.6, 255]), grey(0, 0, 100, 255)),
        (deep("F", [0, 257, 65535]), grey(0, 1, 255)),
        (with_info(single_pixel("L", 7), transparency=7), [WHITE]),
        (with_info(single_pixel("L", 7), transparency=8), grey(7)),
        (with_info(single_pixel("RGB", (1, 2, 3)), transparency=(1, 2, 3)), [WHITE]),
        (with_info(deep("I;16", [300, 0]), transparency=300), [WHITE, BLACK]),
        (palette([RED, GREEN]), [RED, GREEN]),
        (palette([RED, GREEN], transparency=1), [RED, WHITE]),
        (palette([RED, GREEN], transparency=b"\x00\xff"), [WHITE, GREEN]),
        (palette([(*RED, 51), (*GREEN, 255)], "RGBA"), [(255, 204, 204), GREEN]),
        (single_pixel("PA", (0, 0)), [WHITE]),
    ],
)
def test_modes(image: Image.Image, expected: list[tuple[int, ...]]) -> None:
    before = image.copy()
    data = image.tobytes()
    colours = image.getpalette("RGBA") if image.palette else None
    key = read_picture(image).key
    assert pixels(image) == expected
    # The caller's image is as it was, and is told as the same.
    assert (image.mode, image.size, image.info) == (before.mode, before.size, before.info)
    assert image.tobytes() == data
    assert (image.getpalette("RGBA") if image.palette else None) == colours
    assert read_picture(image).key == key == read_picture(before).key


def test_lab_white_is_white() -> None:
    # L from 0 to 255; a and b are signed.
    lab = Image.frombytes("LAB", (2, 1), bytes((255, 0, 0, 0, 0, 0)))
    for image in (lab, encoded(lab, "TIFF")):
        white, black = pixels(image)
        assert min(white) >= 254
        assert max(black) <= 1


@pytest.mark.parametrize(
    "image",
    [
        deep("I", [-1, 5]),
        deep("I", [0, 65536]),
        deep("F", [0, 65536]),
        deep("F", [-0.1, 1]),
        deep("F", [0, float("nan")]),
        deep("F", [0, float("inf")]),
    ],
)
def test_values_that_no_scale_fits(image: Image.Image) -> None:
    with pytest.raises(InputError, match=r"has values from .* to .*; expected 0 to .*65535"):
        decoded(image)


def test_the_result_is_the_callers_own() -> None:
    image = Image.new("RGB", (1, 1), RED)
    result = decoded(image)
    result.putpixel((0, 0), GREEN)
    assert image.getpixel((0, 0)) == RED


# ----------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_exact_formats(kind: str) -> None:
    image = Image.new("RGB", (16, 16), RED)
    image.putpixel((1, 0), GREEN)
    assert pixels(encoded(image, kind)) == [RED, GREEN] + [RED] * 254


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "JPEG2000", "AVIF", "MPO"])
def test_lossy_formats(kind: str) -> None:
    try:
        data = encoded(Image.new("RGB", (16, 16), (250, 20, 10)), kind)
    except KeyError:
        pytest.skip("a Pillow built without it")
    near = np.asarray(decoded(data)).astype(int) - (250, 20, 10)
    assert np.abs(near).max() < 12


def test_jpeg_of_other_colours() -> None:
    for mode, colour, expected in (
        ("L", 100, (100, 100, 100)),
        ("CMYK", (0, 255, 255, 0), RED),  # Pillow writes it inverted, as Adobe does
        ("YCbCr", (255, 128, 128), WHITE),
    ):
        image = Image.new(mode, (8, 8), colour)
        near = np.asarray(decoded(encoded(image, "JPEG"))).astype(int) - expected
        assert np.abs(near).max() < 4, mode


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "ICO"])
def test_all_transparent_is_white(kind: str) -> None:
    data = encoded(Image.new("RGBA", (16, 16), (10, 20, 30, 0)), kind)
    assert pixels(data) == [WHITE] * 256


def test_transparent_icon_with_bitmaps() -> None:
    data = encoded(Image.new("RGBA", (16, 16), (*RED, 0)), "ICO", bitmap_format="bmp")
    assert pixels(data) == [WHITE] * 256


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (handmade_png(2, 1, 8, 0, b"\0\x10\x20", (b"tRNS", b"\0\x10")), [WHITE, *grey(32)]),
        (handmade_png(2, 1, 4, 0, b"\0\x71", (b"tRNS", b"\0\x07")), [WHITE, *grey(17)]),
        (handmade_png(2, 1, 2, 0, b"\0\x60", (b"tRNS", b"\0\x01")), [WHITE, *grey(170)]),
        (handmade_png(2, 1, 1, 0, b"\0\x00", (b"tRNS", b"\0\x00")), [WHITE, WHITE]),
        (
            handmade_png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", (b"tRNS", b"\0\1\0\2\0\3")),
            [WHITE, (4, 5, 6)],
        ),
        (
            handmade_png(2, 1, 8, 3, b"\0\0\1", (b"PLTE", bytes((*RED, *GREEN))), (b"tRNS", b"\0")),
            [WHITE, GREEN],
        ),
        (
            handmade_png(
                2, 1, 8, 3, b"\0\0\1", (b"PLTE", bytes((*RED, *GREEN))), (b"tRNS", b"\x33\xff")
            ),
            [(255, 204, 204), GREEN],
        ),
        (handmade_png(2, 1, 16, 0, b"\0\xff\xff\x01\x01"), grey(255, 1)),
        (handmade_png(2, 1, 16, 0, b"\0\x01\x2c\0\0", (b"tRNS", b"\x01\x2c")), [WHITE, BLACK]),
        (handmade_png(1, 1, 16, 2, b"\0\xff\xff\x80\x80\0\0"), [(255, 128, 0)]),
        (
            handmade_png(
                1, 1, 16, 2, b"\0\x12\x34\x56\x78\x9a\xbc", (b"tRNS", b"\x12\x34\x56\x78\x9a\xbc")
            ),
            [WHITE],
        ),
        (handmade_png(1, 1, 16, 6, b"\0" + b"\0\0" * 4), [WHITE]),
    ],
)
def test_png_by_hand(data: bytes, expected: list[tuple[int, ...]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(data) == expected


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
    assert pixels(data) == [RED] * 16
    at_second = Image.open(io.BytesIO(data))
    at_second.seek(1)
    assert pixels(at_second) == [GREEN] * 16
    assert at_second.tell() == 1


def test_transparent_gif() -> None:
    image = palette([RED, GREEN])
    assert pixels(encoded(image, "GIF", transparency=0)) == [WHITE, GREEN]


UPRIGHT = {
    1: [[1, 2], [3, 4], [5, 6]],
    2: [[2, 1], [4, 3], [6, 5]],
    3: [[6, 5], [4, 3], [2, 1]],
    4: [[5, 6], [3, 4], [1, 2]],
    5: [[1, 3, 5], [2, 4, 6]],
    6: [[5, 3, 1], [6, 4, 2]],
    7: [[6, 4, 2], [5, 3, 1]],
    8: [[2, 4, 6], [1, 3, 5]],
    9: [[1, 2], [3, 4], [5, 6]],  # no such orientation
}
"""What [[1, 2], [3, 4], [5, 6]] shows in each EXIF orientation."""


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    stored = Image.fromarray(np.array(UPRIGHT[1], dtype=np.uint8) * 40).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(stored, kind, exif=exif, **options)
    opened = Image.open(io.BytesIO(data))
    for image in (data, opened):
        shown = np.asarray(decoded(image))[..., 0] // 40
        assert shown.tolist() == UPRIGHT[orientation]


def test_exif_orientation_of_a_jpeg() -> None:
    stored = Image.new("RGB", (16, 32), RED)
    stored.paste(GREEN, (0, 0, 16, 16))  # green above red, lying on its side
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(stored, "JPEG", exif=exif, quality=95)
    opened = Image.open(io.BytesIO(data))
    for image in (data, opened):
        upright = decoded(image)
        assert upright.size == (32, 16)
        assert upright.getpixel((2, 8))[0] > 200  # red on the left
        assert upright.getpixel((29, 8))[1] > 200
    assert opened.size == (16, 32)
    assert opened.getexif()[0x0112] == 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_hide_the_picture() -> None:
    data = encoded(Image.new("RGB", (8, 8), RED), "JPEG", exif=b"Exif\0\0MM\0*garbage")
    assert decoded(data).size == (8, 8)


# -------------------------------------------------------------------------------------------- keys


def test_keys_tell_images_apart() -> None:
    red, green = Image.new("RGB", (2, 2), RED), Image.new("RGB", (2, 2), GREEN)
    spotted = red.copy()
    spotted.putpixel((1, 1), (254, 0, 0))
    turned = red.copy()
    turned.getexif()[0x0112] = 6
    different: list[Any] = [
        red,
        green,
        spotted,
        turned,
        Image.new("RGB", (4, 1), RED),
        with_info(red.copy(), transparency=RED),
        Image.new("RGBX", (2, 2), RED),
        Image.new("L", (2, 2), 0),
        Image.new("L", (2, 2), 1),
        palette([RED, GREEN]),
        palette([RED, RED]),
        palette([RED, GREEN], transparency=0),
        palette([RED, GREEN], transparency=b"\0"),
        palette([(*RED, 1), (*GREEN, 2)], "RGBA"),
        PNG,
        PNG + b"\0",
    ]
    keys = [read_picture(image).key for image in different]
    assert len(set(keys)) == len(keys)
    assert read_picture(red).key == read_picture(red.copy()).key
    assert read_picture(red) == read_picture(red.copy())


def test_an_opened_file_is_keyed_before_and_after_loading_alike() -> None:
    for data in (PNG, encoded(photo(), "JPEG"), encoded(palette([RED, GREEN]), "GIF")):
        lazy, loaded = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
        loaded.load()
        assert read_picture(lazy).key == read_picture(loaded).key


def test_pillow_images_that_cannot_be_loaded() -> None:
    for data in (encoded(photo(), "JPEG")[:900], encoded(photo())[:900]):
        with pytest.raises(InputError, match=r"PIL image \(RGB, 40 x 30\) cannot be loaded"):
            read_picture(Image.open(io.BytesIO(data)))
    closed = Image.open(io.BytesIO(PNG))
    closed.close()
    with pytest.raises(InputError, match="cannot be loaded"):
        read_picture(closed)


def test_a_picture_does_not_print_its_bytes() -> None:
    picture = read_picture(PNG)
    assert isinstance(picture, Picture)
    assert "IHDR" not in repr(picture)
    assert picture.name == f"bytes ({len(PNG):,})"


def test_threads_decode_together() -> None:
    kinds = ("PNG", "JPEG", "GIF", "WEBP", "TIFF")
    images = [read_picture(encoded(photo(), kind)) for kind in kinds] * 20
    alone = [picture.decode(MAX_PIXELS).tobytes() for picture in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda picture: picture.decode(MAX_PIXELS).tobytes(), images))
    assert alone == together


# ------------------------------------------------------------------------------------- any bytes


SEEDS = [
    handmade_png(2, 1, 8, 3, b"\0\0\1", (b"PLTE", bytes((*RED, *GREEN))), (b"tRNS", b"\x33\xff")),
    *(encoded(photo(20, 10), kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "ICO")),
    encoded(photo(20, 10), "TIFF", compression="tiff_lzw"),
    encoded(photo(20, 10), "JPEG2000"),
    encoded(photo(20, 10), "BMP"),
    encoded(photo(20, 10), "PPM"),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(SEEDS)))
    # Most of what a decoder believes stands at the start.
    places = st.one_of(st.integers(0, min(60, len(data) - 1)), st.integers(0, len(data) - 1))
    for place, value in draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        data[place] = value
    if draw(st.booleans()):
        del data[draw(places) :]
    return bytes(data)


# Pillow warns of damaged metadata; that is for the user to see, and for no test.
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.one_of(st.binary(max_size=200), mutated()))
def test_any_bytes_decode_to_rgb_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(InputError):
        image = read_picture(data).decode(1_000_000)
        assert image.mode == "RGB"
        assert 1 <= image.width * image.height <= 1_000_000


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=50))
def test_any_text_is_read_or_refused(text: str) -> None:
    web = Web()
    with contextlib.suppress(InputError):
        read_picture(text, fetch=web)
    if web.asked:
        assert text.lower().startswith(("http://", "https://"))
