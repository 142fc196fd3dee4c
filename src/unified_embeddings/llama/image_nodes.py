"""LlamaIndex's nodes that hold an image, a caption, or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
)


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
