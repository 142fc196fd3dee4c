"""The table by which "auto" chooses: each row is found by its flags, and what is forced wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unified_embeddings import BGE_M3_Embedder
from unified_embeddings.engines import choice, torch_device
from unified_embeddings.engines.processors import PROCESSORS, processor_kind
from unified_embeddings.errors import InputError
from unified_embeddings.system import hardware
from unified_embeddings.system.hardware import Cpu

AVX2 = ("sse2", "avx2")
AVX512 = (*AVX2, "avx512f")
ARM = ("asimd",)
ROWS = {
    "x86 with AMX": ((*AVX512, "avx512_vnni", "amx_bf16", "amx_int8"), "torch", "bf16"),
    "x86 with AVX-512 VNNI and bf16": ((*AVX512, "avx512_vnni", "avx512_bf16"), "torch", "fp32"),
    "x86 with AVX-512 VNNI": ((*AVX512, "avx512_vnni"), "torch", "fp32"),
    "x86 with AVX-512, no VNNI": (AVX512, "torch", "fp32"),
    "x86 with AVX-VNNI, no AVX-512": ((*AVX2, "avx_vnni"), "onnx", "fp32"),
    "x86 with AVX2": (AVX2, "onnx", "fp32"),
    "x86 without AVX2": (("sse2",), "torch", "fp32"),
    "ARM with i8mm and SVE": ((*ARM, "asimddp", "i8mm", "bf16", "sve"), "torch", "fp32"),
    "ARM with i8mm": ((*ARM, "asimddp", "i8mm", "bf16"), "torch", "fp32"),
    "ARM with dot products": ((*ARM, "asimddp"), "torch", "fp32"),
    "ARM without dot products": (ARM, "torch", "fp32"),
    "unknown": ((), "torch", "fp32"),
}
"""Row → a processor's flags, and the engine and the precision expected there for BGE-M3."""


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that gives this machine another processor, and room for an export."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(choice, "_has_gpu", lambda: False)
    monkeypatch.setattr(choice, "free_space", lambda _: 1e12)
    monkeypatch.setattr(torch_device.torch.cuda, "is_available", lambda: False)

    def become(flags: tuple[str, ...]) -> None:
        for module in (choice, torch_device):
            monkeypatch.setattr(module, "cpu", lambda: Cpu("a processor", 2, flags))

    return become


def test_every_row_is_tested() -> None:
    assert [kind.name for kind in PROCESSORS] == list(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_processor_gets_its_row(name: str, become: Any) -> None:
    flags, engine, precision = ROWS[name]
    kind = processor_kind(Cpu("a processor", 2, flags))
    assert kind.name == name
    become(flags)
    runtime = BGE_M3_Embedder(local_files_only=True).runtime
    assert (runtime.engine, runtime.precision, runtime.device) == (engine, precision, "cpu")
    assert kind.reason in runtime.reason
    assert f"{kind.basis} for {name}" in runtime.reason


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_forced_precision_wins_on_every_processor(name: str, precision: str, become: Any) -> None:
    become(ROWS[name][0])
    assert (
        BGE_M3_Embedder(precision=precision, local_files_only=True).runtime.precision == precision
    )


@pytest.mark.parametrize("name", ROWS)
def test_int8_is_never_taken_by_itself(name: str, become: Any) -> None:
    become(ROWS[name][0])
    assert BGE_M3_Embedder(local_files_only=True).runtime.precision != "int8"


@pytest.mark.parametrize("name", ROWS)
def test_fp16_is_refused_on_every_processor(name: str, become: Any) -> None:
    become(ROWS[name][0])
    with pytest.raises(InputError, match="fp16"):
        assert BGE_M3_Embedder(precision="fp16", local_files_only=True).runtime


def test_every_flag_of_the_table_is_one_that_is_read() -> None:
    """A flag that no machine reports would make a row that is never reached."""
    for kind in PROCESSORS:
        assert kind.has <= set(hardware._REPORTED_FLAGS)


def test_every_row_says_what_it_rests_on() -> None:
    for kind in PROCESSORS:
        assert kind.basis in ("measured", "expected")
        assert kind.int8_basis in ("measured", "expected")
        assert kind.reason.strip()
        assert kind.precision_reason.strip()
        assert kind.int8.strip()


def test_another_processor_changes_no_fingerprint(become: Any, xlmr: Path) -> None:
    """A collection made on one machine is opened on another, with vectors that compare."""
    vectors = {}
    fingerprints = set()
    for name in ("x86 with AVX2", "x86 with AVX-512 VNNI", "ARM with i8mm"):
        become(ROWS[name][0])
        embedder = BGE_M3_Embedder(str(xlmr))
        fingerprints.add(embedder.fingerprint)
        vectors[name] = embedder.encode_query("fox").dense[0]
    assert len(fingerprints) == 1
    for row in vectors.values():
        np.testing.assert_allclose(row, vectors["x86 with AVX2"], rtol=0, atol=1e-5)
