"""The choices of one pipeline, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.embedders.remote_options import RUNPOD_URL
from unified_embeddings.errors import InputError
from unified_embeddings.models.bm25 import is_bm25, read_name
from unified_embeddings.models.catalogue import CLIP, image_spec_for, spec_for
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.types import Options
from unified_embeddings.validation import require_whole_number

OPENAI_CLIPS = (
    "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14",
    "ViT-L/14@336px",
)  # fmt: skip
"""Names of OpenAI's own package `clip`, which LlamaIndex's ClipEmbedding takes."""

DEFAULT_MODEL = "bge-m3"
QUERY_BACKENDS = ("local", "runpod")

_OF_A_LOCAL_MODEL = (
    "sparse_model", "engine", "precision", "device", "max_length", "batch_tokens", "revision",
)  # fmt: skip
"""Options of a text model in this process: a service has decided them for its own."""

ModelChoice = str | os.PathLike[str] | ModelSpec


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """What a pipeline was asked to be; see `UnifiedEmbeddingConfig`, whose arguments these are.

    Raises:
        InputError: If an option is out of range, or a choice does not give what it is taken for.
    """

    model_choice: ModelChoice | None = None
    image_model: ModelChoice | None = CLIP
    sparse_model: ModelChoice | None = None
    keywords: str | None = None
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
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    query_backend: str = "local"
    runpod_api_key: str | None = field(default=None, repr=False)
    runpod_query_endpoint_id: str | None = None
    runpod_url: str = RUNPOD_URL

    def __post_init__(self) -> None:
        if self.model_choice in OPENAI_CLIPS:
            raise InputError(f"{self.model_choice!r} is a model of images: give it as image_model")
        self._check_model()
        self._check_query_backend()
        if self.keywords is not None:
            self._check_keywords(self.keywords)
        require_whole_number("max_length", self.max_length)
        require_whole_number("batch_tokens", self.batch_tokens)
        if self.image_model is not None and not self.is_openai_clip:
            image_spec_for(self.image_model)

    def _check_model(self) -> None:
        if self.url is not None:
            defaults = {option.name: option.default for option in fields(self)}
            for name in _OF_A_LOCAL_MODEL:
                value = getattr(self, name)
                if value != defaults[name]:
                    raise InputError(
                        f"{name}={value!r:.80} is the service's to decide where url is given; "
                        "leave it out, and start the service with it"
                    )
            return
        if self.api_key is not None:
            raise InputError("api_key is the key of the service at url; give url too")
        spec = self.spec
        if spec.images and self.sparse_model is not None:
            raise InputError(f"{spec.choice!r} takes no sparse_model beside it")
        if spec.images and self.engine != "auto":
            raise InputError(
                f"{spec.choice!r} runs on one engine; leave engine={self.engine!r} out"
            )

    def _check_keywords(self, keywords: str) -> None:
        if not isinstance(keywords, str) or not is_bm25(keywords):
            raise InputError(
                f"keywords must be bm25, bm25:german and so on, got {keywords!r:.80}: it counts "
                "words beside the model's own vectors"
            )
        read_name(keywords)

    def _check_query_backend(self) -> None:
        if self.query_backend not in QUERY_BACKENDS:
            raise InputError(
                f"query_backend (BACKEND_EMBED_QUERY) must be one of {', '.join(QUERY_BACKENDS)}, "
                f"got {self.query_backend!r:.80}"
            )
        needed = {
            "runpod_api_key (RUNPOD_API_KEY)": self.runpod_api_key,
            "runpod_query_endpoint_id (RUNPOD_QUERY_ENDPOINT_ID)": self.runpod_query_endpoint_id,
        }
        for name, value in needed.items():
            if self.query_backend == "runpod" and not value:
                raise InputError(f"query_backend='runpod' needs {name}")
            if self.query_backend != "runpod" and value is not None:
                raise InputError(f"{name} has no effect without query_backend='runpod'")
        if self.query_backend == "runpod" and self.takes_images:
            raise InputError(
                f"{self.spec.choice!r} embeds images and texts into one space, and has no queries "
                "to embed elsewhere; leave query_backend out"
            )

    @property
    def choice(self) -> ModelChoice:
        """Return the text model's choice, or the default one."""
        return DEFAULT_MODEL if self.model_choice is None else self.model_choice

    @property
    def choice_name(self) -> str:
        """Return the text model's choice as a name."""
        choice = self.choice
        return choice.choice if isinstance(choice, ModelSpec) else os.fspath(choice)

    @cached_property
    def spec(self) -> ModelSpec:
        """Return what is known of the text model; a service's is known once it is asked."""
        return spec_for(self.choice)

    @property
    def takes_images(self) -> bool:
        """Tell whether the text model, in this process, embeds images too."""
        return self.url is None and self.spec.images

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
            "revision": self.revision if self.takes_images else None,
            "local_files_only": self.local_files_only,
            "trust_remote_code": self.trust_remote_code,
        }
