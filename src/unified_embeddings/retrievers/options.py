"""Checks of a retriever's options, made while it is being constructed.

What lives here: the ranges of the options, and which vectors each mode needs. What does not:
metadata filters (`llama.filters`), and anything that sends a request or runs a model.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeGuard, get_args

from llama_index.core.callbacks import CallbackManager
from llama_index.vector_stores.qdrant import QdrantVectorStore

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
