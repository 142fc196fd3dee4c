"""Rows with vectors as other vector stores take them in: what is common to them.

What lives here: a row on its way, what a layout is, ids and the checks that several stores need.
What does not: each store's own rules (`chroma_layout`, `pinecone_layout`, `qdrant_layout`), batches
(`batch_output`), and sending them, which is for each store's own client.

A value that a store cannot hold becomes one that it can by a rule that is written here and in
docs/moving.md. What has no rule is refused with the row's place, before anything is computed.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from unified_embeddings.bulk.json_output import to_json
from unified_embeddings.errors import InputError
from unified_embeddings.types import FloatArray, HeadName, IntArray

ID_NAMESPACE = uuid.UUID("5a4f1a1e-5d0c-5b53-9d0e-6f2f0c6b7a11")
"""Of the UUIDs that stand for ids; any fixed value does."""


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
