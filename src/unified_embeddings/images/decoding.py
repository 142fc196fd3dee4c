"""Decode an image's bytes into an 8-bit RGB Pillow image, safely.

What lives here: which formats are read, the limit on pixels, transparency, orientation and grey of
more than 8 bits. What does not: where the bytes come from (`sources`), and the size and
normalisation that a model needs.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from unified_embeddings.errors import InputError

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM", "JPEG2000", "AVIF")
"""Bitmap formats only: EPS and the like would start other programs.

Pillow opens an MPO as a JPEG.
"""

_DEEP_GREY_MODES = frozenset(("I", "F", "I;16", "I;16B", "I;16L", "I;16N"))
"""Pillow's modes of grey with more than 8 bits."""

_UPRIGHT_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what makes the image upright. Orientation 1 is upright already."""


@dataclass(frozen=True)
class Picture:
    """An image that is not decoded yet.

    It holds the encoded bytes, or the caller's own Pillow image, which must not be changed before
    `decode`. Two pictures are equal if their keys are. Pictures are thread-safe, with one
    exception, which is Pillow's: an image opened from a file and not yet loaded belongs to one
    thread.

    Attributes:
        key: 16 bytes that identify the content: a BLAKE2b digest of the encoded bytes, whatever
            they were read from, or of what a Pillow image shows.
        name: A short description of the input, for messages.
    """

    key: bytes
    name: str = field(compare=False)
    _source: bytes | Image.Image = field(repr=False, compare=False)

    def decode(self, max_pixels: int) -> Image.Image:
        """Return a new RGB image, upright, with 8 bits per channel.

        Only the first frame of an animation is used, and the current frame of a Pillow image.
        Transparency is flattened onto white. 16-bit grey is scaled, so that 65535 becomes 255. The
        white level of floats and 32-bit integers is guessed from their largest value: it is 65535
        for integers, and for floats the first of 1, 255 and 65535 that no value exceeds.

        Args:
            max_pixels: Maximum number of pixels, width times height. It is checked before any
                pixel is decoded.

        Raises:
            InputError: If the bytes are not a complete image in a supported format, or if the
                image has more than `max_pixels` pixels, none at all, or values that no scale fits.
        """
        try:
            return self._decode(max_pixels)
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            raise InputError(
                f"{self.name} has more pixels than Pillow decodes ({error}). Scale it down"
            ) from error
        except UnidentifiedImageError as error:
            raise InputError(
                f"{self.name} is not an image in a supported format ({', '.join(_FORMATS)}): "
                f"{error}. Check that it is an image, or save it as PNG or JPEG"
            ) from None
        except Exception as error:
            # Pillow's plugins and the libraries below them raise any kind of error on broken
            # bytes: SyntaxError, IndexError, struct.error, zlib.error, MemoryError and more.
            raise InputError(
                f"{self.name} cannot be decoded ({error_message(error)}). It may be truncated or "
                "damaged: get a complete copy, or save it again as PNG or JPEG"
            ) from error

    def _decode(self, max_pixels: int) -> Image.Image:
        if isinstance(self._source, Image.Image):
            return self._to_upright_rgb(self._source, max_pixels)
        nested_size = _read_nested_size(self._source)
        if nested_size is not None:
            check_pixels(nested_size, max_pixels, self.name)
        with _open(self._source, _FORMATS) as image:
            check_pixels(image.size, max_pixels, self.name)
            _scale_transparent_colour(image)
            return self._to_upright_rgb(image, max_pixels)

    def _to_upright_rgb(self, image: Image.Image, max_pixels: int) -> Image.Image:
        image.load()
        # The size is checked again, because some formats know their true size only after loading.
        check_pixels(image.size, max_pixels, self.name)
        orientation = read_orientation(image)
        if image.mode in _DEEP_GREY_MODES:
            rgb_image = self._scale_deep_grey(image)
        else:
            rgb_image = _flatten_to_rgb(image)
        # The source's EXIF data must go: with it the next reader would turn the image once more.
        rgb_image.info = {}
        if orientation in _UPRIGHT_TRANSPOSITIONS:
            return rgb_image.transpose(_UPRIGHT_TRANSPOSITIONS[orientation])
        return rgb_image

    def _scale_deep_grey(self, image: Image.Image) -> Image.Image:
        """Scale grey of more than 8 bits to 8, as RGB."""
        values = np.asarray(image)
        white_levels, expected_levels = [65535], "65535"
        if image.mode == "F":
            white_levels, expected_levels = [1, 255, 65535], "1, 255 or 65535"
        lowest, highest = values.min(), values.max()
        # Each condition states what fits, not what does not: every comparison with NaN is false.
        fitting_levels = [level for level in white_levels if lowest >= 0 and highest <= level]
        if not fitting_levels:
            raise InputError(
                f"{self.name} has values from {lowest} to {highest}; expected 0 to "
                f"{expected_levels}. Scale them to 0 ... 255 first"
            )
        scale = np.float32(255 / fitting_levels[0])
        grey = np.rint(values.astype(np.float32) * scale).astype(np.uint8)
        if "transparency" in image.info:
            grey[values == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")


def check_pixels(size: tuple[int, int], max_pixels: int, name: str) -> None:
    """Reject an image without pixels, or with too many.

    Args:
        size: Width and height.
        max_pixels: Maximum of their product.
        name: What the message calls the image.

    Raises:
        InputError: If the image has no pixels, or more than `max_pixels`.
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
    """Open an image and read its header, without decoding pixels.

    `Image.open` does the same, but it warns of large images, or rejects them, by a limit that is
    global to the process. Here only `max_pixels` decides.

    Raises:
        UnidentifiedImageError: If the bytes are in none of the formats, or in one that this build
            of Pillow lacks.
        Exception: Whatever Pillow raises on broken headers.
    """
    for format_name in formats:
        if format_name not in Image.OPEN:
            Image.init()
        if format_name not in Image.OPEN:  # This build of Pillow lacks the format.
            continue
        factory, accept = Image.OPEN[format_name]
        accepted = accept is None or accept(data[:16])
        # A plugin that recognises the format but cannot read it returns the reason as a string.
        if isinstance(accepted, str):
            raise UnidentifiedImageError(accepted)
        if accepted:
            return factory(io.BytesIO(data), "")
    raise UnidentifiedImageError("its first bytes match none of them")


def _read_nested_size(data: bytes) -> tuple[int, int] | None:
    """Return the size of what Pillow would decode or allocate while it opens an image.

    An icon file contains whole PNGs and BMPs, which may be larger than its own header says. A GIF's
    background is filled on opening. None for all other formats.
    """
    if data[:4] == b"GIF8" and len(data) >= 10:
        # The logical screen descriptor: two little-endian uint16 after the 6-byte signature.
        width, height = struct.unpack_from("<HH", data, 6)
        return width, height
    if data[:4] == b"\0\0\1\0":
        from PIL.IcoImagePlugin import IcoFile

        offset = IcoFile(io.BytesIO(data)).entry[0].offset
        inner_image = _open(data[offset:], ("PNG", "DIB"))
        if inner_image.format == "PNG":
            return inner_image.size
        # A BMP in an icon is stored twice as high, with its mask below the image.
        return inner_image.width, max(1, inner_image.height // 2)
    return None


def _scale_transparent_colour(image: ImageFile.ImageFile) -> None:
    """Scale a PNG's transparent colour to 8 bits, as its pixels will be; Pillow does not.

    The pixels of a 16-bit PNG lose their lower 8 bits, and so does the colour. Colours that differ
    from it only in those bits become transparent too.
    """
    if image.format != "PNG" or not image.tile:
        return
    colour = image.info.get("transparency")
    pixel_layout = image.tile[0].args
    if pixel_layout == "L;2" and isinstance(colour, int):
        image.info["transparency"] = colour * 85  # 3 becomes 255.
    elif pixel_layout == "L;4" and isinstance(colour, int):
        image.info["transparency"] = colour * 17  # 15 becomes 255.
    elif pixel_layout == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _flatten_to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of 8 bits per channel to RGB, its transparency flattened onto white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        # Pillow converts La to LA, but not to RGBA.
        image = image.convert("LA")
    if image.mode == "P":
        # The conversion to RGBA writes into the palette, and the image is the caller's.
        image = image.copy()
    layer = image.convert("RGBA")
    canvas = Image.new("RGB", layer.size, "white")
    canvas.paste(layer, mask=layer)
    return canvas


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image; 1 (upright) if it has no readable one."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        # Damaged EXIF data raises any kind of error, while the pixels may be good.
        return 1
    if isinstance(orientation, int):
        return orientation
    return 1


def error_message(error: Exception) -> str:
    """Return an error's message, or the name of its type if it has none."""
    return str(error) or type(error).__name__
