"""LlamaIndex's multi-modal index over two stores, without the cases in which it loses images.

What lives here: UnifiedMultiModalIndex. What does not: the image model (`images`), what counts as a
node with an image (`image_nodes`), searching both stores at once (`retrievers.multimodal`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core import Settings, StorageContext, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.embeddings.utils import EmbedType
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
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.image_nodes import (
    drop_image_vectors,
    has_image,
    to_image_document,
    to_image_node,
)
from unified_embeddings.llama.images import UnifiedImageEmbedding


class UnifiedMultiModalIndex(MultiModalVectorStoreIndex):
    """LlamaIndex's multi-modal index, with images neither lost nor fetched unasked.

    The stock index

    - drops image nodes that have neither text nor metadata, and images in other types of nodes;
    - downloads an image's URL itself, without any limit;
    - writes the texts before it looks at the images;
    - deletes single nodes from the text store only;
    - does not read `Settings.image_embed_model`.

    This one keeps every image and embeds all of them before anything is stored. The image model
    gets each as it is, and fetches nothing unless told to. Deleting covers both stores, and the
    setting is read. An index saved with `persist` is loaded as LlamaIndex's own; open this one with
    `from_vector_store` instead.

    Args:
        nodes: Nodes to index. One with an `image_resource` is stored as an ImageNode.
        image_embed_model: A UnifiedImageEmbedding. None takes `Settings.image_embed_model`, which
            `UnifiedEmbeddingConfig.configure_settings()` sets.
        **options: The stock index's, except is_image_to_text: storage_context,
            image_vector_store, embed_model, ...

    Raises:
        InputError: If the image model is not a UnifiedImageEmbedding, the images have no store, or
            an image cannot be read. In the last case its index refers to `nodes`, and nothing is
            stored.
        FingerprintMismatchError: If a store was opened for another model.

    Example:
        Lines marked SKIP need a CLIP's weights.

        >>> from llama_index.core.schema import ImageNode, TextNode
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import UnifiedEmbeddingConfig, UnifiedMultiModalIndex
        >>> config = UnifiedEmbeddingConfig("bge-m3")
        >>> client = QdrantClient(":memory:")
        >>> index = UnifiedMultiModalIndex.from_vector_store(    # doctest: +SKIP
        ...     config.vector_store("texts", client=client),
        ...     embed_model=config.text_model,
        ...     image_vector_store=config.image_store("images", client=client),
        ...     image_embed_model=config.image_model,
        ... )
        >>> nodes = [TextNode(text="Foxes jump over dogs."), ImageNode(image_path="fox.jpg")]
        >>> index.insert_nodes(nodes)    # doctest: +SKIP
    """

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        image_embed_model: EmbedType | None = None,
        **options: Any,
    ) -> None:
        model = image_embed_model or getattr(Settings, "image_embed_model", None)
        if not isinstance(model, UnifiedImageEmbedding):
            raise InputError(
                f"image_embed_model must be a UnifiedImageEmbedding, got {type(model).__name__}; "
                "give config.image_model, or call config.configure_settings() first"
            )
        self._image_model = model
        context: StorageContext | None = options.get("storage_context")
        self._check_image_store(options.get("image_vector_store"), context)
        self._check_text_store(options.get("embed_model"), context)
        super().__init__(nodes=nodes, image_embed_model=model, **options)

    def _check_image_store(
        self, store: BasePydanticVectorStore | None, context: StorageContext | None
    ) -> None:
        """Reject an index whose images have no store, or one of another model's vectors."""
        if store is None and context is not None:
            store = context.vector_stores.get(self.image_namespace)
            # A context puts a store in memory there unasked. It would lose the images at exit.
            if isinstance(store, SimpleVectorStore):
                store = None
        if store is None:
            raise InputError(
                "the images need a store of their own: give image_vector_store=, as "
                "config.image_store() makes it"
            )
        if isinstance(store, FingerprintedStore):
            store.check_model(self._image_model.clip.fingerprint, self._image_model.model_name)

    @staticmethod
    def _check_text_store(embed_model: EmbedType | None, context: StorageContext | None) -> None:
        """Reject a store of texts that was opened for another text model, if that can be told."""
        if context is None:
            return
        store = context.vector_stores.get(DEFAULT_VECTOR_STORE)
        embedder = getattr(embed_model or Settings.embed_model, "embedder", None)
        if isinstance(store, FingerprintedStore) and isinstance(embedder, TextEmbedder):
            store.check_model(embedder.fingerprint, embedder.model_name)

    @classmethod
    def from_vector_store(
        cls,
        vector_store: BasePydanticVectorStore,
        embed_model: EmbedType | None = None,
        image_vector_store: BasePydanticVectorStore | None = None,
        image_embed_model: EmbedType | None = None,
        **options: Any,
    ) -> UnifiedMultiModalIndex:
        """Open an index over existing stores.

        Args:
            vector_store: The texts.
            embed_model: Embeds texts. None takes `Settings.embed_model`.
            image_vector_store: The images.
            image_embed_model: Embeds images. None takes `Settings.image_embed_model`.
            **options: As in the class.

        Raises:
            InputError, FingerprintMismatchError: As the class does.
        """
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
        """Index documents. Any type of document keeps its image."""
        return super().from_documents(
            [to_image_document(document) for document in documents],
            storage_context,
            show_progress,
            callback_manager,
            transformations,
            **options,
        )

    # The stock flags turn True with any insert that has no image, or no text, and the stock
    # retriever then never searches that store again.

    @property
    def is_image_vector_store_empty(self) -> bool:
        """False: the store is always searched."""
        return False

    @property
    def is_text_vector_store_empty(self) -> bool:
        """False: the store is always searched."""
        return False

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Index one more document. Any type of document keeps its image."""
        super().insert(to_image_document(document), **insert_kwargs)

    async def ainsert(self, document: Document, **insert_kwargs: Any) -> None:
        """Like `insert`, but without blocking the event loop."""
        await super().ainsert(to_image_document(document), **insert_kwargs)

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> IndexDict:
        """Index every image, and those other nodes that have content."""
        nodes_to_index = []
        for node in nodes:
            if has_image(node) or node.get_content(MetadataMode.EMBED) != "":
                nodes_to_index.append(node)
        return self._build_index_from_nodes(nodes_to_index, **insert_kwargs)

    def delete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Delete nodes from both stores."""
        super().delete_nodes(node_ids, delete_from_docstore, **delete_kwargs)
        self._image_vector_store.delete_nodes(node_ids, **delete_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Like `delete_nodes`, but without blocking the event loop."""
        await super().adelete_nodes(node_ids, delete_from_docstore, **delete_kwargs)
        await self._image_vector_store.adelete_nodes(node_ids, **delete_kwargs)

    def delete_ref_doc(
        self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Delete a document's nodes from both stores."""
        # This skips the multi-modal class, which deletes from the index once for each store.
        VectorStoreIndex.delete_ref_doc(self, ref_doc_id, delete_from_docstore, **delete_kwargs)
        self._image_vector_store.delete(ref_doc_id, **delete_kwargs)

    async def adelete_ref_doc(
        self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """Like `delete_ref_doc`, but without blocking the event loop."""
        await super().adelete_ref_doc(ref_doc_id, delete_from_docstore, **delete_kwargs)
        await self._image_vector_store.adelete(ref_doc_id, **delete_kwargs)

    def _add_nodes_to_index(
        self,
        index_struct: IndexDict,
        nodes: Sequence[BaseNode],
        show_progress: bool = False,
        **insert_kwargs: Any,
    ) -> None:
        nodes = self._embed_images(nodes, show_progress)
        super()._add_nodes_to_index(index_struct, nodes, show_progress, **insert_kwargs)

    async def _async_add_nodes_to_index(
        self,
        index_struct: IndexDict,
        nodes: Sequence[BaseNode],
        show_progress: bool = False,
        **insert_kwargs: Any,
    ) -> None:
        nodes = await asyncio.to_thread(self._embed_images, nodes, show_progress)
        await super()._async_add_nodes_to_index(index_struct, nodes, show_progress, **insert_kwargs)

    def _embed_images(self, nodes: Sequence[BaseNode], show_progress: bool) -> list[BaseNode]:
        """Return the nodes, those with an image as ImageNodes that hold its vector.

        The nodes given are not changed.

        Raises:
            InputError: If an image cannot be read, or a node's own vector does not fit. The index
                refers to `nodes`.
        """
        converted: list[BaseNode] = []
        positions: list[int] = []
        images: list[ImageNode] = []
        for position, node in enumerate(nodes):
            if not has_image(node):
                converted.append(node)
                continue
            image_node = to_image_node(node)
            converted.append(image_node)
            if image_node.embedding is None:
                positions.append(position)
                images.append(image_node)
            else:
                self._check_width(image_node.node_id, image_node.embedding, position)
        try:
            vectors = self._image_model.get_image_embedding_batch(images, show_progress)
        except InputError as error:
            if error.index is None:
                raise
            bad_node = images[error.index]
            raise InputError(
                f"node {bad_node.node_id}: {error.problem}", index=positions[error.index]
            ) from error
        for position, image_node, vector in zip(positions, images, vectors, strict=True):
            converted[position] = image_node.model_copy(update={"embedding": vector})
        return converted

    def _check_width(self, node_id: str, embedding: list[float], position: int) -> None:
        """Reject a node's own vector if it is not of the image model's size."""
        width = self._image_model.clip.dimension
        if len(embedding) != width:
            raise InputError(
                f"node {node_id} brings a vector of {len(embedding)} dimensions for its image, but "
                f"the image model gives {width}; leave it out",
                index=position,
            )

    def _get_node_with_embedding(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, is_image: bool = False
    ) -> list[BaseNode]:
        if is_image:  # `_embed_images` has embedded them
            return list(nodes)
        return super()._get_node_with_embedding(drop_image_vectors(nodes), show_progress)

    async def _aget_node_with_embedding(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, is_image: bool = False
    ) -> list[BaseNode]:
        if is_image:  # `_embed_images` has embedded them
            return list(nodes)
        return await super()._aget_node_with_embedding(drop_image_vectors(nodes), show_progress)
