"""Two models as one embedder: dense vectors from one, sparse vectors from the other.

What lives here: joining two embedders. What does not: the models themselves (`single_model`), and
knowing when a choice needs two (`factory`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from unified_embeddings.cache.keys import key_for
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.lazy import LocalModel
from unified_embeddings.embedders.pooling import PooledRows
from unified_embeddings.embedders.values import EmbedderStats
from unified_embeddings.errors import InputError
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.fusion import DEFAULT_FUSION, Fusion
from unified_embeddings.types import Embeddings, FloatArray, HeadName, Options, Role, Text
from unified_embeddings.validation import require_texts


class PairedEmbedder(TextEmbedder):
    """Dense (and ColBERT) vectors of one model, sparse vectors of another.

    Args:
        dense: Gives all but the sparse vectors.
        sparse: Gives the sparse vectors.
        model_name: What the pair is called; None joins the two names by "+".
        options: What it was made with, as `make_embedder` takes it.
        fusion: How the two rankings are fused by default; None takes `DEFAULT_FUSION`.
        calibration: How likely a hit of the two is relevant; None: not known.

    Raises:
        InputError: If the one gives no dense, or the other no sparse vectors.

    Example:
        >>> from unified_embeddings import PairedEmbedder
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> dense = FakeEmbedder(heads=("dense",), model_name="words")
        >>> sparse = FakeEmbedder(heads=("sparse",), model_name="terms")
        >>> pair = PairedEmbedder(dense, sparse)
        >>> pair, pair.heads
        (PairedEmbedder('words+terms'), ('dense', 'sparse'))
    """

    def __init__(
        self,
        dense: TextEmbedder,
        sparse: TextEmbedder,
        *,
        model_name: str | None = None,
        options: Options | None = None,
        fusion: Fusion | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        _require_head(dense, "dense")
        _require_head(sparse, "sparse")
        self.dense, self.sparse = dense, sparse
        self.model_name = model_name or f"{dense.model_name}+{sparse.model_name}"
        self.heads = (*(head for head in dense.heads if head != "sparse"), "sparse")
        self.cache = dense.cache
        self._options = dict(options or {})
        self._fusion = fusion or DEFAULT_FUSION
        self._calibration = calibration

    @property
    def models(self) -> tuple[LocalModel, ...]:
        """Return the models of both."""
        return self.dense.models + self.sparse.models

    @property
    def model_names(self) -> tuple[str, ...]:
        """Return the names of both."""
        return self.dense.model_names + self.sparse.model_names

    @property
    def revision(self) -> str:
        """Return both revisions, joined by "+"."""
        return f"{self.dense.revision}+{self.sparse.revision}"

    @property
    def options(self) -> Options:
        """Return the options it was made with; empty for a pair made by hand."""
        return dict(self._options)

    @property
    def dimension(self) -> int:
        """Return the width of the dense vectors."""
        return self.dense.dimension

    @property
    def max_length(self) -> int:
        """Return the smaller of the two models' limits; each cuts at its own."""
        return min(self.dense.max_length, self.sparse.max_length)

    @property
    def fusion(self) -> Fusion:
        """Return how the two rankings are fused by default."""
        return self._fusion

    @property
    def calibration(self) -> Calibration | None:
        """Return how likely a hit of the two is relevant; None: not known."""
        return self._calibration

    @property
    def sparse_idf(self) -> bool:
        """Tell what holds for the model of the sparse vectors."""
        return self.sparse.sparse_idf

    @property
    def document_length(self) -> int:
        """Return the smaller of the two models' limits on a document's own tokens."""
        return min(self.dense.document_length, self.sparse.document_length)

    @property
    def fingerprint(self) -> str:
        """Return a digest of the two models' fingerprints."""
        return key_for("pair 1", self.dense.fingerprint, self.sparse.fingerprint).hex()

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Return the digests of the two models' former fingerprints."""
        pairs = zip(self.dense.former_fingerprints, self.sparse.former_fingerprints, strict=False)
        return tuple(key_for("pair 1", dense, sparse).hex() for dense, sparse in pairs)

    def tokenise(self, text: str) -> list[int]:
        """Return the token ids of the dense model; see `TextEmbedder.tokenise`."""
        return self.dense.tokenise(text)

    def stats(self) -> EmbedderStats:
        """Return the two models' counters, summed.

        `texts` and the cache's counters are the dense model's.
        """
        dense, sparse = self.dense.stats(), self.sparse.stats()
        return dataclasses.replace(
            dense,
            tokenised=dense.tokenised + sparse.tokenised,
            truncated=dense.truncated + sparse.truncated,
            tokens=dense.tokens + sparse.tokens,
            batches=dense.batches + sparse.batches,
            forwards=dense.forwards + sparse.forwards,
            capacity=dense.capacity + sparse.capacity,
            passes=dense.passes + sparse.passes,
        )

    def close(self) -> None:
        """Release both models' memory."""
        self.dense.close()
        self.sparse.close()

    def want_pooled(self, factor: int) -> PooledRows | None:
        """Have the dense model cache pooled rows along; see `TextEmbedder.want_pooled`."""
        return self.dense.want_pooled(factor)

    def _encode_pooled(self, texts: Sequence[str], factor: int) -> list[FloatArray]:
        return self.dense.encode_pooled(texts, factor)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the two embedders, which pickle their options."""
        parts = (self.dense, self.sparse, self.model_name, self._options)
        return _rebuild, (*parts, self._fusion, self._calibration)

    def _encode(
        self, texts: Sequence[Text], role: Role, heads: tuple[HeadName, ...], show_progress: bool
    ) -> Embeddings:
        vectors: dict[str, Any] = {}
        others = [head for head in heads if head != "sparse"]
        if others:
            encoded = _encode_with(self.dense, texts, role, others, show_progress)
            vectors.update(dense=encoded.dense, colbert=encoded.colbert)
        if "sparse" in heads:
            encoded = _encode_with(self.sparse, texts, role, ["sparse"], show_progress)
            vectors.update(sparse=encoded.sparse)
        return Embeddings(**vectors)


def _encode_with(
    embedder: TextEmbedder,
    texts: Sequence[Text],
    role: Role,
    heads: Sequence[HeadName],
    show_progress: bool,
) -> Embeddings:
    encode = embedder.encode_queries if role == "query" else embedder.encode_documents
    return encode(
        require_texts(texts),
        dense="dense" in heads,
        sparse="sparse" in heads,
        colbert="colbert" in heads,
        show_progress=show_progress,
    )


def _require_head(embedder: TextEmbedder, head: HeadName) -> None:
    if head not in embedder.heads:
        raise InputError(
            f"{embedder.model_name!r} gives {' and '.join(embedder.heads)} vectors, no {head} ones"
        )


def _rebuild(
    dense: TextEmbedder,
    sparse: TextEmbedder,
    model_name: str,
    options: Options,
    fusion: Fusion,
    calibration: Calibration | None,
) -> PairedEmbedder:
    return PairedEmbedder(
        dense,
        sparse,
        model_name=model_name,
        options=options,
        fusion=fusion,
        calibration=calibration,
    )
