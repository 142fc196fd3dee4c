"""Conditions on numbers that are exact for whole numbers of any size.

Qdrant compares in order as 64-bit floats, on a server and in its core. Below 2^53 that is exact.
Beyond, several whole numbers round to the same float: account numbers and timestamps in nanoseconds
are of that size. So the numbers next to a bound are listed one by one, which Qdrant compares as the
integers they are, and the range begins where rounding no longer matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from qdrant_client import models as qm

_EXACT_BELOW = 2**53
"""Every whole number below is a float of its own."""
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
"""Qdrant's integers."""
_GROUP = 4
"""How many numbers or groups are tried one after the other."""


def fits(number: float) -> bool:
    """Tell whether a number is one that Qdrant can compare exactly."""
    if isinstance(number, int):
        return _SMALLEST <= number <= _LARGEST
    return math.isfinite(number)


def equals_any(path: str, numbers: Iterable[float]) -> list[qm.Condition]:
    """Return conditions of which one holds where a field is one of the numbers; 2 equals 2.0."""
    distinct = sorted(set(numbers))
    conditions = _is_in_tree(path, [each for each in distinct if not _is_rounded(each)])
    rounded = [each for each in distinct if _is_rounded(each)]
    if rounded:
        conditions.append(_is_one_of(path, map(int, rounded)))
    floats = sorted({float(each) for each in rounded if float(each) == each})
    conditions += [_is_float(path, each) for each in floats]
    return conditions


def at_least(path: str, bound: float) -> list[qm.Condition]:
    """Return conditions of which one holds where a field is a number >= bound."""
    if not _is_rounded(bound):
        return [_in_range(path, gte=bound)]
    rounded = float(bound)
    next_float = math.nextafter(rounded, math.inf)
    conditions = [
        _in_range(path, gte=next_float),
        _is_one_of(path, range(int(bound), int(next_float))),
    ]
    if rounded >= bound:
        conditions.append(_is_float(path, rounded))
    return conditions


def at_most(path: str, bound: float) -> list[qm.Condition]:
    """Return conditions of which one holds where a field is a number <= bound."""
    if not _is_rounded(bound):
        return [_in_range(path, lte=bound)]
    rounded = float(bound)
    next_float = math.nextafter(rounded, -math.inf)
    conditions = [
        _in_range(path, lte=next_float),
        _is_one_of(path, range(int(next_float) + 1, int(bound) + 1)),
    ]
    if rounded <= bound:
        conditions.append(_is_float(path, rounded))
    return conditions


def above(path: str, bound: float) -> list[qm.Condition]:
    """Return conditions of which one holds where a field is a number > bound."""
    if not _is_rounded(bound):
        return [_in_range(path, gt=bound)]
    return at_least(path, int(bound) + 1)  # no number of this size has a fraction


def below(path: str, bound: float) -> list[qm.Condition]:
    """Return conditions of which one holds where a field is a number < bound."""
    if not _is_rounded(bound):
        return [_in_range(path, lt=bound)]
    return at_most(path, int(bound) - 1)


def _is_rounded(number: float) -> bool:
    """Tell whether integers near a number may become the same float as it."""
    return _EXACT_BELOW <= abs(number) <= 2 * (_LARGEST + 1)


def _is_in_tree(path: str, numbers: Sequence[float]) -> list[qm.Condition]:
    """Return conditions of which one holds where a field is one of the numbers.

    Qdrant's own "one of" compares integers with integers only. One range for each number would be
    tried one after the other at every point, which takes seconds for a hundred numbers. So they
    form a tree: the range of a group is tried before the numbers in it.

    Args:
        path: The field.
        numbers: Ascending, each exact as a float.
    """
    if len(numbers) <= _GROUP:
        return [_in_range(path, gte=number, lte=number) for number in numbers]
    size = -(-len(numbers) // _GROUP)
    groups = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    return [
        qm.Filter(
            must=[
                _in_range(path, gte=group[0], lte=group[-1]),
                qm.Filter(should=_is_in_tree(path, group)),
            ]
        )
        for group in groups
    ]


def _in_range(path: str, **bounds: float) -> qm.Condition:
    return qm.FieldCondition(key=path, range=qm.Range(**bounds))


def _is_one_of(path: str, numbers: Iterable[int]) -> qm.Condition:
    """Return the condition that a field is one of some integers, as far as Qdrant has them."""
    integers = [number for number in numbers if _SMALLEST <= number <= _LARGEST]
    return qm.FieldCondition(key=path, match=qm.MatchAny(any=integers))


def _is_float(path: str, number: float) -> qm.Condition:
    """Return the condition that a field is this float, and not an integer that rounds to it."""
    lowest = (int(math.nextafter(number, -math.inf)) + int(number)) // 2
    highest = (int(math.nextafter(number, math.inf)) + int(number)) // 2
    return qm.Filter(
        must=[_in_range(path, gte=number, lte=number)],
        must_not=[_is_one_of(path, range(lowest, highest + 1))],
    )
