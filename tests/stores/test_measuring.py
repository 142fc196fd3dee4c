"""What a collection holds and takes, over every kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from qdrant_server import running_server
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.stores.creating import ensure_collection
from unified_embeddings.stores.measuring import measure_collection, sample_vectors
from unified_embeddings.stores.opening import open_folder

DENSE = "text-dense"


@pytest.fixture(params=["memory", "folder", "server"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield QdrantClient(":memory:")
    elif request.param == "folder":
        with open_folder(tmp_path / "store") as embedded:
            yield embedded
    else:
        with running_server() as (url, _):
            yield QdrantClient(url=url, check_compatibility=False)


def fill(client: Any, count: int, **options: Any) -> None:
    """A collection of points whose vectors tell their ids."""
    client.create_collection(
        "plain", {DENSE: qm.VectorParams(size=2, distance=qm.Distance.COSINE)}, **options
    )
    angles = np.linspace(0, 1, count)
    client.upsert(
        "plain",
        [
            qm.PointStruct(id=i, vector={DENSE: [float(np.cos(a)), float(np.sin(a))]}, payload={})
            for i, a in enumerate(angles)
        ],
    )


def test_a_collection_of_ours_tells_its_model(client: Any) -> None:
    embedder = FakeEmbedder(8)
    ensure_collection(client, "docs", embedder)
    size = measure_collection(client, "docs")
    assert (size.collection, size.points, size.model) == ("docs", 0, "fake")
    assert size.fingerprint == embedder.fingerprint
    assert size.dense == {DENSE: 8}
    assert size.sparse == ("text-sparse-new",)


def test_a_collection_of_others_does_not(client: Any) -> None:
    fill(client, 5)
    size = measure_collection(client, "plain")
    assert (size.points, size.model, size.fingerprint) == (5, None, None)
    assert (size.dense, size.sparse) == ({DENSE: 2}, ())
    assert (size.bytes is None) == isinstance(client, QdrantClient)


def test_bytes_grow_with_the_points(tmp_path: Path) -> None:
    with open_folder(tmp_path / "store") as client:
        fill(client, 5)
        before = measure_collection(client, "plain").bytes
        points = [
            qm.PointStruct(id=i, vector={DENSE: [1.0, 0.0]}, payload={"text": "x" * 1000})
            for i in range(2000)
        ]
        client.upsert("plain", points)
        client.flush()
        after = measure_collection(client, "plain").bytes
    assert before is not None
    assert after is not None
    assert after - before > 1_000_000


def test_a_sample_has_distinct_vectors_of_the_collection(client: Any) -> None:
    fill(client, 200)
    drawn = sample_vectors(client, "plain", DENSE, size=50)
    assert drawn.shape == (50, 2)
    assert drawn.dtype == np.float32
    angles = np.arctan2(drawn[:, 1], drawn[:, 0])
    numbers = angles * 199
    assert np.abs(numbers - numbers.round()).max() < 1e-3
    assert len(set(numbers.round())) == 50
    assert 60 < numbers.mean() < 140  # not the first 50, whose mean is 25
    assert sample_vectors(client, "plain", DENSE, size=1000).shape == (200, 2)


def test_nothing_is_drawn_from_an_empty_collection(client: Any) -> None:
    fill(client, 1)
    client.delete("plain", points_selector=[0])
    assert sample_vectors(client, "plain", DENSE, size=5).shape == (0, 2)


def test_vectors_without_a_name_are_found(tmp_path: Path) -> None:
    for client in (QdrantClient(":memory:"), open_folder(tmp_path / "store")):
        client.create_collection("old", qm.VectorParams(size=2, distance=qm.Distance.COSINE))
        client.upsert("old", [qm.PointStruct(id=1, vector=[0.0, 2.0])])
        assert sample_vectors(client, "old", DENSE, size=5).tolist() == [[0.0, 1.0]]


def test_what_cannot_be_drawn_is_refused(client: Any) -> None:
    fill(client, 3)
    with pytest.raises(StoreError, match="no dense vector named 'other'"):
        sample_vectors(client, "plain", "other", size=5)
    with pytest.raises(InputError, match="size must be"):
        sample_vectors(client, "plain", DENSE, size=0)
    with pytest.raises(StoreError, match="'none'"):
        measure_collection(client, "none")
    client.create_collection(
        "distances", {DENSE: qm.VectorParams(size=2, distance=qm.Distance.EUCLID)}
    )
    with pytest.raises(StoreError, match="compared by their cosine, its own are by Euclid"):
        sample_vectors(client, "distances", DENSE, size=5)
