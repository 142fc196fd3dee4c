"""The batches that mini-clip is trained on.

What lives here: which combinations are together in a batch, and drawing and wording them. What does
not: what is done with a batch (`train_mini_clip`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random

from torch import Tensor

from mini_clip_network import to_pixels
from shape_captions import Caption, word
from shape_drawers import SHAPES
from shape_practice import Practice, draw_practice, pick_practice
from shapes import COLOURS, COUNTS, POSITIONS, Combination, draw


@dataclass(frozen=True)
class Batch:
    """Pictures and captions of one step.

    Attributes:
        combinations: What the first n pictures show, those with captions.
        captions: Of the combinations.
        practice: What the p pictures after those show.
        pictures: 2 (n + p) pictures as `to_pixels` gives them. The second half shows what the first
            half shows.
    """

    combinations: list[Combination]
    captions: list[Caption]
    practice: list[Practice]
    pictures: Tensor

    @property
    def shown(self) -> list[Combination | Practice]:
        """Return what half of the pictures shows."""
        return [*self.combinations, *self.practice]


def draw_batches(
    pool: Sequence[Combination], *, steps: int, combinations: int, practice: int, seed: int
) -> Iterator[Batch]:
    """Yield the batches. Each is drawn in a thread while the one before it is used.

    Args:
        pool: What training may show.
        steps: Batches.
        combinations: Of each.
        practice: Things without captions of each.
        seed: Decides everything random.
    """
    random = Random(seed)
    allowed = frozenset(pool)

    def draw_batch() -> Batch:
        shown = pick_combinations(pool, allowed, combinations, random)
        practised = pick_practice(allowed, practice, random)
        pictures = []
        for _ in range(2):
            pictures += [draw(item, random) for item in shown]
            pictures += [draw_practice(item, random) for item in practised]
        return Batch(
            combinations=shown,
            captions=[word(item, random) for item in shown],
            practice=practised,
            pictures=to_pixels(pictures),
        )

    with ThreadPoolExecutor(1) as executor:
        following = executor.submit(draw_batch)
        for _ in range(steps):
            batch = following.result()
            following = executor.submit(draw_batch)
            yield batch


def pick_combinations(
    pool: Sequence[Combination], allowed: Collection[Combination], number: int, random: Random
) -> list[Combination]:
    """Return distinct combinations of which most differ from another one in one attribute only.

    Args:
        pool: What training may show.
        allowed: The same, to look up in.
        number: Of them.
        random: Decides.
    """
    chosen: dict[Combination, None] = {}
    while len(chosen) < number:
        first = random.choice(pool)
        chosen[first] = None
        for _ in range(3):
            if len(chosen) < number:
                other = _vary(first, random)
                if other in allowed:
                    chosen[other] = None
    return list(chosen)


def _vary(combination: Combination, random: Random) -> Combination:
    """Return a combination with one other attribute; more often one that is hard to see."""
    colour, shape = combination.colour, combination.shape
    count, position = combination.count, combination.position
    which = random.choice(("colour", "shape", "shape", "count", "count", "position"))
    if which == "colour":
        colour = random.choice([*COLOURS])
    elif which == "shape":
        shape = random.choice(SHAPES)
    elif which == "count":
        count = random.choice([*COUNTS])
    else:
        position = random.choice([*POSITIONS])
    return Combination(colour, shape, count, position)
