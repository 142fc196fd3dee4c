"""The vectors of further heads for points that have a text, in the form that Qdrant takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.pooling import pool_rows
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.layouts import SourceText
from unified_embeddings.stores.creating import colbert_width
from unified_embeddings.stores.keyword_list import (
    KEYWORD_VECTOR,
    keyword_params,
    keyword_vectors,
)
from unified_embeddings.stores.schema import (
    SPARSE_VECTOR,
    check_collection,
    dense_vectors,
    sparse_params,
    sparse_vectors,
)
from unified_embeddings.stores.stored_colbert import COLBERT_VECTOR, StoredColbert
from unified_embeddings.types import HeadName

Vectors: TypeAlias = dict[str, qm.SparseVector | list[list[float]]]
"""Name of a vector → the vector."""
VectorParams: TypeAlias = qm.VectorParams | qm.SparseVectorParams

NAMES: dict[HeadName, str] = {"sparse": SPARSE_VECTOR, "colbert": COLBERT_VECTOR}
"""Head → the name of its vectors in a collection of ours."""


@dataclass(frozen=True)
class Watching:
    """What is told while vectors are added.

    Attributes:
        on_total: Called once with the number of points to go through.
        on_points: Called with the number of points just done.
        check: Called between two steps; it may raise, and the next run resumes.
    """

    on_total: Callable[[int], None] = lambda _: None
    on_points: Callable[[int], None] = lambda _: None
    check: Callable[[], None] = lambda: None


UNWATCHED = Watching()


@dataclass(frozen=True)
class Addition:
    """What is added to points.

    Attributes:
        embedder: The embedder of the collection's model.
        heads: Of sparse and colbert; none where only words are counted, or points only copied.
        colbert: How ColBERT vectors are stored.
        keywords: What counts words for a keyword list; None for no list.
    """

    embedder: TextEmbedder
    heads: Sequence[HeadName]
    colbert: StoredColbert
    keywords: TextEmbedder | None = None

    @property
    def vector_names(self) -> list[str]:
        """Return the names of the added vectors."""
        names = [NAMES[head] for head in self.heads]
        return names if self.keywords is None else [*names, KEYWORD_VECTOR]

    def describe(self) -> dict[str, VectorParams]:
        """Return the parameters of the added vectors by their names; may run the model once."""
        params: dict[str, VectorParams] = {}
        if self.keywords is not None:
            params[KEYWORD_VECTOR] = keyword_params()
        if "sparse" in self.heads:
            params[SPARSE_VECTOR] = sparse_params(self.embedder)
        if "colbert" in self.heads:
            params[COLBERT_VECTOR] = self.colbert.params(colbert_width(self.embedder))
        return params

    def encode(self, sources: Sequence[SourceText]) -> list[Vectors]:
        """Return the added vectors of each text, which is embedded once for all heads."""
        texts = [source.text for source in sources]
        vectors: list[Vectors] = [{} for _ in sources]
        if self.keywords is not None:
            counted = keyword_vectors(self.keywords, texts)
            for own_vectors, keyword_vector in zip(vectors, counted, strict=True):
                own_vectors[KEYWORD_VECTOR] = keyword_vector
        if not self.heads:
            return vectors
        embeddings = self.embedder.encode(texts, role="document", heads=self.heads)
        for place, weights in enumerate(embeddings.sparse or ()):
            vectors[place][SPARSE_VECTOR] = qm.SparseVector(
                indices=weights.indices.tolist(), values=weights.values.tolist()
            )
        for place, rows in enumerate(embeddings.colbert or ()):
            vectors[place][COLBERT_VECTOR] = pool_rows(rows, self.colbert.pool).tolist()
        return vectors


def check_heads(
    name: str, info: qm.CollectionInfo, embedder: TextEmbedder, heads: Sequence[HeadName]
) -> None:
    """Refuse to add heads to a collection that is not the model's.

    Raises:
        FingerprintMismatchError: If it records another model.
        InputError: If a head cannot be added, or the model does not give it.
        StoreError: If it records no model.
    """
    unknown = [head for head in heads if head not in NAMES]
    if unknown:
        raise InputError(f"expected heads of sparse and colbert, got {', '.join(heads)}")
    missing = [head for head in heads if head not in embedder.heads]
    if missing:
        raise InputError(
            f"{embedder.model_name!r} gives {' and '.join(embedder.heads)} vectors, no "
            f"{' or '.join(missing)} ones; take a model that gives them"
        )
    check_collection(name, info, embedder, dense=None, sparse=None)


def find_lacking(
    name: str, info: qm.CollectionInfo, params: Mapping[str, VectorParams]
) -> list[str]:
    """Return the names of the vectors that a collection lacks.

    Raises:
        StoreError: If it has a different vector of one of the names.
    """
    lacking = []
    for vector, wanted in params.items():
        existing = dense_vectors(info).get(vector) or sparse_vectors(info).get(vector)
        if existing is None:
            lacking.append(vector)
        elif _space_of(existing) != _space_of(wanted):
            raise StoreError(
                name,
                f"adding {vector!r}",
                f"it has another vector of that name ({_space_of(existing)}, expected "
                f"{_space_of(wanted)}); delete that vector first",
            )
    return lacking


def _space_of(params: VectorParams) -> str:
    """Describe what cannot be changed about a vector."""
    if isinstance(params, qm.SparseVectorParams):
        return f"sparse, modifier {(params.modifier or qm.Modifier.NONE).value}"
    kind = "multi-vector" if params.multivector_config else "one vector"
    return f"{params.size} x {params.distance.value}, {kind}"
