"""The benchmarks run on a tiny checkpoint, and their arithmetic is right; times mean nothing."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import machine
import peers
import points
import record
import report
import resident
import retrieval
import run
import speed
import speed_report
import store_run
import stores
from bm25 import Bm25
from context import QUICK, Bench
from peers import PEERS
from texts import Words
from unified_embeddings.engines.processors import processor_kind
from unified_embeddings.system.hardware import cpu
from workers import UnavailableError, Worker

TORCH, ONNX, FLAG = "ours-torch-fp32", "ours-onnx-fp32", "FlagEmbedding-fp32"


@pytest.fixture(scope="module")
def measured(xlmr: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick run of all parts, in two calls: the second keeps the first's part."""
    for module in ("matplotlib", "onnxruntime"):
        pytest.importorskip(module, reason=f"{module} is of an extra that is not installed")
    out, work = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("work")
    shared = ("--quick", "--model", xlmr, "--out", out, "--work", work)
    for parts, engines in (
        ("speed", (TORCH, ONNX, FLAG)),
        ("cold,memory,growth", (TORCH, ONNX)),
    ):
        # A process of its own, since it changes its own affinity and environment.
        command = [run.__file__, *shared, "--parts", parts, "--engines", ",".join(engines)]
        subprocess.run([sys.executable, *map(str, command)], check=True, timeout=300)
    return out


def part(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text("utf-8"))
    return found


def test_every_part_writes_its_numbers_and_a_plot(measured: Path) -> None:
    for name in ("speed", "cold", "memory", "growth"):
        rows = part(measured, name)["results"]["rows"]
        assert {TORCH, ONNX} <= set(rows)
        assert [row["reason"] for row in rows.values()] == [None] * len(rows)
        assert (measured / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_one_file_that_can_be_sent_in(
    measured: Path, xlmr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = part(measured, "machine")
    assert record.problems(content) == []
    assert list(content["parts"]) == ["speed", "cold", "memory", "growth"]
    for name, kept in content["parts"].items():
        assert kept == part(measured, name)
    assert content["about"]["machine"]["flags"] == list(cpu().flags)
    assert content["about"]["versions"]["torch"]
    kernels, auto = content["kernels"], content["auto"]
    assert kernels["torch"]["cpu_capability"]
    assert {"16 rows", "512 rows"} <= set(kernels["torch"]["onednn_fp32_kernels"])
    assert kernels["onnxruntime"]["build"]
    kind = processor_kind(cpu())
    assert (auto["processor"], auto["basis"]) == (kind.name, kind.basis)
    assert auto["engine"] in ("torch", "onnx")
    assert auto["precision"] in ("fp32", "bf16", "fp16")
    text = (measured / "machine.json").read_text("utf-8")
    for folder in (xlmr, measured, Path.home()):
        assert f"{folder}/" not in text
    record.main([str(measured / "machine.json")])
    assert kind.name in capsys.readouterr().out


def test_a_file_that_cannot_be_used_says_what_is_wrong(measured: Path, tmp_path: Path) -> None:
    whole = part(measured, "machine")
    assert record.problems([]) == ["the file is list, where an object is expected"]
    assert record.problems({**whole, "format": 2}) == [
        "format is 2, where 1 is read; measure with this version"
    ]
    assert record.problems({**whole, "format": True}) == [
        "the file.format is bool, where int is expected"
    ]
    assert record.problems({**whole, "parts": {}}) == ["parts is empty: nothing was measured"]
    assert record.problems({**whole, "parts": {"speed": {"title": "Speed", "bounds": [1]}}}) == [
        "parts.speed.bounds[0] is int, where dict is expected",
        "parts.speed has no 'results'",
    ]
    without_kernels = {name: value for name, value in whole.items() if name != "kernels"}
    assert record.problems(without_kernels) == ["the file has no 'kernels'"]
    broken = tmp_path / "machine.json"
    broken.write_text(json.dumps(without_kernels))
    with pytest.raises(SystemExit, match="has no 'kernels'"):
        record.main([str(broken)])
    broken.write_text("{")
    with pytest.raises(SystemExit, match="not a readable JSON file"):
        record.main([str(broken)])


def test_parts_of_another_machine_are_left_out(measured: Path, tmp_path: Path) -> None:
    whole = part(measured, "machine")
    other = json.loads(json.dumps(whole["parts"]["cold"]))
    other["about"]["machine"]["cpu"] = "another"
    parts = {"speed": whole["parts"]["speed"], "cold": other}
    told = {**whole["kernels"], "auto": whole["auto"]}
    record.write(tmp_path, whole["about"], told, parts)
    assert list(part(tmp_path, "machine")["parts"]) == ["speed"]


def test_speed_has_documents_queries_and_the_limit(measured: Path) -> None:
    results = part(measured, "speed")["results"]
    assert list(results["documents"]) == ["mixed", "equal", "paragraphs"]
    for row in results["rows"].values():
        for workload in results["documents"]:
            for setting in ("default", "best"):
                assert row["documents"][workload][setting]["tokens_per_second"]["min"] > 0
        assert {n: one["number"] for n, one in row["queries"].items()} == {"8": 4, "16": 4}
    for workload in results["documents"]:
        for setting in ("default", "best"):
            reference = results["rows"][FLAG]["documents"][workload][setting]
            assert reference["times_reference"] == 1
    # 2 layers of 4 x 32 x 32 for attention and 2 x 32 x 64 for the FFN, twice each
    assert results["flop_per_token"] == 2 * 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert results["limit"]["fp32"]["gflops"]["median"] > 0


def test_each_kind_of_documents_has_its_tokens(measured: Path) -> None:
    documents = part(measured, "speed")["results"]["documents"]
    assert documents["equal"]["tokens"] == [4 * 32, 4 * 32]
    for tokens in documents["mixed"]["tokens"]:
        assert 200 + 5 * 8 <= tokens <= 200 + 5 * 512
    for tokens in documents["paragraphs"]["tokens"]:
        assert 8 * 8 <= tokens <= 8 * 512


def test_one_loaded_model_is_measured_at_its_default_and_its_best_batch_size(
    measured: Path,
) -> None:
    rows = part(measured, "speed")["results"]["rows"]
    for workload in ("mixed", "equal", "paragraphs"):
        ours, peer = rows[TORCH]["documents"][workload], rows[FLAG]["documents"][workload]
        assert ours["default"]["rounds"] == ours["best"]["rounds"]
        assert ours["default"]["batch_size"] is ours["best"]["batch_size"] is None
        assert peer["default"]["batch_size"] == PEERS[FLAG].batch_size
        sizes = [size for size, _ in peer["trials"]]
        assert {1, PEERS[FLAG].batch_size} <= set(sizes) <= {1, 4, PEERS[FLAG].batch_size}
        assert peer["best"]["batch_size"] in sizes
        rates = [peer[setting]["tokens_per_second"]["median"] for setting in ("default", "best")]
        assert rates[1] >= rates[0]


def test_speed_shows_both_settings_and_what_was_left_out(measured: Path) -> None:
    results = part(measured, "speed")["results"]
    shown = speed_report.tables(results)
    best = results["rows"][FLAG]["documents"]["equal"]["best"]
    assert report.ranged(best["tokens_per_second"]) in shown
    assert "4 documents of 32 tokens each" in shown
    results["rows"][FLAG]["documents"]["equal"]["default"] = {
        "batch_size": 12,
        "reason": "it would take over 600 s",
    }
    shown = speed_report.tables(results)
    assert "- FlagEmbedding fp32, batch size 12: it would take over 600 s" in shown


def test_a_round_that_would_take_too_long_is_left_out(xlmr: Path, tmp_path: Path) -> None:
    scale = replace(QUICK, rounds=1, document_seconds=0, equal=0, paragraphs=0)
    bench = Bench(xlmr, tmp_path, peers.choose_peers([TORCH]), scale, 1, 60)
    results = speed.measure(bench)
    assert list(results["documents"]) == ["mixed"]
    best = results["rows"][TORCH]["documents"]["mixed"]["best"]
    assert best == {"batch_size": None, "reason": "it would take over 0 s"}
    assert results["rows"][TORCH]["queries"]["8"]["number"] == 4


def test_the_other_parts_have_their_figures(measured: Path) -> None:
    for row in part(measured, "cold")["results"]["rows"].values():
        assert sum(row["stages"].values()) == pytest.approx(row["seconds"]["median"])
        assert row["stages"]["imports"] > 0
    for row in part(measured, "memory")["results"]["rows"].values():
        assert 0 < row["loaded"] <= row["peak"]
        assert row["long_peak"] > 0
        assert row["many"][-1][0] == 200
    for row in part(measured, "growth")["results"]["rows"].values():
        assert [n for n, _ in row["texts"]] == [1, 2, 4]
        assert [n for n, _ in row["tokens"]] == [16, 32, 64]


def test_the_page_names_machine_and_command_and_no_folder(measured: Path, xlmr: Path) -> None:
    page = (measured / "README.md").read_text("utf-8")
    about = part(measured, "cold")["about"]
    assert about["machine"]["cpu"] in page
    assert f"--model {xlmr.name}" in about["command"]
    assert about["command"] in page
    for name in ("speed", "cold", "memory", "growth"):
        assert f"({name}.png)" in page
    for file in measured.glob("*.*"):
        assert str(xlmr.parent).encode() not in file.read_bytes()


def test_what_cannot_run_is_a_row_with_the_reason(xlmr: Path, tmp_path: Path) -> None:
    pytest.importorskip("bge_m3_lite", reason="bge-m3-lite is not installed")
    bench = Bench(xlmr, tmp_path, peers.choose_peers(["bge-m3-lite-fp32"]), QUICK, 1, 60)
    results = resident.measure(bench)
    reason = results["rows"]["bge-m3-lite-fp32"]["reason"]
    assert "BGE-M3's own size alone" in reason
    assert reason in resident.tables(results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "speed,colour"], "there is no part 'colour'"),
        (["--engines", "tensorflow"], "no engine's name contains 'tensorflow'"),
        (["--model", "nowhere"], "nowhere has no config.json"),
        (["--threads", "0"], "--threads must be 1 to"),
        (["--rounds", "0"], "--rounds: must be at least 1"),
        (["--paragraphs", "-1"], "--paragraphs: must be at least 0"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert message in capsys.readouterr().err


def test_results_of_an_older_form_are_refused_before_any_work(tmp_path: Path) -> None:
    older = {"results": {"documents": {"number": 12}, "rows": {}}}
    (tmp_path / "speed.json").write_text(json.dumps(older), "utf-8")
    with pytest.raises(SystemExit, match="--parts speed,cold"):
        run.main(["--parts", "cold", "--out", str(tmp_path)])


def test_a_process_that_dies_or_hangs_says_so(tmp_path: Path) -> None:
    with Worker("no such process", tmp_path, timeout=60) as worker:
        with pytest.raises(UnavailableError, match="KeyError"):
            worker.ask("load", query="")
        assert worker.ask("memory")["resident"] > 0  # a command that fails leaves it running
    with Worker("gemm", tmp_path, timeout=0.01) as worker:
        with pytest.raises(UnavailableError, match="no answer within"):
            worker.ask("gemm", precision="fp32", repeats=1000)
        with pytest.raises(UnavailableError, match="no answer within"):
            worker.ask("memory")


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("no /home/me/models/model.onnx here, 3/4", "no model.onnx here, 3/4"),
        ("not allowed: '/home/me/.cache'", "not allowed: '.cache'"),
        ("not allowed: /home/me/.cache", "not allowed: .cache"),
        ("cannot load '/home/My Name/my models/x': gone", "cannot load 'x': gone"),
        (f"no room in {Path.home()}", "no room in ~"),
        (f"no room in {Path.home()}/models", "no room in models"),
        ("either/or, 3 / 4", "either/or, 3 / 4"),
    ],
)
def test_reasons_hold_no_folders(reason: str, shown: str) -> None:
    assert str(UnavailableError(reason)) == shown


def test_the_command_of_a_run_holds_no_folders() -> None:
    arguments = ["--model=/home/me/m3", "--out", "/home/me/out", "--engines=flag", "--quick"]
    told = machine.about("run.py", arguments, (), 2, weights="none")["command"]
    assert told == "python benchmarks/run.py --model=m3 --out out --engines=flag --quick"


# --- stores ---------------------------------------------------------------------------------------


def command_for_stores(out: Path, work: Path, *more: str) -> list[str]:
    few = ("--sizes", "200", "--queries", "4", "--local-queries", "2", "--starts", "1")
    folders = ("--out", str(out), "--work", str(work))
    return [sys.executable, stores.__file__, *few, *folders, *more]


@pytest.fixture(scope="module")
def measured_stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The output folder of a run at 200 points, its collections, and what it printed."""
    pytest.importorskip("matplotlib", reason="matplotlib is of an extra that is not installed")
    out, work = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("collections")
    done = subprocess.run(
        command_for_stores(out, work, "--optimize"),
        check=True, timeout=300, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return out, work, done.stdout


def test_stores_have_every_figure(measured_stores: tuple[Path, Path, str]) -> None:
    out, _, printed = measured_stores
    results = part(out, "stores")["results"]
    assert results["llama_index"]["points_per_second"]["p50"] > 0
    size = results["sizes"]["200"]
    assert set(size["rows"]) == {"local", "edge", "optimized"}
    for name, row in size["rows"].items():
        assert row["label"] in printed
        assert row["count"] == 200
        assert row["disk"]["length"] > 200 * 1024 * 4
        assert row["reopen_seconds"]["all"]["median"] > 0
        assert row["memory"]["after"]["resident"] > row["memory"]["before"]["resident"]
        asked = 2 if name == "local" else 4
        assert row["query_ms"]["number"] == row["retriever_ms"]["number"] == asked
        assert 0 < row["query_ms"]["p10"] <= row["query_ms"]["p50"] <= row["query_ms"]["p90"]
    for name in ("local", "edge"):
        assert size["rows"][name]["write"]["points_per_second"] > 0
    for name in ("edge", "optimized"):
        # So few points are searched one by one.
        assert size["rows"][name]["recall"] == {"dense": 1, "fused": 1}
        for kind in ("query", "retriever"):
            assert size["times_local"][name][kind]["number"] == 2
    assert size["rows"]["optimized"]["optimize_seconds"] > 0
    assert size["rows"]["optimized"]["dense_indexed"] == 0
    assert (out / "stores.png").read_bytes().startswith(b"\x89PNG")


def test_stores_name_no_folder_and_leave_only_collections(
    measured_stores: tuple[Path, Path, str],
) -> None:
    out, work, _ = measured_stores
    assert str(work.parent).encode() not in (out / "stores.json").read_bytes()
    assert sorted(one.name.split("-")[0] for one in work.iterdir()) == [
        "edge",
        "local",
        "optimized",
    ]


def test_finished_collections_are_used_again(measured_stores: tuple[Path, Path, str]) -> None:
    out, work, _ = measured_stores
    before = part(out, "stores")["results"]["sizes"]["200"]["rows"]["edge"]
    done = subprocess.run(
        command_for_stores(out, work, "--local-up-to", "0", "--in-memory-up-to", "200"),
        check=True, timeout=300, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "edge: the collection of an earlier run" in done.stdout
    rows = part(out, "stores")["results"]["sizes"]["200"]["rows"]
    assert set(rows) == {"local", "edge"}
    assert rows["local"]["in"] == "memory"
    assert rows["local"]["query_ms"]["number"] == 2
    assert not before["earlier"]
    assert rows["edge"]["earlier"]
    assert rows["edge"]["write"] == before["write"]


@pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGINT to send")
def test_ctrl_c_leaves_no_folder_behind(tmp_path: Path) -> None:
    command = command_for_stores(tmp_path / "out", tmp_path / "work", "--sizes", "50000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "50,000 points" in process.stdout.readline()
        while not list((tmp_path / "work").glob("*.part")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "stopped" in printed
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "0,5"], "sizes are whole numbers above 0"),
        (["--sizes", ","], "sizes are whole numbers above 0"),
        (["--local-up-to", "20000"], "--local-up-to must be 0 to 10,000"),
        (["--starts", "0"], "--starts must be at least 1"),
        (["--data", "uniform"], "invalid choice: 'uniform'"),
    ],
)
def test_wrong_arguments_of_stores_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        stores.main(arguments)
    assert message in capsys.readouterr().err


def test_points_are_the_same_in_every_run_and_size() -> None:
    for data in points.DATA:
        (few,) = points.Recipe(data).blocks(3)
        many = list(points.Recipe(data).blocks(points.BLOCK + 1))
        assert [first for first, *_ in many] == [0, points.BLOCK]
        assert np.array_equal(few[1], many[0][1][:3])
        assert few[2] == many[0][2][:3]
        assert np.allclose(np.linalg.norm(few[1], axis=1), 1)
        assert [len(one) for one in few[2]] == [100] * 3
        (one,), (again, _) = (points.Recipe(data).questions(n) for n in (1, 2))
        assert np.array_equal(one.dense, again.dense)
        assert len(one.sparse) == 12
    first, second = (points.Recipe(data).digest for data in points.DATA)
    assert first != second


def test_recall_counts_what_is_tied_with_the_last() -> None:
    exact = [SimpleNamespace(id=i, score=s) for i, s in enumerate([9, 8, 7, 6, 5, 4, 3, 2, 1, 1])]
    tied = [*exact, SimpleNamespace(id=10, score=1), SimpleNamespace(id=11, score=0.5)]
    assert store_run.recall(exact, tied) == 1
    assert store_run.recall([*exact[:9], tied[10]], tied) == 1
    assert store_run.recall([*exact[:9], tied[11]], tied) == 0.9
    assert store_run.recall(exact[:3], exact[:3]) == 1


def test_a_page_keeps_what_is_written_by_hand(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    assert report.written_by_hand(page) == ""
    page.write_text("# Benchmarks\n\n## Speed\n\n## Stores\n\nBy hand.\n", "utf-8")
    kept = report.written_by_hand(page)
    assert kept == "\n## Stores\n\nBy hand.\n"
    page.write_text("# Anew\n" + kept, "utf-8")
    assert report.written_by_hand(page) == kept


# --- arithmetic -----------------------------------------------------------------------------------


def test_spreads_and_percentiles_by_hand() -> None:
    assert report.spread([3, 1, 2, 10]) == {"median": 2.5, "min": 1, "max": 10}
    hundred = list(range(100, 0, -1))
    assert report.percentile(hundred, 50) == 50
    assert report.percentile(hundred, 99) == 99
    assert report.percentile([7, 5], 99) == 7
    assert report.percentile([7], 1) == 7


def test_slopes_by_hand() -> None:
    assert report.slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert report.exponent([(1, 5), (2, 20), (4, 80)]) == pytest.approx(2)  # 5 x²


def test_tables_by_hand() -> None:
    assert report.table(("engine", "ms"), [("a", "1.5"), ("longer", "12")]) == (
        "| engine |  ms |\n| ------ | --: |\n| a      | 1.5 |\n| longer |  12 |"
    )
    assert report.number(1234.56) == "1,235"
    assert report.number(None) == "-"
    assert report.ranged({"median": 2, "min": 1, "max": 3.25}, 1) == "2.0 (1.0 to 3.2)"


def test_bounds_hold_on_their_own_side() -> None:
    assert report.bound("", 3, 3)["holds"] is True
    assert report.bound("", 3.1, 3)["holds"] is False
    assert report.bound("", 3.1, 3, least=True)["holds"] is True
    assert report.bound("", None, 3)["holds"] is None


def test_texts_have_the_requested_number_of_tokens(xlmr: Path) -> None:
    words, rng = Words(xlmr, limit=512), random.Random(1)
    tokenizer = Tokenizer.from_file(str(xlmr / "tokenizer.json"))
    for asked, made in ((8, 8), (128, 128), (2000, 512)):
        text = words.text(rng, asked)
        assert len(tokenizer.encode(text).ids) == words.count(text) == made
    mix = [words.count(text) for text in words.mix(rng, 200, outlier=1400)]
    assert max(mix) == 512
    assert min(mix) >= 8
    assert 75 < sorted(mix)[100] < 105


def test_engines_are_chosen_by_part_of_their_name() -> None:
    assert [peer.name for peer in peers.choose_peers(["ours-onnx"])] == ["ours-onnx-int8", ONNX]
    assert [peer.name for peer in peers.choose_peers([])] == [
        n for n, p in PEERS.items() if p.standard
    ]
    assert len(peers.choose_peers(["all"])) == len(PEERS)
    (one,) = peers.choose_peers(
        ["transformers-fp32"]
    )  # one row and one process, however it batches
    assert one.name == "sentence-transformers-fp32"


def test_bf16_without_matrix_units_is_measured_only_when_asked() -> None:
    peer = PEERS["ours-torch-bf16"]
    assert "amx_bf16" in (peer.missing(has_amx=False, slow=False) or "")
    assert peer.missing(has_amx=True, slow=False) is None
    assert peer.missing(has_amx=False, slow=True) is None


class TestBm25:
    """Three documents: a b; a a c; d. Their mean length is 2."""

    index = Bm25([[1, 2], [1, 1, 3], [4]], k1=1.2, b=0.75)

    def test_scores_by_hand(self) -> None:
        # ln(1 + (3 - 2 + 0.5) / (2 + 0.5)) = ln 1.6, for a token that two of three documents have.
        once = math.log(1.6) * 1 * 2.2 / (1 + 1.2 * 1)  # of average length
        twice = math.log(1.6) * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 1.5))
        assert self.index.scores([1]) == pytest.approx([once, twice, 0])

    def test_a_repeated_token_of_the_query_counts_twice(self) -> None:
        assert self.index.scores([1, 1]) == pytest.approx(2 * self.index.scores([1]))

    def test_tokens_add_up_and_unknown_ones_add_nothing(self) -> None:
        parts = self.index.scores([1]) + self.index.scores([4])
        assert self.index.scores([1, 4, 99]) == pytest.approx(parts)
        assert self.index.scores([]).tolist() == [0, 0, 0]

    def test_no_documents_and_empty_ones(self) -> None:
        assert Bm25([]).scores([1]).tolist() == []
        assert Bm25([[], []]).scores([1]).tolist() == [0, 0]


class TestRetrieval:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> list[Path]:
        """Two judged sets of five documents, each the answer to the question that it repeats."""
        texts = ["quick brown fox", "lazy dog", "the band plays on", "two rankings", "one fusion"]
        folders = [tmp_path / "one", tmp_path / "two"]
        for folder in folders:
            (folder / "qrels").mkdir(parents=True)
            for name, prefix in (("corpus", "d"), ("queries", "q")):
                rows = [json.dumps({"_id": f"{prefix}{i}", "text": t}) for i, t in enumerate(texts)]
                (folder / f"{name}.jsonl").write_text("\n".join(rows), "utf-8")
            qrels = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(len(texts)))]
            (folder / "qrels/test.tsv").write_text("\n".join(qrels) + "\n", "utf-8")
        return folders

    def test_tables(
        self, folders: list[Path], xlmr: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        retrieval.main([*map(str, folders), "--model", str(xlmr), "--choose"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"{xlmr}, default fusion: weights (1.0, 0.3), k 60")
        for way in ("dense", "sparse", "plain RRF", "default", "BM25"):
            rows = [line for line in lines if line.startswith(f"| {way} |")]
            assert len(rows) == 3  # both sets and the mean
            assert all("| 1.0000 |" in row for row in rows)
        assert "| plain RRF | 1.0000 | +0.0000 [+0.0000, +0.0000], p = 1.0000 |" in "\n".join(lines)
        left_out = lines[lines.index("### Each set by the choice that is best on the others") :]
        assert [line.split(" | ")[0] for line in left_out[4:6]] == ["| one", "| two"]

    def test_choosing_needs_two_sets(self, folders: list[Path]) -> None:
        with pytest.raises(SystemExit):
            retrieval.main([str(folders[0]), "--choose"])
