"""Vectors as a Parquet file.

What lives here: pyarrow, for writing. What does not: reading (`parquet_records`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.bulk.json_output import rename_fields
from unified_embeddings.bulk.parts import PartFileError, Record
from unified_embeddings.bulk.row_blocks import RowBlock
from unified_embeddings.errors import MissingExtraError
from unified_embeddings.types import FloatArray, HeadName

if TYPE_CHECKING:
    import pyarrow

ColumnType: TypeAlias = Literal["bool", "int64", "double", "string", "json"]
_INT64_END = 2**63
_INT32_END = 2**31


class ColumnTypes:
    """The type of each field's column, found by looking at all values.

    A field with values of different kinds, lists or objects is written as JSON text. Whole numbers
    and others together are floats. A field that is always null is a text.

    Example:
        >>> types = ColumnTypes()
        >>> types.add([Record({"page": 1, "tag": "a"}), Record({"page": 2.5, "tag": ["a"]})])
        >>> types.columns()
        {'page': 'double', 'tag': 'json'}
    """

    def __init__(self) -> None:
        self._columns: dict[str, ColumnType | None] = {}

    def add(self, records: Iterable[Record]) -> None:
        """Look at more records."""
        for record in records:
            for name, value in rename_fields(record.fields).items():
                known = self._columns.setdefault(name, None)
                if value is not None and known != "json":
                    self._columns[name] = _join_types(known, _find_type(value))

    def columns(self) -> dict[str, ColumnType]:
        """Return field → type, in the order in which the fields were first seen."""
        return {name: kind or "string" for name, kind in self._columns.items()}


def _find_type(value: object) -> ColumnType:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -_INT64_END <= value < _INT64_END else "json"
    if isinstance(value, float):
        return "double"
    return "string" if isinstance(value, str) else "json"


def _join_types(known: ColumnType | None, new: ColumnType) -> ColumnType:
    if known is None or known == new:
        return new
    return "double" if {known, new} == {"int64", "double"} else "json"


class ParquetOutput:
    """A Parquet file with the fields, "embedding" as list<float>, and so on.

    Args:
        path: The file, which is created or emptied.
        model: What each row names as its model.
        columns: The fields and their types.
        heads: Which vectors to write.
        group_rows: Rows of a row group.

    Raises:
        MissingExtraError: If pyarrow is not installed.
    """

    def __init__(
        self,
        path: Path,
        model: str,
        *,
        columns: dict[str, ColumnType],
        heads: Sequence[HeadName],
        group_rows: int,
    ) -> None:
        pyarrow_ = import_pyarrow()
        self.path = path
        self._model = model
        self._columns = columns
        self._group_rows = group_rows
        self._waiting: list[pyarrow.RecordBatch] = []
        self._waiting_rows = 0
        self._schema = _build_schema(columns, heads)
        self._writer = pyarrow_.parquet.ParquetWriter(path, self._schema, compression="zstd")

    def append(self, block: RowBlock) -> None:
        """Write a block's rows."""
        batch = self._build_batch(block)
        while batch.num_rows:
            taken = batch.slice(0, self._group_rows - self._waiting_rows)
            batch = batch.slice(taken.num_rows)
            self._waiting.append(taken)
            self._waiting_rows += taken.num_rows
            if self._waiting_rows == self._group_rows:
                self._write_group()

    def _write_group(self) -> None:
        pyarrow = import_pyarrow()
        table = pyarrow.Table.from_batches(self._waiting, self._schema)
        self._writer.write_table(table.combine_chunks(), row_group_size=self._group_rows)
        self._waiting = []
        self._waiting_rows = 0

    def _build_batch(self, block: RowBlock) -> pyarrow.RecordBatch:
        pyarrow = import_pyarrow()
        records = [rename_fields(record.fields) for record in block.records]
        arrays = []
        for name, kind in self._columns.items():
            values = [_to_column(record.get(name), kind) for record in records]
            arrays.append(pyarrow.array(values, self._schema.field(name).type))
        is_missing = ~block.is_embedded
        for name in ("embedding", "sparse", "colbert"):
            if name in self._schema.names:
                arrays.append(_build_vectors(name, block, is_missing))
        arrays.append(pyarrow.array([self._model] * len(records), pyarrow.string()))
        problems = [_mend(record.problem) for record in block.records]
        arrays.append(pyarrow.array(problems, pyarrow.string()))
        return pyarrow.RecordBatch.from_arrays(arrays, schema=self._schema)

    def close(self) -> None:
        """Write the last row group, and finish the file. Idempotent."""
        if self._waiting:
            self._write_group()
        self._writer.close()


def import_pyarrow() -> ModuleType:
    """Return pyarrow.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow, which writes Parquet files,", extra="bulk") from error
    module: ModuleType = pyarrow
    return module


def _build_schema(columns: dict[str, ColumnType], heads: Sequence[HeadName]) -> pyarrow.Schema:
    pyarrow = import_pyarrow()
    types = {
        "bool": pyarrow.bool_(),
        "int64": pyarrow.int64(),
        "double": pyarrow.float64(),
        "string": pyarrow.string(),
        "json": pyarrow.string(),
    }
    fields = [(name, types[kind]) for name, kind in columns.items()]
    numbers = pyarrow.list_(pyarrow.float32())
    if "dense" in heads:
        fields.append(("embedding", numbers))
    if "sparse" in heads:
        pair = [("indices", pyarrow.list_(pyarrow.int32())), ("values", numbers)]
        fields.append(("sparse", pyarrow.struct(pair)))
    if "colbert" in heads:
        fields.append(("colbert", pyarrow.list_(numbers)))
    return pyarrow.schema([*fields, ("model", pyarrow.string()), ("error", pyarrow.string())])


def _to_column(value: object, kind: ColumnType) -> object:
    if value is None:
        return None
    if kind == "json":
        # Escapes, since a text may hold half a character.
        return json.dumps(value)
    if kind == "double":
        return float(value)  # type: ignore[arg-type]  # an int or a float
    return _mend(value) if isinstance(value, str) else value


def _mend(text: str | None) -> str | None:
    """Return a text that can be encoded: half a character becomes U+FFFD."""
    if text is None:
        return None
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _build_vectors(name: str, block: RowBlock, is_missing: NDArray[np.bool_]) -> pyarrow.Array:
    pyarrow = import_pyarrow()
    if name == "embedding":
        assert block.dense is not None
        return _cut(block.dense, is_missing)
    if name == "sparse":
        assert block.sparse is not None
        offsets = _to_offsets([len(indices) for indices, _ in block.sparse])
        indices = np.concatenate([indices for indices, _ in block.sparse])
        values = np.concatenate([values for _, values in block.sparse])
        return pyarrow.StructArray.from_arrays(
            [
                pyarrow.ListArray.from_arrays(offsets, pyarrow.array(indices)),
                pyarrow.ListArray.from_arrays(offsets, pyarrow.array(values)),
            ],
            names=["indices", "values"],
            mask=pyarrow.array(is_missing),
        )
    assert block.colbert is not None
    rows = np.concatenate(block.colbert)
    vectors = _cut(rows, np.zeros(len(rows), np.bool_))
    offsets = _to_offsets([len(rows) for rows in block.colbert])
    return pyarrow.ListArray.from_arrays(offsets, vectors, mask=pyarrow.array(is_missing))


def _cut(rows: FloatArray, is_missing: NDArray[np.bool_]) -> pyarrow.Array:
    """Return rows of one width as a list array, null where they are missing."""
    pyarrow = import_pyarrow()
    offsets = _to_offsets(np.where(is_missing, 0, rows.shape[1]).tolist())
    numbers = rows[~is_missing].reshape(-1).astype(np.float32, copy=False)
    return pyarrow.ListArray.from_arrays(
        offsets, pyarrow.array(numbers), mask=pyarrow.array(is_missing)
    )


def _to_offsets(lengths: list[int]) -> pyarrow.Array:
    pyarrow = import_pyarrow()
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))])
    if offsets[-1] >= _INT32_END:
        raise PartFileError(
            f"a part has {offsets[-1]:,} numbers, and Parquet takes {_INT32_END:,} at once; make "
            "smaller parts"
        )
    return pyarrow.array(offsets.astype(np.int32), pyarrow.int32())
