"""Putting the parts of a bulk job together, one model at a time.

What lives here: which files there are, what they are called, and the one pass over the parts that
writes them all. What does not: a format's content (`array_files`, `json_output`,
`parquet_output`).

    MODEL.npy                     dense vectors (n, d); rows that failed are NaN
    MODEL.sparse.npz              a CSR matrix (n, vocabulary) for scipy.sparse.load_npz
    MODEL.colbert.npy             all ColBERT vectors (t, d), one text after the other
    MODEL.colbert.offsets.npy     int64 (n + 1,): where each text starts in it
    MODEL.jsonl, MODEL.parquet    a row each with its fields and vectors
    MODEL.rows.jsonl              a row each with its fields, without vectors
    MODEL.chroma.jsonl, ...       batches for another store (`upsert_layouts`)
    MODEL.metadata.json           document 004's fields and more
    failed.jsonl                  the rows without vectors, over all models

Row k of each file is row k of the input, whatever failed. The same parts give the same bytes. Each
file is published whole, and memory does not grow with the rows.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from unified_embeddings.bulk.array_files import ArrayFile, RaggedFile, write_csr
from unified_embeddings.bulk.batch_output import BatchFile
from unified_embeddings.bulk.failures import collect_failures
from unified_embeddings.bulk.file_names import safe_file_name
from unified_embeddings.bulk.json_output import JsonLinesFile, RowsFile, failure_line
from unified_embeddings.bulk.layout_choice import LAYOUT_NAMES, LayoutName, make_layout
from unified_embeddings.bulk.parquet_output import ColumnTypes, ParquetOutput, import_pyarrow
from unified_embeddings.bulk.parts import PartFileError, read_part
from unified_embeddings.bulk.row_blocks import VectorFiles, build_block
from unified_embeddings.errors import InputError
from unified_embeddings.system.files import publish_file, replace_file, scratch_folder
from unified_embeddings.types import HeadName

OutputFormat: TypeAlias = Literal["npy", "jsonl", "parquet", "rows"] | LayoutName
OUTPUT_FORMATS: tuple[OutputFormat, ...] = ("npy", "jsonl", "parquet", "rows", *LAYOUT_NAMES)
FAILED_FILE = "failed.jsonl"
RowOutput: TypeAlias = JsonLinesFile | ParquetOutput | RowsFile | BatchFile
_GROUP_BYTES = 32 * 2**20


@dataclass(frozen=True)
class OutputPlan:
    """What to write of one model's vectors.

    Attributes:
        model: The model's name, for the files' names and each row.
        heads: Which vectors the parts have.
        dimension: Numbers of a dense vector.
        colbert_dimension: Numbers of a ColBERT vector; None if the same as `dimension`.
        vocabulary_size: Columns of the sparse matrix.
        dtype: "float32" or "float16", of dense and ColBERT vectors.
        formats: "npy" stands for all files of arrays.
        colbert_in_rows: Whether JSON lines and Parquet hold ColBERT vectors too.
        id_field: The field that holds a row's id, for other stores; None if rows have none.
        with_texts: Whether other stores get the texts, which the parts then hold.
    """

    model: str
    heads: tuple[HeadName, ...]
    dimension: int
    colbert_dimension: int | None = None
    vocabulary_size: int = 0
    dtype: str = "float32"
    formats: tuple[OutputFormat, ...] = ("npy",)
    colbert_in_rows: bool = False
    id_field: str | None = None
    with_texts: bool = True

    def __post_init__(self) -> None:
        unknown = sorted(set(self.formats) - set(OUTPUT_FORMATS))
        if unknown or not self.formats:
            raise InputError(
                f"formats must be some of {', '.join(OUTPUT_FORMATS)}, "
                f"got {', '.join(unknown) or 'none'}"
            )
        if "sparse" in self.heads and self.vocabulary_size < 1:
            raise ValueError("a sparse matrix needs the vocabulary_size")
        if "parquet" in self.formats:
            import_pyarrow()  # Raises now if it is missing, and not once the work is done.

    @property
    def row_heads(self) -> tuple[HeadName, ...]:
        """Return the heads that JSON lines and Parquet hold."""
        return tuple(head for head in self.heads if head != "colbert" or self.colbert_in_rows)


def write_outputs(
    parts: Sequence[Path],
    folder: Path,
    plan: OutputPlan,
    *,
    on_rows: Callable[[int], None] | None = None,
) -> list[Path]:
    """Put a model's parts together into its files.

    Args:
        parts: The parts' files, in the order of their rows, without gaps.
        folder: Where the files go. What has their names there is replaced.
        plan: What to write.
        on_rows: Called with the number of rows done after each part.

    Returns:
        The files, in the order of the list above.

    Raises:
        PartFileError: If a part is damaged or does not follow the one before.
        OSError: If a file cannot be written; nothing is published then that is not whole.
    """
    columns = ColumnTypes()
    if "parquet" in plan.formats:
        for path in parts:
            columns.add(read_part(path).records)
    name = safe_file_name(plan.model)
    with scratch_folder(folder) as scratch:
        with contextlib.ExitStack() as files:
            writer = _Writer(scratch, plan, name, columns, files)
            for path in parts:
                writer.append(path)
                if on_rows is not None:
                    on_rows(writer.rows)
            writer.write_sparse()
        published = []
        for file in writer.finished:
            publish_file(file, folder / file.name)
            published.append(folder / file.name)
    return published


class _Writer:
    """The files of one model while they are written."""

    def __init__(
        self,
        scratch: Path,
        plan: OutputPlan,
        name: str,
        columns: ColumnTypes,
        files: contextlib.ExitStack,
    ) -> None:
        self.rows = 0
        self.finished: list[Path] = []
        self._plan = plan
        self._colbert_width = plan.colbert_dimension or plan.dimension
        self._sparse_path = scratch / f"{name}.sparse.npz"
        self._vectors = self._open_vectors(scratch, name, files)
        self._row_files: list[RowOutput] = []
        if "jsonl" in plan.formats:
            path = scratch / f"{name}.jsonl"
            lines = JsonLinesFile(path, plan.model, with_colbert=plan.colbert_in_rows)
            self._add_row_file(lines, files)
        if "rows" in plan.formats:
            self._add_row_file(RowsFile(scratch / f"{name}.rows.jsonl"), files)
        for layout in LAYOUT_NAMES:
            if layout in plan.formats:
                batches = BatchFile(
                    scratch / f"{name}.{layout}.jsonl",
                    make_layout(layout),
                    plan.id_field,
                    with_texts=plan.with_texts,
                )
                self._add_row_file(batches, files)
        if "parquet" in plan.formats:
            table = ParquetOutput(
                scratch / f"{name}.parquet",
                plan.model,
                columns=columns.columns(),
                heads=plan.row_heads,
                group_rows=_choose_group_rows(plan),
            )
            self._add_row_file(table, files)

    def _add_row_file(self, file: RowOutput, files: contextlib.ExitStack) -> None:
        files.callback(file.close)
        self._row_files.append(file)
        self.finished.append(file.path)

    def _open_vectors(self, scratch: Path, name: str, files: contextlib.ExitStack) -> VectorFiles:
        """Open the arrays, which are needed in any format: repeated rows are read from them."""
        plan = self._plan
        dense = sparse = colbert = None
        published: list[Path] = []
        if "dense" in plan.heads:
            dense = ArrayFile(scratch / f"{name}.npy", plan.dtype, plan.dimension)
            files.callback(dense.close)
            published.append(dense.path)
        if "sparse" in plan.heads:
            sparse = RaggedFile(
                ArrayFile(scratch / "sparse-offsets", np.int64),
                [
                    ArrayFile(scratch / "sparse-indices", np.int32),
                    ArrayFile(scratch / "sparse-values", np.float32),
                ],
            )
            files.callback(sparse.close)
            published.append(self._sparse_path)
        if "colbert" in plan.heads:
            rows = ArrayFile(scratch / f"{name}.colbert.npy", plan.dtype, self._colbert_width)
            offsets = ArrayFile(scratch / f"{name}.colbert.offsets.npy", np.int64)
            colbert = RaggedFile(offsets, [rows])
            files.callback(colbert.close)
            published += [rows.path, offsets.path]
        if "npy" in plan.formats:
            self.finished += published
        return VectorFiles(dense=dense, sparse=sparse, colbert=colbert)

    def append(self, path: Path) -> None:
        """Write the rows of the next part."""
        part = read_part(path)
        if part.first_row != self.rows:
            raise PartFileError(
                f"{path} begins with row {part.first_row:,}, but row {self.rows:,} is next"
            )
        try:
            block = build_block(
                part, self._vectors, width=self._plan.dimension, colbert_width=self._colbert_width
            )
        except PartFileError as error:
            raise PartFileError(f"{path}: {error}") from None
        self._vectors.append(block)
        for file in self._row_files:
            file.append(block)
        self.rows += len(part.records)

    def write_sparse(self) -> None:
        """Write the sparse matrix, once all of it is known."""
        if self._vectors.sparse is not None and "npy" in self._plan.formats:
            write_csr(self._sparse_path, self._vectors.sparse, self._plan.vocabulary_size)


def _choose_group_rows(plan: OutputPlan) -> int:
    """Return as many rows as have 32 MiB of vectors, so that memory is bounded."""
    row_bytes = 4 * plan.dimension
    if "colbert" in plan.row_heads:
        row_bytes *= 128  # tokens of a usual text
    return min(max(_GROUP_BYTES // row_bytes, 64), 2**16)


def write_failures(parts_of_models: Mapping[str, Sequence[Path]], folder: Path) -> int:
    """Write the rows without vectors to `failed.jsonl`, and return how many there are.

    Each row has a line for each problem, with the models that it concerns.

    Args:
        parts_of_models: The parts' files of each model, in order.
        folder: Where the file goes. It is written even if no row failed.
    """
    last_row = None
    count = 0
    with scratch_folder(folder) as scratch:
        file = scratch / FAILED_FILE
        with file.open("wb") as lines:
            for failure in collect_failures(parts_of_models):
                lines.write(
                    failure_line(failure.row, failure.problem, failure.models, failure.fields)
                )
                if failure.row != last_row:
                    last_row = failure.row
                    count += 1
        publish_file(file, folder / FAILED_FILE)
    return count


def write_metadata(
    folder: Path,
    model: str,
    *,
    embedding_dim: int,
    num_paragraphs: int,
    processing_time: float,
    batch_size: int,
    more: Mapping[str, object] | None = None,
) -> Path:
    """Write a model's `MODEL.metadata.json`: document 004's fields, then more.

    Args:
        folder: Where the file goes.
        model: The model's name.
        embedding_dim: Numbers of a dense vector.
        num_paragraphs: Rows of the input.
        processing_time: Seconds.
        batch_size: Texts in a batch.
        more: Further fields, fit for JSON.

    Raises:
        OSError: If it cannot be written.
    """
    fields: dict[str, object] = {
        "model_name": model,
        "embedding_dim": embedding_dim,
        "num_paragraphs": num_paragraphs,
        "processing_time": processing_time,
        "batch_size": batch_size,
    }
    repeated = sorted(fields.keys() & (more or {}).keys())
    if repeated:
        raise ValueError(f"{repeated[0]!r} is given twice")
    fields.update(more or {})
    target = folder / f"{safe_file_name(model)}.metadata.json"
    content = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(target, f"{content}\n".encode())
    return target
