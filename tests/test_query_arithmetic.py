"""A query's arithmetic, to the last bit that of NumPy's own functions, which take longer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embeddings.heads import normalise, to_sparse
from unified_embeddings.types import SparseVector

numbers = st.floats(-(2**50), 2**50, width=32)
pairs = st.lists(
    st.tuples(st.integers(0, 9), st.floats(-0.25, 1000, width=32)), min_size=0, max_size=60
)


@given(st.lists(st.lists(numbers, min_size=7, max_size=7), min_size=1, max_size=4))
def test_lengths_are_those_of_the_library(rows: list[list[float]]) -> None:
    vectors = np.array(rows, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    expected = vectors / np.maximum(norms, np.float32(1e-12))
    assert normalise(vectors).tobytes() == expected.tobytes()


@pytest.mark.parametrize("sum_repeats", [False, True])
@given(pairs=pairs, special_ids=st.frozensets(st.integers(0, 9), max_size=4))
def test_sparse_vectors_are_those_of_a_plain_loop(
    sum_repeats: bool, pairs: list[tuple[int, float]], special_ids: frozenset[int]
) -> None:
    expected: dict[int, np.float32] = {}
    for token_id, number in pairs:
        weight = np.float32(number)
        if token_id in special_ids or not weight > 0:
            continue
        if token_id not in expected:
            expected[token_id] = weight
        elif sum_repeats:
            expected[token_id] = expected[token_id] + weight
        else:
            expected[token_id] = max(expected[token_id], weight)
    found = to_sparse(
        np.array([token_id for token_id, _ in pairs], dtype=np.int32),
        np.array([number for _, number in pairs], dtype=np.float32),
        special_ids=special_ids,
        sum_repeats=sum_repeats,
    )
    assert found.indices.tolist() == sorted(expected)
    in_order = [expected[token_id] for token_id in sorted(expected)]
    assert found.values.tobytes() == np.array(in_order, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    ("indices", "values", "message"),
    [
        ([1, 1], [1.0, 1.0], "ascending and unique"),
        ([2, 1], [1.0, 1.0], "ascending and unique"),
        ([-1, 1], [1.0, 1.0], ">= 0, got -1"),
        ([0, 2**31], [1.0, 1.0], "fit int32, got 2147483648"),
        (np.array([2**63], dtype=np.uint64), [1.0], "fit int32, got 9223372036854775808"),
        ([0.5], [1.0], "integers, got dtype float64"),
        ([True], [1.0], "integers, got dtype bool"),
        ([1], [0.0], "finite and > 0"),
        ([1], [-1.0], "finite and > 0"),
        ([1], [np.nan], "finite and > 0"),
        ([1], [np.inf], "finite and > 0"),
        ([[1]], [[1.0]], "one-dimensional"),
        ([1, 2], [1.0], "same length"),
    ],
)
def test_what_is_no_sparse_vector_is_refused(
    indices: list[int], values: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SparseVector(np.array(indices), np.array(values, dtype=np.float32))
