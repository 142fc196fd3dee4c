"""Tell a better ranking from a luckier one: how sure is the difference of two paired means?

What lives here: the paired randomisation test, the paired t-test, the bootstrap interval of a mean,
and how small a difference so many queries can show at all. What does not: the scores that are
compared (`rankings`, `metrics`).

The same queries are answered by two systems, so that each query gives one difference. The
randomisation test and the bootstrap draw from these differences and assume nothing about their
distribution, which for nDCG is far from normal: many are exactly 0. The t-test assumes that the
mean is normally distributed, which it nearly is for more than a few dozen queries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.errors import InputError
from unified_embeddings.validation import require_whole_number

_ROUNDS = 10_000
"""Random draws of each method: p-values near 0.05 are then exact to about 0.004."""
_ROUNDS_PER_BLOCK = 500
"""Draws made at once, so that ten thousand queries need tens of megabytes."""
_ROUNDING = 1e-12
"""Means that differ by less are the same mean, summed in another order."""

_CONFIDENCE = 0.95
"""Share of the cases in which an interval holds the true mean, unless another is given."""

TYPICAL_DEVIATION = 0.2
"""Standard deviation of a query's difference of nDCG@10 between two systems, before it is measured.

Measured with mini-m3's dense, sparse and fused rankings and BM25, in pairs, on MED, CACM and
XQuAD-R English: from 0.10 to 0.33, the median of 18 pairs is 0.19.
"""

_Differences = NDArray[np.float64]


@dataclass(frozen=True)
class TTest:
    """A paired t-test (Student's) of a mean difference.

    Attributes:
        p_value: Two-sided.
        low: Lower end of the mean's 95% interval.
        high: Upper end of the interval.
    """

    p_value: float
    low: float
    high: float


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
        t_test: The paired t-test of the same mean; None for a single query.
        half_width: Half the width of the mean's 95% interval, by the t-test: a mean nearer to 0
            cannot be told from 0 with these queries. None for a single query.
    """

    mean: float
    low: float
    high: float
    p_value: float
    queries: int
    t_test: TTest | None = None
    half_width: float | None = None


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
    outcome, width = None, None
    if len(differences) > 1:
        outcome, width = t_test(differences), half_width(differences)
    return PairedDifference(
        mean=math.fsum(differences) / len(differences),
        low=low,
        high=high,
        p_value=randomisation_test(differences, seed=seed),
        queries=len(differences),
        t_test=outcome,
        half_width=width,
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


def t_test(differences: Sequence[float], *, confidence: float = _CONFIDENCE) -> TTest:
    """Return the paired t-test of the mean.

    Differences that are all the same, give or take rounding, have no deviation: p is 1 if they are
    0, else 0, and the interval is the mean alone.

    Args:
        differences: Candidate - reference for each query, at least two.
        confidence: Share of the cases in which the interval holds the true mean, between 0 and 1.

    Raises:
        InputError: If there are fewer than two differences, one is not finite, or `confidence` is
            out of range.
    """
    from scipy.special import stdtr  # Here, since it takes 0.1 s and most callers test nothing.

    values = _require_several(differences)
    reach = half_width(differences, confidence=confidence)
    mean = math.fsum(values) / len(values)
    error = _standard_error(values)
    p_value = 1.0
    if error:
        p_value = 2 * float(stdtr(len(values) - 1, -abs(mean) / error))
    elif abs(mean) > _ROUNDING:
        p_value = 0.0
    return TTest(p_value=p_value, low=mean - reach, high=mean + reach)


def half_width(
    scores: Sequence[float] | int,
    *,
    confidence: float = _CONFIDENCE,
    deviation: float = TYPICAL_DEVIATION,
) -> float:
    """Return half the width of the interval of a mean difference, if need be beforehand.

    A difference that is smaller cannot be told from none with so many queries.

    Args:
        scores: What is known. Measured: each query's difference between two systems. Beforehand:
            each query's score by the one system that there is; the differences to another are then
            taken to deviate as much as these, which they do if both systems' scores correlate by
            0.5. Similar systems correlate more, and the width is then smaller. Or the number of
            queries alone, which takes `deviation`.
        confidence: Share of the cases in which the interval holds the true mean, between 0 and 1.
        deviation: Standard deviation of a query's difference, where only their number is known.

    Raises:
        InputError: If there are fewer than two queries, a score is not finite, or `confidence` is
            out of range.

    Example:
        >>> from unified_embeddings.evaluation.significance import half_width
        >>> round(half_width(50), 3)    # 2.01 · 0.2 / √50
        0.057
    """
    from scipy.special import stdtrit

    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, got {confidence}")
    if isinstance(scores, int):
        count = require_whole_number("the number of queries", scores, least=2)
        error = deviation / math.sqrt(count)
    else:
        values = _require_several(scores)
        count = len(values)
        error = _standard_error(values)
    return float(stdtrit(count - 1, (1 + confidence) / 2)) * error


def bootstrap_interval(
    differences: Sequence[float],
    *,
    confidence: float = _CONFIDENCE,
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


def _standard_error(values: _Differences) -> float:
    """Return the standard error of the mean of at least two values; rounding alone counts as 0."""
    spread = float(values.std(ddof=1))
    if spread <= _ROUNDING * max(1.0, float(np.abs(values).max())):
        return 0.0
    return spread / math.sqrt(len(values))


def _require_several(differences: Sequence[float]) -> _Differences:
    values = _require_differences(differences)
    if len(values) < 2:
        raise InputError("expected at least two queries; a single one has no deviation")
    return values


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
