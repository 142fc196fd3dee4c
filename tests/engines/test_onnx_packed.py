"""Processes that share a machine share an exported model's weights, and give the same vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import checkpoints
from unified_embeddings import BGE_M3_Embedder, ModelLoadError
from unified_embeddings.engines import onnx_packed
from unified_embeddings.export.folder import export_onnx
from unified_embeddings.system import hardware

onnxruntime = pytest.importorskip("onnxruntime")
TEXTS = ["The quick brown fox", "", "ranking orders them " * 30, "Привет, мир!"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose products have weights of a megabyte and more, even in int8."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    return checkpoints.xlm_roberta(folder, layers=1, width=1024)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def exported(
    request: pytest.FixtureRequest, wide: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return export_onnx(wide, tmp_path_factory.mktemp("onnx") / "wide", precision=request.param)


@pytest.fixture
def shared_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """This process as one of two; yields the folder of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(onnx_packed, "_WORTH_SHARING", 0)
    hardware.share_machine(2)
    yield tmp_path / "unified-embeddings"
    hardware.share_machine(1)


def packed_folders(cache: Path) -> list[Path]:
    return list(cache.glob("onnx-packed-*"))


def test_the_vectors_are_the_same_to_the_bit(exported: Path, shared_machine: Path) -> None:
    hardware.share_machine(1)
    alone = BGE_M3_Embedder(exported, cache=None).encode_documents(TEXTS, colbert=True)
    assert not packed_folders(shared_machine)

    hardware.share_machine(2)
    together = BGE_M3_Embedder(exported, cache=None).encode_documents(TEXTS, colbert=True)
    (folder,) = packed_folders(shared_machine)
    assert (folder / "model.onnx.data").exists()
    np.testing.assert_array_equal(alone.dense, together.dense)
    assert alone.sparse == together.sparse
    for mine, theirs in zip(alone.colbert, together.colbert, strict=True):
        np.testing.assert_array_equal(mine, theirs)

    # The next process finds what this one has written.
    written = (folder / "model.onnx").stat()
    BGE_M3_Embedder(exported, cache=None).encode_query("fox")
    assert (folder / "model.onnx").stat() == written
    assert packed_folders(shared_machine) == [folder]


def test_another_processor_gets_weights_of_its_own(
    exported: Path, shared_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BGE_M3_Embedder(exported).encode_query("fox")
    other = hardware.Cpu(name="another", cores=2, flags=hardware.cpu().flags)
    monkeypatch.setattr(onnx_packed, "cpu", lambda: other)
    BGE_M3_Embedder(exported).encode_query("fox")
    assert len(packed_folders(shared_machine)) == 2


def test_what_is_damaged_or_cannot_be_written_is_named(
    exported: Path, shared_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BGE_M3_Embedder(exported).encode_query("fox")
    (folder,) = packed_folders(shared_machine)
    (folder / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ModelLoadError, match="remove its folder") as caught:
        BGE_M3_Embedder(exported).encode_query("fox")
    assert str(folder) in str(caught.value)

    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelLoadError, match=r"set XDG_CACHE_HOME .*, or serve with one worker"):
        BGE_M3_Embedder(exported).encode_query("fox")


def test_weights_that_cannot_be_aligned_are_not_shared(
    shared_machine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = checkpoints.xlm_roberta(tmp_path / "source", width=40)
    small = export_onnx(source, tmp_path / "small", precision="int8")
    alone = BGE_M3_Embedder(source, precision="fp32").encode_query("fox").dense
    for _ in range(2):  # The second finds the reason in the cache.
        caplog.clear()
        dense = BGE_M3_Embedder(small, cache=None).encode_query("fox").dense
        assert float(np.vdot(dense, alone)) > 0.99
        assert "Each process keeps its own weights: some are too small" in caplog.text
    (folder,) = packed_folders(shared_machine)
    assert [path.name for path in folder.iterdir()] == ["not-shared"]


def test_small_models_are_not_worth_it(
    exported: Path, shared_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_packed, "_WORTH_SHARING", 200 * 2**20)
    BGE_M3_Embedder(exported).encode_query("fox")
    assert not packed_folders(shared_machine)
