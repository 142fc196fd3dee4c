"""Where a payload has a node's metadata, its document and its id, in each software's layout.

What lives here: paths in payloads, and ids. What does not: what a filter means (`filters`), and the
texts and nodes in payloads (`layouts`).
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qdrant_client import models as qm

from unified_embeddings.errors import InputError

DOCUMENT_KEYS = frozenset(("document_id", "doc_id", "ref_doc_id"))
LLAMA_INDEX_KEYS = DOCUMENT_KEYS | {"_node_content", "_node_type"}
"""Payload keys that LlamaIndex writes next to a node's metadata, over metadata of that name."""
OWN_METADATA = "_own_metadata"
"""Payload key under which a node's metadata of those names is kept."""
NOTE_KEY = "_llama_index"
"""Key under which a point in another software's layout keeps what LlamaIndex alone knows of it."""
NOTED_DOCUMENT = "doc_id"
"""Key of the document's id within that note."""
HAYSTACK_DOCUMENT = "source_id"
"""Metadata in which Haystack's splitters record the document that a piece is of."""

PointIds: TypeAlias = Literal["node", "haystack"]
"""Of what a point's id is made: the node's id itself, or the digest that Haystack makes of it."""

_HAYSTACK_IDS = uuid.UUID("3896d314-1e95-4a3a-b45a-945f9f0b541d")
"""The namespace in which Haystack's Qdrant store makes a point's id of a document's."""
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_DOTTED_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")


@dataclass(frozen=True)
class Fields:
    """Where the payloads of a collection have a node's metadata, its document and its id.

    Attributes:
        is_llama_index: Whether they are laid out as LlamaIndex does it.
        metadata_key: Key of the metadata; None if they are at the top.
        note_in_metadata: Whether LlamaIndex's note is among the metadata, not beside them.
        own_document: Path at which the software itself records the document; None if it does not.
        point_ids: Of what a point's id is made.
    """

    is_llama_index: bool = True
    metadata_key: str | None = None
    note_in_metadata: bool = False
    own_document: str | None = None
    point_ids: PointIds = "node"

    @property
    def document_paths(self) -> list[str]:
        """Return where the id of a node's document is, the place that takes precedence first."""
        if self.is_llama_index:
            return ["doc_id"]
        note = NOTE_KEY
        if self.note_in_metadata and self.metadata_key is not None:
            note = f"{_quoted(self.metadata_key)}.{NOTE_KEY}"
        paths = [f"{note}.{NOTED_DOCUMENT}"]
        if self.own_document is not None:
            paths.append(self.own_document)
        return paths

    def metadata_paths(self, key: str) -> list[str]:
        """Return where a metadata key's value is in a payload, the first place that has it first.

        A key is a name, not a path: "dc.title" is the field of that name. Only where a node has no
        such field, it is also the field `title` inside nested metadata `dc`. Where the metadata are
        within a field, those are looked at first, and then the fields beside it.

        Args:
            key: The key.

        Raises:
            InputError: If Qdrant's paths cannot express it.
        """
        path = _quoted(key)
        if self.is_llama_index and key == OWN_METADATA:
            return [f"{OWN_METADATA}.{path}"]
        if self.is_llama_index and key in LLAMA_INDEX_KEYS:
            return [f"{OWN_METADATA}.{path}", path]
        paths = [path, key] if _DOTTED_KEY.fullmatch(key) else [path]
        if self.metadata_key is not None:
            paths = [f"{_quoted(self.metadata_key)}.{inner}" for inner in paths] + paths
        if not self.is_llama_index and key in DOCUMENT_KEYS:
            paths += self.document_paths
        return paths

    def to_point_id(self, node_id: str, index: int) -> qm.ExtendedPointId:
        """Return the id of a node's point.

        Raises:
            InputError: If Qdrant cannot have it; `index` is its position in the caller's list.
        """
        if self.point_ids == "haystack":
            return haystack_point_id(str(node_id))
        return to_point_id(node_id, index)


LLAMA_INDEX_FIELDS = Fields()
"""The fields of LlamaIndex's payloads."""


def document_fields(metadata_key: str | None) -> Fields:
    """Return the fields of payloads with a text under a key, as LangChain's are.

    Args:
        metadata_key: Key of the metadata; None if they are at the top.
    """
    return Fields(is_llama_index=False, metadata_key=metadata_key)


def haystack_fields(point_ids: PointIds) -> Fields:
    """Return the fields of Haystack's payloads.

    Args:
        point_ids: Of what a point's id is made.
    """
    return Fields(
        is_llama_index=False,
        metadata_key="meta",
        note_in_metadata=True,
        own_document=f"meta.{HAYSTACK_DOCUMENT}",
        point_ids=point_ids,
    )


def to_point_id(node_id: str, index: int) -> qm.ExtendedPointId:
    """Return a node's id as Qdrant's: a UUID, or a number below 2^64.

    Raises:
        InputError: If it is neither; `index` is its position in the caller's list.
    """
    text = str(node_id)
    if text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < 2**64:
        return int(text)
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InputError(
            f"the node id {node_id!r:.80} is neither a UUID nor a number, as Qdrant's ids are",
            index=index,
        ) from None


def haystack_point_id(document_id: str) -> str:
    """Return the id that Haystack's Qdrant store gives to the point of a document."""
    return str(uuid.uuid5(_HAYSTACK_IDS, document_id))


def _quoted(key: str) -> str:
    """Return a key as a step of one of Qdrant's paths.

    Raises:
        InputError: If Qdrant's paths cannot express it.
    """
    if '"' in key or "\\" in key:
        raise InputError(
            f'the metadata key {key!r} cannot be filtered on: Qdrant cannot address keys with " '
            "or \\ in them; store the value under another key"
        )
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InputError(f"the metadata key {key!r} is not valid Unicode") from None
    return key if _PLAIN_KEY.fullmatch(key) else f'"{key}"'
