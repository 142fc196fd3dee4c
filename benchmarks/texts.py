"""Random texts of exactly known length in tokens, from the checkpoint's own vocabulary."""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path

from tokenizers import Tokenizer

_MEDIAN_TOKENS = 90
_SIGMA = 0.6
"""Standard deviation of the logarithm of a document's length."""
_SHORTEST = 8
_LONGEST = 512


class Words:
    """Words that are one token each, so that n words are n tokens plus the special ones.

    Args:
        folder: A checkpoint with a tokenizer.json.
        limit: Maximum tokens that the model takes; no text is longer than this.
        most: Maximum number of different words.
    """

    def __init__(self, folder: Path, limit: int, most: int = 20_000) -> None:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        words = _words(tokenizer.get_vocab())
        random.Random(0).shuffle(words)
        words = words[:most]
        encodings = tokenizer.encode_batch(words, add_special_tokens=False)
        self._words = []
        for word, encoding in zip(words, encodings, strict=True):
            if len(encoding.ids) == 1:
                self._words.append(word)
        self._special_tokens = len(tokenizer.encode("").ids)
        self.limit = limit
        if len(self._words) < 2:
            raise SystemExit(f"{folder.name}: its vocabulary has no whole words of a-z")

    def text(self, rng: random.Random, tokens: int, most: int | None = None) -> str:
        """Return a text of that many tokens, special ones included, from the first `most` words."""
        words = max(1, min(tokens, self.limit) - self._special_tokens)
        return " ".join(rng.choices(self._words[:most], k=words))

    def count(self, text: str) -> int:
        """Count the tokens of a text made here, special ones included."""
        return text.count(" ") + 1 + self._special_tokens

    def mix(self, rng: random.Random, number: int, outlier: int | None = None) -> list[str]:
        """Return documents of natural lengths: log-normal around 90 tokens, cut at 512.

        Args:
            rng: Source of randomness.
            number: Number of documents.
            outlier: Tokens of one document that is much longer than the others; None for no such
                document.
        """
        lengths: list[int] = []
        if outlier is not None:
            lengths.append(outlier)
        while len(lengths) < number:
            tokens = round(rng.lognormvariate(0, _SIGMA) * _MEDIAN_TOKENS)
            lengths.append(min(max(tokens, _SHORTEST), _LONGEST))
        rng.shuffle(lengths)
        return [self.text(rng, length) for length in lengths]


def _words(pieces: Collection[str]) -> list[str]:
    """Return the whole words of a-z, of a vocabulary that marks their beginning or of WordPiece.

    WordPiece marks the pieces that continue a word; those that begin one are unmarked.
    """
    marked = sorted(piece[1:] for piece in pieces if piece.startswith("▁"))
    words = marked or sorted(pieces)
    return [word for word in words if word.isascii() and word.isalpha()]
