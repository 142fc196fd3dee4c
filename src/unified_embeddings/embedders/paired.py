"""Two models as one embedder: dense vectors from one, sparse vectors from the other.

What lives here: PairedEmbedder, and `make_embedder`, which knows when a choice needs it. What does
not: the models themselves (`embedder`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from unified_embeddings.cache.keys import key_for
from unified_embeddings.embedders.base import EmbedderStats, TextEmbedder
from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
from unified_embeddings.errors import InputError
from unified_embeddings.types import Embeddings, HeadName, Role


class PairedEmbedder(TextEmbedder):
    """Dense (and ColBERT) vectors of one model, sparse vectors of another.

    Args:
        dense: Gives all but the sparse vectors.
        sparse: Gives the sparse vectors.
        model_name: What the pair is called; the two names joined if None.
        options: What it was made with, as `make_embedder` takes it.

    Raises:
        InputError: If the one gives no dense, or the other no sparse vectors.
    """

    def __init__(
        self,
        dense: TextEmbedder,
        sparse: TextEmbedder,
        *,
        model_name: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        for embedder, head in ((dense, "dense"), (sparse, "sparse")):
            if head not in embedder.heads:
                raise InputError(
                    f"{embedder.model_name!r} gives {' and '.join(embedder.heads)} vectors, no "
                    f"{head} ones"
                )
        self.dense, self.sparse = dense, sparse
        self.model_name = model_name or f"{dense.model_name}+{sparse.model_name}"
        self.heads = (*(head for head in dense.heads if head != "sparse"), "sparse")
        self.cache = dense.cache
        self._options = dict(options or {})

    @property
    def options(self) -> dict[str, Any]:
        """See `TextEmbedder.options`; empty for a pair made by hand."""
        return dict(self._options)

    @property
    def dimension(self) -> int:
        """Width of the dense vectors."""
        return self.dense.dimension

    @property
    def max_length(self) -> int:
        """The smaller of the two models' limits; each cuts at its own."""
        return min(self.dense.max_length, self.sparse.max_length)

    @property
    def document_length(self) -> int:
        """The smaller of the two models'."""
        return min(self.dense.document_length, self.sparse.document_length)

    @property
    def fingerprint(self) -> str:
        """A digest of the two models' fingerprints."""
        return key_for("pair 1", self.dense.fingerprint, self.sparse.fingerprint).hex()

    @property
    def revision(self) -> str:
        """Both revisions."""
        return f"{self.dense.revision}+{self.sparse.revision}"

    @property
    def parts(self) -> tuple[BGE_M3_Embedder, ...]:
        """The two models."""
        return self.dense.parts + self.sparse.parts

    def tokenise(self, text: str) -> list[int]:
        """Token ids of the dense model; see `TextEmbedder.tokenise`."""
        return self.dense.tokenise(text)

    def stats(self) -> EmbedderStats:
        """The two models' counters, summed; the cache's are the dense model's."""
        one, other = self.dense.stats(), self.sparse.stats()
        sums = {
            field.name: getattr(one, field.name) + getattr(other, field.name)
            for field in dataclasses.fields(EmbedderStats)
            if field.name not in ("cache", "texts")
        }
        return EmbedderStats(texts=one.texts, cache=one.cache, **sums)

    def close(self) -> None:
        """Close both."""
        self.dense.close()
        self.sparse.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its two models, or their options."""
        return _rebuild, (self.dense, self.sparse, self.model_name, self._options)

    def _encode(
        self, texts: list[str], role: Role, wanted: tuple[HeadName, ...], show_progress: bool
    ) -> Embeddings:
        parts: list[Embeddings] = []
        others = tuple(head for head in wanted if head != "sparse")
        if others:
            parts.append(self.dense._encode(texts, role, others, show_progress))
        if "sparse" in wanted:
            parts.append(self.sparse._encode(texts, role, ("sparse",), show_progress))
        heads: dict[str, Any] = {head: part[head] for part in parts for head in part}
        return Embeddings(**heads)


def _rebuild(
    dense: TextEmbedder, sparse: TextEmbedder, model_name: str, options: dict[str, Any]
) -> PairedEmbedder:
    return PairedEmbedder(dense, sparse, model_name=model_name, options=options)
