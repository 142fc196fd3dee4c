"""Checks of a retriever's options, made while it is being constructed.

What lives here: the ranges of the options, and which vectors each mode needs. What does not:
metadata filters (`llama.filters`), and anything that sends a request or runs a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeGuard, get_args

import numpy as np
from llama_index.core.callbacks import CallbackManager
from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.types import HeadName
from unified_embeddings.validation import is_weight, require_whole_number

Mode = Literal["hybrid", "dense", "sparse"]

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


def check_options(
    *,
    similarity_top_k: int,
    candidates: int,
    rrf_k: int,
    weights: Sequence[float],
    mode: str,
    rerank: str | None,
) -> None:
    """Reject options of the hybrid retriever that are out of range.

    Raises:
        InputError: If one is; the message names the first.
    """
    check_counts(similarity_top_k=similarity_top_k, candidates=candidates, rrf_k=rrf_k)
    if not are_weights(weights):
        raise InputError(
            f"weights must be two numbers >= 0, dense and sparse, not both 0; got {weights!r}"
        )
    if mode not in get_args(Mode):
        raise InputError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
    if rerank not in (None, "colbert"):
        raise InputError(f"rerank must be 'colbert' or None, not {rerank!r}")


def check_counts(*, similarity_top_k: int, candidates: int, rrf_k: int) -> None:
    """Reject counts that are not whole numbers in range.

    Raises:
        InputError: If one is not; the message names the first.
    """
    require_whole_number("similarity_top_k", similarity_top_k, least=1)
    require_whole_number("candidates", candidates, least=1)
    require_whole_number("rrf_k", rrf_k, least=0)


def are_weights(weights: object) -> TypeGuard[Sequence[float]]:
    """Tell whether a value is two finite weights >= 0 that are not both 0; an array may be."""
    if not isinstance(weights, Sequence | np.ndarray) or len(weights) != 2:
        return False
    return all(is_weight(weight) for weight in weights) and sum(weights) > 0


def check_store(store: object) -> None:
    """Reject anything but a QdrantVectorStore.

    Raises:
        InputError: If it is something else.
    """
    if not isinstance(store, QdrantVectorStore):
        raise InputError(f"vector_store must be a QdrantVectorStore, not {type(store).__name__}")


def check_callbacks(callback_manager: object) -> None:
    """Reject anything but LlamaIndex's CallbackManager or None.

    Raises:
        InputError: If it is something else.
    """
    if not isinstance(callback_manager, CallbackManager | None):
        kind = type(callback_manager).__name__
        raise InputError(f"callback_manager must be a CallbackManager, not {kind}")


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
