"""Candidates ordered anew by ColBERT scores: those of stored vectors, or of their texts.

What lives here: each candidate's score, and the order. What does not: the request that has Qdrant
score stored vectors (`search.plan`), and how long encoding takes (`search.encoding_time`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llama_index.core.schema import MetadataMode
from qdrant_client import models as qm

from unified_embeddings import heads
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.fusion import sort_by_score
from unified_embeddings.llama.collection_reader import CollectionReader
from unified_embeddings.search.encoding_time import CandidateEncoder
from unified_embeddings.search.fusing import Ranking
from unified_embeddings.search.ranking import TOLERANCE
from unified_embeddings.stores.stored_colbert import StoredColbert
from unified_embeddings.types import FloatArray

TokenScores = Mapping[qm.ExtendedPointId, float]
"""Of the points that hold ColBERT vectors, the score that Qdrant gave them: the sum over the
question's rows of the best product."""


class Reranker:
    """Orders the points that a search found by their ColBERT scores.

    A point that holds no ColBERT vectors, since other software added it or it was there before
    them, is scored by its text, which is encoded then.

    Args:
        reader: Reads the points' texts.
        embedder: Encodes them.
    """

    def __init__(self, reader: CollectionReader, embedder: TextEmbedder) -> None:
        self._reader = reader
        self._encoder = CandidateEncoder(embedder)

    def rerank(
        self,
        question: FloatArray,
        candidates: Ranking,
        stored: StoredColbert | None,
        token_scores: TokenScores,
    ) -> list[tuple[qm.ScoredPoint, float]]:
        """Return the points with their ColBERT scores, best first.

        A score is the mean over the question's rows of the best product with one of the passage's.
        Points whose scores tie keep their order.

        Args:
            question: The question's ColBERT vectors, float32 (q, d).
            candidates: The points, best first.
            stored: How the collection's points hold ColBERT vectors; None if they hold none.
            token_scores: What Qdrant computed from them.
        """
        scores = {point_id: score / len(question) for point_id, score in token_scores.items()}
        lacking = [point for point, _ in candidates if point.id not in scores]
        if lacking:
            rows_of_texts = self._encoder.encode(
                self._read_texts(lacking), self._reader.collection, stored
            )
            for point, rows in zip(lacking, rows_of_texts, strict=True):
                scores[point.id] = heads.colbert_score(question, rows)
        places = [(place, scores[point.id]) for place, (point, _) in enumerate(candidates)]
        ordered = sort_by_score(places, lambda place: place, absolute=TOLERANCE)
        return [(candidates[place][0], score) for place, score in ordered]

    def _read_texts(self, points: Sequence[qm.ScoredPoint]) -> list[str]:
        nodes = self._reader.to_nodes(points, [point.score for point in points])
        return [scored.node.get_content(metadata_mode=MetadataMode.EMBED) for scored in nodes]
