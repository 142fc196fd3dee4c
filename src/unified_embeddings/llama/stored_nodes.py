"""The nodes that a collection holds: reading them by id and filter, and deleting them.

What lives here: what LlamaIndex asks a store about nodes besides searching. What does not: adding
and searching (`fingerprinted_store`), and how payloads are laid out (`stored_layout`).
"""

from __future__ import annotations

import logging
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQueryResult
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models as qm

from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.fields import Fields
from unified_embeddings.llama.filters import is_of_document, select_for_deletion, select_points
from unified_embeddings.llama.stored_layout import StoredLayout
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.pages import Pages

_LOG = logging.getLogger(__name__)


class StoredNodes(QdrantVectorStore):
    """A QdrantVectorStore that reads and deletes nodes, whichever software wrote them.

    Args:
        layout: How nodes are written, and payloads understood.
        **options: The stock store's own.
    """

    _layout: StoredLayout = PrivateAttr()

    def __init__(self, *, layout: StoredLayout, **options: Any) -> None:
        super().__init__(**options)
        self._layout = layout

    @property
    def fields(self) -> Fields:
        """Where the payloads have the metadata, for filters, and what ids the points have."""
        return self._layout.fields

    # --- reading --------------------------------------------------------------------------------

    def get_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        limit: int | None = None,
        shard_identifier: object = None,  # noqa: ARG002
    ) -> list[BaseNode]:
        """Return the nodes that are among the ids and match the filters.

        Args:
            node_ids: The ids; None for any.
            filters: The filters; None for any.
            limit: The most nodes to return; None for all.
            shard_identifier: Ignored, as there is no custom sharding.

        Raises:
            InputError: If an id or a filter cannot be translated.
            StoreError: If Qdrant fails.
        """
        selected = select_points(node_ids, filters, self.fields)
        reading = Pages(limit)
        while reading.wanted:
            with store_errors(self.collection_name, "reading nodes"):
                reading.add(
                    self._client.scroll(
                        self.collection_name,
                        scroll_filter=selected,
                        limit=reading.wanted,
                        offset=reading.offset,
                        with_vectors=True,
                    )
                )
        return self._to_nodes(reading.points)

    async def aget_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        limit: int | None = None,
        shard_identifier: object = None,  # noqa: ARG002
    ) -> list[BaseNode]:
        """Like `get_nodes`, but without blocking the event loop."""
        selected = select_points(node_ids, filters, self.fields)
        reading = Pages(limit)
        while reading.wanted:
            with store_errors(self.collection_name, "reading nodes"):
                reading.add(
                    await self._aclient.scroll(
                        self.collection_name,
                        scroll_filter=selected,
                        limit=reading.wanted,
                        offset=reading.offset,
                        with_vectors=True,
                    )
                )
        return self._to_nodes(reading.points)

    def _to_nodes(self, points: list[qm.Record]) -> list[BaseNode]:
        with store_errors(self.collection_name, "reading nodes"):  # other software's may be none
            return list(self.parse_to_query_result(points).nodes or ())

    def parse_to_query_result(self, response: list[Any]) -> VectorStoreQueryResult:
        """Return points as nodes, whichever software wrote their payloads.

        Args:
            response: Points with payloads.

        Raises:
            StoreError: If a point holds no text.
        """
        if not any(self._layout.can_read(point.payload or {}) for point in response):
            return super().parse_to_query_result(response)
        nodes = [self._read(point) for point in response]
        return VectorStoreQueryResult(
            nodes=nodes,
            similarities=[getattr(point, "score", 1.0) for point in response],
            ids=[node.node_id for node in nodes],
        )

    def _read(self, point: qm.ScoredPoint | qm.Record) -> BaseNode:
        if not self._layout.can_read(point.payload or {}):
            (node,) = super().parse_to_query_result([point]).nodes or ()
            return node
        try:
            return self._layout.read_point(point, self.dense_vector_name)
        except InputError as error:
            operation = f"reading point {point.id}"
            raise StoreError(self.collection_name, operation, error.problem) from None

    # --- deleting -------------------------------------------------------------------------------

    def delete(
        self,
        ref_doc_id: str,
        shard_identifier: object = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Delete the nodes of a document.

        In the layout of other software, these are the nodes that were added here, and with Haystack
        the pieces of a document that its splitters made.

        Raises:
            InputError: If it is not a text, or the one under which nodes without a document are.
            StoreError: If Qdrant fails.
        """
        selected = qm.Filter(must=[is_of_document([ref_doc_id], self.fields)])
        with store_errors(self.collection_name, "deleting a document"):
            if not self.fields.is_llama_index:
                found = self._client.count(self.collection_name, selected)
                self._note_deletion(ref_doc_id, found.count)
            self._client.delete(self.collection_name, points_selector=selected)

    async def adelete(
        self,
        ref_doc_id: str,
        shard_identifier: object = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Like `delete`, but without blocking the event loop."""
        selected = qm.Filter(must=[is_of_document([ref_doc_id], self.fields)])
        with store_errors(self.collection_name, "deleting a document"):
            if not self.fields.is_llama_index:
                found = await self._aclient.count(self.collection_name, selected)
                self._note_deletion(ref_doc_id, found.count)
            await self._aclient.delete(self.collection_name, points_selector=selected)

    def _note_deletion(self, ref_doc_id: str, count: int) -> None:
        """Tell that nothing is deleted: other software's points may record no document at all."""
        if not count:
            _LOG.warning(
                "Collection %r: no point records the document %r, so none is deleted. Points that "
                "other software wrote are deleted by delete_nodes(filters=...) on their metadata, "
                "or by their ids",
                self.collection_name,
                ref_doc_id,
            )

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        shard_identifier: object = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Delete the nodes that `get_nodes` with the same ids and filters returns.

        An empty list of ids deletes nothing.

        Raises:
            InputError: If an id or a filter cannot be translated, or neither restricts what is
                deleted.
            StoreError: If Qdrant fails.
        """
        selected = select_for_deletion(node_ids, filters, self.fields)
        with store_errors(self.collection_name, "deleting nodes"):
            self._client.delete(self.collection_name, points_selector=selected)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        shard_identifier: object = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Like `delete_nodes`, but without blocking the event loop."""
        selected = select_for_deletion(node_ids, filters, self.fields)
        with store_errors(self.collection_name, "deleting nodes"):
            await self._aclient.delete(self.collection_name, points_selector=selected)
