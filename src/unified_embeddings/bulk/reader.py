"""Reading the input of a bulk job row by row, from files, standard input or Python.

What lives here: which files there are, the check before a model loads, and the iterator over all
rows. What does not: how a format is read (`records`, `parquet_records`), how bytes are
(`byte_streams`), and what a row is (`rows`).

    checked = check_input("papers/", InputOptions(keep_fields=("paper_id",)))
    reader = read_rows(checked)
    for row in reader: ...      # reader.bytes_read of checked.description.total_bytes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from unified_embeddings.bulk.rows import InputFormat, InputOptions, Row

Source: TypeAlias = "str | Path | Iterable[object]"
"""A file, a folder, "-" for standard input, or mappings and strings from Python."""


@dataclass(frozen=True)
class InputFile:
    """One file of the input.

    Attributes:
        path: Where it is.
        name: What it is called in problems: its path within the input folder, or its own name.
        format: How its rows are written.
        size: Bytes on disk, compressed ones included.
    """

    path: Path
    name: str
    format: InputFormat
    size: int


@dataclass(frozen=True)
class InputDescription:
    """What the input consists of.

    Attributes:
        files: In the order in which they are read; empty for standard input and Python.
        left_out: Names of the files in the folder that are not read, for their extension.
        total_bytes: Sum of the sizes; None where it is not known.
    """

    files: tuple[InputFile, ...]
    left_out: tuple[str, ...]
    total_bytes: int | None


@dataclass(frozen=True)
class CheckedInput:
    """An input that was looked at, and can be read once or, if it consists of files, often.

    Attributes:
        source: What to read; it gives the rows that were looked at again.
        options: With `text_field` set where the rows have fields.
        description: Its files.
    """

    source: Source
    options: InputOptions
    description: InputDescription


def describe_input(source: Source, options: InputOptions | None = None) -> InputDescription:
    """Find the files of an input and their sizes, without reading them.

    Raises:
        InputError: If there are none, or one cannot be read or has no known format.
    """
    raise NotImplementedError


def check_input(source: Source, options: InputOptions | None = None) -> CheckedInput:
    """Look at the first rows of each file, before anything expensive begins.

    Raises:
        InputError: If there is no such file, it cannot be read, holds no rows, is not of its
            format, or its first rows lack a field that was asked for. The message names the fields
            there are.
        MissingExtraError: If reading it takes a library that is not installed.
    """
    raise NotImplementedError


class RowReader(Iterator[Row]):
    """The rows of an input, one after the other.

    Attributes:
        rows_read: Rows given so far.
    """

    rows_read: int

    @property
    def bytes_read(self) -> int:
        """Return the bytes read so far, of the description's `total_bytes`."""
        raise NotImplementedError

    def __next__(self) -> Row:
        raise NotImplementedError

    def close(self) -> None:
        """Close the open file. Idempotent."""


def read_rows(source: Source | CheckedInput, options: InputOptions | None = None) -> RowReader:
    """Read rows; memory does not grow with their number.

    A row that is broken comes with a `problem`. An input that is not checked yet is checked first.

    Raises:
        InputError: As `check_input`; and BrokenInputError, from the iterator, if the input is cut
            off or damaged, with the number of rows read before.
    """
    raise NotImplementedError
