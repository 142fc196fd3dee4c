"""The texts of a collection, read back from its points.

What lives here: a point's text, its document and its titles, from payloads of LlamaIndex and of
plain ones. What does not: what is made of them (`evaluation.generated_queries`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llama_index.core.schema import MetadataMode
from llama_index.core.vector_stores.utils import metadata_dict_to_node
from qdrant_client import models as qm

from unified_embeddings.errors import StoreError
from unified_embeddings.evaluation.documents import POINT_ID, read_document_id
from unified_embeddings.evaluation.generated_queries import Passage
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client

_POINTS_PER_PAGE = 500
_NODE_FIELD = "_node_content"
_TEXT_FIELDS = ("text", "page_content", "content", "body")
"""Where other software's points hold their text."""
_TITLE_FIELDS = ("title", "document_title", "section", "section_title", "heading", "header")


def count_points(client: Client, collection: str) -> int:
    """Return how many points a collection has.

    Raises:
        StoreError: If the store fails.
    """
    with store_errors(collection, "counting the points"):
        return client.count(collection, exact=True).count


def read_passages(
    client: Client,
    collection: str,
    *,
    document_field: str = POINT_ID,
    on_points: Callable[[int], None] = lambda _: None,
) -> list[Passage]:
    """Return the texts of a collection's points. Points without a text are left out.

    Args:
        client: Sync client.
        collection: The collection's name.
        document_field: Field of the payload that names a point's document, "metadata.source" for
            one within another, or `documents.POINT_ID`. Points without it are left out.
        on_points: Called with the number of points just read.

    Raises:
        StoreError: If the store fails, or no point has a text and the field.
    """
    passages = []
    for points in _read_pages(client, collection):
        for point in points:
            passage = _to_passage(point, document_field)
            if passage is not None:
                passages.append(passage)
        on_points(len(points))
    if not passages:
        raise StoreError(
            collection,
            "reading the texts",
            f"no point has a text in its payload, together with {document_field!r}",
        )
    return passages


def _read_pages(client: Client, collection: str) -> Iterator[list[qm.Record]]:
    offset: qm.ExtendedPointId | None = None
    while True:
        with store_errors(collection, "reading the texts"):
            points, offset = client.scroll(
                collection,
                limit=_POINTS_PER_PAGE,
                offset=offset,
                with_payload=True,
                with_vectors=False,
            )
        yield points
        if offset is None:
            return


def _to_passage(point: qm.Record, document_field: str) -> Passage | None:
    payload: Mapping[str, Any] = point.payload or {}
    document = read_document_id(point.id, payload, document_field)
    text = _read_text(payload)
    if document is None or not text.strip():
        return None
    titles = []
    for field in _TITLE_FIELDS:
        for place in (payload, payload.get("metadata"), payload.get("meta")):
            title = place.get(field) if isinstance(place, Mapping) else None
            if isinstance(title, str):
                titles.append(title)
    return Passage(
        passage_id=str(point.id),
        text=text,
        document=document,
        titles=tuple(dict.fromkeys(titles)),
    )


def _read_text(payload: Mapping[str, Any]) -> str:
    """Return a payload's text without metadata; "" if it has none."""
    if isinstance(payload.get(_NODE_FIELD), str):
        try:
            node = metadata_dict_to_node(dict(payload))
        except (ValueError, KeyError, TypeError):  # another version's, or damaged
            return ""
        return node.get_content(metadata_mode=MetadataMode.NONE)
    for field in _TEXT_FIELDS:
        if isinstance(payload.get(field), str):
            return str(payload[field])
    return ""
