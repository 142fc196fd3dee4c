"""What a collection of ours looks like, and whether one fits an embedder.

A collection holds one dense and one sparse vector a point, under the names LlamaIndex's
QdrantVectorStore uses, and carries the fingerprint of the model that made them in its metadata.
"""

from __future__ import annotations

import logging
from typing import Any

from grpc import RpcError
from qdrant_client import models
from qdrant_client.http.exceptions import ApiException

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import FingerprintMismatchError, StoreError
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, is_local_mode

DENSE_VECTOR = "text-dense"
SPARSE_VECTOR = "text-sparse-new"
METADATA_KEY = "unified_embeddings"
_LOG = logging.getLogger(__name__)


def ensure_collection(client: Client, name: str, embedder: TextEmbedder, **options: Any) -> None:
    """Create the collection for this embedder's vectors, or check the one that is there.

    Args:
        client: Sync client.
        name: The collection's name.
        embedder: Whose vectors it will hold.
        **options: Passed to `create_collection`: shard_number, replication_factor,
            quantization_config, ...

    Raises:
        FingerprintMismatchError: If it holds another model's vectors.
        StoreError: If Qdrant cannot be reached or refuses.
    """
    with store_errors(name, "creating the collection"):
        if not client.collection_exists(name):
            _create(client, name, embedder, options)
    with store_errors(name, "reading the collection's settings"):
        info = client.get_collection(name)
    sparse = SPARSE_VECTOR if "sparse" in embedder.heads else None
    check_collection(name, info, embedder, sparse=sparse)


def check_collection(
    name: str,
    info: models.CollectionInfo,
    embedder: TextEmbedder,
    *,
    dense: str | None = DENSE_VECTOR,
    sparse: str | None = SPARSE_VECTOR,
) -> None:
    """Refuse a collection whose vectors this embedder's queries cannot be compared with.

    A collection without our metadata (made by other software) is accepted with a warning where the
    dimension fits, since nothing tells which model made it.

    Args:
        name: The collection's name, for messages.
        info: What Qdrant says of it.
        embedder: Whose queries it will get.
        dense: Name of its dense vectors, "" for the unnamed one of LlamaIndex's older collections;
            None if they are not needed.
        sparse: Name of its sparse vectors; None if they are not needed.

    Raises:
        FingerprintMismatchError: If its metadata names another model.
        StoreError: If the vectors needed are not there or of another dimension.
    """
    ours = (info.config.metadata or {}).get(METADATA_KEY)
    if ours is not None and ours.get("fingerprint") != embedder.fingerprint:
        raise FingerprintMismatchError(
            name,
            expected=embedder.fingerprint,
            found=str(ours.get("fingerprint")),
            model=_name(embedder),
            found_model=str(ours.get("model")),
        )
    if dense is not None:
        _check_dense(name, info, embedder, dense)
    if sparse is not None and sparse not in (info.config.params.sparse_vectors or {}):
        raise StoreError(
            name,
            "checking",
            f"it has no sparse vector named {sparse!r}; search it with mode='dense', or "
            "index the documents again into a collection made by .vector_store()",
        )
    if ours is None:
        _LOG.warning(
            "Collection %r does not say which model made it; its dimension fits %r, and no more "
            "than that is known.",
            name,
            embedder.model_name,
        )


def _name(embedder: TextEmbedder) -> str:
    """The embedder's model, or models."""
    return " + ".join(model.model_name for model in embedder.models) or embedder.model_name


def _check_dense(
    name: str, info: models.CollectionInfo, embedder: TextEmbedder, dense: str
) -> None:
    vectors = info.config.params.vectors
    if isinstance(vectors, models.VectorParams):
        vectors = {"": vectors}
    named = (vectors or {}).get(dense)
    if named is None:
        raise StoreError(name, "checking", f"it has no dense vector named {dense!r}")
    if named.size != embedder.dimension:
        raise StoreError(
            name,
            "checking",
            f"its dense vectors have {named.size} dimensions, the model {embedder.model_name!r} "
            f"gives {embedder.dimension}; use the model it was made with",
        )


def _create(client: Client, name: str, embedder: TextEmbedder, options: dict[str, Any]) -> None:
    try:
        client.create_collection(
            name,
            vectors_config={
                DENSE_VECTOR: models.VectorParams(
                    size=embedder.dimension, distance=models.Distance.COSINE
                )
            },
            sparse_vectors_config=(
                {SPARSE_VECTOR: models.SparseVectorParams(index=models.SparseIndexParams())}
                if "sparse" in embedder.heads
                else None
            ),
            metadata={
                METADATA_KEY: {
                    "fingerprint": embedder.fingerprint,
                    "model": _name(embedder),
                    "revision": embedder.revision,
                }
            },
            **options,
        )
    except (ApiException, RpcError, ValueError) as error:
        if "already exists" not in str(error):
            raise
        return  # another process was first; the caller checks what it made
    if not is_local_mode(client):  # local mode has no payload indexes and says so at every call
        client.create_payload_index(name, "doc_id", models.PayloadSchemaType.KEYWORD)
