"""Texts that are nearly the same, found by the runs of words that they share.

What lives here: words, and groups of texts whose runs of words are nearly the same sets. Two sets
are compared by a sketch, the smallest of their hashes (Broder 1997), and only where they share one
of the smallest few, so that the work grows with the number of texts and not with its square.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

_UNSPACED = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
"""A word; of scripts that put no space between words (Thai, Japanese, Chinese), a character."""

_SKETCH = 32
"""Hashes of a sketch: a share of 0.8 is then estimated to about 0.07."""
_KEYS = 4
"""Smallest hashes of which two texts must share one: of two that are 0.8 alike, 99.8% do."""
_CROWD = 200
"""Texts that share a hash, as a common header gives it, from which on it tells nothing. The next
smallest one takes its place, so that the work stays in proportion to the texts."""


def split_words(text: str) -> list[str]:
    """Return a text's words in lower case, without punctuation."""
    return WORD.findall(text.casefold())


def group_near_duplicates(
    texts: Sequence[str], *, run_length: int = 4, share: float = 0.8
) -> list[int]:
    """Return for each text the position of the first text that it is nearly the same as.

    A text that is like no earlier one gets its own position. Two texts are nearly the same if their
    runs of words have at least this share in common (Jaccard), as far as their sketches tell.

    Args:
        texts: In any number.
        run_length: Words of a run. A shorter text is one run.
        share: Of all runs of the two texts, how many both must have, between 0 and 1.

    Example:
        >>> from unified_embeddings.evaluation.near_duplicates import group_near_duplicates
        >>> group_near_duplicates(["Foxes jump over dogs.", "The sea.", "foxes jump over dogs"])
        [0, 1, 0]
    """
    first_by_key: dict[int, list[int]] = {}
    sketches: list[list[int]] = []
    groups: list[int] = []
    for position, text in enumerate(texts):
        sketch = _sketch(text, run_length)
        sketches.append(sketch)
        keys = _choose_keys(sketch, first_by_key)
        candidates = sorted({i for key in keys for i in first_by_key.get(key, ())})
        alike = [i for i in candidates if _estimate_share(sketches[i], sketch) >= share]
        groups.append(alike[0] if alike else position)
        if not alike:  # only the first of a group is compared with later texts
            for key in keys:
                sharing = first_by_key.setdefault(key, [])
                if len(sharing) < _CROWD:
                    sharing.append(position)
    return groups


def _choose_keys(sketch: Sequence[int], first_by_key: Mapping[int, Sequence[int]]) -> list[int]:
    """Return a text's smallest hashes, as many as hold four that are not crowded."""
    keys: list[int] = []
    telling = 0
    for key in sketch:
        keys.append(key)
        telling += len(first_by_key.get(key, ())) < _CROWD
        if telling == _KEYS:
            break
    return keys


def _sketch(text: str, run_length: int) -> list[int]:
    """Return the smallest hashes of a text's runs of words, ascending; none for a blank text."""
    words = split_words(text)
    if not words:
        return []
    starts = range(max(len(words) - run_length, 0) + 1)
    runs = {" ".join(words[start : start + run_length]) for start in starts}
    return sorted(_hash(run) for run in runs)[:_SKETCH]


def _hash(run: str) -> int:
    return int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "big")


def _estimate_share(first: Sequence[int], second: Sequence[int]) -> float:
    """Return the share of all runs that two texts have in common, estimated from their sketches."""
    smallest = set(sorted({*first, *second})[:_SKETCH])
    both = smallest.intersection(first, second)
    return len(both) / len(smallest)
