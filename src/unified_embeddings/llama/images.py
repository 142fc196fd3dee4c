"""A ClipEmbedder as LlamaIndex's multi-modal embedding model.

What lives here: the adapter. What does not: the vectors (`embedders`) and reading images
(`images`). Coroutines run the sync methods in worker threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
from llama_index.core.schema import BaseNode, ImageType

from unified_embeddings.embedders.clip import ClipEmbedder
from unified_embeddings.embedders.lazy import make_again
from unified_embeddings.images.sources import ImageInput
from unified_embeddings.llama.image_nodes import has_image
from unified_embeddings.llama.text import ValidatedTexts, to_lists
from unified_embeddings.models.catalogue import CLIP
from unified_embeddings.validation import require_texts


class UnifiedImageEmbedding(ValidatedTexts, MultiModalEmbedding):
    """Vectors of images, and of texts in the same space, for LlamaIndex.

    An image may be anything that ClipEmbedder takes: a path, bytes, an ImageNode, ... `to_dict`
    keeps the options, but neither the weights nor the cache. `from_dict` restores an equal model,
    which is loaded with its first image.

    Args:
        clip: The ClipEmbedder to share. None makes one from the fields.
        **fields: `model_name` and `options` as in ClipEmbedder, and the fields of LlamaIndex's
            BaseEmbedding.

    Raises:
        InputError: As ClipEmbedder does.

    Example:
        Lines marked SKIP need the model's weights.

        >>> from unified_embeddings import UnifiedImageEmbedding
        >>> model = UnifiedImageEmbedding(model_name="openai/clip-vit-base-patch32")
        >>> model.class_name()
        'UnifiedImageEmbedding'
        >>> len(model.get_image_embedding("fox.jpg"))    # doctest: +SKIP
        512
        >>> len(model.get_query_embedding("a fox"))    # doctest: +SKIP
        512
    """

    model_name: str = Field(default=CLIP, description="Choice, hub id or folder.")
    embed_batch_size: int = Field(
        default=2048, gt=0, le=2048, description="Per call; ClipEmbedder forms its own batches."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="ClipEmbedder's other options, without the cache."
    )
    _clip: ClipEmbedder = PrivateAttr()

    def __init__(self, clip: ClipEmbedder | None = None, **fields: Any) -> None:
        if clip is not None:
            fields |= {"model_name": clip.model_name, "options": clip.options}
        super().__init__(**fields)
        self._clip = clip or make_again(ClipEmbedder, self.model_name, self.options)

    @classmethod
    def class_name(cls) -> str:
        """Return LlamaIndex's name for this class in serialised form."""
        return "UnifiedImageEmbedding"

    @property
    def clip(self) -> ClipEmbedder:
        """The ClipEmbedder that computes the vectors."""
        return self._clip

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Embed nodes in a pipeline: those with an image by their image, others by their text."""
        images = []
        texts = []
        for node in nodes:
            if has_image(node):
                images.append(node)
            else:
                texts.append(node)
        for node, vector in zip(images, self.get_image_embedding_batch(images), strict=True):
            node.embedding = vector
        if texts:
            super().__call__(texts, **kwargs)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Like calling the model, but without blocking the event loop."""
        return await asyncio.to_thread(self, nodes, **kwargs)

    def get_image_embedding_batch(
        self, img_file_paths: Sequence[ImageInput], show_progress: bool = False
    ) -> list[Embedding]:
        """Return the vectors of images, in the same order.

        Args:
            img_file_paths: Images of any type that ClipEmbedder takes, not only files.
            show_progress: Draw a progress bar on standard error.

        Raises:
            InputError: If an image cannot be read; its index refers to `img_file_paths`.
        """
        with self.callback_manager.event(
            CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: self.to_payload()}
        ) as event:
            embeddings = self._clip.encode_images(img_file_paths, show_progress=show_progress)
            vectors = to_lists(embeddings.dense)
            event.on_end(
                payload={EventPayload.CHUNKS: img_file_paths, EventPayload.EMBEDDINGS: vectors}
            )
        return vectors

    async def aget_image_embedding_batch(
        self, img_file_paths: Sequence[ImageInput], show_progress: bool = False
    ) -> list[Embedding]:
        """Like `get_image_embedding_batch`, but without blocking the event loop."""
        return await asyncio.to_thread(
            self.get_image_embedding_batch, img_file_paths, show_progress
        )

    def _get_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return self._get_image_embeddings([img_file_path])[0]

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        images = cast("list[ImageInput]", img_file_paths)
        return to_lists(self._clip.encode_images(images).dense)

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        prefix = self._clip.spec.document_prefix
        return self._embed_texts([prefix + text for text in require_texts(texts)])

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> Embedding:
        (valid_query,) = require_texts([query])
        return self._embed_texts([self._clip.spec.query_prefix + valid_query])[0]

    def _embed_texts(self, texts: list[str]) -> list[Embedding]:
        return to_lists(self._clip.encode_texts(texts))

    async def _aget_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return await asyncio.to_thread(self._get_image_embedding, img_file_path)

    async def _aget_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_image_embeddings, img_file_paths)

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await asyncio.to_thread(self._get_query_embedding, query)
