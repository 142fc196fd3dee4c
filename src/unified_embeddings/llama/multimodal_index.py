"""CLIP as LlamaIndex's multi-modal embedding model, and an index that loses no image.

What lives here: UnifiedImageEmbedding, and UnifiedMultiModalIndex over two stores. What does not:
the vectors (`images`), searching both stores at once (`retrievers.multimodal`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core import Settings, StorageContext, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
from llama_index.core.indices.multi_modal.base import MultiModalVectorStoreIndex
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    MetadataMode,
    TransformComponent,
)
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.image_nodes import _captions, _image_document, _image_node, has_image
from unified_embeddings.llama.images import UnifiedImageEmbedding
from unified_embeddings.llama.vector_store import FingerprintedStore


class UnifiedMultiModalIndex(MultiModalVectorStoreIndex):
    """LlamaIndex's multi-modal index where it loses or leaks something.

    The stock one drops image nodes that have neither text nor metadata, and images in any other
    kind of node; downloads an image's URL itself without any limit; writes the texts before it
    looks at the images; deletes single nodes from the text store only; and does not read
    `Settings.image_embed_model`. This one keeps every image, hands each to the image model as it is
    (which fetches nothing unless told to) before anything is stored, deletes from both stores, and
    reads the setting. An index stored with `persist` is LlamaIndex's when it is loaded again: open
    this one with `from_vector_store`.

    Args:
        nodes: As the stock index's; a node with an `image_resource` is made an ImageNode.
        image_embed_model: A UnifiedImageEmbedding; None takes `Settings.image_embed_model`, as
            `UnifiedEmbeddingConfig.configure_settings()` sets it.
        **options: As the stock index's but for is_image_to_text: storage_context,
            image_vector_store, embed_model, ...

    Raises:
        InputError: If the image model is no UnifiedImageEmbedding, there is no store for images, or
            an image cannot be read: its index is its place among the nodes. Nothing is stored then.
        FingerprintMismatchError: If a store was opened for another model.
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
        images = options.get("image_vector_store")
        context = options.get("storage_context")
        if images is None and context is not None:
            images = context.vector_stores.get(self.image_namespace)
            if isinstance(images, SimpleVectorStore):  # what a context puts there unasked: memory
                images = None
        if images is None:
            raise InputError(
                "the images need a store of their own: give image_vector_store=, as "
                "config.image_store() makes it"
            )
        if isinstance(images, FingerprintedStore):
            images.check(model.clip.fingerprint, model.model_name)
        texts = context.vector_stores.get(DEFAULT_VECTOR_STORE) if context is not None else None
        embedder = getattr(options.get("embed_model") or Settings.embed_model, "embedder", None)
        if isinstance(texts, FingerprintedStore) and isinstance(embedder, TextEmbedder):
            texts.check(embedder.fingerprint, embedder.model_name)
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
        return cls(
            nodes=[],
            storage_context=StorageContext.from_defaults(vector_store=vector_store),
            image_vector_store=image_vector_store,
            image_embed_model=image_embed_model,
            embed_model=embed_model or Settings.embed_model,
            **options,
        )

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        storage_context: StorageContext | None = None,
        show_progress: bool = False,
        callback_manager: CallbackManager | None = None,
        transformations: list[TransformComponent] | None = None,
        **options: Any,
    ) -> UnifiedMultiModalIndex:
        """Index documents; one with an image keeps it, whatever kind of document it is."""
        return super().from_documents(
            [_image_document(one) for one in documents],
            storage_context,
            show_progress,
            callback_manager,
            transformations,
            **options,
        )

    # The stock flags turn True with any insert that lacks one kind, and the stock retriever then
    # never looks at that store again.
    @property
    def is_image_vector_store_empty(self) -> bool:
        """False: the store is always looked at."""
        return False

    @property
    def is_text_vector_store_empty(self) -> bool:
        """False: the store is always looked at."""
        return False

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Index one document more."""
        super().insert(_image_document(document), **insert_kwargs)

    async def ainsert(self, document: Document, **insert_kwargs: Any) -> None:
        """Index one document more."""
        await super().ainsert(_image_document(document), **insert_kwargs)

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> IndexDict:
        """Index text nodes that have content, and every image."""
        kept = [
            node for node in nodes if has_image(node) or node.get_content(MetadataMode.EMBED) != ""
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

    def delete_ref_doc(
        self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Delete a document's nodes from both stores."""
        # Past the multi-modal class, which deletes from the index once for each store.
        VectorStoreIndex.delete_ref_doc(self, ref_doc_id, delete_from_docstore, **delete_kwargs)
        self._image_vector_store.delete(ref_doc_id, **delete_kwargs)

    async def adelete_ref_doc(
        self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Delete a document's nodes from both stores."""
        await super().adelete_ref_doc(ref_doc_id, delete_from_docstore, **delete_kwargs)
        await self._image_vector_store.adelete(ref_doc_id, **delete_kwargs)

    def _add_nodes_to_index(
        self,
        index_struct: IndexDict,
        nodes: Sequence[BaseNode],
        show_progress: bool = False,
        **insert_kwargs: Any,
    ) -> None:
        nodes = self._with_images_embedded(nodes, show_progress)
        super()._add_nodes_to_index(index_struct, nodes, show_progress, **insert_kwargs)

    async def _async_add_nodes_to_index(
        self,
        index_struct: IndexDict,
        nodes: Sequence[BaseNode],
        show_progress: bool = False,
        **insert_kwargs: Any,
    ) -> None:
        nodes = await asyncio.to_thread(self._with_images_embedded, nodes, show_progress)
        await super()._async_add_nodes_to_index(index_struct, nodes, show_progress, **insert_kwargs)

    def _with_images_embedded(
        self, nodes: Sequence[BaseNode], show_progress: bool
    ) -> list[BaseNode]:
        """The nodes, those with an image as ImageNodes that carry its vector."""
        made = [_image_node(node) if has_image(node) else node for node in nodes]
        width = self._images.clip.dimension
        for at, node in enumerate(made):
            if isinstance(node, ImageNode) and len(node.embedding or [0] * width) != width:
                raise InputError(
                    f"node {node.node_id} brings a vector of {len(node.embedding or ())} "
                    f"dimensions for its image, but the image model gives {width}; leave it out",
                    index=at,
                )
        new = [
            at
            for at, node in enumerate(made)
            if isinstance(node, ImageNode) and node.embedding is None
        ]
        try:
            vectors = self._images.get_image_embedding_batch(
                [made[at] for at in new], show_progress
            )
        except InputError as error:
            if error.index is None:
                raise
            at = new[error.index]
            problem = str(error).removeprefix(f"item {error.index}: ")
            raise InputError(f"node {made[at].node_id}: {problem}", index=at) from error
        for at, vector in zip(new, vectors, strict=True):
            made[at] = made[at].model_copy(update={"embedding": vector})
        return made

    def _get_node_with_embedding(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, is_image: bool = False
    ) -> list[BaseNode]:
        if is_image:  # embedded already
            return list(nodes)
        return super()._get_node_with_embedding(_captions(nodes), show_progress)

    async def _aget_node_with_embedding(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, is_image: bool = False
    ) -> list[BaseNode]:
        if is_image:  # embedded already
            return list(nodes)
        return await super()._aget_node_with_embedding(_captions(nodes), show_progress)
