"""The vectors of further heads for points that have a text, in the form that Qdrant takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.migration.payloads import SourceText
from unified_embeddings.stores.keyword_list import (
    KEYWORD_VECTOR,
    keyword_params,
    keyword_vectors,
)
from unified_embeddings.stores.schema import (
    COLBERT_VECTOR,
    SPARSE_VECTOR,
    check_collection,
    colbert_params,
    dense_vectors,
    sparse_params,
    sparse_vectors,
)
from unified_embeddings.types import FloatArray, HeadName, SparseVector

T = TypeVar("T")
Vectors: TypeAlias = dict[str, qm.SparseVector | list[list[float]]]
"""Name of a vector → the vector."""
VectorParams: TypeAlias = qm.VectorParams | qm.SparseVectorParams

NAMES: dict[HeadName, str] = {"sparse": SPARSE_VECTOR, "colbert": COLBERT_VECTOR}
"""Head → the name of its vectors in a collection of ours."""
_MOST_NUMBERS = 2**20
"""Of one multi-vector in Qdrant."""
_REQUEST_NUMBERS = 700_000
"""Numbers in a request: as JSON they take 20 bytes each, and a server accepts 32 MB."""


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


def describe_heads(
    embedder: TextEmbedder, heads: Sequence[HeadName], keywords: TextEmbedder | None = None
) -> dict[str, VectorParams]:
    """Return the parameters of the vectors of heads, by their names in a collection.

    Args:
        embedder: The embedder.
        heads: Of sparse and colbert.
        keywords: What counts words for a keyword list; None for no list.
    """
    params: dict[str, VectorParams] = {}
    if keywords is not None:
        params[KEYWORD_VECTOR] = keyword_params()
    if "sparse" in heads:
        params[SPARSE_VECTOR] = sparse_params(embedder)
    if "colbert" in heads:
        (rows,) = embedder.encode(["a"], role="document", heads=["colbert"]).colbert or []
        params[COLBERT_VECTOR] = colbert_params(rows.shape[1])
    return params


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


def encode_heads(
    embedder: TextEmbedder,
    sources: Sequence[SourceText],
    heads: Sequence[HeadName],
    keywords: TextEmbedder | None = None,
) -> tuple[list[Vectors], list[str]]:
    """Embed texts once for all heads.

    Args:
        embedder: The embedder.
        sources: n texts.
        heads: Of sparse and colbert; none where only words are counted.
        keywords: What counts words for a keyword list; None for no list.

    Returns:
        The vectors of each text, and a problem for each, "" for none. A ColBERT vector larger than
        Qdrant holds is left out.
    """
    texts = [source.text for source in sources]
    sparse: Sequence[SparseVector] = ()
    colbert: Sequence[FloatArray] = ()
    if heads:
        embeddings = embedder.encode(texts, role="document", heads=heads)
        sparse, colbert = embeddings.sparse or (), embeddings.colbert or ()
    vectors: list[Vectors] = [{} for _ in sources]
    problems = [""] * len(sources)
    if keywords is not None:
        for own_vectors, counted in zip(vectors, keyword_vectors(keywords, texts), strict=True):
            own_vectors[KEYWORD_VECTOR] = counted
    for place, weights in enumerate(sparse):
        vectors[place][SPARSE_VECTOR] = qm.SparseVector(
            indices=weights.indices.tolist(), values=weights.values.tolist()
        )
    for place, rows in enumerate(colbert):
        if rows.size > _MOST_NUMBERS:
            problems[place] = (
                f"its ColBERT vector has more numbers than Qdrant holds, {_MOST_NUMBERS:,}; "
                "split the text"
            )
        else:
            vectors[place][COLBERT_VECTOR] = rows.tolist()
    return vectors, problems


def split_by_size(items: Sequence[tuple[T, Vectors]]) -> Iterator[list[tuple[T, Vectors]]]:
    """Yield items in lists of which each fits into a request; a larger item goes alone."""
    request: list[tuple[T, Vectors]] = []
    numbers = 0
    for item in items:
        own_numbers = sum(map(_count_numbers, item[1].values()))
        if request and numbers + own_numbers > _REQUEST_NUMBERS:
            yield request
            request, numbers = [], 0
        request.append(item)
        numbers += own_numbers
    if request:
        yield request


def _count_numbers(vector: qm.SparseVector | list[list[float]]) -> int:
    if isinstance(vector, qm.SparseVector):
        return 2 * len(vector.indices)
    return len(vector) * len(vector[0]) if vector else 0
