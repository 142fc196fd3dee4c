"""Making the embedder of a choice: one model, or two beside each other."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
from unified_embeddings.embedders.paired import PairedEmbedder
from unified_embeddings.models.catalogue import spec_for
from unified_embeddings.models.spec import ModelSpec


def make_embedder(
    model: str | os.PathLike[str] | ModelSpec = "bge-m3",
    *,
    sparse_model: str | os.PathLike[str] | ModelSpec | Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
    cache: EmbeddingCache | Literal["auto"] | None = "auto",
    **options: Any,
) -> TextEmbedder:
    """The embedder of a choice: one model, or two where the choice or `sparse_model` says so.

    Args:
        model: As BGE_M3_Embedder's model_name; also "bge-large-splade", which is two models.
        sparse_model: Gives the sparse vectors in the model's stead.
        spec: The model's spec in plain values, as an embedder's `options` give it.
        cache: Shared by both.
        **options: As in BGE_M3_Embedder; `revision` and `engine` are the first model's.

    Raises:
        InputError: If an option is out of range, or a model does not give what it is taken for.
    """
    if spec is not None:
        model = ModelSpec.from_dict(spec)
    chosen = spec_for(model)
    beside = chosen.sparse_model if sparse_model is None else sparse_model
    if beside is None:
        return BGE_M3_Embedder(model, cache=cache, **options)
    if isinstance(beside, Mapping):
        beside = ModelSpec.from_dict(beside)
    cache = EmbeddingCache() if cache == "auto" else cache
    dense = BGE_M3_Embedder(dataclasses.replace(chosen, sparse_model=None), cache=cache, **options)
    shared = {name: value for name, value in options.items() if name not in ("revision", "engine")}
    sparse = BGE_M3_Embedder(beside, cache=cache, **shared)
    made_with = {name: value for name, value in dense.options.items() if name != "spec"}
    made_with["sparse_model"] = (
        beside.to_dict() if isinstance(beside, ModelSpec) else os.fspath(beside)
    )
    if isinstance(model, ModelSpec):
        made_with["spec"] = chosen.to_dict()
    name = chosen.choice if isinstance(model, ModelSpec) else os.fspath(model)
    return PairedEmbedder(dense, sparse, model_name=name, options=made_with)
