"""How many points have each of a field's values."""

from __future__ import annotations

import uuid
from typing import Any

import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.stores.edge.arguments import refuse_server_options
from unified_embeddings.stores.edge.bounds import check_timeout
from unified_embeddings.stores.edge.core_types import CoreShard
from unified_embeddings.stores.edge.filters import to_core_filter
from unified_embeddings.stores.edge.parts import ClientPart
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.translation import argument_errors
from unified_embeddings.validation import require_whole_number


class Facets(ClientPart):
    """The method that counts a field's values."""

    def facet(
        self,
        collection_name: str,
        key: str,
        facet_filter: qm.Filter | None = None,
        limit: int = 10,
        exact: bool = False,
        consistency: qm.ReadConsistency | None = None,
        timeout: int | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
    ) -> qm.FacetResponse:
        """Return a field's most frequent values with the number of points that have them.

        Args:
            collection_name: Where to count.
            key: The field, or its JSON path. It needs a payload index for keywords, integers,
                booleans or UUIDs, as on a server.
            facet_filter: Which points count.
            limit: Maximum number of values; the most frequent first, equal ones by value.
            exact: Every count is exact.
            consistency: Every read is consistent.
            timeout: Nothing is waited for.
            shard_key_selector: Only for a server.

        Raises:
            InputError: If there is no such collection, or no such index.
            StoreError: If the core fails.
        """
        refuse_server_options("facet", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        require_whole_number("limit", limit)
        with argument_errors("the request"):
            request = core.FacetRequest(key, limit, True, to_core_filter(facet_filter))

        def ask(_: Settings, core_shard: CoreShard) -> list[qm.FacetValueHit]:
            return [
                qm.FacetValueHit(value=_from_core_value(hit.value), count=hit.count)
                for hit in core_shard.facet(request).hits
            ]

        return qm.FacetResponse(hits=self._store.read(collection_name, "counting values", ask))


def _from_core_value(value: Any) -> Any:
    return str(value) if isinstance(value, uuid.UUID) else value
