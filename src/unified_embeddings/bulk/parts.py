"""One part of a bulk job: the vectors of a range of rows, in one file.

What lives here: a part's content, and how it is written and read. What does not: which rows make a
part and which parts are done (`job`), and putting parts together (`output`).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.types import Embeddings, FloatArray, IntArray

Offsets: TypeAlias = NDArray[np.int64]
FAILED = -1
"""In place of a source: the row has no vector."""


class PartFileError(UnifiedEmbeddingsError):
    """A part's file is not one, or is damaged."""


@dataclass(frozen=True)
class Record:
    """One row of a part, besides its vectors.

    Attributes:
        fields: What is kept of the input's row.
        problem: Why it has no vectors, None if it has.
        text: Its text, where the job keeps texts; None otherwise.
    """

    fields: Mapping[str, object]
    problem: str | None = None
    text: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return it as plain values."""
        content: dict[str, object] = {"fields": dict(self.fields), "problem": self.problem}
        if self.text is not None:
            content["text"] = self.text
        return content


@dataclass(frozen=True, eq=False)
class Part:
    """The vectors of n rows, of which u were computed here.

    A row that repeats an earlier one's text has no vectors of its own: its source is that row. The
    vectors stand in the order of the rows that are their own source.

    Attributes:
        first_row: Number of the first row in the whole input, from 0.
        records: The n rows.
        sources: int64 (n,): the row, counted over the whole input, whose vectors a row shares; its
            own number where they were computed here; FAILED where it has none.
        dense: (u, d), float32 or float16; None if not asked for.
        sparse_offsets: int64 (u + 1,): where each vector starts in the two arrays below.
        sparse_indices: int32 (nnz,), token ids, ascending in each vector.
        sparse_values: float32 (nnz,).
        colbert_offsets: int64 (u + 1,): where each text starts in the array below.
        colbert_rows: (t, d), float32 or float16.
    """

    first_row: int
    records: Sequence[Record]
    sources: Offsets
    dense: FloatArray | None = None
    sparse_offsets: Offsets | None = None
    sparse_indices: IntArray | None = None
    sparse_values: FloatArray | None = None
    colbert_offsets: Offsets | None = None
    colbert_rows: FloatArray | None = None

    @property
    def own_rows(self) -> Offsets:
        """Return the numbers of the rows whose vectors were computed here, int64 (u,)."""
        numbers = np.arange(self.first_row, self.first_row + len(self.records), dtype=np.int64)
        own: Offsets = numbers[self.sources == numbers]
        return own


def build_part(
    first_row: int,
    records: Sequence[Record],
    sources: Offsets,
    embeddings: Embeddings | None,
    dtype: str,
) -> Part:
    """Build a part from the vectors of its own rows.

    Args:
        first_row: Number of its first row.
        records: Its n rows.
        sources: int64 (n,), see `Part`.
        embeddings: Of the u rows that are their own source; None if there are none.
        dtype: "float32" or "float16", of dense and ColBERT vectors.
    """
    if embeddings is None:
        return Part(first_row, records, sources)
    dense = None
    if embeddings.dense is not None:
        dense = embeddings.dense.astype(dtype, copy=False)
    sparse_offsets = sparse_indices = sparse_values = None
    if embeddings.sparse is not None:
        sparse_offsets = _offsets(len(vector) for vector in embeddings.sparse)
        no_indices: IntArray = np.zeros(0, dtype=np.int32)
        no_values: FloatArray = np.zeros(0, dtype=np.float32)
        vectors = embeddings.sparse
        sparse_indices = np.concatenate([no_indices, *(vector.indices for vector in vectors)])
        sparse_values = np.concatenate([no_values, *(vector.values for vector in vectors)])
    colbert_offsets = colbert_rows = None
    if embeddings.colbert is not None:
        colbert_offsets = _offsets(len(rows) for rows in embeddings.colbert)
        colbert_rows = np.concatenate(embeddings.colbert).astype(dtype, copy=False)
    return Part(
        first_row=first_row,
        records=records,
        sources=sources,
        dense=dense,
        sparse_offsets=sparse_offsets,
        sparse_indices=sparse_indices,
        sparse_values=sparse_values,
        colbert_offsets=colbert_offsets,
        colbert_rows=colbert_rows,
    )


_ARRAYS = (
    "sources",
    "dense",
    "sparse_offsets",
    "sparse_indices",
    "sparse_values",
    "colbert_offsets",
    "colbert_rows",
)


def part_to_bytes(part: Part) -> bytes:
    """Return a part as the content of its file: an uncompressed `.npz`, the same every time."""
    lines = [json.dumps(record.to_json(), ensure_ascii=False) for record in part.records]
    arrays: dict[str, NDArray[np.generic]] = {
        "first_row": np.array(part.first_row, dtype=np.int64),
        "records": np.frombuffer("\n".join(lines).encode("utf-8", "surrogatepass"), np.uint8),
    }
    for name in _ARRAYS:
        array = getattr(part, name)
        if array is not None:
            arrays[name] = array
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # NumPy types its keyword arguments oddly
    return buffer.getvalue()


def read_part(path: Path) -> Part:
    """Read a part's file.

    Raises:
        PartFileError: If it is not one, or is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            text = arrays["records"].tobytes().decode("utf-8", "surrogatepass")
            records = [_read_record(line) for line in text.split("\n")] if text else []
            values = {name: arrays[name] for name in _ARRAYS if name in arrays}
            return Part(first_row=int(arrays["first_row"]), records=records, **values)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise PartFileError(f"{path} cannot be read: {error}") from None


def _read_record(line: str) -> Record:
    record = json.loads(line)
    return Record(fields=record["fields"], problem=record["problem"], text=record.get("text"))


def _offsets(lengths: Iterable[int]) -> Offsets:
    return np.concatenate([[0], np.cumsum(list(lengths), dtype=np.int64)]).astype(np.int64)
