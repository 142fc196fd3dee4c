"""LlamaIndex's nodes that hold an image, a caption, or both.

What lives here: telling them apart, and converting newer nodes into the types that LlamaIndex's own
stores, splitters and retrievers treat as images. What does not: reading an image (`images`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from llama_index.core.schema import BaseNode, Document, ImageDocument, ImageNode, Node


def has_image(node: BaseNode) -> TypeGuard[ImageNode | Node]:
    """Tell whether a node holds an image: an ImageNode, or one with an `image_resource`."""
    if isinstance(node, ImageNode):
        return True
    return isinstance(node, Node) and node.image_resource is not None


def to_image_node(node: ImageNode | Node) -> ImageNode:
    """Return a node with an image as an ImageNode, which LlamaIndex's stores know for images."""
    if isinstance(node, ImageNode):
        return node
    return ImageNode(
        **_image_fields(node),
        id_=node.node_id,
        text=_text_of(node),
        embedding=node.embedding,
        metadata=node.metadata,
        relationships=node.relationships,
        excluded_embed_metadata_keys=node.excluded_embed_metadata_keys,
        excluded_llm_metadata_keys=node.excluded_llm_metadata_keys,
    )


def to_image_document(document: Document) -> Document:
    """Return a document with an image as an ImageDocument, whose image the splitters keep.

    Documents without an image are returned as they are.
    """
    if isinstance(document, ImageDocument) or not has_image(document):
        return document
    return ImageDocument(
        **_image_fields(document),
        id_=document.id_,
        text=_text_of(document),
        metadata=document.metadata,
        relationships=document.relationships,
        excluded_embed_metadata_keys=document.excluded_embed_metadata_keys,
        excluded_llm_metadata_keys=document.excluded_llm_metadata_keys,
    )


def drop_image_vectors(nodes: Sequence[BaseNode]) -> list[BaseNode]:
    """Return nodes whose texts are to be embedded, ImageNodes without their `embedding`.

    It is the vector of the image, not of the text. The nodes given are not changed.
    """
    captions: list[BaseNode] = []
    for node in nodes:
        if isinstance(node, ImageNode):
            captions.append(node.model_copy(update={"embedding": None}))
        else:
            captions.append(node)
    return captions


def _image_fields(node: Node) -> dict[str, str | None]:
    """Return what a node's `image_resource` holds, as the fields of an ImageNode."""
    resource = node.image_resource
    assert resource is not None
    data = resource.data
    return {
        "image": data.decode() if isinstance(data, bytes) else data,
        "image_path": None if resource.path is None else str(resource.path),
        "image_url": None if resource.url is None else str(resource.url),
        "image_mimetype": resource.mimetype,
    }


def _text_of(node: Node) -> str:
    if node.text_resource is None:
        return ""
    return node.text_resource.text or ""
