"""The arithmetic on raw outputs, against numbers worked by hand and plain-Python definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_embeddings.heads import (
    colbert_score,
    dense_score,
    normalise,
    sparse_score,
    to_sparse,
)
from unified_embeddings.types import SparseVector

CLS, PAD, EOS, UNK = 0, 1, 2, 3
SPECIAL = frozenset((CLS, PAD, EOS, UNK))

weights_of = st.dictionaries(st.integers(0, 30), st.floats(2**-10, 4, width=32), max_size=12)
tokens = st.lists(
    st.tuples(st.integers(0, 12), st.floats(-1, 4, width=32)),
    max_size=30,
)


def float32(rows: object) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


@st.composite
def matrices(draw: st.DrawFn, width: int = 3) -> np.ndarray:
    row = st.lists(st.floats(-2, 2, width=32), min_size=width, max_size=width)
    return float32(draw(st.lists(row, min_size=1, max_size=5)))


class TestNormalise:
    def test_by_hand(self) -> None:
        unit = normalise(float32([[3, 4], [0, -2], [1, 1]]))
        assert unit == pytest.approx(
            float32([[0.6, 0.8], [0, -1], [math.sqrt(0.5), math.sqrt(0.5)]]), abs=1e-7
        )
        assert unit.dtype == np.float32

    def test_a_zero_row_stays_zero_and_leaves_its_neighbours_alone(self) -> None:
        assert normalise(float32([[0, 0], [0, 5]])).tolist() == [[0, 0], [0, 1]]

    def test_no_rows(self) -> None:
        assert normalise(np.zeros((0, 4), dtype=np.float32)).shape == (0, 4)

    def test_gives_a_new_array(self) -> None:
        given_rows = float32([[3, 4]])
        unit = normalise(given_rows)
        assert given_rows.tolist() == [[3, 4]]
        assert not np.shares_memory(unit, given_rows)

    def test_half_precision_comes_back_as_float32(self) -> None:
        unit = normalise(np.array([[300, 400]], dtype=np.float16))
        assert unit.dtype == np.float32
        assert unit == pytest.approx(float32([[0.6, 0.8]]), abs=1e-7)

    @settings(deadline=None)
    @given(matrices(width=4))
    def test_each_row_is_the_row_over_its_length(self, rows: np.ndarray) -> None:
        for unit, row in zip(normalise(rows).tolist(), rows.tolist(), strict=True):
            length = math.sqrt(math.fsum(x * x for x in row))
            if length > 1e-6:
                assert unit == pytest.approx([x / length for x in row], abs=1e-6)
                assert math.hypot(*unit) == pytest.approx(1, abs=1e-6)


class TestToSparse:
    def test_a_repeated_token_keeps_its_largest_weight_not_the_sum(self) -> None:
        vector = to_sparse(
            np.array([CLS, 10, 7, 10, EOS], dtype=np.int32),
            float32([9, 0.5, 0.25, 0.75, 9]),
            special_ids=SPECIAL,
        )
        assert vector == {7: 0.25, 10: 0.75}
        assert vector.indices.tolist() == [7, 10]

    def test_a_repeated_token_has_the_sum_where_that_is_asked_for(self) -> None:
        vector = to_sparse(
            np.array([CLS, 10, 7, 10, 7, 10, CLS, EOS], dtype=np.int32),
            float32([9, 0.5, 0.25, 0.75, -1, 0.125, 9, 9]),
            special_ids=SPECIAL,
            sum_repeats=True,
        )
        assert vector == {7: 0.25, 10: 1.375}

    def test_special_tokens_are_dropped_whatever_their_weight(self) -> None:
        vector = to_sparse(
            np.array([CLS, 5, UNK, EOS, PAD, PAD]),
            float32([1, 2, 3, 4, 5, 6]),
            special_ids=SPECIAL,
        )
        assert vector == {5: 2.0}

    def test_without_special_ids_every_token_counts(self) -> None:
        vector = to_sparse(np.array([CLS, 5]), float32([1, 2]), special_ids=frozenset())
        assert vector == {CLS: 1.0, 5: 2.0}

    def test_zero_and_negative_weights_are_dropped(self) -> None:
        vector = to_sparse(
            np.array([5, 6, 7, 6]), float32([0, -1, 0.5, 0]), special_ids=frozenset()
        )
        assert vector == {7: 0.5}

    def test_blank_text_gives_an_empty_vector(self) -> None:
        assert len(to_sparse(np.array([CLS, EOS]), float32([1, 1]), special_ids=SPECIAL)) == 0

    def test_no_tokens_give_an_empty_vector(self) -> None:
        none = to_sparse(np.array([], dtype=np.int32), float32([]), special_ids=SPECIAL)
        assert len(none) == 0

    @pytest.mark.parametrize(
        ("ids", "weights"),
        [([1, 2], [1.0]), ([1], [1.0, 2.0]), ([[1, 2]], [[1.0, 2.0]])],
        ids=["fewer weights", "fewer ids", "two-dimensional"],
    )
    def test_shapes_must_agree(self, ids: list, weights: list) -> None:
        with pytest.raises(ValueError, match="must both be"):
            to_sparse(np.array(ids), float32(weights), special_ids=SPECIAL)

    @settings(deadline=None)
    @given(tokens, st.frozensets(st.integers(0, 12)))
    def test_agrees_with_a_dict_of_maxima(
        self, pairs: list[tuple[int, float]], special_ids: frozenset[int]
    ) -> None:
        largest: dict[int, float] = {}
        for token, weight in pairs:
            if token not in special_ids and weight > largest.get(token, 0.0):
                largest[token] = weight
        vector = to_sparse(
            np.array([token for token, _ in pairs], dtype=np.int32),
            float32([weight for _, weight in pairs]),
            special_ids=special_ids,
        )
        assert dict(vector) == largest

    @settings(deadline=None)
    @given(tokens, st.randoms())
    def test_the_order_of_tokens_does_not_matter(
        self, pairs: list[tuple[int, float]], random: object
    ) -> None:
        shuffled = list(pairs)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        one, other = (
            to_sparse(
                np.array([token for token, _ in order], dtype=np.int32),
                float32([weight for _, weight in order]),
                special_ids=SPECIAL,
            )
            for order in (pairs, shuffled)
        )
        assert one == other


class TestDenseScore:
    def test_by_hand(self) -> None:
        score = dense_score(float32([0.6, 0.8]), float32([0.8, -0.6]))
        assert score == pytest.approx(0, abs=1e-7)
        score = dense_score(float32([0.6, 0.8]), float32([0, 1]))
        assert score == pytest.approx(0.8)
        assert type(score) is float

    def test_of_itself_is_one(self) -> None:
        unit = normalise(float32([[1, 2, 3]]))[0]
        assert dense_score(unit, unit) == pytest.approx(1)
        assert dense_score(unit, -unit) == pytest.approx(-1)


class TestSparseScore:
    def test_by_hand(self) -> None:
        query = SparseVector.from_dict({1: 0.5, 3: 2.0, 9: 1.0})
        document = SparseVector.from_dict({3: 0.25, 4: 8.0, 9: 3.0})
        score = sparse_score(query, document)  # 2 * 0.25 + 1 * 3
        assert score == 3.5
        assert type(score) is float

    def test_nothing_in_common_is_zero(self) -> None:
        one, other = SparseVector.from_dict({1: 1.0}), SparseVector.from_dict({2: 1.0})
        assert sparse_score(one, other) == 0.0

    def test_empty_is_zero(self) -> None:
        empty, other = SparseVector.from_dict({}), SparseVector.from_dict({2: 1.0})
        assert sparse_score(empty, other) == 0.0
        assert sparse_score(other, empty) == 0.0
        assert sparse_score(empty, empty) == 0.0

    @settings(deadline=None)
    @given(weights_of, weights_of)
    def test_agrees_with_dicts_and_is_symmetric(
        self, query: dict[int, float], document: dict[int, float]
    ) -> None:
        expected = math.fsum(query[i] * document[i] for i in query if i in document)
        one, other = SparseVector.from_dict(query), SparseVector.from_dict(document)
        assert sparse_score(one, other) == pytest.approx(expected, rel=1e-5)
        assert sparse_score(other, one) == pytest.approx(expected, rel=1e-5)


class TestColbertScore:
    QUERY = float32([[1, 0], [0, 1]])
    DOCUMENT = float32([[0.6, 0.8], [0.28, 0.96]])

    def test_is_the_mean_over_query_rows_of_the_best_document_row(self) -> None:
        score = colbert_score(self.QUERY, self.DOCUMENT)  # (0.6 + 0.96) / 2
        assert score == pytest.approx(0.78)
        assert type(score) is float

    def test_sides_are_not_interchangeable(self) -> None:
        assert colbert_score(self.DOCUMENT, self.QUERY) == pytest.approx(0.88)  # (0.8 + 0.96) / 2

    def test_one_row_each_is_the_dot_product(self) -> None:
        assert colbert_score(self.QUERY[:1], self.DOCUMENT[:1]) == pytest.approx(0.6)

    def test_a_longer_document_never_scores_less(self) -> None:
        longer = float32([[0.6, 0.8], [0.28, 0.96], [1, 0]])
        assert colbert_score(self.QUERY, longer) == pytest.approx(0.98)  # (1 + 0.96) / 2

    @pytest.mark.parametrize(
        ("query", "document", "problem"),
        [
            (np.zeros((0, 2)), np.ones((1, 2)), "at least one row"),
            (np.ones((1, 2)), np.zeros((0, 2)), "at least one row"),
            (np.ones((1, 2)), np.ones((1, 3)), r"got \(1, 2\) and \(1, 3\)"),
            (np.ones(2), np.ones((1, 2)), r"got \(2,\)"),
        ],
        ids=["empty query", "empty document", "other width", "a flat query"],
    )
    def test_unusable_input_is_named(
        self, query: np.ndarray, document: np.ndarray, problem: str
    ) -> None:
        with pytest.raises(ValueError, match=problem):
            colbert_score(query.astype(np.float32), document.astype(np.float32))

    @settings(deadline=None)
    @given(matrices(), matrices())
    def test_agrees_with_the_definition(self, query: np.ndarray, document: np.ndarray) -> None:
        best = [
            max(math.fsum(a * b for a, b in zip(q, d, strict=True)) for d in document.tolist())
            for q in query.tolist()
        ]
        expected = math.fsum(best) / len(best)
        assert colbert_score(query, document) == pytest.approx(expected, abs=1e-5)


class TestAgainstFlagEmbedding:
    """The reference's two score methods use nothing of the model, so they run without one."""

    @pytest.fixture(scope="class")
    def reference(self) -> type:
        from FlagEmbedding.inference.embedder.encoder_only.m3 import M3Embedder

        return M3Embedder

    def test_colbert_score(self, reference: type) -> None:
        random = np.random.default_rng(7)
        for rows in ((1, 1), (3, 11), (12, 5)):
            query, document = (
                normalise(random.normal(size=(n, 16)).astype(np.float32)) for n in rows
            )
            expected = float(reference.colbert_score(None, query, document))
            assert colbert_score(query, document) == pytest.approx(expected, abs=1e-6)

    def test_lexical_matching_score(self, reference: type) -> None:
        random = np.random.default_rng(7)
        for _ in range(5):
            query, document = (
                {int(i): float(random.uniform(0.01, 1)) for i in random.integers(0, 40, 15)}
                for _ in range(2)
            )
            expected = reference.compute_lexical_matching_score(None, query, document)
            ours = sparse_score(SparseVector.from_dict(query), SparseVector.from_dict(document))
            assert ours == pytest.approx(expected, rel=1e-5)
