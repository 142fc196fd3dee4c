"""Parquet files as records, a few hundred rows at a time.

What lives here: pyarrow, for reading. What does not: writing (`parquet_output`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from unified_embeddings.bulk.byte_streams import DamagedStreamError, UnusableStreamError
from unified_embeddings.bulk.records import Record, Unreadable, too_long
from unified_embeddings.errors import MissingExtraError

if TYPE_CHECKING:
    import pyarrow

_ROWS = 256
_BUFFER_BYTES = 2**20
"""How much of a column is read at once; without a buffer a whole row group would be."""


def read_parquet(
    path: Path | IO[bytes], longest: int, columns: tuple[str, ...] | None
) -> Iterator[Record]:
    """Read the rows of a Parquet file as dicts of column name → value.

    Args:
        path: The file, or one that is open.
        longest: A row of which one text is longer comes as an Unreadable.
        columns: Which columns to read, those that exist; None reads all.

    Raises:
        DamagedStreamError: If it is damaged or cut off.
        UnusableStreamError: If two columns have one name.
        MissingExtraError: If pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow, which reads Parquet files,", extra="bulk") from error
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            names = _choose_columns(file.schema_arrow.names, columns)
            number = 0
            for batch in file.iter_batches(_ROWS, columns=names, use_threads=False):
                for record in _read_batch(batch):
                    number += 1
                    yield number, _check_length(record, longest)
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedStreamError(f"it is not a whole Parquet file: {_one_line(error)}") from error


def count_parquet_rows(path: Path | IO[bytes]) -> int:
    """Return how many rows a Parquet file says it has."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def _choose_columns(names: list[str], columns: tuple[str, ...] | None) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UnusableStreamError(f"two of its columns are named {repeated[0]!r}")
    return [name for name in names if columns is None or name in columns]


def _read_batch(batch: pyarrow.RecordBatch) -> list[object]:
    """Return the rows of a batch as dicts, or as Unreadable where Python cannot hold a value."""
    import pyarrow

    arrays = [_without_nanoseconds(array) for array in batch.columns]
    batch = pyarrow.RecordBatch.from_arrays(arrays, names=batch.schema.names)
    try:
        rows: list[object] = batch.to_pylist()
    except ValueError:  # a text that is not UTF-8, or nanoseconds within lists
        rows = [_read_row(batch.slice(position, 1)) for position in range(batch.num_rows)]
    return rows


def _read_row(row: pyarrow.RecordBatch) -> object:
    record: dict[str, object] = {}
    for name, array in zip(row.schema.names, row.columns, strict=True):
        try:
            record[name] = array[0].as_py()
        except ValueError as error:
            return Unreadable(f"column {name!r} cannot be read: {_one_line(error)}")
    return record


def _without_nanoseconds(array: pyarrow.Array) -> pyarrow.Array:
    """Return times in nanoseconds, which Python's own cannot hold, as text."""
    import pyarrow
    import pyarrow.compute

    kind = array.type
    if pyarrow.types.is_timestamp(kind) and kind.unit == "ns":
        text = array.cast(pyarrow.string())
        return pyarrow.compute.replace_substring(text, pattern=" ", replacement="T")
    is_other_time = pyarrow.types.is_time64(kind) or pyarrow.types.is_duration(kind)
    if is_other_time and kind.unit == "ns":
        return array.cast(pyarrow.string())
    return array


def _check_length(record: object, longest: int) -> object:
    if not isinstance(record, dict):
        return record
    for value in record.values():
        # A character has at least one byte, so that few values have to be encoded.
        if isinstance(value, str) and len(value) * 4 > longest:
            size = len(value.encode("utf-8", "surrogatepass"))
            if size > longest:
                return too_long(size, longest)
    return record


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
