"""Checks of a retriever's options, made while it is being constructed.

What lives here: the ranges of the options, which vectors each mode needs, and LlamaIndex's metadata
filters translated into Qdrant's. What does not: anything that sends a request or runs a model.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeGuard, get_args

from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.types import HeadName
from unified_embeddings.validation import require_weights, require_whole_number

Mode = Literal["hybrid", "dense", "sparse"]
Auto = Literal["auto"]
"""Leaves an option to the model."""

_HEADS_OF_MODE: dict[Mode, tuple[HeadName, ...]] = {
    "hybrid": ("dense", "sparse"),
    "dense": ("dense",),
    "sparse": ("sparse",),
}
_ADVICE_FOR_MISSING_HEAD: dict[HeadName, str] = {
    "dense": "which this mode needs; choose a model that does",
    "sparse": "which this mode needs; search with mode='dense', or set a sparse_model for it",
    "colbert": "which rerank='colbert' needs; leave rerank out, or choose bge-m3",
}
_NUMBER_OPERATORS = (FilterOperator.GT, FilterOperator.GTE, FilterOperator.LT, FilterOperator.LTE)
_LIST_OPERATORS = (FilterOperator.IN, FilterOperator.NIN)


def choose_fusion(own: Fusion, *, candidates: object, rrf_k: object, weights: object) -> Fusion:
    """Return how a retriever fuses: as its options say, or as the model's own fusion does.

    A caller who gives weights gets plain RRF with them: the model's own k and depth were chosen
    for its own weights.

    Args:
        own: The model's own.
        candidates: Depth of each ranking, or "auto".
        rrf_k: RRF's damping, or "auto".
        weights: Weights of the dense and the sparse ranking; "auto" takes the model's own.

    Raises:
        InputError: If an option is out of range; the message names the first.
    """
    fusion = own
    if not is_auto(weights):
        given_weights = require_weights(weights, of="dense and sparse")
        fusion = Fusion(weights=given_weights, source="given by the caller")
    if not is_auto(candidates):
        depth = require_whole_number("candidates", candidates)
        fusion = dataclasses.replace(fusion, candidates=depth)
    if not is_auto(rrf_k):
        k = require_whole_number("rrf_k", rrf_k, least=0)
        fusion = dataclasses.replace(fusion, k=k)
    return fusion


def is_auto(value: object) -> TypeGuard[Auto]:
    """Tell whether an option is left to the model; an array compared with a text is not."""
    return isinstance(value, str) and value == "auto"


def check_mode(mode: str, rerank: str | None) -> None:
    """Reject an unknown mode or an unknown way to rerank.

    Raises:
        InputError: If one is unknown; the message names the known ones.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
    if rerank not in (None, "colbert"):
        raise InputError(f"rerank must be 'colbert' or None, not {rerank!r}")


def check_store(store: object) -> None:
    """Reject anything but a QdrantVectorStore.

    Raises:
        InputError: If it is something else.
    """
    if not isinstance(store, QdrantVectorStore):
        raise InputError(f"vector_store must be a QdrantVectorStore, not {type(store).__name__}")


def check_heads(embedder: TextEmbedder, mode: Mode, rerank: Literal["colbert"] | None) -> None:
    """Reject an embedder that lacks a type of vector that the mode or the reranking needs.

    Raises:
        InputError: If it lacks one; the message says what to do instead.
    """
    needed_heads: list[HeadName] = [*_HEADS_OF_MODE[mode]]
    if rerank is not None:
        needed_heads.append(rerank)
    for head in needed_heads:
        if head not in embedder.heads:
            raise InputError(
                f"{embedder.model_name!r} gives {' and '.join(embedder.heads)} vectors, no {head} "
                f"ones, {_ADVICE_FOR_MISSING_HEAD[head]}"
            )


def translate_filters(
    store: QdrantVectorStore, filters: MetadataFilters | None
) -> qm.Filter | None:
    """Translate LlamaIndex's metadata filters into Qdrant's.

    The store's own translation does the work. Conditions whose translation would not mean what
    they say are rejected first.

    Args:
        store: The store that will be searched.
        filters: The filters; None filters nothing.

    Raises:
        InputError: If a filter cannot be translated. `index` is its position within its group.
    """
    if filters is None:
        return None
    _check_filters(filters)
    try:
        # The method is private, but it is the translation that the store's own queries use. The
        # tests of filters run every operator through it.
        translated: qm.Filter | None = store._build_query_filter(VectorStoreQuery(filters=filters))
    except (NotImplementedError, ValueError, TypeError) as error:
        raise InputError(
            f"the filter {filters} cannot be translated for Qdrant: {error}"
        ) from error
    return translated


def _check_filters(filters: MetadataFilters) -> None:
    """Reject a group of filters, nested ones included, of which the store would drop a part."""
    if not isinstance(filters, MetadataFilters):
        raise InputError(f"filters must be MetadataFilters, not {type(filters).__name__}")
    if filters.condition is None:
        # The store would build a filter without conditions, which every point matches.
        raise InputError(
            "filters need a condition (and, or, not); without one Qdrant would apply none of them"
        )
    for index, condition in enumerate(filters.filters):
        if isinstance(condition, MetadataFilters):
            _check_filters(condition)
            continue
        problem = _problem_of(condition)
        if problem is not None:
            operator = condition.operator.value
            raise InputError(f"operator {operator!r} on {condition.key!r} {problem}", index=index)


def _problem_of(condition: MetadataFilter) -> str | None:
    """Return why a condition's value does not suit its operator, or None if it does."""
    operator, value = condition.operator, condition.value
    if value is None and operator != FilterOperator.IS_EMPTY:
        return "needs a value; for fields without one use IS_EMPTY"
    if operator in _NUMBER_OPERATORS and not isinstance(value, int | float):
        return f"compares numbers, got {value!r}"
    if operator in _LIST_OPERATORS and not isinstance(value, list | str):
        return f"needs a list of values, got {value!r}"
    return None
