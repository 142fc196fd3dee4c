"""How relevant the points of an answer are, by a calibration.

What lives here: which lists and which order go into the arithmetic, and whether a calibration holds
for a collection. What does not: the arithmetic (`relevance`, `models.calibration`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qdrant_client import models as qm

from unified_embeddings.models.calibration import WEAK_HITS, Calibration
from unified_embeddings.relevance import level_in_order
from unified_embeddings.search.branches import Branch
from unified_embeddings.search.fusing import Ranking, scored_ids
from unified_embeddings.types import SparseVector

_COSINES = (qm.Distance.COSINE, qm.Distance.DOT)
"""Distances by which unit vectors have their cosine as score."""


@dataclass(frozen=True)
class JudgedAnswer:
    """How relevant an answer's points are.

    Attributes:
        ranking: The points in the fused order, with their relevance, which never rises.
        weak: Whether the best of them are no better than chance; None: not known.
    """

    ranking: Ranking
    weak: bool | None


def judge_answer(
    calibration: Calibration,
    lists: Mapping[str, Ranking],
    fused: Ranking,
    sparse_query: SparseVector | None,
) -> JudgedAnswer:
    """Return how relevant the points of an answer are.

    The fused order stays. Where a point is more relevant than those before it, they share their
    mean, so that scores fall in the order of the nodes.

    Args:
        calibration: Judges them.
        lists: The lists by name.
        fused: All points that were fused from them, best first.
        sparse_query: The question's sparse vector.
    """
    query_weight = 0.0 if sparse_query is None else float(sparse_query.values.sum())
    relevances = calibration.judge(
        scored_ids(lists.get("dense", ())),
        scored_ids(lists.get("sparse", ())),
        query_weight=query_weight,
    )
    own = [relevances[point.id] for point, _ in fused]
    level = level_in_order(own)
    ranking = [(point, relevance) for (point, _), relevance in zip(fused, level, strict=True)]
    return JudgedAnswer(ranking, calibration.is_weak(max(own[:WEAK_HITS], default=0.0)))


def can_judge(
    calibration: Calibration,
    branches: Sequence[Branch],
    rankings: Sequence[Sequence[qm.ScoredPoint]],
    sparse_query: SparseVector | None,
) -> bool:
    """Tell whether both lists were searched as deep as a calibration reads them.

    Args:
        calibration: Would judge the answer.
        branches: What was searched.
        rankings: What each found.
        sparse_query: The question's sparse vector; empty, it has no list.
    """
    needed = {"dense"}
    if sparse_query is not None and len(sparse_query) > 0:
        needed.add("sparse")
    if not needed <= {branch.list_name for branch in branches}:
        return False
    for branch, points in zip(branches, rankings, strict=True):
        is_all_there_is = len(points) < branch.depth
        if branch.depth < calibration.depth and not is_all_there_is:
            return False
    return True


def has_usual_scores(
    info: qm.CollectionInfo, *, dense_name: str, sparse_name: str, sparse_idf: bool
) -> bool:
    """Tell whether a collection scores as the model's own collections do.

    A collection of other software may measure distances, or have no IDF where the model's have it.

    Args:
        info: What Qdrant reports about it.
        dense_name: Name of its dense vectors; "" for unnamed ones.
        sparse_name: Name of its sparse vectors.
        sparse_idf: Whether the model's collections multiply sparse scores by IDF.
    """
    vectors = info.config.params.vectors
    dense = vectors.get(dense_name) if isinstance(vectors, dict) else vectors
    sparse = (info.config.params.sparse_vectors or {}).get(sparse_name)
    if dense is None or sparse is None or dense.distance not in _COSINES:
        return False
    return (sparse.modifier == qm.Modifier.IDF) == sparse_idf
