"""The embedded client among clients: what a server takes is taken, what it refuses is refused.

The same answers as local mode's are tested in tests/contract. Here are the arguments: options that
other clients pass, settings and conditions that a server refuses and the core does not, plain
dicts in place of models, and moving collections with qdrant-client's own `migrate`.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings import EdgeQdrantClient, InputError

D2 = qm.VectorParams(size=2, distance=qm.Distance.DOT)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[EdgeQdrantClient]:
    with EdgeQdrantClient(tmp_path / "store") as client:
        fill(client)
        yield client


def fill(client: Any, name: str = "docs") -> None:
    client.create_collection(
        name,
        vectors_config={"d": D2},
        sparse_vectors_config={"s": qm.SparseVectorParams()},
    )
    client.upsert(name, [point(number) for number in range(1, 7)])


def point(number: int) -> qm.PointStruct:
    sparse = qm.SparseVector(indices=[number], values=[1.0])
    payload = {"number": number, "tags": ["even" if number % 2 == 0 else "odd"], "nested": [{}]}
    return qm.PointStruct(id=number, vector={"d": [number, 1.0], "s": sparse}, payload=payload)


def everything(client: Any, name: str = "docs") -> list[Any]:
    points, _ = client.scroll(name, limit=1_000, with_vectors=True)
    return [(point.id, point.payload, point.vector) for point in points]


# --- what is taken ------------------------------------------------------------------------------

CALLS: dict[str, Callable[..., Any]] = {
    "create_collection": lambda c, **o: c.create_collection("new", {"d": D2}, **o),
    "update_collection": lambda c, **o: c.update_collection("docs", metadata={"a": 1}, **o),
    "delete_collection": lambda c, **o: c.delete_collection("nothing", **o),
    "create_vector_name": lambda c, **o: c.create_vector_name(
        "docs", "t", qm.SparseVectorNameConfig(sparse=qm.SparseVectorConfig()), **o
    ),
    "delete_vector_name": lambda c, **o: c.delete_vector_name("docs", "s", **o),
    "create_payload_index": lambda c, **o: c.create_payload_index("docs", "a", "keyword", **o),
    "delete_payload_index": lambda c, **o: c.delete_payload_index("docs", "a", **o),
    "update_collection_aliases": lambda c, **o: c.update_collection_aliases([], **o),
    "upsert": lambda c, **o: c.upsert("docs", [point(7)], **o),
    "update_vectors": lambda c, **o: c.update_vectors(
        "docs", [qm.PointVectors(id=1, vector={"d": [1.0, 1.0]})], **o
    ),
    "delete_vectors": lambda c, **o: c.delete_vectors("docs", ["s"], [1], **o),
    "delete": lambda c, **o: c.delete("docs", [1], **o),
    "set_payload": lambda c, **o: c.set_payload("docs", {"a": 1}, [1], **o),
    "overwrite_payload": lambda c, **o: c.overwrite_payload("docs", {"a": 1}, [1], **o),
    "delete_payload": lambda c, **o: c.delete_payload("docs", ["number"], [1], **o),
    "clear_payload": lambda c, **o: c.clear_payload("docs", [1], **o),
    "retrieve": lambda c, **o: c.retrieve("docs", [1], **o),
    "scroll": lambda c, **o: c.scroll("docs", **o),
    "count": lambda c, **o: c.count("docs", **o),
    "query_points": lambda c, **o: c.query_points("docs", query=[1.0, 1.0], using="d", **o),
    "query_batch_points": lambda c, **o: c.query_batch_points("docs", [], **o),
    "query_points_groups": lambda c, **o: c.query_points_groups(
        "docs", "number", query=[1.0, 1.0], using="d", **o
    ),
    "facet": lambda c, **o: (
        c.create_payload_index("docs", "number", "integer"),
        c.facet("docs", "number", **o),
    ),
    "batch_update_points": lambda c, **o: c.batch_update_points(
        "docs", [{"delete": {"points": [1]}}], **o
    ),
    "recreate_collection": lambda c, **o: c.recreate_collection("docs", {"d": D2}, **o),
}


def test_every_method_with_a_timeout_is_called_here() -> None:
    methods = inspect.getmembers(EdgeQdrantClient, inspect.isfunction)
    assert set(CALLS) == {
        name for name, method in methods if "timeout" in inspect.signature(method).parameters
    }


@pytest.mark.parametrize("name", CALLS)
def test_a_timeout_is_taken_unless_a_server_would_refuse_it(
    client: EdgeQdrantClient, name: str
) -> None:
    before = everything(client)
    for bad in (0, -1, float("nan"), "soon", True):
        with pytest.raises(InputError, match="timeout"):
            CALLS[name](client, timeout=bad)
    assert everything(client) == before
    assert not client.collection_exists("new")
    CALLS[name](client, timeout=5)


def as_arguments(config: qm.CollectionConfig) -> dict[str, Any]:
    """Return a collection's description as arguments of `create_collection`."""
    assert config.wal_config is not None
    return {
        "vectors_config": config.params.vectors,
        "sparse_vectors_config": config.params.sparse_vectors,
        "shard_number": config.params.shard_number,
        "replication_factor": config.params.replication_factor,
        "write_consistency_factor": config.params.write_consistency_factor,
        "on_disk_payload": config.params.on_disk_payload,
        "hnsw_config": qm.HnswConfigDiff(**config.hnsw_config.model_dump()),
        "optimizers_config": qm.OptimizersConfigDiff(**config.optimizer_config.model_dump()),
        "wal_config": qm.WalConfigDiff(**config.wal_config.model_dump()),
        "quantization_config": config.quantization_config,
        "metadata": config.metadata,
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "a single vector": {"vectors_config": D2},
    "hnsw": {"hnsw_config": qm.HnswConfigDiff(m=0, payload_m=8, ef_construct=4)},
    "optimizers": {
        "optimizers_config": qm.OptimizersConfigDiff(
            deleted_threshold=0.5,
            vacuum_min_vector_number=100,
            default_segment_number=2,
            max_segment_size=1_000,
            memmap_threshold=1_000,
            indexing_threshold=1_000,
            flush_interval_sec=5,
            max_optimization_threads=2,
            prevent_unoptimized=True,
        )
    },
    "threads by themselves": {
        "optimizers_config": qm.OptimizersConfigDiff(
            max_optimization_threads=qm.MaxOptimizationThreadsSetting.AUTO
        )
    },
    "the log": {"wal_config": qm.WalConfigDiff(wal_capacity_mb=64, wal_segments_ahead=2)},
    "quantization": {
        "quantization_config": qm.ScalarQuantization(
            scalar=qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8, quantile=0.5)
        )
    },
    "strict mode off": {"strict_mode_config": qm.StrictModeConfig(enabled=False)},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_get_collection_reports_is_taken_by_create_collection(
    client: EdgeQdrantClient, name: str
) -> None:
    options = {"vectors_config": {"d": D2}, **SETTINGS[name]}
    client.create_collection("first", **options)
    config = client.get_collection("first").config
    client.create_collection("second", **as_arguments(config))
    assert client.get_collection("second").config == config


@pytest.mark.parametrize("direction", ["to local mode", "from local mode", "between stores"])
def test_migrate_copies_a_collection_in_either_direction(
    client: EdgeQdrantClient, tmp_path: Path, direction: str
) -> None:
    client.create_payload_index("docs", "number", "integer")
    source: Any = client
    target: Any = QdrantClient(":memory:")
    if direction == "from local mode":
        source, target = target, EdgeQdrantClient(tmp_path / "target")
        fill(source)
    elif direction == "between stores":
        target = EdgeQdrantClient(tmp_path / "target")
    source.migrate(target, batch_size=2)
    assert everything(target) == everything(source)
    with pytest.raises(ValueError, match="exist"):
        source.migrate(target)
    source.delete("docs", [1])
    source.migrate(target, ["docs"], recreate_on_collision=True)
    assert everything(target) == everything(source)
    target.close()


def test_what_cannot_be_migrated_is_an_input_error(client: EdgeQdrantClient) -> None:
    target = QdrantClient(":memory:")
    fill(target)
    for call in (
        lambda: client.migrate(target),
        lambda: client.migrate(target, ["nothing"]),
        lambda: client.migrate(target, batch_size=0),
    ):
        with pytest.raises(InputError):
            call()


def test_plain_dicts_are_taken_for_models(client: EdgeQdrantClient) -> None:
    client.create_collection(
        "dicts",
        vectors_config={"d": {"size": 2, "distance": "Dot"}},
        sparse_vectors_config={"s": {"modifier": "idf"}},
        hnsw_config={"m": 8},
        optimizers_config={"indexing_threshold": 1},
        quantization_config={"scalar": {"type": "int8"}},
        wal_config={"wal_capacity_mb": 32},
    )
    config = client.get_collection("dicts").config
    assert config.hnsw_config.m == 8
    assert isinstance(config.quantization_config, qm.ScalarQuantization)
    client.create_collection("one", {"size": 2, "distance": "Cosine"})
    sparse = {"indices": [1], "values": [1.0]}
    client.upsert("dicts", [{"id": 1, "vector": {"d": [1, 2], "s": sparse}, "payload": {"a": 1}}])
    client.upsert("one", {"ids": [1, 2], "vectors": [[1, 2], [3, 4]], "payloads": None})
    client.update_vectors("dicts", [{"id": 1, "vector": {"d": [5, 6]}}])
    condition = {"must": [{"key": "a", "match": {"value": 1}}]}
    client.set_payload("dicts", {"b": 2}, condition)
    client.create_payload_index("dicts", "b", {"type": "integer", "lookup": True, "range": True})
    assert everything(client, "dicts") == [
        (1, {"a": 1, "b": 2}, {"d": [5.0, 6.0], "s": qm.SparseVector(**sparse)})
    ]
    assert client.count("dicts", condition).count == 1
    assert [record.id for record in client.scroll("dicts", condition)[0]] == [1]
    assert client.scroll("dicts", order_by={"key": "b", "direction": "desc"})[0]
    for query in ([5.0, 6.0], {"nearest": [5.0, 6.0]}):
        answer = client.query_points(
            "dicts",
            query,
            using="d",
            query_filter=condition,
            search_params={"exact": True, "quantization": {"rescore": True}},
            with_payload={"include": ["a"]},
        )
        assert [(point.id, point.payload) for point in answer.points] == [(1, {"a": 1})]
    fused = {
        "prefetch": [
            {"query": [5.0, 6.0], "using": "d", "filter": condition},
            {"query": sparse, "using": "s", "limit": 3},
        ],
        "query": {"rrf": {"k": 61}},
        "limit": 3,
    }
    ((answer_point,),) = [answer.points for answer in client.query_batch_points("dicts", [fused])]
    assert answer_point.score == pytest.approx(2 / 61)
    assert len(client.query_points("dicts", fused["query"], prefetch=fused["prefetch"]).points) == 1
    client.update_collection_aliases(
        [{"create_alias": {"collection_name": "dicts", "alias_name": "alias"}}]
    )
    client.delete("alias", {"filter": condition})
    assert client.count("dicts").count == 0
    client.delete("one", {"points": [1]})
    assert [record.id for record in client.scroll("one")[0]] == [2]


DICTS: dict[str, Callable[[Any], Any]] = {
    "a misspelt key": lambda c: c.count("docs", {"musst": []}),
    "a misspelt condition": lambda c: c.delete("docs", {"must": [{"ky": "a", "match": {}}]}),
    "a selector of nothing": lambda c: c.delete("docs", {}),
    "an unknown selector": lambda c: c.delete("docs", {"ids": [1]}),
    "a vector's settings": lambda c: c.create_collection("x", {"d": {"size": "two"}}),
    "a point": lambda c: c.upsert("docs", [{"identity": 1}]),
    "a query": lambda c: c.query_points("docs", {"nearst": [1.0, 1.0]}, using="d"),
    "a request": lambda c: c.query_batch_points("docs", [{"queri": [1.0]}]),
    "search_params": lambda c: c.query_points("docs", [1.0, 1.0], "d", search_params={"ef": 1}),
    "an alias": lambda c: c.update_collection_aliases([{"create": {}}]),
    "an index": lambda c: c.create_payload_index("docs", "a", {"type": "words"}),
    "a vector name": lambda c: c.create_vector_name("docs", "x", {"dense": {"size": 2}}),
}


@pytest.mark.parametrize("name", DICTS)
def test_a_dict_that_is_no_model_is_refused(client: EdgeQdrantClient, name: str) -> None:
    before = everything(client)
    with pytest.raises(InputError):
        DICTS[name](client)
    assert everything(client) == before
    assert [one.name for one in client.get_collections().collections] == ["docs"]


# --- what is refused ----------------------------------------------------------------------------

OUT_OF_BOUNDS: dict[str, dict[str, Any]] = {
    "ef_construct below 4": {"hnsw_config": {"ef_construct": 3}},
    "ef_construct of a vector": {
        "vectors_config": {"d": {"size": 2, "distance": "Dot", "hnsw_config": {"ef_construct": 0}}}
    },
    "negative m": {"hnsw_config": {"m": -1}},
    "an m that no memory holds": {"hnsw_config": {"m": 2**40}},
    "full_scan_threshold below 10": {"hnsw_config": {"full_scan_threshold": 9}},
    "a quantile below a half": {
        "quantization_config": {"scalar": {"type": "int8", "quantile": 0.49}}
    },
    "a quantile above 1": {"quantization_config": {"scalar": {"type": "int8", "quantile": 1.01}}},
    "a quantile that is NaN": {
        "quantization_config": {"scalar": {"type": "int8", "quantile": float("nan")}}
    },
    "a quantile of a vector": {
        "vectors_config": {
            "d": {
                "size": 2,
                "distance": "Dot",
                "quantization_config": {"scalar": {"type": "int8", "quantile": 0}},
            }
        }
    },
    "deleted_threshold above 1": {"optimizers_config": {"deleted_threshold": 1.5}},
    "vacuum_min_vector_number below 100": {"optimizers_config": {"vacuum_min_vector_number": 99}},
    "max_segment_size of 0": {"optimizers_config": {"max_segment_size": 0}},
    "negative indexing_threshold": {"optimizers_config": {"indexing_threshold": -1}},
    "wal_capacity_mb of 0": {"wal_config": {"wal_capacity_mb": 0}},
    "sparse turbo4": {"sparse_vectors_config": {"s": {"index": {"datatype": "turbo4"}}}},
    "negative sparse threshold": {
        "sparse_vectors_config": {"s": {"index": {"full_scan_threshold": -1}}}
    },
    "size 0": {"vectors_config": {"d": {"size": 0, "distance": "Dot"}}},
    "size 65537": {"vectors_config": {"d": {"size": 65_537, "distance": "Dot"}}},
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_settings_out_of_a_servers_bounds_are_refused_and_leave_nothing(
    client: EdgeQdrantClient, tmp_path: Path, name: str
) -> None:
    options = {"vectors_config": {"d": D2}, **OUT_OF_BOUNDS[name]}
    with pytest.raises(InputError):
        client.create_collection("new", **options)
    assert not client.collection_exists("new")
    assert len(list((tmp_path / "store" / "shards").iterdir())) == 1


def test_settings_of_a_vector_added_later_are_checked_too(client: EdgeQdrantClient) -> None:
    for config in (
        {"sparse": {"datatype": "turbo4"}},
        {"dense": {"size": 0, "distance": "Dot"}},
    ):
        with pytest.raises(InputError):
            client.create_vector_name("docs", "new", config)
    assert set(client.get_collection("docs").config.params.vectors) == {"d"}


@pytest.mark.parametrize("options", [{}, {"vectors_config": {}}, {"sparse_vectors_config": {}}])
def test_a_collection_without_vectors_gets_the_usual_refusal(
    client: EdgeQdrantClient, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="without vectors is not supported by the embedded store"):
        client.create_collection("new", **options)
    assert not client.collection_exists("new")


SEARCHES: dict[str, dict[str, Any]] = {
    "hnsw_ef of 0": {"search_params": {"hnsw_ef": 0}},
    "oversampling below 1": {"search_params": {"quantization": {"oversampling": 0.5}}},
    "oversampling that is NaN": {"search_params": {"quantization": {"oversampling": float("nan")}}},
    "selectivity above 1": {"search_params": {"acorn": {"enable": True, "max_selectivity": 2.0}}},
    "limit of 0": {"limit": 0},
    "negative offset": {"offset": -1},
    "a threshold that is NaN": {"score_threshold": float("nan")},
    "a threshold that is a text": {"score_threshold": "high"},
    "an unknown vector": {"using": "x"},
    "another dimension": {"query": [1.0]},
    "NaN": {"query": [float("nan"), 1.0]},
    "a vector of numbers for a sparse one": {"using": "s"},
}


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_that_a_server_refuses_are_refused(client: EdgeQdrantClient, name: str) -> None:
    with pytest.raises(InputError):
        client.query_points("docs", **{"query": [1.0, 1.0], "using": "d", **SEARCHES[name]})
    if "search_params" in SEARCHES[name]:
        inner = {"query": [1.0, 1.0], "using": "d", "params": SEARCHES[name]["search_params"]}
        with pytest.raises(InputError):
            client.query_points("docs", query={"fusion": "rrf"}, prefetch=[inner])


def key(**tests: Any) -> qm.Filter:
    return qm.Filter(must=[qm.FieldCondition(key="number", **tests)])


CONDITIONS: dict[str, qm.Filter] = {
    "no test": key(),
    "no test, negated": qm.Filter(must_not=[qm.FieldCondition(key="number")]),
    "no test, deep inside": qm.Filter(
        should=[qm.Filter(must_not=[qm.Filter(must=[qm.FieldCondition(key="number")])])]
    ),
    "no test in a nested object": qm.Filter(
        must_not=[
            qm.NestedCondition(
                nested=qm.Nested(
                    key="nested", filter=qm.Filter(must=[qm.FieldCondition(key="number")])
                )
            )
        ]
    ),
    "two tests": key(match=qm.MatchValue(value=1), range=qm.Range(gte=100)),
    "NaN": key(range=qm.Range(gte=float("nan"))),
    "infinity": key(range=qm.Range(lt=float("inf"))),
    "a radius of NaN": key(
        geo_radius=qm.GeoRadius(center=qm.GeoPoint(lon=0, lat=0), radius=float("nan"))
    ),
    "at least 0 of nothing": qm.Filter(min_should=qm.MinShould(conditions=[], min_count=0)),
    "at least 1 of nothing": qm.Filter(min_should=qm.MinShould(conditions=[], min_count=1)),
    "at least 0 of one": qm.Filter(
        min_should=qm.MinShould(
            conditions=[qm.FieldCondition(key="number", match=qm.MatchValue(value=1))], min_count=0
        )
    ),
    "a key that is no path": qm.Filter(
        must_not=[qm.FieldCondition(key="a[", match=qm.MatchValue(value=1))]
    ),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_that_tests_nothing_is_refused_wherever_filters_are_taken(
    client: EdgeQdrantClient, name: str
) -> None:
    condition = CONDITIONS[name]
    before = everything(client)
    for call in (
        lambda: client.delete("docs", condition),
        lambda: client.delete("docs", qm.FilterSelector(filter=condition)),
        lambda: client.delete("docs", condition.model_dump(exclude_none=True)),
        lambda: client.set_payload("docs", {"a": 1}, condition),
        lambda: client.overwrite_payload("docs", {}, condition),
        lambda: client.delete_payload("docs", ["number"], condition),
        lambda: client.clear_payload("docs", condition),
        lambda: client.delete_vectors("docs", ["d"], condition),
        lambda: client.upsert("docs", [point(9)], update_filter=condition),
        lambda: client.upload_points("docs", [point(9)], update_filter=condition),
        lambda: client.update_vectors(
            "docs", [qm.PointVectors(id=1, vector={"d": [9, 9]})], update_filter=condition
        ),
        lambda: client.count("docs", condition),
        lambda: client.scroll("docs", condition),
        lambda: client.query_points("docs", [1.0, 1.0], "d", query_filter=condition),
        lambda: client.query_points(
            "docs",
            qm.FusionQuery(fusion=qm.Fusion.RRF),
            prefetch=qm.Prefetch(query=[1.0, 1.0], using="d", filter=condition),
        ),
    ):
        with pytest.raises(InputError):
            call()
    assert everything(client) == before


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (key(range=qm.Range()), [1, 2, 3, 4, 5, 6, 8]),
        (key(range=qm.DatetimeRange()), []),
        (key(values_count=qm.ValuesCount()), list(range(1, 10))),
    ],
)
def test_a_condition_without_bounds_means_what_it_means_to_others(
    client: EdgeQdrantClient, condition: qm.Filter, expected: list[int]
) -> None:
    local = QdrantClient(":memory:")
    fill(local)
    for number, payload in {7: {"number": "seven"}, 8: {"number": [8]}, 9: {}}.items():
        for one in (client, local):
            one.upsert("docs", [qm.PointStruct(id=number, vector={}, payload=payload)])
    for one in (client, local):
        assert [record.id for record in one.scroll("docs", condition)[0]] == expected
        one.delete("docs", condition)
        remaining = [identity for identity, *_ in everything(one)]
        assert remaining == [number for number in range(1, 10) if number not in expected]


CALLERS_FAULTS: dict[str, Callable[[Any], Any]] = {
    "order_by a field without an index": lambda c: c.scroll("docs", order_by="number"),
    "order_by from a text": lambda c: (
        c.create_payload_index("docs", "number", "integer"),
        c.scroll("docs", order_by={"key": "number", "start_from": "a"}),
    ),
    "an offset with order_by": lambda c: c.scroll("docs", order_by="number", offset=1),
    "an offset that is no id": lambda c: c.scroll("docs", offset="first"),
    "a sparse query for a dense vector": lambda c: c.query_points(
        "docs", qm.SparseVector(indices=[1], values=[1.0]), using="d"
    ),
    "an id that is not there": lambda c: c.query_points("docs", 77, using="d"),
    "no points": lambda c: c.upsert("docs", []),
    "a dict for points": lambda c: c.upsert("docs", {"id": 1}),
    "a text for ids": lambda c: c.retrieve("docs", "1"),
    "a float for an id": lambda c: c.retrieve("docs", [1.5]),
    "a number for a collection": lambda c: c.count(5),
    "None for a collection": lambda c: c.count(None),
    "None for a vector name": lambda c: c.delete_vector_name("docs", None),
    "a number for a vector name": lambda c: c.create_vector_name(
        "docs", 5, qm.SparseVectorNameConfig(sparse=qm.SparseVectorConfig())
    ),
    "a number for a field": lambda c: c.create_payload_index("docs", 5, "keyword"),
    "a number for a key": lambda c: c.set_payload("docs", {"a": 1}, [1], key=5),
    "numbers for keys": lambda c: c.delete_payload("docs", [1], [1]),
    "a text for a payload": lambda c: c.set_payload("docs", "a", [1]),
    "a text for a limit": lambda c: c.scroll("docs", limit="all"),
    "None for a limit": lambda c: c.scroll("docs", limit=None),
    "a fraction for a limit": lambda c: c.query_points("docs", [1.0, 1.0], "d", limit=1.5),
    "a truth value for an offset": lambda c: c.query_points("docs", [1.0, 1.0], "d", offset=True),
    "a batch size of 0": lambda c: c.upload_points("docs", [point(1)], batch_size=0),
    "a limit beyond 64 bits": lambda c: c.scroll("docs", limit=2**64),
    "a query in words": lambda c: c.query_points("docs", "how to", using="d"),
    "metadata that is a list": lambda c: c.update_collection("docs", metadata=[1]),
    "requests that are a text": lambda c: c.query_batch_points("docs", "ab"),
    "points that are a number": lambda c: c.upload_points("docs", 5),
    "a batch size that is a text": lambda c: c.upload_points("docs", [point(1)], batch_size="a"),
    "update_mode in words": lambda c: c.upsert("docs", [point(1)], update_mode="sometimes"),
    "an alias of an alias": lambda c: c.update_collection_aliases(
        [{"create_alias": {"collection_name": "nothing", "alias_name": "a"}}]
    ),
}


@pytest.mark.parametrize("name", CALLERS_FAULTS)
def test_the_callers_error_is_an_input_error(client: EdgeQdrantClient, name: str) -> None:
    before = everything(client)
    with pytest.raises(InputError):
        CALLERS_FAULTS[name](client)
    assert everything(client) == before


def test_numpys_integers_are_ids(client: EdgeQdrantClient) -> None:
    ids: Any = np.array([5, 6])
    assert [record.id for record in client.retrieve("docs", ids)] == [5, 6]
    client.delete("docs", list(ids))
    assert [number for number, *_ in everything(client)] == [1, 2, 3, 4]
    with pytest.raises(InputError, match="id"):
        client.retrieve("docs", [np.int64(-1)])


def test_hasattr_is_false_for_what_only_a_server_has(client: EdgeQdrantClient) -> None:
    for name in ("create_snapshot", "search_matrix_pairs", "no_such_thing", "_client"):
        assert not hasattr(client, name)
        assert getattr(client, name, None) is None
        assert name == "_client" or not hasattr(client.aclient, name)
    for name in ("query_points", "query_points_groups", "facet", "optimize", "migrate", "closed"):
        assert hasattr(client, name)
        assert hasattr(client.aclient, name)
    with pytest.raises(
        InputError, match=r"list_snapshots\(\) is not supported by the embedded store"
    ):
        client.list_snapshots("docs")  # type: ignore[attr-defined]


# --- settings at random -------------------------------------------------------------------------


def random_settings(generator: random.Random) -> dict[str, Any]:
    """Return settings that a server takes, many of them at their bounds."""
    pick = generator.choice
    hnsw = qm.HnswConfigDiff(
        m=pick([None, 0, 1, 2, 64]),
        ef_construct=pick([None, 4, 65_536]),
        full_scan_threshold=pick([None, 10, 2**40]),
        on_disk=pick([None, True]),
        payload_m=pick([None, 0, 1, 16]),
    )
    quantization = [
        None,
        qm.ScalarQuantization(
            scalar=qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8, quantile=pick([None, 0.5]))
        ),
        qm.ProductQuantization(
            product=qm.ProductQuantizationConfig(compression=pick(list(qm.CompressionRatio)))
        ),
        qm.BinaryQuantization(
            binary=qm.BinaryQuantizationConfig(encoding=pick(list(qm.BinaryQuantizationEncoding)))
        ),
    ]
    dense = qm.VectorParams(
        size=pick([1, 2, 3, 17]),
        distance=pick(list(qm.Distance)),
        datatype=pick([None, *qm.Datatype]),
        on_disk=pick([None, True, False]),
        hnsw_config=pick([None, hnsw]),
    )
    sparse = qm.SparseVectorParams(
        modifier=pick([None, qm.Modifier.IDF]),
        index=qm.SparseIndexParams(
            full_scan_threshold=pick([None, 0, 10**9]),
            on_disk=pick([None, True]),
            datatype=pick([None, qm.Datatype.FLOAT16, qm.Datatype.UINT8]),
        ),
    )
    return {
        "vectors_config": {"d": dense},
        "sparse_vectors_config": {"s": sparse},
        "hnsw_config": pick([None, hnsw]),
        "quantization_config": pick(quantization),
        "optimizers_config": qm.OptimizersConfigDiff(
            indexing_threshold=pick([None, 1]), max_segment_size=pick([None, 1])
        ),
    }


@pytest.mark.parametrize(
    "seeds", [range(2), pytest.param(range(2, 300), marks=pytest.mark.endurance)]
)
def test_settings_that_are_taken_can_be_optimized_and_opened_again(
    tmp_path: Path, seeds: range
) -> None:
    for seed in seeds:
        generator = random.Random(seed)
        options = random_settings(generator)
        size = options["vectors_config"]["d"].size
        folder = tmp_path / str(seed)
        with EdgeQdrantClient(folder) as client:
            client.create_collection("docs", **options)
            client.upload_points(
                "docs",
                [
                    qm.PointStruct(
                        id=number,
                        vector={
                            "d": [generator.uniform(-1, 1) for _ in range(size)],
                            "s": qm.SparseVector(indices=[number % 50], values=[1.0]),
                        },
                    )
                    for number in range(200)
                ],
            )
            client.optimize("docs")
            before = everything(client)
        with EdgeQdrantClient(folder) as client:
            assert everything(client) == before
            answer = client.query_points("docs", [0.5] * size, using="d")
            assert len(answer.points) == 10


# --- one answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [qm.Distance.DOT, qm.Distance.EUCLID])
@pytest.mark.parametrize("is_batched", [False, True])
def test_candidates_that_are_scored_anew_come_in_one_order(
    client: EdgeQdrantClient, distance: qm.Distance, is_batched: bool
) -> None:
    """RRF finds pairs of equal scores, and `e` scores in three groups; both limits cut a tie."""
    sizes = {"d": D2, "e": qm.VectorParams(size=2, distance=distance)}
    client.create_collection("ties", sizes, sparse_vectors_config={"s": qm.SparseVectorParams()})
    points = []
    for number in range(40):
        sparse = qm.SparseVector(indices=[1], values=[40.0 - number])
        vectors = {"d": [number + 1.0, 0.0], "e": [1.0, number % 3], "s": sparse}
        points.append(qm.PointStruct(id=number, vector=vectors))
    client.upsert("ties", points)
    word = qm.SparseVector(indices=[1], values=[1.0])
    fused = qm.Prefetch(
        prefetch=[
            qm.Prefetch(query=[1.0, 0.0], using="d", limit=20),
            qm.Prefetch(query=word, using="s", limit=20),
        ],
        query=qm.RrfQuery(rrf=qm.Rrf(k=61)),
        limit=7,
    )
    request = qm.QueryRequest(query=[1.0, 2.0], using="e", prefetch=fused, limit=4)

    def ask() -> list[Any]:
        if is_batched:
            (response,) = client.query_batch_points("ties", [request])
        else:
            response = client.query_points(
                "ties", request.query, using="e", prefetch=fused, limit=request.limit
            )
        return [point.id for point in response.points]

    # The best of the two rankings are 39, 38, 37, 36 and 0, 1, 2, 3; seven of these by id.
    assert [ask() for _ in range(10)] == 10 * [[2, 38, 1, 37]]
