"""What the parts of the client have in common."""

from __future__ import annotations

import itertools

from qdrant_client import models as qm

from unified_embeddings.stores.edge.store import EmbeddedStore


class ClientPart:
    """A part of the client: some of its methods, over the one store that all parts share.

    Args:
        store: The store.
    """

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self._operation_ids = itertools.count()

    def _completed(self) -> qm.UpdateResult:
        return qm.UpdateResult(
            operation_id=next(self._operation_ids), status=qm.UpdateStatus.COMPLETED
        )
