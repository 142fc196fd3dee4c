"""Copying collections: real Qdrant cores on both ends, and the command as people use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from command import Ended, environment, finish, run_here
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.stores.copying import CopyReport, check_copy, copy_collection
from unified_embeddings.stores.edge.catalog import is_local_mode_folder
from unified_embeddings.stores.opening import open_folder, open_local_mode_folder

Distance = qm.Distance
OURS = {"fingerprint": "bge-m3:0123", "model": "BAAI/bge-m3", "revision": "abc"}
SIZE = 4


class Server:
    """A Qdrant core behind the interface of a client that is not in this process.

    It records its requests, and can report settings that the core in this process lacks.
    """

    _client = None  # local clients are recognised by this attribute

    def __init__(self, info: Callable[[qm.CollectionInfo], None] = lambda _: None) -> None:
        self.core = QdrantClient(":memory:")
        self.created: dict[str, Any] = {}
        self.indexes: dict[str, Any] = {}
        self.upserts: list[list[qm.PointStruct]] = []
        self.read_with_vectors: list[Any] = []
        self._info = info

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def create_collection(self, name: str, **options: Any) -> bool:
        self.created = options
        return self.core.create_collection(name, **options)

    def get_collection(self, name: str) -> qm.CollectionInfo:
        info = self.core.get_collection(name)
        self._info(info)
        info.payload_schema |= {
            field: qm.PayloadIndexInfo(
                data_type=getattr(schema, "type", schema),
                params=None if isinstance(schema, qm.PayloadSchemaType) else schema,
                points=0,
            )
            for field, schema in self.indexes.items()
        }
        return info

    def create_payload_index(self, name: str, field: str, field_schema: Any) -> None:
        self.indexes[field] = field_schema

    def upsert(self, name: str, points: list[qm.PointStruct]) -> None:
        self.upserts.append(points)
        self.core.upsert(name, points)

    def retrieve(self, name: str, ids: Any, **options: Any) -> Any:
        if options.get("with_vectors"):
            self.read_with_vectors += ids
        return self.core.retrieve(name, ids, **options)


def copied(source: Any, target: Any, name: str = "docs", **options: Any) -> CopyReport:
    return copy_collection(source, target, name, **options)


def everything(client: Any, name: str = "docs") -> dict[Any, tuple[Any, Any]]:
    """Return id → payload and vectors of every point."""
    records, _ = client.scroll(name, limit=100_000, with_vectors=True)
    return {record.id: (record.payload, record.vector) for record in records}


def memory(name: str = "docs", points: int = 0, **options: Any) -> QdrantClient:
    """Return a core with a collection like ours, holding `points` points with ids from 1."""
    client = QdrantClient(":memory:")
    fill(client, name, points, **options)
    return client


def fill(client: Any, name: str, points: int, *, model: Any = OURS, **options: Any) -> None:
    defaults: dict[str, Any] = {
        "vectors_config": {"text-dense": qm.VectorParams(size=SIZE, distance=Distance.COSINE)},
        "sparse_vectors_config": {"text-sparse-new": qm.SparseVectorParams()},
        "metadata": None if model is None else {"unified_embeddings": model},
    }
    client.create_collection(name, **(defaults | options))
    rng = np.random.default_rng(0)
    made = [
        qm.PointStruct(
            id=i,
            vector={
                "text-dense": rng.normal(size=SIZE).astype(np.float32).tolist(),
                "text-sparse-new": qm.SparseVector(indices=[i, i + 5], values=[0.5, 1.25]),
            },
            payload={"text": f"Foxes number {i}.", "page": i},
        )
        for i in range(1, points + 1)
    ]
    if made:
        client.upsert(name, made)


class TestPoints:
    def test_the_copy_holds_the_same_points_and_says_so(self) -> None:
        source, target = memory(points=30), QdrantClient(":memory:")
        report = copied(source, target, batch=7)
        assert everything(target).keys() == everything(source).keys()
        assert (report.collection, report.target, report.created) == ("docs", "docs", True)
        assert (report.copied, report.already_there, report.total) == (30, 0, 30)
        assert report.seconds >= 0
        assert len(everything(source)) == 30, "the source is left as it was"

    def test_an_empty_collection_is_copied_too(self) -> None:
        target = QdrantClient(":memory:")
        report = copied(memory(), target)
        assert (report.copied, report.total, report.created) == (0, 0, True)
        assert target.collection_exists("docs")

    def test_cosine_vectors_keep_their_direction(self) -> None:
        source, target = memory(points=20), QdrantClient(":memory:")
        copied(source, target)
        after = everything(target)
        for point_id, (payload, vectors) in everything(source).items():
            assert after[point_id][0] == payload
            np.testing.assert_allclose(
                after[point_id][1]["text-dense"], vectors["text-dense"], atol=1e-6, rtol=0
            )
            assert after[point_id][1]["text-sparse-new"] == vectors["text-sparse-new"]

    def test_more_points_than_a_page_of_ids(self) -> None:
        source, target = memory(points=2_300), Server()
        steps: list[int] = []
        totals: list[int] = []
        report = copied(source, target, on_total=totals.append, on_points=steps.append)
        assert (report.copied, totals, sum(steps)) == (2_300, [2_300], 2_300)
        assert everything(target.core).keys() == set(range(1, 2_301))
        assert max(len(points) for points in target.upserts) == 256

    def test_an_unnamed_vector_along_with_a_sparse_one(self) -> None:
        source, target = QdrantClient(":memory:"), QdrantClient(":memory:")
        source.create_collection(
            "docs",
            vectors_config=qm.VectorParams(size=2, distance=Distance.DOT),
            sparse_vectors_config={"words": qm.SparseVectorParams()},
        )
        words = qm.SparseVector(indices=[3], values=[0.5])
        source.upsert(
            "docs",
            [
                qm.PointStruct(id=1, vector=[3.0, 4.0], payload={}),
                qm.PointStruct(id=2, vector={"": [5.0, 6.0], "words": words}, payload={}),
                qm.PointStruct(id=3, vector={"words": words}, payload={}),
                qm.PointStruct(id=4, vector={}, payload={"only": "payload"}),
            ],
        )
        copied(source, target)
        assert everything(target) == everything(source)
        assert everything(target)[1][1] == [3.0, 4.0]

    def test_a_collection_can_be_copied_within_one_place_under_another_name(self) -> None:
        client = memory(points=5)
        report = copied(client, client, target_name="again")
        assert (report.target, report.total) == ("again", 5)
        assert everything(client, "again").keys() == everything(client).keys()

    def test_a_copy_onto_itself_is_refused(self) -> None:
        client = memory(points=1)
        with pytest.raises(InputError, match="onto itself"):
            copied(client, client)


def floats(size: int) -> st.SearchStrategy[list[float]]:
    number = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
    return st.lists(number, min_size=size, max_size=size)


def sparse() -> st.SearchStrategy[qm.SparseVector]:
    weights = st.dictionaries(
        st.integers(0, 2**32 - 1), st.floats(-1e6, 1e6, width=32, allow_subnormal=False), max_size=6
    )
    return weights.map(lambda one: qm.SparseVector(indices=list(one), values=list(one.values())))


IDS = st.one_of(st.integers(0, 2**64 - 1), st.uuids().map(str))
PAYLOADS = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)  # fmt: skip
VECTORS = st.fixed_dictionaries(
    {},
    optional={
        "dense": floats(3),
        "euclid": floats(2),
        "words": sparse(),
        "tokens": st.lists(floats(2), min_size=1, max_size=5),
    },
)
POINTS = st.dictionaries(IDS, st.tuples(VECTORS, PAYLOADS), max_size=12)


@settings(max_examples=60)
@given(
    points=POINTS,
    batch=st.integers(1, 5),
    request_bytes=st.integers(1, 3_000),
    there=st.sets(st.integers(0, 11)),
)
def test_whatever_the_points_are_they_arrive_bit_for_bit(
    points: dict[Any, tuple[Any, Any]], batch: int, request_bytes: int, there: set[int]
) -> None:
    source, target = QdrantClient(":memory:"), QdrantClient(":memory:")
    source.create_collection(
        "docs",
        vectors_config={
            "dense": qm.VectorParams(size=3, distance=Distance.DOT),
            "euclid": qm.VectorParams(size=2, distance=Distance.EUCLID),
            "tokens": qm.VectorParams(
                size=2,
                distance=Distance.DOT,
                multivector_config=qm.MultiVectorConfig(
                    comparator=qm.MultiVectorComparator.MAX_SIM
                ),
            ),
        },
        sparse_vectors_config={"words": qm.SparseVectorParams()},
    )
    made = [
        qm.PointStruct(id=point_id, vector=vectors, payload=payload)
        for point_id, (vectors, payload) in points.items()
    ]
    if made:
        source.upsert("docs", made)
    sizes = {"batch": batch, "request_bytes": request_bytes}
    first = [point.id for i, point in enumerate(made) if i in there]
    copied(QdrantClientOf(source, first), target, **sizes)  # a copy that came so far
    report = copied(source, target, **sizes)
    assert everything(target) == everything(source)
    assert (report.already_there, report.total) == (len(first), len(points))


class QdrantClientOf:
    """A client's collection with only some of its points."""

    _client = None

    def __init__(self, client: QdrantClient, ids: list[Any]) -> None:
        self._core = client
        self._only = qm.Filter(must=[qm.HasIdCondition(has_id=ids)])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def scroll(self, name: str, **options: Any) -> Any:
        return self._core.scroll(name, scroll_filter=self._only, **options)


class TestResuming:
    def test_points_that_the_target_has_are_skipped_and_not_read(self) -> None:
        source, target = Server(), memory(points=2)
        fill(source, "docs", 5)
        target.set_payload("docs", {"text": "changed there"}, points=[1])
        report = copied(source, target)
        assert (report.copied, report.already_there, report.total) == (3, 2, 5)
        assert report.created is False
        assert sorted(source.read_with_vectors) == [3, 4, 5]
        assert everything(target)[1][0]["text"] == "changed there"

    def test_overwrite_sends_all(self) -> None:
        source, target = memory(points=5), memory(points=2)
        target.set_payload("docs", {"text": "changed there"}, points=[1])
        report = copied(source, target, overwrite=True)
        assert (report.copied, report.already_there, report.total) == (5, 0, 5)
        payloads = {key: payload for key, (payload, _) in everything(target).items()}
        assert payloads == {key: payload for key, (payload, _) in everything(source).items()}

    def test_other_points_of_the_target_are_kept(self) -> None:
        source, target = memory(points=2), memory(points=4)
        report = copied(source, target)
        assert (report.already_there, report.total) == (2, 2)
        assert len(everything(target)) == 4

    def test_a_copy_that_failed_midway_is_resumed(self) -> None:
        class Failing(Server):
            def upsert(self, name: str, points: list[qm.PointStruct]) -> None:
                if len(self.upserts) == 3:
                    raise ConnectionError("the line went dead")
                super().upsert(name, points)

        source, target = memory(points=100), Failing()
        with pytest.raises(StoreError, match=r"the same copy again.*the line went dead") as raised:
            copied(source, target, batch=16)
        assert (raised.value.collection, "writing" in raised.value.operation) == ("docs", True)
        target.upserts = []
        before = len(everything(target.core))
        assert 0 < before < 100
        report = copied(source, target.core, batch=16)
        assert (report.copied, report.already_there) == (100 - before, before)
        assert everything(target.core).keys() == everything(source).keys()

    def test_points_that_the_target_lost_are_an_error(self) -> None:
        class Losing(Server):
            def upsert(self, name: str, points: list[qm.PointStruct]) -> None:
                super().upsert(name, [point for point in points if point.id != 3])

        with pytest.raises(
            StoreError, match=r"1 of 5 points just written are not in the target.*3"
        ):
            copied(memory(points=5), Losing(), batch=2)

    def test_a_source_that_changes_meanwhile_is_no_error(self) -> None:
        source, target = memory(points=50), QdrantClient(":memory:")

        def change(_: int) -> None:
            source.delete("docs", points_selector=[49, 50])
            source.upsert("docs", [qm.PointStruct(id=1_000, vector={}, payload={})])

        report = copied(source, target, batch=4, on_points=change)
        assert report.total == 48
        assert everything(target).keys() == set(range(1, 49))


class TestRequests:
    def test_no_request_is_above_its_size_unless_one_point_alone_is(self) -> None:
        source, target = QdrantClient(":memory:"), Server()
        multi = qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM)
        source.create_collection(
            "docs",
            vectors_config={
                "colbert": qm.VectorParams(
                    size=32, distance=Distance.COSINE, multivector_config=multi
                )
            },
        )
        rng = np.random.default_rng(0)
        rows = [1, 1, 60, 2, 400, 1, 30, 30, 30, *[1] * 60]  # 400 rows: about 270 kB as JSON
        source.upsert(
            "docs",
            [
                qm.PointStruct(id=i, vector={"colbert": rng.normal(size=(n, 32)).tolist()})
                for i, n in enumerate(rows)
            ],
        )
        report = copied(source, target, request_bytes=100_000)
        assert report.total == len(rows)
        sizes = [sum(len(one.model_dump_json()) for one in points) for points in target.upserts]
        for size, points in zip(sizes, target.upserts, strict=True):
            assert size <= 100_000 or [point.id for point in points] == [4]
        assert max(len(points) for points in target.upserts) == 16

    def test_a_page_with_big_points_after_small_ones_is_split(self) -> None:
        source, target = memory(points=200), Server()
        for i in range(100, 120):
            source.set_payload("docs", {"text": "ж" * 20_000}, points=[i])
        copied(source, target, request_bytes=100_000)
        sizes = [
            sum(len(one.model_dump_json().encode()) for one in points) for points in target.upserts
        ]
        assert max(sizes) <= 100_000
        assert everything(target.core).keys() == everything(source).keys()


class TestSettings:
    def test_vectors_sparse_vectors_and_metadata_are_copied(self) -> None:
        source, target = QdrantClient(":memory:"), QdrantClient(":memory:")
        source.create_collection(
            "docs",
            vectors_config={
                "dense": qm.VectorParams(
                    size=8,
                    distance=Distance.EUCLID,
                    datatype=qm.Datatype.FLOAT16,
                    on_disk=True,
                    hnsw_config=qm.HnswConfigDiff(m=7),
                    quantization_config=qm.ScalarQuantization(
                        scalar=qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8)
                    ),
                ),
                "colbert": qm.VectorParams(
                    size=2,
                    distance=Distance.DOT,
                    hnsw_config=qm.HnswConfigDiff(m=0),
                    multivector_config=qm.MultiVectorConfig(
                        comparator=qm.MultiVectorComparator.MAX_SIM
                    ),
                ),
            },
            sparse_vectors_config={
                "words": qm.SparseVectorParams(
                    modifier=qm.Modifier.IDF,
                    index=qm.SparseIndexParams(on_disk=True, full_scan_threshold=99),
                )
            },
            metadata={"unified_embeddings": OURS, "owner": "library"},
        )
        copied(source, target)
        before, after = (client.get_collection("docs").config for client in (source, target))
        assert after.params.vectors == before.params.vectors
        assert after.params.sparse_vectors == before.params.sparse_vectors
        assert after.metadata == {"unified_embeddings": OURS, "owner": "library"}

    def test_settings_of_a_server_are_copied_to_another_server(self) -> None:
        def info(info: qm.CollectionInfo) -> None:
            info.config.hnsw_config.m = 48
            info.config.hnsw_config.on_disk = True
            info.config.params.on_disk_payload = True
            info.config.params.shard_number = 6
            info.config.quantization_config = qm.BinaryQuantization(
                binary=qm.BinaryQuantizationConfig(always_ram=True)
            )

        text = qm.TextIndexParams(type=qm.TextIndexType.TEXT, tokenizer=qm.TokenizerType.WORD)
        source, target = Server(info), Server()
        fill(source, "docs", 3)
        source.indexes = {"page": qm.PayloadSchemaType.INTEGER, "text": text}
        copied(source, target, replication_factor=2)
        assert target.created["hnsw_config"].m == 48
        assert target.created["hnsw_config"].on_disk is True
        assert target.created["on_disk_payload"] is True
        assert target.created["quantization_config"].binary.always_ram is True
        assert target.created["replication_factor"] == 2
        assert "shard_number" not in target.created, "the source's installation is not the target's"
        assert target.indexes == source.indexes
        request = {
            key.removesuffix("_config") if "vectors" in key else key: value
            for key, value in target.created.items()
        }
        assert qm.CreateCollection(**request), "a server would know every one of them"

    def test_settings_that_a_folder_lacks_are_left_to_the_server(self) -> None:
        target = Server()
        copied(memory(points=1), target)
        assert target.created.keys() == {"vectors_config", "sparse_vectors_config", "metadata"}

    def test_a_folder_of_ours_gets_the_index_our_collections_have_on_a_server(self) -> None:
        target, foreign = Server(), Server()
        copied(memory(points=1), target)
        assert target.indexes == {"doc_id": qm.PayloadSchemaType.KEYWORD}
        copied(memory(points=1, model=None), foreign)
        assert foreign.indexes == {}

    def test_indexes_that_an_interrupted_copy_left_out_are_created(self) -> None:
        source, target = Server(), Server()
        fill(source, "docs", 3)
        fill(target, "docs", 3)
        source.indexes = dict.fromkeys(("page", "text"), qm.PayloadSchemaType.KEYWORD)
        target.indexes = {"page": qm.PayloadSchemaType.INTEGER}  # its owner's own choice
        copied(source, target)
        assert target.indexes == {
            "page": qm.PayloadSchemaType.INTEGER,
            "text": qm.PayloadSchemaType.KEYWORD,
        }

    def test_a_servers_settings_are_refused_for_a_folder(self) -> None:
        target = QdrantClient(":memory:")
        with pytest.raises(InputError, match="shard_number: only a Qdrant server"):
            copied(memory(points=1), target, shard_number=2)
        assert target.get_collections().collections == []

    def test_a_target_that_keeps_no_metadata_is_refused_before_any_point_is_sent(self) -> None:
        class Old(Server):
            def create_collection(self, name: str, **options: Any) -> bool:
                options.pop("metadata")
                return super().create_collection(name, **options)

        target = Old()
        with pytest.raises(StoreError, match="model: bge-m3:0123 in the source, not recorded"):
            copied(memory(points=1), target)
        assert target.upserts == []

    def test_shards_by_key_are_refused(self) -> None:
        def info(info: qm.CollectionInfo) -> None:
            info.config.params.sharding_method = qm.ShardingMethod.CUSTOM

        source = Server(info)
        fill(source, "docs", 1)
        with pytest.raises(StoreError, match="automatic sharding"):
            copied(source, QdrantClient(":memory:"))


def dense(**options: Any) -> dict[str, Any]:
    given = {"size": SIZE, "distance": Distance.COSINE} | options
    return {"vectors_config": {"text-dense": qm.VectorParams(**given)}}


class TestFit:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (dense(size=5), "vector 'text-dense': 4 x Cosine, float32 in the source, 5 x Cosine"),
            (dense(distance=Distance.DOT), "4 x Dot, float32 in the target"),
            (dense(datatype=qm.Datatype.UINT8), "4 x Cosine, uint8 in the target"),
            (
                dense(
                    multivector_config=qm.MultiVectorConfig(
                        comparator=qm.MultiVectorComparator.MAX_SIM
                    )
                ),
                "multi-vector max_sim in the target",
            ),
            (
                {"vectors_config": qm.VectorParams(size=SIZE, distance=Distance.COSINE)},
                "vector '': none in the source, 4 x Cosine, float32 in the target",
            ),
            ({"sparse_vectors_config": None}, "'text-sparse-new': modifier none in the source"),
            (
                {
                    "sparse_vectors_config": {
                        "text-sparse-new": qm.SparseVectorParams(modifier=qm.Modifier.IDF)
                    }
                },
                "modifier idf in the target",
            ),
            (
                {"model": OURS | {"fingerprint": "other:9"}},
                "model: bge-m3:0123 in the source, other:9 in the target",
            ),
            ({"model": None}, "model: bge-m3:0123 in the source, not recorded in the target"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_collection_of_another_shape_is_refused_and_nothing_written(
        self, options: dict[str, Any], said: str
    ) -> None:
        target = memory(**options)
        with pytest.raises(StoreError) as raised:
            copied(memory(points=3), target)
        assert said in str(raised.value)
        assert "another name" in str(raised.value)
        assert everything(target) == {}

    def test_the_same_model_in_another_folder_fits(self) -> None:
        target = memory(model=OURS | {"model": "/models/bge-m3", "revision": None})
        assert copied(memory(points=3), target).copied == 3

    def test_a_default_equals_the_same_value_spelled_out(self) -> None:
        target = memory(
            vectors_config={
                "text-dense": qm.VectorParams(
                    size=SIZE, distance=Distance.COSINE, datatype=qm.Datatype.FLOAT32
                )
            },
            sparse_vectors_config={
                "text-sparse-new": qm.SparseVectorParams(modifier=qm.Modifier.NONE)
            },
        )
        assert copied(memory(points=3), target).copied == 3

    def test_a_check_alone_writes_nothing(self) -> None:
        target = QdrantClient(":memory:")
        check_copy(memory(points=3), target, "docs")
        assert target.get_collections().collections == []

    def test_an_unknown_name_is_an_error(self) -> None:
        source = memory(points=1)
        fill(source, "letters", 1)
        with pytest.raises(StoreError, match=r"'dosc'.*not exist.*'docs', 'letters'"):
            copied(source, QdrantClient(":memory:"), "dosc")


def alias(client: Any, name: str, collection: str = "docs") -> None:
    made = qm.CreateAlias(collection_name=collection, alias_name=name)
    client.update_collection_aliases([qm.CreateAliasOperation(create_alias=made)])


def aliases_of(client: Any) -> dict[str, str]:
    return {one.alias_name: one.collection_name for one in client.get_aliases().aliases}


class TestAliases:
    @pytest.fixture
    def source(self) -> QdrantClient:
        source = memory(points=2)
        fill(source, "other", 1)
        alias(source, "live")
        alias(source, "current")
        alias(source, "elsewhere", "other")
        return source

    def test_are_reported_and_not_copied(self, source: QdrantClient) -> None:
        target = QdrantClient(":memory:")
        report = copied(source, target)
        assert (report.aliases, report.aliases_copied) == (("current", "live"), False)
        assert aliases_of(target) == {}

    def test_are_copied_when_asked_for(self, source: QdrantClient) -> None:
        target = QdrantClient(":memory:")
        report = copied(source, target, target_name="docs-2", aliases=True)
        assert (report.aliases, report.aliases_copied) == (("current", "live"), True)
        assert aliases_of(target) == {"current": "docs-2", "live": "docs-2"}
        again = copied(source, target, target_name="docs-2", aliases=True)
        assert (again.already_there, again.aliases_copied) == (2, True)

    def test_nothing_to_copy(self) -> None:
        report = copied(memory(points=2), QdrantClient(":memory:"), aliases=True)
        assert (report.aliases, report.aliases_copied) == ((), False)

    def test_one_that_is_in_use_in_the_target_is_not_taken_over(self, source: QdrantClient) -> None:
        target = memory("mine", points=1)
        alias(target, "live", "mine")
        with pytest.raises(StoreError, match=r"'live'.*an alias of 'mine'"):
            copied(source, target, aliases=True)
        assert [one.name for one in target.get_collections().collections] == ["mine"]
        assert aliases_of(target) == {"live": "mine"}

    def test_one_that_is_a_collection_in_the_target(self, source: QdrantClient) -> None:
        with pytest.raises(StoreError, match=r"'live'.*that name is a collection"):
            copied(source, memory("live", points=1), aliases=True)

    def test_an_alias_is_not_a_collection_to_copy(self, source: QdrantClient) -> None:
        with pytest.raises(StoreError, match="an alias of 'docs', copy that"):
            copied(source, QdrantClient(":memory:"), "live")

    def test_nor_a_name_to_copy_to(self, source: QdrantClient) -> None:
        target = memory("mine", points=1)
        alias(target, "docs", "mine")
        with pytest.raises(StoreError, match="an alias of 'mine'; give another name"):
            copied(source, target)
        assert len(everything(target, "mine")) == 1


Run = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QDRANT_FROM_API_KEY", "QDRANT_TO_API_KEY", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `unified-embeddings copy` in this process; it must never print a traceback."""

    def run(*arguments: str | Path) -> Ended:
        return run_here(["copy", *arguments], capsys, monkeypatch)

    return run


def folder(path: Path, **collections: int) -> Path:
    """Make a store with qdrant-client's local mode."""
    client = QdrantClient(path=str(path))
    for name, points in collections.items():
        fill(client, name, points)
    client.close()
    return path


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return folder(tmp_path / "old", docs=12, letters=3)


def stored(path: Path, name: str = "docs") -> dict[Any, tuple[Any, Any]]:
    """Return id → payload and vectors of every point in a folder, local mode's or ours."""
    with closing(
        open_local_mode_folder(path) if is_local_mode_folder(path) else open_folder(path)
    ) as client:
        return everything(client, name)


class TestCommand:
    def test_all_collections_of_a_folder(self, run: Run, old: Path) -> None:
        ended = run("--from", old, "--to", "new", "--json")
        assert (ended.code, ended.err) == (0, "")
        rows = {row["collection"]: row for row in ended.json}
        assert rows.keys() == {"docs", "letters"}
        assert rows["docs"]["copied"] == rows["docs"]["total"] == 12
        assert rows["letters"]["copied"] == 3
        before, after = stored(old), stored(Path("new"))
        assert after.keys() == before.keys()
        for point_id, (payload, vectors) in before.items():
            direction = np.array(vectors["text-dense"])  # an old folder keeps what was given
            direction /= np.linalg.norm(direction)
            copied_vector = np.array(after[point_id][1]["text-dense"])
            copied_vector /= np.linalg.norm(copied_vector)
            np.testing.assert_allclose(copied_vector, direction, atol=1e-6, rtol=0)
            assert after[point_id][0] == payload

    def test_plain_text_says_what_was_done(self, run: Run, old: Path) -> None:
        client = QdrantClient(path=str(old))
        alias(client, "live")
        client.close()
        arguments = ("--from", old, "--to", "new", "-c", "docs", "--as", "handbook")
        ended = run(*arguments)
        assert ended.code == 0
        assert ended.out.startswith(
            "docs as handbook: 12 points copied, 0 already there, 12 in all"
        )
        assert "aliases live not copied (--aliases copies them)" in ended.out
        assert len(ended.out.splitlines()) == 1
        ended = run(*arguments, "--aliases")
        assert "0 points copied, 12 already there, 12 in all" in ended.out
        assert "aliases live copied too" in ended.out

    def test_overwrite(self, run: Run, old: Path) -> None:
        arguments = ("--from", old, "--to", "new", "--json", "-c", "docs")
        run(*arguments)
        assert run(*arguments).json[0]["already_there"] == 12
        assert run(*arguments, "--overwrite").json[0]["copied"] == 12

    def test_only_the_collections_named(self, run: Run, old: Path) -> None:
        ended = run("--from", old, "--to", "new", "--json", "-c", "letters", "-c", "letters")
        assert [row["collection"] for row in ended.json] == ["letters"]

    def test_a_collection_that_does_not_fit_stops_all_before_anything_is_written(
        self, run: Run, old: Path
    ) -> None:
        client = QdrantClient(path="new")
        fill(client, "letters", 0, model=OURS | {"fingerprint": "other:9"})
        client.close()
        ended = run("--from", old, "--to", "new")
        assert (ended.code, ended.out) == (1, "")
        assert "other:9 in the target" in ended.err
        client = QdrantClient(path="new")
        assert [one.name for one in client.get_collections().collections] == ["letters"]
        client.close()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--from", "gone", "--to", "new"), "there is no such folder"),
            (("--from", "papers", "--to", "new"), "holds no collections"),
            (("--from", "old", "--to", "./old/../old/"), "same place"),
            (("--from", "old", "--to", "old", "-c", "docs", "--as", "docs"), "same place"),
            (("--from", "old", "--to", "new", "--as", "x"), "'docs', 'letters'"),
            (("--from", "old", "--to", "new", "-c", "dosc"), "'docs', 'letters'"),
            (("--from", "old", "--to", "new", "--shard-number", "2"), "is a folder"),
            (("--from", "old", "--to", "new", "--write-consistency", "2"), "is a folder"),
            (("--from", "old", "--to", "localhost:6333"), "begins with http://"),
            (("--from", "grpc://there:6334", "--to", "new"), "begins with http://"),
            (("--from", "old", "--to", "http://"), "names no host"),
            (("--from", "old", "--to", "http://there:99999"), "cannot be read"),
            (("--from", "old", "--to", " "), "blank"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_impossible_requests_are_refused_and_nothing_created(
        self, run: Run, old: Path, arguments: tuple[str, ...], said: str
    ) -> None:
        (old.parent / "papers").mkdir()
        (old.parent / "papers" / "notes.md").write_text("Foxes.")
        ended = run(*arguments)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("error: ")
        assert said in ended.err
        made = {path.name for path in old.parent.iterdir()}
        assert made - {"new"} == {"old", "papers"}
        assert [path.name for path in (old.parent / "papers").iterdir()] == ["notes.md"]
        if "new" in made:
            assert not (old.parent / "new" / "collection").exists()

    def test_within_one_folder_under_another_name(self, run: Run, old: Path) -> None:
        ended = run("--from", old, "--to", old, "-c", "docs", "--as", "again", "--json")
        assert (ended.code, ended.json[0]["total"]) == (0, 12)
        assert stored(old, "again").keys() == stored(old).keys()

    def test_a_folder_without_collections(self, run: Run, tmp_path: Path) -> None:
        ended = run("--from", folder(tmp_path / "empty"), "--to", tmp_path / "new")
        assert (ended.code, ended.out) == (1, "")
        assert "there are no collections to copy" in ended.err
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("end", ["--from", "--to"])
    def test_an_unreachable_server_is_an_error(self, run: Run, old: Path, end: str) -> None:
        places = {"--from": str(old), "--to": str(old)} | {end: "http://127.0.0.1:9"}
        ended = run(*(part for pair in places.items() for part in pair), "--shard-number", "1")
        if end == "--from":
            assert "is a folder" in ended.err
            ended = run(*(part for pair in places.items() for part in pair))
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("error: ")
        assert "http://127.0.0.1:9" in ended.err
        assert "refused" in ended.err
        assert "Is the Qdrant server running" in ended.err

    def test_keys_come_from_the_environment_and_are_not_shown(
        self, run: Run, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: dict[str, Any] = {}

        class Client(QdrantClient):
            def __init__(self, **options: Any) -> None:
                given[options["url"]] = options["api_key"]
                super().__init__(":memory:")

        monkeypatch.setattr("qdrant_client.QdrantClient", Client)
        monkeypatch.setenv("QDRANT_FROM_API_KEY", "first-secret")
        monkeypatch.setenv("QDRANT_TO_API_KEY", "second-secret")
        run("--from", "https://one.example", "--to", "https://two.example")
        assert given == {"https://one.example": "first-secret"}, "it is empty: no need of the other"
        ended = run("--from", old, "--to", "https://two.example")
        assert given["https://two.example"] == "second-secret"
        assert "secret" not in ended.out + ended.err
        assert "secret" not in run("--help").out

    @pytest.mark.parametrize("arguments", [(), ("--from", "old"), ("--to", "new"),
        ("--from", "old", "--to", "new", "--shard-number", "0")], ids=" ".join)  # fmt: skip
    def test_wrong_usage(self, run: Run, arguments: tuple[str, ...]) -> None:
        assert run(*arguments).code == 2

    def test_a_folder_in_use_is_an_error(self, run: Run, old: Path) -> None:
        code = (
            "import sys, time\nfrom qdrant_client import QdrantClient\n"
            "client = QdrantClient(path=sys.argv[1])\nprint('open', flush=True)\ntime.sleep(60)"
        )
        holder = subprocess.Popen([sys.executable, "-c", code, old], stdout=subprocess.PIPE)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"open\n"
            ended = run("--from", old, "--to", "new")
        finally:
            holder.kill()
            holder.communicate()
        assert (ended.code, ended.out) == (1, "")
        assert "already accessed" in ended.err


SLOWLY = """
import sys, time
from pathlib import Path
from unified_embeddings.cli import app as cli
from unified_embeddings.stores import copy_points

split_by_size, requests = copy_points.PointReader._split_by_size, []

def slowly(self, records):
    for request in split_by_size(self, records):
        requests.append(request)
        if len(requests) == 5:  # four are stored
            Path("some-are-there").touch()
        time.sleep(0.3)
        yield request

copy_points._IDS_PER_PAGE = 100
copy_points.PointReader._split_by_size = slowly
cli.main()
"""


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_the_same_command_resumes_an_interrupted_copy(
    signal_number: int, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 600
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "old", docs=count)
    arguments = ("--from", "old", "--to", "new", "--json")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "copy", *arguments],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not Path("some-are-there").exists() and process.poll() is None:
        assert time.monotonic() < deadline, "nothing was stored"
        time.sleep(0.01)
    process.send_signal(signal_number)
    first = finish(process)
    assert first.out == "", first.err
    if signal_number == signal.SIGINT:
        assert first.code == 130
        assert first.err == "error: interrupted; run the same command again to resume\n"

    second = run(*arguments).json[0]
    assert second["already_there"] >= 1 + 2 + 4 + 8, "what the first run stored was not kept"
    assert second["copied"] > 0, "the first run was not stopped midway"
    assert (second["total"], second["created"]) == (count, False)
    assert stored(tmp_path / "new").keys() == set(range(1, count + 1))


def test_the_installed_command_prints_json_and_nothing_else(tmp_path: Path) -> None:
    folder(tmp_path / "old", docs=3)
    done = subprocess.run(
        [sys.executable, "-c", "from unified_embeddings.cli.app import main; main()", "copy",
         "--from", "old", "--to", "new", "--json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0]["total"] == 3


def test_ids_of_both_kinds_in_a_folder(tmp_path: Path, run: Run) -> None:
    ids: list[Any] = [0, 2**64 - 1, str(uuid.UUID(int=0)), str(uuid.UUID(int=2**128 - 1))]
    client = QdrantClient(path=str(tmp_path / "old"))
    fill(client, "docs", 0)
    client.upsert("docs", [qm.PointStruct(id=one, vector={}, payload={}) for one in ids])
    client.close()
    assert run("--from", tmp_path / "old", "--to", tmp_path / "new", "--json").json[0]["total"] == 4
    assert stored(tmp_path / "new").keys() == set(ids)


def test_index_settings_of_an_embedded_collection_are_copied(tmp_path: Path) -> None:
    with (
        closing(open_folder(tmp_path / "one")) as source,
        closing(open_folder(tmp_path / "two")) as target,
    ):
        source.create_collection(
            "docs",
            vectors_config=qm.VectorParams(size=2, distance=Distance.DOT),
            hnsw_config=qm.HnswConfigDiff(m=24, ef_construct=200),
        )
        source.create_payload_index("docs", "year", qm.PayloadSchemaType.INTEGER)
        source.upsert("docs", [qm.PointStruct(id=1, vector=[1.0, 2.0])])
        copy_collection(source, target, "docs")
        info = target.get_collection("docs")
        assert info.config.hnsw_config == source.get_collection("docs").config.hnsw_config
        assert info.config.hnsw_config.m == 24
        assert list(info.payload_schema) == ["year"]
