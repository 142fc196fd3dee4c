"""How an open collection is read and written: in LlamaIndex's layout, or in other software's.

What lives here: nodes from payloads, and payloads from nodes, so that the software whose layout it
is reads them too. What does not: finding out the layout (`recognition`), and paths for filters
(`fields`).

A node is written as that software writes a document. What only LlamaIndex knows of it (its
relationships, its document, what is left out of its embedding) is kept in one note beside that:
LangChain does not look at it, and Haystack shows it as one more field of `meta`. Text and metadata
are in no second place, so what the other software changes is what is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from llama_index.core.schema import BaseNode, MetadataMode
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.llama.fields import (
    LLAMA_INDEX_FIELDS,
    NOTE_KEY,
    NOTED_DOCUMENT,
    Fields,
    PointIds,
    document_fields,
    haystack_fields,
)
from unified_embeddings.llama.layouts import (
    NODE_KEY,
    LayoutName,
    Payload,
    layout_of,
    read_document,
    read_haystack,
    read_node,
)
from unified_embeddings.llama.payloads import build_payloads

_TYPE_KEY = "_node_type"


@dataclass(frozen=True)
class StoredLayout:
    """The layout in which nodes are written to a collection, and its payloads are understood.

    A point that shows another known layout is read by its own.

    Attributes:
        name: Whose layout it is.
        text_key: Key of the text; "" in LlamaIndex's.
        metadata_key: Key of the metadata; None if they are at the top.
        fields: Where filters find the metadata.
    """

    name: LayoutName
    text_key: str
    metadata_key: str | None
    fields: Fields

    def build_payloads(self, nodes: Sequence[BaseNode]) -> list[dict[str, Any]]:
        """Return the payload of each node.

        Raises:
            InputError: If an item is not a node, or its metadata cannot be stored. The message
                names node and key, `index` is the node's position.
        """
        payloads = build_payloads(nodes)
        if self.fields.is_llama_index:
            return payloads
        return [
            self._build_payload(node, index, payload)
            for index, (node, payload) in enumerate(zip(nodes, payloads, strict=True))
        ]

    def can_read(self, payload: Payload) -> bool:
        """Tell whether a payload is read here; LlamaIndex's store reads the others in its layout.

        Args:
            payload: A point's payload.
        """
        if not self.fields.is_llama_index:
            return True
        return layout_of(payload) in ("langchain", "haystack")

    def read_point(self, point: qm.ScoredPoint | qm.Record, dense_name: str) -> BaseNode:
        """Return a point as a node, with its dense vector if it was fetched.

        Args:
            point: The point.
            dense_name: Name of the dense vectors, "" for unnamed ones.

        Raises:
            InputError: If it holds no text.
        """
        node = self.read(point.id, point.payload or {})
        named = point.vector if isinstance(point.vector, dict) else {"": point.vector}
        vector = named.get(dense_name)
        if isinstance(vector, list) and node.embedding is None:
            node.embedding = cast("list[float]", vector)
        return node

    def read(self, point_id: qm.ExtendedPointId, payload: Payload) -> BaseNode:
        """Return a point as a node.

        Raises:
            InputError: If it holds no text.
        """
        if isinstance(payload.get(NODE_KEY), str):
            return read_node(payload)
        layout = self._layout_of(payload)
        if layout == "haystack":
            return self._read_haystack(str(point_id), payload)
        if layout == "langchain" and self.name != "langchain":
            return LANGCHAIN_LAYOUT.read(point_id, payload)
        return read_document(payload, self.text_key, self.metadata_key).to_node(str(point_id))

    def _layout_of(self, payload: Payload) -> LayoutName:
        """Return the layout of a payload: this one, or a known one where this one has no text."""
        first_key = self.text_key.partition(".")[0]
        if self.text_key in payload or first_key in payload:
            return self.name
        return layout_of(payload) or self.name

    def _read_haystack(self, point_id: str, payload: Payload) -> BaseNode:
        if "content" in payload and payload["content"] is None:  # a document of bytes, not of text
            payload = {**payload, "content": ""}
        document_id = payload.get("id")
        node_id = point_id
        if self.fields.point_ids == "haystack" and document_id is not None:
            node_id = str(document_id)
        # Its own id of a document; of what this package wrote, and of a digest, it is the node's.
        if document_id == node_id:
            payload = {key: value for key, value in payload.items() if key != "id"}
        return read_haystack(payload).to_node(node_id)

    def _build_payload(
        self, node: BaseNode, index: int, stock: Mapping[str, Any]
    ) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(stock[NODE_KEY])
        metadata: dict[str, Any] = content["metadata"]
        content["metadata"] = {}
        if "text" in content:
            content["text"] = ""
        if content.get("text_resource"):
            content["text_resource"]["text"] = ""
        note = {
            NODE_KEY: json.dumps(content, ensure_ascii=False),
            _TYPE_KEY: stock[_TYPE_KEY],
            NOTED_DOCUMENT: node.ref_doc_id,
        }
        text = node.get_content(metadata_mode=MetadataMode.NONE)
        self._check_metadata(metadata, node, index)
        if self.name == "haystack":
            return {
                "id": node.node_id,
                "content": text,
                "blob": None,
                "meta": {**metadata, NOTE_KEY: note},
                "score": None,
            }
        payload: dict[str, Any] = {NOTE_KEY: note}
        if self.metadata_key is None:
            payload = {**metadata, NOTE_KEY: note}
        else:
            payload[self.metadata_key] = metadata
        _put(payload, self.text_key, text, node, index)
        return payload

    def _check_metadata(self, metadata: Mapping[str, Any], node: BaseNode, index: int) -> None:
        """Refuse metadata in the place of what tells how a payload is to be read.

        Raises:
            InputError: If there are any.
        """
        taken: tuple[str, ...] = ()
        if self.fields.note_in_metadata:
            taken = (NOTE_KEY,)
        elif self.metadata_key is None:
            taken = (NOTE_KEY, NODE_KEY)
        for key in taken:
            if key in metadata:
                raise InputError(
                    f"metadata {key!r} of node {node.node_id} cannot be stored: the collection "
                    "keeps what LlamaIndex knows of a node under that key; rename it",
                    index=index,
                )


LLAMA_INDEX_LAYOUT = StoredLayout("llama_index", "", None, LLAMA_INDEX_FIELDS)
"""The layout of LlamaIndex's own store."""


def haystack_layout(point_ids: PointIds) -> StoredLayout:
    """Return Haystack's layout.

    Args:
        point_ids: "haystack" where the id of a point is what Haystack makes of a document's id, and
            nodes go by that document's id.
    """
    return StoredLayout("haystack", "content", "meta", haystack_fields(point_ids))


def document_layout(
    text_key: str, metadata_key: str | None, name: LayoutName = "plain"
) -> StoredLayout:
    """Return the layout of payloads that have a text under a key, as LangChain's have.

    Args:
        text_key: Key of the text; "body.text" is `text` within `body`.
        metadata_key: Key of the metadata; None if they are at the top.
        name: Whose layout it is.
    """
    return StoredLayout(name, text_key, metadata_key, document_fields(metadata_key))


LANGCHAIN_LAYOUT = document_layout("page_content", "metadata", "langchain")
"""The layout of LangChain's store, unless it was given other keys."""


def _put(payload: dict[str, Any], key: str, text: str, node: BaseNode, index: int) -> None:
    """Put a text into a payload under a key, or under a path.

    Raises:
        InputError: If metadata are in that place.
    """
    is_taken = key in payload  # reading looks there first, also for a key with dots
    place = payload
    *steps, last_step = key.split(".")
    for step in steps:
        inner = place.setdefault(step, {})
        if not isinstance(inner, dict):
            is_taken = True
            break
        place = inner
    if is_taken or last_step in place:
        raise InputError(
            f"metadata {key!r} of node {node.node_id} cannot be stored: the collection has its "
            "texts under that key; rename it",
            index=index,
        )
    place[last_step] = text
