"""What a retriever finds for many questions, as a run that judgements can rate.

What lives here: asking the questions one by one, as a user would, and naming the judged document
that each node found belongs to. What does not: rating a run (`evaluation.metrics`), and writing it
to a file (`evaluation.trec`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import BaseNode, NodeWithScore

from unified_embeddings.evaluation.corpora import require_questions
from unified_embeddings.evaluation.documents import (
    POINT_ID,
    SAMPLED_QUERIES,
    choose_document_field,
    read_document_id,
)
from unified_embeddings.evaluation.rankings import Run
from unified_embeddings.validation import require_whole_number

_SOURCE_FIELDS = ("doc_id", "ref_doc_id", "document_id")
"""The fields in which LlamaIndex stores the name of the document that a node was cut from."""


def collect_run(
    retriever: BaseRetriever,
    queries: Mapping[str, str],
    *,
    document_field: str,
    depth: int | None = None,
    on_query: Callable[[int], None] | None = None,
) -> Run:
    """Ask a retriever all questions, and return which documents it found.

    A document stands where its best chunk stands. Nodes without the field belong to no judged
    document, and are left out. The order is the retriever's own: scores are rounded to single
    precision, in which trec_eval compares them, and those that tie are lowered by as little as
    makes the order certain. Where the smallest score is the best (a distance), its sign is changed.

    Questions are asked one at a time. It is faster to embed them in batches first, with
    `embedder.encode_queries(list(queries.values()))`: their vectors are then in the cache.

    Args:
        retriever: Any LlamaIndex retriever. How many nodes it returns is its own option
            (`similarity_top_k`).
        queries: Id → question.
        document_field: Field of the payload that names a node's document, "metadata.source" for one
            within another, or `documents.POINT_ID`; `find_document_field` finds it.
        depth: The most documents of a question; None keeps all that were found.
        on_query: Called with 1 after each question, as `progress_bar` wants it.

    Raises:
        InputError: If a question is blank, which is named, or `depth` is below 1.
        UnifiedEmbeddingsError: If the retriever fails.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import UnifiedEmbeddingConfig
        >>> from unified_embeddings.retrievers.runs import collect_run
        >>> config = UnifiedEmbeddingConfig("mini-m3")
        >>> store = config.vector_store("docs", client=QdrantClient(":memory:"))
        >>> nodes = [TextNode(text="Foxes jump over dogs.", metadata={"paper": "p7"})]
        >>> ids = store.add(config.text_model(nodes))
        >>> retriever = config.retriever(store, weights=(1, 1))
        >>> run = collect_run(retriever, {"q1": "Which foxes jump?"}, document_field="paper")
        >>> {paper: round(score, 4) for paper, score in run["q1"].items()}    # 2/61
        {'p7': 0.0328}
    """
    if depth is not None:
        require_whole_number("depth", depth)
    run: Run = {}
    for query_id, text in queries.items():
        found = _ask(retriever, query_id, text)
        run[query_id] = _score_documents(found, document_field, depth)
        if on_query is not None:
            on_query(1)
    return run


def find_document_field(
    retriever: BaseRetriever, queries: Mapping[str, str], judged_ids: Collection[str]
) -> str:
    """Return the field of a collection's payload that names the judged documents.

    The answers to the first 50 questions show it: whatever finds anything relevant finds points
    that belong to judged documents.

    Args:
        retriever: A retriever over the collection.
        queries: Id → question.
        judged_ids: The documents that judgements name.

    Raises:
        InputError: If no field of the points found holds a judged document.
        UnifiedEmbeddingsError: If the retriever fails.
    """
    points: dict[str, Mapping[str, object]] = {}
    for query_id, text in itertools.islice(queries.items(), SAMPLED_QUERIES):
        for scored in _ask(retriever, query_id, text):
            points[scored.node.node_id] = _rebuild_payload(scored.node)
    return choose_document_field(points.items(), judged_ids)


def _ask(retriever: BaseRetriever, query_id: str, text: str) -> list[NodeWithScore]:
    require_questions({query_id: text})
    return retriever.retrieve(text)


def _score_documents(
    found: Iterable[NodeWithScore], document_field: str, depth: int | None
) -> dict[str, float]:
    """Return the documents' scores, which fall from one document to the next."""
    best_scores: dict[str, float] = {}
    for scored in found:
        node = scored.node
        payload: Mapping[str, object] = {}
        if document_field != POINT_ID:
            payload = _rebuild_payload(node)
        document_id = read_document_id(node.node_id, payload, document_field)
        if document_id is not None:
            # Nodes come best first, so the first chunk of a document is its best.
            best_scores.setdefault(document_id, scored.score or 0.0)
    scores = list(best_scores.values())
    sign = -1.0 if scores and scores[-1] > scores[0] else 1.0
    falling: dict[str, float] = {}
    limit = np.float32(np.inf)
    for document_id, score in itertools.islice(best_scores.items(), depth):
        limit = min(np.float32(sign * score), np.nextafter(limit, np.float32(-np.inf)))
        falling[document_id] = float(limit)
    return falling


def _rebuild_payload(node: BaseNode) -> dict[str, object]:
    """Return the fields of a node's payload that may name its document.

    LlamaIndex writes a node's metadata at the top of the payload, and its document next to it.
    """
    payload: dict[str, object] = {}
    if node.ref_doc_id is not None:
        payload.update(dict.fromkeys(_SOURCE_FIELDS, node.ref_doc_id))
    payload.update(node.metadata)
    return payload
