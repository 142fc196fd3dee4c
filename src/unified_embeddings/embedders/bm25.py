"""BM25 as an embedder: sparse vectors from a text's words, without a model.

What lives here: how often a text holds its terms, and what each is worth. What does not: which
terms a text has (`word_rules`, `qdrant_words`); how rare a term is in the collection, which Qdrant
knows and multiplies by (its modifier "idf").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.cache.keys import key_for
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.lazy import Counters, LocalModel, make_cache
from unified_embeddings.embedders.values import EmbedderStats, Piece
from unified_embeddings.embedders.word_rules import OwnRules, WordRules
from unified_embeddings.errors import InputError
from unified_embeddings.models.bm25 import (
    BM25,
    BM25_FUSION,
    FASTEMBED_BM25,
    NATIVE_BM25,
    read_name,
)
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.types import (
    Embeddings,
    FloatArray,
    HeadName,
    IntArray,
    Options,
    Role,
    SparseVector,
    Text,
)
from unified_embeddings.validation import require_texts

K1 = 1.2
"""How slowly repetitions of a term in a document stop counting; the default of Lucene."""

B = 0.75
"""How much long documents are discounted, from 0 to 1; the default of Lucene."""

_UNLIMITED = 2**31 - 1


class Bm25Embedder(TextEmbedder):
    """BM25's sparse vectors: words, their stems, identifiers and codes, weighted by frequency.

    A document's term has the value tf · (k1 + 1) / (tf + k1 · (1 - b + b · length / 128)), with
    k1 = 1.2 and b = 0.75; a query's has the value 1. Multiplied by the terms' inverse document
    frequencies, which Qdrant keeps, the product of the two vectors is BM25's score. "Qdrant/bm25"
    and "Qdrant/bm25-native" are for collections that other software filled: they have its words,
    its terms' numbers and its average length, 256.

    Nothing is loaded or downloaded, and texts are never cut.

    Args:
        model_name: "bm25" for English, "bm25:german" and so on, or "bm25:none" without stemming;
            "Qdrant/bm25" for what FastEmbed writes, "Qdrant/bm25-native" for what Qdrant itself
            does, both with languages in the same way.
        cache: Kept for those who ask; counting words is faster than looking them up.

    Raises:
        InputError: If the language is not known.
        MissingExtraError: If the stemming library is not installed.

    Example:
        >>> from unified_embeddings import make_embedder
        >>> embedder = make_embedder("bm25:none")
        >>> document = embedder.encode_documents(["call getUserById"]).sparse[0]
        >>> query = embedder.encode_query("getuserbyid").sparse[0]
        >>> set(query) <= set(document), len(document)    # call, getuserbyid, get, user, by, id
        (True, 6)
    """

    heads: tuple[HeadName, ...] = ("sparse",)

    def __init__(
        self,
        model_name: str = BM25,
        *,
        cache: EmbeddingCache | Literal["auto"] | None = None,
    ) -> None:
        self.model_name = model_name
        self.language = read_name(model_name).language
        self.cache = make_cache(cache)
        self._rules = rules_for(model_name)
        self._counters = Counters("texts", "tokens")

    @property
    def models(self) -> tuple[LocalModel, ...]:
        """Return nothing: there is no model in memory."""
        return ()

    @property
    def options(self) -> Options:
        """Return the options but `model_name` and `cache`: there are none."""
        return {}

    @property
    def dimension(self) -> int:
        """Return 0: there are no dense vectors."""
        return 0

    @property
    def max_length(self) -> int:
        """Return the largest number that Qdrant's clients take: texts are never cut."""
        return _UNLIMITED

    @property
    def document_length(self) -> int:
        """Return the same: there are no special tokens."""
        return _UNLIMITED

    @property
    def fusion(self) -> Fusion:
        """Return how its ranking is fused with a dense model's, unless a caller says otherwise."""
        return BM25_FUSION

    @property
    def sparse_idf(self) -> bool:
        """Return True: without its terms' IDF, this is not BM25."""
        return True

    @property
    def fingerprint(self) -> str:
        """Return a digest of the language, the parameters and the version of the rules."""
        parameters = (str(K1), str(B), str(self._rules.average_length))
        return key_for(self._rules.version, self.language, *parameters).hex()

    @property
    def revision(self) -> str:
        """Return its fingerprint: there are no files that could change."""
        return self.fingerprint

    def tokenise(self, text: str) -> list[int]:
        """Return the numbers of a text's terms, wholes and parts, in its order."""
        return [piece.token_id for piece in self.split(text)]

    def split(self, text: str, *, special: bool = False) -> list[Piece]:
        """Return a text's terms with their numbers, in its order."""
        del special  # There are no special tokens.
        (valid_text,) = require_texts([text])
        terms, _ = self._rules.find_terms(valid_text)
        return [Piece(term.number, term.text, is_special=False) for term in terms]

    def normal_form(self, text: str) -> str:
        """Return a text as its words are found in it; letters keep their case."""
        return self._rules.normal_form(text)

    def stats(self) -> EmbedderStats:
        """Return the counters since it was made; a token is a term."""
        counts = self._counters.snapshot()
        return EmbedderStats(
            texts=counts["texts"],
            tokenised=counts["texts"],
            truncated=0,
            tokens=counts["tokens"],
            batches=0,
            forwards=0,
            cache=self.cache.stats(),
        )

    def close(self) -> None:
        """Refuse texts from now on, as other embedders do; there is no memory to release."""
        self._closed = True

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the name."""
        return Bm25Embedder, (self.model_name,)

    def _encode(
        self, texts: Sequence[Text], role: Role, heads: tuple[HeadName, ...], show_progress: bool
    ) -> Embeddings:
        del heads, show_progress  # There is one head, and it takes no time worth showing.
        self._require_open()
        vectors = list(self._count(texts, role))
        self._counters.add(texts=len(vectors))
        return Embeddings(sparse=vectors)

    def _count(self, texts: Sequence[Text], role: Role) -> Iterator[SparseVector]:
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"{self.model_name!r} counts words: send texts, not token ids")
            terms, length = self._rules.find_terms(text)
            self._counters.add(tokens=len(terms))
            numbers = [term.number for term in terms]
            yield _to_vector(numbers, length / self._rules.average_length, role)


def rules_for(name: str) -> WordRules:
    """Return the rules that a name like "bm25:german" means.

    Raises:
        InputError: If there is no such BM25 or language.
        MissingExtraError: If the stemming library is needed and not installed.
    """
    rules, language = read_name(name)
    if rules == FASTEMBED_BM25:
        from unified_embeddings.embedders.qdrant_words import FastEmbedRules

        return FastEmbedRules(language)
    if rules == NATIVE_BM25:
        from unified_embeddings.embedders.qdrant_words import NativeRules

        return NativeRules(language)
    return OwnRules(language)


def _to_vector(numbers: Sequence[int], relative_length: float, role: Role) -> SparseVector:
    """Return a text's vector.

    Args:
        numbers: The numbers of its terms, in any order. Two terms of one number are one.
        relative_length: Its length in average ones.
        role: What the text is.
    """
    frequencies = Counter(numbers)
    indices: IntArray = np.array(sorted(frequencies), dtype=np.int32)
    if role == "query":
        return SparseVector(indices, np.ones(len(indices), dtype=np.float32))
    tf = np.array([frequencies[index] for index in indices.tolist()], dtype=np.float64)
    damping = K1 * (1 - B + B * relative_length)
    values: FloatArray = (tf * (K1 + 1) / (tf + damping)).astype(np.float32)
    return SparseVector(indices, values)
