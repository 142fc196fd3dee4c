"""One file, one pipe, or rows from Python: how each is opened and read as records.

What lives here: which reader goes with which format, and where a record stands, in words. What
does not: the readers (`records`, `delimited`, `parquet_records`) and the order of the files
(`input_files`).
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import IO, TypeAlias

from unified_embeddings.bulk.byte_streams import (
    CountingHandle,
    Position,
    Readable,
    RewindableHandle,
    UnusableStreamError,
    read_blocks,
)
from unified_embeddings.bulk.delimited import read_delimited
from unified_embeddings.bulk.input_files import (
    STANDARD_INPUT,
    InputDescription,
    InputFile,
    Source,
    find_format,
)
from unified_embeddings.bulk.parquet_records import count_parquet_rows, read_parquet
from unified_embeddings.bulk.records import (
    Record,
    is_json_map,
    read_json_array,
    read_json_lines,
    read_json_map,
    read_text_lines,
)
from unified_embeddings.bulk.rows import TEXT_FIELDS, InputFormat, InputOptions
from unified_embeddings.errors import InputError
from unified_embeddings.validation import check_is_list

PlacedValue: TypeAlias = "tuple[str, object]"
"""Where a record stands, and what it holds: a value, or an Unreadable."""

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_HEAD_ITEMS = 20
"""How many items of an iterator can be read a second time."""


class InputPart(ABC):
    """A source of records.

    Attributes:
        name: What it is called in problems.
    """

    name: str

    @abstractmethod
    def read(self, options: InputOptions, position: Position) -> Generator[PlacedValue]:
        """Yield the records from the first, and keep the position up to date.

        Raises:
            DamagedStreamError, UnusableStreamError, OSError: If they cannot be read to the end.
            MissingExtraError: If a library is missing.
        """

    @property
    def is_repeatable(self) -> bool:
        """Tell whether it can be read more than once."""
        return True

    def rewind(self) -> None:
        """After a look at the first records, let the next `read` begin at the first again."""
        return


class FilePart(InputPart):
    """A file, which can be read any number of times."""

    def __init__(self, file: InputFile) -> None:
        self.name = file.name
        self._file = file

    def read(self, options: InputOptions, position: Position) -> Generator[PlacedValue]:
        """Yield the file's records."""
        file = self._file
        if file.format == "parquet":
            yield from self._read_parquet(options, position)
            return
        with file.open() as handle:
            blocks = read_blocks(CountingHandle(handle, position), options.compression)
            file_format: InputFormat = file.format
            if file_format == "json" and options.format is None:
                file_format, blocks = _find_json_kind(blocks, options)
            yield from _read_records(file_format, blocks, options, self.name)

    def _read_parquet(self, options: InputOptions, position: Position) -> Generator[PlacedValue]:
        columns = None
        if options.keep_fields is not None and options.text_field is not None:
            columns = (options.text_field, *options.keep_fields)
            if options.id_field is not None:
                columns += (options.id_field,)
        total = None
        with contextlib.ExitStack() as stack:
            place: Path | IO[bytes]
            if isinstance(self._file.path, Path):
                place = self._file.path  # pyarrow reads it itself, which is quicker.
            else:
                place = stack.enter_context(self._file.open())
            for number, value in read_parquet(place, options.max_row_bytes, columns):
                if total is None:
                    total = count_parquet_rows(place)
                position.read_bytes = self._file.size * number // max(total, number)
                yield f"{self.name}, row {number}", value
        position.read_bytes = self._file.size


class PipePart(InputPart):
    """Standard input or a named pipe, which can be read once.

    What is read of it in the check is kept, in memory: 4 MiB, or more if a single row is longer.
    """

    def __init__(self, name: str, handle: Readable) -> None:
        self.name = name
        self._handle = RewindableHandle(handle)

    def read(self, options: InputOptions, position: Position) -> Generator[PlacedValue]:
        """Yield the pipe's records; what they are, the first character tells."""
        blocks = read_blocks(CountingHandle(self._handle, position), options.compression)
        found, blocks = _guess_format(blocks)
        wanted = options.format or find_format(self.name) or found
        if wanted == "parquet" or found == "parquet":
            raise UnusableStreamError("Parquet cannot be read from a pipe; pass the file's path")
        yield from _read_records(wanted, blocks, options, self.name)

    @property
    def is_repeatable(self) -> bool:
        """Return False: what was read is gone."""
        return False

    def rewind(self) -> None:
        """Let the next `read` begin at the first byte again."""
        self._handle.rewind()


class ItemsPart(InputPart):
    """Mappings or texts from Python: from a list as often as you like, from an iterator once."""

    def __init__(self, items: Iterable[object]) -> None:
        self.name = ""
        self._head: list[object] = []
        self._items = items
        self._is_iterator = iter(items) is items
        if self._is_iterator:
            self._head = list(itertools.islice(items, _HEAD_ITEMS))

    @property
    def is_repeatable(self) -> bool:
        """Tell whether these are a list and not an iterator."""
        return not self._is_iterator

    def read(self, options: InputOptions, position: Position) -> Generator[PlacedValue]:  # noqa: ARG002
        """Yield the items."""
        for number, item in enumerate(itertools.chain(self._head, self._items)):
            yield f"item {number}", item


def find_parts(source: Source, description: InputDescription) -> list[InputPart]:
    """Return what an input consists of, in the order in which it is read.

    Raises:
        InputError: If the source is not a path and not a list either, or standard input is closed.
        OSError: If a pipe cannot be opened.
    """
    if source == STANDARD_INPUT:
        if sys.stdin is None:
            raise InputError("standard input is closed; name a file, or pipe rows into the command")
        return [PipePart("standard input", sys.stdin.buffer)]
    if isinstance(source, str | Path):
        if description.files:
            return [FilePart(file) for file in description.files]
        return [PipePart(Path(source).name, Path(source).open("rb"))]
    check_is_list(source, "rows")
    return [ItemsPart(source)]


def _read_records(
    file_format: InputFormat, blocks: Iterator[bytes], options: InputOptions, name: str
) -> Generator[PlacedValue]:
    piece = "line"
    records: Iterator[Record]
    if file_format == "jsonl":
        records = read_json_lines(blocks, options.max_row_bytes)
    elif file_format == "json":
        piece = "element"
        records = read_json_array(blocks, options.max_row_bytes)
    elif file_format == "json-map":
        piece = "entry"
        records = read_json_map(blocks, options.max_row_bytes)
    elif file_format == "txt":
        records = read_text_lines(blocks, options.max_row_bytes)
    else:
        delimiter = options.delimiter or _DELIMITERS[file_format]
        records = read_delimited(blocks, options.max_row_bytes, delimiter)
    for number, value in records:
        yield f"{name}, {piece} {number}", value


def _find_json_kind(
    blocks: Iterator[bytes], options: InputOptions
) -> tuple[InputFormat, Iterator[bytes]]:
    """Tell whether a .json file holds an array, one object of rows, or JSON lines as many do."""
    beginning, blocks = _look_at_beginning(blocks)
    if not beginning.startswith(b"{"):
        return "json", blocks
    text_fields = TEXT_FIELDS if options.text_field is None else (options.text_field,)
    is_map = is_json_map(beginning, frozenset(name.casefold() for name in text_fields))
    return ("json-map" if is_map else "jsonl"), blocks


def _guess_format(blocks: Iterator[bytes]) -> tuple[InputFormat, Iterator[bytes]]:
    beginning, blocks = _look_at_beginning(blocks)
    if beginning.startswith(b"PAR1"):
        return "parquet", blocks
    if beginning.startswith(b"{"):
        return "jsonl", blocks
    # A text may begin with a bracket too: "[1] First note".
    if beginning.startswith(b"[") and beginning[1:].lstrip()[:1] in (b"{", b'"', b"]", b""):
        return "json", blocks
    return "txt", blocks


def _look_at_beginning(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return the first block that is not white space, from its first character on, and all blocks.

    White space without end, a gigabyte of it, is not looked through.
    """
    seen: list[bytes] = []
    beginning = b""
    with contextlib.suppress(StopIteration):
        while len(seen) < 16 and len(beginning) < 2:
            seen.append(next(blocks))
            beginning = (beginning + seen[-1]).lstrip()
    return beginning, itertools.chain(seen, blocks)
