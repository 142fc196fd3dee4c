"""JSON lines, arrays and objects, and text files as records, one at a time.

What lives here: where a record begins and ends, and its values as they are written. What does not:
which value is the text (`rows`), Parquet (`parquet_records`), bytes (`byte_streams`).

A record that cannot be read comes as an `Unreadable`, and the next one follows. Only where no next
one can be found, since the file is cut off, reading raises.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from unified_embeddings.bulk.byte_streams import (
    DamagedStreamError,
    LongLine,
    UnusableStreamError,
    split_lines,
)


@dataclass(frozen=True)
class Unreadable:
    """In place of a record that cannot be read."""

    problem: str


Record: TypeAlias = "tuple[int, object]"
"""The number of a line or element, from 1, and what it holds: a value, or an Unreadable."""

_MIB = 2**20
_BRACKETS_AND_STRINGS = re.compile(rb'["\[\]{}]')
_STRING_END = re.compile(rb'["\\]')
_DECODER = json.JSONDecoder(
    parse_constant=lambda _: None,  # NaN and the infinities, which JSON does not have
    strict=False,  # control characters within texts are fine
)


def too_long(size: int, longest: int) -> Unreadable:
    """Return what stands for a record that is longer than allowed."""
    return Unreadable(f"is {size / _MIB:,.1f} MiB long; at most {longest / _MIB:,.1f} MiB are read")


def decode_utf8(data: bytes) -> str | Unreadable:
    """Return the text, or an Unreadable that names the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        return Unreadable(f"byte {error.start + 1} (0x{byte:02X}) is not UTF-8")


def read_text_lines(blocks: Iterator[bytes], longest: int) -> Iterator[Record]:
    """Read the lines of a text file, blank ones included, each a record of its own."""
    for number, line in enumerate(split_lines(blocks, longest), start=1):
        if isinstance(line, LongLine):
            yield number, too_long(line.size, longest)
        else:
            yield number, decode_utf8(_without_line_end(line))


def read_json_lines(blocks: Iterator[bytes], longest: int) -> Iterator[Record]:
    """Read JSON lines; blank lines are passed over.

    Raises:
        DamagedStreamError: If the file ends within an object, a list or a text.
    """
    for number, line in enumerate(split_lines(blocks, longest), start=1):
        if isinstance(line, LongLine):
            yield number, too_long(line.size, longest)
            continue
        if not line.strip():
            continue
        value = _parse_json(line)
        if isinstance(value, Unreadable) and not line.endswith(b"\n"):
            nesting = Nesting()
            if nesting.find_end(line) is None and not nesting.is_outside:
                raise DamagedStreamError(f"it is cut off in line {number}")
        yield number, value


def _without_line_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _parse_json(data: bytes) -> object:
    """Return the value of a JSON text, or an Unreadable."""
    text = decode_utf8(data)
    if isinstance(text, Unreadable):
        return text
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return Unreadable(f"is not JSON: {error.msg} at character {error.pos + 1}")
    except RecursionError:
        return Unreadable("is nested too deeply")
    except ValueError as error:  # an integer with thousands of digits
        return Unreadable(f"cannot be read: {error}")


# --- JSON arrays --------------------------------------------------------------------------------


class Nesting:
    """Where a JSON value ends, found in pieces of it.

    It follows brackets and texts and does not check anything else, so that a value that is not
    quite JSON has an end as well.

    Attributes:
        depth: How many brackets are open.
    """

    def __init__(self) -> None:
        self.depth = 0
        self._is_in_string = False
        self._is_escaped = False

    @property
    def is_outside(self) -> bool:
        """Tell whether neither a bracket nor a text is open."""
        return self.depth == 0 and not self._is_in_string

    def find_end(self, data: bytes, start: int = 0) -> int | None:
        """Return the position after the value that began here or in an earlier piece.

        Args:
            data: The next piece.
            start: Where to go on in it.

        Returns:
            None if the piece ends before the value does. A number or a word has no end of its own:
            this is for values that begin with a bracket or a quotation mark.
        """
        position = start
        while True:
            if self._is_in_string:
                position = self._leave_string(data, position)
                if self._is_in_string:
                    return None
                if self.depth == 0:
                    return position
            match = _BRACKETS_AND_STRINGS.search(data, position)
            if match is None:
                return None
            position = match.end()
            if match[0] == b'"':
                self._is_in_string = True
            elif match[0] in b"[{":
                self.depth += 1
            else:
                self.depth -= 1
                if self.depth <= 0:
                    return position

    def _leave_string(self, data: bytes, position: int) -> int:
        """Go to the text's end, if it is in this piece."""
        while position < len(data):
            if self._is_escaped:
                self._is_escaped = False
                position += 1
                continue
            match = _STRING_END.search(data, position)
            if match is None:
                break
            position = match.end()
            if match[0] == b'"':
                self._is_in_string = False
                return position
            self._is_escaped = True
        return len(data)


_SPACE = re.compile(rb"[ \t\r\n]*")
_SCALAR = re.compile(rb"[^,\]}\s]*")


class _ArrayReader:
    """The elements of one JSON array, from blocks."""

    _end = b"]"

    def __init__(self, blocks: Iterator[bytes], longest: int) -> None:
        self._blocks = blocks
        self._longest = longest
        self._data = b""
        self._position = 0

    def read(self) -> Iterator[Record]:
        if self._next_byte() != b"[":
            raise UnusableStreamError(
                'it is not a JSON array of rows: it does not begin with "["; for one object a '
                'line, the format is "jsonl"'
            )
        self._position += 1
        number = 0
        if self._next_byte() == b"]":
            self._position += 1
        else:
            while True:
                number += 1
                yield number, self._read_element(number)
                mark = self._next_byte()
                self._position += 1
                if mark == b"]":
                    break
                if mark != b",":
                    raise self._failure(mark, number)
        if self._next_byte():
            raise DamagedStreamError(f"something follows the end of the array (element {number})")

    def _failure(self, mark: bytes, number: int) -> DamagedStreamError:
        if not mark:
            return DamagedStreamError(f"it is cut off after element {number}")
        shown = mark.decode("utf-8", "replace")
        return DamagedStreamError(
            f'there is {shown!r} after element {number}, not "," or "{self._end.decode()}"'
        )

    def _next_byte(self) -> bytes:
        """Pass over white space, and return the byte after it without taking it."""
        while True:
            match = _SPACE.match(self._data, self._position)
            assert match is not None  # it matches nothing as well
            self._position = match.end()
            if self._position < len(self._data):
                return self._data[self._position : self._position + 1]
            if not self._read_block():
                return b""

    def _read_block(self) -> bool:
        """Replace the data, all of which was used, with the next block."""
        self._data = next(self._blocks, b"")
        self._position = 0
        while not self._data:
            block = next(self._blocks, None)
            if block is None:
                return False
            self._data = block
        return True

    def _read_element(self, number: int) -> object:
        first = self._next_byte()
        nesting = Nesting()
        pieces: list[bytes] = []
        size = 0
        while True:
            end = self._find_end(first, nesting)
            piece = self._data[self._position : end]
            size += len(piece)
            if size <= self._longest:
                pieces.append(piece)
            else:
                pieces.clear()
            if end is not None:
                self._position = end
                break
            if not self._read_block():
                raise DamagedStreamError(f"it is cut off in element {number}")
        if size > self._longest:
            return too_long(size, self._longest)
        return _parse_json(b"".join(pieces))

    def _find_end(self, first: bytes, nesting: Nesting) -> int | None:
        if first in (b"{", b"[", b'"'):
            return nesting.find_end(self._data, self._position)
        match = _SCALAR.match(self._data, self._position)
        assert match is not None
        return match.end() if match.end() < len(self._data) else None


def read_json_array(blocks: Iterator[bytes], longest: int) -> Iterator[Record]:
    """Read the elements of a JSON array, without reading all of it first.

    Raises:
        DamagedStreamError: If it is cut off, or two elements are not separated.
        UnusableStreamError: If it is not an array.
    """
    return _ArrayReader(blocks, longest).read()


# --- JSON objects of rows -----------------------------------------------------------------------


class _MapReader(_ArrayReader):
    """The entries of one JSON object, from blocks.

    Attributes:
        keys: Those that were read so far.
    """

    _end = b"}"

    def __init__(self, blocks: Iterator[bytes], longest: int) -> None:
        super().__init__(blocks, longest)
        self.keys: list[str] = []

    def read(self) -> Iterator[Record]:
        if self._next_byte() != b"{":
            raise UnusableStreamError('it is not a JSON object of rows: it does not begin with "{"')
        self._position += 1
        number = 0
        if self._next_byte() == self._end:
            self._position += 1
        else:
            while True:
                number += 1
                yield number, self._read_entry(number)
                mark = self._next_byte()
                self._position += 1
                if mark == self._end:
                    break
                if mark != b",":
                    raise self._failure(mark, number)
        if self._next_byte():
            raise DamagedStreamError(f"something follows the end of the object (entry {number})")

    def _read_entry(self, number: int) -> object:
        key = self._read_element(number)
        if isinstance(key, str):
            self.keys.append(key)
        mark = self._next_byte()
        self._position += 1
        if mark != b":":
            raise DamagedStreamError(f'there is no ":" after the key of entry {number}')
        value = self._read_element(number)
        if isinstance(key, Unreadable) or isinstance(value, Unreadable):
            return key if isinstance(key, Unreadable) else value
        return _to_row(key, value)


def _to_row(key: object, value: object) -> object:
    """Return an entry of an object of rows as a row that has its key as "id"."""
    if not isinstance(key, str):
        return Unreadable("has a key that is not a text")
    if isinstance(value, str):
        return {"id": key, "text": value}
    if not isinstance(value, dict):
        return Unreadable(
            f"the key {key!r:.60} has neither a text nor an object with fields. An object of rows "
            "maps each id to its text or its fields; if the rows are a list within this object, "
            "save that list alone"
        )
    if value.get("id", key) != key:
        return Unreadable(f"the key {key!r:.60} has the field 'id' with another value")
    return {"id": key, **value}


def read_json_map(blocks: Iterator[bytes], longest: int) -> Iterator[Record]:
    """Read the entries of a JSON object: id → text, or id → fields, as rows with "id".

    Raises:
        DamagedStreamError: If it is cut off, or two entries are not separated.
        UnusableStreamError: If it is not an object.
    """
    return _MapReader(blocks, longest).read()


def is_json_map(beginning: bytes, text_fields: frozenset[str]) -> bool:
    """Tell whether what begins with "{" is one object of rows, and not JSON lines.

    JSON lines go on after the first object, or that object is a row: it has a field for the text.

    Args:
        beginning: The first block, from the bracket on.
        text_fields: Names of fields for the text, casefolded.
    """
    end = Nesting().find_end(beginning)
    if end is not None and beginning[end:].strip():
        return False
    reader = _MapReader(iter([beginning]), len(beginning))
    with contextlib.suppress(DamagedStreamError):  # It is cut off where the block ends.
        for _ in reader.read():
            pass
    return not any(key.casefold() in text_fields for key in reader.keys)
