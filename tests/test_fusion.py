"""Fusion by rank, against fractions worked by hand, and by score, against Qdrant's own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.fusion import (
    Method,
    Normalisation,
    convex,
    convex_shares,
    dbsf,
    fuse_lists,
    list_terms,
    rrf,
)
from unified_embeddings.stores.edge.client import EdgeQdrantClient

rankings_of = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=8), max_size=5)
weighted = st.lists(
    st.tuples(
        st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8),
        st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    ),
    max_size=5,
)


def by_definition(
    rankings: list[list[str]], k: int, weights: list[float] | None = None
) -> dict[str, Fraction]:
    """Σ weight / (k + rank + 1) in exact arithmetic, rank being an item's first place."""
    exact = [Fraction(weight) for weight in weights or [1] * len(rankings)]
    scores: dict[str, Fraction] = {}
    for item in {item for ranking in rankings for item in ranking}:
        total = Fraction(0)
        for ranking, weight in zip(rankings, exact, strict=True):
            distinct = [x for at, x in enumerate(ranking) if x not in ranking[:at]]
            if item in distinct:
                total += weight / (k + distinct.index(item) + 1)
        if total:
            scores[item] = total
    return scores


class TestByHand:
    def test_top_of_two_lists_scores_two_sixty_firsts(self) -> None:
        assert rrf([["a"], ["a"]]) == [("a", pytest.approx(2 / 61, abs=1e-15))]

    def test_two_lists(self) -> None:
        fused = rrf([["a", "b", "c"], ["c", "d"]])
        assert fused == [
            ("c", pytest.approx(1 / 63 + 1 / 61)),
            ("a", pytest.approx(1 / 61)),
            ("b", pytest.approx(1 / 62)),
            ("d", pytest.approx(1 / 62)),
        ]

    def test_one_list_keeps_its_order(self) -> None:
        assert rrf([["x", "y"]]) == [("x", pytest.approx(1 / 61)), ("y", pytest.approx(1 / 62))]

    def test_second_in_both_beats_first_in_one(self) -> None:
        fused = rrf([["a", "b"], ["c", "b"]])
        assert fused[0] == ("b", pytest.approx(2 / 62))

    def test_another_k(self) -> None:
        assert dict(rrf([["a", "b"], ["b"]], k=1)) == {
            "a": pytest.approx(1 / 2),
            "b": pytest.approx(1 / 3 + 1 / 2),
        }

    def test_k_zero(self) -> None:
        assert rrf([["a", "b", "c"]], k=0) == [("a", 1.0), ("b", 0.5), ("c", pytest.approx(1 / 3))]

    def test_weights_multiply_the_score_not_the_rank(self) -> None:
        fused = rrf([["a", "b"], ["b", "a"]], weights=[2.0, 0.5])
        assert fused == [
            ("a", pytest.approx(2 / 61 + 0.5 / 62)),
            ("b", pytest.approx(2 / 62 + 0.5 / 61)),
        ]

    def test_a_list_of_weight_zero_adds_nothing(self) -> None:
        fused = rrf([["a"], ["b", "a"]], weights=[1, 0])
        assert fused == [("a", pytest.approx(1 / 61))]

    def test_an_item_that_occurs_twice_in_one_list_counts_where_it_comes_first(self) -> None:
        assert rrf([["a", "b", "a", "c"]]) == [
            ("a", pytest.approx(1 / 61)),
            ("b", pytest.approx(1 / 62)),
            ("c", pytest.approx(1 / 63)),
        ]

    @pytest.mark.parametrize("rankings", [[], [[]], [[], []]])
    def test_nothing_to_merge(self, rankings: list[list[str]]) -> None:
        assert rrf(rankings) == []

    def test_an_empty_list_beside_another(self) -> None:
        assert rrf([[], ["a"]]) == [("a", pytest.approx(1 / 61))]

    def test_iterators_are_rankings_too(self) -> None:
        assert rrf([iter(["a", "b"])])[0] == ("a", pytest.approx(1 / 61))


class TestTies:
    def test_equal_scores_in_the_order_of_first_appearance(self) -> None:
        assert [item for item, _ in rrf([["b", "a"], ["a", "b"]])] == ["b", "a"]
        assert [item for item, _ in rrf([["x"], ["m"], ["a"]])] == ["x", "m", "a"]

    def test_rounding_does_not_break_a_tie(self) -> None:
        places = [{16: "a", 4: "b"}, {4: "a", 9: "b"}, {9: "a", 16: "b"}]
        rankings = [
            [place.get(rank, f"filler {at}.{rank}") for rank in range(20)]
            for at, place in enumerate(places)
        ]
        scores = dict(rrf(rankings))
        assert scores["a"] == pytest.approx(1 / 65 + 1 / 70 + 1 / 77)
        assert scores["a"] == scores["b"]
        assert [item for item, _ in rrf(rankings)][:2] == ["b", "a"]  # b is fifth in the first list

    @pytest.mark.parametrize("k", [0, 1, 60])
    @pytest.mark.parametrize("n", [3, 4, 5, 6])
    def test_items_that_hold_the_same_places_tie_exactly(self, n: int, k: int) -> None:
        items = "abcdef"[:n]
        rotations = [list(items[i:] + items[:i]) for i in range(n)]
        fused = rrf(rotations, k=k)
        assert len({score for _, score in fused}) == 1
        assert [item for item, _ in fused] == list(items)


class TestErrors:
    @pytest.mark.parametrize(
        "rankings", [["ab", "bc"], {"a": ["x"]}, "ab", [{"x": 0.9}], [["a"], {"b", "c"}]]
    )
    def test_what_only_happens_to_be_iterable(self, rankings: Any) -> None:
        with pytest.raises(InputError, match=r"expected a list of (rankings|items)"):
            rrf(rankings)

    def test_negative_k(self) -> None:
        with pytest.raises(InputError, match="k must be >= 0, got -1"):
            rrf([["a"]], k=-1)

    @pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], []])
    def test_number_of_weights(self, weights: list[float]) -> None:
        with pytest.raises(InputError, match=f"2 rankings .* got {len(weights)}"):
            rrf([["a"], ["b"]], weights=weights)

    @pytest.mark.parametrize("bad", [-0.5, float("nan")])
    def test_negative_or_missing_weight(self, bad: float) -> None:
        with pytest.raises(InputError, match="weights must be >= 0"):
            rrf([["a"], ["b"]], weights=[1.0, bad])


class TestProperties:
    @settings(deadline=None)
    @given(rankings_of, st.sampled_from([0, 1, 60]))
    def test_agrees_with_the_definition(self, rankings: list[list[str]], k: int) -> None:
        fused = rrf(rankings, k=k)
        exact = by_definition(rankings, k)
        assert {item for item, _ in fused} == set(exact)
        for item, score in fused:
            assert score == pytest.approx(float(exact[item]), rel=1e-12)

    @settings(deadline=None)
    @given(weighted, st.sampled_from([0, 60]))
    def test_best_first_with_weights(self, lists: list[tuple[list[str], float]], k: int) -> None:
        rankings, weights = [ranking for ranking, _ in lists], [weight for _, weight in lists]
        fused = rrf(rankings, k=k, weights=weights)
        exact = by_definition(rankings, k, weights)
        assert {item for item, _ in fused} == set(exact)
        for item, score in fused:
            assert score == pytest.approx(float(exact[item]), rel=1e-12)
        scores = [score for _, score in fused]
        assert scores == sorted(scores, reverse=True)

    @settings(deadline=None)
    @given(weighted, st.sampled_from([0, 60]))
    def test_items_of_the_same_places_come_in_the_order_they_appear(
        self, lists: list[tuple[list[str], float]], k: int
    ) -> None:
        fused = rrf([ranking for ranking, _ in lists], k=k, weights=[w for _, w in lists])
        appearance = list(dict.fromkeys(item for ranking, _ in lists for item in ranking))
        places = {
            item: sorted((w, ranking.index(item)) for ranking, w in lists if item in ranking)
            for item in appearance
        }
        order = [item for item, _ in fused]
        for at, first in enumerate(appearance):
            for second in appearance[at + 1 :]:
                if places[first] == places[second]:
                    assert order.index(first) < order.index(second)

    @settings(deadline=None)
    @given(weighted, st.randoms())
    def test_the_order_of_the_lists_does_not_change_scores(
        self, lists: list[tuple[list[str], float]], random: object
    ) -> None:
        shuffled = list(lists)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        one, other = (
            dict(rrf([ranking for ranking, _ in order], weights=[w for _, w in order]))
            for order in (lists, shuffled)
        )
        assert one == pytest.approx(other, rel=1e-12)

    @settings(deadline=None)
    @given(st.lists(st.permutations("abcd"), min_size=1, max_size=4), st.data())
    def test_moving_up_in_one_list_raises_the_score(
        self, before: list[list[str]], data: st.DataObject
    ) -> None:
        at = data.draw(st.integers(0, len(before) - 1))
        rank = data.draw(st.integers(1, 3))
        after = [list(ranking) for ranking in before]
        item = after[at].pop(rank)
        after[at].insert(rank - 1, item)
        assert dict(rrf(after))[item] > dict(rrf(before))[item]

    @settings(deadline=None)
    @given(rankings_of)
    def test_equal_weights_scale_scores_and_nothing_else(self, rankings: list[list[str]]) -> None:
        plain = rrf(rankings)
        doubled = rrf(rankings, weights=[2.0] * len(rankings))
        assert [(item, 2 * score) for item, score in plain] == doubled


# --- by score -----------------------------------------------------------------------------------


class TestDbsfByHand:
    """Of 3 and 1, the mean is 2 and the sample's deviation √2: 1/2 ± 1/(6√2) = 0.5 ± 0.11785."""

    STEP = 1 / (6 * math.sqrt(2))

    def test_two_lists_of_two(self) -> None:
        fused = dbsf([[("a", 3.0), ("b", 1.0)], [("b", 30.0), ("c", 10.0)]])
        assert fused == [
            ("b", pytest.approx(1.0)),
            ("a", pytest.approx(0.5 + self.STEP)),
            ("c", pytest.approx(0.5 - self.STEP)),
        ]

    def test_weights_multiply_the_normalised_scores(self) -> None:
        fused = dbsf([[("a", 3.0), ("b", 1.0)], [("b", 7.0), ("a", 6.0)]], [0.75, 0.25])
        assert fused == [
            ("a", pytest.approx(0.75 * (0.5 + self.STEP) + 0.25 * (0.5 - self.STEP))),
            ("b", pytest.approx(0.75 * (0.5 - self.STEP) + 0.25 * (0.5 + self.STEP))),
        ]

    def test_one_score_and_equal_scores_become_a_half(self) -> None:
        assert dbsf([[("a", 9.0)]]) == [("a", 0.5)]
        assert dbsf([[("a", 9.0), ("b", 9.0)]]) == [("a", 0.5), ("b", 0.5)]
        assert dbsf([[("a", 0.1)] * 1, [("b", 0.3), ("c", 0.3)]], [1, 2]) == [
            ("b", 1.0),
            ("c", 1.0),
            ("a", 0.5),
        ]

    def test_an_outlier_is_not_clipped(self) -> None:
        """59 zeros and a 60: mean 1, variance (59 · 1 + 59²) / 59 = 60, so 59 / (6 √60) + 1/2."""
        ranking = [("best", 60.0)] + [(f"other {i}", 0.0) for i in range(59)]
        assert dbsf([ranking])[0] == ("best", pytest.approx(0.5 + 59 / (6 * math.sqrt(60))))

    def test_a_list_of_weight_0_is_left_out(self) -> None:
        assert dbsf([[("a", 2.0)], [("b", 1.0)]], [1, 0]) == [("a", 0.5)]

    def test_ties_go_to_the_better_single_rank_then_to_the_key(self) -> None:
        fused = dbsf([[("z", 5.0)], [("y", 5.0)], [("x", 1.0)]], tie_key=str)
        assert [item for item, _ in fused] == ["x", "y", "z"]
        # Both get 1 in all. b is first of the second list, and a is second of both.
        lists = [[("c", 2.0), ("a", 1.0), ("b", 0.0)], [("b", 2.0), ("a", 1.0), ("c", 0.0)]]
        assert [item for item, _ in dbsf(lists, tie_key=str)] == ["b", "c", "a"]

    def test_an_item_counts_where_it_comes_first(self) -> None:
        assert dbsf([[("a", 3.0), ("b", 1.0), ("a", 0.0)]]) == dbsf([[("a", 3.0), ("b", 1.0)]])

    @pytest.mark.parametrize("size", [5e-324, 1e-200, 1.0, 1e200, 1e308])
    def test_scores_of_any_size(self, size: float) -> None:
        # Mean 0, sample deviation √2 · size: the scores are 0.5 ± 1 / (6 √2).
        offset = 1 / (6 * math.sqrt(2))
        fused = dbsf([[("a", size), ("b", -size)]])
        assert dict(fused) == pytest.approx({"a": 0.5 + offset, "b": 0.5 - offset})

    def test_nothing_to_fuse(self) -> None:
        assert dbsf([]) == []
        assert dbsf([[], []]) == []

    @pytest.mark.parametrize(
        ("rankings", "weights", "problem"),
        [
            ([[("a", math.nan)]], None, "finite"),
            ([[("a", math.inf)]], None, "finite"),
            ([[("a", 1.0)]], [-1.0], "weights must be >= 0"),
            ([[("a", 1.0)]], [1.0, 1.0], "as many weights"),
            ({"a": 1.0}, None, "list of rankings"),
            ([{"a": 1.0}], None, "list of items"),
        ],
    )
    def test_bad_input(self, rankings: Any, weights: Any, problem: str) -> None:
        with pytest.raises(InputError, match=problem):
            dbsf(rankings, weights)


number = st.integers(-1000, 1000).map(lambda whole: whole / 8)
scored_lists = st.lists(
    st.lists(st.tuples(st.integers(0, 9), number), max_size=8, unique_by=lambda pair: pair[0]),
    max_size=3,
).map(lambda lists: [sorted(ranking, key=lambda pair: -pair[1]) for ranking in lists])


@given(scored_lists, st.sampled_from([0.5, 3.0, 64.0]), number)
def test_scale_and_shift_of_a_list_do_not_matter(
    lists: list[list[tuple[int, float]]], factor: float, shift: float
) -> None:
    moved = [[(item, factor * score + shift) for item, score in ranking] for ranking in lists]
    assert dict(dbsf(moved)) == pytest.approx(dict(dbsf(lists)))


@given(scored_lists)
def test_the_sum_of_a_lists_scores_is_half_its_length(
    lists: list[list[tuple[int, float]]],
) -> None:
    assert sum(score for _, score in dbsf(lists)) == pytest.approx(sum(map(len, lists)) / 2)


class TestDbsfIsQdrants:
    """The same scores as Qdrant's own fusion gives, in both of its implementations."""

    @pytest.fixture(scope="class", params=["memory", "embedded"])
    def client(
        self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[QdrantClient | EdgeQdrantClient]:
        client: QdrantClient | EdgeQdrantClient = QdrantClient(":memory:")
        if request.param == "embedded":
            client = EdgeQdrantClient(tmp_path_factory.mktemp("store"))
        client.create_collection(
            "lists",
            vectors_config={
                name: qm.VectorParams(size=1, distance=qm.Distance.DOT) for name in ("one", "two")
            },
        )
        yield client
        client.close()

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        one=st.dictionaries(st.integers(1, 30), number, max_size=25),
        two=st.dictionaries(st.integers(1, 30), number, max_size=25),
    )
    def test_equal_weights(
        self,
        client: QdrantClient | EdgeQdrantClient,
        one: dict[int, float],
        two: dict[int, float],
    ) -> None:
        client.delete("lists", points_selector=qm.FilterSelector(filter=qm.Filter()))
        points = []
        for point_id in one.keys() | two.keys():
            vectors = {}
            for name, scores in (("one", one), ("two", two)):
                if point_id in scores:
                    vectors[name] = [scores[point_id]]
            points.append(qm.PointStruct(id=point_id, vector=vectors))
        if points:
            client.upsert("lists", points)
        found = client.query_points(
            "lists",
            prefetch=[qm.Prefetch(query=[1.0], using=name, limit=50) for name in ("one", "two")],
            query=qm.FusionQuery(fusion=qm.Fusion.DBSF),
            limit=100,
        ).points
        rankings = [sorted(scores.items(), key=lambda pair: -pair[1]) for scores in (one, two)]
        assert {point.id: point.score for point in found} == pytest.approx(
            dict(dbsf(rankings)), abs=1e-5
        )


# --- by normalised scores -----------------------------------------------------------------------

NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
normalisations = st.sampled_from(NORMALISATIONS)


class TestMinMaxByHand:
    def test_three_scores_and_two(self) -> None:
        """Dense 0.9, 0.8, 0.5 become 1, 0.75 and 0; sparse 7 and 3 become 1 and 0."""
        dense, sparse = [("a", 0.9), ("b", 0.8), ("c", 0.5)], [("b", 7.0), ("d", 3.0)]
        assert convex([dense, sparse], "min_max", [0.75, 0.25]) == [
            ("b", pytest.approx(0.75 * 0.75 + 0.25)),
            ("a", pytest.approx(0.75)),
            ("d", 0.0),
            ("c", 0.0),
        ]

    def test_weights_are_divided_by_their_sum(self) -> None:
        lists = [[("a", 2.0), ("b", 1.0)], [("b", 4.0), ("a", 3.0)]]
        assert convex(lists, "min_max", [3, 1]) == [("a", 0.75), ("b", 0.25)]
        assert convex(lists, "min_max", [6, 2]) == [("a", 0.75), ("b", 0.25)]
        assert convex(lists, "min_max") == [("a", 0.5), ("b", 0.5)]

    def test_a_list_of_weight_0_is_left_out_and_takes_no_share(self) -> None:
        assert convex([[("a", 2.0), ("b", 1.0)], [("c", 1.0)]], "min_max", [0.3, 0]) == [
            ("a", 1.0),
            ("b", 0.0),
        ]

    def test_an_empty_list_keeps_its_share(self) -> None:
        assert convex([[("a", 2.0), ("b", 1.0)], []], "min_max", [0.75, 0.25])[0] == ("a", 0.75)


class TestZByHand:
    def test_deviations_above_the_lowest(self) -> None:
        """Of 4, 2 and 0 the sample's deviation is 2: they are 2, 1 and 0 above the lowest."""
        assert convex([[("a", 4.0), ("b", 2.0), ("c", 0.0)]], "z") == [
            ("a", pytest.approx(2.0)),
            ("b", pytest.approx(1.0)),
            ("c", 0.0),
        ]

    def test_the_order_is_that_of_z_scores_with_the_lowest_for_what_is_missing(self) -> None:
        lists = [
            [("a", 9.0), ("b", 8.5), ("c", 2.0), ("d", 1.0)],
            [("e", 50.0), ("c", 40.0), ("b", 10.0)],
        ]
        shares = [0.6, 0.4]
        by_definition: dict[str, float] = dict.fromkeys("abcde", 0.0)
        for ranking, share in zip(lists, shares, strict=True):
            scores = [score for _, score in ranking]
            mean = sum(scores) / len(scores)
            deviation = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - 1))
            z_scores = {item: (score - mean) / deviation for item, score in ranking}
            for item in by_definition:
                by_definition[item] += share * z_scores.get(item, min(z_scores.values()))
        fused = dict(convex(lists, "z", shares))
        lower_by = {round(fused[item] - by_definition[item], 9) for item in fused}
        assert len(lower_by) == 1
        assert list(fused) == sorted(by_definition, key=lambda item: -by_definition[item])


class TestConvex:
    @pytest.mark.parametrize("normalisation", NORMALISATIONS)
    def test_one_score_and_equal_scores_become_1(self, normalisation: Normalisation) -> None:
        assert convex([[("a", 9.0)]], normalisation) == [("a", 1.0)]
        assert convex([[("a", 0.0), ("b", 0.0)]], normalisation) == [("a", 1.0), ("b", 1.0)]
        assert convex([[], [("a", -3.0)]], normalisation, [1, 3]) == [("a", 0.75)]

    @pytest.mark.parametrize("normalisation", NORMALISATIONS)
    def test_nothing_to_fuse(self, normalisation: Normalisation) -> None:
        assert convex([], normalisation) == []
        assert convex([[], []], normalisation) == []
        assert convex([[("a", 1.0)]], normalisation, [0]) == []

    @pytest.mark.parametrize("normalisation", NORMALISATIONS)
    def test_an_item_counts_where_it_comes_first(self, normalisation: Normalisation) -> None:
        twice = [("a", 3.0), ("b", 1.0), ("a", 0.0)]
        assert convex([twice], normalisation) == convex([twice[:2]], normalisation)

    @pytest.mark.parametrize("normalisation", NORMALISATIONS)
    def test_ties_go_to_the_better_single_rank_then_to_the_key(
        self, normalisation: Normalisation
    ) -> None:
        lists = [[("c", 2.0), ("a", 1.0), ("b", 0.0)], [("b", 2.0), ("a", 1.0), ("c", 0.0)]]
        assert [item for item, _ in convex(lists, normalisation, tie_key=str)] == ["b", "c", "a"]

    @pytest.mark.parametrize("size", [5e-324, 1e-200, 1.0, 1e200, 1e308])
    def test_scores_of_any_size(self, size: float) -> None:
        lists = [[("a", size), ("b", -size)]]
        assert dict(convex(lists, "min_max")) == {"a": 1.0, "b": 0.0}
        # The sample's deviation of 1 and -1 is √2.
        assert dict(convex(lists, "z")) == pytest.approx({"a": 2 / math.sqrt(2), "b": 0.0})

    @pytest.mark.parametrize("size", [5e-324, 1.0, 1e308])
    def test_weights_of_any_size(self, size: float) -> None:
        assert convex_shares([size, size]) == [0.5, 0.5]

    @pytest.mark.parametrize(
        ("rankings", "normalisation", "weights", "problem"),
        [
            ([[("a", math.nan)]], "z", None, "finite"),
            ([[("a", 1.0)]], "min_max", [-1.0], "weights must be >= 0"),
            ([[("a", 1.0)]], "min_max", [math.inf], "weights must be >= 0"),
            ([[("a", 1.0)]], "z", [1.0, 1.0], "as many weights"),
            ({"a": 1.0}, "z", None, "list of rankings"),
            ([{"a": 1.0}], "z", None, "list of items"),
            ([[("a", 1.0)]], "softmax", None, "'min_max' or 'z', not 'softmax'"),
        ],
    )
    def test_bad_input(self, rankings: Any, normalisation: Any, weights: Any, problem: str) -> None:
        with pytest.raises(InputError, match=problem):
            convex(rankings, normalisation, weights)

    @given(scored_lists, normalisations, st.sampled_from([0.5, 3.0, 64.0]), number)
    def test_scale_and_shift_of_a_list_do_not_matter(
        self,
        lists: list[list[tuple[int, float]]],
        normalisation: Normalisation,
        factor: float,
        shift: float,
    ) -> None:
        moved = [[(item, factor * score + shift) for item, score in ranking] for ranking in lists]
        assert dict(convex(moved, normalisation)) == pytest.approx(
            dict(convex(lists, normalisation))
        )

    @given(scored_lists, st.data())
    def test_min_max_stays_between_0_and_1(
        self, lists: list[list[tuple[int, float]]], data: st.DataObject
    ) -> None:
        weight = st.floats(0, 1e6)
        weights = data.draw(st.lists(weight, min_size=len(lists), max_size=len(lists)))
        for _, score in convex(lists, "min_max", weights):
            assert 0 <= score <= 1 + 1e-12


@given(scored_lists, st.sampled_from(get_args(Method)), st.data())
def test_the_terms_of_every_method_add_up_to_its_scores(
    lists: list[list[tuple[int, float]]], method: Method, data: st.DataObject
) -> None:
    weight = st.floats(0.1, 10)
    weights = data.draw(st.lists(weight, min_size=len(lists), max_size=len(lists)))
    fused = dict(fuse_lists(lists, method, weights=weights))
    terms = [dict(of_list) for of_list in list_terms(lists, method, weights=weights)]
    for item, score in fused.items():
        assert sum(of_list.get(item, 0.0) for of_list in terms) == pytest.approx(score, abs=1e-9)
    own = {
        "rrf": rrf([[item for item, _ in ranking] for ranking in lists], weights=weights),
        "dbsf": dbsf(lists, weights),
        "min_max": convex(lists, "min_max", weights),
        "z": convex(lists, "z", weights),
    }
    assert fused == dict(own[method])
