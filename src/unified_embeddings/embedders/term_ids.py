"""Numbers for words, the same in every process and for every collection, without a vocabulary.

What lives here: the hash that turns a term into an index of a sparse vector. What does not: which
terms a text has (`words`, `stemming`).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

NUMBERS = 2**31 - 1
"""How many numbers there are. Sparse vectors have int32, and so has the width of a matrix of them.
"""

_CACHED_LENGTH = 64
"""Longer terms are hashed anew each time: a file of them would fill the memory."""


def term_id(term: str) -> int:
    """Return a term's number: the remainder of its BLAKE2b digest of 64 bits, modulo `NUMBERS`.

    Two terms of one number are one term to the ranking. Among n terms a given one shares its number
    with odds of n / 2**31: one in 2,147 where a collection has a million different terms.
    """
    if len(term) > _CACHED_LENGTH:
        return _hash(term)
    return _cached_hash(term)


def _hash(term: str) -> int:
    digest = hashlib.blake2b(term.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % NUMBERS


_cached_hash = lru_cache(maxsize=1 << 16)(_hash)
