"""A test double: an embedder without a model, for tests of what is built on embedders.

What lives here: vectors made from a text's words. What does not: anything learned. Texts that share
words are near each other, and that is all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from unified_embeddings import heads as arithmetic
from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.cache.keys import key_for
from unified_embeddings.embedders.cached import CachedTextEmbedder, Vectors
from unified_embeddings.embedders.lazy import LocalModel, make_cache
from unified_embeddings.embedders.values import SPECIAL_TOKENS, Piece
from unified_embeddings.errors import InputError
from unified_embeddings.models.spec import require_heads
from unified_embeddings.types import HEAD_NAMES, FloatArray, HeadName, IntArray, Options, Role, Text
from unified_embeddings.validation import require_texts, require_whole_number

_WORD = re.compile(r"\w+")
_OPENING, _CLOSING = 0, 2
_FIRST_WORD = 4
"""Ids below are special tokens'."""


class FakeEmbedder(CachedTextEmbedder):
    """Deterministic dense, sparse and ColBERT vectors from a text's words: no weights, instant.

    Each word has an id, a direction and a weight that depend on its lower-case letters alone, in
    every process alike. A text's dense vector is the normalised sum of its words' directions, its
    sparse vector holds their weights by their ids, its ColBERT rows are the directions one by one
    and a closing row. It has the shapes, dtypes, cache and errors of the real embedders, so that a
    pipeline runs on it unchanged. A text without words has a unit dense vector, an empty sparse
    vector and one ColBERT row, as with BGE-M3.

    It pickles, but no name or file leads to it: an adapter over it (UnifiedTextEmbedding and the
    others) has a `to_dict`, and its `from_dict` refuses. Give the adapter the embedder again.

    Args:
        dimension: Width of dense vectors and ColBERT rows.
        heads: What it can produce, at least one of dense, sparse and colbert.
        max_length: The most tokens of a text (a word is a token), two special tokens included.
        cache: "auto" makes an EmbeddingCache of 256 MiB, None keeps nothing.
        model_name: What it is called. Two of different names have different fingerprints, as two
            models have.

    Raises:
        InputError: If an option is out of range, or a head is none of the three.

    Example:
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> embedder = FakeEmbedder(dimension=64)
        >>> documents = embedder.encode_documents(["Foxes jump over dogs.", "The sea is calm."])
        >>> query = embedder.encode_query("Which foxes jump?")
        >>> int((documents.dense @ query.dense[0]).argmax())
        0
        >>> len(set(documents.sparse[0]) & set(query.sparse[0]))    # foxes, jump
        2
    """

    def __init__(
        self,
        dimension: int = 64,
        *,
        heads: tuple[HeadName, ...] = HEAD_NAMES,
        max_length: int = 512,
        cache: EmbeddingCache | Literal["auto"] | None = "auto",
        model_name: str = "fake",
    ) -> None:
        super().__init__()
        self._dimension = require_whole_number("dimension", dimension)
        self._max_length = require_whole_number("max_length", max_length, least=SPECIAL_TOKENS + 1)
        if not isinstance(model_name, str):
            raise InputError(f"model_name must be a str, got {model_name!r}")
        self.heads = require_heads(model_name, heads)
        self._asked_cache = cache
        self.cache = make_cache(cache)
        self.model_name = model_name

    @property
    def models(self) -> tuple[LocalModel, ...]:
        """Return nothing: there is no model in memory."""
        return ()

    @property
    def options(self) -> Options:
        """Return the options but `model_name` and `cache`."""
        return {
            "dimension": self._dimension,
            "heads": list(self.heads),
            "max_length": self._max_length,
        }

    @property
    def dimension(self) -> int:
        """Return the width of the dense vectors."""
        return self._dimension

    @property
    def max_length(self) -> int:
        """Return the most tokens of a text, special tokens included; longer texts are cut."""
        return self._max_length

    @property
    def document_length(self) -> int:
        """Return the most tokens of a document's own: without special tokens."""
        self._require_open()
        return super().document_length

    @property
    def fingerprint(self) -> str:
        """Return a digest of its name, dimension and heads."""
        return key_for("fake 1", self.model_name, str(self._dimension), *self.heads).hex()

    @property
    def revision(self) -> str:
        """Return its fingerprint: there are no files that could change."""
        return self.fingerprint

    def tokenise(self, text: str) -> list[int]:
        """Return the ids of a text's words."""
        (valid_text,) = require_texts([text])
        self._require_open()
        return [_word_id(word) for word in _words(valid_text)]

    def split(self, text: str, *, special: bool = False) -> list[Piece]:
        """Return a text's words, and on request the two special tokens around them."""
        (valid_text,) = require_texts([text])
        self._require_open()
        pieces = [Piece(_word_id(word), word, False, word) for word in _words(valid_text)]
        if special:
            return [Piece(_OPENING, "<s>", True), *pieces, Piece(_CLOSING, "</s>", True)]
        return pieces

    def close(self) -> None:
        """Refuse, from now on, texts whose vectors are not in the cache, as a real one does."""
        self._closed = True

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the options: a copy has a cache of its own, if this one has."""
        options = {**self.options, "model_name": self.model_name, "cache": self._asked_cache}
        return _rebuild, (type(self), options)

    def _vector_space(self, role: Role) -> bytes:  # noqa: ARG002 — no prefixes, as with BGE-M3
        return key_for(self.fingerprint, str(self._max_length))

    def _run(
        self,
        texts: Sequence[Text],
        role: Role,  # noqa: ARG002 — no prefixes, as with BGE-M3
        heads: frozenset[HeadName],
    ) -> Iterator[tuple[Text, Vectors]]:
        self._require_open()
        self._counters.add(batches=1, forwards=1)
        for text in require_texts(texts):
            words = _words(text)
            kept = words[: self._max_length - SPECIAL_TOKENS]
            self._counters.add(tokens=len(kept) + SPECIAL_TOKENS)
            self._count_tokenised(1, truncated=int(len(kept) < len(words)))
            yield text, self._embed(kept, heads)

    def _embed(self, words: list[str], heads: frozenset[HeadName]) -> Vectors:
        closing = _direction("", self._dimension)
        rows = np.stack([*(_direction(word, self._dimension) for word in words), closing])
        vectors: Vectors = {}
        if "dense" in heads:
            total = rows[:-1].sum(axis=0, keepdims=True) if words else rows
            vectors["dense"] = arithmetic.normalise(total)[0]
        if "sparse" in heads:
            ids: IntArray = np.array([_word_id(word) for word in words], dtype=np.int32)
            weights: FloatArray = np.array([_weight(word) for word in words], dtype=np.float32)
            vectors["sparse"] = arithmetic.to_sparse(ids, weights, special_ids=frozenset())
        if "colbert" in heads:
            vectors["colbert"] = rows
        return vectors


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _digest(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _word_id(word: str) -> int:
    """Return the word's id, from 4 to 2**31 - 1."""
    return _FIRST_WORD + _digest(word) % (2**31 - _FIRST_WORD)


def _weight(word: str) -> float:
    """Return the word's weight, at least 0.5 and below 1.5."""
    return 0.5 + _digest(word) / 2**64


@lru_cache(maxsize=4096)
def _direction(word: str, dimension: int) -> FloatArray:
    """Return the word's direction, float32 (dimension,), of unit length."""
    gaussian = np.random.default_rng(_digest(word)).standard_normal((1, dimension))
    direction: FloatArray = arithmetic.normalise(gaussian.astype(np.float32))[0]
    direction.setflags(write=False)
    return direction


def _rebuild(kind: type[FakeEmbedder], options: Options) -> FakeEmbedder:
    return kind(**options)
