"""A QdrantVectorStore that knows its model, means what its filters say, and works in every loop.

What lives here: adding nodes, searching, clearing, and copies of a store. What does not: reading
and deleting stored nodes (`stored_nodes`), opening a store (`vector_store`), what a filter means
(`filters`), what a node becomes (`payloads`).
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.pooling import PooledRows
from unified_embeddings.errors import FingerprintMismatchError, InputError, StoreError
from unified_embeddings.llama.hybrid_search import HybridSearch
from unified_embeddings.llama.known_keys import warn_of_unknown_keys
from unified_embeddings.llama.node_points import PointLayout, SecondPass, build_batches
from unified_embeddings.llama.queries import (
    CheckedQuery,
    build_query_filter,
    check_query,
    to_result,
)
from unified_embeddings.llama.sparse_functions import sparse_options
from unified_embeddings.llama.stock_arguments import Adopt
from unified_embeddings.llama.stored_layout import LLAMA_INDEX_LAYOUT, StoredLayout
from unified_embeddings.llama.stored_nodes import StoredNodes
from unified_embeddings.search.plan import SearchPlan
from unified_embeddings.stores.asynchronous import in_search_thread
from unified_embeddings.stores.clearing import clear_collection
from unified_embeddings.stores.creating import CollectionParts
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import SPARSE_VECTOR, VectorNames
from unified_embeddings.stores.stored_colbert import StoredColbert
from unified_embeddings.validation import check_is_list

_LOG = logging.getLogger(__name__)

_NO_PARTS = CollectionParts()


class FingerprintedStore(StoredNodes):
    """A QdrantVectorStore whose collection keeps its fingerprint, even after it was cleared.

    Filters mean what `llama.filters` says, in queries, in `get_nodes` and in deletions alike.
    Errors of the client are raised as StoreErrors. A copy shares the clients. A pickled store opens
    its place again.

    Args:
        embedder: The embedder that the collection was opened for.
        collection: The collection's name.
        client: Sync client of its place.
        aclient: Async client of the same place.
        make_collection: Creates the collection, or checks the one that exists.
        reopen: Opens the store again, for a pickled copy; None if only the caller's client can.
        names: The names of the vectors that are searched and written.
        layout: How nodes are written, and payloads understood.
        adopt: How the collection was opened; a retriever over the store takes it over.
        parts: What the collection holds beside these vectors.
        **options: The stock store's own.
    """

    _embedder: TextEmbedder = PrivateAttr()
    _make_collection: Callable[[], object] = PrivateAttr()
    _reopen: Callable[[], FingerprintedStore] | None = PrivateAttr()
    _adopt: Adopt | None = PrivateAttr()
    _names: VectorNames = PrivateAttr()
    _stored_colbert: StoredColbert | None = PrivateAttr()
    _keywords: TextEmbedder | None = PrivateAttr()
    _pooled_rows: PooledRows | None = PrivateAttr()
    _second_pass: SecondPass = PrivateAttr(default_factory=SecondPass)
    _search: HybridSearch = PrivateAttr()
    _has_own_fusion: bool = PrivateAttr()

    def __init__(
        self,
        embedder: TextEmbedder,
        collection: str,
        *,
        client: Client,
        aclient: AsyncQdrantClient,
        make_collection: Callable[[], object],
        names: VectorNames,
        layout: StoredLayout = LLAMA_INDEX_LAYOUT,
        reopen: Callable[[], FingerprintedStore] | None = None,
        adopt: Adopt | None = None,
        parts: CollectionParts = _NO_PARTS,
        **options: Any,
    ) -> None:
        super().__init__(
            layout=layout,
            collection_name=collection,
            client=cast("QdrantClient", client),  # both have the methods that the stock store calls
            aclient=aclient,
            **sparse_options(embedder, names.sparse),
            **options,
        )
        # Set again, as the stock store has views of its own on an existing collection's names.
        self.dense_vector_name = names.dense
        self.sparse_vector_name = names.sparse or SPARSE_VECTOR
        self._embedder = embedder
        self._make_collection = make_collection
        self._reopen = reopen
        self._adopt = adopt
        self._names = names
        self._keywords = parts.keywords
        self._search = self._make_search()
        self._has_own_fusion = options.get("hybrid_fusion_fn") is not None
        self._stored_colbert = parts.colbert
        if parts.colbert is not None and "colbert" not in embedder.heads:
            self._stored_colbert = None
            _LOG.warning(
                "Collection %r holds ColBERT vectors, and %r gives none: nodes added here hold "
                "none. Add them with a model that does: unified-embeddings add-vectors %s %s",
                collection,
                embedder.model_name,
                shlex.quote(collection),
                parts.colbert.flags,
            )
        # As long as this is held, the pass that gives nodes their embeddings pools rows as well.
        self._pooled_rows = None
        if self._stored_colbert is not None:
            self._pooled_rows = embedder.want_pooled(self._stored_colbert.pool)

    def _make_search(self) -> HybridSearch:
        # Through a proxy: in a cycle of references, a store that is no longer used would keep its
        # folder open until Python looks for cycles.
        return HybridSearch(
            weakref.proxy(self),
            self._embedder,
            adopt=self._adopt,
            why_no_sparse=self._names.why_no_sparse,
        )

    @property
    def vector_names(self) -> VectorNames:
        """The names of the vectors that are searched and written."""
        return self._names

    @property
    def stored_colbert(self) -> StoredColbert | None:
        """How points hold ColBERT vectors; None if they hold none."""
        return self._stored_colbert

    @property
    def adopt(self) -> Adopt | None:
        """How a collection that does not record its model is treated."""
        return self._adopt

    @property
    def keywords(self) -> TextEmbedder | None:
        """What counts words for the collection's keyword list; None if it has none."""
        return self._keywords

    def check_model(self, fingerprint: str, model_name: str) -> None:
        """Reject another model than the one that the collection was opened for.

        Args:
            fingerprint: The fingerprint of the model that is about to write or search.
            model_name: Its name, for the message.

        Raises:
            FingerprintMismatchError: If the fingerprints differ.
        """
        if fingerprint != self._embedder.fingerprint:
            raise FingerprintMismatchError(
                self.collection_name,
                expected=fingerprint,
                found=self._embedder.fingerprint,
                model=model_name,
                found_model=self._embedder.model_name,
            )

    # --- adding ---------------------------------------------------------------------------------

    def add(
        self,
        nodes: Sequence[BaseNode],
        shard_identifier: object = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> list[str]:
        """Store nodes that have embeddings, and return their ids.

        Args:
            nodes: The nodes; a node with an id that is stored already replaces it.
            shard_identifier: Ignored, as there is no custom sharding.
            **kwargs: Ignored, as in the stock store.

        Raises:
            InputError: If a node has no embedding, or metadata that is not JSON: the message names
                node and key. Nothing is stored then.
            StoreError: If Qdrant rejects them.
        """
        nodes = _to_list(nodes)
        for points in self._build_batches(nodes, self.sparse_vector_name):
            with store_errors(self.collection_name, "adding nodes"):
                self._client.upload_points(
                    self.collection_name,
                    points,
                    batch_size=self.batch_size,
                    parallel=self.parallel,
                    max_retries=self.max_retries,
                    wait=True,
                )
        return [node.node_id for node in nodes]

    async def async_add(
        self,
        nodes: Sequence[BaseNode],
        shard_identifier: object = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> list[str]:
        """Like `add`, but without blocking the event loop."""
        nodes = _to_list(nodes)
        batches = self._build_batches(nodes, self.sparse_vector_name)
        while points := await self._embedder.in_thread(partial(next, batches, None)):
            for start in range(0, len(points), self.batch_size):
                await self._upsert(points[start : start + self.batch_size])
        return [node.node_id for node in nodes]

    async def _upsert(self, points: list[qm.PointStruct]) -> None:
        for attempt in range(1, self.max_retries + 1):
            try:
                with store_errors(self.collection_name, "adding nodes"):
                    await self._aclient.upsert(self.collection_name, points)
            except StoreError:
                if attempt == self.max_retries:
                    raise
            else:
                return

    def _build_points(
        self, nodes: list[BaseNode], sparse_vector_name: str
    ) -> tuple[list[qm.PointStruct], list[str]]:
        points: list[qm.PointStruct] = []
        for batch in self._build_batches(nodes, sparse_vector_name):
            points += batch
        return points, [node.node_id for node in nodes]

    def _build_batches(
        self, nodes: list[BaseNode], sparse_vector_name: str
    ) -> Iterator[list[qm.PointStruct]]:
        layout = PointLayout(
            dense_name=self.dense_vector_name,
            sparse_name=sparse_vector_name,
            sparse_function=self._sparse_doc_fn if self.enable_hybrid else None,
            colbert=self._stored_colbert,
            keywords=self._keywords,
            payloads=self._layout,
            second_pass=self._second_pass,
        )
        return build_batches(nodes, self._embedder, layout, self.batch_size)

    # --- finding --------------------------------------------------------------------------------

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search, as LlamaIndex's own retrievers do; `llama.queries` says what each mode means.

        The collection's settings are looked up once, at the first query: its own fusion and
        calibration among them. Where nothing is found, filters on keys that no passage has are
        logged, once for each key.

        Args:
            query: The query.
            **kwargs: `qdrant_filters` (a filter of Qdrant's, in place of the query's own),
                `search_params` and `shard_identifier`, as in the stock store, `mmr_threshold`, as
                in LlamaIndex's SimpleVectorStore, and `score`, as in UnifiedHybridRetriever.

        Raises:
            InputError: If the query lacks what its mode searches by, has a number out of range, or
                a filter that cannot be translated with its meaning, or an argument is another.
            FingerprintMismatchError: If another model's collection has taken its place since it was
                opened; that is looked up once, at the first query.
            StoreError: If Qdrant fails, or the collection does not exist.
        """
        checked = check_query(query, self._embedder, kwargs, self.fields)
        if self._is_fused_by_caller(checked):
            with store_errors(self.collection_name, "querying"):
                return super().query(checked.query, **kwargs)
        self._search.collection.check(checked.mode)
        plan = self._plan(checked, kwargs)
        answer = self._search.search(checked.embed(self._embedder), plan)
        if not answer.nodes:
            warn_of_unknown_keys(self, query.filters)
        return to_result(answer)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Like `query`, but without blocking the event loop."""
        checked = check_query(query, self._embedder, kwargs, self.fields)
        if self._is_fused_by_caller(checked):  # the stock method runs the model in the event loop
            return await self._embedder.in_thread(partial(self.query, query, **kwargs))
        if self._search.reader.runs_in_process and not checked.runs_model:
            return await in_search_thread(partial(self.query, query, **kwargs))
        await self._search.collection.acheck(checked.mode)
        plan = self._plan(checked, kwargs)
        vectors = await self._embedder.in_thread(partial(checked.embed, self._embedder))
        answer = await self._search.asearch(vectors, plan)
        if not answer.nodes:
            await asyncio.to_thread(warn_of_unknown_keys, self, query.filters)
        return to_result(answer)

    def _plan(self, checked: CheckedQuery, options: Mapping[str, Any]) -> SearchPlan:
        """Return what a query is to find; the collection has been looked up."""
        shard = options.get("shard_identifier")
        shard_key = None if shard is None else self._generate_shard_key_selector(shard)
        fusion = checked.choose_fusion(self._embedder.fusion, self._search.collection.read_choice())
        calibration = None
        if checked.mode == "hybrid":
            calibration = self._search.collection.find_calibration(checked.score, fusion)
        return checked.plan(fusion, calibration, shard_key)

    def _is_fused_by_caller(self, checked: CheckedQuery) -> bool:
        """Tell whether a function of the caller's fuses the lists, as in the stock store.

        Raises:
            InputError: If relevance is asked for, which is calibrated on this package's fusion.
        """
        if not self._has_own_fusion or checked.query.mode != VectorStoreQueryMode.HYBRID:
            return False
        if checked.score == "relevance":
            raise InputError(
                "score='relevance' is calibrated on this package's fusion, and the store has a "
                "hybrid_fusion_fn; leave one of the two out"
            )
        return True

    def _build_query_filter(self, query: VectorStoreQuery) -> qm.Filter | None:
        return build_query_filter(query, self.fields)  # the stock method asks for it

    # --- clearing -------------------------------------------------------------------------------

    def clear(self) -> None:
        """Delete all nodes. The empty collection keeps its settings and the model's record.

        Raises:
            StoreError: If Qdrant fails.
        """
        client = cast("Client", self._client)
        with store_errors(self.collection_name, "clearing"):
            if client.collection_exists(self.collection_name):
                clear_collection(client, self.collection_name)
        self._make_collection()  # creates it if it was gone

    async def aclear(self) -> None:
        """Like `clear`, but without blocking the event loop."""
        await asyncio.to_thread(self.clear)

    # --- copies ---------------------------------------------------------------------------------

    def __copy__(self) -> FingerprintedStore:
        """Return a copy with the same clients."""
        store = super().__copy__()
        store._search = store._make_search()
        return store

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> FingerprintedStore:
        """Return a copy with the same clients, which can be shared but not copied."""
        return self.__copy__()

    def __reduce__(self) -> tuple[Callable[[], FingerprintedStore], tuple[()]]:
        """Pickle the place and the model.

        Raises:
            InputError: If the store was made over a client, which cannot be pickled.
        """
        if self._reopen is None:
            raise InputError(
                f"the store of collection {self.collection_name!r} is over a client of yours, "
                "which cannot be pickled; open it with path= or url="
            )
        return self._reopen, ()


def _to_list(nodes: Sequence[BaseNode]) -> list[BaseNode]:
    check_is_list(nodes, "nodes")
    return list(nodes)
