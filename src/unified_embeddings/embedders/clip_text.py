"""The text half of a CLIP as an embedder of texts."""

from __future__ import annotations

from collections.abc import Sequence

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.clip import ClipEmbedder
from unified_embeddings.embedders.lazy import LocalModel
from unified_embeddings.embedders.values import SPECIAL_TOKENS, EmbedderStats
from unified_embeddings.types import Embeddings, HeadName, Options, Role, Text
from unified_embeddings.validation import require_texts


class ClipTextEmbedder(TextEmbedder):
    """A ClipEmbedder's text half as an embedder of texts, for models that are good at both.

    Args:
        clip: Does the work; its images and these texts share one model in memory.
    """

    def __init__(self, clip: ClipEmbedder) -> None:
        self.clip = clip
        self.model_name = clip.model_name
        self.heads: tuple[HeadName, ...] = ("dense",)
        self.cache = clip.cache

    @property
    def models(self) -> tuple[LocalModel, ...]:
        """Return the ClipEmbedder, whose model this is."""
        return (self.clip,)

    @property
    def options(self) -> Options:
        """Return the ClipEmbedder's options."""
        return self.clip.options

    @property
    def dimension(self) -> int:
        """Return the width of the vectors."""
        return self.clip.dimension

    @property
    def max_length(self) -> int:
        """Return the most tokens of a text, special tokens included."""
        return self.clip.max_length

    @property
    def document_length(self) -> int:
        """Return the most tokens of a document's own: without special tokens and prefix."""
        prefix_length = len(self.tokenise(self.clip.spec.document_prefix))
        return self.max_length - SPECIAL_TOKENS - prefix_length

    @property
    def fingerprint(self) -> str:
        """Return the ClipEmbedder's fingerprint."""
        return self.clip.fingerprint

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Return the ClipEmbedder's."""
        return self.clip.former_fingerprints

    def tokenise(self, text: str) -> list[int]:
        """Return all token ids of a text; see `TextEmbedder.tokenise`. Loads the model."""
        return self.clip.tokenise(text)

    def stats(self) -> EmbedderStats:
        """Return the ClipEmbedder's counters of texts; it does not count tokens."""
        stats = self.clip.stats()
        return EmbedderStats(
            texts=stats.texts,
            tokenised=0,
            truncated=stats.truncated,
            tokens=0,
            batches=stats.forwards,
            forwards=stats.forwards,
            cache=stats.cache,
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the ClipEmbedder."""
        return ClipTextEmbedder, (self.clip,)

    def _encode(
        self,
        texts: Sequence[Text],
        role: Role,
        heads: tuple[HeadName, ...],  # noqa: ARG002 — it can only be dense
        show_progress: bool,  # noqa: ARG002 — texts of this length are quick
    ) -> Embeddings:
        prefix = self.clip.spec.prefix(role)
        return Embeddings(
            dense=self.clip.encode_texts([prefix + text for text in require_texts(texts)])
        )
