"""Batches of texts embedded by a bulk job's worker processes.

What lives here: batches as parts of a job, and parts as outcomes. What does not: the workers, and
finding a text at which one dies (`bulk.pool`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from unified_embeddings.bulk.job import part_name
from unified_embeddings.bulk.options import DEFAULT_SLICE_ROWS
from unified_embeddings.bulk.parts import FAILED, Part, Record, read_part
from unified_embeddings.bulk.planning import PartTask
from unified_embeddings.bulk.pool import WorkerPool
from unified_embeddings.bulk.worker import MakeEmbedder, WorkerSettings
from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.migration.embedding import (
    HOPELESS,
    Batch,
    Embedding,
    Outcome,
    TextVectors,
    document_heads,
)
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.types import Options, SparseVector
from unified_embeddings.validation import require_whole_number


def make_configured_embedder(**model: object) -> TextEmbedder:
    """Make the embedder of a record's model in a worker, without a cache: no text comes twice."""
    options: Options = {**model, "cache": EmbeddingCache(0)}
    return UnifiedEmbeddingConfig.from_env(**options).embedder


@contextlib.contextmanager
def in_workers(
    embedder: TextEmbedder,
    model: Mapping[str, object],
    workers: int,
    *,
    make: MakeEmbedder = make_configured_embedder,
) -> Iterator[Embedding]:
    """Embed in worker processes.

    Args:
        embedder: The same model in this process, which says what it gives.
        model: The record's, with which each worker makes its own.
        workers: How many processes.
        make: Makes a worker's embedder; a function of an importable module.

    Raises:
        UnifiedEmbeddingsError: If the workers cannot load the model.
        OSError: If there is no room for temporary files.
    """
    require_whole_number("workers", workers)
    with tempfile.TemporaryDirectory(prefix="unified-embeddings-") as folder:
        settings = WorkerSettings(
            make_embedder=make,
            options=dict(model),
            heads=document_heads(embedder),
            role="document",
            dtype="float32",
            folder=Path(folder),
            slice_rows=DEFAULT_SLICE_ROWS,
            processes=workers,
        )
        with WorkerPool([settings] * workers) as pool:
            yield _WorkerEmbedding(pool, Path(folder))


class _WorkerEmbedding:
    def __init__(self, pool: WorkerPool, folder: Path) -> None:
        self._pool = pool
        self._folder = folder
        self._batches: dict[int, Batch] = {}
        self._numbers = 0

    def run(
        self, batches: Iterable[Batch], check: Callable[[], None]
    ) -> Iterator[tuple[Batch, list[Outcome]]]:
        """Embed batches, and yield them as they are finished.

        Ctrl-C lets the workers finish what they have in hand.
        """
        tasks = (self._to_task(batch) for batch in batches)
        try:
            for finished in self._pool.compute(tasks, check):
                yield self._take(finished.part)
        except KeyboardInterrupt:
            for finished in self._pool.stop_after_parts_in_hand():
                yield self._take(finished.part)
            raise

    def _to_task(self, batch: Batch) -> PartTask:
        number = self._numbers
        self._numbers += 1
        self._batches[number] = batch
        texts = [content.text for content in batch.contents]
        return PartTask(
            number=number,
            first_row=0,
            records=[Record({}) for _ in texts],
            sources=np.arange(len(texts)),
            texts=texts,
            rows_digest="",
        )

    def _take(self, number: int) -> tuple[Batch, list[Outcome]]:
        path = self._folder / part_name(number)
        outcomes = _outcomes_of(read_part(path))
        path.unlink()
        _refuse_hopeless(outcomes)
        return self._batches.pop(number), outcomes


def _outcomes_of(part: Part) -> list[Outcome]:
    """Return what became of each text of a part, in order."""
    outcomes: list[Outcome] = []
    place = 0
    for record, source in zip(part.records, part.sources.tolist(), strict=True):
        if source == FAILED:
            outcomes.append(record.problem or "no reason was recorded")
            continue
        assert part.dense is not None
        outcomes.append(TextVectors(part.dense[place], _sparse_of(part, place)))
        place += 1
    return outcomes


def _sparse_of(part: Part, place: int) -> SparseVector | None:
    if part.sparse_offsets is None:
        return None
    assert part.sparse_indices is not None
    assert part.sparse_values is not None
    start, stop = part.sparse_offsets[place : place + 2].tolist()
    return SparseVector(part.sparse_indices[start:stop], part.sparse_values[start:stop])


def _refuse_hopeless(outcomes: list[Outcome]) -> None:
    problems = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if len(problems) >= HOPELESS and len(problems) == len(outcomes):
        raise MigrationError(
            f"the new model failed on all {len(problems)} texts of a batch, so that the fault is "
            f"not theirs: {problems[0]}. What was written is kept; run the same command again once "
            "it is mended"
        )
