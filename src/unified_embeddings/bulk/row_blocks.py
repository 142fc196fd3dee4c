"""All rows of a part with all their vectors, those of repeated texts included.

What lives here: giving each row its vectors, from its own part or from what was written before.
What does not: a part's content (`parts`) and the files (`output`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.bulk.array_files import ArrayFile, RaggedFile
from unified_embeddings.bulk.parts import FAILED, Offsets, Part, PartFileError, Record
from unified_embeddings.types import FloatArray, IntArray

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RowBlock:
    """The n rows of a part, each with its vectors.

    Attributes:
        first_row: Number of the first row in the whole input.
        records: The rows besides their vectors.
        is_embedded: bool (n,): False for rows without vectors.
        dense: (n, d), NaN in rows without vectors; None if not asked for.
        sparse: n pairs of indices, int32, and values, float32; empty in rows without vectors.
        colbert: n arrays (t_i, d); without rows where there are no vectors.
    """

    first_row: int
    records: Sequence[Record]
    is_embedded: NDArray[np.bool_]
    dense: FloatArray | None = None
    sparse: list[tuple[IntArray, FloatArray]] | None = None
    colbert: list[FloatArray] | None = None


@dataclass(frozen=True)
class VectorFiles:
    """The vectors of all rows before a part; None for heads that are not asked for."""

    dense: ArrayFile | None = None
    sparse: RaggedFile | None = None
    colbert: RaggedFile | None = None

    def append(self, block: RowBlock) -> None:
        """Append a block's vectors."""
        if self.dense is not None and block.dense is not None:
            self.dense.append(block.dense)
        if self.sparse is not None and block.sparse is not None:
            self.sparse.append(block.sparse)
        if self.colbert is not None and block.colbert is not None:
            self.colbert.append([(rows,) for rows in block.colbert])


def build_block(part: Part, files: VectorFiles, *, width: int, colbert_width: int) -> RowBlock:
    """Give each row of a part its vectors.

    Args:
        part: The part.
        files: What was written of the parts before it; it says which heads are asked for.
        width: Dimension of the dense vectors.
        colbert_width: Dimension of the ColBERT vectors.

    Raises:
        PartFileError: If the part lacks a head, or a row's source in it has no vectors.
    """
    _check_heads(part, files, width, colbert_width)
    places = _find_places(part)
    dense = sparse = colbert = None
    if files.dense is not None:
        dense = _build_dense(part, files.dense, places, width)
    if files.sparse is not None:
        earlier_sparse = files.sparse
        sparse = _choose_rows(
            part,
            places,
            own=lambda place: _own_sparse(part, place),
            earlier=lambda row: _sparse_pair(earlier_sparse, row),
            missing=(np.zeros(0, np.int32), np.zeros(0, np.float32)),
        )
    if files.colbert is not None:
        earlier_colbert = files.colbert
        colbert = _choose_rows(
            part,
            places,
            own=lambda place: _own_colbert(part, place, earlier_colbert),
            earlier=lambda row: _colbert_rows(earlier_colbert, row),
            missing=np.zeros((0, colbert_width), np.float32),
        )
    return RowBlock(
        first_row=part.first_row,
        records=part.records,
        is_embedded=part.sources != FAILED,
        dense=dense,
        sparse=sparse,
        colbert=colbert,
    )


def _check_heads(part: Part, files: VectorFiles, width: int, colbert_width: int) -> None:
    where = f"the part of rows {part.first_row:,} and on"
    if len(part.sources) != len(part.records):
        raise PartFileError(f"{where} has {len(part.records)} rows but {len(part.sources)} sources")
    count = len(part.own_rows)
    heads = (
        ("dense", files.dense, part.dense),
        ("sparse", files.sparse, part.sparse_values),
        ("colbert", files.colbert, part.colbert_rows),
    )
    for name, wanted, values in heads:
        if wanted is not None and values is None and count:
            raise PartFileError(f"{where} has no {name} vectors")
    if part.dense is not None and part.dense.shape != (count, width):
        raise PartFileError(
            f"{where} has dense vectors {part.dense.shape}, expected {(count, width)}"
        )
    if part.colbert_rows is not None and part.colbert_rows.shape[1] != colbert_width:
        raise PartFileError(
            f"{where} has ColBERT vectors of {part.colbert_rows.shape[1]} numbers, "
            f"expected {colbert_width}"
        )


def _find_places(part: Part) -> Offsets:
    """Return, for each row, where its vectors stand among the part's own; -1 if they do not.

    Raises:
        PartFileError: If a row's source is later, or is in this part and has no vectors.
    """
    own_rows = part.own_rows
    places = np.full(len(part.sources), -1, np.int64)
    is_here = part.sources >= part.first_row
    wanted = part.sources[is_here]
    found = np.searchsorted(own_rows, wanted)
    if len(wanted) and (
        found.max() >= len(own_rows) or not np.array_equal(own_rows[found], wanted)
    ):
        raise PartFileError(
            f"the part of rows {part.first_row:,} and on refers to a row without vectors"
        )
    places[is_here] = found
    return places


def _build_dense(part: Part, earlier: ArrayFile, places: Offsets, width: int) -> FloatArray:
    # The file's type, not the part's: a part without vectors of its own has none to tell it.
    dense: FloatArray = np.full((len(part.records), width), np.nan, earlier.dtype)
    if part.dense is not None:
        dense[places >= 0] = part.dense[places[places >= 0]]
    is_earlier = (places < 0) & (part.sources != FAILED)
    for position in np.flatnonzero(is_earlier).tolist():
        source = int(part.sources[position])
        dense[position] = earlier.read(source, source + 1)[0]
    return dense


def _choose_rows(
    part: Part,
    places: Offsets,
    *,
    own: Callable[[int], T],
    earlier: Callable[[int], T],
    missing: T,
) -> list[T]:
    rows: list[T] = []
    for place, source in zip(places.tolist(), part.sources.tolist(), strict=True):
        if source == FAILED:
            rows.append(missing)
        elif place >= 0:
            rows.append(own(place))
        else:
            rows.append(earlier(source))
    return rows


def _own_sparse(part: Part, place: int) -> tuple[IntArray, FloatArray]:
    assert part.sparse_offsets is not None
    assert part.sparse_indices is not None
    assert part.sparse_values is not None
    start, stop = part.sparse_offsets[place : place + 2].tolist()
    return part.sparse_indices[start:stop], part.sparse_values[start:stop]


def _sparse_pair(file: RaggedFile, row: int) -> tuple[IntArray, FloatArray]:
    indices, values = file.read(row)
    return indices.astype(np.int32, copy=False), values.astype(np.float32, copy=False)


def _colbert_rows(file: RaggedFile, row: int) -> FloatArray:
    return cast("FloatArray", file.read(row)[0])  # float16 where the file is


def _own_colbert(part: Part, place: int, file: RaggedFile) -> FloatArray:
    assert part.colbert_offsets is not None
    assert part.colbert_rows is not None
    start, stop = part.colbert_offsets[place : place + 2].tolist()
    rows = part.colbert_rows[start:stop].astype(file.values[0].dtype, copy=False)
    return cast("FloatArray", rows)
