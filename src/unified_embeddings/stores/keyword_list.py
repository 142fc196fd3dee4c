"""A collection's keyword list: BM25's vectors beside the model's own, and which BM25 wrote them.

What lives here: the name and the settings of these vectors, and their record in the collection's
metadata. What does not: counting words (`embedders.bm25`), creating collections (`schema`), and
searching (`search`).

Counting words takes no model, so the record alone says how questions and new documents are to be
read: whoever opens the collection searches its keyword list, and writes to it, without being told.
The record has a key of its own, as a chosen fusion has (`fusion_choice`).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from qdrant_client import models as qm

from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.models.bm25 import BM25, is_bm25
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client
from unified_embeddings.types import Options

if TYPE_CHECKING:  # copying needs this module, and embeds nothing
    from unified_embeddings.embedders.base import TextEmbedder
    from unified_embeddings.embedders.bm25 import Bm25Embedder

KEYWORD_VECTOR = "text-bm25"
KEYWORDS_KEY = "unified_embeddings_keywords"
"""Key of the collection's metadata under which the list is recorded."""


def open_keywords(name: str) -> Bm25Embedder:
    """Return what counts words under a name like "bm25:german"; all callers share it.

    Raises:
        InputError: If it is not a name of BM25's.
        MissingExtraError: If the stemming library is not installed.
    """
    if not isinstance(name, str) or not is_bm25(name):
        raise InputError(
            f"keywords must be {BM25}, {BM25}:german and so on, which count words, got {name!r:.80}"
        )
    return _open_shared(name)


@lru_cache(maxsize=32)
def _open_shared(name: str) -> Bm25Embedder:
    from unified_embeddings.embedders.bm25 import Bm25Embedder

    return Bm25Embedder(name)


def read_keywords(name: str, info: qm.CollectionInfo) -> Bm25Embedder | None:
    """Return what counts words for a collection's keyword list; None if it has none.

    Args:
        name: The collection's name, for messages.
        info: What Qdrant reports about it.

    Raises:
        StoreError: If the list is there and cannot be read: its record is not one that this version
            knows, or its vectors are gone.
        MissingExtraError: If the stemming library is not installed.
    """
    record = (info.config.metadata or {}).get(KEYWORDS_KEY)
    if record is None:
        return None
    recorded_name = record.get("model") if isinstance(record, dict) else None
    if not isinstance(recorded_name, str) or not is_bm25(recorded_name):
        raise StoreError(
            name,
            "reading its keyword list",
            f"its metadata holds a record that this version cannot use: {record!r:.80}; upgrade "
            "unified-embeddings",
        )
    keywords = open_keywords(recorded_name)
    if record.get("fingerprint") != keywords.fingerprint:
        raise StoreError(
            name,
            "reading its keyword list",
            f"it was written by {recorded_name!r} with other rules for words; delete the vector "
            f"{KEYWORD_VECTOR!r} and add it again: {_command(name, recorded_name)}",
        )
    if KEYWORD_VECTOR not in (info.config.params.sparse_vectors or {}):
        raise StoreError(
            name,
            "reading its keyword list",
            f"its vectors, {KEYWORD_VECTOR!r}, are gone; add them again: "
            f"{_command(name, recorded_name)}",
        )
    return keywords


def require_keywords(name: str, info: qm.CollectionInfo, wanted: str | None) -> Bm25Embedder | None:
    """Return what counts words for an existing collection, and refuse to take other words.

    Args:
        name: The collection's name, for messages.
        info: What Qdrant reports about it.
        wanted: The keyword list asked for; None takes what the collection has.

    Raises:
        InputError: If `wanted` is not a name of BM25's.
        StoreError: As `read_keywords`, or if the collection has no keyword list or another one.
        MissingExtraError: If the stemming library is not installed.
    """
    keywords = read_keywords(name, info)
    if wanted is None:
        return keywords
    expected = open_keywords(wanted)
    if keywords is None:
        raise StoreError(
            name,
            "checking its keyword list",
            f"it has none; add it to its points: {_command(name, wanted)}",
        )
    if keywords.fingerprint != expected.fingerprint:
        raise StoreError(
            name,
            "checking its keyword list",
            f"it was written by {keywords.model_name!r}, not by {wanted!r}; leave keywords out, "
            "and the collection's own is taken",
        )
    return keywords


def recorded_name(info: qm.CollectionInfo) -> str | None:
    """Return the name of the BM25 that wrote a collection's keyword list; None without a list."""
    record = (info.config.metadata or {}).get(KEYWORDS_KEY)
    return str(record.get("model")) if isinstance(record, dict) else None


def check_addable(
    name: str, info: qm.CollectionInfo, embedder: TextEmbedder, wanted: str
) -> Bm25Embedder:
    """Return what counts words for a list that is to be added to a collection, or completed.

    Raises:
        InputError: If `wanted` is not a name of BM25's, or the model has no sparse vectors.
        StoreError: If the collection has another keyword list.
        MissingExtraError: If the stemming library is not installed.
    """
    check_beside(embedder)
    keywords = open_keywords(wanted)
    record = (info.config.metadata or {}).get(KEYWORDS_KEY)
    has_vectors = KEYWORD_VECTOR in (info.config.params.sparse_vectors or {})
    if has_vectors and record not in (None, keyword_record(keywords)[KEYWORDS_KEY]):
        raise StoreError(
            name,
            "adding a keyword list",
            f"it has one by {recorded_name(info)!r}, whose words are others; delete the vector "
            f"{KEYWORD_VECTOR!r} first (client.delete_vector_name), and run the command again",
        )
    return keywords


def check_beside(embedder: TextEmbedder) -> None:
    """Refuse a keyword list beside a model that has no sparse vectors of its own.

    Raises:
        InputError: If it has none, or they are BM25's already.
    """
    if "sparse" not in embedder.heads:
        raise InputError(
            f"{embedder.model_name!r} gives no sparse vectors, so that a keyword list would be its "
            f"second list and not its third; give it as sparse_model={BM25!r} instead"
        )
    if is_bm25(embedder.model_names[-1]):
        raise InputError(
            "the sparse vectors are BM25's already; leave sparse_model out, or keywords"
        )


def keyword_params() -> qm.SparseVectorParams:
    """Return the settings of these vectors: without IDF they would not be BM25."""
    return qm.SparseVectorParams(index=qm.SparseIndexParams(), modifier=qm.Modifier.IDF)


def keyword_record(keywords: TextEmbedder) -> Options:
    """Return a collection's metadata that records its keyword list."""
    return {KEYWORDS_KEY: {"model": keywords.model_name, "fingerprint": keywords.fingerprint}}


def record_keywords(client: Client, name: str, keywords: TextEmbedder) -> None:
    """Record in a collection what its keyword list is written by.

    Raises:
        StoreError: If Qdrant fails, or does not keep metadata.
    """
    with store_errors(name, "recording its keyword list"):
        record = keyword_record(keywords)
        client.update_collection(name, metadata=record)
        kept = (client.get_collection(name).config.metadata or {}).get(KEYWORDS_KEY)
    if kept != record[KEYWORDS_KEY]:
        raise StoreError(
            name,
            "recording its keyword list",
            "the store does not keep a collection's metadata; Qdrant does from version 1.16 on",
        )


def keyword_vectors(keywords: TextEmbedder, texts: Sequence[str]) -> list[qm.SparseVector]:
    """Return the vectors of documents for the keyword list."""
    vectors = keywords.encode_documents(texts).sparse or []
    return [
        qm.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
        for vector in vectors
    ]


def _command(collection: str, keywords: str) -> str:
    words = f"{shlex.quote(collection)} --keywords {shlex.quote(keywords)}"
    return f"unified-embeddings add-vectors {words}"
