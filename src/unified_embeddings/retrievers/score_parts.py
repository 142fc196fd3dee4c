"""The parts of a passage's scores, from what is known of it.

What lives here: arithmetic over vectors, rankings and scores, which finds the share of each word,
token and list. What does not: asking Qdrant (`explain`), and the values returned (`explanation`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qdrant_client import models as qm

from unified_embeddings import heads
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.labels import label_rows
from unified_embeddings.embedders.values import Piece
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers.explanation import (
    ColbertPart,
    FusedPart,
    ListShare,
    PieceShare,
    SparsePart,
    TokenMatch,
    TokenShare,
)
from unified_embeddings.search.fusing import Ranking, fuse, fusion_terms


def explain_sparse(
    labels: Mapping[int, Piece],
    query: Mapping[int, float],
    passage: Mapping[int, float],
    contributions: Mapping[int, float],
    *,
    score: float,
    has_idf: bool,
) -> SparsePart:
    """Return the sparse score's parts: the question's words, each the sum of its pieces.

    Args:
        labels: The question's tokens by their ids, in the order of the text.
        query: The question's sparse vector.
        passage: The passage's.
        contributions: What each token that both have adds to the score.
        score: The score.
        has_idf: Whether the collection multiplies by IDF.
    """
    pieces_of_word: dict[str, list[PieceShare]] = {}
    for token_id, label in labels.items():
        product = query[token_id] * passage.get(token_id, 0.0)
        contribution = contributions.get(token_id, 0.0)
        idf = None
        if product:
            idf = contribution / product if has_idf else 1.0
        share = PieceShare(
            text=label.text,
            token_id=token_id,
            query_weight=query[token_id],
            passage_weight=passage.get(token_id, 0.0),
            idf=idf,
            contribution=contribution,
        )
        pieces_of_word.setdefault(label.word, []).append(share)
    tokens = [TokenShare(word, tuple(pieces)) for word, pieces in pieces_of_word.items()]
    tokens.sort(key=lambda token: -token.contribution)
    return SparsePart(score, tuple(tokens))


def explain_fusion(
    point_id: qm.ExtendedPointId,
    names: Sequence[str],
    rankings: Sequence[Ranking],
    weights: Sequence[float],
    fusion: Fusion,
) -> tuple[FusedPart, int | None]:
    """Return the fused score's parts, and the rank in the fused list.

    Args:
        point_id: The passage.
        names: What the lists are called.
        rankings: The lists, as deep as they are fused.
        weights: Their weights, above 0.
        fusion: How they are fused.
    """
    terms = fusion_terms(rankings, fusion, weights)
    lists = []
    for name, ranking, weight, terms_of_list in zip(names, rankings, weights, terms, strict=True):
        contribution = terms_of_list.get(point_id, 0.0)
        share = ListShare(
            name=name,
            rank=rank_of(point_id, ranking),
            weight=weight,
            value=contribution / weight,
            contribution=contribution,
        )
        lists.append(share)
    fused = fuse(rankings, fusion, weights)
    scores = {point.id: score for point, score in fused}
    part = FusedPart(scores.get(point_id, 0.0), fusion, tuple(lists))
    return part, rank_of(point_id, fused)


def explain_colbert(embedder: TextEmbedder, query: str, passage: str) -> ColbertPart:
    """Return which tokens of a passage a question's tokens meet, and how similar they are.

    Args:
        embedder: Has the ColBERT head.
        query: The question.
        passage: The passage, as it is embedded.

    Raises:
        InputError: If the embedder gives no ColBERT vectors.
    """
    asked = embedder.encode_query(query, dense=False, sparse=False, colbert=True).colbert
    read = embedder.encode_documents([passage], dense=False, sparse=False, colbert=True).colbert
    assert asked is not None
    assert read is not None
    similarities = heads.colbert_map(asked[0], read[0])
    similarities.setflags(write=False)
    query_tokens = label_rows(embedder, query, "query", len(asked[0]))
    passage_tokens = label_rows(embedder, passage, "document", len(read[0]))
    positions = similarities.argmax(axis=1).tolist()
    matches = []
    for token, row, position in zip(query_tokens, similarities, positions, strict=True):
        met = passage_tokens[position]
        match = TokenMatch(
            query=token.text,
            passage=met.text,
            query_word=token.word,
            passage_word=met.word,
            passage_position=position,
            score=float(row[position]),
        )
        matches.append(match)
    return ColbertPart(
        score=math.fsum(match.score for match in matches) / len(matches),
        matches=tuple(matches),
        query_tokens=tuple(token.text for token in query_tokens),
        passage_tokens=tuple(token.text for token in passage_tokens),
        similarities=similarities,
    )


def rank_of(point_id: qm.ExtendedPointId, ranking: Ranking) -> int | None:
    """Return where a point stands in a ranking, from 1; None if it is not there."""
    for rank, (point, _) in enumerate(ranking, 1):
        if point.id == point_id:
            return rank
    return None
