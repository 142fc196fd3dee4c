"""One model with a cache in front: a vector is computed once, whoever asks for it.

What lives here: a text's way from the caller to the cache and back into the caller's order. What
does not: the model (`_run` of the subclass).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np

from unified_embeddings.cache.claims import Claim
from unified_embeddings.cache.keys import Key, Value, key_for
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.lazy import CutWarning
from unified_embeddings.embedders.pass_times import PassCounters
from unified_embeddings.embedders.values import EmbedderStats
from unified_embeddings.system.progress import progress_bar
from unified_embeddings.types import Embeddings, FloatArray, HeadName, Role, SparseVector, Text

Vectors = dict[HeadName, Value]
"""The finished vectors of one text: dense (d,), sparse, ColBERT (t, d)."""


class CachedTextEmbedder(TextEmbedder):
    """An embedder that asks its model only for vectors that are not in the cache."""

    def __init__(self) -> None:
        self._counters = PassCounters(
            "texts", "tokenised", "truncated", "tokens", "batches", "forwards", "capacity"
        )
        self._cut_warning = CutWarning()

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

    def _encode(
        self, texts: Sequence[Text], role: Role, heads: tuple[HeadName, ...], show_progress: bool
    ) -> Embeddings:
        self._counters.add(texts=len(texts))
        space = self._vector_space(role) if texts else b""
        keys = {(text, head): _key_of(space, head, text) for text in texts for head in heads}
        with self.cache.claim(keys[text, head] for text in texts for head in heads) as claim:
            for missing_keys in claim.rounds():
                missing = [pair for pair, key in keys.items() if key in missing_keys]
                missing_texts = list(dict.fromkeys(text for text, _ in missing))
                missing_heads = frozenset(head for _, head in missing)
                with progress_bar("Embedding", len(missing_texts), shown=show_progress) as advance:
                    for text, vectors in self._run(missing_texts, role, missing_heads):
                        for head, vector in vectors.items():
                            if keys[text, head] in missing_keys:
                                claim.put(keys[text, head], vector)
                        advance(1)
        return self._assemble(texts, heads, keys, claim)

    def _assemble(
        self,
        texts: Sequence[Text],
        heads: tuple[HeadName, ...],
        keys: Mapping[tuple[Text, HeadName], Key],
        claim: Claim,
    ) -> Embeddings:
        """Put the vectors into the caller's order."""
        columns: dict[HeadName, list[Value]] = {}
        for head in heads:
            columns[head] = [claim[keys[text, head]] for text in texts]
        dense = None
        if "dense" in columns:
            rows = cast("list[FloatArray]", columns["dense"])
            dense = np.stack(rows) if rows else np.zeros((0, self.dimension), dtype=np.float32)
        return Embeddings(
            dense=dense,
            sparse=cast("list[SparseVector] | None", columns.get("sparse")),
            colbert=cast("list[FloatArray] | None", columns.get("colbert")),
        )


def _key_of(space: bytes, head: HeadName, text: Text) -> Key:
    """Return the key of a text's vector; token ids are another text than the digits they show."""
    if isinstance(text, str):
        return key_for(space, head, text)
    return key_for(space, head, "token ids", np.array(text, dtype="<i4").tobytes())
