"""CSV and TSV files as records whose cells are as written: nothing is guessed about types.

What lives here: parsing line by line, in bounded memory. What does not: lines (`byte_streams`) and
which column is the text (`rows`).

Python's csv module reads the same, but limits a cell's length by a setting of the whole process,
refuses NUL in older versions, and takes a file that ends within a quoted cell for whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from unified_embeddings.bulk.byte_streams import (
    DamagedStreamError,
    LongLine,
    UnusableStreamError,
    split_lines,
)
from unified_embeddings.bulk.records import Record, Unreadable, decode_utf8, too_long

_QUOTED = re.compile(r'[^"]*(?:""[^"]*)*')
"""The rest of a quoted cell up to its closing quotation mark; two of them stand for one."""


class DelimitedParser:
    r"""A parser that is fed lines, and says when a record is complete.

    A quoted cell may hold delimiters, line ends and doubled quotation marks, and may be followed by
    more text. A quotation mark within an unquoted cell is a character.

    Args:
        delimiter: One character.
        longest: Bytes of the longest record that is kept.

    Attributes:
        size: Bytes of the record so far.

    Example:
        >>> parser = DelimitedParser(",", longest=100)
        >>> parser.feed(b'1,"two\n'), parser.feed(b'lines"\n')
        (False, True)
        >>> parser.take()
        ['1', 'two\nlines']
    """

    def __init__(self, delimiter: str, longest: int) -> None:
        self._delimiter = delimiter
        self._longest = longest
        self._plain = re.compile(rf"[^{re.escape(delimiter)}\n]*")
        self._begin()

    def _begin(self) -> None:
        self._cells: list[str] = []
        self._cell: list[str] = []
        self._is_quoted = False
        self._bad_bytes: Unreadable | None = None
        self.size = 0

    @property
    def is_too_long(self) -> bool:
        """Tell whether the record is longer than allowed, so that its cells are not kept."""
        return self.size > self._longest

    def take(self) -> list[str] | Unreadable:
        """Return the cells of the complete record, and begin the next; a blank line has none."""
        taken: list[str] | Unreadable = self._cells
        if self.is_too_long:
            taken = too_long(self.size, self._longest)
        elif self._bad_bytes is not None:
            taken = self._bad_bytes
        self._begin()
        return taken

    def feed(self, line: bytes | LongLine) -> bool:
        """Take the next line, with its line end, and tell whether the record is complete."""
        if isinstance(line, LongLine):
            self.size += line.size
            self._skip(line.quotes)
            return not self._is_quoted
        self.size += len(line)
        if self.is_too_long:
            self._skip(line.count(b'"'))
            return not self._is_quoted
        text = decode_utf8(line)
        if isinstance(text, Unreadable):
            self._bad_bytes = text
            text = line.decode("utf-8", "replace")  # The record's end is still to be found.
        if self._is_quoted or '"' in text:
            return self._feed_quotes(text)
        text = text.removesuffix("\n").removesuffix("\r")
        self._cells = text.split(self._delimiter) if text else []
        return True

    def _skip(self, quotes: int) -> None:
        """Forget the cells, and follow only whether the record goes on after this line."""
        self._cells, self._cell = [], []
        self._is_quoted ^= quotes % 2 == 1

    def _feed_quotes(self, text: str) -> bool:
        position = 0
        while True:
            if not self._is_quoted and text.startswith('"', position):
                self._is_quoted = True
                position += 1
            if self._is_quoted:
                match = _QUOTED.match(text, position)
                assert match is not None  # it matches nothing as well
                self._cell.append(match[0].replace('""', '"'))
                position = match.end()
                if position == len(text):
                    return False
                self._is_quoted = False
                position += 1
            match = self._plain.match(text, position)
            assert match is not None
            position = match.end()
            is_last = not text.startswith(self._delimiter, position)
            self._cell.append(match[0].removesuffix("\r") if is_last else match[0])
            self._cells.append("".join(self._cell))
            self._cell = []
            if is_last:
                return True
            position += len(self._delimiter)


def read_delimited(blocks: Iterator[bytes], longest: int, delimiter: str) -> Iterator[Record]:
    """Read the records after the header, each a dict of column name → cell.

    A record that has more or fewer cells than the header has names is Unreadable: one of its cells
    holds a delimiter that is not quoted, or was cut. Blank lines are passed over.

    Raises:
        DamagedStreamError: If the file ends within a quoted cell.
        UnusableStreamError: If the header cannot be used.
    """
    header: list[str] | None = None
    for number, cells in _read_cells(blocks, longest, delimiter):
        if header is None:
            header = _check_header(cells)
        elif isinstance(cells, Unreadable):
            yield number, cells
        elif len(cells) != len(header):
            counts = f"has {len(cells)} cells where the header names {len(header)}"
            yield number, Unreadable(f"{counts}; a cell that holds {delimiter!r} must be quoted")
        else:
            yield number, dict(zip(header, cells, strict=True))


def _read_cells(
    blocks: Iterator[bytes], longest: int, delimiter: str
) -> Iterator[tuple[int, list[str] | Unreadable]]:
    """Yield the line number at which each record begins, and its cells."""
    parser = DelimitedParser(delimiter, longest)
    first_line = 1
    is_complete = True
    for number, line in enumerate(split_lines(blocks, longest), start=1):
        if is_complete:
            first_line = number
        is_complete = parser.feed(line)
        if is_complete and (cells := parser.take()):
            yield first_line, cells
    if not is_complete:
        raise DamagedStreamError(
            f"it ends within a quoted cell of the row that begins in line {first_line}: the file "
            "is cut off, or a quotation mark is missing"
        )


def _check_header(cells: list[str] | Unreadable) -> list[str]:
    if isinstance(cells, Unreadable):
        raise UnusableStreamError(f"its header cannot be used: {cells.problem}")
    repeated = sorted({name for name in cells if cells.count(name) > 1})
    if repeated:
        raise UnusableStreamError(f"its header names {repeated[0]!r} more than once")
    return cells
