"""Vector names added to a collection that exists, and their settings."""

from __future__ import annotations

from collections.abc import Mapping

from qdrant_client import models as qm
from qdrant_client.http.exceptions import UnexpectedResponse

from unified_embeddings.migration.heads import VectorParams
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, is_local_mode
from unified_embeddings.stores.schema import dense_vectors

_UNKNOWN_ROUTE = (404, 405)
"""What servers before Qdrant 1.18 answer to the request for a new vector name."""


def create_names(client: Client, name: str, params: Mapping[str, VectorParams]) -> bool:
    """Create vector names in a collection; return whether the store can do that.

    Raises:
        StoreError: If it fails.
    """
    for vector, wanted in params.items():
        config: qm.DenseVectorNameConfig | qm.SparseVectorNameConfig
        if isinstance(wanted, qm.SparseVectorParams):
            config = qm.SparseVectorNameConfig(
                sparse=qm.SparseVectorConfig(modifier=wanted.modifier)
            )
        else:
            config = qm.DenseVectorNameConfig(
                dense=qm.DenseVectorConfig(
                    size=wanted.size,
                    distance=wanted.distance,
                    multivector_config=wanted.multivector_config,
                    datatype=_to_storage_datatype(wanted.datatype),
                )
            )
        with store_errors(name, f"adding the vector {vector!r}"):
            try:
                client.create_vector_name(name, vector, config)
            except UnexpectedResponse as error:
                if error.status_code not in _UNKNOWN_ROUTE:
                    raise
                return False
    return True


def _to_storage_datatype(datatype: qm.Datatype | None) -> qm.VectorStorageDatatype | None:
    """Return a data type; qdrant-client has another enum of them for vectors added later."""
    return None if datatype is None else qm.VectorStorageDatatype(datatype.value)


def complete_params(client: Client, name: str, params: Mapping[str, VectorParams]) -> None:
    """Switch off the index over multi-vectors, and set how they are quantised.

    A new name cannot be given these settings, only an existing one. So they are looked at in each
    run, in case an earlier one ended in between. Local mode has none of them.
    """
    if is_local_mode(client):
        return
    with store_errors(name, "switching off an index that nothing would use"):
        existing = dense_vectors(client.get_collection(name))
        for vector, wanted in params.items():
            if not isinstance(wanted, qm.VectorParams) or vector not in existing:
                continue
            diff = _difference(existing[vector], wanted)
            if diff is not None:
                client.update_collection(name, vectors_config={vector: diff})


def _difference(existing: qm.VectorParams, wanted: qm.VectorParams) -> qm.VectorParamsDiff | None:
    """Return what to change about a vector; None if it is as wanted."""
    changes = {}
    for field in ("hnsw_config", "quantization_config", "on_disk"):
        value = getattr(wanted, field)
        if value is not None and value != getattr(existing, field):
            changes[field] = value
    return qm.VectorParamsDiff(**changes) if changes else None
