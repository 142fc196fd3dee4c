"""Rules for the words of BM25: which terms a text has, under which numbers, and how long it is.

What lives here: what such rules are, and our own. What does not: the choice among them (`bm25`);
where words begin and end (`words`), their stems (`stemming`) and numbers (`term_ids`); the rules of
other software (`qdrant_words`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from unified_embeddings.embedders.stemming import stemmer_for
from unified_embeddings.embedders.term_ids import term_id
from unified_embeddings.embedders.words import find_words, normal_form


class Term(NamedTuple):
    """A term of a text.

    Attributes:
        text: Its letters, for people.
        number: Its index in a sparse vector.
    """

    text: str
    number: int


class WordRules(Protocol):
    """How a text becomes terms."""

    @property
    def version(self) -> str:
        """Part of the fingerprint: it changes with the rules for words, stems and numbers."""

    @property
    def average_length(self) -> int:
        """Words of a document of average length."""

    def normal_form(self, text: str) -> str:
        """Return a text as the rules read it, in its own case."""

    def find_terms(self, text: str) -> tuple[list[Term], int]:
        """Return a text's terms in its order, and how many words it counts as."""


class OwnRules:
    """Our own rules: stems beside identifiers and codes that are kept whole.

    Args:
        language: One of `models.bm25.LANGUAGES`, or `NO_STEMMING`.

    Raises:
        MissingExtraError: If the stemming library is not installed.
    """

    version = "bm25 1"

    average_length = 128
    """The true average would change with every document, and all vectors with it. Measured in
    docs/bm25.md."""

    def __init__(self, language: str) -> None:
        self._stem = stemmer_for(language)

    def normal_form(self, text: str) -> str:
        """Return a text in Unicode's form NFKC; letters keep their case, which parts words."""
        return normal_form(text)

    def find_terms(self, text: str) -> tuple[list[Term], int]:
        """Return a text's terms in its order, and how many words it counts as."""
        terms, length = [], 0
        for word in find_words(text):
            stem = self._stem(word.text) if word.stemmed else word.text
            terms.append(Term(stem, term_id(stem)))
            if word.exact and stem != word.text:
                terms.append(Term(word.text, term_id(word.text)))
            length += word.counted
        return terms, length
