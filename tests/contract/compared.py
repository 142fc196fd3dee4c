"""Tools of the store's contract tests: layouts, random data, and comparing with the oracle.

The oracle is qdrant-client's own in-process mode. Scores may differ by rounding; where scores are
equal the order is free, and so is the choice among them at the limit.
"""

from __future__ import annotations

import copy
import itertools
import json
import uuid
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.stores.edge.client import EdgeQdrantClient

TOLERANCE = 1e-5
EVERYTHING = 1000
"""A limit above the size of every collection here."""

INTS = [0, 1, 2, 7, 2**53 + 1, 2**64 - 1]
UUIDS = [str(uuid.UUID(int=n << 64 | 7)) for n in (0, 1, 0xABCDEF, 2**63)]
IDS: list[int | str] = [*INTS, *UUIDS]

MAX_SIM = qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM)
NAMED: dict[str, qm.VectorParams] = {
    "cosine": qm.VectorParams(size=4, distance=qm.Distance.COSINE),
    "dot": qm.VectorParams(size=3, distance=qm.Distance.DOT),
    "euclid": qm.VectorParams(size=3, distance=qm.Distance.EUCLID),
    "manhattan": qm.VectorParams(size=2, distance=qm.Distance.MANHATTAN),
    "tokens": qm.VectorParams(size=3, distance=qm.Distance.COSINE, multivector_config=MAX_SIM),
    "rows": qm.VectorParams(size=2, distance=qm.Distance.DOT, multivector_config=MAX_SIM),
}
SPARSE = "words"

INDEXES: dict[str, qm.PayloadSchemaType] = {
    "word": qm.PayloadSchemaType.KEYWORD,
    "n": qm.PayloadSchemaType.INTEGER,
    "x": qm.PayloadSchemaType.FLOAT,
    "flag": qm.PayloadSchemaType.BOOL,
    "text": qm.PayloadSchemaType.TEXT,
    "when": qm.PayloadSchemaType.DATETIME,
    "nest.a": qm.PayloadSchemaType.INTEGER,
    "items[].b": qm.PayloadSchemaType.KEYWORD,
}
"""A field for each type of index, and two inside objects and lists."""

LAYOUTS: dict[str, dict[str, Any]] = {
    "named": {
        "vectors_config": NAMED,
        "sparse_vectors_config": {SPARSE: qm.SparseVectorParams()},
    },
    "unnamed": {
        "vectors_config": NAMED["cosine"],
        "sparse_vectors_config": {SPARSE: qm.SparseVectorParams()},
    },
    "unnamed multi-vector": {"vectors_config": NAMED["rows"]},
    "only sparse": {"sparse_vectors_config": {SPARSE: qm.SparseVectorParams()}},
}


def dense_of(layout: str) -> dict[str, qm.VectorParams]:
    """Return a layout's dense vectors and multi-vectors by name, the unnamed one under ""."""
    config = LAYOUTS[layout].get("vectors_config", {})
    return dict(config) if isinstance(config, dict) else {"": config}


def has_sparse(layout: str) -> bool:
    return "sparse_vectors_config" in LAYOUTS[layout]


def open_client(path: Path) -> Any:
    """Open the client under test on a folder."""
    return EdgeQdrantClient(str(path))


class Pair:
    """The client under test and the oracle, which get the same calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.oracle = QdrantClient(":memory:")
        self.ours = open_client(folder)

    def both(self, method: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Call both; arguments are copied, so that neither sees what the other changes in them."""
        results = []
        for client in (self.ours, self.oracle):
            mine, named = copy.deepcopy((args, kwargs))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # local mode warns that it has no indexes
                results.append(getattr(client, method)(*mine, **named))
        return results[0], results[1]

    def reopen(self) -> None:
        self.ours.close()
        self.ours = open_client(self.folder)

    def close(self) -> None:
        self.ours.close()
        self.oracle.close()

    def assert_same_points(self, collection: str) -> None:
        """Compare every point, with its payload and vectors, in the order of ids."""
        ours, theirs = self.both(
            "scroll", collection, limit=EVERYTHING, with_payload=True, with_vectors=True
        )
        assert_same_records(ours[0], theirs[0])
        assert ours[1] is None
        ours, theirs = self.both("count", collection)
        assert ours.count == theirs.count


# ------------------------------------------------------------------------------------- comparing


def close_to(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) <= TOLERANCE * max(1.0, abs(theirs))


def assert_same_json(ours: Any, theirs: Any) -> None:
    """Compare as JSON, where 1, 1.0 and True are three different values."""
    assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


def assert_same_vector(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert isinstance(ours, dict)
        assert set(ours) == set(theirs)
        for name, vector in theirs.items():
            assert_same_vector(ours[name], vector)
    elif isinstance(theirs, qm.SparseVector):
        assert isinstance(ours, qm.SparseVector)
        assert ours.indices == theirs.indices
        np.testing.assert_allclose(ours.values, theirs.values, rtol=TOLERANCE, atol=TOLERANCE)
    elif theirs is None:
        assert ours is None
    else:
        assert isinstance(ours, list)
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def assert_same_record(ours: Any, theirs: Any) -> None:
    assert ours.id == theirs.id
    assert type(ours.id) is type(theirs.id)
    assert_same_json(ours.payload, theirs.payload)
    assert_same_vector(ours.vector, theirs.vector)


def assert_same_records(ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    assert [record.id for record in ours] == [record.id for record in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert isinstance(mine, qm.Record)
        assert_same_record(mine, other)


def assert_ranked(
    ours: Sequence[Any],
    whole: Sequence[Any],
    *,
    limit: int,
    offset: int = 0,
    threshold: float | None = None,
    larger_is_better: bool = True,
) -> None:
    """Check that these are the places offset to offset + limit of the oracle's whole ranking.

    The scores must agree place by place. An id may take any place that has its score, but only one,
    so only the order among equal scores is free. A score within rounding of the threshold may pass
    it or not.
    """
    sign = 1 if larger_is_better else -1
    passing = sure = len(whole)
    if threshold is not None:
        margins = [
            (sign * (hit.score - threshold), TOLERANCE * max(1.0, abs(threshold))) for hit in whole
        ]
        sure = sum(margin > slack for margin, slack in margins)
        passing = sum(margin > -slack for margin, slack in margins)
    ids = [hit.id for hit in ours]
    at_least, at_most = (max(0, min(limit, n - offset)) for n in (sure, passing))
    expected = [(hit.id, hit.score) for hit in whole[offset : offset + limit]]
    got = [(hit.id, hit.score) for hit in ours]
    assert at_least <= len(ours) <= at_most, f"got {got}, expected {expected}"
    assert len(set(ids)) == len(ids), f"an id twice: {got}"
    by_id = {hit.id: hit for hit in whole}
    for place, hit in enumerate(ours):
        assert isinstance(hit, qm.ScoredPoint)
        assert hit.id in by_id, f"{hit.id} does not belong: got {got}, expected {expected}"
        assert close_to(hit.score, whole[offset + place].score), f"{got}, expected {expected}"
        assert close_to(hit.score, by_id[hit.id].score), f"{got}, expected {expected}"
        assert_same_record(hit, by_id[hit.id])


def ties(hits: Sequence[Any], limit: int) -> bool:
    """Tell whether two scores among the first `limit`, or at that limit, are almost equal."""
    scores = [hit.score for hit in hits[: limit + 1]]
    return any(abs(a - b) < 20 * TOLERANCE * max(1, abs(a)) for a, b in itertools.pairwise(scores))


def places(hits: Sequence[Any], limit: int) -> dict[Any, tuple[int, int, bool]]:
    """Return by id: the first and last place it may take among its equals, and whether it may miss.

    Ids whose first place is beyond the limit are left out.
    """
    scores = [hit.score for hit in hits]
    found: dict[Any, tuple[int, int, bool]] = {}
    start = 0
    for at in range(1, len(scores) + 1):
        if at == len(scores) or not close_to(scores[at], scores[at - 1]):
            for hit in hits[start:at]:
                if start < limit:
                    found[hit.id] = (start, min(at, limit) - 1, at > limit)
            start = at
    return found


class Asked:
    """A single-vector query drawn for a collection, asked of both clients."""

    def __init__(self, pair: Pair, collection: str, **options: Any) -> None:
        self.pair, self.collection, self.options = pair, collection, options

    def whole(self) -> list[Any]:
        """Return the oracle's ranking of all points."""
        options = self.options | {"limit": EVERYTHING, "offset": 0, "score_threshold": None}
        return list(self.pair.oracle.query_points(self.collection, **options).points)

    def check(self, *, larger_is_better: bool = True) -> None:
        answer = self.pair.ours.query_points(self.collection, **self.options)
        assert type(answer) is type(self.pair.oracle.query_points(self.collection, limit=1))
        assert_ranked(
            answer.points,
            self.whole(),
            limit=self.options.get("limit", 10),
            offset=self.options.get("offset") or 0,
            threshold=self.options.get("score_threshold"),
            larger_is_better=larger_is_better,
        )


# ------------------------------------------------------------------------------------ strategies

grid = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
generic = st.floats(-2, 2, width=32).map(lambda value: float(np.float32(round(value, 3))))
numbers = st.one_of(grid, generic)
weights = st.one_of(
    st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    st.floats(0.125, 2, width=32).map(lambda value: float(np.float32(round(value, 3)))),
)
"""Values of sparse vectors: above zero, as every lexical model gives them."""

tokens = st.one_of(st.integers(0, 6), st.sampled_from([2**31, 2**32 - 1]))


@st.composite
def sparse_vectors(draw: st.DrawFn, *, of: st.SearchStrategy[float] = weights) -> Any:
    """Draw a sparse vector with its indices in any order; sometimes it is empty."""
    indices = draw(st.lists(tokens, unique=True, max_size=5))
    values = draw(st.lists(of, min_size=len(indices), max_size=len(indices)))
    return qm.SparseVector(indices=indices, values=values)


@st.composite
def dense_vectors(draw: st.DrawFn, params: qm.VectorParams) -> Any:
    values = draw(st.sampled_from([grid, numbers]))
    row = st.lists(values, min_size=params.size, max_size=params.size)
    if params.multivector_config is None:
        return draw(row)
    return draw(st.lists(row, min_size=1, max_size=3))


def vectors_of(dense: dict[str, qm.VectorParams], sparse: Sequence[str]) -> st.SearchStrategy[Any]:
    """Draw some of the vectors, by name."""
    optional: dict[str, st.SearchStrategy[Any]] = {
        name: dense_vectors(params) for name, params in dense.items()
    }
    optional |= {name: sparse_vectors() for name in sparse}
    return st.fixed_dictionaries({}, optional=optional)


words = st.sampled_from(["red", "blue", "Red", "größe", "日本", "", "1"])
dates = st.sampled_from(
    ["2024-01-01T00:00:00Z", "2024-06-15T12:30:00+02:00", "2024-06-15", "2023-12-31 23:59:59",
     "2024-06-15T10:30:00.123456Z"]
)  # fmt: skip
texts = st.sampled_from(
    [
        "the quick brown fox",
        "Fox, jumps! over",
        "quick-brown",
        "Über größe",
        "日本 fox",
        "",
        "foxes",
    ]
)
whole_numbers = st.sampled_from([-3, -1, 0, 1, 2, 5, 2**53 + 1])
floats = st.sampled_from([-1.5, -0.0, 0.5, 1.0, 2.0, 1e-3, 1e20])
scalars = st.one_of(st.none(), words, whole_numbers, floats, st.booleans(), dates)


def or_a_list(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(values, values, st.none(), st.lists(st.one_of(values, st.none()), max_size=3))


objects = st.fixed_dictionaries(
    {},
    optional={
        "a": or_a_list(whole_numbers),
        "b": or_a_list(words),
        "c": scalars,
        "deep": st.fixed_dictionaries({}, optional={"a": whole_numbers, "größe": words}),
    },
)
payloads = st.fixed_dictionaries(
    {},
    optional={
        "word": or_a_list(words),
        "n": or_a_list(whole_numbers),
        "x": or_a_list(st.one_of(floats, whole_numbers)),
        "flag": or_a_list(st.booleans()),
        "text": or_a_list(texts),
        "when": or_a_list(dates),
        "mixed": or_a_list(scalars),
        "größe": words,
        "nest": st.one_of(objects, scalars),
        "items": st.one_of(st.lists(objects, max_size=3), objects),
    },
)
PATHS = [
    "word", "n", "x", "flag", "text", "when", "mixed", "größe", "nest", "nest.a", "nest.b",
    "nest.c", "nest.deep.a", "nest.deep.größe", "items", "items[]", "items[].a", "items[].b",
    "items[0].a", "items[].deep.a", "word[]", "missing", "nest.missing",
]  # fmt: skip
paths = st.sampled_from(PATHS)


def _range(make: Callable[..., Any], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    bounds = st.fixed_dictionaries({}, optional=dict.fromkeys(["gt", "gte", "lt", "lte"], values))
    return bounds.map(lambda given: make(**given))


instants = st.sampled_from(
    ["2024-01-01T00:00:00Z", "2024-06-15T10:30:00Z", "2024-06-15T00:00:00", "2023-12-31T23:59:59Z"]
)
matches = st.one_of(
    st.one_of(words, whole_numbers, st.booleans()).map(lambda v: qm.MatchValue(value=v)),
    st.sampled_from(["fox", "quick fox", "FOX brown", "größe", "日本", "fo", "", "über", "!"])
    .map(lambda text: qm.MatchText(text=text)),
    *(
        st.lists(values, max_size=3).map(make)
        for values in (words, whole_numbers)
        for make in (
            lambda given: qm.MatchAny(any=given),
            lambda given: qm.MatchExcept(**{"except": given}),
        )
    ),
)  # fmt: skip


def has_ids() -> st.SearchStrategy[Any]:
    return st.lists(st.sampled_from([*IDS, 99]), max_size=4, unique=True).map(
        lambda ids: qm.HasIdCondition(has_id=ids)
    )


@st.composite
def field_conditions(draw: st.DrawFn, *, where: st.SearchStrategy[str] = paths) -> Any:
    key = draw(where)
    kind = draw(st.integers(0, 9))
    if key == "b":  # inside a nested filter an index answers emptiness for the whole point
        kind = max(kind, 3)
    if kind == 0:
        return qm.IsEmptyCondition(is_empty=qm.PayloadField(key=key))
    if kind == 1:
        return qm.IsNullCondition(is_null=qm.PayloadField(key=key))
    if kind == 2 and "[]" not in key:  # the core: is any empty; local mode: are all
        field = draw(st.sampled_from(["is_empty", "is_null"]))
        return qm.FieldCondition(key=key, **{field: draw(st.booleans())})
    if kind == 3:
        counts = draw(_range(qm.ValuesCount, st.integers(0, 3)))
        return qm.FieldCondition(key=key, values_count=counts)
    if kind in (4, 5) and key != "when":  # an index of dates takes numbers for microseconds
        numbers = st.one_of(floats, whole_numbers.filter(lambda n: abs(n) < 100))
        return qm.FieldCondition(key=key, range=draw(_range(qm.Range, numbers)))
    if kind == 6:
        key = "when" if key in ("n", "x", "nest.a") else draw(st.sampled_from(["when", key]))
        return qm.FieldCondition(key=key, range=draw(_range(qm.DatetimeRange, instants)))
    return qm.FieldCondition(key=key, match=draw(matches))


@st.composite
def nested_conditions(draw: st.DrawFn) -> Any:
    inside = st.sampled_from(["a", "b", "c", "deep.a", "missing"])
    conditions = draw(st.lists(field_conditions(where=inside), min_size=1, max_size=2))
    clause = draw(st.sampled_from(["must", "should", "must_not"]))
    key = draw(st.sampled_from(["items", "items[]"]))
    return qm.NestedCondition(nested=qm.Nested(key=key, filter=qm.Filter(**{clause: conditions})))


def _filters_of(conditions: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(conditions, min_size=1, max_size=3)
    at_least = st.builds(
        lambda given, count: qm.MinShould(conditions=given, min_count=count),
        some,
        st.integers(1, 3),
    )
    return st.one_of(
        some.map(lambda given: qm.Filter(must=given)),
        some.map(lambda given: qm.Filter(should=given)),
        some.map(lambda given: qm.Filter(must_not=given)),
        at_least.map(lambda given: qm.Filter(min_should=given)),
        st.builds(
            lambda one, two, three: qm.Filter(must=one, should=two, must_not=three),
            *[some] * 3,
        ),
    )


filters = _filters_of(
    st.recursive(
        st.one_of(
            field_conditions(),
            field_conditions(),
            field_conditions(),
            has_ids(),
            nested_conditions(),
            st.sampled_from([*NAMED, SPARSE]).map(lambda v: qm.HasVectorCondition(has_vector=v)),
        ),
        _filters_of,
        max_leaves=4,
    )
)

with_payloads = st.one_of(
    st.booleans(),
    st.lists(paths, max_size=3),
    st.lists(paths, max_size=3).map(lambda keys: qm.PayloadSelectorInclude(include=keys)),
    st.lists(paths, max_size=3).map(lambda keys: qm.PayloadSelectorExclude(exclude=keys)),
)


def with_vectors(names: Sequence[str]) -> st.SearchStrategy[Any]:
    return st.one_of(st.booleans(), st.lists(st.sampled_from(names), unique=True, max_size=3))


@st.composite
def queries(
    draw: st.DrawFn, dense: dict[str, qm.VectorParams], sparse: Sequence[str]
) -> tuple[str | None, Any, bool]:
    """Draw a vector's name (None: unnamed), a query for it, and whether larger is better."""
    name = draw(st.sampled_from([*dense, *sparse]))
    if name in sparse:
        return name, draw(sparse_vectors()), True
    params = dense[name]
    nearer = params.distance in (qm.Distance.EUCLID, qm.Distance.MANHATTAN)
    return name or None, draw(dense_vectors(params)), not nearer


# --------------------------------------------------------------------------------- a fixed corpus


def corpus(layout: str, *, size: int = 40, seed: int = 3, gridded: bool = False) -> list[Any]:
    """Return seeded points: ids of both types, some vectors missing, payloads of every shape."""
    rng = np.random.default_rng(seed)

    def values(*shape: int) -> Any:
        if gridded:
            return rng.choice([-1.0, 0.0, 0.5, 1.0], shape).tolist()
        return rng.normal(size=shape).astype(np.float32).tolist()

    points = []
    for number in range(size):
        vector: dict[str, Any] = {}
        for name, params in dense_of(layout).items():
            if rng.random() < 0.15:
                continue
            rows = () if params.multivector_config is None else (int(rng.integers(1, 5)),)
            vector[name] = values(*rows, params.size)
        if has_sparse(layout) and rng.random() > 0.1:
            indices = rng.choice(12, int(rng.integers(0, 6)), replace=False).tolist()
            drawn = rng.choice([0.5, 1.0], len(indices)) if gridded else rng.random(len(indices))
            vector[SPARSE] = qm.SparseVector(
                indices=indices, values=np.float32(drawn + 0.1 * (not gridded)).tolist()
            )
        at = number if number % 3 else str(uuid.UUID(int=int(rng.integers(1, 2**60))))
        points.append(qm.PointStruct(id=at, vector=vector, payload=_payload(rng)))
    return points


def _payload(rng: np.random.Generator) -> dict[str, Any]:
    def one(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    def some(*values: Any) -> Any:
        kind = rng.random()
        if kind < 0.65:
            return one(*values)
        if kind < 0.75:
            return None
        drawn = [one(None, *values, *values) for _ in range(int(rng.integers(0, 4)))]
        return list(dict.fromkeys(drawn))  # pages by a field run short where a value repeats

    def thing() -> dict[str, Any]:
        made = {"a": some(1, 2, 5), "b": some("red", "blue"), "c": some(True, 1, 1.0, "1")}
        made["deep"] = {"a": some(0, 1), "größe": "größe"}
        return {key: value for key, value in made.items() if rng.random() < 0.75}

    payload = {
        "word": some("red", "blue", "Red", "größe", "日本", "", "1"),
        "n": some(-3, -1, 0, 1, 2, 5, 2**53 + 1),
        "x": some(-1.5, -0.0, 0.5, 1.0, 2.0, 1, 2),
        "flag": some(True, False),
        "text": some("the quick brown fox", "Fox, jumps!", "quick-brown", "Über größe", "日本 fox"),
        "when": some("2024-01-01T00:00:00Z", "2024-06-15T12:30:00+02:00", "2023-12-31 23:59:59"),
        "mixed": some("red", 1, 1.0, True, 0, False, "", "2024-06-15"),
        "größe": one("red", "größe"),
        "nest": one(thing(), thing(), thing(), None, "red"),
        "items": one([thing(), thing()], [thing()], [], thing()),
    }
    return {key: value for key, value in payload.items() if rng.random() < 0.8}


def index_of(pair: Pair, collection: str) -> None:
    for field, schema in INDEXES.items():
        pair.both("create_payload_index", collection, field, field_schema=schema)


def filled_pair(folder: Path) -> Pair:
    """Return every layout on generic floats and on a grid, and two with indexes.

    The indexes are created before the points in one of them, and after them in the other.
    """
    made = Pair(folder)
    for layout, config in LAYOUTS.items():
        for gridded in (False, True):
            name = f"{layout} gridded" if gridded else layout
            made.both("create_collection", name, **config)
            made.both("upsert", name, corpus(layout, gridded=gridded))
    for name in ("indexed first", "indexed last"):
        made.both("create_collection", name, **LAYOUTS["named"])
        if name == "indexed first":
            index_of(made, name)
        made.both("upsert", name, corpus("named"))
        if name == "indexed last":
            index_of(made, name)
    return made


def joined(condition: qm.Filter | None) -> qm.Filter | None:
    """Return a filter as the only condition of another.

    A prefetch's filters are merged clause by clause with those around it, and the two differ on
    whether points that pass a merged `should`, but not the outer one, are scored again.
    """
    return None if condition is None else qm.Filter(must=[condition])


def rrf_score(place: int, k: int, weight: float) -> float:
    """Return what a list of this weight adds to the point at this place, as Qdrant defines it."""
    return 0.0 if weight <= 0 else 1 / ((place + 1) / weight + k - 1)
