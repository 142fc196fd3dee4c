"""The words of other software's BM25: FastEmbed's `Qdrant/bm25`, and the one in Qdrant itself.

What lives here: the two ways in which collections of theirs were filled, so that queries meet the
terms that are in them, and new documents are written as the old ones were. What does not: our own
rules (`word_rules`), and the values of terms (`bm25`), whose formula is the same.

Qdrant's core, which is installed for the embedded store, holds the server's own code for BM25. It
knows the stop words and the terms' numbers, so that neither has to be repeated here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import qdrant_edge as core

from unified_embeddings.embedders.stemming import plain_stemmer_for
from unified_embeddings.embedders.term_ids import NUMBERS
from unified_embeddings.embedders.word_rules import Term
from unified_embeddings.models.bm25 import NO_STEMMING

_AVERAGE_LENGTH = 256

_LONGEST_WORD = 40
"""Characters. FastEmbed leaves longer ones out; Qdrant itself does not."""

_WORD = re.compile(r"\w+")
_NEITHER_WORD_NOR_SPACE = re.compile(r"[^\w\s]")


class FastEmbedRules:
    """What FastEmbed's `Qdrant/bm25` makes of a text.

    Words are runs of letters, digits and underscores, in lower case, of at most 40 characters and
    without stop words. Each counts as its stem.

    Args:
        language: One of `models.bm25.LANGUAGES`, or `NO_STEMMING`, which keeps stop words too, as
            FastEmbed's `disable_stemmer` does.

    Raises:
        MissingExtraError: If the stemming library is not installed.
    """

    version = "fastembed bm25 1"
    average_length = _AVERAGE_LENGTH

    def __init__(self, language: str) -> None:
        self._stem = plain_stemmer_for(language)
        self._without_stop_words = _make_core(_stop_words(language), core.TokenizerType.Whitespace)
        self._plain = _make_core(core.StopwordsSet(), core.TokenizerType.Whitespace)

    def normal_form(self, text: str) -> str:
        """Return the text: nothing about it is changed."""
        return text

    def find_terms(self, text: str) -> tuple[list[Term], int]:
        """Return a text's terms in its order, and how many words it counts as."""
        terms, length = [], 0
        for stem in self._find_stems(text):
            length += 1
            (number,) = self._plain.embed_query(stem).indices
            if number < NUMBERS:
                terms.append(Term(stem, number))
        return terms, length

    def _find_stems(self, text: str) -> Iterator[str]:
        # In two steps, as FastEmbed does: the characters around a capital sigma decide which of the
        # two small ones it becomes, and a small letter may need two characters.
        for word in _WORD.findall(_NEITHER_WORD_NOR_SPACE.sub(" ", text).lower()):
            is_kept = word != "_" and len(word) <= _LONGEST_WORD
            if is_kept and self._without_stop_words.embed_query(word).indices:
                stem = self._stem(word)
                if stem:
                    yield stem


class NativeRules:
    """What Qdrant makes of a text for its own model "qdrant/bm25", on a server or in the core.

    Words are runs of what Unicode calls alphabetic or numeric, of any length.

    Args:
        language: One of `languages_of(NATIVE_BM25)`, or `NO_STEMMING`, which keeps stop words too.
    """

    version = "qdrant bm25 1"
    average_length = _AVERAGE_LENGTH

    def __init__(self, language: str) -> None:
        if language == NO_STEMMING:
            self._terms = _make_core(core.StopwordsSet(), core.TokenizerType.Word, lowercase=True)
        else:
            self._terms = core.Bm25(core.Bm25Config(language=language))

    def normal_form(self, text: str) -> str:
        """Return the text: nothing about it is changed."""
        return text

    def find_terms(self, text: str) -> tuple[list[Term], int]:
        """Return a text's terms in its order, and how many words it counts as.

        The core tells a word's number but not its stem, so that a term has the whole word's text.
        """
        terms, length = [], 0
        separators = {ord(char): " " for char in set(text) if not _is_in_words(char)}
        for word in text.translate(separators).split():
            for number in self._terms.embed_query(word).indices:
                length += 1
                if number < NUMBERS:
                    terms.append(Term(word, number))
        return terms, length


def _make_core(
    stop_words: core.Stopwords, tokenizer: core.TokenizerType, *, lowercase: bool = False
) -> core.Bm25:
    """Return the core's BM25 without stemming."""
    config = core.Bm25Config(
        tokenizer=tokenizer,
        lowercase=lowercase,
        stopwords=stop_words,
        stemmer=core.DisabledStemmer(),
    )
    return core.Bm25(config)


def _stop_words(language: str) -> core.Stopwords:
    """Return a language's stop words; there are none for Tamil, here as in FastEmbed."""
    if language in (NO_STEMMING, "tamil"):
        return core.StopwordsSet()
    words: core.Language = getattr(core.Language, language.capitalize())
    return words


@lru_cache(maxsize=1 << 16)
def _is_in_words(character: str) -> bool:
    """Tell whether the core takes a character for a part of words; Python has no such class."""
    return len(_word_splitter().embed_query(f"q{character}z").indices) == 1


@lru_cache(maxsize=1)
def _word_splitter() -> core.Bm25:
    return _make_core(core.StopwordsSet(), core.TokenizerType.Word)
