"""Other engines in the benchmarks: their files and vectors, their rows, and what is required."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

import ct2
import exactness
import hidden_states
import llamacpp
import other_work
import peers
import report
import speed
import speed_bounds
import speed_report
import texts
import vino
from context import QUICK, Bench
from other_work import OtherWork
from peers import PEERS
from unified_embeddings import BGE_M3_Embedder
from unified_embeddings.models.resolve import resolve
from workers import Worker

TORCH, ABSENT = "ours-torch-fp32", "ctranslate2-int8"
OTHERS = [name for name, peer in PEERS.items() if peer.make is not None and not peer.is_ours]
TEXTS = ["fox", "The quick brown fox", "ranking orders them", "the lazy dog", ""]


@pytest.fixture(scope="module")
def measured(xlmr: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Speed of one engine that runs here, and of one whose package is absent."""
    gone = replace(PEERS[ABSENT], modules=("json", "a_module_that_is_absent"))
    bench = Bench(
        folder=xlmr,
        work=tmp_path_factory.mktemp("work"),
        peers=[PEERS[TORCH], gone],
        scale=replace(QUICK, equal=0, paragraphs=0),
        threads=1,
        timeout=60,
    )
    results: dict[str, Any] = json.loads(json.dumps(speed.measure(bench)))
    return results


def test_an_absent_package_is_a_row_with_the_pip_command(measured: dict[str, Any]) -> None:
    row = measured["rows"][ABSENT]
    assert row["reason"] == "no module a_module_that_is_absent here; pip install ctranslate2"
    assert "documents" not in row
    shown = speed_report.tables(measured)
    assert f"- CTranslate2 int8: {row['reason']}" in shown
    assert measured["rows"][TORCH]["reason"] is None


def test_processor_time_stands_next_to_the_wall_clock(measured: dict[str, Any]) -> None:
    row = measured["rows"][TORCH]
    shown = speed_report.tables(measured)
    for cpu in (
        row["documents"]["mixed"]["best"]["cpu_ms_per_token"],
        row["queries"]["16"]["cpu_ms"],
    ):
        assert 0 < cpu["min"] <= cpu["median"] <= cpu["max"]
    assert "CPU ms per token (range)" in shown
    assert "16 tokens: CPU ms" in shown
    share = measured["other_work"]
    assert 0 <= share["min"] <= share["median"] <= share["max"] <= 1
    assert "Other programs took" in shown


def test_exactness_is_in_the_table(measured: dict[str, Any]) -> None:
    facts = measured["exactness"]
    assert facts["reference"] == "ours, torch fp32"
    assert facts["texts"] == 20
    low, high = facts["between_texts"]
    assert -1 <= low < high < 1
    assert measured["rows"][TORCH]["exactness"] == pytest.approx(
        {"min": 1, "mean": 1, "min_centred": 1}, abs=1e-6
    )
    assert "| ours, torch fp32 |         1.00000 |" in speed_report.tables(measured)


def test_results_without_the_newer_figures_are_still_shown(measured: dict[str, Any]) -> None:
    older = json.loads(json.dumps(measured))
    del older["exactness"], older["other_work"]
    row = older["rows"][TORCH]
    for query in row["queries"].values():
        del query["cpu_ms"]
    for setting in ("default", "best"):
        del row["documents"]["mixed"][setting]["cpu_ms_per_token"]
    shown = speed_report.tables(older)
    assert "ours, torch fp32" in shown
    assert "Exactness" not in shown
    assert "processor time: user" not in shown
    assert [entry["holds"] for entry in speed_bounds.bounds(older)][5] is None


def test_without_ours_in_fp32_nothing_is_compared() -> None:
    shown = exactness.tables({"exactness": {"texts": 20, "reference": None}}, {})
    assert shown == "Vectors were not compared: neither of our engines in fp32 ran."


def test_cosines_are_those_worked_out_by_hand() -> None:
    expected = np.array([[1, 0], [0, 2]], np.float32)
    found = np.array([[3, 0], [1, 0]], np.float32)
    # Less (1/2, 1/2), the expected rows point along (1, -1) and (-1, 1), the found along (1, -1).
    assert exactness.compare(expected, found) == pytest.approx(
        {"min": 0, "mean": 0.5, "min_centred": -1}
    )
    with pytest.raises(ValueError, match=r"expected vectors \(2, 2\), got \(1, 2\)"):
        exactness.compare(expected, found[:1])


def test_other_work_is_what_is_neither_idle_nor_own(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = iter([{"user": 10.0, "idle": 5.0}, {"user": 16.0, "idle": 9.0}])
    own = iter([1.0, 3.0])
    times = SimpleNamespace(_asdict=lambda: next(machine))
    monkeypatch.setattr(psutil, "cpu_times", lambda: times)
    monkeypatch.setattr("other_work._own_seconds", lambda: next(own))
    # Of 10 seconds, 6 were busy, and 2 of these were own.
    assert OtherWork().share() == pytest.approx(0.4)


def test_the_work_of_a_process_that_was_started_and_has_ended_is_own() -> None:
    before = other_work._own_seconds()
    program = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert other_work._own_seconds() - before >= 0.28  # the system counts in hundredths


class SteadyWorker:
    """A process that takes a second for any batch size, of the clock and of the processor."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def ask(self, command: str, *, texts: list[str], batch_size: int) -> dict[str, float]:
        self.sizes.append(batch_size)
        return {"seconds": 1.0, "cpu_seconds": 2.0}


def test_a_batch_size_above_the_number_of_texts_is_tried_once(xlmr: Path, tmp_path: Path) -> None:
    name = "FlagEmbedding-fp32"
    scale = replace(QUICK, batch_sizes=(1, 2, 4, 8, 16), documents=6, trial_documents=3)
    bench = Bench(xlmr, tmp_path, [PEERS[name]], scale, 1, 60)
    worker = SteadyWorker()
    engines = speed._Engines({name: {"label": name, "reason": None}}, {name: worker})  # type: ignore[dict-item]
    speed._Documents(bench, engines, bench.workloads[0]).find_batch_sizes()
    assert worker.sizes == [12, 1, 2, 4]


def row(library: str, precision: str, **measured: Any) -> dict[str, Any]:
    """A row of results; `default` and `best` are tokens/s, `cpu` is by the query's length."""
    documents = {
        setting: {"batch_size": 1, "tokens_per_second": {"median": measured[setting]}}
        for setting in ("default", "best")
    }
    queries = {
        length: {"cpu_ms": {"median": milliseconds}, "p50_ms": milliseconds}
        for length, milliseconds in measured["cpu"].items()
    }
    return {
        "label": library,
        "library": library,
        "precision": precision,
        "documents": {"mixed": documents},
        "queries": queries,
    }


def test_int8_is_held_against_the_best_of_the_peers() -> None:
    ours, slow, fast = {"16": 38, "128": 210}, {"16": 80, "128": 300}, {"16": 40, "128": 200}
    rows = {
        "ours-onnx-int8": row("unified-embeddings", "int8", default=600, best=600, cpu=ours),
        "ours-onnx-fp32": row("unified-embeddings", "fp32", default=300, best=300, cpu=slow),
        "openvino-fp32": row("openvino", "fp32", default=150, best=400, cpu=slow),
        "ctranslate2-int8": row("ctranslate2", "int8", default=200, best=500, cpu=fast),
        "llama.cpp-q8_0": row("llama-cpp-python", "int8", default=450, best=450, cpu=slow),
        # Faster than all, and wrong.
        "openvino-int8": row("openvino", "int8", default=900, best=900, cpu={"16": 1, "128": 1}),
    }
    rows["openvino-int8"]["exactness"] = {"min": 0.9899}
    rows["ctranslate2-int8"]["exactness"] = {"min": 0.99}
    limit = {"fp32": {"tokens_per_second": 400}, "bf16": {}}
    found = {
        entry["text"]: (entry["measured"], entry["holds"])
        for entry in speed_bounds.bounds({"rows": rows, "limit": limit})
    }
    expected = {
        "one 16-token query, onnx int8: CPU time over the best peer's": (38 / 40, True),
        "one 128-token query, onnx int8: CPU time over CTranslate2 int8's": (210 / 200, True),
        "documents, onnx int8: times our fp32": (2.0, True),
        # Not llama.cpp, which pads nothing.
        "documents, onnx int8: times the fastest peer that pads, at its default": (3.0, True),
        "documents, onnx int8: times the fastest peer, at its best": (1.2, True),
        "documents, our fp32: % of the fp32 limit": (75.0, False),
    }
    assert {text: found[text] for text in expected} == expected


def test_each_peer_names_the_code_that_makes_its_files() -> None:
    for name in OTHERS:
        assert Path(peers.__file__).with_name(f"{PEERS[name].made_by}.py").is_file()
        assert PEERS[name].install
    assert {"ctranslate2-fp32", "openvino-int8", "llama.cpp-q8_0", "bge-m3-lite-int8"} < set(OTHERS)


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.is_ours])
def test_ours_run_on_the_cpu_where_there_is_a_gpu_too(
    name: str, xlmr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert PEERS[name].load(xlmr).runtime.device == "cpu"


def test_words_are_found_in_both_kinds_of_vocabulary() -> None:
    assert texts._words(["▁fox", "fox", "▁", "▁x1", "▁dog", "[CLS]"]) == ["dog", "fox"]
    assert texts._words(["[CLS]", "fox", "##es", "dog", "!"]) == ["dog", "fox"]


# --- heads over states ----------------------------------------------------------------------------


class StatesOfTransformers:
    """Token states of transformers' model, in one buffer that each call overwrites."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel

        self._model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
        self._buffer = np.zeros((8, 64, self._model.config.hidden_size), np.float32)

    def __call__(self, ids: list[list[int]]) -> np.ndarray:
        import torch

        longest = max(map(len, ids))
        padded = torch.ones(len(ids), longest, dtype=torch.long)  # <pad> is 1
        mask = torch.zeros_like(padded)
        for number, text in enumerate(ids):
            padded[number, : len(text)] = torch.tensor(text)
            mask[number, : len(text)] = 1
        with torch.inference_mode():
            states = self._model(input_ids=padded, attention_mask=mask).last_hidden_state
        part = self._buffer[: len(ids), :longest]
        part[:] = states.numpy()
        return part


def assert_same_vectors(found: hidden_states.Vectors, xlmr: Path, tolerance: float) -> None:
    ours = BGE_M3_Embedder(xlmr, engine="torch", precision="fp32", cache=None)
    expected = ours.encode_documents(TEXTS)
    assert np.abs(found.dense - expected.dense).max() < tolerance
    for one, other in zip(found.sparse, expected.sparse, strict=True):
        assert one.indices.tolist() == other.indices.tolist()
        assert np.abs(one.values - other.values).max(initial=0) < tolerance


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_heads_in_numpy_give_our_vectors(xlmr: Path, tmp_path: Path, batch_size: int) -> None:
    hidden_states.write_heads(resolve(xlmr, local_files_only=True), tmp_path)
    model = hidden_states.HiddenStates(tmp_path, StatesOfTransformers(xlmr))
    assert_same_vectors(model.encode(TEXTS, batch_size), xlmr, 1e-5)


# --- where the engines are installed --------------------------------------------------------------


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("one_thread")
def test_ctranslate2_computes_our_vectors(xlmr: Path, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    ct2.convert(xlmr, tmp_path / "model", "fp32")
    assert_same_vectors(ct2.load(tmp_path / "model", "fp32").encode(TEXTS, 2), xlmr, 1e-4)


@pytest.mark.usefixtures("one_thread")
def test_openvino_computes_our_vectors(xlmr: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    vino.convert(xlmr, tmp_path / "model")
    assert_same_vectors(vino.load(tmp_path / "model").encode(TEXTS, 2), xlmr, 1e-4)


@pytest.mark.usefixtures("one_thread")
def test_llama_cpp_computes_nearly_our_vectors(xlmr: Path, tmp_path: Path) -> None:
    for module in ("llama_cpp", "gguf"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    # In processes of its own, as in the benchmarks: a failure of native code ends the process.
    with Worker("llama.cpp-q8_0", xlmr, 60) as worker:
        worker.ask("prepare", target=str(tmp_path / "model"))
    with Worker("llama.cpp-q8_0", tmp_path / "model", 60) as worker:
        worker.ask("load", query="fox")
        found = np.asarray(worker.ask("dense", texts=TEXTS, batch_size=2)["dense"])
    ours = BGE_M3_Embedder(xlmr, engine="torch", precision="fp32", cache=None)
    assert exactness.compare(ours.encode_documents(TEXTS).dense, found)["min"] > 0.99


# --- a GGUF file's parts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embeddings.word_embeddings.weight", "token_embd.weight"),
        ("embeddings.LayerNorm.bias", "token_embd_norm.bias"),
        ("encoder.layer.11.attention.self.query.weight", "blk.11.attn_q.weight"),
        ("encoder.layer.0.attention.output.LayerNorm.bias", "blk.0.attn_output_norm.bias"),
        ("encoder.layer.23.output.dense.weight", "blk.23.ffn_down.weight"),
    ],
)
def test_tensors_have_the_names_that_llama_cpp_reads(name: str, expected: str) -> None:
    assert llamacpp._target_name(name) == expected


def test_word_pieces_are_marked_where_words_begin() -> None:
    assert [llamacpp._phantom_space(piece) for piece in ("fox", "##es")] == ["▁fox", "es"]


def test_the_normalisation_of_sentencepiece_is_kept() -> None:
    precompiled = {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(b"\x01\x02").decode(),
    }
    several = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, precompiled]}
    assert llamacpp._character_map({"normalizer": precompiled}) == b"\x01\x02"
    assert llamacpp._character_map({"normalizer": several}) == b"\x01\x02"
    assert llamacpp._character_map({"normalizer": None}) is None
    assert json.loads(Tokenizer(WordPiece()).to_str())["normalizer"] is None


def test_the_page_names_what_pip_installs() -> None:
    assert (
        report.page({}, {}).count(
            "`pip install FlagEmbedding sentence-transformers 'bge-m3-lite[quant]' sentencepiece "
            "ctranslate2 openvino nncf llama-cpp-python gguf`"
        )
        == 1
    )


def test_no_round_begins_after_the_deadline(
    xlmr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = replace(QUICK, rounds=4, queries=8, equal=0, paragraphs=0)
    bench = Bench(xlmr, tmp_path, [PEERS[TORCH]], scale, 1, 60, deadline=0)
    results = speed.measure(bench)
    assert len(results["documents"]["mixed"]["tokens"]) == 1
    assert results["queries"]["number"] == results["rows"][TORCH]["queries"]["16"]["number"] == 2
    assert "the time is over after 1 of 4 rounds" in capsys.readouterr().out
