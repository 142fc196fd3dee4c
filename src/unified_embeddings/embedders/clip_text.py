"""The text half of a CLIP as an embedder of texts."""

from __future__ import annotations

from typing import Any

from unified_embeddings.embedders.base import EmbedderStats, TextEmbedder
from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
from unified_embeddings.embedders.clip import ClipEmbedder
from unified_embeddings.types import Embeddings, HeadName, Role


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
    def options(self) -> dict[str, Any]:
        """See `TextEmbedder.options`."""
        return self.clip.options

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.clip.dimension

    @property
    def max_length(self) -> int:
        """Most tokens of a text, special tokens included."""
        return self.clip.max_length

    @property
    def document_length(self) -> int:
        """Most tokens of a document's own: `max_length` less special tokens and prefix."""
        return self.max_length - 2 - len(self.tokenise(self.clip.spec.document_prefix))

    @property
    def fingerprint(self) -> str:
        """The ClipEmbedder's."""
        return self.clip.fingerprint

    @property
    def revision(self) -> str:
        """The ClipEmbedder's."""
        return self.clip.revision

    @property
    def parts(self) -> tuple[BGE_M3_Embedder, ...]:
        """None: its one model is the ClipEmbedder's."""
        return ()

    def tokenise(self, text: str) -> list[int]:
        """All token ids of a text; see `TextEmbedder.tokenise`. Loads the model."""
        return self.clip.tokenise(text)

    def stats(self) -> EmbedderStats:
        """The ClipEmbedder's counters of texts; tokens are not counted there."""
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

    def close(self) -> None:
        """Close the ClipEmbedder."""
        self.clip.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its ClipEmbedder."""
        return ClipTextEmbedder, (self.clip,)

    def _encode(
        self,
        texts: list[str],
        role: Role,
        wanted: tuple[HeadName, ...],  # noqa: ARG002 — it can only be dense
        show_progress: bool,  # noqa: ARG002 — TextEmbedder's; texts of this length are quick
    ) -> Embeddings:
        prefix = self.clip.spec.prefix(role)
        return Embeddings(dense=self.clip.encode_texts([prefix + text for text in texts]))
