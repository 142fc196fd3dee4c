"""The choices of one pipeline, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.errors import InputError
from unified_embeddings.models.catalogue import CLIP, image_spec_for, spec_for
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.types import Options
from unified_embeddings.validation import require_whole_number

OPENAI_CLIPS = (
    "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14",
    "ViT-L/14@336px",
)  # fmt: skip
"""Names of OpenAI's own package `clip`, which LlamaIndex's ClipEmbedding takes."""

ModelChoice = str | os.PathLike[str] | ModelSpec


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """What a pipeline was asked to be; see `UnifiedEmbeddingConfig`, whose arguments these are.

    Raises:
        InputError: If an option is out of range, or a choice does not give what it is taken for.
    """

    model_choice: ModelChoice = "bge-m3"
    image_model: ModelChoice | None = CLIP
    sparse_model: ModelChoice | None = None
    allow_urls: bool = False
    max_pixels: int = 64_000_000
    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    max_length: int = 8192
    batch_tokens: int = 4096
    cache: EmbeddingCache | Literal["auto"] | None = "auto"
    revision: str | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.model_choice in OPENAI_CLIPS:
            raise InputError(f"{self.model_choice!r} is a model of images: give it as image_model")
        spec = self.spec
        if spec.images and self.sparse_model is not None:
            raise InputError(f"{spec.choice!r} takes no sparse_model beside it")
        if spec.images and self.engine != "auto":
            raise InputError(
                f"{spec.choice!r} runs on one engine; leave engine={self.engine!r} out"
            )
        require_whole_number("max_length", self.max_length)
        require_whole_number("batch_tokens", self.batch_tokens)
        if self.image_model is not None and not self.is_openai_clip:
            image_spec_for(self.image_model)

    @cached_property
    def spec(self) -> ModelSpec:
        """Return what is known of the text model."""
        return spec_for(self.model_choice)

    @property
    def is_openai_clip(self) -> bool:
        """Tell whether the image model is one that LlamaIndex's ClipEmbedding runs."""
        return self.image_model in OPENAI_CLIPS

    def for_texts(self, cache: EmbeddingCache | None) -> Options:
        """Return the options of `make_embedder`, besides the model."""
        return {
            "sparse_model": self.sparse_model,
            "engine": self.engine,
            "precision": self.precision,
            "device": self.device,
            "max_length": self.max_length,
            "batch_tokens": self.batch_tokens,
            "cache": cache,
            "revision": self.revision,
            "local_files_only": self.local_files_only,
            "trust_remote_code": self.trust_remote_code,
        }

    def for_images(self, cache: EmbeddingCache | None) -> Options:
        """Return the options of `ClipEmbedder`, besides the model.

        int8 is for texts only: images then take the precision that suits the hardware.
        """
        return {
            "allow_urls": self.allow_urls,
            "max_pixels": self.max_pixels,
            "precision": "auto" if self.precision == "int8" else self.precision,
            "device": self.device,
            "cache": cache,
            "revision": self.revision if self.spec.images else None,
            "local_files_only": self.local_files_only,
            "trust_remote_code": self.trust_remote_code,
        }
