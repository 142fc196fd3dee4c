"""A collection for an embedder's vectors: created, or found and checked.

What lives here: which vectors a new collection gets, and what its metadata records. What does not:
their names, and whether an existing collection fits (`schema`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from grpc import RpcError
from qdrant_client import models as qm
from qdrant_client.http.exceptions import ApiException

from unified_embeddings.errors import StoreError
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.keyword_list import (
    KEYWORD_VECTOR,
    KEYWORDS_KEY,
    keyword_params,
    keyword_record,
)
from unified_embeddings.stores.opening import Client, is_local_mode
from unified_embeddings.stores.schema import (
    METADATA_KEY,
    PAYLOAD_INDEXES,
    VectorNames,
    check_collection,
    own_names,
    record_model,
    record_of,
    recorded_model,
    sparse_params,
    stored_colbert,
)
from unified_embeddings.stores.stored_colbert import (
    COLBERT_VECTOR,
    RECORD_KEY,
    StoredColbert,
    check_stored_colbert,
)
from unified_embeddings.types import Options

if TYPE_CHECKING:  # copying needs this module, and embeds nothing
    from unified_embeddings.embedders.base import TextEmbedder


@dataclass(frozen=True)
class CollectionParts:
    """What a collection holds beside the dense and the sparse vectors.

    Attributes:
        colbert: How it stores ColBERT vectors; None if it stores none.
        keywords: What counts words for its keyword list; None if it has none.
    """

    colbert: StoredColbert | None = None
    keywords: TextEmbedder | None = None


_NOTHING = CollectionParts()


def ensure_collection(
    client: Client,
    name: str,
    embedder: TextEmbedder,
    *,
    names: VectorNames | None = None,
    adopt: Literal["trust"] | None = None,
    parts: CollectionParts = _NOTHING,
    **options: Any,
) -> qm.CollectionInfo:
    """Create the collection for an embedder's vectors, or check the existing one.

    A fingerprint that an earlier version recorded is replaced by today's.

    Args:
        client: Sync client.
        name: The collection's name.
        embedder: The embedder whose vectors it will hold.
        names: What its vectors are called; None for the names of a collection of ours.
        adopt: "trust" accepts an existing collection that does not record its model.
        parts: What else a new collection holds. An existing one must store ColBERT vectors in the
            same way, if there is one here; its keyword list is for the caller to check.
        **options: Passed to `create_collection`: shard_number, replication_factor,
            quantization_config, ...

    Returns:
        What Qdrant reports about it.

    Raises:
        InputError: If ColBERT vectors are to be stored, and the model gives none.
        FingerprintMismatchError: If it holds another model's vectors.
        StoreError: If Qdrant cannot be reached or refuses, the collection does not record its
            model, or it stores ColBERT vectors in another way.
    """
    names = names or own_names(embedder)
    with store_errors(name, "looking for the collection"):
        exists = client.collection_exists(name)
    if not exists:
        # The model may have to be asked how wide its rows are: its errors are not the store's.
        params = _vector_params(embedder, names, parts.colbert)
        with store_errors(name, "creating the collection"):
            _create_collection(client, name, embedder, names, params, parts, options)
    with store_errors(name, "reading the collection's settings"):
        info = client.get_collection(name)
    check_collection(name, info, embedder, dense=names.dense, sparse=names.sparse, adopt=adopt)
    model = recorded_model(info)
    if model is not None and model.fingerprint != embedder.fingerprint:
        record_model(client, name, embedder)
    if parts.colbert is not None:
        check_stored_colbert(name, parts.colbert, stored_colbert(info))
    return info


def colbert_width(embedder: TextEmbedder) -> int:
    """Return how many numbers a row of a model's ColBERT vectors has; runs the model once.

    Raises:
        InputError: If the model gives none.
        ModelLoadError: If it cannot be loaded.
    """
    (rows,) = embedder.encode(["a"], role="document", heads=["colbert"]).colbert or []
    return int(rows.shape[1])


def _vector_params(
    embedder: TextEmbedder, names: VectorNames, colbert: StoredColbert | None
) -> dict[str, qm.VectorParams]:
    """Return the parameters of a new collection's vectors, without the sparse ones.

    Raises:
        InputError: If ColBERT vectors are to be stored, and the model gives none.
        ModelLoadError: If they are, and the model cannot be loaded.
    """
    params = {names.dense: qm.VectorParams(size=embedder.dimension, distance=qm.Distance.COSINE)}
    if colbert is not None:
        params[COLBERT_VECTOR] = colbert.params(colbert_width(embedder))
    return params


def _create_collection(
    client: Client,
    name: str,
    embedder: TextEmbedder,
    names: VectorNames,
    params: dict[str, qm.VectorParams],
    parts: CollectionParts,
    options: Options,
) -> None:
    sparse_config: dict[str, qm.SparseVectorParams] = {}
    if names.sparse is not None:
        sparse_config[names.sparse] = sparse_params(embedder)
    if parts.keywords is not None:
        sparse_config[KEYWORD_VECTOR] = keyword_params()
    try:
        client.create_collection(
            name,
            # The unnamed vectors of other software's collections are not a mapping.
            vectors_config=params[""] if list(params) == [""] else params,
            sparse_vectors_config=sparse_config or None,
            metadata=_build_metadata(embedder, parts),
            **options,
        )
    except (ApiException, RpcError, ValueError) as error:
        if "already exists" not in str(error):
            if parts.colbert is not None and parts.colbert.advice:
                raise StoreError(
                    name, "creating the collection", f"{error}{parts.colbert.advice}"
                ) from error
            raise
        return  # another process was first; the caller checks the collection it made
    if is_local_mode(client):  # has no payload indexes and warns at every call
        return
    for field, index in PAYLOAD_INDEXES.items():
        client.create_payload_index(name, field, index)


def _build_metadata(embedder: TextEmbedder, parts: CollectionParts) -> Options:
    """Return what a new collection records: the model, and what else it holds."""
    record: dict[str, object] = dict(record_of(embedder))
    if parts.colbert is not None:
        record[RECORD_KEY] = parts.colbert.record
    metadata: Options = {METADATA_KEY: record}
    if parts.keywords is not None:
        metadata[KEYWORDS_KEY] = keyword_record(parts.keywords)
    return metadata
