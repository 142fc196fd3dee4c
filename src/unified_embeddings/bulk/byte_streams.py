"""Bytes of an input as blocks of UTF-8: counted, decompressed, transcoded, cut into lines.

What lives here: gzip and zstd, byte order marks, and lines of bounded length. What does not: what
the lines mean (`records`).

Nothing here holds more than a few blocks, whatever comes: a block that decompresses to a gigabyte
comes out in pieces.
"""

from __future__ import annotations

import codecs
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from unified_embeddings.bulk.rows import Compression
from unified_embeddings.errors import MissingExtraError

BLOCK_BYTES = 256 * 2**10
_ZSTD_SLICE = 2**10
"""zstd gives all that a slice holds at once, at most 32,000 times its length."""
_LARGEST_WINDOW = 2**31
"""What `zstd --long=31` needs; the library's own limit is 2^27."""
_MAGIC: dict[bytes, Compression] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x22\xb5\x2f\xfd": "zstd",
}
_OTHER_MAGIC = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"PK\x03\x04": "a zip archive"}
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, ""),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LONGEST_MARK = 8
_LOOKED_AT = 400
"""Bytes in which a third of NUL tells UTF-16 without a mark, or binary data."""


class DamagedStreamError(Exception):
    """The bytes end too early, or are not what they should be. The message says which."""


class UnusableStreamError(Exception):
    """The bytes are of a kind that is not read."""


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none at the end."""


@dataclass
class Position:
    """How far a file was read.

    Attributes:
        read_bytes: Bytes read so far, compressed ones if it is compressed.
    """

    read_bytes: int = 0


class CountingHandle:
    """A file whose position is known while it is read through."""

    def __init__(self, handle: Readable, position: Position) -> None:
        self._handle = handle
        self._position = position

    def read(self, size: int, /) -> bytes:
        """Read from the file."""
        block = self._handle.read(size)
        self._position.read_bytes += len(block)
        return block


class RewindableHandle:
    """A pipe whose beginning can be read a second time.

    It stores what is read until `rewind`, and nothing after that.
    """

    def __init__(self, handle: Readable) -> None:
        self._handle = handle
        self._stored: list[bytes] = []
        self._is_storing = True

    def read(self, size: int, /) -> bytes:
        """Read what was stored first, then the pipe."""
        if self._is_storing:
            block = self._handle.read(size)
            self._stored.append(block)
            return block
        if self._stored:
            return self._stored.pop(0)
        return self._handle.read(size)

    def rewind(self) -> None:
        """Let the next read begin at the beginning again."""
        self._is_storing = False
        self._stored = [block for block in self._stored if block]


def read_blocks(handle: Readable, compression: Compression | None) -> Iterator[bytes]:
    """Read a file as blocks of UTF-8 without a byte order mark.

    Bytes that are not UTF-8 come as they are.

    Args:
        handle: Where to read.
        compression: None goes by the first bytes.

    Raises:
        DamagedStreamError: If a compressed file is cut off or damaged, or UTF-16 is cut off.
        UnusableStreamError: If it is compressed in another way, or is not text.
        MissingExtraError: If zstandard is needed and not installed.
    """
    blocks = _begin_with(_read_raw(handle), 6)
    first = next(blocks, b"")
    blocks = itertools.chain([first], blocks)
    if compression is None:
        compression = find_compression(first)
    if compression == "gzip":
        blocks = _read_gzip(blocks)
    elif compression == "zstd":
        blocks = _read_zstd(blocks)
    return _to_utf8(blocks)


def find_compression(beginning: bytes) -> Compression:
    """Tell how a file is compressed from its first six bytes.

    Raises:
        UnusableStreamError: If it is in a way that is not read.
    """
    for magic, compression in _MAGIC.items():
        if beginning.startswith(magic):
            return compression
    # A zstd file may begin with a frame for other programs, 0x184D2A50 to 0x184D2A5F.
    if beginning[1:4] == b"\x2a\x4d\x18" and beginning[0] & 0xF0 == 0x50:
        return "zstd"
    for magic, name in _OTHER_MAGIC.items():
        if beginning.startswith(magic):
            raise UnusableStreamError(
                f"it is {name}, which is not read; use gzip or zstd, or unpack it"
            )
    return "none"


def _read_raw(handle: Readable) -> Iterator[bytes]:
    while block := handle.read(BLOCK_BYTES):
        yield block


def _begin_with(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Join the first blocks until they have `size` bytes; a pipe gives fewer at times."""
    beginning = b""
    for block in blocks:
        beginning += block
        if len(beginning) >= size:
            break
    if beginning:
        yield beginning
    yield from blocks


# --- compression --------------------------------------------------------------------------------


def _read_gzip(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress gzip, members one after the other; zeros may fill up the end."""
    member = None
    for block in blocks:
        while block:
            if member is None:
                block = block.lstrip(b"\0")
                if not block:
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                piece = member.decompress(block, BLOCK_BYTES)
                yield piece
                while len(piece) == BLOCK_BYTES and not member.unconsumed_tail and not member.eof:
                    piece = member.decompress(b"", BLOCK_BYTES)
                    yield piece
            except zlib.error as error:
                raise DamagedStreamError(f"the gzip data is damaged ({error})") from None
            block = member.unconsumed_tail
            if member.eof:
                block = member.unused_data
                member = None
    if member is not None:
        raise DamagedStreamError("the gzip data is cut off")


def _read_zstd(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress zstd, frames one after the other."""
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("zstandard, which reads .zst files,", extra="bulk") from error
    reader = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    frame = None
    for block in blocks:
        for start in range(0, len(block), _ZSTD_SLICE):
            piece = block[start : start + _ZSTD_SLICE]
            while piece:
                if frame is None:
                    frame = reader.decompressobj()
                try:
                    yield frame.decompress(piece)
                except zstandard.ZstdError as error:
                    raise DamagedStreamError(f"the zstd data is damaged ({error})") from None
                piece = b""
                if frame.eof:
                    piece = frame.unused_data
                    frame = None
    if frame is not None:
        raise DamagedStreamError("the zstd data is cut off")


# --- encoding -----------------------------------------------------------------------------------


def _to_utf8(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Drop a byte order mark, and transcode what it says is UTF-16 or UTF-32."""
    blocks = _begin_with(blocks, _LOOKED_AT)
    first = next(blocks, b"")
    encoding = ""
    for mark, name in _BYTE_ORDER_MARKS:
        if first.startswith(mark):
            first = first[len(mark) :]
            encoding = name
            break
    else:
        beginning = first[:_LOOKED_AT]
        if beginning.count(0) * 3 > len(beginning):
            raise UnusableStreamError(
                "it is not text: it is binary, or UTF-16 without a byte order mark; convert it to "
                "UTF-8"
            )
    blocks = itertools.chain([first], blocks)
    return _transcode(blocks, encoding) if encoding else blocks


def _transcode(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    # Halves of characters stay halves, which are not valid UTF-8: their row is a problem, not the
    # file.
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    try:
        for block in blocks:
            yield decoder.decode(block).encode("utf-8", "surrogatepass")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise DamagedStreamError(f"the {encoding.upper()} text is cut off or damaged") from error


# --- lines --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LongLine:
    """In place of a line that is longer than allowed.

    Attributes:
        size: Its bytes.
        quotes: How many of them are quotation marks.
    """

    size: int
    quotes: int


def split_lines(blocks: Iterator[bytes], longest: int) -> Iterator[bytes | LongLine]:
    r"""Cut blocks into lines, each with its b"\n"; the last one may have none.

    Args:
        blocks: UTF-8, or any encoding in which a line ends with the byte 10.
        longest: A line of more bytes comes as a LongLine.
    """
    pieces: list[bytes] = []
    size = quotes = 0
    for block in blocks:
        start = 0
        while start < len(block):
            end = block.find(b"\n", start) + 1
            piece = block[start : end or len(block)]
            start += len(piece)
            size += len(piece)
            quotes += piece.count(b'"')
            if size <= longest:
                pieces.append(piece)
            else:
                pieces.clear()
            if end:
                yield b"".join(pieces) if size <= longest else LongLine(size, quotes)
                pieces.clear()
                size = quotes = 0
    if size:
        yield b"".join(pieces) if size <= longest else LongLine(size, quotes)
