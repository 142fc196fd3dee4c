"""CLIP as LlamaIndex's multi-modal embedding model, and an index that loses no image.

What lives here: UnifiedImageEmbedding, and UnifiedMultiModalIndex over two stores. What does not:
the vectors (`images`), searching both stores at once (`retrievers.multimodal`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from llama_index.core import Settings
from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
from llama_index.core.indices.multi_modal.base import MultiModalVectorStoreIndex
from llama_index.core.schema import BaseNode, ImageNode, ImageType, MetadataMode
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from unified_embeddings.embedder import validated
from unified_embeddings.errors import InputError
from unified_embeddings.images import ClipEmbedder, make_clip
from unified_embeddings.models import CLIP
from unified_embeddings.pictures import ImageInput


class UnifiedImageEmbedding(MultiModalEmbedding):
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
        self._clip = clip or make_clip(self.model_name, self.options)

    @classmethod
    def class_name(cls) -> str:
        """What LlamaIndex calls this class in serialised form."""
        return "UnifiedImageEmbedding"

    @property
    def clip(self) -> ClipEmbedder:
        """What does the work."""
        return self._clip

    def _get_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return self._get_image_embeddings([img_file_path])[0]

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        images = cast("list[ImageInput]", img_file_paths)
        rows: list[Embedding] = self._clip.encode_images(images).dense.tolist()
        return rows

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        prefix = self._clip.spec.document_prefix
        return self._texts([prefix + text for text in validated(texts)])

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> Embedding:
        (valid,) = validated([query])
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


class UnifiedMultiModalIndex(MultiModalVectorStoreIndex):
    """LlamaIndex's multi-modal index where it loses or leaks something.

    The stock one drops image nodes that have neither text nor metadata, downloads an image's URL
    itself without any limit, deletes nodes from the text store only, and does not read
    `Settings.image_embed_model`. This one keeps every image, hands each to the image model as it is
    (which fetches nothing unless told to), deletes from both stores, and reads the setting.

    Args:
        nodes: As the stock index's.
        image_embed_model: A UnifiedImageEmbedding; None takes `Settings.image_embed_model`, as
            `UnifiedEmbeddingConfig.configure_settings()` sets it.
        **options: As the stock index's: storage_context, image_vector_store, embed_model, ...

    Raises:
        InputError: If the image model is no UnifiedImageEmbedding, or an image cannot be read.
    """

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        image_embed_model: MultiModalEmbedding | None = None,
        **options: Any,
    ) -> None:
        model = image_embed_model or getattr(Settings, "image_embed_model", None)
        if not isinstance(model, UnifiedImageEmbedding):
            raise InputError(
                f"image_embed_model must be a UnifiedImageEmbedding, got {type(model).__name__}; "
                "give config.image_model, or call config.configure_settings() first"
            )
        self._images = model
        super().__init__(nodes=nodes, image_embed_model=model, **options)

    @classmethod
    def from_vector_store(
        cls,
        vector_store: BasePydanticVectorStore,
        embed_model: Any = None,
        image_vector_store: BasePydanticVectorStore | None = None,
        image_embed_model: Any = None,
        **options: Any,
    ) -> UnifiedMultiModalIndex:
        """The index over stores that are there already."""
        from llama_index.core import StorageContext

        return cls(
            nodes=[],
            storage_context=StorageContext.from_defaults(vector_store=vector_store),
            image_vector_store=image_vector_store,
            image_embed_model=image_embed_model,
            embed_model=embed_model or Settings.embed_model,
            **options,
        )

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> IndexDict:
        """Index text nodes that have content, and every image node."""
        kept = [
            node
            for node in nodes
            if isinstance(node, ImageNode) or node.get_content(MetadataMode.EMBED) != ""
        ]
        return self._build_index_from_nodes(kept, **insert_kwargs)

    def delete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Delete nodes from both stores."""
        super().delete_nodes(node_ids, delete_from_docstore, **delete_kwargs)
        self._image_vector_store.delete_nodes(node_ids, **delete_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Delete nodes from both stores."""
        await super().adelete_nodes(node_ids, delete_from_docstore, **delete_kwargs)
        await self._image_vector_store.adelete_nodes(node_ids, **delete_kwargs)

    async def adelete_ref_doc(
        self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Delete a document's nodes from both stores."""
        await super().adelete_ref_doc(ref_doc_id, delete_from_docstore, **delete_kwargs)
        await self._image_vector_store.adelete(ref_doc_id, **delete_kwargs)

    def _get_node_with_embedding(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, is_image: bool = False
    ) -> list[BaseNode]:
        if not is_image:
            return super()._get_node_with_embedding(nodes, show_progress)
        new = [node for node in nodes if node.embedding is None]
        images = cast("list[ImageInput]", new)
        vectors = self._images.clip.encode_images(images, show_progress=show_progress).dense
        embedded = dict(zip((node.node_id for node in new), vectors.tolist(), strict=True))
        return [
            node.model_copy(update={"embedding": embedded.get(node.node_id, node.embedding)})
            for node in nodes
        ]

    async def _aget_node_with_embedding(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, is_image: bool = False
    ) -> list[BaseNode]:
        if not is_image:
            return await super()._aget_node_with_embedding(nodes, show_progress)
        return await asyncio.to_thread(
            self._get_node_with_embedding, nodes, show_progress, is_image=True
        )
