"""A retriever over an alias that may be switched to a collection of another model at any time.

What lives here: asking the version that the alias names. What does not: which that is (`versions`),
the search itself (`retrievers.hybrid`), and the switch (`cutover`).
"""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.layouts import PayloadReader
from unified_embeddings.migration.versions import (
    IndexVersion,
    ReadingStore,
    choose_embedder,
    version_of,
)
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.aliases import resolve_name
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, make_thread_safe
from unified_embeddings.stores.schema import sparse_vectors
from unified_embeddings.validation import is_weight

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from unified_embeddings.llama.stock_arguments import RetrieverOptions


@dataclass(frozen=True)
class _OpenVersion:
    """A version that is being asked.

    Attributes:
        version: The collection and its model.
        retriever: Searches that collection, by its own name, with questions of that model.
        checked: When its record was read, on the monotonic clock.
    """

    version: IndexVersion
    retriever: UnifiedHybridRetriever
    checked: float


class VersionedRetriever(BaseRetriever):
    """Retrieve from whatever collection an alias names, always with that collection's own model.

    For each question the alias is resolved to a collection, that collection's record names its
    model, the question is embedded with this model, and the collection is searched by its own name.
    A switch in between changes nothing for the questions under way: they are answered by the former
    collection. If that was deleted meanwhile, the alias is resolved again and the question asked
    once more.

    Resolving is one small request to Qdrant for each question, so a switch is seen by the next one.
    The record of a collection does not change, so it is read again only after `check_seconds`: that
    notices a collection that was deleted and made anew under the same name with another model,
    which nothing in this package does.

    Args:
        client: Client of the place. One in local mode is made thread-safe.
        name: The alias, or a collection's own name.
        embedders: The models of the collections that the alias may name: the old and the new one.
            A model is loaded by its first question.
        known: A collection's own name → the embedder that made it, for collections that do not
            record their model. It need not be among the `embedders`.
        readers: A collection's own name → the reader of its payloads, if LlamaIndex did not write
            them.
        check_seconds: How long a collection's record is taken to be the same; 0 reads it for each
            question.
        **options: Those of `UnifiedHybridRetriever`. Without a `mode` each collection is searched
            by all vectors that it and its model have.

    Raises:
        InputError: If an option is out of range.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from qdrant_client import QdrantClient
        >>> from qdrant_client import models as qm
        >>> from unified_embeddings import UnifiedTextEmbedding
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.llama.vector_store import build_vector_store
        >>> from unified_embeddings.migration.versioned_retriever import VersionedRetriever
        >>> client, embedder = QdrantClient(":memory:"), FakeEmbedder()
        >>> store = build_vector_store(embedder, "docs-1", client=client)
        >>> _ = store.add(UnifiedTextEmbedding(embedder)([TextNode(text="Foxes jump.")]))
        >>> alias = qm.CreateAlias(collection_name="docs-1", alias_name="docs")
        >>> client.update_collection_aliases([qm.CreateAliasOperation(create_alias=alias)])
        True
        >>> retriever = VersionedRetriever(client, "docs", [embedder])
        >>> retriever.retrieve("Which foxes jump?")[0].text, retriever.version().collection
        ('Foxes jump.', 'docs-1')
    """

    def __init__(
        self,
        client: Client,
        name: str,
        embedders: Sequence[TextEmbedder],
        *,
        known: Mapping[str, TextEmbedder] | None = None,
        readers: Mapping[str, PayloadReader] | None = None,
        check_seconds: float = 1.0,
        **options: Unpack[RetrieverOptions],
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"name must be an alias or a collection's name, got {name!r}")
        if isinstance(embedders, TextEmbedder):
            raise InputError(
                "embedders must be a list, the old model's embedder and the new one's; for one "
                "embedder write [embedder]"
            )
        if not is_weight(check_seconds):
            raise InputError(f"check_seconds must be a number >= 0, got {check_seconds!r}")
        self._client = make_thread_safe(client)
        self._name = name
        self._known = dict(known or {})
        self._embedders = [*embedders, *self._known.values()]
        self._readers = dict(readers or {})
        self._check_seconds = check_seconds
        self._options = options.copy()
        self._open_versions: dict[str, _OpenVersion] = {}
        self._opening = threading.Lock()
        super().__init__(callback_manager=options.get("callback_manager"))

    def __deepcopy__(self, memo: dict[int, object]) -> VersionedRetriever:
        """Return a copy over the same client and embedders, which can be shared but not copied."""
        return copy.copy(self)

    def version(self) -> IndexVersion:
        """Return the version that answers now.

        Raises:
            StoreError: Like `retrieve`.
        """
        return self._open().version

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        opened = self._open()
        try:
            return opened.retriever._retrieve(query_bundle)
        except StoreError:
            if not self._is_gone(opened):
                raise
        return self._open().retriever._retrieve(query_bundle)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # Opening may wait for another thread, and may resolve a model's files.
        opened = await asyncio.to_thread(self._open)
        try:
            return await opened.retriever._aretrieve(query_bundle)
        except StoreError:
            if not await asyncio.to_thread(self._is_gone, opened):
                raise
        opened = await asyncio.to_thread(self._open)
        return await opened.retriever._aretrieve(query_bundle)

    def _is_gone(self, opened: _OpenVersion) -> bool:
        """Tell whether a version's collection was deleted; if so, it is forgotten."""
        collection = opened.version.collection
        with store_errors(collection, "looking the collection up"):
            if self._client.collection_exists(collection):
                return False
        self._open_versions.pop(collection, None)
        return True

    def _open(self) -> _OpenVersion:
        """Return the version that the alias names now, ready to be asked."""
        try:
            return self._open_named()
        except StoreError as error:
            # The collection may have been deleted after the alias was resolved.
            collection = error.collection
            with store_errors(self._name, "looking the collection up"):
                if self._client.collection_exists(collection):
                    raise
            self._open_versions.pop(collection, None)
        return self._open_named()

    def _open_named(self) -> _OpenVersion:
        collection = resolve_name(self._client, self._name)
        opened = self._open_versions.get(collection)
        if opened is not None and time.monotonic() - opened.checked < self._check_seconds:
            return opened
        with self._opening:
            now = time.monotonic()
            with store_errors(collection, "reading the collection's settings"):
                info = self._client.get_collection(collection)
            version = version_of(collection, info, self._known)
            opened = self._open_versions.get(collection)
            if opened is not None and opened.version == version:
                opened = _OpenVersion(version, opened.retriever, now)
            else:
                opened = _OpenVersion(version, self._make_retriever(version, info), now)
            self._open_versions[collection] = opened
        return opened

    def _make_retriever(
        self, version: IndexVersion, info: qm.CollectionInfo
    ) -> UnifiedHybridRetriever:
        embedder = choose_embedder(version, self._embedders)
        collection = version.collection
        with store_errors(collection, "opening"):
            store = ReadingStore(self._client, collection, info, self._readers.get(collection))
        options = self._options.copy()
        if options.get("mode") is None:
            has_sparse = store.sparse_vector_name in sparse_vectors(info)
            options["mode"] = "hybrid" if has_sparse and "sparse" in embedder.heads else "dense"
        if collection in self._known:
            options["adopt"] = "trust"
        # The events of a search belong to this retriever's trace.
        options["callback_manager"] = self.callback_manager
        return UnifiedHybridRetriever(
            store,
            embedder,
            **options,  # type: ignore[arg-type]  # the mode is no longer None
        )
