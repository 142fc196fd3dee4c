"""Random texts of exactly known length in tokens, from the checkpoint's own vocabulary."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer

_MEDIAN, _SIGMA, _SHORTEST, _LONGEST = 90, 0.6, 8, 512


class Words:
    """Words that are one token each, so that n words are n tokens and the special ones.

    Args:
        folder: A checkpoint with a tokenizer.json.
        limit: Most tokens the model takes; longer texts are made no longer than this.
        most: Most words to draw from.
    """

    def __init__(self, folder: Path, limit: int, most: int = 20_000) -> None:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        words = sorted(piece[1:] for piece in tokenizer.get_vocab() if _is_word(piece))
        random.Random(0).shuffle(words)
        words = words[:most]
        found = tokenizer.encode_batch(words, add_special_tokens=False)
        self._words = [word for word, one in zip(words, found, strict=True) if len(one.ids) == 1]
        self._special = len(tokenizer.encode("").ids)
        self.limit = limit
        if len(self._words) < 2:
            raise SystemExit(f"{folder.name}: its vocabulary holds no whole words of a-z")

    def text(self, rng: random.Random, tokens: int, most: int | None = None) -> str:
        """A text of that many tokens, special ones included, from the first `most` words."""
        words = max(1, min(tokens, self.limit) - self._special)
        return " ".join(rng.choices(self._words[:most], k=words))

    def count(self, text: str) -> int:
        """Tokens of a text made here, special ones included."""
        return text.count(" ") + 1 + self._special

    def mix(self, rng: random.Random, number: int, outlier: int) -> list[str]:
        """Documents as they come: log-normal around 90 tokens, cut at 512, and one outlier."""
        drawn = (round(rng.lognormvariate(0, _SIGMA) * _MEDIAN) for _ in range(number - 1))
        lengths = [outlier, *(min(max(n, _SHORTEST), _LONGEST) for n in drawn)]
        rng.shuffle(lengths)
        return [self.text(rng, length) for length in lengths]


def _is_word(piece: str) -> bool:
    return piece.startswith("▁") and piece[1:].isascii() and piece[1:].isalpha()
