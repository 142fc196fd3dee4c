"""Points of several rankings as one ranking: what a `Fusion` says, applied to Qdrant's points.

What lives here: which scores go into which arithmetic. What does not: the arithmetic (`fusion`, on
the ground), and the order of each ranking (`ranking`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from qdrant_client import models as qm

from unified_embeddings.fusion import dbsf, dbsf_terms, rrf, rrf_terms
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.search.ranking import id_order

Ranking: TypeAlias = Sequence[tuple[qm.ScoredPoint, float]]
"""Points with their scores, best first, as `ranking.order_points` orders them."""


def fuse(
    rankings: Sequence[Ranking], fusion: Fusion, weights: Sequence[float]
) -> list[tuple[qm.ScoredPoint, float]]:
    """Return the points of several rankings with their fused scores, best first.

    Points whose fused scores tie are ordered by the better of their single ranks, then by id.

    Args:
        rankings: As deep as they are to be fused.
        fusion: By rank or by score, and RRF's damping.
        weights: One for each ranking.
    """
    points_by_id: dict[qm.ExtendedPointId, qm.ScoredPoint] = {}
    for ranking in rankings:
        points_by_id.update((point.id, point) for point, _ in ranking)
    if fusion.method == "dbsf":
        fused = dbsf([scored_ids(ranking) for ranking in rankings], weights, tie_key=id_order)
    else:
        ids_by_rank = [[point.id for point, _ in ranking] for ranking in rankings]
        fused = rrf(ids_by_rank, fusion.k, weights, tie_key=id_order)
    return [(points_by_id[point_id], score) for point_id, score in fused]


def fusion_terms(
    rankings: Sequence[Ranking], fusion: Fusion, weights: Sequence[float]
) -> list[dict[qm.ExtendedPointId, float]]:
    """Return what each ranking adds to the fused score of each of its points.

    Args:
        rankings: As in `fuse`.
        fusion: As in `fuse`.
        weights: One for each ranking, above 0.
    """
    if fusion.method == "dbsf":
        terms = dbsf_terms([scored_ids(ranking) for ranking in rankings], weights)
    else:
        terms = rrf_terms([[point.id for point, _ in r] for r in rankings], fusion.k, weights)
    return [dict(of_ranking) for of_ranking in terms]


def scored_ids(ranking: Ranking) -> list[tuple[qm.ExtendedPointId, float]]:
    """Return ids with scores of which the highest is the best.

    Where the collection measures distances (Euclid, Manhattan), the smallest comes first.
    """
    are_distances = bool(ranking) and ranking[-1][1] > ranking[0][1]
    sign = -1 if are_distances else 1
    return [(point.id, sign * score) for point, score in ranking]
