"""Encoded bytes to an 8-bit RGB Pillow image, safely."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from unified_embeddings.errors import InputError

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM", "JPEG2000", "AVIF")
"""Bitmaps only: EPS and the like would start other programs. Pillow opens an MPO as a JPEG."""


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
                f"{self.name} cannot be decoded ({reason_of(error)}). It may be cut short or "
                "damaged: get a whole copy, or save it again as PNG or JPEG"
            ) from error

    def _upright_rgb(self, image: Image.Image, max_pixels: int) -> Image.Image:
        image.load()
        check_pixels(image.size, max_pixels, self.name)  # some formats know better after loading
        orientation = read_orientation(image)
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


def read_orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image, 1 (upright) where it has none that can be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF raises anything, and the pixels are good all the same
        return 1
    return orientation if isinstance(orientation, int) else 1


def reason_of(error: Exception) -> str:
    """Return an error's message, or its type's name if it has none."""
    return str(error) or type(error).__name__
