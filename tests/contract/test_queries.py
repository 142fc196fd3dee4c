"""Queries beyond nearest points and fusion: diverse hits, examples, formulas, orders, groups.

The oracle is qdrant-client's local mode, as in test_stores.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from qdrant_client import models as qm

import compared
from compared import EVERYTHING, NAMED, SPARSE, Asked, Pair, filled_pair
from unified_embeddings.errors import InputError

quick = settings(max_examples=40, suppress_health_check=list(HealthCheck))
names = st.sampled_from([*NAMED, SPARSE])
limits = st.sampled_from([1, 3, 8, 100])
offsets = st.sampled_from([None, 0, 2])
kept = st.one_of(st.none(), st.none(), compared.filters)
HOLDERS = {
    name: [point.id for point in compared.corpus("named") if name in point.vector]
    for name in [*NAMED, SPARSE]
}
"""Vector name → ids of the points that have such a vector."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = filled_pair(tmp_path_factory.mktemp("filled"))
    yield made
    made.close()


def vectors_named(name: str) -> st.SearchStrategy[Any]:
    if name == SPARSE:
        return compared.sparse_vectors().filter(lambda vector: vector.indices)
    return compared.dense_vectors(NAMED[name])


def examples(name: str) -> st.SearchStrategy[Any]:
    """Draw a vector, or a point that has one."""
    return st.one_of(vectors_named(name), st.sampled_from(HOLDERS[name]))


def larger_is_better(name: str) -> bool:
    return name not in ("euclid", "manhattan")


def ids_of(answer: Any) -> list[Any]:
    return [hit.id for hit in answer.points]


# --------------------------------------------------------------------------------- diverse hits


@settings(quick, max_examples=80)
@given(data=st.data(), name=names, limit=limits, offset=offsets, condition=kept)
def test_diverse_hits_are_the_oracles(
    filled: Pair, data: st.DataObject, name: str, limit: int, offset: int | None, condition: Any
) -> None:
    query = data.draw(examples(name))
    count = data.draw(st.sampled_from([None, 5, 12, 100]))
    options: dict[str, Any] = {"using": name, "query_filter": condition}
    nearest = filled.oracle.query_points("named", query, limit=EVERYTHING, **options).points
    assume(not compared.ties(nearest, EVERYTHING))
    diversity = data.draw(st.sampled_from([None, 0.0, 0.25, 0.7]))
    # Where two candidates are as good at some step, rounding decides. Then a breath more or less of
    # diversity changes the order.
    middle = 0.5 if diversity is None else diversity
    orders = [
        ids_of(
            filled.oracle.query_points(
                "named",
                qm.NearestQuery(
                    nearest=query, mmr=qm.Mmr(diversity=nearby, candidates_limit=count)
                ),
                limit=limit,
                offset=offset,
                **options,
            )
        )
        for nearby in (max(0.0, middle - 1e-4), middle, middle + 1e-4)
    ]
    assume(orders[0] == orders[1] == orders[2])
    mmr = qm.Mmr(diversity=diversity, candidates_limit=count)
    ours, theirs = filled.both(
        "query_points",
        "named",
        qm.NearestQuery(nearest=query, mmr=mmr),
        limit=limit,
        offset=offset,
        with_vectors=[name],
        **options,
    )
    assert ids_of(ours) == ids_of(theirs)
    for mine, other in zip(ours.points, theirs.points, strict=True):
        assert compared.close_to(mine.score, other.score)
        compared.assert_same_record(mine, other)


@pytest.mark.parametrize("name", ["dot", SPARSE])
def test_a_second_copy_of_the_nearest_point_gives_way(pair: Pair, name: str) -> None:
    pair.both("create_collection", "twins", **compared.LAYOUTS["named"])
    rows: dict[int, tuple[float, float]] = {1: (1.0, 0.0), 2: (1.0, 0.01), 3: (0.7, 0.7)}
    points = [
        qm.PointStruct(
            id=number,
            vector={"dot": [*row, 0.0], SPARSE: qm.SparseVector(indices=[1, 2], values=list(row))},
        )
        for number, row in rows.items()
    ]
    pair.ours.upsert("twins", points)
    query: Any = [1.0, 0.1, 0.0]
    if name == SPARSE:
        query = qm.SparseVector(indices=[1, 2], values=[1.0, 0.1])

    def ask(diversity: float) -> list[Any]:
        mmr = qm.Mmr(diversity=diversity, candidates_limit=3)
        nearest = qm.NearestQuery(nearest=query, mmr=mmr)
        return ids_of(pair.ours.query_points("twins", nearest, using=name, limit=2))

    assert ask(0.0) == [2, 1]
    assert ask(0.8) == [2, 3]


def test_diverse_hits_of_a_batch_and_over_prefetches(filled: Pair) -> None:
    sparse = qm.SparseVector(indices=[0, 3, 7], values=[0.9, 0.5, 0.3])
    mmr = qm.Mmr(diversity=0.5, candidates_limit=12)
    prefetch = qm.Prefetch(query=[0.3, 1.0, -0.2], using="dot", limit=15)
    requests = [
        qm.QueryRequest(query=qm.NearestQuery(nearest=sparse, mmr=mmr), using=SPARSE, limit=4),
        qm.QueryRequest(query=[0.3, 1.0, -0.2], using="dot", limit=4),
        qm.QueryRequest(
            query=qm.NearestQuery(nearest=[0.5, -1.0], mmr=mmr), using="manhattan", limit=4,
            prefetch=prefetch,
        ),
        qm.QueryRequest(
            query=qm.NearestQuery(nearest=sparse, mmr=mmr), using=SPARSE, limit=4,
            prefetch=prefetch, offset=1,
        ),
    ]  # fmt: skip
    ours, theirs = filled.both("query_batch_points", "named", requests)
    assert [ids_of(answer) for answer in ours] == [ids_of(answer) for answer in theirs]
    for query in (requests[0].query, requests[2].query):
        inner = qm.Prefetch(query=query, using=SPARSE)
        for outer in (
            qm.RrfQuery(rrf=qm.Rrf(k=61)),
            qm.FusionQuery(fusion=qm.Fusion.DBSF),
            qm.FormulaQuery(formula="$score"),
        ):
            with pytest.raises(InputError, match="MMR within a prefetch that is fused"):
                filled.ours.query_points("named", outer, prefetch=inner)


@quick
@given(data=st.data(), name=names, outer=names, limit=limits, condition=kept)
def test_diverse_hits_of_a_prefetch_are_scored_again(
    filled: Pair, data: st.DataObject, name: str, outer: str, limit: int, condition: Any
) -> None:
    query = data.draw(vectors_named(name))
    joined = compared.joined(condition)
    options: dict[str, Any] = {"using": name, "query_filter": joined}
    nearest = filled.oracle.query_points("named", query, limit=EVERYTHING, **options).points
    assume(not compared.ties(nearest, EVERYTHING))
    mmr = qm.Mmr(diversity=0.5, candidates_limit=15)
    Asked(
        filled,
        "named",
        prefetch=qm.Prefetch(query=qm.NearestQuery(nearest=query, mmr=mmr), using=name, limit=6),
        query=data.draw(vectors_named(outer)),
        using=outer,
        limit=limit,
        query_filter=joined,
    ).check(larger_is_better=larger_is_better(outer))


# ------------------------------------------------------------------------------------- examples


@settings(quick, max_examples=80)
@given(
    data=st.data(),
    name=names,
    limit=limits,
    offset=offsets,
    condition=kept,
    strategy=st.sampled_from([None, *qm.RecommendStrategy]),
)
def test_recommended_points_are_the_oracles(
    filled: Pair,
    data: st.DataObject,
    name: str,
    limit: int,
    offset: int | None,
    condition: Any,
    strategy: qm.RecommendStrategy | None,
) -> None:
    is_average = strategy in (None, qm.RecommendStrategy.AVERAGE_VECTOR)
    positive = data.draw(st.lists(examples(name), min_size=int(is_average), max_size=3))
    negative = data.draw(st.lists(examples(name), min_size=int(not positive), max_size=2))
    if is_average and name == "cosine":  # a mean of zero has no direction
        assume(not negative and len(positive) == 1)
    given_ = qm.RecommendInput(positive=positive, negative=negative, strategy=strategy)
    Asked(
        filled,
        "named",
        query=qm.RecommendQuery(recommend=given_),
        using=name,
        limit=limit,
        offset=offset,
        query_filter=condition,
    ).check(larger_is_better=not is_average or larger_is_better(name))


@settings(quick, max_examples=60)
@given(data=st.data(), name=names, limit=limits, condition=kept, has_target=st.booleans())
def test_points_within_a_context_are_the_oracles(
    filled: Pair, data: st.DataObject, name: str, limit: int, condition: Any, has_target: bool
) -> None:
    pairs = st.builds(
        lambda one, other: qm.ContextPair(positive=one, negative=other),
        examples(name),
        examples(name),
    )
    context = data.draw(st.one_of(pairs, st.lists(pairs, min_size=1, max_size=3)))
    query: Any = qm.ContextQuery(context=context)
    if has_target:
        target = data.draw(examples(name))
        query = qm.DiscoverQuery(discover=qm.DiscoverInput(target=target, context=context))
    Asked(filled, "named", query=query, using=name, limit=limit, query_filter=condition).check()


@quick
@given(data=st.data(), condition=kept, is_formula=st.booleans(), limit=limits)
def test_points_found_by_examples_are_fused_and_reckoned_with(
    filled: Pair, data: st.DataObject, condition: Any, is_formula: bool, limit: int
) -> None:
    prefetch = []
    for name in data.draw(st.lists(st.sampled_from(["dot", "cosine"]), min_size=1, max_size=2)):
        positive, negative = data.draw(examples(name)), data.draw(examples(name))
        pair = qm.ContextPair(positive=positive, negative=negative)
        kinds: list[Any] = [
            qm.RecommendQuery(
                recommend=qm.RecommendInput(
                    positive=[positive], negative=[negative], strategy="best_score"
                )
            ),
            qm.DiscoverQuery(
                discover=qm.DiscoverInput(target=data.draw(examples(name)), context=pair)
            ),
        ]
        query = data.draw(st.sampled_from(kinds))
        leaf = qm.Prefetch(query=query, using=name, limit=5, filter=compared.joined(condition))
        found = filled.oracle.query_points(
            "named", query, using=name, query_filter=leaf.filter, limit=EVERYTHING
        )
        assume(not compared.ties(found.points, EVERYTHING))
        prefetch.append(leaf)
    outer: Any = qm.RrfQuery(rrf=qm.Rrf(k=61))
    if is_formula:
        outer = qm.FormulaQuery(formula=qm.SumExpression(sum=["$score", "$score[1]"]))
    Asked(filled, "named", prefetch=prefetch, query=outer, limit=limit).check()


REFUSED: dict[str, Any] = {
    "no example": qm.RecommendQuery(recommend=qm.RecommendInput()),
    "no positive example": qm.RecommendQuery(recommend=qm.RecommendInput(negative=[[1.0, 0, 0]])),
    "no example of any kind": qm.RecommendQuery(
        recommend=qm.RecommendInput(strategy=qm.RecommendStrategy.BEST_SCORE)
    ),
    "an unknown id": qm.RecommendQuery(recommend=qm.RecommendInput(positive=[77])),
    "another dimension": qm.RecommendQuery(recommend=qm.RecommendInput(positive=[[1.0]])),
    "an empty context": qm.ContextQuery(context=[]),
    "an unknown id in a context": qm.ContextQuery(
        context=qm.ContextPair(positive=77, negative=[1.0, 0, 0])
    ),
    "a formula without prefetch": qm.FormulaQuery(formula="$score"),
    "diversity above 1": qm.NearestQuery(nearest=[1.0, 0, 0], mmr=qm.Mmr(diversity=1.5)),
    "no candidates": qm.NearestQuery(nearest=[1.0, 0, 0], mmr=qm.Mmr(candidates_limit=0)),
    "too many candidates": qm.NearestQuery(
        nearest=[1.0, 0, 0], mmr=qm.Mmr(candidates_limit=20_000)
    ),
    "order without index": qm.OrderByQuery(order_by="n"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_query_that_makes_no_sense_is_refused(filled: Pair, what: str) -> None:
    with pytest.raises(InputError):
        filled.ours.query_points("named", REFUSED[what], using="dot")


# ------------------------------------------------------------------------ in another collection


@quick
@given(data=st.data(), name=st.sampled_from(["dot", "euclid", "tokens", SPARSE]), limit=limits)
def test_ids_are_looked_up_in_another_collection(
    filled: Pair, data: st.DataObject, name: str, limit: int
) -> None:
    wanted = data.draw(st.sampled_from(HOLDERS[name]))
    other = data.draw(st.sampled_from(["named gridded", "named"]))
    vector = data.draw(st.sampled_from([None, name]))
    assume(wanted in {p.id for p in compared.corpus("named", gridded="gr" in other)
                      if name in p.vector})  # fmt: skip
    query = data.draw(
        st.sampled_from(
            [
                wanted,
                qm.NearestQuery(nearest=wanted),
                qm.RecommendQuery(
                    recommend=qm.RecommendInput(
                        positive=[wanted], strategy=qm.RecommendStrategy.BEST_SCORE
                    )
                ),
            ]
        )
    )
    is_reversed = isinstance(query, qm.RecommendQuery)
    location = qm.LookupLocation(collection=other, vector=vector)
    Asked(filled, "named", query=query, using=name, limit=limit, lookup_from=location).check(
        larger_is_better=is_reversed or larger_is_better(name)
    )


def test_a_point_of_another_collection_is_an_answer_and_one_of_this_is_none(filled: Pair) -> None:
    elsewhere = qm.LookupLocation(collection="named gridded")
    here = qm.LookupLocation(collection="named")
    wanted = next(p for p in HOLDERS["dot"] if isinstance(p, int))
    ask = {"query": wanted, "using": "dot", "limit": EVERYTHING}
    assert wanted in ids_of(filled.ours.query_points("named", **ask, lookup_from=elsewhere))
    assert wanted not in ids_of(filled.ours.query_points("named", **ask, lookup_from=here))
    with pytest.raises(InputError, match="not found"):
        filled.ours.query_points("named", **ask, lookup_from=qm.LookupLocation(collection="x"))
    elsewhere.vector = "nothing"
    with pytest.raises(InputError, match="no vector named 'nothing'"):
        filled.ours.query_points("named", **ask, lookup_from=elsewhere)


# ------------------------------------------------------------------------------ orders, samples


@quick
@given(
    key=st.sampled_from(["n", "x", "when"]),
    direction=st.sampled_from(qm.Direction),
    limit=limits,
    offset=offsets,
    collection=st.sampled_from(["indexed first", "indexed last"]),
    condition=kept,
)
def test_hits_in_the_order_of_a_field_are_the_oracles(
    filled: Pair,
    key: str,
    direction: qm.Direction,
    limit: int,
    offset: int | None,
    collection: str,
    condition: Any,
) -> None:
    query = qm.OrderByQuery(order_by=qm.OrderBy(key=key, direction=direction))
    options: dict[str, Any] = {"query": query, "query_filter": condition}
    ours = filled.ours.query_points(collection, limit=limit, offset=offset, **options).points
    whole = filled.oracle.query_points(collection, limit=EVERYTHING, **options).points
    start = offset or 0
    expected = whole[start : start + limit]
    assert [hit.order_value for hit in ours] == [hit.order_value for hit in expected]
    assert {hit.score for hit in ours} <= {1.0}
    known = {(hit.order_value, hit.id) for hit in whole}
    assert {(hit.order_value, hit.id) for hit in ours} <= known


@quick
@given(limit=limits, condition=kept, has_prefetch=st.booleans())
def test_a_sample_is_some_of_the_points_each_once(
    filled: Pair, limit: int, condition: Any, has_prefetch: bool
) -> None:
    prefetch = qm.Prefetch(query=[0.3, 1.0, -0.2], using="dot", limit=15) if has_prefetch else None
    matching, _ = filled.oracle.scroll("named", condition, limit=EVERYTHING)
    allowed = {record.id for record in matching}
    if prefetch is not None:
        near = filled.oracle.query_points(
            "named", prefetch.query, using="dot", limit=15, query_filter=condition
        )
        allowed = set(ids_of(near))
    answer = filled.ours.query_points(
        "named", qm.SampleQuery(sample=qm.Sample.RANDOM), prefetch=prefetch, limit=limit,
        query_filter=compared.joined(condition),
    )  # fmt: skip
    found = ids_of(answer)
    assert len(set(found)) == len(found) == min(limit, len(allowed))
    assert set(found) <= allowed


def test_samples_differ(filled: Pair) -> None:
    sample = qm.SampleQuery(sample=qm.Sample.RANDOM)
    drawn = {tuple(ids_of(filled.ours.query_points("named", sample, limit=5))) for _ in range(20)}
    assert len(drawn) > 10


# ----------------------------------------------------------------------------------- formulas

numbers = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0])
leaves = st.one_of(
    numbers,
    st.sampled_from(["$score", "$score[1]", "rank", "missing", "spot.height"]),
    compared.filters.map(copy.deepcopy),
    st.just(qm.DatetimeKeyExpression(datetime_key="day")),
    st.just(qm.DatetimeExpression(datetime="2024-03-01T00:00:00Z")),
    st.just(
        qm.GeoDistance(
            geo_distance=qm.GeoDistanceParams(origin=qm.GeoPoint(lon=10, lat=50), to="place")
        )
    ),
)


def composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=3)
    pairs = st.tuples(inner, inner)
    decays = st.builds(
        lambda x, target, scale, midpoint: qm.DecayParamsExpression(
            x=x, target=target, scale=scale, midpoint=midpoint
        ),
        inner,
        st.one_of(st.none(), inner),
        st.sampled_from([None, 0.5, 10.0]),
        st.sampled_from([None, 0.25, 0.9]),
    )
    return st.one_of(
        some.map(lambda parts: qm.SumExpression(sum=parts)),
        some.map(lambda parts: qm.MultExpression(mult=parts)),
        some.map(lambda parts: qm.MaxExpression(max=parts)),
        some.map(lambda parts: qm.MinExpression(min=parts)),
        inner.map(lambda part: qm.NegExpression(neg=part)),
        inner.map(lambda part: qm.AbsExpression(abs=part)),
        inner.map(lambda part: qm.SqrtExpression(sqrt=part)),
        inner.map(lambda part: qm.ExpExpression(exp=part)),
        inner.map(lambda part: qm.Log10Expression(log10=part)),
        inner.map(lambda part: qm.LnExpression(ln=part)),
        inner.map(lambda part: qm.AcoshExpression(acosh=part)),
        pairs.map(
            lambda both: qm.DivExpression(
                div=qm.DivParams(left=both[0], right=both[1], by_zero_default=1.0)
            )
        ),
        pairs.map(lambda both: qm.PowExpression(pow=qm.PowParams(base=both[0], exponent=both[1]))),
        decays.map(lambda params: qm.LinDecayExpression(lin_decay=params)),
        decays.map(lambda params: qm.ExpDecayExpression(exp_decay=params)),
        decays.map(lambda params: qm.GaussDecayExpression(gauss_decay=params)),
    )


formulas = composed(st.one_of(leaves, composed(leaves)))


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Points whose payload holds what formulas reckon with."""
    made = Pair(tmp_path_factory.mktemp("rated"))
    made.both("create_collection", "rated", {"dot": NAMED["dot"], "euclid": NAMED["euclid"]})
    points = [
        qm.PointStruct(
            id=number,
            vector={"dot": [number / 7, 1.0, -0.3], "euclid": [1.0, number / 3, 0.5]},
            payload={
                "rank": number % 5 - 1.5,
                "spot": {"height": [number * 10]},
                "day": f"2024-0{number % 9 + 1}-11T00:00:00Z",
                "place": {"lon": 10.0 + number, "lat": 50.0},
                "n": number,
                "word": "red" if number % 2 else "blue",
            },
        )
        for number in range(1, 13)
    ]
    made.both("upsert", "rated", points)
    yield made
    made.close()


@settings(quick, max_examples=150)
@given(formula=formulas, limit=limits, offset=offsets, has_default=st.booleans())
def test_points_scored_by_a_formula_are_the_oracles(
    rated: Pair, formula: Any, limit: int, offset: int | None, has_default: bool
) -> None:
    options: dict[str, Any] = {
        "query": qm.FormulaQuery(formula=formula, defaults={"missing": 2.5} if has_default else {}),
        "prefetch": [
            qm.Prefetch(query=[1.0, 0.5, 0.0], using="dot", limit=8),
            qm.Prefetch(query=[0.5, 0.5, 0.0], using="euclid", limit=6),
        ],
        "limit": limit,
        "offset": offset,
    }
    try:
        whole = Asked(rated, "rated", **options).whole()
    except (ValueError, TypeError, OverflowError):
        with pytest.raises(InputError):
            rated.ours.query_points("rated", **options)
        return
    assume(all(abs(hit.score) < 1e30 for hit in whole))
    ours = rated.ours.query_points("rated", **options).points
    compared.assert_ranked(ours, whole, limit=limit, offset=offset or 0)


def test_a_formula_by_hand(rated: Pair) -> None:
    found = rated.ours.query_points(
        "rated",
        prefetch=qm.Prefetch(query=[0.0, 1.0, 0.0], using="dot", limit=EVERYTHING),
        query=qm.FormulaQuery(
            formula=qm.SumExpression(
                sum=[
                    "$score",
                    qm.MultExpression(
                        mult=[
                            10.0,
                            qm.FieldCondition(key="word", match=qm.MatchValue(value="red")),
                        ]
                    ),
                    qm.MultExpression(mult=[0.5, "n"]),
                ]
            )
        ),
        limit=2,
    ).points
    assert [(hit.id, hit.score) for hit in found] == [(11, 16.5), (9, 15.5)]


BAD_FORMULAS: dict[str, Any] = {
    "a field that is missing": "nothing",
    "a field that is no number": "word",
    "a division by zero": qm.DivExpression(div=qm.DivParams(left=1.0, right=0.0)),
    "a root of a negative number": qm.SqrtExpression(sqrt=-1.0),
    "a maximum of nothing": qm.MaxExpression(max=[]),
    "a midpoint of 1": qm.ExpDecayExpression(
        exp_decay=qm.DecayParamsExpression(x="n", midpoint=1.0)
    ),
    "a scale of 0": qm.LinDecayExpression(lin_decay=qm.DecayParamsExpression(x="n", scale=0.0)),
    "a score without a number": "$score[a]",
    "a path that is none": "a[",
    "no date": qm.DatetimeExpression(datetime="yesterday"),
    "a condition that tests nothing": qm.FieldCondition(key="n"),
}


@pytest.mark.parametrize("what", BAD_FORMULAS)
def test_a_formula_without_a_value_is_refused(rated: Pair, what: str) -> None:
    options: dict[str, Any] = {
        "prefetch": qm.Prefetch(query=[0.0, 1.0, 0.0], using="dot"),
        "query": qm.FormulaQuery(formula=BAD_FORMULAS[what]),
    }
    with pytest.raises(InputError):
        rated.ours.query_points("rated", **options)
    with pytest.raises(InputError):
        rated.ours.query_batch_points("rated", [qm.QueryRequest(**options)])


def test_deep_formulas_are_refused(rated: Pair) -> None:
    formula: Any = "n"
    for _ in range(200):
        formula = qm.NegExpression(neg=formula)
    with pytest.raises(InputError, match="nested"):
        rated.ours.query_points(
            "rated",
            prefetch=qm.Prefetch(query=[0.0, 1.0, 0.0], using="dot"),
            query=qm.FormulaQuery(formula=formula),
        )


@pytest.fixture
def pair(tmp_path: Any) -> Iterator[Pair]:
    made = Pair(tmp_path / "store")
    yield made
    made.close()


# ------------------------------------------------------------------------------------- groups


def grouped(answer: Any) -> list[tuple[Any, list[Any]]]:
    return [(group.id, [hit.id for hit in group.hits]) for group in answer.groups]


@settings(quick, max_examples=80)
@given(
    data=st.data(),
    name=names,
    field=st.sampled_from(["word", "n", "mixed", "nest.a", "items[].b", "items[0].a", "missing"]),
    limit=st.sampled_from([1, 2, 5, 50]),
    size=st.sampled_from([1, 2, 3, 50]),
    condition=kept,
)
def test_hits_in_groups_are_the_oracles(
    filled: Pair, data: st.DataObject, name: str, field: str, limit: int, size: int, condition: Any
) -> None:
    options: dict[str, Any] = {
        "query": data.draw(examples(name)),
        "using": name,
        "query_filter": condition,
    }
    whole = filled.oracle.query_points("named", limit=EVERYTHING, **options).points
    assume(not compared.ties(whole, EVERYTHING))
    ours, theirs = filled.both(
        "query_points_groups",
        "named",
        field,
        limit=limit,
        group_size=size,
        with_payload=data.draw(compared.with_payloads),
        with_vectors=data.draw(compared.with_vectors(["dot", SPARSE])),
        **options,
    )
    assert grouped(ours) == grouped(theirs)
    for mine, other in zip(ours.groups, theirs.groups, strict=True):
        assert type(mine.id) is type(other.id)
        for hit, wanted in zip(mine.hits, other.hits, strict=True):
            assert compared.close_to(hit.score, wanted.score)
            compared.assert_same_record(hit, wanted)


@settings(quick, max_examples=20)
@given(data=st.data(), size=st.sampled_from([1, 2]), condition=kept)
def test_fused_hits_in_groups_are_the_oracles(
    filled: Pair, data: st.DataObject, size: int, condition: Any
) -> None:
    prefetch = []
    for name in ("dot", "manhattan"):
        query = data.draw(vectors_named(name))
        options: dict[str, Any] = {"using": name, "query_filter": compared.joined(condition)}
        whole = filled.oracle.query_points("named", query, limit=EVERYTHING, **options).points
        assume(not compared.ties(whole, EVERYTHING))
        prefetch.append(qm.Prefetch(query=query, using=name, limit=3))
    request: dict[str, Any] = {
        "prefetch": prefetch,
        "query": qm.RrfQuery(rrf=qm.Rrf(k=61, weights=[1.0, 0.37])),
        "query_filter": compared.joined(condition),
    }
    every = [each.model_copy(update={"limit": EVERYTHING}) for each in prefetch]
    fused = filled.oracle.query_points("named", **{**request, "prefetch": every}, limit=EVERYTHING)
    assume(len({hit.score for hit in fused.points}) == len(fused.points))
    ours, theirs = filled.both(
        "query_points_groups", "named", "word", limit=3, group_size=size, **request
    )
    assert grouped(ours) == grouped(theirs)


def test_one_hit_for_each_document_with_the_document(pair: Pair) -> None:
    pair.both("create_collection", "documents", vectors_config=NAMED["dot"])
    pair.both("create_collection", "passages", vectors_config=NAMED["dot"])
    documents = [
        qm.PointStruct(id=number, vector=[0.0, 0.0, 1.0], payload={"title": f"no. {number}"})
        for number in (1, 2)
    ]
    passages = [
        qm.PointStruct(id=n, vector=[float(n), 0.0, 0.0], payload={"document": n % 3, "text": "x"})
        for n in range(1, 31)
    ]
    pair.both("upsert", "documents", documents)
    pair.both("upsert", "passages", passages)
    options: dict[str, Any] = {"query": [1.0, 0.0, 0.0], "limit": 5, "group_size": 1}
    ours, theirs = pair.both(
        "query_points_groups", "passages", "document", with_lookup="documents", **options
    )
    assert grouped(ours) == grouped(theirs) == [(0, [30]), (2, [29]), (1, [28])]
    titles = [group.lookup and group.lookup.payload for group in ours.groups]
    assert titles == [None, {"title": "no. 2"}, {"title": "no. 1"}]
    assert [group.lookup and group.lookup.id for group in theirs.groups] == [None, 2, 1]
    chosen = qm.WithLookup(collection="documents", with_payload=False, with_vectors=True)
    ours, theirs = pair.both(
        "query_points_groups", "passages", "document", with_lookup=chosen, **options
    )
    assert ours.groups[1].lookup == theirs.groups[1].lookup


@pytest.mark.parametrize(
    "options",
    [
        {"group_by": "a["},
        {"group_by": ""},
        {"group_by": 5},
        {"group_by": "word", "limit": 0},
        {"group_by": "word", "group_size": 0},
        {"group_by": "word", "with_lookup": "nothing"},
        {"group_by": "word", "with_payload": "text"},
        {"group_by": "word", "with_vectors": ["nothing"]},
        {"group_by": "word", "shard_key_selector": "a"},
    ],
)
def test_groups_that_make_no_sense_are_refused(filled: Pair, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        filled.ours.query_points_groups("named", query=[1.0, 0, 0], using="dot", **options)


# ------------------------------------------------------------------------------------- facets


@quick
@given(
    field=st.sampled_from(["word", "n", "flag", "nest.a", "items[].b"]),
    limit=st.sampled_from([1, 2, 4, 50]),
    condition=kept,
    collection=st.sampled_from(["indexed first", "indexed last"]),
    exact=st.booleans(),
)
def test_facets_are_the_oracles(
    filled: Pair, field: str, limit: int, condition: Any, collection: str, exact: bool
) -> None:
    ours, theirs = filled.both(
        "facet", collection, field, facet_filter=condition, limit=limit, exact=exact
    )
    assert [(hit.value, hit.count) for hit in ours.hits] == [
        (hit.value, hit.count) for hit in theirs.hits
    ]
    assert [type(hit.value) for hit in ours.hits] == [type(hit.value) for hit in theirs.hits]


def test_a_facet_needs_an_index(filled: Pair) -> None:
    with pytest.raises(InputError, match="No appropriate index"):
        filled.ours.facet("named", "word")
    with pytest.raises(InputError, match="No appropriate index"):
        filled.ours.facet("indexed first", "x")
