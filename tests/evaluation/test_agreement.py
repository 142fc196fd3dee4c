"""What a comparison says of two models' vectors, and where its texts come from."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytrec_eval import RelevanceEvaluator

from unified_embeddings import Embeddings, InputError, SparseVector
from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.evaluation.agreement import (
    Drift,
    colbert_agreement,
    colbert_scores,
    dense_agreement,
    drift,
    sparse_agreement,
)
from unified_embeddings.evaluation.corpora import Corpus, python_reference, read_beir, spread
from unified_embeddings.evaluation.measurement import (
    Candidate,
    _packed,
    _unpacked,
    compare,
    measure,
)
from unified_embeddings.evaluation.rankings import Retrieval, ndcg, overlap, rankings, retrieval
from unified_embeddings.system.memory import peak_bytes, process_bytes


def floats(*rows: list[float]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(rows, dtype=np.float32)


def sparse(**weights: float) -> SparseVector:
    return SparseVector.from_dict({int(name[1:]): weight for name, weight in weights.items()})


class TestVectors:
    def test_cosine(self) -> None:
        found = dense_agreement(floats([1, 0], [1, 0], [0, 1]), floats([1, 0], [0.6, 0.8], [0, 1]))
        assert found.cosine_min == pytest.approx(0.6)
        assert found.cosine_mean == pytest.approx(2.6 / 3)
        # The 5th percentile of 0.6, 1, 1 lies a tenth of the way from the first to the second.
        assert found.cosine_p5 == pytest.approx(0.64)

    def test_a_zero_vector_agrees_with_itself_alone(self) -> None:
        found = dense_agreement(floats([0, 0], [0, 0]), floats([0, 0], [1, 0]))
        assert (found.cosine_min, found.cosine_mean) == (0, 0.5)

    def test_sparse_ids(self) -> None:
        one = [sparse(i1=3, i2=2, i3=1), sparse(i7=1)]
        other = [sparse(i1=3, i3=2, i9=1), sparse(i7=5)]
        found = sparse_agreement(one, other, k=2)
        assert found.jaccard == pytest.approx((2 / 4 + 1) / 2)
        assert found.top_same == 0.5  # {1, 2} against {1, 3}; {7} against {7}
        assert found.top_common == pytest.approx((1 / 2 + 1) / 2)

    def test_empty_sparse_vectors(self) -> None:
        both = sparse_agreement([sparse()], [sparse()])
        assert (both.jaccard, both.top_same, both.top_common) == (1, 1, 1)
        one = sparse_agreement([sparse(i1=1)], [sparse()])
        assert (one.jaccard, one.top_same, one.top_common) == (0, 0, 0)

    def test_colbert_scores_are_the_mean_of_the_best_matches(self) -> None:
        queries = [floats([1, 0], [0, 1]), np.zeros((0, 2), dtype=np.float32)]
        scores = colbert_scores(queries, [floats([1, 0]), floats([0.6, 0.8])])
        np.testing.assert_allclose(scores, [[0.5, 0.7], [0, 0]], rtol=1e-6)

    def test_colbert_difference(self) -> None:
        found = colbert_agreement(floats([0.5, 0.75]), floats([0.25, 0.75]))
        assert (found.maxsim_largest, found.maxsim_mean) == (0.25, 0.125)

    def test_drift(self) -> None:
        alone = Embeddings(
            floats([1, 0], [1, 0]), [sparse(i1=1), sparse()], [floats([1, 0]), floats()]
        )
        together = Embeddings(
            floats([1, 0], [0.8, 0.6]),
            [sparse(i1=1.5), sparse(i2=0.25)],
            [floats([0.5, 0]), floats()],
        )
        found = drift(alone, together)
        assert found.dense_cosine == pytest.approx(0.2)
        assert found.dense == pytest.approx(0.6)
        assert (found.sparse, found.colbert) == (0.5, 0.5)

    def test_drift_of_a_head_the_model_has_not(self) -> None:
        dense = Embeddings(floats([1, 0]))
        assert drift(dense, dense) == Drift(0, 0, None, None)


QUERIES = Embeddings(floats([1, 0]), [sparse(i1=1, i2=2)])
DOCUMENTS = Embeddings(
    floats([0, 1], [1, 0], [0.6, 0.8]), [sparse(i1=3), sparse(i5=9), sparse(i1=1, i2=1)]
)


class TestRankings:
    def test_dense_sparse_and_fused(self) -> None:
        runs = rankings(QUERIES, DOCUMENTS, ["q"], ["a", "b", "c"])
        assert runs["dense"]["q"] == pytest.approx({"b": 1, "c": 0.6, "a": 0})
        assert runs["sparse"]["q"] == {"a": 3, "c": 3}  # b shares no word
        # Dense b c a; sparse c a: 3 and 3, where the greater id comes first.
        assert runs["fused"]["q"] == pytest.approx(
            {"b": 1 / 61, "c": 1 / 62 + 1 / 61, "a": 1 / 63 + 1 / 62}
        )

    def test_equal_scores_at_the_cut(self) -> None:
        names = [f"{at:02}" for at in range(30)]
        same = Embeddings(np.ones((30, 1), dtype=np.float32))
        runs = rankings(Embeddings(floats([1])), same, ["q"], names)
        assert list(runs["dense"]["q"]) == names[:-21:-1]

    def test_a_dense_model_has_one_ranking(self) -> None:
        dense = Embeddings(floats([1, 0]))
        assert list(rankings(dense, dense, ["q"], ["d"])) == ["dense"]

    def test_no_document_has_a_word(self) -> None:
        empty = Embeddings(sparse=[sparse()])
        assert rankings(empty, empty, ["q"], ["d"]) == {"sparse": {"q": {}}}

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
        names = [str(at) for at in range(len(documents))]
        run = rankings(
            Embeddings(sparse=queries),
            Embeddings(sparse=documents),
            [str(at) for at in range(len(queries))],
            names,
        )["sparse"]
        for at, query in enumerate(queries):
            expected = {
                name: score
                for name, one in zip(names, documents, strict=True)
                if (score := sum(query.get(i, 0) * one[i] for i in one)) > 0
            }
            assert run[str(at)] == expected

    def test_overlap_of_the_best(self) -> None:
        one = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}, "none": {}}
        assert overlap(one, {"q": {"a": 1.0, "c": 9.0, "b": 0.0}}, k=2) == 0.5
        assert overlap(one, {}, k=2) == 0
        assert overlap({"q": {}}, {"q": {"a": 1.0}}) == 1

    def test_ndcg_by_hand(self) -> None:
        qrels = {"q": {"a": 2, "b": 1}, "missing": {"a": 1}, "nothing": {"a": 0}}
        run = {"q": {"b": 2.0, "x": 1.0, "a": 0.5}, "nothing": {"a": 1.0}, "unjudged": {"a": 1.0}}
        found = (1 + 2 / math.log2(4)) / (2 + 1 / math.log2(3))
        assert ndcg(run, qrels) == pytest.approx(found / 3)

    def test_loss_is_a_share_of_the_references(self) -> None:
        full, half = {"q": {"a": 1.0}}, {"q": {"b": 2.0, "x": 1.5, "a": 1.0}}
        assert retrieval(full, half, {"q": {"a": 1}}) == Retrieval(1, 0.5, 0.5)
        assert retrieval(full, full, {"q": {"z": 1}}) == Retrieval(1, 0, None)
        assert retrieval(full, half, None) == Retrieval(1)


NAMES = st.sampled_from(["a", "b", "B", "10", "9", "é", "文", *map(str, range(20, 34))])
SCORES = st.one_of(st.sampled_from([0.0, 1.0, 1.0 + 1e-12, 2.0]), st.floats(-5, 5))
RUNS = st.dictionaries(st.sampled_from("pqr"), st.dictionaries(NAMES, SCORES, min_size=1))
QRELS = st.dictionaries(
    st.sampled_from("pqr"), st.dictionaries(NAMES, st.integers(-1, 3), min_size=1), min_size=1
)


@given(RUNS, QRELS)
def test_ndcg_is_trec_evals(run: dict[str, Any], qrels: dict[str, Any]) -> None:
    judged = RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    expected = sum(one["ndcg_cut_10"] for one in judged.values()) / len(qrels)
    assert ndcg(run, qrels) == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_a_result_agrees_fully_with_itself(texts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(texts, 8)).astype(np.float32)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    vectors = [
        SparseVector(np.sort(rng.choice(30, size, replace=False)), rng.uniform(0.1, 1, size))
        for size in rng.integers(0, 9, texts)
    ]
    both = Embeddings(dense, vectors)
    names = [str(at) for at in range(texts)]
    assert set(dataclasses.astuple(dense_agreement(dense, dense))) == {1}
    assert set(dataclasses.astuple(sparse_agreement(vectors, vectors))) == {1}
    assert drift(both, both) == Drift(0, 0, 0, None)
    for run in rankings(both, both, names, names).values():
        assert overlap(run, run) == 1


class TestPacking:
    @pytest.mark.parametrize(
        "embedded",
        [
            Embeddings(floats([1, 0], [0, 1]), [sparse(i1=1, i4=2), sparse()]),
            Embeddings(sparse=[sparse()]),
            Embeddings(floats([1, 0])),
        ],
        ids=["both", "empty", "dense"],
    )
    def test_vectors_come_back_without_pickle(self, embedded: Embeddings, tmp_path: Path) -> None:
        np.savez(tmp_path / "vectors.npz", **_packed("documents", embedded))
        with np.load(tmp_path / "vectors.npz", allow_pickle=False) as arrays:
            found = _unpacked(arrays, "documents")
        assert found.sparse == embedded.sparse
        np.testing.assert_equal(found.dense, embedded.dense)


CORPUS = Corpus("small", {"a": "The quick brown fox", "b": "ranking orders them"}, {"q": "fox"})


class TestMeasuring:
    def test_a_reference_that_cannot_be_measured(self, xlmr: Path) -> None:
        reference = Candidate("torch fp16", str(xlmr), problem="of no reason")
        with pytest.raises(UnifiedEmbeddingsError, match=r"torch fp16.*of no reason"):
            compare(reference, [], CORPUS)

    def test_a_model_that_is_not_there(self) -> None:
        with pytest.raises(UnifiedEmbeddingsError, match="no such folder"):
            measure(Candidate("none", "/no/such/folder"), CORPUS, ["fox"])

    def test_a_process_that_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(UnifiedEmbeddingsError, match="exit code 1"):
            measure(Candidate("none", "model"), CORPUS, ["fox"])

    def test_peak_memory_is_no_less_than_now(self) -> None:
        peak = peak_bytes()
        if peak is None:
            pytest.skip("the system does not tell the peak")
        assert peak >= process_bytes() * 0.99


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    (tmp_path / "qrels").mkdir()
    rows = [{"_id": "d1", "title": "Foxes", "text": "jump"}, {"_id": "d2", "text": "sleep"}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"_id": "q1", "text": "who jumps?"}, {"_id": "q2", "text": "not judged"}]
    (tmp_path / "queries.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\n")
    return tmp_path


class TestCorpora:
    def test_beir(self, beir: Path) -> None:
        assert read_beir(beir) == Corpus(
            beir.name,
            {"d1": "Foxes\njump", "d2": "sleep"},
            {"q1": "who jumps?"},
            {"q1": {"d1": 2}},
        )

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            ("corpus.jsonl", None, "there is no .*corpus.jsonl"),
            ("corpus.jsonl", "", "is empty"),
            (
                "corpus.jsonl",
                '{"_id": "a", "text": "b"}\n{"_id"',
                "line 2 is no JSON",
            ),
            ("corpus.jsonl", "\n[1]", "line 2 should be an object"),
            ("queries.jsonl", '{"_id": 1, "text": "b"}', "queries.jsonl, line 1 should be"),
            ("queries.jsonl", '{"_id": "a", "text": "b"}\n' * 2, "line 2 has the"),
            ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "judges nothing"),
            ("qrels/test.tsv", "q\td\ts\nq1\td1\tmuch", "test.tsv, line 2 .*whole number"),
            ("qrels/test.tsv", "q1 d1 1\nq1 d1 1", "test.tsv, line 2 .*tabs"),
            ("qrels/test.tsv", "q9\td1\t1", "line 1 judges the query 'q9'"),
        ],
    )
    def test_what_is_wrong_is_said(
        self, beir: Path, name: str, content: str | None, problem: str
    ) -> None:
        (beir / name).unlink()
        if content is not None:
            (beir / name).write_text(content)
        with pytest.raises(InputError, match=problem):
            read_beir(beir)

    def test_bytes_that_are_no_text(self, beir: Path) -> None:
        (beir / "corpus.jsonl").write_bytes(b"\xff\xfe")
        with pytest.raises(InputError, match="no readable text"):
            read_beir(beir)

    def test_the_python_reference(self) -> None:
        corpus = python_reference()
        assert len(corpus.documents) == 120
        assert len(set(corpus.queries.values())) >= 20
        assert corpus.qrels is None

    def test_even_spread(self) -> None:
        assert spread(10, 4) == [0, 2, 5, 7]
        assert spread(2, 4) == [0, 1]
