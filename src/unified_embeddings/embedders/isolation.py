"""Computing several items at once, and finding out which of them are at fault if that fails.

What lives here: halving a group that fails until the bad item is alone, and a group's size where a
device runs out of memory. What does not: what an item is (`serving.passes`, `bulk.worker`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from unified_embeddings.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupSize:
    """How many items are computed at once: less after a device ran out of memory, then more again.

    Args:
        most: The most items.

    Attributes:
        now: The most items at present.

    Example:
        >>> size = GroupSize(64)
        >>> size.note_no_memory(64)
        >>> size.note_success()
        >>> size.now
        33
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.now = most

    def note_no_memory(self, items: int) -> None:
        """Learn that so many items were too many."""
        self.now = max(1, items // 2)

    def note_success(self) -> None:
        """Learn that a group fitted; the next may be a little larger."""
        self.now = min(self._most, self.now + 1)


def isolate_failures(
    compute: Callable[[Sequence[Item]], Sequence[Result]],
    items: Sequence[Item],
    *,
    size: GroupSize | None = None,
    hopeless: int | None = None,
    is_fatal: Callable[[Exception], bool] | None = None,
    is_needless: Callable[[Item], bool] | None = None,
    note_failure: Callable[[Item, Exception], None] | None = None,
) -> list[Result | Exception | None]:
    """Compute items together; where that fails, halve them until the bad one is alone.

    Args:
        compute: Returns a result for each of its items, or raises.
        items: n items.
        size: How many are computed at once; None takes all.
        hopeless: After how many items in a row that failed alone the rest is given up, since the
            fault is not theirs. An InputError does not count: it says that the item is bad. None
            never gives up.
        is_fatal: Tells of an error that it is no item's fault; it is raised.
        is_needless: Tells of an item just before it is computed that its result is not needed.
        note_failure: Called with an item that failed alone.

    Returns:
        n outcomes in the order of the items: its result or its error; the last item's error for
        what was given up; None for what was needless.

    Example:
        >>> isolate_failures(lambda texts: [1 / int(text) for text in texts], ["1", "0", "2"])
        [1.0, ZeroDivisionError('division by zero'), 0.5]
    """
    isolation = _Isolation(compute, items, size or GroupSize(len(items)))
    isolation.note_failure = note_failure or _ignore
    waiting = [list(range(len(items)))]
    while waiting:
        group = waiting.pop()
        if is_needless is not None:
            group = [index for index in group if not is_needless(items[index])]
        if hopeless is not None and isolation.failures_in_a_row >= hopeless:
            isolation.give_up(group)
        elif group:
            waiting += isolation.compute_group(group, is_fatal or _never)
    return isolation.outcomes


class _Isolation(Generic[Item, Result]):
    """What became of each item so far.

    Attributes:
        outcomes: Of each item: its result or its error; None for what was not computed.
        failures_in_a_row: Items that failed alone since the last success, for no fault of theirs.
        note_failure: Called with an item that failed alone.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        items: Sequence[Item],
        size: GroupSize,
    ) -> None:
        self._compute = compute
        self._items = items
        self._size = size
        self._last_error: Exception | None = None
        self.outcomes: list[Result | Exception | None] = [None] * len(items)
        self.failures_in_a_row = 0
        self.note_failure: Callable[[Item, Exception], None] = _ignore

    def compute_group(
        self, group: list[int], is_fatal: Callable[[Exception], bool]
    ) -> list[list[int]]:
        """Compute some items, and return the groups that are still to be computed."""
        if len(group) > self._size.now:
            return _halve(group)
        try:
            results = self._compute([self._items[index] for index in group])
        except Exception as error:
            if is_fatal(error):
                raise
            if is_out_of_memory(error):
                self._size.note_no_memory(len(group))
            if len(group) > 1:
                return _halve(group)
            self._fail(group[0], error)
        else:
            self.failures_in_a_row = 0
            self._size.note_success()
            for index, result in zip(group, results, strict=True):
                self.outcomes[index] = result
        return []

    def give_up(self, group: list[int]) -> None:
        """Give items the last error, without computing them."""
        for index in group:
            self.outcomes[index] = self._last_error

    def _fail(self, index: int, error: Exception) -> None:
        self.outcomes[index] = self._last_error = error
        if not isinstance(error, InputError):
            self.failures_in_a_row += 1
        self.note_failure(self._items[index], error)


def _ignore(item: object, error: Exception) -> None:
    pass


def _never(error: Exception) -> bool:  # noqa: ARG001
    return False


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether a device ran out of memory; torch and ONNX Runtime say so in words only."""
    if isinstance(error, MemoryError):
        return True
    words = f"{type(error).__name__} {error}".lower()
    return "out of memory" in words or "outofmemory" in words or "failed to allocate" in words


def _halve(group: list[int]) -> list[list[int]]:
    """Return a group's halves; the first half is last, since the last is taken next."""
    middle = len(group) // 2
    return [group[middle:], group[:middle]]
