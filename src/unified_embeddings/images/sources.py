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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from PIL import Image

from unified_embeddings.errors import InputError
from unified_embeddings.images.decoding import (
    Picture,
    check_pixels,
    read_orientation,
    reason_of,
)
from unified_embeddings.images.fetch import shown_url

MAX_ENCODED_BYTES = 100 * 2**20
"""Most bytes of an image before it is decoded, wherever they come from."""

_LONGEST_PATH = 4096
"""Characters; a longer text is not looked up on disk (Linux's PATH_MAX)."""
_SHOWN = 80
"""Characters of a text or URL that a message repeats."""


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
            f"{name} could not be fetched ({reason_of(error)}). Check the URL and the connection"
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
            f"{path!r} cannot be read ({reason_of(error)}). Pass the path of an image file that "
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
        digest.update(repr((*shown, read_orientation(image))).encode())
        digest.update(image.tobytes())
    except Exception as error:
        # An image opened and not yet loaded may be broken in every way a file can; see `decode`.
        raise InputError(
            f"{name} cannot be loaded ({reason_of(error)}). Pass a whole image, and before its "
            "file is closed"
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
        raise InputError(f"the {kind}'s image cannot be read ({reason_of(error)})") from error
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


def _working_folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return "the working folder, which is gone"
