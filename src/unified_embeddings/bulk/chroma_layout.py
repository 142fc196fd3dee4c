"""Rows with vectors as Chroma takes them in.

What lives here: Chroma's ids, metadata and batches. What does not: what is common to the stores
(`upsert_layouts`).
"""

from __future__ import annotations

from collections.abc import Sequence

from unified_embeddings.bulk.json_output import list_numbers, to_json
from unified_embeddings.bulk.upsert_layouts import (
    LayoutRow,
    RowVectors,
    UpsertLayout,
    metadata_of,
    refuse_keys,
    require_id,
    require_unicode,
    stable_uuid,
)

_INT64_END = 2**63


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
