"""What a collection holds and takes, and a sample of its vectors.

What lives here: the questions to Qdrant, alike for every client. What does not: what is made of the
answers (`monitoring`, `cli`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from qdrant_client import models as qm

from unified_embeddings.errors import StoreError
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import dense_vectors, recorded_model, sparse_vectors
from unified_embeddings.types import FloatArray
from unified_embeddings.validation import require_whole_number

_IDS_PER_PAGE = 10_000


@dataclass(frozen=True)
class CollectionSize:
    """What a collection holds, and what that takes.

    Attributes:
        collection: Its name.
        points: Points in it.
        indexed_vectors: Vectors in an index; the others are searched one by one.
        segments: Segments that its points are in.
        bytes: Bytes of its files on disk; None where the store does not tell, as a server or one in
            memory.
        model: The model that made its vectors; None if it does not record that.
        fingerprint: The model's fingerprint; None likewise.
        dense: Dense vectors by name, with their dimensions.
        sparse: Names of the sparse vectors.
    """

    collection: str
    points: int
    indexed_vectors: int
    segments: int
    bytes: int | None
    model: str | None
    fingerprint: str | None
    dense: dict[str, int]
    sparse: tuple[str, ...]


def measure_collection(client: Client, collection: str) -> CollectionSize:
    """Return what a collection holds and takes.

    Raises:
        StoreError: If it does not exist, or Qdrant fails.
    """
    with store_errors(collection, "measuring"):
        info = client.get_collection(collection)
        size = None
        if isinstance(client, EdgeQdrantClient):
            size = client.disk_bytes(collection)
    model = recorded_model(info)
    return CollectionSize(
        collection=collection,
        points=info.points_count or 0,
        indexed_vectors=info.indexed_vectors_count or 0,
        segments=info.segments_count,
        bytes=size,
        model=None if model is None else model.name,
        fingerprint=None if model is None else model.fingerprint,
        dense={name: params.size for name, params in dense_vectors(info).items()},
        sparse=tuple(sparse_vectors(info)),
    )


def sample_vectors(
    client: Client, collection: str, vector_name: str, *, size: int, seed: int = 0
) -> FloatArray:
    """Return dense vectors of points that were drawn at random.

    Args:
        client: Sync client.
        collection: The collection's name.
        vector_name: Which of its vectors; the unnamed one where there is no such name.
        size: How many to draw; all where there are fewer.
        seed: Makes the draw from an embedded store repeatable. A server draws by itself.

    Returns:
        float32 (n, dimension), n <= size. Points without such a vector are left out.

    Raises:
        StoreError: If the collection has no such vector, its vectors are not compared by their
            cosine, or Qdrant fails.
    """
    require_whole_number("size", size)
    with store_errors(collection, "drawing vectors"):
        all_params = dense_vectors(client.get_collection(collection))
        if vector_name not in all_params and "" in all_params:
            vector_name = ""  # LlamaIndex's older collections name no vectors.
        params = all_params.get(vector_name)
        _require_cosine(collection, vector_name, params)
        points: list[qm.Record] | list[qm.ScoredPoint]
        if isinstance(client, EdgeQdrantClient):
            points = _draw_from_folder(client, collection, vector_name, size, seed)
        else:
            points = client.query_points(
                collection,
                query=qm.SampleQuery(sample=qm.Sample.RANDOM),
                limit=size,
                with_payload=False,
                with_vectors=[vector_name] if vector_name else True,
            ).points
    rows = []
    for point in points:
        vectors = point.vector
        vector = vectors.get(vector_name) if isinstance(vectors, dict) else vectors
        if vector is not None:
            rows.append(np.asarray(vector, dtype=np.float32))
    assert params is not None
    return np.stack(rows) if rows else np.zeros((0, params.size), dtype=np.float32)


def _require_cosine(collection: str, vector_name: str, params: qm.VectorParams | None) -> None:
    if params is None:
        raise StoreError(
            collection, "drawing vectors", f"it has no dense vector named {vector_name!r}"
        )
    if params.distance != qm.Distance.COSINE:
        raise StoreError(
            collection,
            "drawing vectors",
            f"expected vectors compared by their cosine, its own are by {params.distance.value}",
        )


def _draw_from_folder(
    client: EdgeQdrantClient, collection: str, vector_name: str, size: int, seed: int
) -> list[qm.Record]:
    """Draw points of an embedded store, which does not draw by itself: by their ids."""
    ids: list[qm.ExtendedPointId] = []
    offset: qm.ExtendedPointId | None = None
    while True:
        page, offset = client.scroll(
            collection, limit=_IDS_PER_PAGE, offset=offset, with_payload=False, with_vectors=False
        )
        ids += [point.id for point in page]
        if offset is None:
            break
    count = min(size, len(ids))
    drawn = np.random.default_rng(seed).permutation(len(ids))[:count]
    wanted = [ids[place] for place in sorted(drawn.tolist())]
    with_vectors: bool | list[str] = [vector_name] if vector_name else True
    return client.retrieve(collection, wanted, with_payload=False, with_vectors=with_vectors)
