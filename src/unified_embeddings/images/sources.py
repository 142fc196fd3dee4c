"""Whatever a caller calls an image, to an 8-bit RGB Pillow image.

What lives here: finding the encoded bytes (a path, bytes, base64, a URL, a LlamaIndex node), a key
that tells their content, and decoding them safely. What does not: the network (`read_picture` is
handed a `fetch`), the size and the normalisation a model wants, and the cache.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from unified_embeddings.errors import InputError
from unified_embeddings.images.fetch import shown_url

MAX_ENCODED_BYTES = 100 * 2**20
"""Most bytes of an image before it is decoded, wherever they come from."""

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM", "JPEG2000", "AVIF")
"""Bitmaps only: EPS and the like would start other programs. Pillow opens an MPO as a JPEG."""
_LONGEST_PATH = 4096
"""Characters; a longer text is not looked up on disk (Linux's PATH_MAX)."""
_SHOWN = 80
"""Characters of a text or URL that a message repeats."""
_DEEP_MODES = frozenset(("I", "F", "I;16", "I;16B", "I;16L", "I;16N"))
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright; 1 is upright already."""


class ImageNodeLike(Protocol):
    """LlamaIndex's ImageNode and ImageDocument; a Node with an `image_resource` does as well."""

    @property
    def image(self) -> str | None:
        """Base64."""

    @property
    def image_path(self) -> str | None:
        """A file."""

    @property
    def image_url(self) -> str | None:
        """An http(s) URL."""


class ResourceNodeLike(Protocol):
    """LlamaIndex's newer Node: its `image_resource` has `data`, `path` and `url`."""

    @property
    def image_resource(self) -> Any:
        """A MediaResource or None."""


ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | io.BytesIO | Image.Image "
    "| ImageNodeLike | ResourceNodeLike"
)
Fetch: TypeAlias = Callable[[str], bytes]


@dataclass(frozen=True)
class Picture:
    """An image that is not decoded yet.

    It holds the encoded bytes, or the caller's own Pillow image, which must not be changed before
    `decode`. Two pictures are equal if their keys are. Thread-safe, save that a Pillow image opened
    from a file and not yet loaded is one thread's alone, as in Pillow itself.

    Attributes:
        key: 16 bytes that tell the content: a BLAKE2b digest of the encoded bytes, however they
            came, or of what a Pillow image shows.
        name: What came, in short, for messages.
    """

    key: bytes
    name: str = field(compare=False)
    _source: bytes | Image.Image = field(repr=False, compare=False)

    def decode(self, max_pixels: int) -> Image.Image:
        """A fresh RGB image, upright, of 8 bits per channel.

        Of an animation it is the first frame, of a Pillow image the frame it stands at.
        Transparency is laid on white. 16-bit grey is scaled (65535 becomes 255). Floats and 32-bit
        integers say by their largest value what white is: integers 65535; floats 1, 255 or 65535,
        whichever is the first that no value exceeds.

        Args:
            max_pixels: Most pixels, width times height. Checked before pixels are decoded.

        Raises:
            InputError: If the bytes are no whole image in a known format, or the image has more
                than `max_pixels`, no pixels, or values that no scale fits.
        """
        try:
            if isinstance(self._source, Image.Image):
                return self._upright_rgb(self._source, max_pixels)
            nested = _nested_size(self._source)
            if nested is not None:
                check_pixels(nested, max_pixels, self.name)
            with _open(self._source, _FORMATS) as image:
                check_pixels(image.size, max_pixels, self.name)
                _mend_transparency(image)
                return self._upright_rgb(image, max_pixels)
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            raise InputError(
                f"{self.name} has more pixels than Pillow decodes ({error}). Scale it down"
            ) from error
        except UnidentifiedImageError as error:
            raise InputError(
                f"{self.name} is no image of a kind read here ({', '.join(_FORMATS)}): {error}. "
                "Check that it is an image, or save it as PNG or JPEG"
            ) from None
        except Exception as error:
            # Pillow's plugins and the libraries below let every kind of error out on broken
            # bytes: SyntaxError, IndexError, struct.error, zlib.error, MemoryError and more.
            raise InputError(
                f"{self.name} cannot be decoded ({_reason(error)}). It may be cut short or "
                "damaged: get a whole copy, or save it again as PNG or JPEG"
            ) from error

    def _upright_rgb(self, image: Image.Image, max_pixels: int) -> Image.Image:
        image.load()
        check_pixels(image.size, max_pixels, self.name)  # some formats know better after loading
        orientation = _orientation(image)
        rgb = self._grey(image) if image.mode in _DEEP_MODES else _rgb(image)
        # Left in place, the source's EXIF would make the next reader turn the image once more.
        rgb.info = {}
        return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb

    def _grey(self, image: Image.Image) -> Image.Image:
        """Scale grey of more than 8 bits to 8."""
        values = np.asarray(image)
        low, high = values.min(), values.max()
        whites = (1, 255, 65535) if image.mode == "F" else (65535,)
        # Not `low < 0 or high > ...`: comparisons with NaN are false.
        white = next((white for white in whites if low >= 0 and high <= white), None)
        if white is None:
            raise InputError(
                f"{self.name} has values from {low} to {high}; expected 0 to "
                f"{', '.join(map(str, whites[:-1])) + ' or ' if whites[:-1] else ''}{whites[-1]}. "
                "Scale them to 0 ... 255 first"
            )
        grey = np.rint(values.astype(np.float32) * np.float32(255 / white)).astype(np.uint8)
        if "transparency" in image.info:
            grey[values == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")


def read_picture(
    image: ImageInput, *, fetch: Fetch | None = None, max_pixels: int | None = None
) -> Picture:
    """Find an image's bytes, without decoding them.

    A text is a data: URI, a URL, the path of a file that exists, or else base64, in this order. Of
    a LlamaIndex node the first that is set counts: image, image_path, image_url, or what stands
    for them in its image_resource: data, path, url.

    Args:
        image: A path, encoded bytes, a BytesIO (read whole, its position stays), base64, a data:
            URI, an http(s) URL, a Pillow image or a LlamaIndex node.
        fetch: Gets the bytes of a URL; None allows no URLs.
        max_pixels: Most pixels of a Pillow image, which is loaded here if it was not; encoded ones
            are checked when they are decoded.

    Raises:
        InputError: If it is none of these, a file or URL cannot be read, or there is nothing in it
            or too much.
    """
    if isinstance(image, str):
        return _from_text(image, fetch)
    if isinstance(image, (bytes, bytearray, memoryview, io.BytesIO)):
        return _from_buffer(image, type(image).__name__)
    if isinstance(image, Image.Image):
        return _from_pillow(image, max_pixels)
    if isinstance(image, os.PathLike):
        return _from_file(os.fsdecode(image))
    if is_image_node(image):
        return _from_node(image, fetch)
    raise InputError(
        "expected an image: a path, bytes, BytesIO, base64 text, PIL.Image.Image or LlamaIndex "
        f"ImageNode; got {type(image).__name__}. Of an open file pass the path or .read(), of an "
        "array PIL.Image.fromarray(array)"
    )


def is_image_node(value: Any) -> bool:
    """Whether this looks like a node or document of LlamaIndex's that can hold an image."""
    try:
        return hasattr(value, "image") or hasattr(value, "image_resource")
    except Exception:  # a property that cannot decode what it holds; `read_picture` says so
        return True


def check_pixels(size: tuple[int, int], max_pixels: int, name: str) -> None:
    """Refuse an image of no pixels, or too many.

    Raises:
        InputError: If it is one; `name` is in the message.
    """
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name} has no pixels ({width} x {height}). Leave it out")
    if width * height > max_pixels:
        raise InputError(
            f"{name} has {width:,} x {height:,} pixels, more than the {max_pixels:,} "
            "allowed. Scale it down, or allow more with max_pixels"
        )


def _from_text(text: str, fetch: Fetch | None) -> Picture:
    if _is_data_uri(text):
        return _from_data_uri(text)
    if _is_url(text):
        return _from_url(text, fetch)
    if text[:7].lower() == "file://":
        raise InputError(f"{_shown(text)} is a file:// URL, which is not read. Pass the path alone")
    if not text.strip():
        raise InputError("expected an image, got an empty text. Pass a path or base64")
    if _exists(text):
        return _from_file(text)
    data = _base64(text)
    if data is None:
        raise InputError(
            f"{_shown(text)} is no such file, and no base64. Check the path and the folder it is "
            f"relative to ({_working_folder()})"
        )
    # A mistyped path without an extension may pass for base64, so a short one is shown.
    short = f"{text!r} (no such file, read as base64)"
    return _from_bytes(data, short if len(text) <= _SHOWN else f"base64 ({len(text):,} characters)")


def _from_data_uri(text: str) -> Picture:
    head, _, payload = text.partition(",")
    data = _base64(payload) if head.rstrip().lower().endswith(";base64") else None
    if data is None:
        raise InputError(
            f"a data: URI ({len(text):,} characters) is not in base64. Expected "
            "'data:image/png;base64,' and the image's bytes in base64"
        )
    return _from_bytes(data, f"data: URI ({len(text):,} characters)")


def _from_url(url: str, fetch: Fetch | None) -> Picture:
    name = repr(shown_url(url))
    if fetch is None:
        raise InputError(
            f"{name} is a URL, and URLs are off: nothing is downloaded unasked. Pass "
            "allow_urls=True to allow them, or the downloaded file"
        )
    try:
        data = fetch(url)
    except InputError:
        raise
    except Exception as error:  # whatever the caller's client raises
        raise InputError(
            f"{name} could not be fetched ({_reason(error)}). Check the URL and the connection"
        ) from error
    return _from_bytes(data, name)


def _from_file(path: str) -> Picture:
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            # A pipe would make the reader wait, a device may never end.
            what = "a folder" if Path(path).is_dir() else "no ordinary file"
            raise InputError(f"{path} is {what}. Pass the path of an image file")
        with Path(path).open("rb") as file:
            data = file.read(MAX_ENCODED_BYTES + 1)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file. Check the path and the folder it is relative to "
            f"({_working_folder()})"
        ) from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path!r} cannot be read ({_reason(error)}). Pass the path of an image file that "
            "this process may read"
        ) from error
    return _from_bytes(data, path)


def _from_buffer(buffer: bytes | bytearray | memoryview | io.BytesIO, kind: str) -> Picture:
    try:
        if isinstance(buffer, io.BytesIO):
            data = buffer.getvalue()
        else:
            # Before the copy: a huge buffer is refused, not copied.
            _check_length(memoryview(buffer).nbytes, kind)
            data = bytes(buffer)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"the {kind} cannot be read ({error}). Pass an open one") from error
    return _from_bytes(data, f"{kind} ({len(data):,})")


def _from_bytes(data: bytes, name: str) -> Picture:
    _check_length(len(data), name)
    if not data:
        raise InputError(f"{name} is empty. Pass a whole image")
    return Picture(hashlib.blake2b(data, digest_size=16).digest(), name, data)


def _from_pillow(image: Image.Image, max_pixels: int | None) -> Picture:
    name = f"PIL image ({image.mode}, {image.width} x {image.height})"
    if max_pixels is not None:
        check_pixels(image.size, max_pixels, name)
    if not image.width or not image.height:
        raise InputError(f"{name} has no pixels. Leave it out")
    try:
        image.load()
        digest = hashlib.blake2b(digest_size=16)
        palette = image.getpalette("RGBA") if image.palette is not None else None
        shown = (image.mode, image.size, image.info.get("transparency"), palette)
        digest.update(repr((*shown, _orientation(image))).encode())
        digest.update(image.tobytes())
    except Exception as error:
        # An image opened and not yet loaded may be broken in every way a file can; see `decode`.
        raise InputError(
            f"{name} cannot be loaded ({_reason(error)}). Pass a whole image, and before its file "
            "is closed"
        ) from error
    return Picture(digest.digest(), name, image)


def _from_node(node: Any, fetch: Fetch | None) -> Picture:
    kind = type(node).__name__
    try:
        resource = getattr(node, "image_resource", None)
        data = getattr(node, "image", None) or getattr(resource, "data", None)
        path = getattr(node, "image_path", None) or getattr(resource, "path", None)
        url = str(getattr(node, "image_url", None) or getattr(resource, "url", None) or "")
    except Exception as error:  # properties that decode what they hold
        raise InputError(f"the {kind}'s image cannot be read ({_reason(error)})") from error
    if data:
        return _from_node_data(data, kind)
    if path:
        return _from_file(os.fsdecode(path))
    if _is_data_uri(url):
        return _from_data_uri(url)
    if _is_url(url):
        return _from_url(url, fetch)
    if url:
        raise InputError(
            f"{kind}.image_url is {_shown(url)}; expected http:// or https://. Put a file's path "
            "into image_path"
        )
    raise InputError(f"the {kind} has no image. Set its image, image_path or image_url")


def _from_node_data(data: str | bytes, kind: str) -> Picture:
    """Read a node's base64, str or bytes; bytes that are not base64 are the image itself."""
    if isinstance(data, str) and _is_data_uri(data):
        return _from_data_uri(data)
    decoded = _base64(data)
    if decoded is not None:
        return _from_bytes(decoded, f"{kind}.image")
    if isinstance(data, str):
        raise InputError(
            f"{kind}.image ({len(data):,} characters) is no base64. Put a path into image_path, a "
            "URL into image_url"
        )
    return _from_bytes(data, f"{kind}.image")


def _open(data: bytes, formats: tuple[str, ...]) -> ImageFile.ImageFile:
    """Read the header.

    `Image.open` does this too, but it warns of large images, or refuses them, by a limit of its
    own that is the whole process's; here `max_pixels` decides.

    Raises:
        UnidentifiedImageError: If it is none of the formats, or of one this Pillow lacks.
        Exception: Whatever Pillow raises on broken headers.
    """
    for name in formats:
        if name not in Image.OPEN:
            Image.init()
        if name not in Image.OPEN:  # a Pillow built without it
            continue
        factory, accept = Image.OPEN[name]
        accepted = accept is None or accept(data[:16])
        if isinstance(accepted, str):
            raise UnidentifiedImageError(accepted)
        if accepted:
            return factory(io.BytesIO(data), "")
    raise UnidentifiedImageError("it starts like none of them")


def _nested_size(data: bytes) -> tuple[int, int] | None:
    """The size of what Pillow would decode, or make room for, while it opens; None if nothing.

    An icon file holds whole PNGs and BMPs that are larger than its own header may say, and a GIF's
    background is filled at once.
    """
    if data[:4] == b"GIF8" and len(data) >= 10:
        width, height = struct.unpack_from("<HH", data, 6)
        return width, height
    if data[:4] == b"\0\0\1\0":
        from PIL.IcoImagePlugin import IcoFile

        offset = IcoFile(io.BytesIO(data)).entry[0].offset
        inner = _open(data[offset:], ("PNG", "DIB"))
        # A BMP in an icon has its mask below.
        return inner.size if inner.format == "PNG" else (inner.width, max(1, inner.height // 2))
    return None


def _mend_transparency(image: ImageFile.ImageFile) -> None:
    """Bring a PNG's transparent colour to the 8 bits its pixels will have; Pillow leaves it.

    Of 16 bits the lower half is lost with that of the pixels, so that neighbours of the colour
    become transparent too.
    """
    colour = image.info.get("transparency")
    if image.format != "PNG" or not image.tile:
        return
    layout = image.tile[0].args
    if layout in ("L;2", "L;4") and isinstance(colour, int):
        image.info["transparency"] = colour * (85 if layout == "L;2" else 17)
    elif layout == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # Pillow knows the way to RGBA from LA only
        image = image.convert("LA")
    if image.mode == "P":  # whose conversion writes into the image's own palette
        image = image.copy()
    layer = image.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer)
    return white


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image, 1 (upright) where it has none that can be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF raises anything, and the pixels are good all the same
        return 1
    return orientation if isinstance(orientation, int) else 1


def _check_length(length: int, name: str) -> None:
    if length > MAX_ENCODED_BYTES:
        raise InputError(
            f"{name} is larger than the {MAX_ENCODED_BYTES // 2**20} MiB an encoded image may "
            "have. Scale it down, or save it as JPEG"
        )


def _base64(text: str | bytes) -> bytes | None:
    """The bytes that base64 text stands for, white space passed over; None if it is no base64."""
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except ValueError:  # UnicodeEncodeError and binascii.Error are such
        return None


def _exists(text: str) -> bool:
    """Whether a text is a path of something, be it readable or not."""
    if len(text) > _LONGEST_PATH:
        return False
    try:
        Path(text).stat()
    except PermissionError:
        return True
    except (OSError, ValueError):  # ValueError: NUL or lone surrogates
        return False
    return True


def _is_url(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))


def _is_data_uri(text: str) -> bool:
    return text[:64].lstrip().lower().startswith("data:")


def _shown(text: str) -> str:
    if len(text) <= _SHOWN:
        return repr(text)
    return f"{text[:_SHOWN]!r}... ({len(text):,} characters)"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _working_folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return "the working folder, which is gone"
