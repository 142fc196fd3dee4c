"""CLIP as LlamaIndex's multi-modal embedding model, and an index that loses no image.

What lives here: UnifiedImageEmbedding, and UnifiedMultiModalIndex over two stores. What does not:
the vectors (`images`), searching both stores at once (`retrievers.multimodal`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from llama_index.core import Settings, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
from llama_index.core.indices.multi_modal.base import MultiModalVectorStoreIndex
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    ImageType,
    MetadataMode,
    TransformComponent,
)
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from unified_embeddings.embedders.bge_m3 import TextEmbedder, validated
from unified_embeddings.embedders.clip import ClipEmbedder, make_clip
from unified_embeddings.errors import InputError
from unified_embeddings.images.sources import ImageInput
from unified_embeddings.llama.text import ValidatedTexts
from unified_embeddings.llama.vector_store import FingerprintedStore
from unified_embeddings.models.spec import CLIP


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
        self._clip = clip or make_clip(self.model_name, self.options)

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


def _captions(nodes: Sequence[BaseNode]) -> list[BaseNode]:
    """Image nodes without the vector of their image, which is not that of their text."""
    return [
        node.model_copy(update={"embedding": None}) if isinstance(node, ImageNode) else node
        for node in nodes
    ]


def has_image(node: BaseNode) -> bool:
    """Whether a node holds an image: an ImageNode, or one with an `image_resource`."""
    return isinstance(node, ImageNode) or getattr(node, "image_resource", None) is not None


def _image_node(node: BaseNode) -> ImageNode:
    """The node as the kind that LlamaIndex's stores and retrievers know for images."""
    if isinstance(node, ImageNode):
        return node
    return ImageNode(
        **_image_of(node),
        id_=node.node_id,
        text=_text_of(node),
        embedding=node.embedding,
        metadata=node.metadata,
        relationships=node.relationships,
        excluded_embed_metadata_keys=node.excluded_embed_metadata_keys,
        excluded_llm_metadata_keys=node.excluded_llm_metadata_keys,
    )


def _image_document(document: Document) -> Document:
    """The document as the kind whose image LlamaIndex's splitters keep."""
    if isinstance(document, ImageDocument) or not has_image(document):
        return document
    return ImageDocument(
        **_image_of(document),
        id_=document.id_,
        text=_text_of(document),
        metadata=document.metadata,
        relationships=document.relationships,
        excluded_embed_metadata_keys=document.excluded_embed_metadata_keys,
        excluded_llm_metadata_keys=document.excluded_llm_metadata_keys,
    )


def _image_of(node: Any) -> dict[str, Any]:
    """Where the image of a node with an `image_resource` is, as ImageNode names it."""
    resource = node.image_resource
    data = resource.data
    return {
        "image": data.decode() if isinstance(data, bytes) else data,
        "image_path": None if resource.path is None else str(resource.path),
        "image_url": None if resource.url is None else str(resource.url),
        "image_mimetype": resource.mimetype,
    }


def _text_of(node: Any) -> str:
    resource = getattr(node, "text_resource", None)
    return (resource.text if resource is not None else None) or ""
