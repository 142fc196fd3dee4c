"""A few points of a collection, drawn evenly over all of it."""

from __future__ import annotations

from collections.abc import Iterator

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
        count = client.count(name, exact=True).count
        spacing = max(1.0, count / size)
        places = {int((place + 0.5) * spacing) for place in range(size)}
        ids = enumerate(_iterate_ids(client, name))
        return [point_id for place, point_id in ids if place in places]


def _iterate_ids(client: Client, name: str) -> Iterator[PointId]:
    offset = None
    while True:
        records, offset = client.scroll(
            name, limit=_IDS_PER_PAGE, offset=offset, with_payload=False, with_vectors=False
        )
        for record in records:
            yield plain_id(record.id)
        if offset is None:
            return
