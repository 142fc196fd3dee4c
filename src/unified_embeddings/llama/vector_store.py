"""LlamaIndex's QdrantVectorStore, built so that its sparse vectors are this package's.

What lives here: opening the place asked for. What does not: the store over it
(`fingerprinted_store`), what an existing collection's vectors and payloads are (`recognition`), its
fingerprint (`stores.schema`), and searching both vectors at once (`retrievers`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdrant_client import AsyncQdrantClient, QdrantClient

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.recognition import GivenNames, recognise_collection
from unified_embeddings.llama.stock_arguments import (
    STORE_ADVICE,
    Adopt,
    CollectionOptions,
    NamingOptions,
    StoreOptions,
    WritingOptions,
    check_names,
)
from unified_embeddings.llama.store_options import (
    check_collection_name,
    check_embedder,
    check_hybrid,
    check_meaning,
    check_place,
    read_options,
    resolve_folder,
    select_options,
)
from unified_embeddings.search.keywords import open_keywords, require_keywords
from unified_embeddings.stores.aliases import resolve_name
from unified_embeddings.stores.creating import CollectionParts, ensure_collection
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import (
    Client,
    async_view,
    discard_unused,
    make_thread_safe,
    missing_folders,
    open_folder,
)
from unified_embeddings.stores.schema import check_adopt, stored_colbert
from unified_embeddings.types import Options

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
    keywords: str | None = None,
    **options: Unpack[StoreOptions],
) -> FingerprintedStore:
    """Return a QdrantVectorStore for an embedder's vectors.

    The collection is created if it does not exist. Exactly one of `url`, `path` and `client` says
    where it is. An alias is resolved once: the store keeps to the collection that it named then,
    whose model was checked, and does not follow when the alias is switched to another one.

    A collection that LlamaIndex's own store, LangChain or Haystack made is opened as it is: the
    names of its vectors, and where its payloads have texts and metadata, are found out where that
    is unambiguous, or given by `dense_vector_name`, `sparse_vector_name`, `text_key` and
    `metadata_key` (see `StoreOptions` and docs/other-software.md).

    Args:
        embedder: The embedder whose dense and sparse vectors the store holds.
        collection: The collection's name, or an alias.
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
        keywords: "bm25", "bm25:german" and so on gives a new collection a keyword list, beside the
            model's own vectors. An existing one must have the same. None takes what it has.
        **options: `colbert`, which has points hold ColBERT vectors too; Qdrant's settings of a new
            collection (hnsw_config, quantization_config, ...; for a server or a cluster also
            shard_number, replication_factor, ...); and options of LlamaIndex's store that keep
            their meaning (batch_size, payload_indexes, ...). See `StoreOptions`. A payload index
            holds values of its own type, and Qdrant answers from it: with one of integers, a
            condition does not see 2.5 in that field.

    Raises:
        InputError: If not exactly one of url, path and client is given, the name is blank, an
            option does not exist here, or the embedder gives no dense vectors.
        FingerprintMismatchError: If the collection holds another model's vectors.
        StoreError: If Qdrant cannot be reached, rejects the collection, or it does not record its
            model and `adopt` is not given, or it has no keyword list or another one than
            `keywords`.
    """
    check_place(url=url, path=path, client=client, aclient=aclient, api_key=api_key)
    given = _check_arguments(embedder, collection, url, adopt, options)
    counter = None if keywords is None else open_keywords(keywords, embedder)
    folder = None if path is None else resolve_folder(path)
    # Resolves the model's files, so that a model that is missing leaves no folder behind.
    _ = embedder.fingerprint
    new_folders = [] if folder is None else missing_folders(folder)
    reopen = None
    if client is None:
        place: Options = {
            "url": url,
            "path": folder,
            "api_key": api_key,
            "adopt": adopt,
            "keywords": keywords,
        }
        reopen = partial(build_vector_store, embedder, collection, **place, **options)
        client = _open_client(collection, url, folder, api_key, given)
    make_thread_safe(client)
    with _discarding_unused(client, new_folders):
        collection = resolve_name(client, collection)
    settings = select_options(given, CollectionOptions)
    with _discarding_unused(client, new_folders):
        given_names = GivenNames(**select_options(given, NamingOptions))
        recognised = recognise_collection(client, collection, embedder, given_names, adopt)
        check_hybrid(given, embedder, recognised.names)
        make_collection = partial(
            ensure_collection,
            client,
            collection,
            embedder,
            names=recognised.names,
            adopt=adopt,
            **settings,
        )
        info = make_collection(parts=CollectionParts(given.get("colbert"), counter))
        parts = CollectionParts(stored_colbert(info), require_keywords(collection, info, counter))
    with store_errors(collection, "opening"):
        return FingerprintedStore(
            embedder,
            collection,
            client=client,
            aclient=aclient or async_view(client),
            make_collection=partial(make_collection, parts=parts),
            parts=parts,
            names=recognised.names,
            layout=recognised.layout,
            reopen=reopen,
            adopt=adopt,
            **select_options(given, WritingOptions),
        )


def _check_arguments(
    embedder: TextEmbedder,
    collection: str,
    url: str | None,
    adopt: Adopt | None,
    options: Mapping[str, Any],
) -> Options:
    """Return the options that are given, and refuse what does not fit before anything is made."""
    check_names(options, StoreOptions.__annotations__, STORE_ADVICE)
    check_collection_name(collection)
    check_embedder(embedder)
    check_adopt(adopt)
    given = read_options(options)
    check_meaning(given, embedder, url)
    return given


@contextmanager
def _discarding_unused(client: Client, new_folders: Sequence[Path]) -> Iterator[None]:
    """Remove the folders that were made for a store again if no collection comes of it."""
    try:
        yield
    except BaseException:
        discard_unused(client, new_folders)
        raise


def _open_client(
    collection: str, url: str | None, folder: Path | None, api_key: str | None, given: Options
) -> Client:
    """Return a client of the server, or else of the folder."""
    if url is not None:
        return _connect(collection, url, api_key, given.get("client_kwargs", {}))
    assert folder is not None
    return open_folder(folder)


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
