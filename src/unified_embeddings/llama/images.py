"""CLIP as LlamaIndex's multi-modal embedding model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
from llama_index.core.schema import (
    BaseNode,
    ImageType,
)

from unified_embeddings.embedders.clip import ClipEmbedder
from unified_embeddings.embedders.lazy import make_again
from unified_embeddings.images.sources import ImageInput
from unified_embeddings.llama.image_nodes import has_image
from unified_embeddings.llama.text import ValidatedTexts
from unified_embeddings.models.catalogue import CLIP
from unified_embeddings.validation import require_texts


class UnifiedImageEmbedding(ValidatedTexts, MultiModalEmbedding):
    """Vectors of images, and of texts in the same space, for LlamaIndex.

    An image may be anything ClipEmbedder takes: a path, bytes, an ImageNode, ...

    Args:
        clip: Share this one; None makes one from the fields.
        **fields: `model_name`, `options` as ClipEmbedder has them, and LlamaIndex's own.

    `to_dict` keeps the options, not the weights or the cache; `from_dict` gives an equal model that
    loads with its first image.

    Raises:
        As ClipEmbedder.
    """

    model_name: str = Field(default=CLIP, description="Choice, hub id or folder.")
    embed_batch_size: int = Field(
        default=2048, gt=0, le=2048, description="Handed over at once; ClipEmbedder forms batches."
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
        """What LlamaIndex calls this class in serialised form."""
        return "UnifiedImageEmbedding"

    @property
    def clip(self) -> ClipEmbedder:
        """What does the work."""
        return self._clip

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Embed nodes in a pipeline: those with an image by their image, others by their text."""
        images = [node for node in nodes if has_image(node)]
        for node, vector in zip(images, self.get_image_embedding_batch(images), strict=True):
            node.embedding = vector
        if texts := [node for node in nodes if not has_image(node)]:
            super().__call__(texts, **kwargs)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """As a call, without blocking the event loop."""
        return await asyncio.to_thread(self, nodes, **kwargs)

    def get_image_embedding_batch(
        self, img_file_paths: Sequence[Any], show_progress: bool = False
    ) -> list[Embedding]:
        """Vectors of images of any kind; an error's index counts in this list.

        Raises:
            InputError: If an image cannot be read; its index is named.
        """
        payload: dict[str, Any] = {EventPayload.SERIALIZED: self.to_payload()}
        with self.callback_manager.event(CBEventType.EMBEDDING, payload=payload) as event:
            result = self._clip.encode_images(img_file_paths, show_progress=show_progress)
            vectors: list[Embedding] = result.dense.tolist()
            event.on_end(
                {EventPayload.CHUNKS: img_file_paths, EventPayload.EMBEDDINGS: vectors},
            )
        return vectors

    async def aget_image_embedding_batch(
        self, img_file_paths: Sequence[Any], show_progress: bool = False
    ) -> list[Embedding]:
        """As `get_image_embedding_batch`, without blocking the event loop."""
        return await asyncio.to_thread(
            self.get_image_embedding_batch, img_file_paths, show_progress
        )

    def _get_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return self._get_image_embeddings([img_file_path])[0]

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        images = cast("list[ImageInput]", img_file_paths)
        rows: list[Embedding] = self._clip.encode_images(images).dense.tolist()
        return rows

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        prefix = self._clip.spec.document_prefix
        return self._texts([prefix + text for text in require_texts(texts)])

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> Embedding:
        (valid,) = require_texts([query])
        return self._texts([self._clip.spec.query_prefix + valid])[0]

    def _texts(self, texts: list[str]) -> list[Embedding]:
        rows: list[Embedding] = self._clip.encode_texts(texts).tolist()
        return rows

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
