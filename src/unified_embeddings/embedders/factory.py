"""Making the embedder of a choice: one model, or two beside each other."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping
from typing import Any, Literal

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
from unified_embeddings.embedders.bm25 import Bm25Embedder
from unified_embeddings.embedders.lazy import make_cache
from unified_embeddings.embedders.paired import PairedEmbedder
from unified_embeddings.embedders.single_model import ModelEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.models.catalogue import spec_for, spec_from_dict
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.types import HEAD_NAMES

_OPTION_NAMES = tuple(inspect.signature(ModelEmbedder).parameters)[1:]
_FIRST_MODELS_ONLY = ("revision", "engine")
"""Options that a second model beside the first does not share."""


def make_embedder(
    model: str | os.PathLike[str] | ModelSpec = "bge-m3",
    *,
    sparse_model: str | os.PathLike[str] | ModelSpec | Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
    cache: EmbeddingCache | Literal["auto"] | None = "auto",
    **options: Any,
) -> TextEmbedder:
    """Make the embedder of a choice: one model, or two where the choice or `sparse_model` says so.

    Args:
        model: As BGE_M3_Embedder's model_name; also "bge-large-splade", which is two models.
        sparse_model: Gives the sparse vectors in the model's stead: a model, or "bm25".
        spec: The model's spec in plain values, as an embedder's `options` hold it.
        cache: Shared by both.
        **options: As in BGE_M3_Embedder; `revision` and `engine` are the first model's. With `url`,
            as in RemoteEmbedder, whose service has to have the model named. BM25 has none: it cuts
            no text and runs on no device.

    Raises:
        InputError: If an option is unknown or out of range, or a model does not give what it is
            taken for.
        MissingExtraError: If BM25's stemming library is not installed.
    """
    if "url" in options:
        if sparse_model is not None or spec is not None or isinstance(model, ModelSpec):
            raise InputError("with url the service has the model: leave spec and sparse_model out")
        return _make_remote(os.fspath(model), {**options, "cache": cache})
    _require_known(model, options)
    if spec is not None:
        model = spec_from_dict(spec)
    chosen = spec_for(model)
    second = chosen.sparse_model if sparse_model is None else sparse_model
    if second is None:
        if chosen.pooling == "bm25":
            return _make_bm25(chosen, cache)
        kind = BGE_M3_Embedder if chosen.heads == HEAD_NAMES else ModelEmbedder
        return kind(model, cache=cache, **options)
    if isinstance(second, Mapping):
        second = spec_from_dict(second)
    cache = make_cache(cache)
    first = dataclasses.replace(chosen, sparse_model=None)
    shared = {name: value for name, value in options.items() if name not in _FIRST_MODELS_ONLY}
    dense = ModelEmbedder(first, cache=cache, **options)
    second_spec = spec_for(second)
    sparse: TextEmbedder
    if second_spec.pooling == "bm25":
        sparse = _make_bm25(second_spec, cache)
    else:
        sparse = ModelEmbedder(second, cache=cache, **shared)
    pair_options = {name: value for name, value in dense.options.items() if name != "spec"}
    if isinstance(second, ModelSpec):
        pair_options["sparse_model"] = second.to_dict()
    else:
        pair_options["sparse_model"] = os.fspath(second)
    name = chosen.choice
    if isinstance(model, ModelSpec):
        pair_options["spec"] = chosen.to_dict()
    else:
        name = os.fspath(model)
    # The fusion of a model with sparse vectors of its own says nothing about another model's.
    own_fusion = None if "sparse" in chosen.heads else chosen.fusion
    fusion = own_fusion or second_spec.fusion
    # A calibration holds for both vectors together, so for no other sparse model than its spec's.
    calibration = chosen.calibration if second == chosen.sparse_model else None
    return PairedEmbedder(
        dense,
        sparse,
        model_name=name,
        options=pair_options,
        fusion=fusion,
        calibration=calibration,
    )


def _make_bm25(spec: ModelSpec, cache: EmbeddingCache | Literal["auto"] | None) -> Bm25Embedder:
    """Make BM25 by its spec, which may be one of the user's own.

    Raises:
        InputError: If the spec asks for what BM25 does not have.
    """
    if spec.query_prefix or spec.document_prefix:
        raise InputError(
            f"{spec.choice!r} counts a text's own words; leave its query_prefix and "
            "document_prefix out"
        )
    return Bm25Embedder(spec.model_id, cache=cache)


def _make_remote(model: str, options: Mapping[str, Any]) -> TextEmbedder:
    """Make the embedder of a service that has a model of this name."""
    from unified_embeddings.embedders.remote import RemoteEmbedder

    known = set(inspect.signature(RemoteEmbedder).parameters) - {"model"}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise InputError(
            f"with url there is no {', '.join(unknown)}: the service has the model. The options "
            f"are {', '.join(sorted(known))}"
        )
    return RemoteEmbedder(model=model, **options)


def _require_known(model: str | os.PathLike[str] | ModelSpec, options: Mapping[str, Any]) -> None:
    """Refuse options that belong to other embedders, as in what `to_dict` stored of one."""
    unknown = sorted(options.keys() - set(_OPTION_NAMES))
    if unknown:
        raise InputError(
            f"{model!r} cannot be made with {', '.join(unknown)}; the options are sparse_model, "
            f"spec and {', '.join(_OPTION_NAMES)}. Where these were stored from an embedder that "
            "is none of make_embedder's (a FakeEmbedder, a ClipTextEmbedder), give the embedder "
            "itself instead"
        )
