"""Arguments of LlamaIndex's own stores and retrievers, and what replaces them here.

What lives here: which options a store takes, and the advice for arguments that people paste from
code written for the stock classes. What does not: LlamaIndex and Qdrant are not imported, so that
`config` can describe its methods without loading them.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypedDict, TypeVar

from unified_embeddings.errors import InputError

if TYPE_CHECKING:
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.vector_stores.types import MetadataFilters
    from qdrant_client import AsyncQdrantClient
    from qdrant_client import models as qm

    from unified_embeddings.models.fusion import Fusion
    from unified_embeddings.stores.opening import Client
    from unified_embeddings.stores.stored_colbert import ColbertName, StoredColbert

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

Adopt: TypeAlias = Literal["trust"]
"""How to treat a collection that does not record which model made it: as made with this model."""


class CollectionOptions(TypedDict, total=False):
    """Qdrant's settings of a new collection, by the names of its `create_collection`."""

    shard_number: int | None
    sharding_method: qm.ShardingMethod | None
    replication_factor: int | None
    write_consistency_factor: int | None
    on_disk_payload: bool | None
    hnsw_config: qm.HnswConfigDiff | None
    optimizers_config: qm.OptimizersConfigDiff | None
    wal_config: qm.WalConfigDiff | None
    quantization_config: qm.QuantizationConfig | None
    strict_mode_config: qm.StrictModeConfig | None
    timeout: int | None


class WritingOptions(TypedDict, total=False):
    """Options of LlamaIndex's store that mean here what they mean there."""

    batch_size: int
    parallel: int
    max_retries: int
    payload_indexes: Sequence[Mapping[str, Any]] | None
    hybrid_fusion_fn: Callable[..., Any] | None


class NamingOptions(TypedDict, total=False):
    """What an existing collection's vectors and fields are called; found out unless given."""

    dense_vector_name: str | None
    """Name of its dense vectors, "" for unnamed ones."""
    sparse_vector_name: str | None
    """Name of its sparse vectors, which this model made; only this name searches others'."""
    text_key: str | None
    """Key of the text in a payload that holds no node of LlamaIndex's."""
    metadata_key: str | None
    """Key of the metadata beside that text; None if they are at the top."""


class PlaceOptions(TypedDict, total=False):
    """Where a store's collection is; see `llama.vector_store`."""

    url: str | None
    path: str | os.PathLike[str] | None
    client: Client | None
    aclient: AsyncQdrantClient | None
    api_key: str | None
    adopt: Adopt | None
    keywords: str | None


class StoreOptions(CollectionOptions, WritingOptions, NamingOptions, total=False):
    """Options of `vector_store` besides the place."""

    colbert: StoredColbert | ColbertName | None
    """Whether points hold ColBERT vectors too, so that reranking encodes nothing: "pooled", "full"
    or a StoredColbert. None does as an existing collection does, and holds none in a new one."""

    client_kwargs: Mapping[str, Any] | None
    """More arguments for the QdrantClient that is made for `url`: timeout, prefer_grpc, ..."""
    enable_hybrid: bool | None
    """Must be what model and collection give; one with the model's sparse vectors is hybrid."""
    index_doc_id: bool | None
    """Must be True: every collection of ours has this index."""


class PlacedStoreOptions(PlaceOptions, StoreOptions, total=False):
    """All options of `vector_store`."""


class CommonRetrieverOptions(TypedDict, total=False):
    """Options that both retrievers take and mean alike."""

    similarity_top_k: int
    rrf_k: int | Literal["auto"]
    mode: Literal["hybrid", "dense", "sparse"] | None
    rerank: Literal["colbert"] | None
    filters: MetadataFilters | None
    adopt: Adopt | None
    callback_manager: CallbackManager | None


class RetrieverOptions(CommonRetrieverOptions, total=False):
    """Options of `UnifiedHybridRetriever`, which has the defaults."""

    candidates: int | Literal["auto"]
    weights: tuple[float, ...] | Literal["auto"]
    fusion: Fusion | Literal["auto", "model"]
    score: Literal["rrf", "relevance"]


class MultiModalOptions(CommonRetrieverOptions, total=False):
    """Options of `UnifiedMultiModalRetriever`, which has the defaults."""

    candidates: int
    weights: tuple[float, float]


_FROM_THE_MODEL = "leave it out; the collection's vectors follow from the model"
_SPARSE_MODEL = (
    "leave it out; sparse vectors are the model's own. For a model without them set "
    "UnifiedEmbeddingConfig(sparse_model=...)"
)
_CLIENT = "put it into url=, or into client_kwargs={...} along with url="
_SHARDS = "custom sharding is not supported; create the store without it"

STORE_ADVICE: Mapping[str, str] = {
    "fastembed_sparse_model": _SPARSE_MODEL,
    "sparse_doc_fn": _SPARSE_MODEL,
    "sparse_query_fn": _SPARSE_MODEL,
    "sparse_config": _SPARSE_MODEL,
    "dense_config": f"{_FROM_THE_MODEL}; set hnsw_config= and quantization_config= directly",
    "vectors_config": _FROM_THE_MODEL,
    "sparse_vectors_config": _FROM_THE_MODEL,
    "distance": _FROM_THE_MODEL,
    "metadata": "leave it out; the collection's metadata records the model",
    "collection_name": "it is the first argument",
    "embed_model": "leave it out; the config's own model is used (embedder= in a constructor)",
    "location": 'give client=QdrantClient(":memory:"), path= or url=',
    "host": _CLIENT,
    "port": _CLIENT,
    "grpc_port": _CLIENT,
    "prefer_grpc": _CLIENT,
    "https": _CLIENT,
    "prefix": _CLIENT,
    "shard_keys": _SHARDS,
    "shard_key_selector_fn": _SHARDS,
    "vector_name": "give dense_vector_name=",
    "content_payload_key": "give text_key=",
    "metadata_payload_key": "give metadata_key=",
    "retrieval_mode": "leave it out; a retriever has mode='hybrid', 'dense' or 'sparse'",
    "index": "the collection's name is the first argument",
    "embedding_dim": _FROM_THE_MODEL,
    "use_sparse_embeddings": _SPARSE_MODEL,
}
"""Argument of LlamaIndex's store, Qdrant's client, LangChain's or Haystack's store → what to do."""

RETRIEVER_ADVICE: Mapping[str, str] = {
    "sparse_top_k": "give candidates=, the depth of both rankings",
    "hybrid_top_k": "give similarity_top_k=, the number of nodes returned",
    "top_k": "give similarity_top_k=",
    "k": "give similarity_top_k= for the number of nodes, or rrf_k= for the fusion",
    "alpha": "give weights=(dense, sparse); alpha=0.7 is weights=(0.7, 0.3)",
    "vector_store_query_mode": "give mode='hybrid', 'dense' or 'sparse'",
    "query_mode": "give mode='hybrid', 'dense' or 'sparse'",
    "node_ids": "give filters=, or call the store's get_nodes(node_ids=...)",
    "doc_ids": "give filters= on the key 'doc_id'",
    "embed_model": "leave it out; the config's own model is used (embedder= in a constructor)",
    "vector_store_kwargs": "leave it out; filters= and the retriever's own options replace it",
    "similarity_cutoff": "put a SimilarityPostprocessor behind the retriever",
    "node_postprocessors": "give them to the query engine",
    "reranker": "give rerank='colbert', or a postprocessor to the query engine",
    "verbose": "leave it out; use a callback_manager or LlamaIndex's instrumentation",
}
"""Argument of LlamaIndex's retrievers → what to do instead."""


STORE_DEFAULTS: Mapping[str, object] = {
    "batch_size": 64,
    "parallel": 1,
    "max_retries": 3,
    "index_doc_id": True,
}
"""Defaults of `vector_store` that are not None, for its signature."""

RETRIEVER_DEFAULTS: Mapping[str, object] = {
    "similarity_top_k": 10,
    "rrf_k": "auto",
    "candidates": "auto",
    "weights": "auto",
    "fusion": "auto",
    "score": "rrf",
}
"""Defaults of `retriever` that are not None, for its signature."""

MULTI_MODAL_DEFAULTS: Mapping[str, object] = {
    "similarity_top_k": 10,
    "rrf_k": "auto",
    "candidates": 20,
    "weights": (1.0, 1.0),
}
"""Defaults of `multimodal_retriever` that are not None, for its signature."""


def check_names(given: Iterable[str], known: Iterable[str], advice: Mapping[str, str]) -> None:
    """Refuse arguments that do not exist.

    Args:
        given: The names that the caller passed.
        known: The names that exist.
        advice: Name → what replaces it here.

    Raises:
        InputError: If there is one; the message says what replaces it, or which name is nearest.
    """
    names = sorted(set(known) - {"self"})
    for name in given:
        if name in names:
            continue
        if name in advice:
            raise InputError(f"{name}= is not taken here: {advice[name]}")
        nearest = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {nearest[0]}=?" if nearest else f"possible are {', '.join(names)}"
        raise InputError(f"there is no option {name}=; {hint}")


def refuse_unknown(
    advice: Mapping[str, str],
    options: type | None = None,
    defaults: Mapping[str, object] | None = None,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator that refuses arguments that do not fit with an InputError.

    Args:
        advice: Name of an argument → what replaces it here.
        options: A TypedDict of the function's `**options`. `inspect.signature` then shows each of
            them, as editors and mypy do.
        defaults: The defaults to show for them where they are not None.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        signature = _expand(inspect.signature(function), options, defaults or {})

        @functools.wraps(function)
        def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            check_names(kwargs, signature.parameters, advice)
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise InputError(f"{function.__qualname__}{_shown(signature)}: {error}") from None
            return function(*args, **kwargs)

        checked.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it
        return checked

    return decorate


def _expand(
    signature: inspect.Signature, options: type | None, defaults: Mapping[str, object]
) -> inspect.Signature:
    """Return a signature with the keys of a TypedDict in place of `**options`."""
    if options is None:
        return signature
    parameters = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    for name, annotation in options.__annotations__.items():
        annotation = getattr(annotation, "__forward_arg__", annotation)
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(name),
                annotation=annotation,
            )
        )
    return signature.replace(parameters=parameters)


def _shown(signature: inspect.Signature) -> str:
    """Return how a function is called: its positional arguments, then a few of the others."""
    positional = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and name != "self"
    ]
    return f"({', '.join(positional)}, *, ...)"
