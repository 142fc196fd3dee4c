"""The stems of words, by language.

What lives here: the one place that knows the stemming library, a wrapper of Snowball's algorithms.
What does not: finding words (`words`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import cast

from unified_embeddings.errors import MissingExtraError
from unified_embeddings.models.bm25 import NO_STEMMING

Stem = Callable[[str], str]
"""Word in lower case → its stem."""

_LONGEST_WORD = 64
"""Characters. A longer one is no word of a language, and stands for itself."""


@cache
def stemmer_for(language: str) -> Stem:
    """Return the function that stems a language's words; all callers share it.

    Args:
        language: One of `models.bm25.LANGUAGES`, or `NO_STEMMING`, which leaves words as they are.

    Raises:
        MissingExtraError: If the stemming library is not installed.
    """
    if language == NO_STEMMING:
        return _same
    library = plain_stemmer_for(language)

    @lru_cache(maxsize=1 << 16)
    def stem(word: str) -> str:
        # A word that is nothing but endings would be lost.
        return library(word) or word

    def stem_word(word: str) -> str:
        return word if len(word) > _LONGEST_WORD else stem(word)

    return stem_word


def plain_stemmer_for(language: str) -> Stem:
    """Return the library's own function, which leaves nothing of a word that is only endings.

    Args:
        language: As in `stemmer_for`.

    Raises:
        MissingExtraError: If the stemming library is not installed.
    """
    if language == NO_STEMMING:
        return _same
    try:
        from py_rust_stemmers import SnowballStemmer
    except ImportError as error:
        raise MissingExtraError("py-rust-stemmers", extra="bm25") from error
    return cast("Stem", SnowballStemmer(language).stem_word)


def _same(word: str) -> str:
    return word
