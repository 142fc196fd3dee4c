"""Queries by examples: recommendation, discovery and context, as Qdrant's core takes them.

The core scores by several examples. The vector that `average_vector` searches by is computed here,
as a server computes it before it searches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.core_types import CoreQuery
from unified_embeddings.stores.edge.examples import Examples
from unified_embeddings.stores.edge.points import to_list
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.translation import unsupported
from unified_embeddings.stores.edge.vectors import to_core_vector


def to_core_recommendation(
    given: qm.RecommendInput, using: str, examples: Examples, settings: Settings
) -> CoreQuery:
    """Return a recommendation as the core takes it.

    Raises:
        InputError: If there is no example, an example has no fitting vector, or there is no such
            strategy.
    """
    positive = list(given.positive or ())
    negative = list(given.negative or ())
    strategy = given.strategy or qm.RecommendStrategy.AVERAGE_VECTOR
    if strategy == qm.RecommendStrategy.AVERAGE_VECTOR:
        if not positive:
            raise InputError(
                "the strategy average_vector needs a positive example; best_score and sum_scores "
                "take negative ones alone"
            )
        average = _average(
            list(map(examples.raw_vector, positive)),
            list(map(examples.raw_vector, negative)),
            using,
            settings,
        )
        vector = to_core_vector(using, average, settings)
        return core.Query.Nearest(vector, using=using or None)
    if not positive and not negative:
        raise InputError(f"the strategy {strategy.value} needs a positive or a negative example")
    query = core.RecommendQuery(
        list(map(examples.vector, positive)), list(map(examples.vector, negative))
    )
    if strategy == qm.RecommendStrategy.BEST_SCORE:
        return core.Query.RecommendBestScore(query, using=using or None)
    if strategy == qm.RecommendStrategy.SUM_SCORES:
        return core.Query.RecommendSumScores(query, using=using or None)
    raise unsupported(f"the strategy {strategy}")


def to_core_discovery(given: qm.DiscoverInput, using: str, examples: Examples) -> CoreQuery:
    """Return a search for a target within a context, as the core takes it.

    Raises:
        InputError: If an example has no fitting vector.
    """
    target = examples.vector(given.target)
    query = core.DiscoverQuery(target, _to_core_pairs(given.context, examples))
    return core.Query.Discover(query, using=using or None)


def to_core_context(given: Any, using: str, examples: Examples) -> CoreQuery:
    """Return a search by a context alone, as the core takes it.

    Raises:
        InputError: If it has no pair, or an example has no fitting vector.
    """
    pairs = _to_core_pairs(given, examples)
    if not pairs:
        raise InputError("a context needs a pair of a positive and a negative example")
    return core.Query.Context(core.ContextQuery(pairs), using=using or None)


def _to_core_pairs(context: Any, examples: Examples) -> list[CoreQuery]:
    pairs = [context] if isinstance(context, qm.ContextPair) else to_list(context, "the context")
    return [
        core.ContextPair(examples.vector(pair.positive), examples.vector(pair.negative))
        for pair in pairs
    ]


def _average(positive: list[Any], negative: list[Any], using: str, settings: Settings) -> Any:
    """Return the mean of the positive examples, moved away from that of the negative ones.

    Multi-vectors have no mean. Their rows are put together, those of negative examples negated.
    """
    # Checked one by one, so that an error is about the example and not about their mean.
    for example in (*positive, *negative):
        to_core_vector(using, example, settings)
    if using in settings.sparse_vectors:
        return _average_sparse(positive, negative)
    if settings.vectors[using].multivector_config is not None:
        rows = [np.atleast_2d(np.asarray(example, np.float32)) for example in positive]
        rows += [-np.atleast_2d(np.asarray(example, np.float32)) for example in negative]
        return np.concatenate(rows)
    mean = np.mean(np.asarray(positive, np.float64), axis=0)
    if negative:
        mean = 2 * mean - np.mean(np.asarray(negative, np.float64), axis=0)
    return mean


def _average_sparse(
    positive: Sequence[qm.SparseVector], negative: Sequence[qm.SparseVector]
) -> qm.SparseVector:
    totals: dict[int, float] = {}
    factor = 2 if negative else 1
    for share, vectors in (
        (factor / len(positive), positive),
        (-1 / max(len(negative), 1), negative),
    ):
        for vector in vectors:
            for index, value in zip(vector.indices, vector.values, strict=True):
                totals[index] = totals.get(index, 0.0) + share * value
    return qm.SparseVector(indices=list(totals), values=list(totals.values()))
