"""Nothing that is acknowledged becomes unreadable: payloads, filters, names and numbers.

Qdrant's core logs what it is told before it looks at it. So each case ends in a kill: what was
acknowledged must be there when the store is opened again, and the rest of the collection with it.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models as qm

from unified_embeddings import EdgeQdrantClient, InputError
from unified_embeddings.stores.edge.limits import (
    FILTER_DEPTH,
    PAYLOAD_DEPTH,
    PREFETCH_DEPTH,
    is_deeper,
)

VECTOR = qm.VectorParams(size=2, distance=qm.Distance.DOT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def client(folder: Path) -> Iterator[EdgeQdrantClient]:
    with EdgeQdrantClient(folder) as client:
        fill(client)
        yield client


def fill(client: EdgeQdrantClient) -> None:
    client.create_collection(
        "docs",
        vectors_config={"d": VECTOR},
        sparse_vectors_config={"s": qm.SparseVectorParams()},
    )
    client.upsert("docs", [point(number, {"number": number}) for number in (1, 2, 3)])


def point(number: int, payload: dict[str, Any]) -> qm.PointStruct:
    return qm.PointStruct.model_construct(id=number, vector={"d": [1.0, 2.0]}, payload=payload)


def killed_after(folder: Path, write: Callable[[EdgeQdrantClient], None]) -> EdgeQdrantClient:
    """Write in another process that is killed afterwards; return the store opened again.

    Raises:
        AssertionError: If writing raised anything but an InputError.
    """
    process = os.fork()
    if process == 0:
        try:
            client = EdgeQdrantClient(folder)
            fill(client)
            write(client)
        except BaseException:
            os._exit(1)
        os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status), "writing raised an error"
    return EdgeQdrantClient(folder)


def nested(depth: int, shape: str, inner: Any = "leaf") -> Any:
    """Return a value of this many dicts or lists, or of both in turn, in one another."""
    value = inner
    for level in range(depth):
        is_dict = shape == "dict" or (shape == "mixed" and level % 2)
        value = {"a": value} if is_dict else [value]
    return value


def payloads(client: EdgeQdrantClient) -> dict[Any, Any]:
    points, _ = client.scroll("docs", limit=10_000)
    return {point.id: point.payload for point in points}


# --- depth --------------------------------------------------------------------------------------

SHAPES = ("dict", "list", "mixed")


def write_deep(client: EdgeQdrantClient, depth: int) -> list[Any]:
    """Store payloads of this many levels in every way there is; return what points 10 to 12 have.

    Ways that are refused leave nothing.
    """
    values = [{"n": nested(depth - 1, shape)} for shape in SHAPES]
    for number, value in enumerate(values):
        client.upsert("docs", [point(10 + number, value)])
    client.upload_points("docs", [point(20, values[0])])
    batch = qm.Batch.model_construct(ids=[21], vectors={"d": [[1.0, 2.0]]}, payloads=[values[1]])
    client.upsert("docs", batch)
    client.set_payload("docs", values[2], [1])
    client.set_payload("docs", {"x": nested(depth - 3, "dict")}, [2], key="a.b")
    client.set_payload("docs", {"x": nested(depth - 3, "list")}, [2], key="c[0]")
    client.overwrite_payload("docs", values[0], qm.Filter(must=[qm.HasIdCondition(has_id=[3])]))
    return values


def test_the_deepest_payloads_that_are_taken_survive_a_kill(folder: Path) -> None:
    def write(client: EdgeQdrantClient) -> None:
        write_deep(client, PAYLOAD_DEPTH)

    values = [{"n": nested(PAYLOAD_DEPTH - 1, shape)} for shape in SHAPES]
    with killed_after(folder, write) as client:
        stored = payloads(client)
        assert [stored[number] for number in (10, 11, 12, 20, 21, 3)] == [
            *values, values[0], values[1], values[0],
        ]  # fmt: skip
        assert stored[1] == {"number": 1, **values[2]}
        assert stored[2]["a"] == {"b": {"x": nested(PAYLOAD_DEPTH - 3, "dict")}}
        assert client.optimize("docs") in (True, False)
        assert payloads(client) == stored


@pytest.mark.parametrize("depth", [PAYLOAD_DEPTH + 1, 126, 253, 1_000, 100_000])
def test_a_deeper_payload_is_refused_and_nothing_is_stored(
    client: EdgeQdrantClient, folder: Path, depth: int
) -> None:
    before = payloads(client)
    calls: list[Callable[[Any], object]] = [
        lambda value: client.upsert("docs", [point(9, {"n": value})]),
        lambda value: client.upsert("docs", [point(8, {}), point(9, {"n": value})]),
        lambda value: client.upload_points("docs", [point(9, {"n": value})]),
        lambda value: client.set_payload("docs", {"n": value}, [1]),
        lambda value: client.overwrite_payload("docs", {"n": value}, [1]),
        lambda value: client.update_collection("docs", metadata={"n": value}),
        lambda value: client.create_collection("x", {"d": VECTOR}, metadata={"n": value}),
    ]
    for shape in SHAPES:
        value = nested(depth - 1, shape)
        for call in calls:
            with pytest.raises(InputError, match="nested"):
                call(value)
    assert payloads(client) == before
    assert not client.collection_exists("x")
    client.close()
    with EdgeQdrantClient(folder) as again:
        assert payloads(again) == before


@pytest.mark.parametrize("key", ["a.b.c", "a[0][1]", '"a.b".c', '"a[0]"', "a[].b"])
def test_the_depth_at_a_key_counts_its_levels(client: EdgeQdrantClient, key: str) -> None:
    with pytest.raises(InputError, match="nested"):
        client.set_payload("docs", {"x": nested(PAYLOAD_DEPTH - 1, "dict")}, [1], key=key)
    assert payloads(client)[1] == {"number": 1}


def test_a_payload_that_contains_itself_is_refused(client: EdgeQdrantClient) -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = [loop]
    for write in (
        lambda: client.upsert("docs", [point(9, loop)]),
        lambda: client.set_payload("docs", loop, [1]),
        lambda: client.update_collection("docs", metadata=loop),
    ):
        with pytest.raises(InputError, match=r"Circular|nested"):
            write()


def deep_filter(filters: int) -> qm.Filter:
    """Return filters in one another that the points with an odd number match, if their number is.

    Each one negates what is in it.
    """
    inner: Any = qm.FieldCondition(key="number", match=qm.MatchAny(any=[1, 3]))
    for _ in range(filters):
        inner = qm.Filter.model_construct(must_not=[inner], must=None, should=None, min_should=None)
    assert isinstance(inner, qm.Filter)
    return inner


def test_a_deletion_by_the_deepest_filter_that_is_taken_survives_a_kill(folder: Path) -> None:
    deepest = next(n for n in range(100, 0, -1) if not is_deeper(deep_filter(n), FILTER_DEPTH))

    def write(client: EdgeQdrantClient) -> None:
        is_even = deepest % 2 == 0
        client.delete("docs", deep_filter(deepest if is_even else deepest - 1))
        client.upsert("docs", [point(2, {"new": 2})], update_filter=deep_filter(deepest - 1))
        client.set_payload("docs", {"seen": 1}, deep_filter(deepest - deepest % 2 - 1))

    with killed_after(folder, write) as client:
        assert set(payloads(client)) == {2}


@pytest.mark.parametrize("filters", [63, 130, 5_000])
def test_a_filter_that_is_too_deep_is_refused_everywhere(
    client: EdgeQdrantClient, filters: int
) -> None:
    deep = deep_filter(filters)
    selector = qm.FilterSelector.model_construct(filter=deep, shard_key=None)
    vector = qm.PointVectors(id=1, vector={"d": [1, 1]})
    calls: list[Callable[[], object]] = [
        lambda: client.delete("docs", deep),
        lambda: client.delete("docs", selector),
        lambda: client.set_payload("docs", {"a": 1}, deep),
        lambda: client.overwrite_payload("docs", {}, deep),
        lambda: client.delete_payload("docs", ["number"], selector),
        lambda: client.clear_payload("docs", deep),
        lambda: client.delete_vectors("docs", ["d"], deep),
        lambda: client.upsert("docs", [point(1, {})], update_filter=deep),
        lambda: client.update_vectors("docs", [vector], update_filter=deep),
        lambda: client.scroll("docs", scroll_filter=deep),
        lambda: client.count("docs", count_filter=deep),
        lambda: client.query_points("docs", query=[1.0, 1.0], using="d", query_filter=deep),
    ]
    for call in calls:
        with pytest.raises(InputError, match="nested too deeply"):
            call()
    assert payloads(client) == {number: {"number": number} for number in (1, 2, 3)}


def test_filters_and_prefetches_that_contain_themselves_are_refused(
    client: EdgeQdrantClient,
) -> None:
    loop = qm.Filter(must=[])
    loop.must = [loop]
    with pytest.raises(InputError, match="nested"):
        client.delete("docs", loop)
    prefetch = qm.Prefetch(query=[1.0, 1.0], using="d")
    prefetch.prefetch = [prefetch]
    with pytest.raises(InputError, match="nested"):
        client.query_points("docs", query=[1.0, 1.0], using="d", prefetch=prefetch)
    assert client.count("docs").count == 3


def test_prefetches_may_be_nested_up_to_a_limit(client: EdgeQdrantClient) -> None:
    prefetch = None
    for _ in range(PREFETCH_DEPTH):
        prefetch = qm.Prefetch(query=[1.0, 1.0], using="d", prefetch=prefetch)
    answer = client.query_points("docs", query=[1.0, 1.0], using="d", prefetch=prefetch)
    assert len(answer.points) == 3
    deeper = qm.Prefetch(query=[1.0, 1.0], using="d", prefetch=prefetch)
    with pytest.raises(InputError, match="prefetches are nested"):
        client.query_points("docs", query=[1.0, 1.0], using="d", prefetch=deeper)


def depth_by_recursion(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_by_recursion, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_by_recursion, value), default=0)
    return 0


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON, st.integers(0, 6))
def test_depth_is_what_a_recursion_counts(value: Any, limit: int) -> None:
    assert is_deeper(value, limit) == (depth_by_recursion(value) > limit)


# --- values -------------------------------------------------------------------------------------

HOSTILE: list[Any] = [
    {"": 1, "a.b": 2, "\0": 3, '"': 4, "a[0]": 5, "é\u2028": 6, "x" * 5_000: 7},
    {"$serde_json::private::Number": "1"},
    {"n": {"$serde_json::private::RawValue": "{"}},
    {"f": [1e308, 5e-324, -0.0, 1e-7, 123456789.123456789, 1e22, 2.0**63, 0.1 + 0.2]},
    {"i": [2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0, -1]},
    {"t": ["\ufeff", "\uffff", "\U0010ffff", "\r\n\t\x0b\x1f\x7f", "\\u0000", "a" * 100_000]},
    {"e": [{}, [], "", None, False, [[]], [{}], {"": {"": []}}]},
]


@given(st.lists(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON)))
def test_any_json_is_read_back_as_it_was(payloads_given: list[dict[str, Any]]) -> None:
    """Through the pipeline to the core's types; what survives on disk, below, is a sample of it."""
    from unified_embeddings.stores.edge.points import to_json_payload

    for payload in payloads_given:
        content, size = to_json_payload(payload)
        assert same(content, payload)
        assert size > 0


def same(one: Any, other: Any) -> bool:
    """Compare with types: 1 is not 1.0, nor True, and -0.0 is not 0.0.

    The core, like a server, may read a float's last digit differently.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        is_close = math.isclose(one, other, rel_tol=1e-15, abs_tol=0)
        return is_close and math.copysign(1, one) == math.copysign(1, other)
    return type(one) is type(other) and one == other


def test_hostile_values_survive_a_kill_and_a_reload(folder: Path) -> None:
    generator = np.random.default_rng(0)
    random_floats = generator.integers(0, 2**63, 2_000, dtype=np.uint64).view(np.float64)
    floats = [value for value in random_floats.tolist() if math.isfinite(value)]
    values = [*HOSTILE, {"random": floats}]

    def write(client: EdgeQdrantClient) -> None:
        client.upsert("docs", [point(100 + n, value) for n, value in enumerate(values)])
        client.set_payload("docs", values[0], [1])

    with killed_after(folder, write) as client:
        stored = payloads(client)
    for number, value in enumerate(values):
        assert same(stored[100 + number], value), value
    with EdgeQdrantClient(folder) as client:
        assert payloads(client) == stored


def test_numpys_numbers_in_a_payload_are_stored_as_numbers(client: EdgeQdrantClient) -> None:
    payload = {
        "i": np.int64(7),
        "f": np.float32(0.5),
        "b": np.bool_(True),
        "deep": [{"u": np.uint64(2**64 - 1)}],
    }
    client.upsert("docs", [point(5, payload)])
    assert same(payloads(client)[5], {"i": 7, "f": 0.5, "b": True, "deep": [{"u": 2**64 - 1}]})
    for bad in (np.float32("nan"), np.array([1, 2]), object(), 2**64):
        with pytest.raises(InputError, match="JSON"):
            client.upsert("docs", [point(6, {"bad": bad})])
    assert 6 not in payloads(client)


def test_a_collection_without_its_last_vector_can_be_read(folder: Path) -> None:
    def write(client: EdgeQdrantClient) -> None:
        client.delete_vector_name("docs", "d")
        client.delete_vector_name("docs", "s")

    with killed_after(folder, write) as client:
        assert payloads(client) == {number: {"number": number} for number in (1, 2, 3)}
