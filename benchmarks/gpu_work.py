"""What is embedded on a GPU: how much of it, and the texts.

What lives here: sizes and random texts. What does not: embedding them (`gpu`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from texts import Words

KINDS = ("equal", "mixed")
"""The kinds of documents."""
_QUERY_TOKENS = 16
_DOCUMENT_TOKENS = 128
_MIXED = (50, 1000)
"""Tokens of the shortest and the longest document of mixed lengths; the logarithm is uniform."""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        rounds: Rounds, in each of which every engine has its turn.
        equal: Documents of 128 tokens per round.
        mixed: Documents of mixed lengths per round.
        trials: Documents on which batch sizes are tried.
        queries: Queries of 16 tokens per round, one at a time.
        groups: Groups of 8 and of 32 queries at once, per round.
        sample: Texts of each kind whose vectors are compared with fp32.
    """

    rounds: int = 5
    equal: int = 768
    mixed: int = 256
    trials: int = 512
    queries: int = 30
    groups: int = 10
    sample: int = 8


QUICK = Scale(rounds=2, equal=6, mixed=4, trials=4, queries=3, groups=1, sample=2)
GROUPS = (8, 32)


class Texts:
    """The texts of a run, new ones at each call."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        longest = json.loads((folder / "config.json").read_text("utf-8"))["max_position_embeddings"]
        self._words = Words(folder, min(8192, longest - 2))
        self._rng = random.Random(0)
        self._scale = scale

    def documents(self, kind: str, number: int | None = None) -> list[str]:
        """Return documents, "equal" or "mixed"; by default as many as a round has."""
        number = number or (self._scale.equal if kind == "equal" else self._scale.mixed)
        lengths = [_DOCUMENT_TOKENS] * number
        if kind == "mixed":
            shortest, longest = _MIXED
            ratio = longest / shortest
            lengths = [round(shortest * ratio ** self._rng.random()) for _ in range(number)]
        return [self._words.text(self._rng, length) for length in lengths]

    def queries(self, number: int) -> list[str]:
        """Return queries of 16 tokens."""
        return [self._words.text(self._rng, _QUERY_TOKENS) for _ in range(number)]

    def count(self, texts: Sequence[str]) -> int:
        """Return the tokens of texts made here."""
        return sum(self._words.count(text) for text in texts)
