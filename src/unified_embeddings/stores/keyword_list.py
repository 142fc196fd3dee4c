"""A collection's keyword list: BM25's vectors beside the model's own, and which BM25 wrote them.

What lives here: the name and the settings of these vectors, and their record in the collection's
metadata. What does not: counting words (`embedders.bm25`), what a record means for those who search
and write (`search.keywords`), and creating collections (`schema`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qdrant_client import models as qm

from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.records import read_record, write_record

if TYPE_CHECKING:  # copying needs this module, and embeds nothing
    from unified_embeddings.embedders.base import TextEmbedder

KEYWORD_VECTOR = "text-bm25"
KEYWORDS_KEY = "unified_embeddings_keywords"
"""Key of the collection's metadata under which the list is recorded."""


def keyword_params() -> qm.SparseVectorParams:
    """Return the settings of these vectors: without IDF they would not be BM25."""
    return qm.SparseVectorParams(index=qm.SparseIndexParams(), modifier=qm.Modifier.IDF)


def keyword_vectors(keywords: TextEmbedder, texts: Sequence[str]) -> list[qm.SparseVector]:
    """Return the vectors of documents for the keyword list."""
    vectors = keywords.encode_documents(texts).sparse or []
    return [
        qm.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
        for vector in vectors
    ]


def has_keyword_vectors(info: qm.CollectionInfo) -> bool:
    """Tell whether a collection has vectors for a keyword list, recorded or not."""
    return KEYWORD_VECTOR in (info.config.params.sparse_vectors or {})


def keyword_record(keywords: TextEmbedder) -> dict[str, str]:
    """Return what is recorded of a keyword list."""
    return {"model": keywords.model_name, "fingerprint": keywords.fingerprint}


def read_keyword_record(info: qm.CollectionInfo) -> object:
    """Return what a collection records of its keyword list; None if it has none."""
    return read_record(info, KEYWORDS_KEY)


def recorded_name(info: qm.CollectionInfo) -> str | None:
    """Return the name of the BM25 that wrote a collection's keyword list; None without a list."""
    record = read_keyword_record(info)
    return str(record.get("model")) if isinstance(record, Mapping) else None


def record_keywords(client: Client, name: str, keywords: TextEmbedder) -> None:
    """Record in a collection what its keyword list is written by.

    Raises:
        StoreError: If Qdrant fails, or does not keep metadata.
    """
    write_record(
        client,
        name,
        KEYWORDS_KEY,
        keyword_record(keywords),
        operation="recording its keyword list",
    )
