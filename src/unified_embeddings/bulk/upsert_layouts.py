"""Rows with vectors as other vector stores take them in: what is common, and Chroma.

What lives here: which ids and metadata each store can hold, the rules by which others are
converted, and one row in its form. What does not: Pinecone's records (`pinecone_layout`), Qdrant's
points (`qdrant_layout`), batches (`batch_output`), and sending them, which is for each store's own
client.

A value that a store cannot hold becomes one that it can by a rule that is written here and in
docs/moving.md. What has no rule is refused with the row's place, before anything is computed.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

from unified_embeddings.bulk.json_output import list_numbers, to_json
from unified_embeddings.errors import InputError
from unified_embeddings.types import FloatArray, HeadName, IntArray

LayoutName: TypeAlias = Literal["chroma", "pinecone", "pinecone-documents", "qdrant"]
LAYOUT_NAMES: tuple[LayoutName, ...] = get_args(LayoutName)

ID_NAMESPACE = uuid.UUID("5a4f1a1e-5d0c-5b53-9d0e-6f2f0c6b7a11")
"""Of the UUIDs that stand for ids; any fixed value does."""
_INT64_END = 2**63


@dataclass(frozen=True)
class LayoutRow:
    """A row besides its vectors, on its way into another store.

    Attributes:
        number: Its position in the input, from 0; its id if it has none.
        fields: What is kept of it, plain JSON values.
        text: Its text; None if texts are left out.
        place: Where it stands in the input, for messages.
        id_field: The field that holds its id; None if rows have none.
    """

    number: int
    fields: Mapping[str, object]
    text: str | None
    place: str
    id_field: str | None

    @property
    def own_id(self) -> object:
        """Return its id in the input, or else its number."""
        return self.number if self.id_field is None else self.fields.get(self.id_field)

    def refuse(self, problem: str) -> InputError:
        """Return the error for something in this row that the store cannot hold."""
        return InputError(f"{self.place or f'row {self.number}'}: {problem}")


@dataclass(frozen=True, eq=False)
class RowVectors:
    """The vectors of one row: dense (d,), and sparse as indices and values; None if not asked."""

    dense: FloatArray | None
    sparse: tuple[IntArray, FloatArray] | None


class UpsertLayout(ABC):
    """How one store takes rows in.

    Attributes:
        max_rows: The most rows of a batch.
        max_bytes: The most bytes of a batch as JSON.
        heads: The vectors it can hold.
    """

    max_rows: ClassVar[int]
    max_bytes: ClassVar[int]
    heads: ClassVar[tuple[HeadName, ...]]

    @abstractmethod
    def final_id(self, row: LayoutRow) -> str | int:
        """Return the id that a row gets in the store.

        Raises:
            InputError: If the row's id is neither a text nor a whole number.
        """

    @abstractmethod
    def check(self, row: LayoutRow) -> None:
        """Refuse a row that the store cannot hold.

        Raises:
            InputError: The message has its place.
        """

    @abstractmethod
    def encode(self, row: LayoutRow, vectors: RowVectors) -> tuple[str, ...]:
        """Return a row as pieces of JSON, which `join` puts together with those of others."""

    @abstractmethod
    def join(self, rows: Sequence[tuple[str, ...]]) -> str:
        """Return the pieces of some rows as a batch: one JSON object on one line."""


def is_layout(name: str) -> bool:
    """Tell whether an output's format is another store's layout."""
    return name in LAYOUT_NAMES


def make_layout(name: LayoutName) -> UpsertLayout:
    """Return a layout by its name."""
    if name == "chroma":
        return ChromaLayout()
    from unified_embeddings.bulk.pinecone_layout import PineconeDocumentsLayout, PineconeLayout

    if name == "pinecone":
        return PineconeLayout()
    if name == "pinecone-documents":
        return PineconeDocumentsLayout()
    # LlamaIndex, whose payloads it writes, takes a second to import.
    from unified_embeddings.bulk.qdrant_layout import QdrantLayout

    return QdrantLayout()


def stable_uuid(value: object) -> str:
    """Return the UUID that stands for an id that a store cannot hold: the same in every run."""
    return str(uuid.uuid5(ID_NAMESPACE, f"id {to_json(value)}"))


def require_id(row: LayoutRow) -> str | int:
    """Return a row's own id.

    Raises:
        InputError: If it is neither a text nor a whole number.
    """
    value = row.own_id
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise row.refuse(
            f"the id {value!r:.60} is neither a text nor a whole number; make it one, or name "
            "another id field"
        )
    return value


def metadata_of(row: LayoutRow, final_id: str | int) -> dict[str, object]:
    """Return a row's fields for its metadata: all but an id that the store keeps as it is."""
    fields = dict(row.fields)
    if row.id_field is not None and str(row.own_id) == final_id:
        del fields[row.id_field]
    return fields


def require_unicode(row: LayoutRow, metadata: Mapping[str, object]) -> None:
    """Refuse metadata that cannot be encoded.

    Raises:
        InputError: If a text holds half a character.
    """
    for key, value in metadata.items():
        try:
            _all_texts({key: value}).encode()
        except UnicodeEncodeError:
            raise row.refuse(
                f"the field {key!r:.60} holds half a character, which is not valid Unicode; mend "
                "it, or leave the field out with --keep-fields"
            ) from None


def _all_texts(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "".join(f"{key}{_all_texts(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "".join(_all_texts(item) for item in value)
    return ""


def refuse_keys(row: LayoutRow, metadata: Mapping[str, object], *, starts: str, store: str) -> None:
    """Refuse metadata with keys that are empty or begin with one of some characters.

    Raises:
        InputError: If there is one.
    """
    for key in metadata:
        if not key or key[0] in starts:
            shown = ", ".join(f'"{start}"' for start in starts)
            raise row.refuse(
                f"the field {key!r:.60} cannot be a metadata key in {store}, which refuses keys "
                f"that are empty or begin with {shown}; rename it, or leave it out with "
                "--keep-fields"
            )


class ChromaLayout(UpsertLayout):
    """Batches for `collection.upsert(**batch)`: ids, embeddings, documents, metadatas.

    300 rows are the most that Chroma Cloud takes at once; a local client takes 5,461.
    """

    max_rows = 300
    max_bytes = 16 * 10**6
    heads = ("dense",)

    def final_id(self, row: LayoutRow) -> str:
        """Return the id as a text; a UUID in place of an empty one."""
        value = require_id(row)
        return str(value) if value != "" else stable_uuid(value)

    def check(self, row: LayoutRow) -> None:
        """Refuse ids and keys that Chroma does not take, and half characters."""
        metadata = self._metadata(row)
        refuse_keys(row, metadata, starts="#$", store="Chroma")
        for key in metadata:
            if key.startswith("chroma:"):
                raise row.refuse(
                    f'the field {key!r:.60} begins with "chroma:", which Chroma keeps for itself; '
                    "rename it, or leave it out with --keep-fields"
                )
        require_unicode(row, {"id": self.final_id(row), **metadata})

    def encode(self, row: LayoutRow, vectors: RowVectors) -> tuple[str, ...]:
        """Return id, embedding, document and metadata."""
        metadata = self._metadata(row)
        assert vectors.dense is not None
        return (
            to_json(self.final_id(row)),
            list_numbers(vectors.dense, row.number),
            to_json(row.text),
            to_json(metadata or None),  # Chroma refuses an empty object.
        )

    def join(self, rows: Sequence[tuple[str, ...]]) -> str:
        """Return the arguments of one `upsert`; those that no row has are left out."""
        arguments = []
        for name, column in zip(
            ("ids", "embeddings", "documents", "metadatas"), zip(*rows, strict=True), strict=True
        ):
            if set(column) != {"null"}:
                arguments.append(f'"{name}": [{", ".join(column)}]')
        return "{" + ", ".join(arguments) + "}"

    def _metadata(self, row: LayoutRow) -> dict[str, object]:
        values = {}
        for key, value in metadata_of(row, self.final_id(row)).items():
            converted = _to_chroma(value)
            if converted is not None:
                values[key] = converted
        return values


def _to_chroma(value: object) -> object:
    """Return a metadata value for Chroma; None if it is left out.

    Texts, numbers and booleans stay, and lists of one of these kinds. Whole numbers beyond 64 bits
    become texts. Null and empty lists are left out. All else becomes JSON.
    """
    if isinstance(value, int) and not -_INT64_END <= value < _INT64_END:
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if not value and isinstance(value, list):
        return None
    if isinstance(value, list) and _is_of_one_kind(value):
        return value
    return to_json(value)


def _is_of_one_kind(values: list[object]) -> bool:
    kinds = {type(value) for value in values}
    if len(kinds) != 1 or not kinds <= {str, int, float, bool}:
        return False
    return not any(
        isinstance(value, int) and not -_INT64_END <= value < _INT64_END for value in values
    )
