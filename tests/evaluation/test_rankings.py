"""Rankings and their rating, by hand and against trec_eval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytrec_eval import RelevanceEvaluator
from vectors_by_hand import floats, sparse

from unified_embeddings import Embeddings, SparseVector
from unified_embeddings.evaluation.rankings import (
    Retrieval,
    compare_retrieval,
    ndcg,
    overlap,
    rank_documents,
)

QUERIES = Embeddings(floats([1, 0]), [sparse(i1=1, i2=2)])
DOCUMENTS = Embeddings(
    floats([0, 1], [1, 0], [0.6, 0.8]), [sparse(i1=3), sparse(i5=9), sparse(i1=1, i2=1)]
)


class TestRankings:
    def test_dense_sparse_and_fused(self) -> None:
        runs = rank_documents(QUERIES, DOCUMENTS, ["q"], ["a", "b", "c"])
        assert runs["dense"]["q"] == pytest.approx({"b": 1, "c": 0.6, "a": 0})
        assert runs["sparse"]["q"] == {"a": 3, "c": 3}  # b shares no word
        # Dense b c a; sparse c a: 3 and 3, where the greater id comes first.
        assert runs["fused"]["q"] == pytest.approx(
            {"b": 1 / 61, "c": 1 / 62 + 1 / 61, "a": 1 / 63 + 1 / 62}
        )

    def test_equal_scores_at_the_cut(self) -> None:
        names = [f"{i:02}" for i in range(30)]
        same = Embeddings(np.ones((30, 1), dtype=np.float32))
        runs = rank_documents(Embeddings(floats([1])), same, ["q"], names)
        assert list(runs["dense"]["q"]) == names[:-21:-1]

    def test_a_dense_model_has_one_ranking(self) -> None:
        dense = Embeddings(floats([1, 0]))
        assert list(rank_documents(dense, dense, ["q"], ["d"])) == ["dense"]

    def test_no_document_has_a_word(self) -> None:
        empty = Embeddings(sparse=[sparse()])
        assert rank_documents(empty, empty, ["q"], ["d"]) == {"sparse": {"q": {}}}

    @given(st.data())
    def test_sparse_scores_are_dot_products(self, data: st.DataObject) -> None:
        vectors = st.lists(
            st.dictionaries(st.integers(0, 8), st.sampled_from([0.5, 1.0, 2.0]), max_size=5).map(
                SparseVector.from_dict
            ),
            min_size=1,
            max_size=6,
        )
        queries, documents = data.draw(vectors), data.draw(vectors)
        names = [str(i) for i in range(len(documents))]
        run = rank_documents(
            Embeddings(sparse=queries),
            Embeddings(sparse=documents),
            [str(i) for i in range(len(queries))],
            names,
        )["sparse"]
        for query_index, query in enumerate(queries):
            expected = {
                name: score
                for name, document in zip(names, documents, strict=True)
                if (score := sum(query.get(i, 0) * document[i] for i in document)) > 0
            }
            assert run[str(query_index)] == expected

    def test_overlap_of_the_best(self) -> None:
        reference = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}, "none": {}}
        assert overlap(reference, {"q": {"a": 1.0, "c": 9.0, "b": 0.0}}, k=2) == 0.5
        assert overlap(reference, {}, k=2) == 0
        assert overlap({"q": {}}, {"q": {"a": 1.0}}) == 1

    def test_ndcg_by_hand(self) -> None:
        qrels = {"q": {"a": 2, "b": 1}, "missing": {"a": 1}, "nothing": {"a": 0}}
        run = {"q": {"b": 2.0, "x": 1.0, "a": 0.5}, "nothing": {"a": 1.0}, "unjudged": {"a": 1.0}}
        expected = (1 + 2 / math.log2(4)) / (2 + 1 / math.log2(3))
        assert ndcg(run, qrels) == pytest.approx(expected / 3)

    def test_loss_is_a_share_of_the_references(self) -> None:
        full, half = {"q": {"a": 1.0}}, {"q": {"b": 2.0, "x": 1.5, "a": 1.0}}
        assert compare_retrieval(full, half, {"q": {"a": 1}}) == Retrieval(1, 0.5, 0.5)
        assert compare_retrieval(full, full, {"q": {"z": 1}}) == Retrieval(1, 0, None)
        assert compare_retrieval(full, half, None) == Retrieval(1)


NAMES = st.sampled_from(["a", "b", "B", "10", "9", "é", "文", *map(str, range(20, 34))])
SCORES = st.one_of(st.sampled_from([0.0, 1.0, 1.0 + 1e-12, 2.0]), st.floats(-5, 5))
RUNS = st.dictionaries(st.sampled_from("pqr"), st.dictionaries(NAMES, SCORES, min_size=1))
QRELS = st.dictionaries(
    st.sampled_from("pqr"), st.dictionaries(NAMES, st.integers(-1, 3), min_size=1), min_size=1
)


@given(RUNS, QRELS)
def test_ndcg_is_trec_evals(run: dict[str, Any], qrels: dict[str, Any]) -> None:
    judged = RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    expected = sum(scores["ndcg_cut_10"] for scores in judged.values()) / len(qrels)
    assert ndcg(run, qrels) == pytest.approx(expected, abs=1e-9)
