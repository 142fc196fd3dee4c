"""LlamaIndex's QdrantVectorStore, built so that its sparse vectors are this package's.

What lives here: opening the place asked for. What does not: the store over it
(`fingerprinted_store`), the collection's layout and fingerprint (`stores.schema`), and searching
both vectors at once (`retrievers`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qdrant_client import AsyncQdrantClient, QdrantClient

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.stock_arguments import (
    STORE_ADVICE,
    Adopt,
    CollectionOptions,
    StoreOptions,
    WritingOptions,
    check_names,
)
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, async_view, make_thread_safe, open_folder
from unified_embeddings.stores.schema import check_adopt, ensure_collection
from unified_embeddings.types import Options
from unified_embeddings.validation import require_whole_number

if TYPE_CHECKING:
    from typing_extensions import Unpack


def build_vector_store(
    embedder: TextEmbedder,
    collection: str,
    *,
    url: str | None = None,
    path: str | os.PathLike[str] | None = None,
    client: Client | None = None,
    aclient: AsyncQdrantClient | None = None,
    api_key: str | None = None,
    adopt: Adopt | None = None,
    **options: Unpack[StoreOptions],
) -> FingerprintedStore:
    """Return a QdrantVectorStore for an embedder's vectors.

    The collection is created if it does not exist. Exactly one of `url`, `path` and `client` says
    where it is.

    Args:
        embedder: The embedder whose dense and sparse vectors the store holds.
        collection: The collection's name.
        url: A server's address.
        path: A folder to run Qdrant's core over, in this process (see `EdgeQdrantClient`). The
            folder is shared within the process and locked against others.
        client: A client of your own, a QdrantClient or an EdgeQdrantClient. One in local mode is
            made thread-safe.
        aclient: An async client of your own for the same place, for one event loop. Without it
            coroutines call the sync client in worker threads, which works in any number of loops.
        api_key: For `url`.
        adopt: "trust" accepts a collection that does not record which model made it, as one that
            was made with this model. Nothing checks it.
        **options: Qdrant's settings of a new collection (hnsw_config, quantization_config, ...; for
            a server or a cluster also shard_number, replication_factor, ...), and options of
            LlamaIndex's store that keep their meaning (batch_size, payload_indexes, ...); see
            `StoreOptions`.

    Raises:
        InputError: If not exactly one of url, path and client is given, the name is blank, an
            option does not exist here, or the embedder gives no dense vectors.
        FingerprintMismatchError: If the collection holds another model's vectors.
        StoreError: If Qdrant cannot be reached, rejects the collection, or it does not record its
            model and `adopt` is not given.
    """
    check_names(options, StoreOptions.__annotations__, STORE_ADVICE)
    given = _to_python(options)
    _check_place(url, path, client)
    _check_collection(collection, embedder)
    check_adopt(adopt)
    _check_options(given, embedder, url)
    # Resolves the model's files, so that a model that is missing leaves no folder behind.
    _ = embedder.fingerprint
    reopen = None
    if client is None:
        place = None if path is None else Path(path).expanduser().resolve()
        reopen = partial(
            build_vector_store, embedder, collection, url=url, path=place, api_key=api_key,
            adopt=adopt, **options,
        )  # fmt: skip
    if path is not None:
        client = open_folder(path)
    elif url is not None:
        client = _connect(collection, url, api_key, given.get("client_kwargs", {}))
    assert client is not None
    make_thread_safe(client)
    make_collection = partial(
        ensure_collection, client, collection, embedder, adopt=adopt,
        **_select(given, CollectionOptions),
    )  # fmt: skip
    make_collection()
    with store_errors(collection, "opening"):
        return FingerprintedStore(
            embedder,
            collection,
            client=client,
            aclient=aclient or async_view(client),
            make_collection=make_collection,
            reopen=reopen,
            adopt=adopt,
            **_select(given, WritingOptions),
        )


def _to_python(options: Mapping[str, Any]) -> Options:
    """Return the options that are given, NumPy's numbers as Python's."""
    given: Options = {}
    for name, value in options.items():
        if isinstance(value, np.generic):
            given[name] = value.item()
        elif value is not None:
            given[name] = value
    return given


def _check_place(
    url: str | None, path: str | os.PathLike[str] | None, client: Client | None
) -> None:
    """Reject anything but one place to open."""
    places = [place for place in (url, path, client) if place is not None]
    if len(places) != 1:
        raise InputError("give exactly one of url=, path= and client=")
    if isinstance(client, AsyncQdrantClient):
        raise InputError("client= takes a QdrantClient; give an AsyncQdrantClient as aclient= too")
    if path == ":memory:":
        raise InputError('path= takes a folder; for memory give client=QdrantClient(":memory:")')


def _check_collection(collection: str, embedder: TextEmbedder) -> None:
    """Reject a blank name, and an embedder without the vectors that every collection has."""
    if not isinstance(collection, str) or not collection.strip():
        raise InputError(f"a collection needs a name, got {collection!r}")
    if "dense" not in embedder.heads:
        raise InputError(
            f"{embedder.model_name!r} gives no dense vectors, which a collection needs; set it as "
            "the sparse_model of a dense one"
        )


def _check_options(given: Mapping[str, Any], embedder: TextEmbedder, url: str | None) -> None:
    """Reject options of the stock store that would mean something else here."""
    for name in ("batch_size", "parallel", "max_retries"):
        if name in given:
            require_whole_number(name, given[name])
    if "client_kwargs" in given and url is None:
        raise InputError("client_kwargs= is for the client that is made for url=")
    is_hybrid = "sparse" in embedder.heads
    if bool(given.get("enable_hybrid", is_hybrid)) != is_hybrid:
        if is_hybrid:
            raise InputError(
                "enable_hybrid=False is not possible: the model gives sparse vectors, and the "
                "collection stores them; search with retriever(mode='dense') instead"
            )
        raise InputError(
            f"enable_hybrid=True needs sparse vectors, which {embedder.model_name!r} does not "
            "give; set UnifiedEmbeddingConfig(sparse_model=...)"
        )
    if not given.get("index_doc_id", True):
        raise InputError("index_doc_id=False is not possible: documents are deleted through it")


def _select(given: Mapping[str, Any], kind: type) -> Options:
    """Return those of the options that a TypedDict has."""
    return {name: value for name, value in given.items() if name in kind.__annotations__}


def _connect(
    collection: str, url: str, api_key: str | None, client_options: Mapping[str, Any]
) -> QdrantClient:
    """Return a client of a server.

    The version check at construction would only warn about a server that cannot be reached. The
    first call to it raises.
    """
    with store_errors(collection, f"connecting to {url}"):
        try:
            return QdrantClient(
                url=url, api_key=api_key, **{"check_compatibility": False, **client_options}
            )
        except TypeError as error:
            raise InputError(f"client_kwargs= does not fit QdrantClient: {error}") from error
