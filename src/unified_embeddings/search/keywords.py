"""What a collection's keyword list is searched with and written by.

What lives here: from a name or a record to what counts words, and refusing what does not fit. What
does not: counting words (`embedders.bm25`), and the record itself (`stores.keyword_list`).

Counting words takes no model, so the record alone says how questions and new documents are to be
read: whoever opens the collection searches its keyword list, and writes to it, without being told.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import lru_cache

from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.bm25 import Bm25Embedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.models.bm25 import BM25, is_bm25
from unified_embeddings.stores.keyword_list import (
    KEYWORD_VECTOR,
    has_keyword_vectors,
    keyword_record,
    read_keyword_record,
    recorded_name,
)


def open_keywords(name: str, embedder: TextEmbedder) -> Bm25Embedder:
    """Return what counts words under a name like "bm25:german"; all callers share it.

    Args:
        name: The keyword list asked for.
        embedder: The model beside whose vectors it is to stand.

    Raises:
        InputError: If it is not a name of BM25's, or the model has no sparse vectors, or BM25's.
        MissingExtraError: If the stemming library is not installed.
    """
    if not isinstance(name, str) or not is_bm25(name):
        raise InputError(
            f"keywords must be {BM25}, {BM25}:german and so on, which count words, got {name!r:.80}"
        )
    if "sparse" not in embedder.heads:
        raise InputError(
            f"{embedder.model_name!r} gives no sparse vectors, so that a keyword list would be its "
            f"second list and not its third; give it as sparse_model={BM25!r} instead"
        )
    if is_bm25(embedder.model_names[-1]):
        raise InputError(
            "the sparse vectors are BM25's already; leave sparse_model out, or keywords"
        )
    return _open_shared(name)


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
    record = read_keyword_record(info)
    if record is None:
        return None
    known_name = recorded_name(info)
    if not isinstance(record, Mapping) or known_name is None or not is_bm25(known_name):
        problem = f"its metadata holds a record that this version cannot use: {record!r:.80}; "
        raise StoreError(name, "reading its keyword list", f"{problem}upgrade unified-embeddings")
    keywords = _open_shared(known_name)
    if record != keyword_record(keywords):
        raise StoreError(
            name,
            "reading its keyword list",
            f"it was written by {known_name!r} with other rules for words; delete the vector "
            f"{KEYWORD_VECTOR!r} and add it again: {_command(name, known_name)}",
        )
    if not has_keyword_vectors(info):
        raise StoreError(
            name,
            "reading its keyword list",
            f"its vectors, {KEYWORD_VECTOR!r}, are gone; add them again: "
            f"{_command(name, known_name)}",
        )
    return keywords


def require_keywords(
    name: str, info: qm.CollectionInfo, wanted: Bm25Embedder | None
) -> Bm25Embedder | None:
    """Return what counts words for an existing collection, and refuse to take other words.

    Args:
        name: The collection's name, for messages.
        info: What Qdrant reports about it.
        wanted: The keyword list asked for; None takes what the collection has.

    Raises:
        StoreError: As `read_keywords`, or if the collection has no keyword list or another one.
        MissingExtraError: If the stemming library is not installed.
    """
    keywords = read_keywords(name, info)
    if wanted is None:
        return keywords
    if keywords is None:
        raise StoreError(
            name,
            "checking its keyword list",
            f"it has none; add it to its points: {_command(name, wanted.model_name)}",
        )
    if keywords.fingerprint != wanted.fingerprint:
        raise StoreError(
            name,
            "checking its keyword list",
            f"it was written by {keywords.model_name!r}, not by {wanted.model_name!r}; leave "
            "keywords out, and the collection's own is taken",
        )
    return keywords


def check_addable(name: str, info: qm.CollectionInfo, keywords: Bm25Embedder) -> None:
    """Refuse to add a keyword list to a collection that has another one.

    Raises:
        StoreError: If it has.
    """
    record = read_keyword_record(info)
    if has_keyword_vectors(info) and record not in (None, keyword_record(keywords)):
        raise StoreError(
            name,
            "adding a keyword list",
            f"it has one by {recorded_name(info)!r}, whose words are others; delete the vector "
            f"{KEYWORD_VECTOR!r} first (client.delete_vector_name), and run the command again",
        )


@lru_cache(maxsize=32)
def _open_shared(name: str) -> Bm25Embedder:
    return Bm25Embedder(name)


def _command(collection: str, keywords: str) -> str:
    words = f"{shlex.quote(collection)} --keywords {shlex.quote(keywords)}"
    return f"unified-embeddings add-vectors {words}"
