"""Texts into batches: in windows tokenised ahead, longest first, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from unified_embeddings.embedders.tokenization import Tokenised

_Item = TypeVar("_Item")


_Done = TypeVar("_Done")


WINDOW = 1024
"""Texts tokenised ahead of the model: enough to batch by length, little enough to hold."""


def work_one_ahead(
    work: Callable[[_Item], _Done], items: list[_Item]
) -> Iterator[tuple[_Item, _Done]]:
    """Each item with what became of it, while the next is being worked on in another thread."""
    if len(items) < 2:
        yield from ((item, work(item)) for item in items)
        return
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(work, items[0])
        for i, item in enumerate(items):
            done = ahead.result()
            if i + 1 < len(items):
                ahead = thread.submit(work, items[i + 1])
            yield item, done


def group_into_batches(
    texts: Sequence[Tokenised], budget: int, *, padded: bool
) -> Iterator[list[int]]:
    """Group positions into batches of at most `budget` tokens, longest texts first.

    A batch costs the sum of its lengths where texts are packed, the longest times their number
    where they are padded. A text over the budget stands alone.
    """
    batch: list[int] = []
    total = longest = 0
    for i in sorted(range(len(texts)), key=lambda i: -len(texts[i].ids)):
        length = len(texts[i].ids)
        cost = longest * (len(batch) + 1) if padded else total + length
        if batch and cost > budget:
            yield batch
            batch, total, longest = [], 0, 0
        batch.append(i)
        total += length
        longest = max(longest, length)
    if batch:
        yield batch
