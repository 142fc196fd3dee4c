"""Texts of points into points with vectors: all heads from one pass, bad texts found and left out.

What lives here: the interface of what embeds, and the embedder in this process as one. What does
not: worker processes (`worker_embedding`), and where points go (`sides`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.isolation import isolate_failures
from unified_embeddings.errors import (
    InputError,
    ModelLoadError,
    OverloadedError,
    ServiceError,
)
from unified_embeddings.llama.layouts import SourceText
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR
from unified_embeddings.types import FloatArray, HeadName, SparseVector

HOPELESS = 8
"""Texts in a row that fail alone before the fault counts as not theirs."""
_NOT_THE_TEXTS = (ServiceError, OverloadedError, ModelLoadError)

NamedVectors = dict[str, list[float] | qm.SparseVector]


@dataclass(frozen=True, eq=False)
class TextVectors:
    """The vectors of one text.

    Attributes:
        dense: float32 (d,).
        sparse: None if the model gives none.
    """

    dense: FloatArray
    sparse: SparseVector | None

    @property
    def named(self) -> NamedVectors:
        """Return them under the names that a collection of ours has."""
        named: NamedVectors = {DENSE_VECTOR: self.dense.tolist()}
        if self.sparse is not None:
            named[SPARSE_VECTOR] = qm.SparseVector(
                indices=self.sparse.indices.tolist(), values=self.sparse.values.tolist()
            )
        return named


Outcome = TextVectors | str
"""A text's vectors, or why it has none."""


@dataclass(frozen=True)
class Batch:
    """Points to embed together.

    Attributes:
        contents: What they hold.
        key: What the caller knows the batch by.
    """

    contents: Sequence[SourceText]
    key: object = None


class Embedding(Protocol):
    """What embeds batches of texts."""

    def run(
        self, batches: Iterable[Batch], check: Callable[[], None]
    ) -> Iterator[tuple[Batch, list[Outcome]]]:
        """Embed batches, and yield each with an outcome for each of its texts, in any order.

        `check` is called where work may stop; what it raises is raised.
        """
        ...


OpenEmbedding = Callable[[], AbstractContextManager[Embedding]]


def document_heads(embedder: TextEmbedder) -> tuple[HeadName, ...]:
    """Return the heads that a collection of ours holds vectors of."""
    heads: tuple[HeadName, ...] = ("dense", "sparse")
    return tuple(head for head in heads if head in embedder.heads)


class InProcessEmbedding:
    """An embedder in this process, as what embeds batches.

    Args:
        embedder: The new model's.
    """

    def __init__(self, embedder: TextEmbedder) -> None:
        self._embedder = embedder
        self._heads = document_heads(embedder)

    def run(
        self, batches: Iterable[Batch], check: Callable[[], None]
    ) -> Iterator[tuple[Batch, list[Outcome]]]:
        """Embed batches in their order.

        Raises:
            MigrationError: If text after text fails, so that the fault is not theirs.
            UnifiedEmbeddingsError: If the model cannot be loaded or its service does not answer.
        """
        for batch in batches:
            check()
            yield batch, self.embed([content.text for content in batch.contents])

    def embed(self, texts: Sequence[str]) -> list[Outcome]:
        """Return an outcome for each text.

        Raises:
            MigrationError: As in `run`.
            UnifiedEmbeddingsError: As in `run`.
        """
        results = isolate_failures(self._compute, texts, hopeless=HOPELESS, is_fatal=_is_fatal)
        _refuse_hopeless(results)
        return [_to_outcome(result) for result in results]

    def _compute(self, texts: Sequence[str]) -> list[TextVectors]:
        embeddings = self._embedder.encode(texts, role="document", heads=self._heads)
        assert embeddings.dense is not None
        vectors = []
        for index in range(len(texts)):
            sparse = None if embeddings.sparse is None else embeddings.sparse[index]
            vectors.append(TextVectors(embeddings.dense[index], sparse))
        return vectors


@contextlib.contextmanager
def in_process(embedder: TextEmbedder) -> Iterator[Embedding]:
    """Embed with an embedder in this process."""
    yield InProcessEmbedding(embedder)


def build_point(content: SourceText, vectors: TextVectors) -> qm.PointStruct:
    """Return the target's point."""
    return qm.PointStruct(
        id=content.point_id,
        payload=content.payload,
        vector=vectors.named,  # type: ignore[arg-type]  # lists are invariant
    )


def _is_fatal(error: Exception) -> bool:
    return isinstance(error, _NOT_THE_TEXTS)


def _refuse_hopeless(results: Sequence[TextVectors | Exception | None]) -> None:
    """Refuse to take texts for bad if so many failed in a row that the fault is not theirs."""
    in_a_row = 0
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, InputError):
            in_a_row += 1
        else:
            in_a_row = 0
        if in_a_row >= HOPELESS:
            assert isinstance(result, Exception)
            raise MigrationError(
                f"the new model failed on {in_a_row} texts in a row, so that the fault is not "
                f"theirs: {type(result).__name__}: {result}. What was written is kept; run the "
                "same command again once it is mended"
            ) from result


def _to_outcome(result: TextVectors | Exception | None) -> Outcome:
    if isinstance(result, TextVectors):
        return result
    if isinstance(result, InputError):
        return result.problem
    return f"{type(result).__name__}: {result}"
