"""Tell a better ranking from a luckier one: how sure is the difference of two paired means?

What lives here: the paired randomisation test, and the bootstrap interval of a mean difference.
What does not: the scores that are compared (`rankings`).

The same queries are answered by two systems, so that each query gives one difference. Both methods
draw from these differences and assume nothing about their distribution, which for nDCG is far from
normal: many are exactly 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.errors import InputError

_ROUNDS = 10_000
"""Random draws of each method: p-values near 0.05 are then exact to about 0.004."""
_ROUNDS_PER_BLOCK = 500
"""Draws made at once, so that ten thousand queries need tens of megabytes."""
_ROUNDING = 1e-12
"""Means that differ by less are the same mean, summed in another order."""

_Differences = NDArray[np.float64]


@dataclass(frozen=True)
class PairedDifference:
    """How much better a candidate is than a reference, over the same queries.

    Attributes:
        mean: Mean of candidate - reference.
        low: Lower end of the mean's 95% bootstrap interval.
        high: Upper end of the interval.
        p_value: Two-sided p of the paired randomisation test: how often chance alone would give a
            mean at least this far from 0.
        queries: Number of queries.
    """

    mean: float
    low: float
    high: float
    p_value: float
    queries: int


def compare_scores(
    reference: Mapping[str, float], candidate: Mapping[str, float], *, seed: int = 0
) -> PairedDifference:
    """Compare two systems by their scores for the same queries.

    Args:
        reference: Query id → score, at least one.
        candidate: Query id → score, for the same queries.
        seed: Of the random draws; the same seed gives the same result.

    Raises:
        InputError: If the queries differ, there are none, or a score is not finite.

    Example:
        >>> from unified_embeddings.evaluation.significance import compare_scores
        >>> dense = {"q1": 0.2, "q2": 0.5, "q3": 0.4}
        >>> fused = {"q1": 0.4, "q2": 0.6, "q3": 0.7}
        >>> result = compare_scores(dense, fused)
        >>> round(result.mean, 3), result.p_value    # 2 of the 8 ways to flip the signs
        (0.2, 0.25)
    """
    if reference.keys() != candidate.keys():
        only_one = sorted(reference.keys() ^ candidate.keys())
        raise InputError(
            f"expected scores of the same queries, but {len(only_one)} are in one of the two only, "
            f"such as {only_one[0]!r}"
        )
    differences = [candidate[query_id] - reference[query_id] for query_id in reference]
    low, high = bootstrap_interval(differences, seed=seed)
    return PairedDifference(
        mean=math.fsum(differences) / len(differences),
        low=low,
        high=high,
        p_value=randomisation_test(differences, seed=seed),
        queries=len(differences),
    )


def randomisation_test(
    differences: Sequence[float], *, rounds: int = _ROUNDS, seed: int = 0
) -> float:
    """Return the two-sided p-value of the paired randomisation test (Fisher's) of the mean.

    If the two systems were equally good, each query's difference could as well have the other
    sign. p is the share of all ways to choose the signs whose mean is at least as far from 0 as the
    observed one. If there are more than `rounds` ways, p is estimated from as many random ones, the
    observed one counted among them, so that it is never 0 (Phipson and Smyth 2010). Smucker, Allan
    and Carterette 2007 recommend this test for comparing retrieval systems.

    Args:
        differences: Candidate - reference for each query, at least one.
        rounds: Random draws, if not all ways are tried.
        seed: Of the draws.

    Raises:
        InputError: If there are no differences, or one is not finite.
    """
    values = _require_differences(differences)
    # The sign of a 0 changes no sum.
    values = values[values != 0]
    if not len(values):
        return 1.0
    observed = abs(values.sum()) - _ROUNDING * len(values)
    if len(values) <= math.log2(rounds):
        all_signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(values))))
        return float(np.mean(np.abs(all_signs @ values) >= observed))
    extreme = 0
    generator = np.random.default_rng(seed)
    for block in _blocks(rounds):
        is_flipped = generator.random((block, len(values)), dtype=np.float32) < 0.5
        # Flipping a sign takes the value out of the sum twice.
        sums = values.sum() - 2 * (is_flipped @ values)
        extreme += int(np.count_nonzero(np.abs(sums) >= observed))
    return (1 + extreme) / (1 + rounds)


def bootstrap_interval(
    differences: Sequence[float],
    *,
    confidence: float = 0.95,
    rounds: int = _ROUNDS,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the bootstrap interval of the mean difference, by percentiles.

    The queries are drawn anew with replacement, as many as there are, `rounds` times. The interval
    holds the middle `confidence` of the means (Efron and Tibshirani 1993, chapter 13).

    Args:
        differences: Candidate - reference for each query, at least one.
        confidence: Share of the means that the interval holds, between 0 and 1.
        rounds: Random draws.
        seed: Of the draws.

    Returns:
        The lower and the upper end.

    Raises:
        InputError: If there are no differences, one is not finite, or `confidence` is out of range.
    """
    values = _require_differences(differences)
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, got {confidence}")
    generator = np.random.default_rng(seed)
    means: list[_Differences] = []
    for block in _blocks(rounds):
        rows = generator.integers(len(values), size=(block, len(values)))
        means.append(values[rows].mean(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return float(low), float(high)


def _require_differences(differences: Sequence[float]) -> _Differences:
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise InputError(f"expected a difference for each query, got shape {values.shape}")
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"expected finite differences, got {values[bad]}", index=bad)
    return values


def _blocks(rounds: int) -> Iterator[int]:
    """Yield the sizes of the blocks that `rounds` draws are made in."""
    for start in range(0, rounds, _ROUNDS_PER_BLOCK):
        yield min(_ROUNDS_PER_BLOCK, rounds - start)
