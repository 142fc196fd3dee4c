"""A few points of a collection, drawn evenly over all of it."""

from __future__ import annotations

from qdrant_client import models as qm

from unified_embeddings.stores.copy_points import PointId, plain_id
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client

_MOST_LISTED = 100_000
"""Points whose ids are all read; of more, a server draws some at random."""
_IDS_PER_PAGE = 5_000


def sample_ids(client: Client, name: str, size: int) -> list[PointId]:
    """Return the ids of up to `size` points: evenly spaced by id, or random ones of very many.

    Args:
        client: Client of the collection's place.
        name: The collection's name.
        size: How many points, at least 1.

    Raises:
        StoreError: If the collection cannot be read.
    """
    with store_errors(name, "drawing a sample of its points"):
        # Without this, a server would be asked for every id. The embedded core draws none at
        # random, and reads ids quickly.
        is_large = client.count(name, exact=False).count > _MOST_LISTED
        if is_large and not isinstance(client, EdgeQdrantClient):
            drawn = client.query_points(
                name,
                query=qm.SampleQuery(sample=qm.Sample.RANDOM),
                limit=size,
                with_payload=False,
            )
            return [plain_id(point.id) for point in drawn.points]
        point_ids = _list_ids(client, name)
    if len(point_ids) <= size:
        return point_ids
    spacing = len(point_ids) / size
    return [point_ids[int((place + 0.5) * spacing)] for place in range(size)]


def _list_ids(client: Client, name: str) -> list[PointId]:
    point_ids: list[PointId] = []
    offset = None
    while True:
        records, offset = client.scroll(
            name, limit=_IDS_PER_PAGE, offset=offset, with_payload=False, with_vectors=False
        )
        point_ids += [plain_id(record.id) for record in records]
        if offset is None:
            return point_ids
