"""The embedded store gives the same answers as qdrant-client's own local mode, the oracle."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models as qm

import compared
from compared import (
    EVERYTHING,
    IDS,
    INDEXES,
    LAYOUTS,
    NAMED,
    SPARSE,
    UUIDS,
    Asked,
    Pair,
    filled_pair,
    index_of,
)
from unified_embeddings.errors import InputError

quick = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])


def sparse(indices: list[int], values: list[float]) -> qm.SparseVector:
    return qm.SparseVector(indices=indices, values=values)


def point(number: int, *, payload: dict[str, Any] | None = None, **vectors: Any) -> Any:
    return qm.PointStruct(id=number, vector=vectors, payload=payload)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """The two clients, empty."""
    made = Pair(tmp_path / "store")
    yield made
    made.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = filled_pair(tmp_path_factory.mktemp("filled"))
    yield made
    made.close()


# --------------------------------------------------------------------------------- worked by hand


class TestByHand:
    """A few points whose ranks and scores are worked out by hand."""

    @pytest.fixture
    def few(self, pair: Pair) -> Any:
        pair.both("create_collection", "few", **LAYOUTS["named"])
        points = [
            point(1, dot=[3, 0, 0], euclid=[3, 0, 0], words=sparse([1], [1.0])),
            point(2, dot=[2, 0, 0], euclid=[2, 0, 0], words=sparse([1, 2], [3.0, 1.0])),
            point(3, dot=[1, 0, 0], euclid=[0, 4, 0]),
            point(4, cosine=[0, 3, 0, 4], manhattan=[1, -2], tokens=[[1, 0, 0], [0, 2, 0]]),
        ]
        pair.ours.upsert("few", points)
        return pair.ours

    def fuse(self, few: Any, query: Any, **kwargs: Any) -> list[tuple[Any, float]]:
        by_dense = qm.Prefetch(query=[1.0, 0, 0], using="dot", limit=10)
        by_sparse = qm.Prefetch(query=sparse([1], [1.0]), using=SPARSE, limit=10)
        hits = few.query_points("few", prefetch=[by_dense, by_sparse], query=query, **kwargs).points
        return [(hit.id, hit.score) for hit in hits]

    def test_first_in_both_lists_scores_two_sixty_firsts(self, few: Any) -> None:
        few.delete("few", [2])
        fused = self.fuse(few, qm.RrfQuery(rrf=qm.Rrf(k=61)))
        assert fused == [(1, pytest.approx(2 / 61)), (3, pytest.approx(1 / 62))]

    def test_second_then_first_and_first_then_second_are_equal(self, few: Any) -> None:
        fused = self.fuse(few, qm.RrfQuery(rrf=qm.Rrf(k=61)))
        both = pytest.approx(1 / 61 + 1 / 62)
        assert sorted(fused) == [(1, both), (2, both), (3, pytest.approx(1 / 63))]

    def test_weights_belong_to_the_lists_in_their_order(self, few: Any) -> None:
        fused = self.fuse(few, qm.RrfQuery(rrf=qm.Rrf(k=61, weights=[3.0, 1.0])))
        assert fused == [
            (2, pytest.approx(1 / (2 / 3 + 60) + 1 / 61)),
            (1, pytest.approx(1 / (1 / 3 + 60) + 1 / 62)),
            (3, pytest.approx(1 / (3 / 3 + 60))),
        ]
        fused = self.fuse(few, qm.RrfQuery(rrf=qm.Rrf(k=61, weights=[1.0, 3.0])))
        assert [hit for hit, _ in fused] == [1, 2, 3]

    def test_a_list_of_weight_zero_adds_nothing(self, few: Any) -> None:
        fused = self.fuse(few, qm.RrfQuery(rrf=qm.Rrf(k=61, weights=[1.0, 0.0])))
        assert fused == [(n, pytest.approx(1 / (60 + n))) for n in (1, 2, 3)]

    def test_k_of_fusion_by_rank_is_two_by_default(self, few: Any) -> None:
        fused = self.fuse(few, qm.FusionQuery(fusion=qm.Fusion.RRF))
        assert sorted(fused) == [
            (n, pytest.approx(s)) for n, s in [(1, 5 / 6), (2, 5 / 6), (3, 1 / 4)]
        ]

    def test_fusion_by_distribution(self, few: Any) -> None:
        fused = self.fuse(few, qm.FusionQuery(fusion=qm.Fusion.DBSF))
        # Scores 3, 2, 1 lie a deviation apart: 4/6, 3/6, 2/6 of the six. 3 and 1 lie √2 from 2.
        above, below = (3 + 0.5**0.5) / 6, (3 - 0.5**0.5) / 6
        assert fused == [
            (2, pytest.approx(3 / 6 + above)),
            (1, pytest.approx(4 / 6 + below)),
            (3, pytest.approx(2 / 6)),
        ]

    def test_limit_and_offset_of_fused_hits(self, few: Any) -> None:
        query = qm.RrfQuery(rrf=qm.Rrf(k=61, weights=[3.0, 1.0]))
        assert [hit for hit, _ in self.fuse(few, query, limit=1, offset=1)] == [1]
        assert self.fuse(few, query, offset=3) == []

    @pytest.mark.parametrize(
        ("threshold", "expected"),
        [(1.5, [1, 2]), (2.0, [1]), (2.5, [1]), (3.0, []), (-9, [1, 2, 3])],
    )
    def test_a_score_passes_a_threshold_by_being_better(
        self, few: Any, threshold: float, expected: list[int]
    ) -> None:
        hits = few.query_points("few", [1.0, 0, 0], using="dot", score_threshold=threshold).points
        assert [hit.id for hit in hits] == expected

    @pytest.mark.parametrize(
        ("threshold", "expected"), [(4.5, [2, 1, 3]), (4.0, [2, 1]), (2.0, [])]
    )
    def test_a_distance_passes_a_threshold_by_being_smaller(
        self, few: Any, threshold: float, expected: list[int]
    ) -> None:
        query = [0.0, 0, 0]
        hits = few.query_points("few", query, using="euclid", score_threshold=threshold).points
        assert [hit.id for hit in hits] == expected

    def test_scores_of_the_distances(self, few: Any) -> None:
        def best(query: Any, using: str) -> float:
            return float(few.query_points("few", query, using=using, limit=1).points[0].score)

        assert best([0.0, 0, 0, 2], "cosine") == pytest.approx(0.8)
        assert best([0.0, 0, 0], "euclid") == pytest.approx(2.0)
        assert best([0.0, 1], "manhattan") == pytest.approx(4.0)
        assert best([[0.0, 7, 0], [0, 1, 1], [1, 0, 0]], "tokens") == pytest.approx(2 + 0.5**0.5)
        assert best(sparse([2, 1], [10.0, 1.0]), SPARSE) == pytest.approx(13.0)

    def test_cosine_vectors_come_back_of_length_one(self, few: Any) -> None:
        vectors = few.retrieve("few", [4], with_vectors=["cosine", "tokens"])[0].vector
        compared.assert_same_vector(
            vectors, {"cosine": [0.0, 0.6, 0.0, 0.8], "tokens": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]}
        )

    def test_unsorted_sparse_indices_come_back_sorted_with_their_values(self, few: Any) -> None:
        given = sparse([2**32 - 1, 3, 700, 0], [1.0, 2.0, 3.0, 4.0])
        few.upsert("few", [point(9, words=given)])
        few.update_vectors("few", [qm.PointVectors(id=3, vector={SPARSE: given})])
        for record in few.retrieve("few", [9, 3], with_vectors=[SPARSE]):
            assert record.vector[SPARSE] == sparse([0, 3, 700, 2**32 - 1], [4.0, 2.0, 3.0, 1.0])
        assert given.indices[0] == 2**32 - 1, "the caller's own vector was changed"
        hits = few.query_points("few", sparse([700, 3], [1.0, 10.0]), using=SPARSE).points
        assert [(hit.id, hit.score) for hit in hits] == [(9, 23.0), (3, 23.0)] or [
            (hit.id, hit.score) for hit in hits
        ] == [(3, 23.0), (9, 23.0)]

    def test_a_uuid_is_one_id_however_it_is_written(self, few: Any) -> None:
        known = uuid.UUID("1234abcd-0000-4000-8000-00000000abcd")
        for way in (known, str(known), str(known).upper(), known.hex):
            few.upsert("few", [qm.PointStruct(id=way, vector={"dot": [0.0, 0, 9]})])
            assert [record.id for record in few.retrieve("few", [way])] == [str(known)]
        assert few.count("few").count == 5

    def test_a_null_removes_its_field_also_after_the_payload_was_cleared(self, few: Any) -> None:
        few.set_payload("few", {"a.b": 1, "kept": 2}, points=[1])
        few.set_payload("few", {"a.b": None, "none": None}, points=[1])
        assert few.retrieve("few", [1])[0].payload == {"kept": 2}
        few.clear_payload("few", points_selector=[1])
        few.set_payload("few", {"a.b": None, "in": {"side": None}}, points=[1])
        assert few.retrieve("few", [1])[0].payload == {"in": {"side": None}}

    def test_unknown_ids_are_left_out_of_what_is_retrieved(self, few: Any) -> None:
        found = few.retrieve("few", [4, 99, UUIDS[0], 1])
        assert [record.id for record in found] == [4, 1]

    def test_a_prefetch_of_a_prefetch_is_rescored_by_a_multi_vector(self, pair: Pair) -> None:
        pair.both("create_collection", "deep", **LAYOUTS["named"])
        pair.ours.upsert(
            "deep",
            [point(n, dot=[float(n), 0, 0], rows=[[0.0, 1.0], [float(-n), 1.0]]) for n in range(9)],
        )
        first = qm.Prefetch(query=[1.0, 0, 0], using="dot", limit=5)
        second = qm.Prefetch(prefetch=first, query=[[-1.0, 0], [0, 2]], using="rows", limit=2)
        hits = pair.ours.query_points(
            "deep", prefetch=second, query=qm.FusionQuery(fusion=qm.Fusion.RRF)
        ).points
        assert [hit.id for hit in hits] == [8, 7]


# ---------------------------------------------------------------------- queries over a fixed corpus


layouts = st.sampled_from(sorted(LAYOUTS))
limits = st.sampled_from([1, 2, 5, 10, 100])
offsets = st.sampled_from([None, 0, 1, 4, 50])


def drawn_query(
    data: st.DataObject, layout: str, *, using: str | None = None
) -> tuple[str | None, Any, bool]:
    dense = compared.dense_of(layout)
    names = [SPARSE] if compared.has_sparse(layout) else []
    if using is not None:
        dense, names = ({}, [using]) if using == SPARSE else ({using: dense[using]}, [])
    return data.draw(compared.queries(dense, names))


@settings(quick, max_examples=60)
@given(data=st.data(), layout=layouts, gridded=st.booleans(), limit=limits, offset=offsets)
def test_nearest_points_are_the_oracles(
    filled: Pair, data: st.DataObject, layout: str, gridded: bool, limit: int, offset: int | None
) -> None:
    using, query, larger = drawn_query(data, layout)
    names = [*compared.dense_of(layout), *([SPARSE] if compared.has_sparse(layout) else [])]
    asked = Asked(
        filled,
        f"{layout} gridded" if gridded else layout,
        query=query,
        using=using,
        limit=limit,
        offset=offset,
        with_payload=data.draw(compared.with_payloads),
        with_vectors=data.draw(compared.with_vectors(names)),
        query_filter=data.draw(st.one_of(st.none(), compared.filters)),
        score_threshold=data.draw(st.one_of(st.none(), compared.grid)),
    )
    asked.check(larger_is_better=larger)


@quick
@given(data=st.data(), name=st.sampled_from(sorted(NAMED)))
def test_a_threshold_between_two_scores_cuts_there(
    filled: Pair, data: st.DataObject, name: str
) -> None:
    using, query, larger = drawn_query(data, "named", using=name)
    scores = [h.score for h in Asked(filled, "named", query=query, using=using).whole()]
    at = data.draw(st.integers(1, len(scores) - 1))
    threshold = (scores[at - 1] + scores[at]) / 2
    Asked(filled, "named", query=query, using=using, limit=100, score_threshold=threshold).check(
        larger_is_better=larger
    )


@quick
@given(data=st.data(), layout=layouts, gridded=st.booleans(), limit=limits)
def test_a_point_asks_for_its_neighbours(
    filled: Pair, data: st.DataObject, layout: str, gridded: bool, limit: int
) -> None:
    using, _, larger = drawn_query(data, layout)
    corpus = [p for p in compared.corpus(layout, gridded=gridded) if (using or "") in p.vector]
    asked = Asked(
        filled,
        f"{layout} gridded" if gridded else layout,
        query=data.draw(st.sampled_from(corpus)).id,
        using=using,
        limit=limit,
        query_filter=data.draw(st.one_of(st.none(), compared.filters)),
    )
    asked.check(larger_is_better=larger)


@quick
@given(data=st.data(), limit=limits, offset=offsets)
def test_without_a_query_points_come_in_the_order_of_their_ids(
    filled: Pair, data: st.DataObject, limit: int, offset: int | None
) -> None:
    options = {"limit": limit, "offset": offset}
    options |= {"query_filter": data.draw(st.one_of(st.none(), compared.filters))}
    ours, theirs = filled.both("query_points", "named", **options)
    assert [hit.id for hit in ours.points] == [hit.id for hit in theirs.points]


@st.composite
def leaves(draw: st.DrawFn) -> tuple[qm.Prefetch, bool]:
    """Draw a prefetch by one vector, and whether larger scores are better."""
    using, query, larger = draw(compared.queries(compared.dense_of("named"), [SPARSE]))
    leaf = qm.Prefetch(
        query=query,
        using=using,
        limit=draw(st.sampled_from([1, 3, 8, 15, 100])),
        filter=draw(st.one_of(st.none(), st.none(), compared.filters)),
        score_threshold=draw(st.one_of(st.none(), st.none(), compared.grid)),
    )
    return leaf, larger


fusions = st.one_of(
    st.builds(lambda k: qm.RrfQuery(rrf=qm.Rrf(k=k)), st.sampled_from([1, 2, 60, 61])),
    st.just(qm.RrfQuery(rrf=qm.Rrf())),
    st.sampled_from(qm.Fusion).map(lambda fusion: qm.FusionQuery(fusion=fusion)),
)


def weighted(data: st.DataObject, fusion: Any, lists: int) -> Any:
    """Sometimes add weights, one for each list."""
    if not isinstance(fusion, qm.RrfQuery) or data.draw(st.booleans()):
        return fusion
    values = st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.7])
    drawn = data.draw(st.lists(values, min_size=lists, max_size=lists))
    return qm.RrfQuery(rrf=qm.Rrf(k=fusion.rrf.k, weights=drawn))


def assume_no_ties(pair: Pair, leaf: qm.Prefetch, outer: Any = None) -> None:
    """Skip queries with ties: equal scores may be ranked either way, which changes fused ranks."""
    conditions = [each for each in (outer, leaf.filter) if each is not None]
    options: dict[str, Any] = {"query": leaf.query, "using": leaf.using, "limit": EVERYTHING}
    options["query_filter"] = qm.Filter(must=conditions) if conditions else None
    hits = pair.oracle.query_points("named", **options, with_payload=False).points
    assume(not compared.ties(hits, leaf.limit or 10))
    if leaf.score_threshold is not None:
        assume(all(abs(hit.score - leaf.score_threshold) > 1e-4 for hit in hits))


@settings(quick, max_examples=50, suppress_health_check=list(HealthCheck))
@given(data=st.data(), fusion=fusions, limit=limits, offset=offsets)
def test_fused_points_are_the_oracles(
    filled: Pair, data: st.DataObject, fusion: Any, limit: int, offset: int | None
) -> None:
    drawn = data.draw(st.lists(leaves(), min_size=1, max_size=3))
    outer = compared.joined(data.draw(st.one_of(st.none(), st.none(), compared.filters)))
    for leaf, _ in drawn:
        assume_no_ties(filled, leaf, outer)
    Asked(
        filled,
        "named",
        prefetch=[leaf for leaf, _ in drawn],
        query=weighted(data, fusion, len(drawn)),
        limit=limit,
        offset=offset,
        query_filter=outer,
        with_payload=data.draw(compared.with_payloads),
        with_vectors=data.draw(compared.with_vectors(["dot", SPARSE, "tokens"])),
        score_threshold=data.draw(st.sampled_from([None, None, 0.02, 0.4])),
    ).check()


@settings(quick, max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data(), fusion=fusions, limit=limits)
def test_prefetches_of_prefetches_are_the_oracles(
    filled: Pair, data: st.DataObject, fusion: Any, limit: int
) -> None:
    branches = []
    for _ in range(data.draw(st.integers(1, 2))):
        inner = [leaf for leaf, _ in data.draw(st.lists(leaves(), min_size=1, max_size=2))]
        using, query, _ = drawn_query(
            data, "named", using=data.draw(st.sampled_from(sorted(NAMED)))
        )
        branch = qm.Prefetch(
            prefetch=inner if len(inner) > 1 else inner[0],
            query=query,
            using=using,
            limit=data.draw(st.sampled_from([2, 5, 20])),
            filter=compared.joined(data.draw(st.one_of(st.none(), st.none(), compared.filters))),
        )
        for leaf in inner:
            assume_no_ties(filled, leaf, branch.filter)
        found = filled.oracle.query_points(
            "named", prefetch=branch.prefetch, query=query, using=using, limit=EVERYTHING,
            query_filter=branch.filter,
        ).points  # fmt: skip
        assume(not compared.ties(found, branch.limit or 10))
        branches.append(branch)
    final = weighted(data, fusion, len(branches))
    Asked(filled, "named", prefetch=branches, query=final, limit=limit).check()


@settings(quick, max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(sorted(NAMED)), limit=limits, offset=offsets)
def test_prefetched_points_are_rescored_by_another_vector(
    filled: Pair, data: st.DataObject, name: str, limit: int, offset: int | None
) -> None:
    inner = [leaf for leaf, _ in data.draw(st.lists(leaves(), min_size=1, max_size=2))]
    for leaf in inner:
        assume_no_ties(filled, leaf)
    using, query, larger = drawn_query(data, "named", using=name)
    Asked(
        filled,
        "named",
        prefetch=inner,
        query=query,
        using=using,
        limit=limit,
        offset=offset,
        score_threshold=data.draw(st.one_of(st.none(), compared.grid)),
    ).check(larger_is_better=larger)


@settings(quick, max_examples=50)
@given(data=st.data(), k=st.sampled_from([1, 2, 61]))
def test_equal_scores_are_fused_in_one_of_their_orders(
    filled: Pair, data: st.DataObject, k: int
) -> None:
    drawn = [leaf for leaf, _ in data.draw(st.lists(leaves(), min_size=1, max_size=3))]
    values = st.sampled_from([0.25, 1.0, 3.0])
    shares = data.draw(st.lists(values, min_size=len(drawn), max_size=len(drawn)))
    lists = []
    for leaf in drawn:
        leaf.score_threshold = None
        options = {"query": leaf.query, "using": leaf.using, "query_filter": leaf.filter}
        hits = filled.oracle.query_points("named gridded", **options, limit=EVERYTHING).points
        lists.append(compared.places(hits, leaf.limit or 10))
    fused = filled.ours.query_points(
        "named gridded",
        prefetch=drawn,
        query=qm.RrfQuery(rrf=qm.Rrf(k=k, weights=shares)),
        limit=EVERYTHING,
    ).points
    scores = [hit.score for hit in fused]
    assert scores == sorted(scores, reverse=True)
    got = {hit.id for hit in fused}
    assert len(got) == len(fused)
    assert got <= {at for each in lists for at in each}
    assert got >= {at for each in lists for at, (_, _, may_miss) in each.items() if not may_miss}
    for hit in fused:
        least = most = 0.0
        for each, share in zip(lists, shares, strict=True):
            if hit.id in each:
                first, last, may_miss = each[hit.id]
                most += compared.rrf_score(first, k, share)
                least += 0.0 if may_miss else compared.rrf_score(last, k, share)
        assert least - 1e-5 <= hit.score <= most + 1e-5


@settings(quick, max_examples=15)
@given(data=st.data())
def test_a_batch_of_queries_is_the_queries_one_by_one(filled: Pair, data: st.DataObject) -> None:
    requests, larger = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        using, query, more = drawn_query(data, "named")
        larger.append(more)
        requests.append(
            qm.QueryRequest(
                query=query,
                using=using,
                limit=data.draw(limits),
                offset=data.draw(offsets),
                filter=data.draw(st.one_of(st.none(), compared.filters)),
                with_payload=data.draw(compared.with_payloads),
                with_vector=data.draw(compared.with_vectors(["dot", SPARSE])),
                score_threshold=data.draw(st.one_of(st.none(), compared.grid)),
            )
        )
    answers = filled.ours.query_batch_points("named", requests=requests)
    assert len(answers) == len(requests)
    for request, answer, more in zip(requests, answers, larger, strict=True):
        whole = Asked(
            filled,
            "named",
            query=request.query,
            using=request.using,
            query_filter=request.filter,
            with_payload=request.with_payload,
            with_vectors=request.with_vector,
        ).whole()
        compared.assert_ranked(
            answer.points,
            whole,
            limit=request.limit or 10,
            offset=request.offset or 0,
            threshold=request.score_threshold,
            larger_is_better=more,
        )


def test_the_default_limit_is_ten(filled: Pair) -> None:
    leaf = qm.Prefetch(query=[1.0, 0.2, 0.1], using="dot")
    query = qm.FusionQuery(fusion=qm.Fusion.RRF)
    fused, theirs = filled.both("query_points", "named", prefetch=leaf, query=query, limit=50)
    assert len(fused.points) == 10
    assert [hit.id for hit in fused.points] == [hit.id for hit in theirs.points]
    assert len(filled.ours.query_points("named", [1.0, 0.2, 0.1], using="dot").points) == 10


# ----------------------------------------------------------------------------------------- filters

collections_of_filters = st.sampled_from(["named", "indexed first", "indexed last"])


@settings(quick, max_examples=100)
@given(collection=collections_of_filters, condition=compared.filters)
def test_filters_select_the_oracles_points(
    filled: Pair, collection: str, condition: qm.Filter
) -> None:
    ours, theirs = filled.both("scroll", collection, scroll_filter=condition, limit=EVERYTHING)
    compared.assert_same_records(ours[0], theirs[0])
    ours, theirs = filled.both("count", collection, count_filter=condition)
    assert ours.count == theirs.count == len(ours_ids(filled, collection, condition))


def ours_ids(pair: Pair, collection: str, condition: qm.Filter) -> list[Any]:
    hits = pair.ours.query_points(collection, query_filter=condition, limit=EVERYTHING).points
    return [hit.id for hit in hits]


MATCHES: list[Any] = [
    *(qm.MatchValue(value=v) for v in ("red", "größe", "", "1", 0, 1, 5, 2**53 + 1)),
    *(qm.MatchValue(value=v) for v in (True, False)),
    *(qm.MatchAny(any=v) for v in (["red", "größe"], ["1"], [1, 2], [])),
    *(qm.MatchExcept(**{"except": v}) for v in (["red", "größe"], ["1"], [1, 2], [])),
    *(qm.MatchText(text=v) for v in ("quick FOX", "größe", "日本", "fo", "")),
]
SINGLE: list[dict[str, Any]] = [
    *({"match": match} for match in MATCHES),
    *({"range": qm.Range(**v)} for v in ({"gt": 0}, {"gte": 1, "lte": 1}, {"lt": 2.0})),
    *({"range": qm.DatetimeRange(**{v: "2024-01-01T00:00:00Z"})} for v in ("gt", "lte")),
    *({"values_count": qm.ValuesCount(**v)} for v in ({"gte": 2}, {"lt": 1}, {"gte": 1})),
]


@pytest.mark.parametrize("path", compared.PATHS)
@pytest.mark.parametrize("collection", ["named", "indexed first"])
def test_every_single_condition_selects_the_oracles_points(
    filled: Pair, collection: str, path: str
) -> None:
    field = qm.PayloadField(key=path)
    conditions: list[Any] = [
        qm.IsEmptyCondition(is_empty=field),
        qm.IsNullCondition(is_null=field),
    ]
    for options in SINGLE:
        dates = isinstance(options.get("range"), qm.DatetimeRange)
        numbers = isinstance(options.get("range"), qm.Range)
        if (numbers and path == "when") or (dates and path in ("n", "x", "nest.a")):
            continue  # an index of dates takes numbers for microseconds, and the reverse
        conditions.append(qm.FieldCondition(key=path, **options))
    for condition in conditions:
        kept = qm.Filter(must=[condition])
        ours, theirs = filled.both(
            "scroll", collection, scroll_filter=kept, limit=EVERYTHING, with_payload=False
        )
        assert [r.id for r in ours[0]] == [r.id for r in theirs[0]], condition


@st.composite
def metadata_filters(draw: st.DrawFn, *, depth: int = 2) -> MetadataFilters:
    """Draw filters that LlamaIndex can ask its Qdrant store for."""
    made: list[Any] = []
    for _ in range(draw(st.integers(1, 3))):
        if depth and draw(st.integers(0, 3)) == 0:
            made.append(draw(metadata_filters(depth=depth - 1)))
            continue
        kind = draw(st.integers(0, 5))
        dated = kind in (1, 2)  # an index of dates takes numbers for microseconds
        key = draw(compared.paths.filter(lambda path: path != "when") if dated else compared.paths)
        value: Any
        if kind == 0:
            value, operator = draw(compared.words), draw(st.sampled_from(["==", "!="]))
        elif kind == 1:
            value, operator = (
                draw(compared.floats.filter(lambda v: abs(v) < 9)),
                draw(st.sampled_from(["==", ">", "<", ">=", "<="])),
            )
        elif kind == 2:
            value = draw(st.integers(-3, 5))
            operator = draw(st.sampled_from(["==", "!=", ">", "<", ">=", "<="]))
        elif kind == 3:
            kinds = st.sampled_from([compared.words, st.integers(-3, 5)])
            value = draw(st.lists(draw(kinds), min_size=1, max_size=3))
            operator = draw(st.sampled_from(["in", "nin"]))
        elif kind == 4:
            value = draw(st.sampled_from(["fox", "quick fox", "größe", "red"]))
            operator = draw(st.sampled_from(["text_match", "text_match_insensitive"]))
        else:
            value, operator = None, "is_empty"
        made.append(MetadataFilter(key=key, value=value, operator=FilterOperator(operator)))
    return MetadataFilters(filters=made, condition=draw(st.sampled_from(FilterCondition)))


@settings(quick, max_examples=100)
@given(collection=collections_of_filters, asked=metadata_filters())
def test_filters_of_llamaindex_select_the_oracles_points(
    filled: Pair, collection: str, asked: MetadataFilters
) -> None:
    condition = QdrantVectorStore.model_construct()._build_subfilter(asked)
    ours, theirs = filled.both("scroll", collection, scroll_filter=condition, limit=EVERYTHING)
    assert [record.id for record in ours[0]] == [record.id for record in theirs[0]]


@pytest.mark.parametrize("kept", [0, 9, 40])
def test_the_corpus_tells_filters_apart(filled: Pair, kept: int) -> None:
    """If every filter selected all or nothing, the tests above would pass by chance."""
    condition = {
        0: qm.FieldCondition(key="missing", match=qm.MatchValue(value="red")),
        9: qm.HasIdCondition(has_id=[1, 2, 4, 5, 7, 8, 10, 11, 13]),
        40: qm.IsEmptyCondition(is_empty=qm.PayloadField(key="missing")),
    }[kept]
    assert len(ours_ids(filled, "named", qm.Filter(must=[condition]))) == kept


@quick
@given(data=st.data(), limit=st.integers(1, 7), kept=st.one_of(st.none(), compared.filters))
def test_pages_are_the_whole_in_order(
    filled: Pair, data: st.DataObject, limit: int, kept: qm.Filter | None
) -> None:
    options: dict[str, Any] = {
        "scroll_filter": kept,
        "with_payload": data.draw(compared.with_payloads),
        "with_vectors": data.draw(compared.with_vectors(["cosine", SPARSE, "tokens"])),
    }
    pages, offset = [], None
    while True:
        page, following = filled.ours.scroll("named", limit=limit, offset=offset, **options)
        theirs = filled.oracle.scroll("named", limit=limit, offset=offset, **options)
        compared.assert_same_records(page, theirs[0])
        assert following == theirs[1]
        pages += page
        offset = following
        if offset is None:
            break
    compared.assert_same_records(
        pages, filled.oracle.scroll("named", limit=EVERYTHING, **options)[0]
    )


@quick
@given(
    key=st.sampled_from(["n", "x", "when"]),
    direction=st.sampled_from(qm.Direction),
    limit=limits,
    collection=st.sampled_from(["indexed first", "indexed last"]),
    kept=st.one_of(st.none(), compared.filters),
)
def test_pages_in_the_order_of_a_field_are_the_oracles(
    filled: Pair,
    key: str,
    direction: qm.Direction,
    limit: int,
    collection: str,
    kept: qm.Filter | None,
) -> None:
    options = {"order_by": qm.OrderBy(key=key, direction=direction), "scroll_filter": kept}
    ours, _ = filled.ours.scroll(collection, limit=limit, **options)
    whole, _ = filled.oracle.scroll(collection, limit=EVERYTHING, **options)
    assert [record.order_value for record in ours] == [
        record.order_value for record in whole[:limit]
    ]
    pairs = [(record.order_value, record.id) for record in ours]
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) <= {(record.order_value, record.id) for record in whole}


# ------------------------------------------------------------------------------- random operations


class Points(RuleBasedStateMachine):
    """Operations on the points of one collection; both clients hold the same after each."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.pair = Pair(Path(self.folder.name))
        self.dense: dict[str, qm.VectorParams] = {}
        self.sparse: list[str] = []

    @initialize(layout=layouts, indexed=st.booleans())
    def create(self, layout: str, indexed: bool) -> None:
        self.dense = compared.dense_of(layout)
        self.sparse = [SPARSE] if compared.has_sparse(layout) else []
        self.named = "" not in self.dense
        self.pair.both("create_collection", "c", **LAYOUTS[layout])
        if indexed:
            index_of(self.pair, "c")

    def held(self) -> list[Any]:
        return [r.id for r in self.pair.oracle.scroll("c", limit=EVERYTHING, with_payload=False)[0]]

    def points(self, data: st.DataObject, **sizes: Any) -> list[Any]:
        ids = data.draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=6, unique=True))
        vectors = compared.vectors_of(self.dense, self.sparse)
        return [
            qm.PointStruct(id=at, vector=data.draw(vectors), payload=data.draw(compared.payloads))
            for at in ids
        ]

    def selector(self, data: st.DataObject, *, wrapped: bool = True) -> Any:
        """Select points by ids in a list or a PointIdsList, or by a filter in either form."""
        kinds = ["filter", "selector"]
        if held := self.held():
            kinds += ["list", "ids", "list"]
        kind = data.draw(st.sampled_from(kinds))
        if kind in ("list", "ids"):
            ids = data.draw(st.lists(st.sampled_from(held), min_size=1, max_size=3, unique=True))
            return ids if kind == "list" else qm.PointIdsList(points=ids)
        condition = data.draw(compared.filters)
        return condition if kind == "filter" else qm.FilterSelector(filter=condition)

    @rule(
        data=st.data(),
        mode=st.sampled_from([None, None, *qm.UpdateMode]),
        way=st.sampled_from(["upsert", "batch", "upload_points"]),
    )
    def upsert(self, data: st.DataObject, mode: Any, way: str) -> None:
        points = self.points(data)
        options = {
            "update_mode": mode,
            "update_filter": data.draw(st.one_of(st.none(), st.none(), compared.filters)),
        }
        if way == "upload_points":
            self.pair.both("upload_points", "c", points, **options, wait=True)
            return
        if way == "batch":
            # A batch's columns have no gaps: every point gets every vector.
            row = {name: compared.dense_vectors(params) for name, params in self.dense.items()}
            row |= {name: compared.sparse_vectors() for name in self.sparse}
            rows = [data.draw(st.fixed_dictionaries(row)) for _ in points]
            columns: Any = {name: [each[name] for each in rows] for name in row}
            if set(columns) == {""}:
                columns = columns[""]
            batch = qm.Batch(
                ids=[each.id for each in points],
                vectors=columns,
                payloads=[each.payload for each in points],
            )
            self.pair.both("upsert", "c", points=batch, **options)
            return
        self.pair.both("upsert", "c", points=points, **options)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        selector = self.selector(data)
        if isinstance(selector, list):
            selector = [*selector, data.draw(st.sampled_from(IDS))]
        self.pair.both("delete", "c", points_selector=selector)

    @rule(data=st.data(), key=st.sampled_from([None, None, "nest", "nest.deep", "new.one"]))
    def set_payload(self, data: st.DataObject, key: str | None) -> None:
        payload = data.draw(compared.payloads if key is None else compared.objects)
        self.pair.both("set_payload", "c", payload, points=self.selector(data), key=key)

    @rule(data=st.data(), payload=compared.payloads)
    def overwrite_payload(self, data: st.DataObject, payload: dict[str, Any]) -> None:
        self.pair.both("overwrite_payload", "c", payload, points=self.selector(data))

    @rule(data=st.data(), keys=st.lists(compared.paths, min_size=1, max_size=3))
    def delete_payload(self, data: st.DataObject, keys: list[str]) -> None:
        self.pair.both("delete_payload", "c", keys=keys, points=self.selector(data))

    @rule(data=st.data())
    def clear_payload(self, data: st.DataObject) -> None:
        self.pair.both("clear_payload", "c", points_selector=self.selector(data))

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def update_vectors(self, data: st.DataObject) -> None:
        held = st.sampled_from(self.held())
        vectors = compared.vectors_of(self.dense, self.sparse)
        points = [
            qm.PointVectors(id=at, vector=data.draw(vectors))
            for at in data.draw(st.lists(held, min_size=1, max_size=3, unique=True))
        ]
        condition = data.draw(st.one_of(st.none(), st.none(), compared.filters))
        self.pair.both("update_vectors", "c", points=points, update_filter=condition)

    @precondition(lambda self: self.dense or self.sparse)
    @rule(data=st.data())
    def delete_vectors(self, data: st.DataObject) -> None:
        names = st.sampled_from([*self.dense, *self.sparse])
        vectors = data.draw(st.lists(names, min_size=1, max_size=2, unique=True))
        self.pair.both("delete_vectors", "c", vectors=vectors, points=self.selector(data))

    @rule(field=st.sampled_from(sorted(INDEXES)), drop=st.booleans())
    def index(self, field: str, drop: bool) -> None:
        if drop:
            self.pair.both("delete_payload_index", "c", field)
        else:
            self.pair.both("create_payload_index", "c", field, field_schema=INDEXES[field])

    @precondition(lambda self: self.named)
    @rule(size=st.integers(1, 3), multiple=st.booleans(), distance=st.sampled_from(qm.Distance))
    def add_dense_name(self, size: int, multiple: bool, distance: qm.Distance) -> None:
        if "added" in self.dense:
            return
        multi = compared.MAX_SIM if multiple else None
        distance = qm.Distance.DOT if multiple else distance
        config = qm.DenseVectorConfig(size=size, distance=distance, multivector_config=multi)
        self.pair.both("create_vector_name", "c", "added", qm.DenseVectorNameConfig(dense=config))
        self.dense["added"] = qm.VectorParams(
            size=size, distance=distance, multivector_config=multi
        )

    @rule(name=st.sampled_from([SPARSE, "more words"]))
    def add_sparse_name(self, name: str) -> None:
        if name not in self.sparse:
            config = qm.SparseVectorNameConfig(sparse=qm.SparseVectorConfig())
            self.pair.both("create_vector_name", "c", name, config)
            self.sparse.append(name)

    @precondition(lambda self: self.named)
    @rule(data=st.data())
    def delete_name(self, data: st.DataObject) -> None:
        names = [*self.dense, *self.sparse]
        if len(names) > 1:
            name = data.draw(st.sampled_from(names))
            self.pair.both("delete_vector_name", "c", name)
            self.dense.pop(name, None)
            self.sparse = [each for each in self.sparse if each != name]

    @rule()
    def reopen(self) -> None:
        self.pair.reopen()

    @precondition(lambda self: self.dense or self.sparse)
    @rule(data=st.data(), limit=limits)
    def search(self, data: st.DataObject, limit: int) -> None:
        using, query, larger = data.draw(compared.queries(self.dense, self.sparse))
        condition = data.draw(st.one_of(st.none(), compared.filters))
        Asked(self.pair, "c", query=query, using=using, limit=limit, query_filter=condition).check(
            larger_is_better=larger
        )

    @rule(condition=compared.filters)
    def count(self, condition: qm.Filter) -> None:
        ours, theirs = self.pair.both("count", "c", count_filter=condition, exact=True)
        assert ours.count == theirs.count

    @rule(ids=st.lists(st.sampled_from(IDS), unique=True))
    def retrieve(self, ids: list[Any]) -> None:
        ours, theirs = self.pair.both("retrieve", "c", ids, with_vectors=True)
        compared.assert_same_records(ours, theirs)

    @invariant()
    def both_hold_the_same(self) -> None:
        if self.pair.oracle.collection_exists("c"):
            self.pair.assert_same_points("c")

    def teardown(self) -> None:
        try:
            self.pair.reopen()
            self.both_hold_the_same()
        finally:
            self.pair.close()
            self.folder.cleanup()


class Collections(RuleBasedStateMachine):
    """Collections and their aliases created, changed and deleted."""

    names = st.sampled_from(["one", "two", "größe"])
    aliases = st.sampled_from(["live", "old", "next", "one"])
    metadata = st.dictionaries(st.sampled_from(["a", "b", "größe"]), compared.scalars, max_size=2)

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.pair = Pair(Path(self.folder.name))

    def either(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Do it with both clients, or see both refuse it."""
        try:
            getattr(self.pair.oracle, method)(*args, **kwargs)
        except ValueError:
            with pytest.raises(ValueError):  # noqa: PT011
                getattr(self.pair.ours, method)(*args, **kwargs)
        else:
            getattr(self.pair.ours, method)(*args, **kwargs)

    @rule(name=st.one_of(names, aliases), layout=layouts, metadata=st.one_of(st.none(), metadata))
    def create(self, name: str, layout: str, metadata: Any) -> None:
        self.either("create_collection", name, **LAYOUTS[layout], metadata=metadata)

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.either("delete_collection", name)

    @rule(name=names, metadata=metadata)
    def update(self, name: str, metadata: dict[str, Any]) -> None:
        self.either("update_collection", name, metadata=metadata)

    @rule(data=st.data())
    def change_aliases(self, data: st.DataObject) -> None:
        """Change several aliases in one call; atomic."""
        operations: list[Any] = []
        for _ in range(data.draw(st.integers(1, 3))):
            kind = data.draw(st.sampled_from(["create", "create", "delete", "rename"]))
            alias = data.draw(self.aliases)
            if kind == "create":
                operations.append(
                    qm.CreateAliasOperation(
                        create_alias=qm.CreateAlias(
                            collection_name=data.draw(self.names), alias_name=alias
                        )
                    )
                )
            elif kind == "delete":
                operations.append(
                    qm.DeleteAliasOperation(delete_alias=qm.DeleteAlias(alias_name=alias))
                )
            else:
                operations.append(
                    qm.RenameAliasOperation(
                        rename_alias=qm.RenameAlias(
                            old_alias_name=alias, new_alias_name=data.draw(self.aliases)
                        )
                    )
                )
        self.either("update_collection_aliases", change_aliases_operations=operations)

    @rule(name=st.one_of(names, aliases), at=st.sampled_from(IDS), payload=compared.payloads)
    def write(self, name: str, at: Any, payload: dict[str, Any]) -> None:
        """Write by the collection's own name or through an alias."""
        record = qm.PointStruct(id=at, vector={}, payload=payload)
        self.either("upsert", name, [record])

    @rule(name=st.one_of(names, aliases))
    def set_payload(self, name: str) -> None:
        everything = qm.Filter(must_not=[qm.HasIdCondition(has_id=[99])])
        self.either("set_payload", name, {"set": name}, points=everything)

    @rule()
    def reopen(self) -> None:
        self.pair.reopen()

    @invariant()
    def both_report_the_same(self) -> None:
        ours, theirs = self.pair.both("get_collections")
        existing = {each.name for each in theirs.collections}
        assert {each.name for each in ours.collections} == existing
        ours, theirs = self.pair.both("get_aliases")
        aliases = {(each.alias_name, each.collection_name) for each in theirs.aliases}
        assert {(each.alias_name, each.collection_name) for each in ours.aliases} == aliases
        for name in ["one", "two", "größe", "live", "old", "next", "missing"]:
            ours, theirs = self.pair.both("collection_exists", name)
            assert ours == theirs
            if not theirs:
                continue
            self.pair.assert_same_points(name)
            assert_same_collection(*self.pair.both("get_collection", name))
            ours, theirs = self.pair.both("get_collection_aliases", name)
            assert {(each.alias_name, each.collection_name) for each in ours.aliases} == {
                (each.alias_name, each.collection_name) for each in theirs.aliases
            }

    def teardown(self) -> None:
        self.pair.close()
        self.folder.cleanup()


def assert_same_collection(ours: Any, theirs: Any) -> None:
    assert isinstance(ours, qm.CollectionInfo)
    assert ours.points_count == theirs.points_count
    assert ours.status == theirs.status == qm.CollectionStatus.GREEN
    compared.assert_same_json(ours.config.metadata, theirs.config.metadata)
    for mine, other in [
        (ours.config.params.vectors, theirs.config.params.vectors),
        (ours.config.params.sparse_vectors, theirs.config.params.sparse_vectors),
    ]:
        assert isinstance(mine, dict) == isinstance(other, dict) or not (mine or other)
        shown = [
            each if isinstance(each, dict) else {"": each} if each is not None else {}
            for each in (mine, other)
        ]
        assert list(shown[0]) == list(shown[1]) or set(shown[0]) == set(shown[1])
        for name, params in shown[1].items():
            for field in ("size", "distance", "multivector_config", "modifier"):
                assert getattr(shown[0][name], field, None) == getattr(params, field, None)


def test_after_any_operations_on_points_both_hold_the_same() -> None:
    run_state_machine_as_test(
        Points,
        settings=settings(
            max_examples=10, stateful_step_count=12, suppress_health_check=list(HealthCheck)
        ),
    )


def test_after_any_operations_on_collections_both_hold_the_same() -> None:
    run_state_machine_as_test(
        Collections,
        settings=settings(
            max_examples=15, stateful_step_count=12, suppress_health_check=list(HealthCheck)
        ),
    )


def test_everything_is_there_after_the_folder_is_opened_again(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    for layout, config in LAYOUTS.items():
        pair.both("create_collection", layout, **config, metadata={"of": layout})
        pair.both("upsert", layout, compared.corpus(layout))
    alias = qm.CreateAlias(collection_name="named", alias_name="live")
    pair.both("update_collection_aliases", [qm.CreateAliasOperation(create_alias=alias)])
    index_of(pair, "named")
    for _ in range(2):
        pair.reopen()
        for name in [*LAYOUTS, "live"]:
            pair.assert_same_points(name)
            assert_same_collection(*pair.both("get_collection", name))
        for using, query, larger in [
            ("cosine", [1.0, 0.2, -0.3, 0.1], True),
            ("euclid", [0.3, 0.2, 0.1], False),
            ("tokens", [[1.0, 0.2, 0.1], [-1.0, 0.3, 0.4]], True),
            (SPARSE, sparse([1, 4, 7], [1.0, 0.7, 0.4]), True),
        ]:
            Asked(pair, "live", query=query, using=using).check(larger_is_better=larger)
    pair.close()


@pytest.mark.parametrize(
    ("method", "arguments", "left"),
    [
        ("set_payload", {"payload": {"n": 2}, "points": [1, 99]}, {"word": "red", "n": 2}),
        ("overwrite_payload", {"payload": {"n": 2}, "points": [99, 1]}, {"n": 2}),
        ("delete_payload", {"keys": ["word"], "points": [1, 99]}, {}),
        ("clear_payload", {"points_selector": [99, 1]}, {}),
    ],
)
def test_an_unknown_id_is_an_error_after_the_others_are_changed(
    pair: Pair, method: str, arguments: dict[str, Any], left: dict[str, Any]
) -> None:
    pair.both("create_collection", "c", **LAYOUTS["named"])
    pair.ours.upsert("c", [point(1, payload={"word": "red"}), point(2, payload={"word": "red"})])
    with pytest.raises(ValueError, match="99"):
        getattr(pair.ours, method)("c", **arguments)
    assert [record.payload for record in pair.ours.scroll("c")[0]] == [left, {"word": "red"}]


def test_modes_and_a_condition_of_an_update(pair: Pair) -> None:
    pair.both("create_collection", "c", **LAYOUTS["named"])

    def payloads_after(word: str, **options: Any) -> dict[Any, str]:
        pair.ours.upsert("c", [point(n, payload={"word": word}) for n in (1, 2)], **options)
        return {record.id: record.payload["word"] for record in pair.ours.scroll("c")[0]}

    assert payloads_after("no", update_mode=qm.UpdateMode.UPDATE_ONLY) == {}
    pair.ours.upsert("c", [point(1, payload={"word": "first"})])
    inserted = payloads_after("second", update_mode=qm.UpdateMode.INSERT_ONLY)
    assert inserted == {1: "first", 2: "second"}
    updated = payloads_after("third", update_mode=qm.UpdateMode.UPDATE_ONLY)
    assert updated == {1: "third", 2: "third"}
    pair.ours.delete("c", [2])
    only = qm.FieldCondition(key="word", match=qm.MatchValue(value="else"))
    kept = payloads_after("fourth", update_filter=qm.Filter(must=[only]))
    assert kept == {1: "third", 2: "fourth"}, "a condition holds for points that are there"


def test_metadata_is_merged_key_by_key_and_a_null_removes(pair: Pair) -> None:
    pair.both("create_collection", "c", **LAYOUTS["unnamed"], metadata={"a": 1, "b": {"c": 2}})
    for change in ({"b": {"d": 3}}, {"a": None, "e": "größe"}, {}):
        pair.both("update_collection", "c", metadata=change)
        assert_same_collection(*pair.both("get_collection", "c"))
    assert pair.ours.get_collection("c").config.metadata == {"b": {"d": 3}, "e": "größe"}


def test_aliases_switch_in_one_call(pair: Pair) -> None:
    for name in ("one", "two"):
        pair.both("create_collection", name, **LAYOUTS["unnamed"])
    vector = {"": [1.0, 0, 0, 0]}
    pair.ours.upsert("two", [qm.PointStruct(id=2, vector=vector)])

    def create(name: str) -> qm.CreateAliasOperation:
        alias = qm.CreateAlias(collection_name=name, alias_name="live")
        return qm.CreateAliasOperation(create_alias=alias)

    drop = qm.DeleteAliasOperation(delete_alias=qm.DeleteAlias(alias_name="live"))
    pair.ours.update_collection_aliases(change_aliases_operations=[create("one")])
    assert pair.ours.count("live").count == 0
    pair.ours.upsert("live", [qm.PointStruct(id=1, vector=vector)])
    assert [r.id for r in pair.ours.scroll("one")[0]] == [1]
    pair.ours.update_collection_aliases(change_aliases_operations=[drop, create("two")])
    assert [r.id for r in pair.ours.scroll("live")[0]] == [2]
    with pytest.raises(ValueError, match="three"):
        pair.ours.update_collection_aliases(change_aliases_operations=[drop, create("three")])
    assert [r.id for r in pair.ours.scroll("live")[0]] == [2]


# --------------------------------------------------------------------------------------- bad input

NAN, INFINITY = math.nan, math.inf
BAD_VECTORS: dict[str, dict[str, Any]] = {
    "NaN in dense": {"dot": [1.0, NAN, 0.0]},
    "infinity in dense": {"dot": [1.0, INFINITY, 0.0]},
    "minus infinity in cosine": {"cosine": [1.0, -INFINITY, 0.0, 0.0]},
    "infinite as a 32-bit float": {"dot": [1e39, 0.0, 0.0]},
    "NaN in a row": {"tokens": [[1.0, 0.0, 0.0], [1.0, NAN, 0.0]]},
    "infinity in a row": {"rows": [[INFINITY, 0.0]]},
    "NaN in sparse": {SPARSE: sparse([1, 2], [1.0, NAN])},
    "infinity in sparse": {SPARSE: sparse([1, 2], [INFINITY, 1.0])},
    "infinite in sparse as a 32-bit float": {SPARSE: sparse([1], [1e39])},
    "a sparse index twice": {SPARSE: sparse([3, 1, 3], [1.0, 2.0, 3.0])},
    "more sparse indices than values": {SPARSE: sparse([1, 2, 3], [1.0, 2.0])},
    "more sparse values than indices": {SPARSE: sparse([1], [1.0, 2.0])},
    "a sparse index beyond 32 bits": {SPARSE: sparse([2**32], [1.0])},
    "a sparse index beyond 64 bits": {SPARSE: sparse([2**70, 1], [1.0, 1.0])},
    "a negative sparse index": {SPARSE: sparse([-1], [1.0])},
    "too few numbers": {"dot": [1.0, 2.0]},
    "too many numbers": {"dot": [1.0, 2.0, 3.0, 4.0]},
    "no number": {"dot": []},
    "too few numbers in a row": {"tokens": [[1.0, 2.0, 3.0], [1.0, 2.0]]},
    "no row": {"tokens": []},
    "an empty row": {"tokens": [[]]},
    "an unknown name": {"nothing": [1.0, 2.0, 3.0]},
    "sparse for a dense name": {"dot": sparse([1, 2, 3], [1.0, 2.0, 3.0])},
    "sparse for a multi-vector's name": {"tokens": sparse([1], [1.0])},
    "dense for a sparse name": {SPARSE: [1.0, 2.0, 3.0]},
    "rows for a dense name": {"dot": [[1.0, 2.0, 3.0]]},
}
BAD_IDS: list[Any] = [-1, 2**64, "word", "", 1.5, "1", "1234abcd-0000-4000-8000-00000000abc", None]
BAD_PAYLOADS: list[Any] = [
    {"x": NAN}, {"nest": {"deep": [1.0, NAN]}}, {"x": INFINITY}, {"x": [-INFINITY]}
]  # fmt: skip


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("kept"))
    for layout in LAYOUTS:
        made.both("create_collection", layout, **LAYOUTS[layout])
        made.both("upsert", layout, compared.corpus(layout, size=6))
    yield made
    made.close()


@pytest.fixture
def kept(shelf: Pair) -> Iterator[Pair]:
    """A few points in every layout, stored again where a test has changed them."""
    yield shelf
    for layout in LAYOUTS:
        try:
            shelf.assert_same_points(layout)
        except (AssertionError, ValueError):
            for client in (shelf.ours, shelf.oracle):
                client.delete_collection(layout)
            shelf.both("create_collection", layout, **LAYOUTS[layout])
            shelf.both("upsert", layout, compared.corpus(layout, size=6))


def refused(kept: Pair, call: Callable[[Any], Any], *, collection: str = "named") -> None:
    """Check that a call raises a ValueError and leaves the collection unchanged."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call(kept.ours)
    assert str(caught.value), "an error without a message"
    kept.assert_same_points(collection)


def good(number: int) -> Any:
    return point(number, payload={"new": True}, dot=[1.0, 2.0, 3.0])


def writes(client: Any, bad: Any, way: str) -> None:
    """Write the bad point between good ones, in one of the ways that points are written."""
    points = [good(100), bad, good(101)]
    if way == "upsert":
        client.upsert("named", points)
    elif way == "upload":
        client.upload_points("named", points, wait=True)
    else:
        vectors = [qm.PointVectors(id=1, vector={"dot": [5.0, 5.0, 5.0]})]
        vectors.append(qm.PointVectors(id=2, vector=bad.vector))
        client.update_vectors("named", vectors)


WAYS = ["upsert", "upload", "update vectors"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", BAD_VECTORS)
def test_a_bad_vector_is_refused_with_its_whole_request(kept: Pair, what: str, way: str) -> None:
    bad = BAD_VECTORS[what]
    refused(kept, lambda client: writes(client, point(102, **bad), way))


@pytest.mark.parametrize("what", BAD_VECTORS)
def test_a_bad_vector_in_a_batch_by_columns_is_refused(kept: Pair, what: str) -> None:
    ((name, bad),) = BAD_VECTORS[what].items()
    fine: Any = sparse([1], [1.0]) if isinstance(bad, qm.SparseVector) else [1.0, 2.0, 3.0]
    if name in ("tokens", "rows"):
        fine = [[1.0] * NAMED[name].size]
    elif name == "cosine":
        fine = [1.0] * 4
    refused(
        kept,
        lambda client: client.upsert(
            "named", qm.Batch(ids=[100, 101], vectors={name: [fine, bad]})
        ),
    )


def test_the_bad_vectors_are_refused_for_their_defect(kept: Pair) -> None:
    """The same call without the defect passes."""
    fine = point(1, dot=[1.0, 2.0, 3.0], tokens=[[1.0, 2.0, 3.0]], words=sparse([2, 1], [1.0, 2.0]))
    for way in WAYS:
        pair = kept.both("upsert", "named", compared.corpus("named", size=6))
        assert pair
        writes(kept.ours, point(102, **fine.vector), way)
        writes(kept.oracle, point(102, **fine.vector), way)
        kept.assert_same_points("named")
        kept.both("delete", "named", [100, 101, 102])
    kept.both("upsert", "named", compared.corpus("named", size=6))


@pytest.mark.parametrize("way", WAYS[:2])
@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
def test_an_id_that_is_neither_unsigned_nor_a_uuid_is_refused(
    kept: Pair, bad: Any, way: str
) -> None:
    refused(
        kept,
        lambda client: writes(client, qm.PointStruct(id=bad, vector={"dot": [1.0, 0, 0]}), way),
    )


@pytest.mark.parametrize("bad", [-1, 2**64, "word", "", "1"], ids=repr)
@pytest.mark.parametrize(
    "call",
    [
        lambda client, bad: client.retrieve("named", [bad]),
        lambda client, bad: client.delete("named", [1, bad]),
        lambda client, bad: client.set_payload("named", {"set": 1}, points=[1, bad]),
        lambda client, bad: client.query_points("named", bad, using="dot"),
    ],
    ids=["retrieve", "delete", "set_payload", "query"],
)
def test_a_bad_id_is_refused_wherever_an_id_goes(
    kept: Pair, call: Callable[[Any, Any], Any], bad: Any
) -> None:
    refused(kept, lambda client: call(client, bad))


@pytest.mark.parametrize("bad", BAD_PAYLOADS, ids=repr)
@pytest.mark.parametrize("way", [*WAYS[:2], "set", "overwrite"])
def test_a_number_that_json_lacks_is_refused(kept: Pair, bad: dict[str, Any], way: str) -> None:
    def call(client: Any) -> None:
        if way == "set":
            client.set_payload("named", bad, points=[1, 2])
        elif way == "overwrite":
            client.overwrite_payload("named", bad, points=[1, 2])
        else:
            writes(client, point(102, payload=bad, dot=[1.0, 0, 0]), way)

    refused(kept, call)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("what", BAD_VECTORS)
def test_a_bad_query_is_refused(kept: Pair, what: str, batched: bool) -> None:
    ((name, bad),) = BAD_VECTORS[what].items()

    def call(client: Any) -> None:
        if batched:
            nearest = qm.NearestQuery(nearest=bad)
            client.query_batch_points("named", [qm.QueryRequest(query=nearest, using=name)])
        else:
            client.query_points("named", bad, using=name)

    refused(kept, call)


@pytest.mark.parametrize("what", BAD_VECTORS)
def test_a_bad_query_of_a_prefetch_is_refused(kept: Pair, what: str) -> None:
    ((name, bad),) = BAD_VECTORS[what].items()
    inner = qm.Prefetch(query=bad, using=name, limit=5)
    outer = qm.Prefetch(prefetch=inner, query=[1.0, 0, 0], using="dot", limit=5)
    fusion = qm.FusionQuery(fusion=qm.Fusion.RRF)
    for prefetch in (inner, outer):
        refused(
            kept,
            lambda client, prefetch=prefetch: client.query_points(
                "named", prefetch=[prefetch], query=fusion
            ),
        )


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.query_points("named", [1.0, 0, 0], using="dot", limit=0),
        lambda client: client.query_points("named", [1.0, 0, 0], using="dot", offset=-1),
        lambda client: client.query_points("named", [1.0, 0, 0]),
        lambda client: client.query_points(
            "named",
            prefetch=[qm.Prefetch(query=[1.0, 0, 0], using="dot")],
            query=qm.RrfQuery(rrf=qm.Rrf(k=2, weights=[1.0, 2.0])),
        ),
        lambda client: client.query_points(
            "named",
            prefetch=[qm.Prefetch(query=[1.0, 0, 0], using="dot")],
            query=qm.RrfQuery(rrf=qm.Rrf(k=0)),
        ),
        lambda client: client.query_points(
            "named", query=qm.FusionQuery(fusion=qm.Fusion.RRF)
        ),
        lambda client: client.query_points("named", 12345, using="dot"),
        lambda client: client.scroll("named", limit=0),
        lambda client: client.upsert("named", []),
        lambda client: client.delete_vectors("named", ["nothing"], points=[1]),
    ],
    ids=[
        "no limit", "negative offset", "a name forgotten", "too many weights", "k of zero",
        "fusion of nothing", "an unknown id", "an empty page", "no points", "an unknown name",
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(kept: Pair, call: Callable[[Any], Any]) -> None:
    refused(kept, call)


UNKNOWN: dict[str, Callable[[Any], Any]] = {
    "get": lambda client: client.get_collection("none"),
    "upsert": lambda client: client.upsert("none", [good(1)]),
    "upload": lambda client: client.upload_points("none", [good(1)]),
    "query": lambda client: client.query_points("none", [1.0, 0, 0], using="dot"),
    "scroll": lambda client: client.scroll("none"),
    "count": lambda client: client.count("none"),
    "retrieve": lambda client: client.retrieve("none", [1]),
    "delete": lambda client: client.delete("none", [1]),
    "set payload": lambda client: client.set_payload("none", {}, points=[1]),
    "index": lambda client: client.create_payload_index("none", "a", field_schema="keyword"),
    "metadata": lambda client: client.update_collection("none", metadata={}),
    "update vectors": lambda client: client.update_vectors(
        "none", [qm.PointVectors(id=1, vector={"dot": [1.0, 0, 0]})]
    ),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_an_unknown_collection_is_refused(kept: Pair, what: str) -> None:
    refused(kept, UNKNOWN[what])
    assert not kept.ours.collection_exists("none")


def test_a_collection_is_not_created_twice(kept: Pair) -> None:
    refused(kept, lambda client: client.create_collection("named", **LAYOUTS["unnamed"]))
    assert_same_collection(*kept.both("get_collection", "named"))


@pytest.mark.parametrize("name", ["", "a/b", "..", ".", "a\\b", "x" * 300, "nul\0"])
def test_an_invalid_name_of_a_collection_is_refused(kept: Pair, name: str) -> None:
    refused(kept, lambda client: client.create_collection(name, **LAYOUTS["unnamed"]))
    assert {each.name for each in kept.ours.get_collections().collections} == set(LAYOUTS)


def test_vectors_without_a_name_need_a_collection_without_names(kept: Pair) -> None:
    bad = qm.PointStruct(id=7, vector=[1.0, 0, 0])
    refused(kept, lambda client: client.upsert("named", [bad]))
    bad = qm.PointStruct(id=7, vector={"cosine": [1.0, 0, 0, 0]})
    refused(kept, lambda client: client.upsert("unnamed", [bad]), collection="unnamed")


def test_a_refusal_of_ours_is_an_input_error(kept: Pair) -> None:
    for bad in BAD_VECTORS.values():
        with pytest.raises(InputError):
            kept.ours.upsert("named", [point(1, **bad)])


def test_the_last_of_many_points_may_be_the_bad_one(kept: Pair) -> None:
    """Also if there are more points than one piece to the core."""
    many = [point(n, payload={"text": "fox " * 9}) for n in range(1000, 1200)]
    bad = point(1200, dot=[math.nan, 0.0, 0.0])
    refused(kept, lambda client: client.upsert("named", [*many, bad]))
