"""Rows with vectors as Qdrant's points, and the collection that they go into.

What lives here: a point's id, its named vectors, LlamaIndex's payload. What does not: the other
stores (`upsert_layouts`), and writing into a collection that is at hand (`collection`).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence

from llama_index.core.schema import TextNode
from qdrant_client import QdrantClient

from unified_embeddings.bulk.json_output import list_numbers, to_json
from unified_embeddings.bulk.upsert_layouts import (
    LayoutRow,
    RowVectors,
    UpsertLayout,
    require_id,
    stable_uuid,
)
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.payloads import build_payloads
from unified_embeddings.stores.creating import ensure_collection
from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR

_UINT64_END = 2**64


class QdrantLayout(UpsertLayout):
    """Batches for `PUT /collections/NAME/points`: points with LlamaIndex's payload.

    The payload is what the retriever and LlamaIndex's own store read. A row's fields are the
    node's metadata, its id among them.
    """

    max_rows = 256
    max_bytes = 16 * 10**6  # A server takes 32 MB.
    heads = ("dense", "sparse")

    def final_id(self, row: LayoutRow) -> str | int:
        """Return an unsigned 64-bit number or a UUID as it is, and a UUID for any other id."""
        value = require_id(row)
        if isinstance(value, int):
            return value if 0 <= value < _UINT64_END else stable_uuid(value)
        try:
            parsed = str(uuid.UUID(value))
        except ValueError:
            return stable_uuid(value)
        return parsed

    def check(self, row: LayoutRow) -> None:
        """Refuse what a payload cannot hold: half characters, and numbers beyond 64 bits."""
        self._payload(row, self.final_id(row))

    def encode(self, row: LayoutRow, vectors: RowVectors) -> tuple[str, ...]:
        """Return a point: id, vector, payload."""
        named = []
        if vectors.dense is not None:
            named.append(f'"{DENSE_VECTOR}": {list_numbers(vectors.dense, row.number)}')
        if vectors.sparse is not None:
            indices, values = vectors.sparse
            numbers = list_numbers(values, row.number)
            named.append(
                f'"{SPARSE_VECTOR}": {{"indices": {indices.tolist()}, "values": {numbers}}}'
            )
        point_id = self.final_id(row)
        payload = to_json(self._payload(row, point_id))
        vector = "{" + ", ".join(named) + "}"
        return (f'{{"id": {to_json(point_id)}, "vector": {vector}, "payload": {payload}}}',)

    def join(self, rows: Sequence[tuple[str, ...]]) -> str:
        """Return the body of one upsert request."""
        return f'{{"points": [{", ".join(row for (row,) in rows)}]}}'

    def _payload(self, row: LayoutRow, point_id: str | int) -> dict[str, object]:
        node = TextNode(id_=str(point_id), text=row.text or "", metadata=dict(row.fields))
        try:
            (payload,) = build_payloads([node])
        except InputError as error:
            raise row.refuse(error.problem) from None
        return payload


def describe_collection(embedder: TextEmbedder) -> str:
    """Return the body of `PUT /collections/NAME` for an embedder's vectors, as JSON.

    It names the vectors, their dimension and distance, and records the model's fingerprint, as a
    collection that this library creates itself.
    """
    client = QdrantClient(":memory:")
    try:
        ensure_collection(client, "described", embedder)
        info = client.get_collection("described")
    finally:
        client.close()
    body = info.config.params.model_dump(
        mode="json", exclude_none=True, include={"vectors", "sparse_vectors"}
    )
    body["metadata"] = info.config.metadata
    return json.dumps(body, indent=2, ensure_ascii=False)
