"""Scores of one ranking on a scale that those of another ranking have too, for `fusion`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unified_embeddings.errors import InputError


def spread_by_deviation(scores: Sequence[float]) -> list[float]:
    """Map scores so that their mean becomes 0.5, and three standard deviations around it 0 and 1.

    Raises:
        InputError: If a score is not finite.
    """
    scores = _shrink(scores)
    if _are_alike(scores):
        return [0.5] * len(scores)
    mean = math.fsum(scores) / len(scores)
    reach = 3 * _deviation(scores)
    return [(score - mean + reach) / (2 * reach) for score in scores]


def spread_by_range(scores: Sequence[float]) -> list[float]:
    """Map scores so that the lowest becomes 0 and the highest 1; equal ones become 1.

    Raises:
        InputError: If a score is not finite.
    """
    scores = _shrink(scores)
    if _are_alike(scores):
        return [1.0] * len(scores)
    lowest = min(scores)
    reach = max(scores) - lowest
    return [(score - lowest) / reach for score in scores]


def count_deviations(scores: Sequence[float]) -> list[float]:
    """Return by how many standard deviations each score is above the lowest; 1 for equal ones.

    Raises:
        InputError: If a score is not finite.
    """
    scores = _shrink(scores)
    if _are_alike(scores):
        return [1.0] * len(scores)
    lowest = min(scores)
    deviation = _deviation(scores)
    return [(score - lowest) / deviation for score in scores]


def _shrink(scores: Sequence[float]) -> list[float]:
    """Return scores scaled by a power of two so that the largest of them is below 1.

    That changes no digit, and squares of the largest and smallest floats stay floats.

    Raises:
        InputError: If a score is not finite.
    """
    if any(not math.isfinite(score) for score in scores):
        raise InputError(f"scores must be finite numbers, got {list(scores)}")
    exponent = math.frexp(max(map(abs, scores), default=0.0))[1]
    return [math.ldexp(score, -exponent) for score in scores]


def _are_alike(scores: Sequence[float]) -> bool:
    return not scores or max(scores) == min(scores)


def _deviation(scores: Sequence[float]) -> float:
    """Return the sample's standard deviation of two scores or more."""
    mean = math.fsum(scores) / len(scores)
    variance = math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
    return math.sqrt(variance)
