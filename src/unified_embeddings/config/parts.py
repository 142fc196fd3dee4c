"""The parts of a pipeline, made from its options: each takes what it needs, and loads nothing.

What lives here: which class a choice gets. What does not: that each part is made once (`pipeline`).
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from unified_embeddings.config.options import PipelineOptions
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.single_model import ModelEmbedder
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.models.catalogue import CLIP
from unified_embeddings.system.hardware import passive_wait_policy

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding

    from unified_embeddings.cache.embedding_cache import EmbeddingCache
    from unified_embeddings.embedders.clip import ClipEmbedder


def make_clip(options: PipelineOptions, cache: EmbeddingCache) -> ClipEmbedder:
    """Make the embedder of images.

    Raises:
        InputError: If the options name none, or one that LlamaIndex's ClipEmbedding runs.
    """
    with passive_wait_policy():
        from unified_embeddings.embedders.clip import ClipEmbedder

    clip_options = options.for_images(cache)
    if options.takes_images:
        return ClipEmbedder(options.choice, **clip_options)
    image_model = options.image_model
    if image_model is None:
        raise InputError("this config has image_model=None; name one to embed images")
    if options.is_openai_clip:
        raise InputError(
            f"{image_model!r} is run by LlamaIndex's ClipEmbedding (config.image_model) alone; "
            f"for everything else name it as on the hub: image_model={CLIP!r}"
        )
    return ClipEmbedder(image_model, **clip_options)


def make_text_model(embedder: TextEmbedder) -> BaseEmbedding:
    """Make LlamaIndex's text embedding model over an embedder."""
    if isinstance(embedder, ModelEmbedder) and embedder.heads == ("dense",):
        from unified_embeddings.llama.huggingface import UnifiedHuggingFaceEmbedding

        return UnifiedHuggingFaceEmbedding(embedder)
    from unified_embeddings.llama.text import UnifiedTextEmbedding

    return UnifiedTextEmbedding(embedder)


def make_image_model(clip: ClipEmbedder) -> MultiModalEmbedding:
    """Make LlamaIndex's multi-modal embedding model over an embedder of images."""
    from unified_embeddings.llama.images import UnifiedImageEmbedding

    return UnifiedImageEmbedding(clip)


def make_openai_clip(name: str) -> MultiModalEmbedding:
    """Make LlamaIndex's own ClipEmbedding, which runs OpenAI's package.

    Raises:
        UnifiedEmbeddingsError: If the package is not installed.
    """
    if importlib.util.find_spec("clip") is None:
        raise UnifiedEmbeddingsError(
            f"Image model {name!r} is a name of OpenAI's package clip, which is not installed (pip "
            "install git+https://github.com/openai/CLIP.git). The same kind of model from the hub "
            f"needs no package: image_model={CLIP!r}"
        )
    from llama_index.embeddings.clip import ClipEmbedding

    return ClipEmbedding(model_name=name)
