"""Which engine "auto" takes, on machines of each kind, and that it says why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command import environment
from unified_embeddings import BGE_M3_Embedder, ModelSpec
from unified_embeddings.embedders.single_model import ModelEmbedder
from unified_embeddings.engines import choice
from unified_embeddings.errors import InputError
from unified_embeddings.models.exported import EXPORT_FORMAT
from unified_embeddings.system.hardware import Cpu

AVX2 = Cpu("AMD EPYC", 2, ("sse2", "avx2"))
AVX_VNNI = Cpu("Intel Core", 2, ("sse2", "avx2", "avx_vnni"))
AVX512 = Cpu("Intel Xeon", 2, ("sse2", "avx2", "avx512f", "avx512_vnni"))
AMX = Cpu("Intel Xeon", 2, ("sse2", "avx2", "avx512f", "amx_bf16"))
ARM = Cpu("Neoverse", 2, ("asimd", "sve"))
UNKNOWN = Cpu("", 2, ())

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes this machine one of another kind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def become(processor: Cpu, *, gpu: bool = False, free: float = 1e12) -> None:
        monkeypatch.setattr(choice, "cpu", lambda: processor)
        monkeypatch.setattr(choice, "_has_gpu", lambda: gpu)
        monkeypatch.setattr(choice, "free_space", lambda _: free)

    become(AVX2)
    return become


def choose(**options: Any) -> tuple[str, str]:
    """Return the engine chosen for BGE-M3, none of whose files are here, and the reason."""
    runtime = BGE_M3_Embedder(**options, local_files_only=True).runtime
    return runtime.engine, runtime.reason


@pytest.mark.parametrize(("processor", "basis"), [(AVX2, "measured"), (AVX_VNNI, "expected")])
def test_onnx_where_it_is_faster(machine: Any, processor: Cpu, basis: str) -> None:
    machine(processor)
    engine, reason = choose()
    assert engine == "onnx"
    assert basis in reason
    assert choose(precision="fp32", device="cpu")[0] == "onnx"


@pytest.mark.parametrize("processor", [AVX512, AMX, ARM, UNKNOWN])
def test_torch_on_other_processors(machine: Any, processor: Cpu) -> None:
    machine(processor)
    engine, reason = choose()
    assert engine == "torch"
    assert "torch: " in reason


def test_torch_on_a_gpu(machine: Any) -> None:
    machine(AVX2, gpu=True)
    assert choose()[0] == "torch"
    assert choose(device="cpu")[0] == "onnx"


def test_torch_for_what_onnx_cannot_do() -> None:
    assert choose(precision="bf16")[0] == "torch"
    with pytest.raises(InputError, match="CUDA"):
        choose(device="cuda")


def test_torch_where_there_is_no_room_for_an_export(machine: Any) -> None:
    machine(AVX2, free=1e9)
    engine, reason = choose()
    assert engine == "torch"
    assert "takes 2.3 GB of 1.0 GB free" in reason


def test_an_export_needs_no_room_where_it_is_the_models(
    machine: Any, xlmr: Path, tmp_path: Path
) -> None:
    machine(AVX2, free=1e9)
    spec = ModelSpec("mine", str(xlmr), parameters=10**9, pooling="cls", engine="torch")
    exports = tmp_path / "unified-embeddings"
    (exports / f"onnx-{EXPORT_FORMAT}-{24 * '0'}-cls-dense-fp32").mkdir(parents=True)
    assert ModelEmbedder(spec).runtime.engine == "torch"
    digest = ModelEmbedder(spec).checkpoint.digest
    (exports / f"onnx-{EXPORT_FORMAT}-{digest}-cls-dense-fp32").mkdir()
    assert ModelEmbedder(spec).runtime.engine == "onnx"


@pytest.fixture
def _without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    real = choice.importlib.util.find_spec

    def without_onnx(name: str) -> Any:
        return None if name == "onnx" else real(name)

    monkeypatch.setattr(choice.importlib.util, "find_spec", without_onnx)


@pytest.mark.usefixtures("_without_onnx")
def test_torch_where_the_extra_is_not_installed() -> None:
    engine, reason = choose()
    assert engine == "torch"
    assert "onnx are not installed: pip install '.[onnx]'" in reason


@pytest.mark.usefixtures("_without_onnx")
def test_the_reason_says_that_long_texts_may_be_faster(machine: Any) -> None:
    machine(AVX512)
    assert "may be faster with onnx: pip install '.[onnx]'" in choose()[1]
    machine(AMX)  # in bf16 they are not
    assert "pip install" not in choose()[1]


def test_nothing_is_advised_where_all_is_installed(machine: Any) -> None:
    machine(AVX512)
    assert "pip install" not in choose()[1]


def test_torch_for_small_models_of_unknown_size(xlmr: Path) -> None:
    runtime = BGE_M3_Embedder(str(xlmr)).runtime
    assert runtime.engine == "torch"
    assert "this size" in runtime.reason


@pytest.mark.parametrize("processor", [AVX2, AVX512, ARM, UNKNOWN])
def test_onnx_for_mini_m3_which_torch_would_keep_waiting(machine: Any, processor: Cpu) -> None:
    machine(processor)
    runtime = BGE_M3_Embedder("mini-m3").runtime
    assert runtime.engine == "onnx"
    assert "a second sooner" in runtime.reason
    machine(processor, gpu=True)
    assert BGE_M3_Embedder("mini-m3").runtime.engine == "torch"


def test_torch_for_mini_m3_where_it_cannot_be_exported(machine: Any) -> None:
    machine(AVX2, free=1e6)
    runtime = BGE_M3_Embedder("mini-m3").runtime
    assert runtime.engine == "torch"
    assert "would start a second sooner, but exporting the model takes 0.1 GB" in runtime.reason


def test_what_is_named_is_taken(xlmr: Path) -> None:
    assert choose(engine="torch")[0] == "torch"
    assert ModelEmbedder("nomic", trust_remote_code=True).runtime.engine == "sentence"
    large = ModelSpec("mine", str(xlmr), parameters=10**9, pooling="cls", engine="onnx")
    assert ModelEmbedder(large).runtime.engine == "onnx"


def test_a_large_model_of_ones_own_is_run_by_it(xlmr: Path) -> None:
    spec = ModelSpec("mine", str(xlmr), parameters=10**9, pooling="cls", engine="torch")
    embedder = ModelEmbedder(spec)
    assert embedder.runtime.engine == "onnx"
    assert embedder.encode_query("fox").dense is not None


def test_onnx_runtime_leaves_nothing_in_the_home(tmp_path: Path) -> None:
    program = (
        "import os; from unified_embeddings.engines import onnx_session; "
        "onnx_session.onnxruntime.SessionOptions(); print('ORT_DISABLE_TELEMETRY' in os.environ)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment(), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout.strip() == "False"
    assert not list(tmp_path.rglob("*"))
