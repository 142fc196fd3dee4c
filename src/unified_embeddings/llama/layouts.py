"""What other software's payloads hold: a point's text, its metadata, and the node that it becomes.

What lives here: the layouts of LlamaIndex, LangChain and Haystack and a plain one, and finding out
which a collection has. What does not: reading points (`stores`), and embedding their texts.

    llama_index  the node as JSON in `_node_content`; embedded with the metadata that it names
    langchain    `page_content` and `metadata`
    haystack     `content`, `meta`, and the document's `id`
    plain        a text under a key that the user names, the other keys are metadata
    mixed        each point in whichever of the first three its payload shows

The first stays as it is. From the others a LlamaIndex node is made, whose metadata stays out of the
text that is embedded, as LangChain and Haystack leave it out unless told otherwise. A node that was
written in another software's layout (`stored_layout`) has a note beside it of what only LlamaIndex
knows, such as its relationships, and is read with that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from unified_embeddings.errors import InputError
from unified_embeddings.llama.fields import (
    HAYSTACK_DOCUMENT,
    LLAMA_INDEX_FIELDS,
    NOTE_KEY,
    Fields,
    document_fields,
    haystack_fields,
)
from unified_embeddings.llama.payloads import build_payloads

LayoutName: TypeAlias = Literal["llama_index", "langchain", "haystack", "plain", "mixed"]
LAYOUT_NAMES: tuple[LayoutName, ...] = get_args(LayoutName)
Payload: TypeAlias = Mapping[str, Any]
"""A point's payload: JSON, as Qdrant returns it."""

NODE_KEY = "_node_content"
"""Key under which LlamaIndex stores a node as JSON."""
_KEYS_SHOWN = 12


@dataclass(frozen=True)
class SourceText:
    """What a point holds.

    Attributes:
        point_id: The point's id.
        text: What a model embeds: the node's text, with the metadata that belongs to it.
        bare_text: The node's text alone.
        node: The point as LlamaIndex's node.
        payload: What a collection of ours stores for the node; a LlamaIndex payload is unchanged.
    """

    point_id: int | str
    text: str
    bare_text: str
    node: BaseNode
    payload: dict[str, Any]


@dataclass(frozen=True)
class UnreadablePoint:
    """A point that has no text to embed.

    Attributes:
        point_id: The point's id.
        problem: Why, in words.
    """

    point_id: int | str
    problem: str


class PayloadReader:
    """Read the texts of a collection's points.

    Args:
        layout: How the payloads are laid out.
        text_key: Key of the text, for a plain layout; "body.text" is `text` within `body`, unless
            there is a key of that very name.
        metadata_key: Key of the metadata, for a plain layout in which they are within one field.

    Raises:
        InputError: If the layout is unknown, a plain one has no `text_key`, or another has one.

    Example:
        >>> from unified_embeddings.llama.layouts import PayloadReader
        >>> reader = PayloadReader("langchain")
        >>> source = reader.read(7, {"page_content": "Foxes jump.", "metadata": {"page": 3}})
        >>> source.text, source.node.metadata, source.node.node_id
        ('Foxes jump.', {'page': 3}, '7')
        >>> reader.read(8, {"metadata": {"page": 4}}).problem
        "its payload has no 'page_content', but the keys 'metadata'"
    """

    def __init__(
        self, layout: LayoutName, *, text_key: str | None = None, metadata_key: str | None = None
    ) -> None:
        if layout not in LAYOUT_NAMES:
            raise InputError(f"layout must be one of {', '.join(LAYOUT_NAMES)}, not {layout!r}")
        if layout == "plain" and not text_key:
            raise InputError("a plain layout needs text_key, the key that holds the text")
        if layout != "plain" and (text_key or metadata_key):
            raise InputError(
                f"text_key and metadata_key belong to the layout 'plain', not to {layout!r}"
            )
        self.layout: LayoutName = layout
        self._text_key = text_key or ""
        self._metadata_key = metadata_key

    @property
    def fields(self) -> Fields:
        """Where the payloads have the metadata, for filters on nodes that go by the points' ids."""
        if self.layout == "haystack":
            return haystack_fields("node")
        if self.layout == "langchain":
            return document_fields("metadata")
        if self.layout == "plain":
            return document_fields(self._metadata_key)
        return LLAMA_INDEX_FIELDS

    def read(self, point_id: int | str, payload: Payload | None) -> SourceText | UnreadablePoint:
        """Return a point's text and node, or why it has none; no payload raises an error."""
        try:
            return self._read(point_id, payload or {})
        except InputError as error:
            return UnreadablePoint(point_id, error.problem)

    def _read(self, point_id: int | str, payload: Payload) -> SourceText:
        layout = self.layout
        if layout == "mixed":
            layout = layout_of(payload) or "mixed"
        if layout == "llama_index":
            node = read_node(payload)
            return _describe(point_id, node, dict(payload))
        if layout == "langchain":
            document = read_document(payload, "page_content", "metadata")
        elif layout == "haystack":
            document = read_haystack(payload)
        elif layout == "plain":
            document = read_document(payload, self._text_key, self._metadata_key)
        else:
            raise InputError(f"its payload is of no known layout; it has {describe_keys(payload)}")
        node = document.to_node(str(point_id))
        (stored,) = build_payloads([node])
        return _describe(point_id, node, stored)


def choose_reader(
    payloads: Iterable[Payload],
    *,
    layout: LayoutName | None = None,
    text_key: str | None = None,
    metadata_key: str | None = None,
) -> PayloadReader:
    """Return the reader of a collection's payloads.

    Args:
        payloads: A sample; not read if the layout is named.
        layout: The layout; None takes "plain" if `text_key` is given, or the one that the sample
            shows.
        text_key: As for `PayloadReader`.
        metadata_key: As for `PayloadReader`.

    Raises:
        InputError: As `PayloadReader` and `detect_layout` do.
    """
    if layout is None and text_key:
        layout = "plain"
    if layout is None:
        layout = detect_layout(payloads)
    return PayloadReader(layout, text_key=text_key, metadata_key=metadata_key)


def layout_of(payload: Payload) -> LayoutName | None:
    """Return the layout that one payload shows; None if it is none of the three known ones."""
    if isinstance(payload.get(NODE_KEY), str):
        return "llama_index"
    if "page_content" in payload:
        return "langchain"
    if {"id", "content", "meta"} <= payload.keys():
        return "haystack"
    return None


def detect_layout(payloads: Iterable[Payload]) -> LayoutName:
    """Return the layout that a sample of payloads shows.

    Payloads that show none are passed over; reading them gives a problem for each.

    Raises:
        InputError: If they show none or more than one; it says what they show, and what to name.
    """
    counts: Counter[LayoutName] = Counter()
    total = 0
    example: Payload = {}
    for payload in payloads:
        total += 1
        layout = layout_of(payload)
        if layout is not None:
            counts[layout] += 1
        elif not example:
            example = payload
    if not total:
        raise InputError("there are no points whose payloads could show their layout")
    if not counts:
        raise InputError(
            f"the payloads are laid out as none of llama_index, langchain and haystack; one has "
            f"{describe_keys(example)}. Name the key that holds the text (--text-key)"
        )
    if len(counts) > 1:
        seen = ", ".join(f"{count} of {layout}" for layout, count in counts.most_common())
        raise InputError(
            f"the payloads of {total} points are of several layouts ({seen}); name one (--layout), "
            "or 'mixed' to read each point by its own"
        )
    return next(iter(counts))


@dataclass(frozen=True)
class StoredDocument:
    """What another software's payload holds.

    Attributes:
        text: The text.
        metadata: All that is beside it.
        note: What LlamaIndex alone knows of it; None if it was not written by this package.
        source: The id of the document that it is a piece of, where the software records one.
    """

    text: str
    metadata: dict[str, Any]
    note: Payload | None = None
    source: str | None = None

    def to_node(self, node_id: str) -> BaseNode:
        """Return it as a node.

        Args:
            node_id: The node's id.

        Raises:
            InputError: If its note is not a node.
        """
        if self.note is not None:
            node = read_node(self.note)
            node.metadata = self.metadata
            node.set_content(self.text)
            node.id_ = node_id
            return node
        relationships: dict[NodeRelationship, Any] = {}
        if self.source is not None:
            relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=self.source)
        return TextNode(
            id_=node_id,
            text=self.text,
            metadata=self.metadata,
            excluded_embed_metadata_keys=list(self.metadata),
            relationships=relationships,
        )


def read_haystack(payload: Payload) -> StoredDocument:
    """Return what a payload of Haystack holds, its document's id among the metadata.

    Metadata of the name `id` takes precedence there; the document's is `payload.id` then.

    Raises:
        InputError: If it has no text.
    """
    # Haystack writes every field of its documents, most of them as null.
    given = {key: value for key, value in payload.items() if value is not None}
    document = read_document(given, "content", "meta")
    source = document.metadata.get(HAYSTACK_DOCUMENT)
    return replace(document, source=source if isinstance(source, str) else None)


def read_node(payload: Payload) -> BaseNode:
    """Return the node that LlamaIndex stored.

    Raises:
        InputError: If there is none.
    """
    if not isinstance(payload.get(NODE_KEY), str):
        raise InputError(f"its payload has no {NODE_KEY!r}, but {describe_keys(payload)}")
    try:
        return metadata_dict_to_node(dict(payload))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"its {NODE_KEY!r} is not a node: {reason:.200}") from None


def read_document(payload: Payload, text_key: str, metadata_key: str | None) -> StoredDocument:
    """Return a payload's text and all that is beside it as metadata.

    Args:
        payload: The payload.
        text_key: Key of the text; "body.text" is `text` within `body`, unless there is a key of
            that very name.
        metadata_key: Key of the metadata; None if they are at the top.

    Raises:
        InputError: If it has no text.
    """
    rest = dict(payload)
    text = _take(rest, text_key)
    if text is None:
        raise InputError(f"its payload has no {text_key!r}, but {describe_keys(payload)}")
    if not isinstance(text, str):
        raise InputError(f"its {text_key!r} is not a text but {type(text).__name__}")
    metadata: dict[str, Any] = {}
    note = _take_note(rest)
    if metadata_key is not None:
        inner = rest.pop(metadata_key, None)
        if isinstance(inner, Mapping):
            metadata.update(inner)
        elif inner is not None:
            rest[metadata_key] = inner
    if note is None:
        note = _take_note(metadata)
    for key, value in rest.items():
        # Metadata come first; a field of the same name beside them is kept under another.
        metadata[f"payload.{key}" if key in metadata else key] = value
    return StoredDocument(text, metadata, note)


def _take_note(fields: dict[str, Any]) -> Payload | None:
    """Remove the note of what LlamaIndex alone knows, and return it; None if there is none.

    Metadata of that name which is no such note stays metadata.
    """
    note = fields.get(NOTE_KEY)
    if not isinstance(note, Mapping) or NODE_KEY not in note:
        return None
    del fields[NOTE_KEY]
    return note


def _take(payload: dict[str, Any], key: str) -> object:
    """Remove a field and return its value; None if there is none."""
    if key in payload or "." not in key:
        return payload.pop(key, None)
    first, _, rest = key.partition(".")
    inner = payload.get(first)
    if not isinstance(inner, Mapping):
        return None
    remaining = dict(inner)
    value = _take(remaining, rest)
    payload[first] = remaining
    if not remaining:
        del payload[first]
    return value


def _describe(point_id: int | str, node: BaseNode, payload: dict[str, Any]) -> SourceText:
    try:
        text = node.get_content(metadata_mode=MetadataMode.EMBED)
        bare_text = node.get_content(metadata_mode=MetadataMode.NONE)
    except (ValueError, KeyError, IndexError, AttributeError) as error:  # A template of its own.
        raise InputError(f"its text cannot be put together: {error!r:.200}") from None
    if not bare_text.strip():
        raise InputError("its text is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("its text holds a lone surrogate, which is not valid Unicode") from None
    return SourceText(point_id=point_id, text=text, bare_text=bare_text, node=node, payload=payload)


def describe_keys(payload: Payload) -> str:
    """Return, in words, the keys that a payload has."""
    if not payload:
        return "no keys at all"
    shown = [repr(key) for key in list(payload)[:_KEYS_SHOWN]]
    if len(payload) > _KEYS_SHOWN:
        shown.append("...")
    return f"the keys {', '.join(shown)}"
