"""Find the encoded bytes of whatever a caller calls an image.

What lives here: reading a path, bytes, base64, a data: URI, a URL, a Pillow image or a LlamaIndex
node, and a key that identifies the content. What does not: decoding the bytes (`decoding`), the
network (a `fetch` is passed to `read_picture`), and the cache.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias

from PIL import Image

from unified_embeddings.errors import InputError
from unified_embeddings.images.decoding import (
    Picture,
    check_pixels,
    error_message,
    read_orientation,
)
from unified_embeddings.images.fetch import redact_url

MAX_ENCODED_BYTES = 100 * 2**20
"""Maximum size of an image in bytes before it is decoded, wherever it comes from."""

_MAX_PATH_LENGTH = 4096
"""Maximum number of characters of a text that is looked up on disk (Linux's PATH_MAX)."""
_MAX_SHOWN_CHARACTERS = 80
"""Number of characters of a text that a message repeats."""


class ImageNodeLike(Protocol):
    """A LlamaIndex ImageNode or ImageDocument, or anything with the same three attributes.

    The first attribute that is set counts.
    """

    @property
    def image(self) -> str | None:
        """The image in base64."""

    @property
    def image_path(self) -> str | None:
        """Path of the image's file."""

    @property
    def image_url(self) -> str | None:
        """The image's http(s) URL."""


class MediaResourceLike(Protocol):
    """LlamaIndex's MediaResource. The first attribute that is set counts."""

    @property
    def data(self) -> bytes | None:
        """The image in base64, or its encoded bytes."""

    @property
    def path(self) -> Path | None:
        """Path of the image's file."""

    @property
    def url(self) -> object:
        """The image's http(s) URL: a pydantic URL, or None."""


class ResourceNodeLike(Protocol):
    """LlamaIndex's newer Node, which holds its image in a resource."""

    @property
    def image_resource(self) -> MediaResourceLike | None:
        """The image, or None."""


ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | io.BytesIO | Image.Image "
    "| ImageNodeLike | ResourceNodeLike"
)
"""Whatever a caller may pass as an image.

- `str`: a data: URI, an http(s) URL, the path of an existing file, or base64;
- `os.PathLike`: the path of a file;
- `bytes`, `bytearray`, `memoryview`, `io.BytesIO`: an encoded image, a PNG file's content say;
- `PIL.Image.Image`: an image already opened with Pillow;
- a LlamaIndex `ImageNode`, `ImageDocument`, or `Node` with an `image_resource`.
"""

Fetch: TypeAlias = Callable[[str], bytes]
"""Return the bytes that a URL points to."""


def read_picture(
    image: ImageInput, *, fetch: Fetch | None = None, max_pixels: int | None = None
) -> Picture:
    """Find an image's bytes, without decoding them.

    A text is tried as a data: URI, as a URL, as the path of an existing file, and as base64, in
    this order. In a LlamaIndex node, the first of image, image_path and image_url that is set
    counts, or data, path and url of its image_resource.

    Args:
        image: A path, encoded bytes, a BytesIO (read whole; its position does not change), base64,
            a data: URI, an http(s) URL, a Pillow image or a LlamaIndex node.
        fetch: Returns the bytes of a URL. With None, URLs are rejected.
        max_pixels: Maximum number of pixels of a Pillow image, which is loaded here unless it
            already was. Encoded images are checked when they are decoded.

    Raises:
        InputError: If `image` is none of these, if its file or URL cannot be read, or if it is
            empty or too large.
    """
    if isinstance(image, str):
        return _read_text(image, fetch)
    if isinstance(image, (bytes, bytearray, memoryview, io.BytesIO)):
        return _read_buffer(image)
    if isinstance(image, Image.Image):
        return _read_pillow_image(image, max_pixels)
    if isinstance(image, os.PathLike):
        return _read_file(os.fsdecode(image))
    if is_image_node(image):
        return _read_node(image, fetch)
    raise InputError(
        "expected an image: a path, bytes, BytesIO, base64 text, PIL.Image.Image or LlamaIndex "
        f"ImageNode; got {type(image).__name__}. For an open file pass its path or .read(), for an "
        "array PIL.Image.fromarray(array)"
    )


def is_image_node(value: object) -> bool:
    """Tell whether this looks like a LlamaIndex node or document that can hold an image."""
    try:
        return hasattr(value, "image") or hasattr(value, "image_resource")
    except Exception:
        # The property exists, but cannot decode its content; `read_picture` will report that.
        return True


def _read_text(text: str, fetch: Fetch | None) -> Picture:
    if _is_data_uri(text):
        return _read_data_uri(text)
    if _is_url(text):
        return _read_url(text, fetch)
    if text[:7].lower() == "file://":
        raise InputError(
            f"{_shorten(text)} is a file:// URL, which is not supported. Pass the path alone"
        )
    if not text.strip():
        raise InputError("expected an image, got an empty text. Pass a path or base64")
    if _exists(text):
        return _read_file(text)
    data = _decode_base64(text)
    if data is None:
        raise InputError(
            f"{_shorten(text)} is neither an existing file nor base64. Check the path and the "
            f"folder it is relative to ({_working_folder()})"
        )
    if len(text) > _MAX_SHOWN_CHARACTERS:
        return _make_picture(data, f"base64 ({len(text):,} characters)")
    # A mistyped path without an extension may pass for base64, so the message repeats it.
    return _make_picture(data, f"{text!r} (no such file, read as base64)")


def _read_data_uri(text: str) -> Picture:
    header, _, payload = text.partition(",")
    data = None
    if header.rstrip().lower().endswith(";base64"):
        data = _decode_base64(payload)
    if data is None:
        raise InputError(
            f"a data: URI ({len(text):,} characters) is not in base64. Expected "
            "'data:image/png;base64,' followed by the image's bytes in base64"
        )
    return _make_picture(data, f"data: URI ({len(text):,} characters)")


def _read_url(url: str, fetch: Fetch | None) -> Picture:
    name = repr(redact_url(url))
    if fetch is None:
        raise InputError(
            f"{name} is a URL, and URLs are off: nothing is downloaded unless asked for. Pass "
            "allow_urls=True to allow URLs, or pass the downloaded file"
        )
    try:
        data = fetch(url)
    except InputError:
        raise
    except Exception as error:
        # `fetch` is the caller's, and its HTTP client may raise anything.
        raise InputError(
            f"{name} could not be fetched ({error_message(error)}). Check the URL and the "
            "connection"
        ) from error
    return _make_picture(data, name)


def _read_file(path: str) -> Picture:
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            # Reading a pipe would block, and a device may never end.
            kind = "a folder" if Path(path).is_dir() else "not a regular file"
            raise InputError(f"{path} is {kind}. Pass the path of an image file")
        with Path(path).open("rb") as file:
            # One byte more than allowed tells a file that is too large without reading all of it.
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
            f"{path!r} cannot be read ({error_message(error)}). Pass the path of an image file "
            "that this process may read"
        ) from error
    return _make_picture(data, path)


def _read_buffer(buffer: bytes | bytearray | memoryview | io.BytesIO) -> Picture:
    type_name = type(buffer).__name__
    try:
        if isinstance(buffer, io.BytesIO):
            data = buffer.getvalue()
        else:
            # The length is checked before the copy, so that a huge buffer is not copied.
            _check_length(memoryview(buffer).nbytes, type_name)
            data = bytes(buffer)
    except InputError:
        raise
    except ValueError as error:
        # The buffer is closed or released.
        raise InputError(f"the {type_name} cannot be read ({error}). Pass an open one") from error
    return _make_picture(data, f"{type_name} ({len(data):,})")


def _make_picture(data: bytes, name: str) -> Picture:
    """Return the picture of encoded bytes, neither empty nor too long."""
    _check_length(len(data), name)
    if not data:
        raise InputError(f"{name} is empty. Pass a complete image")
    key = hashlib.blake2b(data, digest_size=16).digest()
    return Picture(key, name, data)


def _read_pillow_image(image: Image.Image, max_pixels: int | None) -> Picture:
    name = f"PIL image ({image.mode}, {image.width} x {image.height})"
    if max_pixels is not None:
        check_pixels(image.size, max_pixels, name)
    if not image.width or not image.height:
        raise InputError(f"{name} has no pixels. Leave it out")
    try:
        image.load()
        key = _hash_pillow_image(image)
    except Exception as error:
        # An image that is opened but not loaded may be broken in any way a file can; see
        # `Picture.decode`.
        raise InputError(
            f"{name} cannot be loaded ({error_message(error)}). Pass a complete image, before its "
            "file is closed"
        ) from error
    return Picture(key, name, image)


def _hash_pillow_image(image: Image.Image) -> bytes:
    """Return a digest of all that decides which pixels a loaded image shows."""
    palette = None
    if image.palette is not None:
        palette = image.getpalette("RGBA")
    transparency = image.info.get("transparency")
    description = (image.mode, image.size, transparency, palette, read_orientation(image))
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(description).encode())
    digest.update(image.tobytes())
    return digest.digest()


def _read_node(node: object, fetch: Fetch | None) -> Picture:
    type_name = type(node).__name__
    try:
        resource = getattr(node, "image_resource", None)
        data = getattr(node, "image", None) or getattr(resource, "data", None)
        path = getattr(node, "image_path", None) or getattr(resource, "path", None)
        url = str(getattr(node, "image_url", None) or getattr(resource, "url", None) or "")
    except Exception as error:
        # Some of these attributes are properties that decode what the node holds.
        raise InputError(
            f"the {type_name}'s image cannot be read ({error_message(error)})"
        ) from error
    if data:
        return _read_node_data(data, type_name)
    if path:
        return _read_file(os.fsdecode(path))
    if _is_data_uri(url):
        return _read_data_uri(url)
    if _is_url(url):
        return _read_url(url, fetch)
    if url:
        raise InputError(
            f"{type_name}.image_url is {_shorten(url)}; expected http:// or https://. Pass a "
            "file's path as image_path"
        )
    raise InputError(f"the {type_name} has no image. Set its image, image_path or image_url")


def _read_node_data(data: str | bytes, type_name: str) -> Picture:
    """Read a node's base64, str or bytes; bytes that are not base64 are the image itself."""
    name = f"{type_name}.image"
    if isinstance(data, str) and _is_data_uri(data):
        return _read_data_uri(data)
    decoded = _decode_base64(data)
    if decoded is not None:
        return _make_picture(decoded, name)
    if isinstance(data, str):
        raise InputError(
            f"{name} ({len(data):,} characters) is not base64. Pass a path as image_path, a URL as "
            "image_url"
        )
    return _make_picture(data, name)


def _check_length(length: int, name: str) -> None:
    if length > MAX_ENCODED_BYTES:
        raise InputError(
            f"{name} is larger than the {MAX_ENCODED_BYTES // 2**20} MiB allowed for an encoded "
            "image. Scale it down, or save it as JPEG"
        )


def _decode_base64(text: str | bytes) -> bytes | None:
    """Return the bytes that base64 text encodes, ignoring white space; None if it is not base64."""
    try:
        encoded = text.encode("ascii") if isinstance(text, str) else text
        return base64.b64decode(b"".join(encoded.split()), validate=True)
    except ValueError:
        # UnicodeEncodeError and binascii.Error are both ValueErrors.
        return None


def _exists(text: str) -> bool:
    """Tell whether a text is the path of something that exists, readable or not."""
    if len(text) > _MAX_PATH_LENGTH:
        return False
    try:
        Path(text).stat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        # A path with NUL characters or lone surrogates is a ValueError.
        return False
    return True


def _is_url(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))


def _is_data_uri(text: str) -> bool:
    return text[:64].lstrip().lower().startswith("data:")


def _shorten(text: str) -> str:
    """Return a text as a message repeats it: quoted, and cut if it is long."""
    if len(text) <= _MAX_SHOWN_CHARACTERS:
        return repr(text)
    return f"{text[:_MAX_SHOWN_CHARACTERS]!r}... ({len(text):,} characters)"


def _working_folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return "the working folder, which no longer exists"
