"""One model with a cache in front: a vector is computed once, whoever asks for it.

What lives here: a text's way from the caller to the cache and back into the caller's order. What
does not: the model (`_run` of the subclass).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np

from unified_embeddings.cache.keys import Key, Value, key_for
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.calls import tell_computed
from unified_embeddings.embedders.lazy import CutWarning
from unified_embeddings.embedders.pass_times import PassCounters
from unified_embeddings.embedders.pooling import PooledRows, PooledWishes, pool_rows
from unified_embeddings.embedders.values import EmbedderStats
from unified_embeddings.system.progress import progress_bar
from unified_embeddings.types import Embeddings, FloatArray, HeadName, Role, SparseVector, Text
from unified_embeddings.validation import require_whole_number

Vectors = dict[HeadName, Value]
"""The finished vectors of one text: dense (d,), sparse, ColBERT (t, d)."""


class _Kind(NamedTuple):
    """A kind of vector as the cache tells it from others: a head's own, or its rows pooled.

    Attributes:
        head: The head.
        pool: How many of its rows become one; 1 for the head's own vectors.
    """

    head: HeadName
    pool: int = 1

    @property
    def name(self) -> str:
        """Return what it is called in keys."""
        return self.head if self.pool == 1 else f"{self.head} pooled by {self.pool}"

    def of(self, vectors: Vectors) -> Value:
        """Return a text's vector of this kind, given all that its model gave."""
        vector = vectors[self.head]
        return vector if self.pool == 1 else pool_rows(cast("FloatArray", vector), self.pool)


class CachedTextEmbedder(TextEmbedder):
    """An embedder that asks its model only for vectors that are not in the cache."""

    def __init__(self) -> None:
        self._counters = PassCounters(
            "texts", "tokenised", "truncated", "tokens", "batches", "forwards", "capacity"
        )
        self._cut_warning = CutWarning()
        self._pooled_wishes = PooledWishes()

    @abstractmethod
    def _vector_space(self, role: Role) -> bytes:
        """Return a digest of all that a vector depends on, besides its text and head."""

    @abstractmethod
    def _run(
        self, texts: Sequence[Text], role: Role, heads: frozenset[HeadName]
    ) -> Iterator[tuple[Text, Vectors]]:
        """Compute vectors of distinct texts; yield each text's as soon as its batch is done."""

    def stats(self) -> EmbedderStats:
        """Return the counters since the embedder was made."""
        counts = self._counters.snapshot()
        return EmbedderStats(**counts, passes=(), cache=self.cache.stats())

    def _count_tokenised(self, texts: int, truncated: int) -> None:
        """Count texts that were tokenised, and warn of the first that was cut."""
        self._counters.add(tokenised=texts, truncated=truncated)
        if truncated:
            self._cut_warning.give(self.model_name, self.max_length)

    def want_pooled(self, factor: int) -> PooledRows | None:
        """Have pooled rows cached along with documents' dense vectors; see `TextEmbedder`."""
        return self._pooled_wishes.add(require_whole_number("factor", factor))

    def _encode(
        self, texts: Sequence[Text], role: Role, heads: tuple[HeadName, ...], show_progress: bool
    ) -> Embeddings:
        kinds = [_Kind(head) for head in heads]
        along: list[_Kind] = []
        if role == "document" and "dense" in heads and "colbert" in self.heads:
            along = [_Kind("colbert", factor) for factor in self._pooled_wishes.factors()]
        columns = self._compute(texts, role, kinds, along, show_progress)
        dense = None
        if "dense" in heads:
            rows = cast("list[FloatArray]", columns[_Kind("dense")])
            dense = _stack(rows) if rows else np.zeros((0, self.dimension), dtype=np.float32)
        return Embeddings(
            dense=dense,
            sparse=cast("list[SparseVector] | None", columns.get(_Kind("sparse"))),
            colbert=cast("list[FloatArray] | None", columns.get(_Kind("colbert"))),
        )

    def _encode_pooled(self, texts: Sequence[str], factor: int) -> list[FloatArray]:
        kind = _Kind("colbert", factor)
        columns = self._compute(texts, "document", [kind], [], show_progress=False)
        rows = cast("list[FloatArray]", columns[kind])
        # Of a factor of 1 the head's own rows are cached, and those may be more than Qdrant holds.
        return [pool_rows(each, 1) for each in rows]

    def _compute(
        self,
        texts: Sequence[Text],
        role: Role,
        kinds: Sequence[_Kind],
        along: Sequence[_Kind],
        show_progress: bool,
    ) -> dict[_Kind, list[Value]]:
        """Return the vectors of each kind in the caller's order, from the cache or the model.

        Args:
            texts: The texts.
            role: What they are.
            kinds: The kinds to return.
            along: Kinds to compute and cache besides.
            show_progress: Draw a progress bar on standard error.
        """
        self._counters.add(texts=len(texts))
        space = self._vector_space(role) if texts else b""
        every = list(dict.fromkeys((*kinds, *along)))
        ordered_keys = [_key_of(space, kind, text) for text in texts for kind in every]
        recalled = self.cache.recall(ordered_keys)
        if recalled is not None:
            return {kind: recalled[every.index(kind) :: len(every)] for kind in kinds}
        pairs = ((text, kind) for text in texts for kind in every)
        keys = dict(zip(pairs, ordered_keys, strict=True))
        with self.cache.claim(ordered_keys) as claim:
            for missing_keys in claim.rounds():
                missing = [pair for pair, key in keys.items() if key in missing_keys]
                missing_texts = list(dict.fromkeys(text for text, _ in missing))
                missing_heads = frozenset(kind.head for _, kind in missing)
                with progress_bar("Embedding", len(missing_texts), shown=show_progress) as advance:
                    for text, vectors in self._run(missing_texts, role, missing_heads):
                        for kind in every:
                            if keys[text, kind] in missing_keys:
                                claim.put(keys[text, kind], kind.of(vectors))
                        advance(1)
                        tell_computed(text)
            return {kind: [claim[keys[text, kind]] for text in texts] for kind in kinds}


def _stack(rows: Sequence[FloatArray]) -> FloatArray:
    """Return n >= 1 rows (d,) as a new array (n, d)."""
    if len(rows) == 1:  # a question; NumPy's own function takes several times as long
        return rows[0][np.newaxis].copy()
    return np.stack(rows)


def _key_of(space: bytes, kind: _Kind, text: Text) -> Key:
    """Return the key of a text's vector; token ids are another text than the digits they show."""
    if isinstance(text, str):
        return key_for(space, kind.name, text)
    return key_for(space, kind.name, "token ids", np.array(text, dtype="<i4").tobytes())
