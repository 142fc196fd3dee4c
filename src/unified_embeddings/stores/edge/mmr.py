"""Maximal marginal relevance: hits that are near the query and not near each other.

The core diversifies by dense vectors and multi-vectors, but not by sparse ones. Those are
diversified here, exactly and by the same rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.bounds import require_range
from unified_embeddings.stores.edge.core_types import (
    CorePoint,
    CoreQuery,
    CoreShard,
    CoreVector,
)
from unified_embeddings.stores.edge.fused_order import DEFAULT_LIMIT
from unified_embeddings.validation import require_whole_number

_DEFAULT_DIVERSITY = 0.5
_MOST_CANDIDATES = 16_384
"""A server's bound. The core compares all pairs, which takes a gigabyte for so many."""


def is_mmr(query: object) -> bool:
    """Tell whether a query asks for diverse hits."""
    return isinstance(query, qm.NearestQuery) and query.mmr is not None


def count_mmr_candidates(mmr: qm.Mmr, limit: int | None) -> int:
    """Return how many of the nearest points are chosen from: by default as many as are returned.

    Raises:
        InputError: If it is not a number of at least one, or too many to compare with each other.
    """
    count = mmr.candidates_limit
    if count is None:
        count = DEFAULT_LIMIT if limit is None else limit
    require_whole_number("candidates_limit", count)
    if count > _MOST_CANDIDATES:
        raise InputError(
            f"MMR chooses from at most {_MOST_CANDIDATES} candidates, as each is compared with "
            f"each; got {count}. Set candidates_limit="
        )
    return count


def relevance_share(mmr: qm.Mmr) -> float:
    """Return the weight of a hit's nearness to the query; the rest is that of its difference.

    Raises:
        InputError: If the diversity is not from 0 to 1.
    """
    require_range("diversity", mmr.diversity, 0, 1)
    diversity = _DEFAULT_DIVERSITY if mmr.diversity is None else mmr.diversity
    return 1.0 - diversity


def to_core_mmr(mmr: qm.Mmr, vector: CoreVector, using: str, limit: int | None) -> CoreQuery:
    """Return a search for diverse hits by a dense vector or a multi-vector, for the core.

    Raises:
        InputError: If an option is out of bounds.
    """
    return core.Mmr(
        vector, relevance_share(mmr), count_mmr_candidates(mmr, limit), using=using or None
    )


def mmr_prefetch_error() -> InputError:
    """Return the error for diverse hits that would be fused, or scored by a formula.

    Within a prefetch the core does not diversify, without saying so.
    """
    return InputError(
        "MMR within a prefetch that is fused, or scored by a formula, is not possible in the "
        "embedded store; make it the query, and the fusion or the formula its prefetch"
    )


def diversify(
    points: Sequence[CorePoint],
    query: Mapping[int, float],
    using: str,
    share: float,
    core_shard: CoreShard,
) -> list[CorePoint]:
    """Return points in the order in which MMR chooses them by their sparse vectors.

    The first is the one nearest to the query. Each next one has the largest of `share` times its
    nearness to the query minus `1 - share` times its nearness to the nearest one chosen before.
    Of equals the last is chosen, as the core does it.

    Args:
        points: The candidates.
        query: The query's values by index.
        using: The name of the vector.
        share: The weight of the nearness to the query.
        core_shard: Where the vectors of the candidates are read.
    """
    found = core_shard.retrieve([point.id for point in points], False, [using])
    vectors = {record.id: sparse_values(record.vector[using]) for record in found}
    rest = [point for point in points if point.id in vectors]
    relevance = {point.id: _dot(query, vectors[point.id]) for point in rest}
    nearest_chosen = dict.fromkeys(vectors, 0.0)
    marginal = dict(relevance)
    chosen: list[CorePoint] = []
    while rest:
        best = max(range(len(rest)), key=lambda place: (marginal[rest[place].id], place))
        # The core fills the gap with the last candidate, which matters among equals.
        rest[best], rest[-1] = rest[-1], rest[best]
        point = rest.pop()
        for other in rest:
            likeness = _dot(vectors[point.id], vectors[other.id])
            if chosen:
                likeness = max(likeness, nearest_chosen[other.id])
            nearest_chosen[other.id] = likeness
            marginal[other.id] = share * relevance[other.id] - (1.0 - share) * likeness
        chosen.append(point)
    return chosen


def sparse_values(vector: Any) -> dict[int, float]:
    """Return a sparse vector's values by index."""
    return dict(zip(vector.indices, vector.values, strict=True))


def _dot(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    return sum(value * other[index] for index, value in one.items() if index in other)
