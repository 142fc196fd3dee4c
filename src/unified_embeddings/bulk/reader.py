"""Reading the input of a bulk job row by row, from files, standard input or Python.

What lives here: the check before a model loads, and the iterator over all rows. What does not:
finding files (`input_files`), reading one (`input_parts`), and what a row is (`rows`).

    checked = check_input("papers/", InputOptions(keep_fields=("paper_id",)))
    with read_rows(checked) as reader:
        for row in reader: ...      # reader.bytes_read of checked.description.total_bytes
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from unified_embeddings.bulk.byte_streams import (
    DamagedStreamError,
    Position,
    UnusableStreamError,
)
from unified_embeddings.bulk.input_checks import Sample, choose_options
from unified_embeddings.bulk.input_files import InputDescription, Source, describe_input
from unified_embeddings.bulk.input_parts import InputPart, PlacedValue, find_parts
from unified_embeddings.bulk.records import Unreadable
from unified_embeddings.bulk.rows import (
    BrokenInputError,
    InputOptions,
    Row,
    build_row,
    problem_row,
)
from unified_embeddings.errors import InputError
from unified_embeddings.validation import require_whole_number

_SAMPLE_ROWS = 20
_SAMPLE_BYTES = 4 * 2**20
"""No further row of a file is looked at once this much of it was read."""
_READ_ERRORS = (DamagedStreamError, UnusableStreamError, OSError)


@dataclass(frozen=True)
class CheckedInput:
    """An input whose first rows were looked at.

    Files and lists can be read from it as often as you like; standard input, a pipe and an
    iterator once, from the first row.

    Attributes:
        options: With `text_field` set where the rows have fields.
        description: Its files.
        parts: How to read each of them.
    """

    options: InputOptions
    description: InputDescription
    parts: tuple[InputPart, ...] = field(repr=False)

    @property
    def is_repeatable(self) -> bool:
        """Tell whether it can be read more than once."""
        return all(part.is_repeatable for part in self.parts)


def check_input(source: Source, options: InputOptions | None = None) -> CheckedInput:
    """Look at the first rows of each file, before anything expensive begins.

    Args:
        source: A file, a folder, "-" for standard input, or an iterable of mappings or texts.
        options: What the caller says about it.

    Raises:
        InputError: If there is no such file, it cannot be read, holds no rows, is not of its
            format, or its first rows lack a field that was asked for. The message names the fields
            there are.
        MissingExtraError: If reading it takes a library that is not installed.
    """
    options = options or InputOptions()
    require_whole_number("max_row_bytes", options.max_row_bytes)
    if options.delimiter is not None and (
        len(options.delimiter) != 1 or options.delimiter in '"\r\n'
    ):
        raise InputError(
            f"delimiter must be one character, not a quotation mark or a line end; "
            f"got {options.delimiter!r}"
        )
    description = describe_input(source, options)
    try:
        parts = find_parts(source, description)
    except OSError as error:
        raise InputError(f"{source} cannot be read: {_reason(error)}") from error
    samples = (_take_sample(part, options) for part in parts)
    return CheckedInput(choose_options(samples, options), description, tuple(parts))


def read_rows(source: Source | CheckedInput, options: InputOptions | None = None) -> RowReader:
    """Read rows; memory does not grow with their number.

    A row that is broken comes with a `problem`. An input that is not checked yet is checked first.

    Args:
        source: What `check_input` returned, or what it takes.
        options: For an input that is not checked yet.

    Raises:
        InputError: As `check_input`; and BrokenInputError, from the iterator, if the input is cut
            off or damaged, with the number of rows read before.

    Example:
        >>> [row.text for row in read_rows([{"text": "one", "id": 1}, {"text": None}, "three"])]
        ['one', None, 'three']
    """
    if isinstance(source, CheckedInput):
        return RowReader(source)
    return RowReader(check_input(source, options))


class RowReader(Iterator[Row]):
    """The rows of an input, one after the other; a context manager that closes its files.

    Attributes:
        rows_read: Rows given so far.
    """

    def __init__(self, checked: CheckedInput) -> None:
        self._options = checked.options
        self._parts = checked.parts
        self._finished_bytes = 0
        self._position = Position()
        self.rows_read = 0
        self._rows = self._read()

    @property
    def bytes_read(self) -> int:
        """Return the bytes read so far; the description's `total_bytes` are all of them."""
        return self._finished_bytes + self._position.read_bytes

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Row:
        row = next(self._rows)
        self.rows_read += 1
        return row

    def close(self) -> None:
        """Close the file that is open. Idempotent."""
        self._rows.close()

    def _read(self) -> Generator[Row]:
        for part in self._parts:
            self._position = Position()
            with closing(part.read(self._options, self._position)) as values:
                while (placed := self._next_value(part, values)) is not None:
                    place, value = placed
                    if isinstance(value, Unreadable):
                        yield problem_row(self.rows_read, value.problem, place)
                    else:
                        yield build_row(self.rows_read, value, place, self._options)
            self._finished_bytes += self._position.read_bytes
        self._position = Position()

    def _next_value(self, part: InputPart, values: Iterator[PlacedValue]) -> PlacedValue | None:
        if not part.name:
            return next(values, None)  # What an iterator of the caller's raises is the caller's.
        try:
            return next(values, None)
        except _READ_ERRORS as error:
            raise BrokenInputError(
                f"{part.name}: {_reason(error)}", rows_read=self.rows_read
            ) from error


def _take_sample(part: InputPart, options: InputOptions) -> Sample:
    """Read the first records of a part, and go back to its beginning."""
    records: list[PlacedValue] = []
    position = Position()
    try:
        with closing(part.read(options, position)) as values:
            for placed in values:
                records.append(placed)
                if len(records) == _SAMPLE_ROWS or position.read_bytes > _SAMPLE_BYTES:
                    break
    except _READ_ERRORS as error:
        if not part.name:
            raise
        raise InputError(f"{part.name}: {_reason(error)}") from error
    part.rewind()
    return Sample(part.name, records)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
