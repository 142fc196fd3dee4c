"""Measuring a model in a process of its own, and the way its vectors come back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from vectors_by_hand import floats, sparse

from unified_embeddings import Embeddings
from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.evaluation.comparison import compare
from unified_embeddings.evaluation.corpora import Corpus
from unified_embeddings.evaluation.measurement import Candidate, measure_candidate
from unified_embeddings.evaluation.packing import pack_embeddings, unpack_embeddings
from unified_embeddings.system.memory import peak_bytes, process_bytes


class TestPacking:
    @pytest.mark.parametrize(
        "embeddings",
        [
            Embeddings(floats([1, 0], [0, 1]), [sparse(i1=1, i4=2), sparse()]),
            Embeddings(sparse=[sparse()]),
            Embeddings(floats([1, 0])),
        ],
        ids=["both", "empty", "dense"],
    )
    def test_vectors_come_back_without_pickle(self, embeddings: Embeddings, tmp_path: Path) -> None:
        np.savez(tmp_path / "vectors.npz", **pack_embeddings("documents", embeddings))
        with np.load(tmp_path / "vectors.npz", allow_pickle=False) as arrays:
            unpacked = unpack_embeddings("documents", arrays)
        assert unpacked.sparse == embeddings.sparse
        np.testing.assert_equal(unpacked.dense, embeddings.dense)


CORPUS = Corpus("small", {"a": "The quick brown fox", "b": "ranking orders them"}, {"q": "fox"})


class TestMeasuring:
    def test_a_reference_that_cannot_be_measured(self, xlmr: Path) -> None:
        reference = Candidate("torch fp16", str(xlmr), problem="of no reason")
        with pytest.raises(UnifiedEmbeddingsError, match=r"torch fp16.*of no reason"):
            compare(reference, [], CORPUS)

    def test_a_model_that_is_not_there(self) -> None:
        with pytest.raises(UnifiedEmbeddingsError, match="no such folder"):
            measure_candidate(Candidate("none", "/no/such/folder"), CORPUS, ["fox"])

    def test_a_process_that_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(UnifiedEmbeddingsError, match="exit code 1"):
            measure_candidate(Candidate("none", "model"), CORPUS, ["fox"])

    def test_that_texts_are_cut_is_said_once_for_each_length(
        self, xlmr: Path, bert: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Each model is measured in a process of its own, which knows nothing of the others."""
        corpus = Corpus("long", {"a": "fox " * 1000, "b": "ranking orders them"}, {"q": "fox"})
        candidates = [Candidate("again", str(xlmr)), Candidate("other", str(bert))]
        compared = compare(Candidate("first", str(xlmr)), candidates, corpus)
        assert [row.problem for row in compared.rows] == [None, None, None]
        warnings = [line for line in capfd.readouterr().err.splitlines() if "was cut" in line]
        assert [line.split(" takes ")[0] for line in warnings] == [str(xlmr), str(bert)]

    def test_peak_memory_is_no_less_than_now(self) -> None:
        peak = peak_bytes()
        if peak is None:
            pytest.skip("the system does not tell the peak")
        assert peak >= process_bytes() * 0.99
