"""The embedded store: points by columns and operations, changed settings, collections made anew.

Where a call has an answer or an effect that local mode has too, it is compared with local mode.
"""

from __future__ import annotations

import itertools
import json
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings import EdgeQdrantClient, InputError

D2 = qm.VectorParams(size=2, distance=qm.Distance.DOT)
VECTORS = {"vectors_config": {"d": D2}, "sparse_vectors_config": {"s": qm.SparseVectorParams()}}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[EdgeQdrantClient]:
    with EdgeQdrantClient(tmp_path / "store") as client:
        yield client


@pytest.fixture
def both(client: EdgeQdrantClient) -> list[Any]:
    """The client and local mode, each with a collection of named vectors and one without names."""
    clients: list[Any] = [client, QdrantClient(":memory:")]
    for one in clients:
        one.create_collection("named", **VECTORS)
        one.create_collection("plain", vectors_config=D2)
    return clients


def everything(client: Any, name: str) -> list[Any]:
    points, _ = client.scroll(name, limit=1_000, with_vectors=True)
    return [(point.id, point.payload, point.vector) for point in points]


def assert_same(clients: list[Any]) -> None:
    for name in ("named", "plain"):
        assert everything(clients[0], name) == everything(clients[1], name)


# --- by columns ---------------------------------------------------------------------------------

SPARSE = qm.SparseVector(indices=[1, 5], values=[0.5, 2.0])
UPLOADS: dict[str, Callable[[Any], Any]] = {
    "an array": lambda c: c.upload_collection(
        "plain", np.arange(10.0).reshape(5, 2), ids=range(5), payload=[{"n": n} for n in range(5)]
    ),
    "an array in float32, ids of NumPy": lambda c: c.upload_collection(
        "plain", np.ones((3, 2), np.float32), ids=[1, 2, 3]
    ),
    "lists": lambda c: c.upload_collection("plain", [[1.0, 2.0], [3.0, 4.0]], ids=[7, 8]),
    "a generator, endless ids and payloads": lambda c: c.upload_collection(
        "plain",
        ([float(n), 1.0] for n in range(130)),
        ids=itertools.count(3),
        payload=itertools.cycle([{"a": 1}, {"a": 2}]),
    ),
    "arrays by name": lambda c: c.upload_collection("named", {"d": np.ones((3, 2))}, ids=[1, 2, 3]),
    "dicts of vectors": lambda c: c.upload_collection(
        "named", [{"d": [1.0, 2.0], "s": SPARSE}, {"s": SPARSE}], ids=[str(uuid.UUID(int=1)), 2]
    ),
    "nothing": lambda c: c.upload_collection("plain", []),
    "only new points": lambda c: (
        c.upsert("plain", [qm.PointStruct(id=1, vector=[9.0, 9.0])]),
        c.upload_collection(
            "plain", np.ones((2, 2)), ids=[1, 2], update_mode=qm.UpdateMode.INSERT_ONLY
        ),
    ),
}


@pytest.mark.parametrize("what", UPLOADS)
def test_columns_are_stored_as_local_mode_stores_them(both: list[Any], what: str) -> None:
    for one in both:
        UPLOADS[what](one)
    assert_same(both)


def test_columns_without_ids_get_uuids(client: EdgeQdrantClient) -> None:
    client.create_collection("plain", vectors_config=D2)
    client.upload_collection("plain", np.ones((70, 2)), payload=({"n": n} for n in range(70)))
    points = everything(client, "plain")
    assert {uuid.UUID(str(number)).version for number, *_ in points} == {4}
    assert sorted(payload["n"] for _, payload, _ in points) == list(range(70))


@pytest.mark.parametrize(
    ("arguments", "index"),
    [
        ({"vectors": np.ones((3, 2)), "ids": [1, 2]}, 2),
        ({"vectors": np.ones((3, 2)), "ids": [1, 2, 3], "payload": [{}]}, 1),
        ({"vectors": ([1.0, 2.0] for _ in range(3)), "ids": iter([1])}, 1),
        ({"vectors": np.ones((3, 3)), "ids": [1, 2, 3]}, 0),
        ({"vectors": {"d": np.ones((3, 2)), "e": np.ones((2, 2))}}, None),
        ({"vectors": 5}, None),
        ({"vectors": np.ones((3, 2)), "ids": 5}, None),
        ({"vectors": np.ones((3, 2)), "shard_key_selector": "a"}, None),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    client: EdgeQdrantClient, arguments: dict[str, Any], index: int | None
) -> None:
    client.create_collection("plain", vectors_config=D2)
    with pytest.raises(InputError) as caught:
        client.upload_collection("plain", **arguments)
    assert caught.value.index == index
    assert client.count("plain").count == 0


# --- operations ---------------------------------------------------------------------------------


def operations() -> list[Any]:
    """Return one operation of every kind, in an order in which each has something to change."""
    points = [
        qm.PointStruct(id=n, vector={"d": [1.0 * n, 2.0], "s": SPARSE}, payload={"n": n, "a": "b"})
        for n in range(1, 9)
    ]
    odd = qm.Filter(must=[qm.FieldCondition(key="n", match=qm.MatchAny(any=[1, 3, 5, 7]))])
    batch = qm.Batch(ids=[20, 21], vectors={"d": [[1.0, 1.0], [2.0, 2.0]]}, payloads=[{"n": 1}, {}])
    return [
        qm.UpsertOperation(upsert=qm.PointsList(points=points)),
        qm.UpsertOperation(upsert=qm.PointsBatch(batch=batch)),
        qm.UpsertOperation(
            upsert=qm.PointsList(
                points=[qm.PointStruct(id=1, vector={}, payload={})],
                update_mode=qm.UpdateMode.INSERT_ONLY,
            )
        ),
        qm.SetPayloadOperation(set_payload=qm.SetPayload(payload={"c": {"d": 1}}, points=[1, 2])),
        qm.SetPayloadOperation(set_payload=qm.SetPayload(payload={"e": 2}, filter=odd, key="c")),
        qm.OverwritePayloadOperation(
            overwrite_payload=qm.SetPayload(payload={"whole": True}, points=[4])
        ),
        qm.DeletePayloadOperation(delete_payload=qm.DeletePayload(keys=["a"], points=[5, 6])),
        qm.ClearPayloadOperation(clear_payload=qm.PointIdsList(points=[8])),
        qm.UpdateVectorsOperation(
            update_vectors=qm.UpdateVectors(
                points=[qm.PointVectors(id=2, vector={"d": [7.0, 7.0]})]
            )
        ),
        qm.DeleteVectorsOperation(delete_vectors=qm.DeleteVectors(vector=["s"], points=[3])),
        qm.DeleteOperation(delete=qm.FilterSelector(filter=odd)),
        qm.DeleteOperation(delete=qm.PointIdsList(points=[2])),
    ]


@pytest.mark.parametrize("count", range(1, 13))
def test_operations_change_what_they_change_in_local_mode(both: list[Any], count: int) -> None:
    for one in both:
        results = one.batch_update_points("named", operations()[:count])
        assert [result.status for result in results] == [qm.UpdateStatus.COMPLETED] * count
    assert_same(both)


def test_operations_may_be_dicts(client: EdgeQdrantClient) -> None:
    client.create_collection("plain", vectors_config=D2)
    client.batch_update_points(
        "plain",
        [
            {"upsert": {"points": [{"id": 1, "vector": [1.0, 2.0], "payload": {"a": 1}}]}},
            {"set_payload": {"payload": {"b": 2}, "points": [1]}},
        ],
    )
    assert everything(client, "plain") == [(1, {"a": 1, "b": 2}, [1.0, 2.0])]


BAD_OPERATIONS: dict[str, Any] = {
    "another dimension": {"upsert": {"points": [{"id": 1, "vector": {"d": [1.0]}}]}},
    "a bad vector": {"update_vectors": {"points": [{"id": 1, "vector": {"x": [1.0, 2.0]}}]}},
    "nothing selected": {"set_payload": {"payload": {}}},
    "a shard": {"delete": {"points": [1], "shard_key": "a"}},
    "no operation": {"rename": 1},
}


@pytest.mark.parametrize("what", BAD_OPERATIONS)
def test_a_bad_operation_is_refused_before_any_is_applied(
    client: EdgeQdrantClient, what: str
) -> None:
    client.create_collection("named", **VECTORS)
    with pytest.raises(InputError) as caught:
        client.batch_update_points("named", [operations()[0], BAD_OPERATIONS[what]])
    assert caught.value.index == 1
    assert client.count("named").count == 0


def test_an_operation_that_fails_ends_the_batch(client: EdgeQdrantClient) -> None:
    client.create_collection("named", **VECTORS)
    unknown = qm.SetPayloadOperation(set_payload=qm.SetPayload(payload={"a": 1}, points=[77]))
    with pytest.raises(InputError, match="77") as caught:
        client.batch_update_points("named", [operations()[0], unknown, operations()[-1]])
    assert caught.value.index == 1
    assert client.count("named").count == 8


# --- settings -----------------------------------------------------------------------------------


def segment_settings(client: EdgeQdrantClient) -> list[dict[str, Any]]:
    """Return what the indexed segments of the only collection were built with."""
    files = sorted(client.path.glob("shards/*/segments/*/segment.json"))
    found = [json.loads(file.read_text())["config"]["vector_data"]["d"] for file in files]
    return [each for each in found if each["index"]["type"] == "hnsw"]


def test_the_next_optimize_builds_with_changed_settings(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with EdgeQdrantClient(tmp_path / "store") as client:
        client.create_collection(
            "docs", **VECTORS, optimizers_config=qm.OptimizersConfigDiff(indexing_threshold=10_000)
        )
        client.upload_collection("docs", {"d": generator.normal(size=(500, 2))}, ids=range(500))
        client.optimize("docs")
        assert segment_settings(client) == []
        assert client.update_collection(
            "docs",
            hnsw_config=qm.HnswConfigDiff(m=7),
            optimizers_config=qm.OptimizersConfigDiff(indexing_threshold=1),
            quantization_config=qm.ScalarQuantization(
                scalar=qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8)
            ),
        )
        before = everything(client, "docs")
    with EdgeQdrantClient(tmp_path / "store") as client:  # the change outlives the process
        config = client.get_collection("docs").config
        assert (config.hnsw_config.m, config.hnsw_config.ef_construct) == (7, 100)
        assert client.optimize("docs")
        (built,) = segment_settings(client)
        assert built["index"]["options"]["m"] == 7
        assert built["quantization_config"]["scalar"]["type"] == "int8"
        assert everything(client, "docs") == before
        client.update_collection(
            "docs", vectors_config={"d": {"hnsw_config": {"m": 9}, "on_disk": True}}
        )
        assert client.optimize("docs")
        (built,) = segment_settings(client)
        assert built["index"]["options"]["m"] == 9
        assert not client.optimize("docs")
        client.clear("docs")
        assert client.get_collection("docs").config.params.vectors["d"].hnsw_config.m == 9


def test_settings_are_merged_field_by_field(client: EdgeQdrantClient) -> None:
    client.create_collection("docs", **VECTORS, hnsw_config=qm.HnswConfigDiff(m=5, payload_m=3))
    client.update_collection("docs", hnsw_config={"ef_construct": 50})
    client.update_collection("docs", sparse_vectors_config={"s": {"index": {"on_disk": True}}})
    client.update_collection(
        "docs", collection_params=qm.CollectionParamsDiff(on_disk_payload=True), metadata={"a": 1}
    )
    config = client.get_collection("docs").config
    shown = (config.hnsw_config.m, config.hnsw_config.payload_m, config.hnsw_config.ef_construct)
    assert shown == (5, 3, 50)
    assert config.params.sparse_vectors["s"].index.on_disk
    assert config.params.on_disk_payload
    assert config.metadata == {"a": 1}
    assert not client.update_collection("docs")
    assert client.update_collection("docs", metadata={"a": None})
    assert client.get_collection("docs").config.metadata == {}


CHANGES: dict[str, dict[str, Any]] = {
    "m out of bounds": {"hnsw_config": {"m": 2**40}},
    "an unknown vector": {"vectors_config": {"x": {"on_disk": True}}},
    "an unknown sparse vector": {"sparse_vectors_config": {"x": {"index": {"on_disk": True}}}},
    "another modifier": {"sparse_vectors_config": {"s": {"modifier": "idf"}}},
    "another datatype": {"sparse_vectors_config": {"s": {"index": {"datatype": "float16"}}}},
    "replicas": {"collection_params": {"replication_factor": 2}},
    "fan-out": {"collection_params": {"read_fan_out_factor": 2}},
    "strict mode": {"strict_mode_config": {"enabled": True}},
    "metadata that is not valid JSON": {"metadata": {"a": float("nan")}},
    "a misspelt option": {"hnsw_config": {"mm": 4}},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_that_cannot_be_made_is_refused(client: EdgeQdrantClient, what: str) -> None:
    client.create_collection("docs", **VECTORS, metadata={"a": 1})
    before = client.get_collection("docs").config
    with pytest.raises(InputError):
        client.update_collection("docs", **CHANGES[what])
    assert client.get_collection("docs").config == before


def test_quantisation_is_not_switched_off(client: EdgeQdrantClient) -> None:
    int8 = qm.ScalarQuantization(scalar=qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8))
    client.create_collection("docs", **VECTORS)
    client.update_collection("docs", quantization_config=qm.Disabled.DISABLED)
    client.update_collection("docs", vectors_config={"d": {"quantization_config": int8}})
    client.update_collection("docs", vectors_config={"d": {"quantization_config": "Disabled"}})
    assert client.get_collection("docs").config.params.vectors["d"].quantization_config is None
    client.update_collection("docs", quantization_config=int8)
    for change in (
        {"quantization_config": qm.Disabled.DISABLED},
        {"vectors_config": {"d": {"quantization_config": "Disabled"}}},
    ):
        with pytest.raises(InputError, match="make a collection with the settings you want"):
            client.update_collection("docs", **change)


# --- made anew ----------------------------------------------------------------------------------


def test_a_collection_is_made_anew(both: list[Any]) -> None:
    for one in both:
        one.upload_collection("plain", np.ones((3, 2)), ids=[1, 2, 3])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # qdrant-client's
            for name in ("plain", "new"):
                assert one.recreate_collection(
                    name, vectors_config=qm.VectorParams(size=3, distance=qm.Distance.COSINE)
                )
        assert one.count("plain").count == 0
        assert one.get_collection("plain").config.params.vectors.size == 3
        assert one.collection_exists("new")


def test_refused_settings_delete_nothing(client: EdgeQdrantClient) -> None:
    client.create_collection("plain", vectors_config=D2)
    client.upload_collection("plain", np.ones((3, 2)))
    for options in (
        {},
        {"vectors_config": qm.VectorParams(size=0, distance=qm.Distance.DOT)},
        {"vectors_config": D2, "shard_number": 2},
        {"vectors_config": D2, "hnsw_config": qm.HnswConfigDiff(m=2**40)},
    ):
        with pytest.raises(InputError):
            client.recreate_collection("plain", **options)
    assert client.count("plain").count == 3
