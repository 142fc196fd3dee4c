"""What LlamaIndex's own retrievers ask a store, checked before anything is sent.

What lives here: which queries a store can answer, and the filter of a query. What does not: what a
metadata filter means (`filters`), and sending (`fingerprinted_store`).
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from typing import cast

from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.fields import LLAMA_INDEX_FIELDS, Fields
from unified_embeddings.llama.filters import is_of_document, select_points
from unified_embeddings.types import Options
from unified_embeddings.validation import require_vector, require_whole_number

SPARSE_MODES = (VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.SPARSE)
"""The modes that search sparse vectors."""


def check_query(
    query: VectorStoreQuery,
    embedder: TextEmbedder,
    *,
    is_hybrid: bool,
    fields: Fields = LLAMA_INDEX_FIELDS,
) -> VectorStoreQuery:
    """Return a query with Python's numbers, and reject one that cannot be answered.

    Args:
        query: The query.
        embedder: The embedder whose vectors are searched.
        is_hybrid: Whether there are sparse vectors.
        fields: Where the collection's payloads have the metadata.

    Raises:
        InputError: If it is no query, lacks what its mode searches by, or has a number out of range
            or a filter that cannot be translated.
    """
    if not isinstance(query, VectorStoreQuery):
        raise InputError(f"expected a VectorStoreQuery, got {type(query).__name__}")
    build_query_filter(query, fields)
    _check_mode(query, embedder, is_hybrid=is_hybrid)
    changes: Options = {}
    for name in ("similarity_top_k", "sparse_top_k", "hybrid_top_k"):
        limit = getattr(query, name)
        if limit is not None:
            changes[name] = require_whole_number(name, limit)
    if query.query_embedding is not None:
        changes["query_embedding"] = require_vector(
            query.query_embedding, embedder.dimension, subject="the query's own embedding"
        ).tolist()
    return replace(query, **changes)


def build_query_filter(
    query: VectorStoreQuery, fields: Fields = LLAMA_INDEX_FIELDS
) -> qm.Filter | None:
    """Return the filter of a query; its lists of ids restrict it unless they are empty.

    Raises:
        InputError: If an id or a metadata filter cannot be translated.
    """
    conditions: list[qm.Condition] = []
    if not _is_empty(query.doc_ids):
        conditions.append(is_of_document(cast("list[str]", query.doc_ids), fields))
    node_ids = None if _is_empty(query.node_ids) else query.node_ids
    selected = select_points(node_ids, query.filters, fields)
    if selected is not None:
        conditions.append(selected)
    return qm.Filter(must=conditions) if conditions else None


def _check_mode(query: VectorStoreQuery, embedder: TextEmbedder, *, is_hybrid: bool) -> None:
    """Reject a query that lacks what its mode searches by; the stock store finds something."""
    if query.mode in SPARSE_MODES:
        if not is_hybrid:
            raise InputError(
                f"{embedder.model_name!r} gives no sparse vectors, which the mode "
                f"{query.mode.value!r} needs; search in the mode 'default'"
            )
        if not isinstance(query.query_str, str):
            raise InputError(f"the mode {query.mode.value!r} needs query_str, a text")
    if query.mode != VectorStoreQueryMode.SPARSE and query.query_embedding is None:
        raise InputError(f"the mode {query.mode.value!r} needs query_embedding")


def _is_empty(ids: object) -> bool:
    """Tell whether a query's list of ids restricts nothing."""
    return ids is None or (isinstance(ids, Sized) and len(ids) == 0)
