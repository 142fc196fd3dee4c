"""Checks of what callers pass, shared by all rooms.

What lives here: checks that raise an InputError which names the argument. What does not: checks of
one class's own options, which stand in that class.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterable, KeysView, Mapping, Sequence, Set
from numbers import Real
from typing import TypeGuard, cast

import numpy as np

from unified_embeddings.errors import InputError
from unified_embeddings.types import FloatArray

_LARGEST = 2**63 - 1
"""What other languages' libraries count with."""


def require_whole_number(name: str, value: object, *, least: int = 1) -> int:
    """Return a whole number as an int, and refuse everything else.

    Args:
        name: What the caller calls it, for the message.
        value: What came: an int, or another type that Python takes for an index, such as NumPy's
            integers. A bool is not a number here.
        least: The smallest value allowed.

    Raises:
        InputError: If it is not a whole number, below `least`, or one that no machine counts to.
    """
    number = None
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            number = operator.index(value)  # type: ignore[arg-type]  # refuses what it cannot take
    if number is None or number < least:
        raise InputError(f"{name} must be a whole number >= {least}, got {value!r:.80}")
    if number > _LARGEST:
        raise InputError(f"{name} must be a whole number <= {_LARGEST}")
    return number


def is_weight(value: object) -> TypeGuard[float]:
    """Tell whether a value is a finite real number >= 0; NumPy's numbers are."""
    if not isinstance(value, Real):
        return False
    try:
        return 0 <= float(value) < math.inf
    except OverflowError:  # of an int with hundreds of digits
        return False


def require_share(name: str, value: object) -> float:
    """Return a number from 0 to 1 as a float, and refuse everything else.

    Args:
        name: What the caller calls it, for the message.
        value: What came: Python's or NumPy's number. A bool is not a number here.

    Raises:
        InputError: If it is no number, or out of range.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) <= 1:
        raise InputError(f"{name} must be a number from 0 to 1, got {value!r:.80}")
    return float(value)


def require_weights(weights: object, *, of: str) -> tuple[float, float]:
    """Return two weights as floats, and refuse everything else.

    Args:
        weights: What came: a tuple, a list or an array of two numbers.
        of: What the two weigh, for the message.

    Raises:
        InputError: If it is not two finite numbers >= 0, or both are 0.
    """
    pair = _read_weights(weights)
    if len(pair) != 2:
        raise InputError(f"weights must be two numbers >= 0, {of}, not both 0; got {weights!r}")
    return pair[0], pair[1]


def require_list_weights(weights: object) -> tuple[float, ...]:
    """Return the weights of the lists of a search as floats, and refuse everything else.

    Args:
        weights: What came: two numbers for the dense and the sparse list, or three, the last one
            for the keyword list.

    Raises:
        InputError: If it is not two or three finite numbers >= 0, or all are 0.
    """
    numbers = _read_weights(weights)
    if len(numbers) not in (2, 3):
        raise InputError(
            "weights must be two numbers >= 0, dense and sparse, or three with the keyword list's, "
            f"not all 0; got {weights!r}"
        )
    return numbers


def _read_weights(weights: object) -> tuple[float, ...]:
    """Return weights as floats; nothing if they are no numbers >= 0, or all 0."""
    if not isinstance(weights, Sequence | np.ndarray) or isinstance(weights, str | bytes):
        return ()
    numbers = tuple(float(weight) for weight in weights if is_weight(weight))
    if len(numbers) != len(weights) or sum(numbers) == 0:
        return ()
    return numbers


def require_vector(
    numbers: object, dimension: int, *, subject: str, index: int | None = None
) -> FloatArray:
    """Return an embedding that a caller brings, float32 (dimension,), and refuse what is none.

    Args:
        numbers: What came: a list or an array of numbers.
        dimension: How many the model's vectors have.
        subject: Whose embedding it is, for the message.
        index: Its position in the caller's list, if there is one.

    Raises:
        InputError: If it is not as many finite numbers.
    """
    try:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            vector = np.asarray(numbers, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        vector = np.array(np.nan, dtype=np.float32)
    if vector.shape != (dimension,) or not np.isfinite(vector).all():
        count = f"{vector.size} numbers: " if vector.size != dimension and vector.ndim else ""
        raise InputError(
            f"{subject} must be {dimension} finite numbers, got {count}{numbers!r:.80}", index=index
        )
    return vector


def check_is_list(items: object, subject: str) -> None:
    """Refuse what is not a list, or only happens to be iterable.

    Iterating a dict or a table gives its keys, a set has no order, and an open file gives its
    lines: none of these is a list of texts, although iterating it gives some.

    Args:
        items: A list, a tuple, an array or a generator. It is not iterated over.
        subject: What the items are, in the plural, for the message.

    Raises:
        InputError: If it is something else; the message says what to pass instead.
    """
    if type(items) is list or type(items) is tuple:
        return
    one_item = subject.removesuffix("s")
    advice = None
    if isinstance(items, Mapping):
        advice = f"pass its values as a list, or put one {one_item} into a list"
    elif isinstance(items, Set) and not isinstance(items, KeysView):
        advice = "a set has no order; pass a list"
    elif hasattr(items, "read"):
        advice = "read it first, and pass a list"
    elif hasattr(items, "columns"):
        advice = "pass one of its columns as a list"
    elif isinstance(items, str | bytes | bytearray) or not isinstance(items, Iterable):
        advice = f"put one {one_item} into a list"
    if advice is not None:
        raise InputError(f"expected a list of {subject}, got {type(items).__name__}; {advice}")


def require_texts(texts: Iterable[object]) -> list[str]:
    """Return the texts as a list, each a str of valid Unicode.

    Args:
        texts: Any number of texts; none gives an empty list.

    Raises:
        InputError: If it is a single text or not a list (see `check_is_list`), or if an item is not
            a str or holds a lone surrogate. The `index` of the first bad item is named.
    """
    check_is_list(texts, "texts")
    items = list(texts)
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise InputError(f"expected a str, got {type(item).__name__}", index=index)
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"holds a lone surrogate at character {error.start}, which is not valid Unicode; "
                "read the text with the right encoding or errors='replace'",
                index=index,
            ) from None
    return cast("list[str]", items)
