"""Reading a store's collection: its settings, and the answers to a batch of queries.

What lives here: the calls to Qdrant, sync and async, and points turned into LlamaIndex's nodes.
What does not: what is asked for, and what the answers mean (`hybrid_search`).
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping, Sequence

from llama_index.core.schema import NodeWithScore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient
from qdrant_client import models as qm

from unified_embeddings.errors import StoreError
from unified_embeddings.llama.layouts import LayoutName, layout_of
from unified_embeddings.llama.sparse_proof import POINTS_READ
from unified_embeddings.stores.aliases import aresolve_name, resolve_name
from unified_embeddings.stores.asynchronous import AsyncView
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, is_in_process, make_thread_safe

_LOOK_UP = "get_collection"
_SEARCH = "query_batch_points"
_FETCH = "retrieve"
_SAMPLE = "scroll"
"""The operations that a StoreError names: qdrant-client's methods."""
_SOFTWARE: Mapping[LayoutName, str] = {"langchain": "LangChain", "haystack": "Haystack"}
"""Layouts in which LlamaIndex's store finds no node → the software's name."""


class CollectionReader:
    """Read the collection of a QdrantVectorStore through the clients that the store has.

    Coroutines use the store's async client. If it has none, they run the sync call in a worker
    thread, so that neither blocks the event loop. Errors of a client are raised as StoreErrors.

    If the store was opened by an alias, looking the collection up resolves it, and from then on the
    collection is read by its own name. What was looked up is what is searched, even if the alias is
    switched to a collection of another model.

    Args:
        store: Has a sync client, an async one, or both. A sync one in local mode is made
            thread-safe.
    """

    def __init__(self, store: QdrantVectorStore) -> None:
        self._store = store
        self._resolved_name: str | None = None
        if self._client is not None:
            make_thread_safe(self._client)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the store: a copy looks the collection up again."""
        return CollectionReader, (self._store,)

    @property
    def _client(self) -> Client | None:
        client: Client | None = self._store.client
        return client

    @property
    def _aclient(self) -> AsyncQdrantClient | None:
        return self._store._aclient

    @property
    def collection(self) -> str:
        """The collection's own name once it was looked up; before, what the store calls it."""
        return self._resolved_name or str(self._store.collection_name)

    @property
    def has_sync_client(self) -> bool:
        """Whether the methods that are not coroutines can be called."""
        return self._client is not None

    @property
    def runs_in_process(self) -> bool:
        """Whether Qdrant runs in this process, in the thread that asks it."""
        aclient: object = self._aclient
        if aclient is not None and not isinstance(aclient, AsyncView):
            return False
        return self._client is not None and is_in_process(self._client)

    def exists(self) -> bool:
        """Tell whether the collection exists."""
        operation = "looking the collection up"
        client = self._require_client(operation)
        with store_errors(self.collection, operation):
            return client.collection_exists(self.collection)

    def look_up(self) -> qm.CollectionInfo:
        """Return the collection's settings.

        Raises:
            StoreError: If the collection does not exist, or Qdrant fails.
        """
        client = self._require_client(_LOOK_UP)
        name = resolve_name(client, self.collection)
        with store_errors(name, _LOOK_UP):
            info = client.get_collection(name)
        self._resolved_name = name
        return info

    async def alook_up(self) -> qm.CollectionInfo:
        """Like `look_up`, but without blocking the event loop."""
        if self._aclient is None:
            return await asyncio.to_thread(self.look_up)
        name = await aresolve_name(self._aclient, self.collection)
        with store_errors(name, _LOOK_UP):
            info = await self._aclient.get_collection(name)
        self._resolved_name = name
        return info

    def search(self, requests: Sequence[qm.QueryRequest]) -> list[list[qm.ScoredPoint]]:
        """Send the requests in one round trip and return the points found by each, best first.

        Unlike a single query, a batch returns payloads only if its requests ask for them.

        Raises:
            StoreError: If the collection does not exist, or Qdrant fails.
        """
        client = self._require_client(_SEARCH)
        with store_errors(self.collection, _SEARCH):
            responses = client.query_batch_points(self.collection, requests)
        return [response.points for response in responses]

    async def asearch(self, requests: Sequence[qm.QueryRequest]) -> list[list[qm.ScoredPoint]]:
        """Like `search`, but without blocking the event loop."""
        if self._aclient is None:
            return await asyncio.to_thread(self.search, requests)
        with store_errors(self.collection, _SEARCH):
            responses = await self._aclient.query_batch_points(self.collection, requests)
        return [response.points for response in responses]

    def fetch(self, point_id: qm.ExtendedPointId, vectors: Sequence[str]) -> qm.Record | None:
        """Return a point with its payload and the vectors named, as stored; None if it is missing.

        Raises:
            StoreError: If the collection does not exist, or Qdrant fails.
        """
        client = self._require_client(_FETCH)
        with store_errors(self.collection, _FETCH):
            points = client.retrieve(
                self.collection, [point_id], with_payload=True, with_vectors=list(vectors)
            )
        return points[0] if points else None

    async def afetch(
        self, point_id: qm.ExtendedPointId, vectors: Sequence[str]
    ) -> qm.Record | None:
        """Like `fetch`, but without blocking the event loop."""
        if self._aclient is None:
            return await asyncio.to_thread(self.fetch, point_id, vectors)
        with store_errors(self.collection, _FETCH):
            points = await self._aclient.retrieve(
                self.collection, [point_id], with_payload=True, with_vectors=list(vectors)
            )
        return points[0] if points else None

    def sample(self, vector_name: str) -> list[qm.Record]:
        """Return a few points with their payloads and the vectors of a name.

        Raises:
            StoreError: If the collection does not exist, or Qdrant fails.
        """
        client = self._require_client(_SAMPLE)
        with store_errors(self.collection, _SAMPLE):
            points, _ = client.scroll(
                self.collection, limit=POINTS_READ, with_vectors=[vector_name]
            )
        return points

    async def asample(self, vector_name: str) -> list[qm.Record]:
        """Like `sample`, but without blocking the event loop."""
        if self._aclient is None:
            return await asyncio.to_thread(self.sample, vector_name)
        with store_errors(self.collection, _SAMPLE):
            points, _ = await self._aclient.scroll(
                self.collection, limit=POINTS_READ, with_vectors=[vector_name]
            )
        return points

    def to_nodes(
        self, points: Sequence[qm.ScoredPoint | qm.Record], scores: Sequence[float]
    ) -> list[NodeWithScore]:
        """Return the nodes that points hold, in the same order.

        Args:
            points: Points with payloads.
            scores: One for each point, to give its node.

        Raises:
            StoreError: If a point holds neither a node nor a text.
        """
        operation = "reading the points found"
        try:
            with store_errors(self.collection, operation):
                nodes = self._store.parse_to_query_result(list(points)).nodes or []
        except StoreError as error:
            problem = _foreign_layout(self.collection, points)
            if problem is None:
                raise
            raise StoreError(self.collection, operation, problem) from error
        return [
            NodeWithScore(node=node, score=score) for node, score in zip(nodes, scores, strict=True)
        ]

    def _require_client(self, operation: str) -> Client:
        if self._client is None:
            raise StoreError(
                self.collection,
                operation,
                "the store has only an async client; use aretrieve or aexplain",
            )
        return self._client


def _foreign_layout(collection: str, points: Sequence[qm.ScoredPoint | qm.Record]) -> str | None:
    """Return whose payloads those are in which LlamaIndex finds no node; None if unknown."""
    for point in points:
        software = _SOFTWARE.get(layout_of(point.payload or {}) or "mixed")
        if software is not None:
            name = shlex.quote(collection)
            return (
                f"the payload of point {point.id} is laid out as {software}'s, in which "
                "LlamaIndex's own store finds no node. Open the collection with "
                f"UnifiedEmbeddingConfig.vector_store({collection!r}, ...), which reads it as it "
                "is. To write LlamaIndex's payloads into a second collection with the same "
                f"vectors: unified-embeddings add-vectors {name} --copy-to NEW; to move to another "
                f"model: unified-embeddings migrate plan {name} --alias ALIAS --model MODEL"
            )
    return None
