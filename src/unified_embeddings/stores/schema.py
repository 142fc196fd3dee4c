"""What a collection of ours looks like, and whether one fits an embedder.

A collection holds a dense and a sparse vector per point, under the names that LlamaIndex's
QdrantVectorStore uses. Its metadata records the model that made the vectors. This is the one place
that knows the names, the payload indexes and where the model is recorded. `creating` makes one.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qdrant_client import models as qm

from unified_embeddings.errors import FingerprintMismatchError, InputError, StoreError
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.stored_colbert import (
    RECORD_KEY,
    StoredColbert,
    read_stored_colbert,
)

if TYPE_CHECKING:  # copying needs this module, and embeds nothing
    from unified_embeddings.embedders.base import TextEmbedder

_LOG = logging.getLogger(__name__)

DENSE_VECTOR = "text-dense"
SPARSE_VECTOR = "text-sparse-new"
FORMER_SPARSE_VECTOR = "text-sparse"
"""What LlamaIndex called sparse vectors before, and Haystack calls them still."""
PAYLOAD_INDEXES = {"doc_id": qm.PayloadSchemaType.KEYWORD}
"""Field → index of every collection of ours; LlamaIndex deletes a document's nodes by `doc_id`."""
METADATA_KEY = "unified_embeddings"
"""Key of the collection's metadata under which the model is recorded."""


_NO_METADATA = (
    "the server does not keep a collection's metadata; upgrade it to Qdrant 1.16 or later"
)


@dataclass(frozen=True)
class RecordedModel:
    """The model that made a collection's vectors, as the collection's metadata records it.

    Attributes:
        fingerprint: The embedder's fingerprint.
        name: The model's name, for messages.
    """

    fingerprint: str
    name: str


@dataclass(frozen=True)
class VectorNames:
    """The vectors of a collection that a store searches and writes.

    Attributes:
        dense: Name of the dense ones, "" for unnamed ones.
        sparse: Name of the sparse ones; None to search and write dense ones only.
        why_no_sparse: Why there are no sparse ones, though the model gives them; "" otherwise.
    """

    dense: str = DENSE_VECTOR
    sparse: str | None = SPARSE_VECTOR
    why_no_sparse: str = ""


def own_names(embedder: TextEmbedder) -> VectorNames:
    """Return the names of an embedder's vectors in a collection of ours."""
    return VectorNames(sparse=SPARSE_VECTOR if "sparse" in embedder.heads else None)


def recorded_model(info: qm.CollectionInfo) -> RecordedModel | None:
    """Return the model that made a collection's vectors; None if other software made it."""
    fingerprint = _read_record(info).get("fingerprint")
    if not isinstance(fingerprint, str):
        return None
    return RecordedModel(fingerprint, str(_read_record(info).get("model")))


def _read_record(info: qm.CollectionInfo) -> Mapping[str, object]:
    """Return what is recorded under our key; nothing where it is not a record of ours."""
    record = (info.config.metadata or {}).get(METADATA_KEY)
    return record if isinstance(record, Mapping) else {}


def dense_vectors(info: qm.CollectionInfo) -> dict[str, qm.VectorParams]:
    """Return a collection's dense vectors by name, the unnamed one under ""."""
    vectors = info.config.params.vectors
    if isinstance(vectors, qm.VectorParams):
        return {"": vectors}
    return dict(vectors or {})


def sparse_vectors(info: qm.CollectionInfo) -> dict[str, qm.SparseVectorParams]:
    """Return a collection's sparse vectors by name."""
    return dict(info.config.params.sparse_vectors or {})


def sparse_params(embedder: TextEmbedder) -> qm.SparseVectorParams:
    """Return the parameters of an embedder's sparse vectors."""
    return qm.SparseVectorParams(index=qm.SparseIndexParams(), modifier=_sparse_modifier(embedder))


def stored_colbert(info: qm.CollectionInfo) -> StoredColbert | None:
    """Return how a collection stores ColBERT vectors; None if it stores none."""
    return read_stored_colbert(info, _read_record(info))


def record_colbert(client: Client, name: str, colbert: StoredColbert) -> None:
    """Record how a collection's ColBERT vectors are pooled; what else is recorded stays.

    This comes before the first of them is written, or even the name of the vectors, so that nobody
    takes pooled vectors for others.

    Raises:
        StoreError: If Qdrant fails, or is too old to keep metadata.
    """
    with store_errors(name, "recording how its ColBERT vectors are pooled"):
        record = {**_read_record(client.get_collection(name)), RECORD_KEY: colbert.record}
        client.update_collection(name, metadata={METADATA_KEY: record})
        recorded = _read_record(client.get_collection(name)).get(RECORD_KEY)
    if recorded != colbert.record:
        raise StoreError(name, "recording how its ColBERT vectors are pooled", _NO_METADATA)


def check_adopt(adopt: object) -> None:
    """Refuse anything but the one way in which a collection of an unknown model is accepted.

    Raises:
        InputError: If it is neither None nor "trust".
    """
    if adopt not in (None, "trust"):
        raise InputError(f"adopt must be 'trust' or None, not {adopt!r}")


def record_model(client: Client, name: str, embedder: TextEmbedder) -> None:
    """Record that an embedder's model made a collection's vectors.

    Qdrant changes the metadata at once or not at all, and keeps what else is in it.

    Args:
        client: Sync client.
        name: The collection's name.
        embedder: The embedder of that model.

    Raises:
        StoreError: If Qdrant fails, or is too old to keep metadata.
    """
    with store_errors(name, "recording its model"):
        record = {**_read_record(client.get_collection(name)), **record_of(embedder)}
        client.update_collection(name, metadata={METADATA_KEY: record})
        recorded = recorded_model(client.get_collection(name))
    if recorded is None or recorded.fingerprint != embedder.fingerprint:
        raise StoreError(
            name,
            "recording its model",
            f"{_NO_METADATA}, or open the collection with adopt='trust' (--adopt trust) each time",
        )


def check_collection(
    name: str,
    info: qm.CollectionInfo,
    embedder: TextEmbedder,
    *,
    dense: str | None = DENSE_VECTOR,
    sparse: str | None = SPARSE_VECTOR,
    adopt: Literal["trust"] | None = None,
) -> None:
    """Refuse a collection whose vectors cannot be compared with an embedder's queries.

    In a collection without our metadata (made by other software) nothing records which model made
    it. Two models of the same dimension give answers that look like answers and are not.

    Args:
        name: The collection's name, for messages.
        info: What Qdrant reports about it.
        embedder: The embedder whose queries it will get.
        dense: Name of its dense vectors, "" for the unnamed one of LlamaIndex's older collections;
            None if they are not needed.
        sparse: Name of its sparse vectors; None if they are not needed.
        adopt: "trust" accepts a collection without our metadata whose dimension fits.

    Raises:
        FingerprintMismatchError: If its metadata records another model.
        StoreError: If the vectors needed are missing or have another dimension, or its metadata
            records no model and `adopt` is not given.
    """
    model = recorded_model(info)
    if model is not None and not _is_made_by(model, embedder):
        raise FingerprintMismatchError(
            name,
            expected=embedder.fingerprint,
            found=model.fingerprint,
            model=_model_names(embedder),
            found_model=model.name,
        )
    if dense is not None:
        _check_dense_vector(name, info, embedder, dense)
    if model is None and adopt is None:
        command = f"adopt {shlex.quote(name)} --model {shlex.quote(embedder.model_name)}"
        raise StoreError(
            name,
            "checking",
            "it does not record which model made it: its dimension fits "
            f"{embedder.model_name!r}, but so do other models'. To prove that this model made it, "
            f"and to record it, run: unified-embeddings {command}. If you know that it did, "
            "adopt='trust' (--adopt trust) accepts it unproved. Otherwise index the documents "
            "again into a new collection",
        )
    if sparse is not None:
        _check_sparse_vector(name, info, embedder, sparse)


def _is_made_by(model: RecordedModel, embedder: TextEmbedder) -> bool:
    """Tell whether a recorded model is an embedder's, also if an earlier version recorded it."""
    if model.fingerprint == embedder.fingerprint:
        return True
    return model.fingerprint in embedder.former_fingerprints


def _check_dense_vector(
    name: str, info: qm.CollectionInfo, embedder: TextEmbedder, vector_name: str
) -> None:
    params = dense_vectors(info).get(vector_name)
    if params is None:
        wanted = f"named {vector_name!r}" if vector_name else "without a name"
        problem = f"it has no dense vector {wanted}"
        others = ", ".join(repr(vector) for vector in dense_vectors(info) if vector)
        if "" in dense_vectors(info):
            problem += f", but an unnamed one, {_describe_way_to_names(name, info, embedder)}"
        elif others:
            problem += f", but {others}; vector_store(dense_vector_name=...) opens it by one"
        raise StoreError(name, "checking", problem)
    if params.size != embedder.dimension:
        raise StoreError(
            name,
            "checking",
            f"its dense vectors have {params.size} dimensions, the model {embedder.model_name!r} "
            f"gives {embedder.dimension}; use the model it was made with",
        )


def _describe_way_to_names(name: str, info: qm.CollectionInfo, embedder: TextEmbedder) -> str:
    """Return, in words, how a collection with an unnamed dense vector can be used."""
    model = f"--model {shlex.quote(embedder.model_name)}"
    sparse = "--sparse " if "sparse" in embedder.heads else ""
    proof = ""
    if recorded_model(info) is None:
        proof = f"prove its model (unified-embeddings adopt {shlex.quote(name)} {model}), and then "
    return (
        "as LlamaIndex's own store makes without hybrid search. "
        "UnifiedEmbeddingConfig.vector_store() opens it as it is. For a collection with names: "
        f"{proof}unified-embeddings add-vectors {shlex.quote(name)} --copy-to NEW {sparse}{model}"
    )


def _check_sparse_vector(
    name: str, info: qm.CollectionInfo, embedder: TextEmbedder, vector_name: str
) -> None:
    """Refuse a collection without sparse vectors, and warn if it scores them in another way."""
    params = sparse_vectors(info).get(vector_name)
    if params is None:
        raise StoreError(
            name,
            "checking",
            f"it has no sparse vector named {vector_name!r}; search it with mode='dense', or add "
            f"the vectors: unified-embeddings add-vectors {shlex.quote(name)} --sparse",
        )
    expected = _sparse_modifier(embedder) or qm.Modifier.NONE
    modifier = params.modifier or qm.Modifier.NONE
    if modifier != expected:
        _LOG.warning(
            "Collection %r scores sparse vectors with the modifier %r, but %r is made for %r: its "
            "sparse ranking will be worse. Index the documents again into a collection made by "
            ".vector_store().",
            name,
            modifier.value,
            embedder.model_name,
            expected.value,
        )


def _sparse_modifier(embedder: TextEmbedder) -> qm.Modifier | None:
    """Return what Qdrant does to sparse scores, as the model needs it."""
    return qm.Modifier.IDF if embedder.sparse_idf else None


def record_of(embedder: TextEmbedder) -> dict[str, str]:
    """Return what a collection's metadata records about the model."""
    return {
        "fingerprint": embedder.fingerprint,
        "model": _model_names(embedder),
        "revision": embedder.revision,
    }


def _model_names(embedder: TextEmbedder) -> str:
    """Return the name of the embedder's model, or the names of its models."""
    return " + ".join(embedder.model_names)
