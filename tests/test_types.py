"""SparseVector and Embeddings: what they accept, refuse and promise."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import models

from unified_embeddings.errors import (
    FingerprintMismatchError,
    InputError,
    MissingExtraError,
    ModelLoadError,
    StoreError,
)
from unified_embeddings.types import Embeddings, SparseVector

WEIGHTS = {3: 0.5, 7: 0.25, 250001: 1.5}
weights_of = st.dictionaries(
    st.integers(0, 2**31 - 1),
    st.floats(2**-20, 2**20, width=32),
    max_size=20,
)


@pytest.fixture
def vector() -> SparseVector:
    return SparseVector(np.array([3, 7, 250001]), np.array([0.5, 0.25, 1.5]))


class TestSparseVectorAsMapping:
    def test_reads_as_a_dict(self, vector: SparseVector) -> None:
        assert isinstance(vector, Mapping)
        assert len(vector) == 3
        assert vector[7] == 0.25
        assert list(vector) == [3, 7, 250001]
        assert list(vector.items()) == [(3, 0.5), (7, 0.25), (250001, 1.5)]
        assert dict(vector) == WEIGHTS
        assert 250001 in vector
        assert vector.get(4, 0.0) == 0.0

    def test_yields_plain_python_numbers(self, vector: SparseVector) -> None:
        assert {type(index) for index in vector} == {int}
        assert {type(weight) for _, weight in vector.items()} == {float}

    @pytest.mark.parametrize("absent", [-1, 0, 4, 250002, 2**40])
    def test_absent_id_is_a_key_error_and_not_in(self, vector: SparseVector, absent: int) -> None:
        assert absent not in vector
        with pytest.raises(KeyError, match=str(absent)):
            vector[absent]

    def test_numpy_integers_are_keys_too(self, vector: SparseVector) -> None:
        assert vector[np.int64(7)] == 0.25

    def test_equals_a_dict_and_another_vector_of_the_same_weights(
        self, vector: SparseVector
    ) -> None:
        assert vector == WEIGHTS
        assert WEIGHTS == vector  # noqa: SIM300 - the reflected comparison is the point
        assert vector == SparseVector.from_dict(WEIGHTS)
        assert vector != {**WEIGHTS, 7: 0.26}
        assert vector != {3: 0.5, 7: 0.25}
        assert vector != [3, 7, 250001]

    def test_empty_vector(self) -> None:
        empty = SparseVector(np.array([]), np.array([]))
        assert len(empty) == 0
        assert not empty
        assert empty == {}
        assert 0 not in empty
        assert empty.nbytes == 0
        assert empty.indices.dtype == np.int32
        assert empty.values.dtype == np.float32

    def test_repr_counts_and_shows_the_first_weights(self) -> None:
        shown = repr(SparseVector(np.arange(6), np.full(6, 0.5)))
        assert "nnz=6" in shown
        assert "3: 0.5" in shown
        assert "4: 0.5" not in shown


class TestSparseVectorArrays:
    def test_dtypes_and_size(self, vector: SparseVector) -> None:
        assert vector.indices.dtype == np.int32
        assert vector.values.dtype == np.float32
        assert vector.nbytes == 3 * 4 + 3 * 4

    def test_arrays_are_read_only(self, vector: SparseVector) -> None:
        with pytest.raises(ValueError, match="read-only"):
            vector.indices[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            vector.values[0] = 1.0

    def test_attributes_cannot_be_replaced(self, vector: SparseVector) -> None:
        with pytest.raises(FrozenInstanceError):
            vector.indices = np.array([1], dtype=np.int32)  # type: ignore[misc]

    def test_copies_its_input(self) -> None:
        indices = np.array([1, 2], dtype=np.int32)
        values = np.array([0.5, 0.25], dtype=np.float32)
        vector = SparseVector(indices, values)
        indices[0], values[0] = 99, 99.0
        assert vector == {1: 0.5, 2: 0.25}
        assert indices.flags.writeable
        assert values.flags.writeable

    def test_lists_serve_as_arrays(self) -> None:
        assert SparseVector([1, 2], [0.5, 0.25]) == {1: 0.5, 2: 0.25}  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "again",
        [
            pytest.param(copy.copy, id="copy"),
            pytest.param(copy.deepcopy, id="deepcopy"),
            pytest.param(lambda vector: pickle.loads(pickle.dumps(vector)), id="pickle"),
        ],
    )
    def test_a_copy_is_equal_and_read_only_too(self, vector: SparseVector, again: object) -> None:
        twin = again(vector)  # type: ignore[operator]
        assert twin == WEIGHTS
        assert not twin.indices.flags.writeable
        assert not twin.values.flags.writeable


class TestSparseVectorRules:
    @pytest.mark.parametrize(
        ("indices", "values", "rule"),
        [
            pytest.param([1.0, 2.0], [1, 1], "must be integers", id="float indices"),
            pytest.param([2**31], [1], "must fit int32", id="index above int32"),
            pytest.param([[1, 2]], [[1, 1]], "one-dimensional", id="two-dimensional"),
            pytest.param([1, 2], [1], "the same length", id="fewer values"),
            pytest.param([1], [1, 1], "the same length", id="fewer indices"),
            pytest.param([], [1], "the same length", id="no indices"),
            pytest.param([-1, 2], [1, 1], ">= 0", id="negative index"),
            pytest.param([2, 1], [1, 1], "ascending", id="descending"),
            pytest.param([1, 1], [1, 1], "unique", id="twice the same"),
            pytest.param([1, 2], [1, 0], "> 0", id="zero weight"),
            pytest.param([1, 2], [1, -0.5], "> 0", id="negative weight"),
            pytest.param([1, 2], [1, np.nan], "finite", id="nan"),
            pytest.param([1, 2], [1, np.inf], "finite", id="infinite"),
        ],
    )
    def test_broken_rule_is_named(self, indices: list, values: list, rule: str) -> None:
        with pytest.raises(ValueError, match=rule):
            SparseVector(np.array(indices), np.array(values, dtype=np.float64))

    @pytest.mark.parametrize(
        "indices",
        [
            pytest.param([-(2**32) + 5], id="which is 5 in 32 bits"),
            pytest.param([2**31 - 1, -(2**31)], id="which follows the largest in 32 bits"),
        ],
    )
    def test_negative_index_does_not_wrap_into_a_valid_one(self, indices: list[int]) -> None:
        with pytest.raises(ValueError, match="indices must"):
            SparseVector(np.array(indices), np.ones(len(indices)))

    def test_largest_id_is_accepted(self) -> None:
        assert SparseVector(np.array([2**31 - 1]), np.array([1.0])) == {2**31 - 1: 1.0}


class TestSparseVectorFromDict:
    def test_sorts_ids(self) -> None:
        vector = SparseVector.from_dict({9: 0.5, 1: 0.25, 4: 2.0})
        assert vector.indices.tolist() == [1, 4, 9]
        assert vector.values.tolist() == [0.25, 2.0, 0.5]

    def test_drops_zero_and_negative_weights(self) -> None:
        assert SparseVector.from_dict({1: 0.0, 2: -1.0, 3: 0.5}) == {3: 0.5}

    def test_drops_a_weight_that_is_zero_in_float32(self) -> None:
        assert SparseVector.from_dict({1: 1e-50, 3: 0.5}) == {3: 0.5}

    def test_nothing_left_gives_the_empty_vector(self) -> None:
        assert len(SparseVector.from_dict({})) == 0
        assert len(SparseVector.from_dict({5: 0.0})) == 0

    @pytest.mark.parametrize(
        ("weights", "rule"),
        [
            ({1: float("nan")}, "finite"),
            ({1: float("inf")}, "finite"),
            ({-1: 1.0}, ">= 0"),
            ({2**31: 1.0}, "int32"),
        ],
    )
    def test_broken_rule_is_named(self, weights: dict[int, float], rule: str) -> None:
        with pytest.raises(ValueError, match=rule):
            SparseVector.from_dict(weights)

    @settings(deadline=None)
    @given(weights_of)
    def test_any_positive_weights_survive_exactly(self, weights: dict[int, float]) -> None:
        vector = SparseVector.from_dict(weights)
        assert dict(vector) == weights
        assert list(vector) == sorted(weights)


class TestSparseVectorToQdrant:
    def test_is_what_qdrant_takes(self, vector: SparseVector) -> None:
        assert vector.to_qdrant() == {"indices": [3, 7, 250001], "values": [0.5, 0.25, 1.5]}
        accepted = models.SparseVector(**vector.to_qdrant())
        assert accepted.indices == [3, 7, 250001]
        assert accepted.values == [0.5, 0.25, 1.5]

    def test_plain_numbers_fit_for_json(self, vector: SparseVector) -> None:
        written = vector.to_qdrant()
        assert {type(index) for index in written["indices"]} == {int}
        assert {type(value) for value in written["values"]} == {float}

    def test_empty(self) -> None:
        assert SparseVector.from_dict({}).to_qdrant() == {"indices": [], "values": []}
        assert models.SparseVector(**SparseVector.from_dict({}).to_qdrant()).indices == []


@pytest.fixture
def three() -> Embeddings:
    return Embeddings(
        dense=np.eye(3, 4, dtype=np.float32),
        sparse=[SparseVector.from_dict({i: 1.0}) for i in range(3)],
        colbert=[np.ones((i + 1, 2), dtype=np.float32) for i in range(3)],
    )


class TestEmbeddings:
    def test_attribute_and_key_are_the_same_thing(self, three: Embeddings) -> None:
        assert three["dense"] is three.dense
        assert three["sparse"] is three.sparse
        assert three["colbert"] is three.colbert

    def test_heads_not_asked_for_are_none(self) -> None:
        only_sparse = Embeddings(sparse=[SparseVector.from_dict({1: 1.0})])
        assert only_sparse.dense is None
        assert only_sparse["dense"] is None
        assert only_sparse.colbert is None
        assert only_sparse["colbert"] is None
        assert len(only_sparse) == 1

    def test_iterates_over_the_heads_present(self, three: Embeddings) -> None:
        assert list(three) == ["dense", "sparse", "colbert"]
        assert list(Embeddings(dense=three.dense, colbert=three.colbert)) == ["dense", "colbert"]
        assert "sparse" not in Embeddings(dense=three.dense)

    @pytest.mark.parametrize("head", ["dense", "sparse", "colbert"])
    def test_length_is_the_number_of_texts_whichever_head(
        self, three: Embeddings, head: str
    ) -> None:
        assert len(three) == 3
        assert len(Embeddings(**{head: three[head]})) == 3  # type: ignore[call-overload]

    def test_empty_result_of_no_texts(self) -> None:
        empty = Embeddings(dense=np.zeros((0, 4), dtype=np.float32), sparse=[], colbert=[])
        assert len(empty) == 0
        assert empty.dense is not None
        assert empty.dense.shape == (0, 4)

    def test_no_head_at_all_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one of dense, sparse and colbert"):
            Embeddings()

    def test_heads_of_different_lengths_are_refused_with_the_lengths(
        self, three: Embeddings
    ) -> None:
        with pytest.raises(ValueError, match=r"'dense': 3.*'sparse': 2"):
            Embeddings(dense=three.dense, sparse=three.sparse[:2])  # type: ignore[index]

    def test_slice_cuts_every_head(self, three: Embeddings) -> None:
        last_two = three[1:]
        assert isinstance(last_two, Embeddings)
        assert len(last_two) == 2
        assert last_two.dense is not None
        assert last_two.dense.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
        assert last_two.sparse == [{1: 1.0}, {2: 1.0}]
        assert last_two.colbert is not None
        assert [rows.shape for rows in last_two.colbert] == [(2, 2), (3, 2)]

    def test_slice_keeps_none_heads_none(self, three: Embeddings) -> None:
        cut = Embeddings(dense=three.dense)[:1]
        assert len(cut) == 1
        assert cut.sparse is None
        assert cut.colbert is None

    def test_slice_of_nothing_is_empty(self, three: Embeddings) -> None:
        assert len(three[3:]) == 0

    def test_unknown_head_is_a_key_error_that_names_the_known(self, three: Embeddings) -> None:
        with pytest.raises(KeyError, match=r"splade.*dense, sparse, colbert"):
            three["splade"]  # type: ignore[call-overload]

    def test_a_position_is_no_key(self, three: Embeddings) -> None:
        with pytest.raises(TypeError, match="not int"):
            three[0]  # type: ignore[call-overload]

    def test_heads_cannot_be_replaced(self, three: Embeddings) -> None:
        with pytest.raises(FrozenInstanceError):
            three.dense = None  # type: ignore[misc]

    def test_repr_is_short_whatever_it_holds(self, three: Embeddings) -> None:
        assert repr(three) == (
            "Embeddings(n=3, dense=float32(3, 4), sparse=3 vectors, colbert=3 arrays)"
        )
        assert "sparse=None" in repr(Embeddings(dense=three.dense))


@pytest.mark.parametrize(
    "error",
    [
        InputError("it is bad", index=3),
        ModelLoadError("m", "it is gone", revision="r"),
        MissingExtraError("it", extra="demo"),
        FingerprintMismatchError("c", expected="a", found="b", model="m", found_model="n"),
        StoreError("c", "adding", "no"),
    ],
)
def test_errors_come_whole_out_of_another_process(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("weights", [{"7": 0.5, 7: 0.25}, {7.2: 0.5, 7: 0.25}])
def test_ids_that_are_equal_as_integers_are_refused(weights: dict[float, float]) -> None:
    with pytest.raises(ValueError, match="ascending and unique"):
        SparseVector.from_dict(weights)  # type: ignore[arg-type]


def test_parts_are_joined_in_order_and_must_have_the_same_heads(three: Embeddings) -> None:
    joined = Embeddings.join([three[:1], three[1:]])
    assert joined.dense is not None
    assert three.dense is not None
    np.testing.assert_array_equal(joined.dense, three.dense)
    assert joined.sparse == three.sparse
    with pytest.raises(ValueError, match="same heads"):
        Embeddings.join([three, Embeddings(dense=three.dense)])
    with pytest.raises(ValueError, match="same heads"):
        Embeddings.join([])
