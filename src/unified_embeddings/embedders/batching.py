"""Texts into batches: in windows tokenised ahead, longest first, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from unified_embeddings.embedders.tokenization import Tokenised

Item = TypeVar("Item")
Result = TypeVar("Result")

WINDOW = 1024
"""Texts tokenised ahead of the model: enough to batch by length, little enough to hold."""
_FIRST_WINDOW = 128
"""Texts that are tokenised first where the model waits for them on a device of its own."""


def split_into_windows(texts: Sequence[Item], *, growing: bool) -> list[Sequence[Item]]:
    """Return texts in windows of at most `WINDOW`, in order.

    Args:
        texts: The texts.
        growing: Whether the first windows are small, each twice the one before. A GPU then starts
            early, and computes one window while the next is tokenised.
    """
    size = _FIRST_WINDOW if growing else WINDOW
    windows = []
    start = 0
    while start < len(texts):
        windows.append(texts[start : start + size])
        start += size
        size = min(2 * size, WINDOW)
    return windows


def work_one_ahead(
    work: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its result, while another thread works on the next item."""
    if len(items) < 2:
        for item in items:
            yield item, work(item)
        return
    with ThreadPoolExecutor(1) as thread:
        next_result = thread.submit(work, items[0])
        for item, next_item in zip(items, [*items[1:], None], strict=True):
            result = next_result.result()
            if next_item is not None:
                next_result = thread.submit(work, next_item)
            yield item, result


def group_into_batches(
    texts: Sequence[Tokenised], budget: int, *, padded: bool
) -> Iterator[list[int]]:
    """Group positions into batches of at most `budget` tokens, longest texts first.

    Args:
        texts: n tokenised texts.
        budget: Tokens that a batch may cost. A text over the budget stands alone.
        padded: Whether a batch costs its longest text times their number, as where texts are
            padded, or the sum of their lengths, as where they are packed.

    Yields:
        Positions in `texts`; each position once over all batches.
    """
    longest_first = sorted(range(len(texts)), key=lambda position: -len(texts[position].ids))
    batch: list[int] = []
    total = longest = 0
    for position in longest_first:
        length = len(texts[position].ids)
        cost = longest * (len(batch) + 1) if padded else total + length
        if batch and cost > budget:
            yield batch
            batch, total, longest = [], 0, 0
        batch.append(position)
        total += length
        longest = max(longest, length)
    if batch:
        yield batch
