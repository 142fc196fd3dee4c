"""Rows with vectors as Pinecone takes them in: records of a vector index, or documents.

What lives here: Pinecone's limits, ids, metadata and sparse vectors. What does not: what is common
to the stores (`upsert_layouts`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

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

TEXT_KEY = "text"
"""Metadata key of a row's text."""
_EXACT_FLOAT_END = 2**53
"""From here on a 64-bit float does not hold every whole number."""
_LONGEST_ID = 512
_METADATA_BYTES = 40_000
_SPARSE_TERMS = 1000


class PineconeLayout(UpsertLayout):
    """Batches for `index.upsert(vectors=batch["vectors"])`, of a vector index."""

    max_rows = 1000
    max_bytes = 2 * 10**6
    heads = ("dense", "sparse")
    _reserved_starts: ClassVar[str] = "$"
    _own_keys: ClassVar[frozenset[str]] = frozenset()

    def final_id(self, row: LayoutRow) -> str:
        """Return the id as a text; a UUID if it is not 1 to 512 ASCII characters without NUL."""
        text = str(require_id(row))
        if not text.isascii() or not 1 <= len(text) <= _LONGEST_ID or "\0" in text:
            return stable_uuid(row.own_id)
        return text

    def check(self, row: LayoutRow) -> None:
        """Refuse keys that Pinecone does not take, more than 40 kB of metadata, half characters."""
        metadata = self._metadata(row)
        refuse_keys(row, metadata, starts=self._reserved_starts, store="Pinecone")
        for key in sorted(self._own_keys & metadata.keys()):
            raise row.refuse(
                f"the field {key!r} has the name of a vector; rename it, or leave it out with "
                "--keep-fields"
            )
        require_unicode(row, metadata)
        size = len(to_json(metadata).encode())
        if size > _METADATA_BYTES:
            raise row.refuse(
                f"the metadata are {size:,} bytes with the text, and Pinecone takes "
                f"{_METADATA_BYTES:,}; leave the texts out with --no-text, keep fewer fields with "
                "--keep-fields, or split the text"
            )

    def encode(self, row: LayoutRow, vectors: RowVectors) -> tuple[str, ...]:
        """Return a vector: id, values, sparse_values, metadata."""
        parts = [f'"id": {to_json(self.final_id(row))}']
        if vectors.dense is not None:
            parts.append(f'"values": {list_numbers(vectors.dense, row.number)}')
        sparse = _sparse_to_json(row, vectors)
        if sparse is not None:
            parts.append(f'"sparse_values": {sparse}')
        metadata = self._metadata(row)
        if metadata:
            parts.append(f'"metadata": {to_json(metadata)}')
        return ("{" + ", ".join(parts) + "}",)

    def join(self, rows: Sequence[tuple[str, ...]]) -> str:
        """Return the body of one upsert request."""
        return f'{{"vectors": [{", ".join(row for (row,) in rows)}]}}'

    def _metadata(self, row: LayoutRow) -> dict[str, object]:
        values = {}
        fields = metadata_of(row, self.final_id(row))
        for key, value in _add_text(fields, row).items():
            converted = _to_pinecone(value)
            if converted is not None:
                values[key] = converted
        return values


class PineconeDocumentsLayout(PineconeLayout):
    """Batches for `index.documents.upsert(documents=batch["documents"])`, of a document index.

    Its schema needs a field "dense" of the type dense_vector, and "sparse" of sparse_vector.
    """

    _reserved_starts = "$_"
    _own_keys = frozenset({"dense", "sparse"})

    def encode(self, row: LayoutRow, vectors: RowVectors) -> tuple[str, ...]:
        """Return a document: _id, dense, sparse, and its metadata beside them."""
        parts = [f'"_id": {to_json(self.final_id(row))}']
        if vectors.dense is not None:
            parts.append(f'"dense": {list_numbers(vectors.dense, row.number)}')
        sparse = _sparse_to_json(row, vectors)
        if sparse is not None:
            parts.append(f'"sparse": {sparse}')
        metadata = self._metadata(row)
        if metadata:
            parts.append(to_json(metadata)[1:-1])
        return ("{" + ", ".join(parts) + "}",)

    def join(self, rows: Sequence[tuple[str, ...]]) -> str:
        """Return the body of one upsert request."""
        return f'{{"documents": [{", ".join(row for (row,) in rows)}]}}'


def _add_text(metadata: dict[str, object], row: LayoutRow) -> dict[str, object]:
    """Return metadata with the row's text; a field of the same name with another value moves."""
    if row.text is None:
        return metadata
    if metadata.get(TEXT_KEY, row.text) != row.text:
        new_key = f"input_{TEXT_KEY}"
        while new_key in metadata:
            new_key = f"input_{new_key}"
        metadata[new_key] = metadata[TEXT_KEY]
    return {**metadata, TEXT_KEY: row.text}


def _to_pinecone(value: object) -> object:
    """Return a metadata value for Pinecone; None if it is left out.

    Texts, booleans, numbers and lists of texts stay. Pinecone's numbers are 64-bit floats, so that
    larger whole numbers become texts. Null and empty lists are left out. All else becomes JSON.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _EXACT_FLOAT_END else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value or None
    return to_json(value)


def _sparse_to_json(row: LayoutRow, vectors: RowVectors) -> str | None:
    """Return a sparse vector's 1,000 largest weights, which are the most; None if it is empty."""
    if vectors.sparse is None or not len(vectors.sparse[0]):
        return None
    indices, values = vectors.sparse
    if len(indices) > _SPARSE_TERMS:
        largest = np.sort(np.argsort(-values, kind="stable")[:_SPARSE_TERMS])
        indices, values = indices[largest], values[largest]
    numbers = list_numbers(values, row.number)
    return f'{{"indices": {indices.tolist()}, "values": {numbers}}}'
