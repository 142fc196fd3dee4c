"""A model's digest: of everything its vectors depend on, computed once and remembered."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoints
from unified_embeddings import BGE_M3_Embedder, ModelSpec
from unified_embeddings.models import digests
from unified_embeddings.models.digests import file_digest
from unified_embeddings.models.resolve import resolve

LARGE = 5 * 2**20
"""Bytes of a file whose digest is remembered."""


@pytest.fixture
def xlmr_copy(xlmr: Path, tmp_path: Path) -> Path:
    return shutil.copytree(xlmr, tmp_path / "xlmr")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, in which files count as unchanged at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    return tmp_path / "cache" / "unified-embeddings"


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    state = {name: tensor.clone() for name, tensor in state.items()}
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def fingerprint(folder: Path) -> str:
    return BGE_M3_Embedder(str(folder)).fingerprint


class TestContent:
    def test_one_number_of_one_bias_changes_the_fingerprint(self, xlmr_copy: Path) -> None:
        def nudge(state: dict[str, torch.Tensor]) -> None:
            state["encoder.layer.1.output.dense.bias"][7] += 1e-3

        before, before_by_samples = fingerprint(xlmr_copy), resolve(xlmr_copy).sampled_digest
        change_weights(xlmr_copy, nudge)
        assert fingerprint(xlmr_copy) != before
        # A model this small is sampled whole.
        assert resolve(xlmr_copy).sampled_digest != before_by_samples

    def test_what_lies_between_the_samples_of_earlier_versions_counts(
        self, xlmr_copy: Path
    ) -> None:
        def widen(state: dict[str, torch.Tensor]) -> None:
            state["unused"] = torch.zeros(LARGE, dtype=torch.float32)

        change_weights(xlmr_copy, widen)
        before = resolve(xlmr_copy)
        weights = xlmr_copy / "model.safetensors"
        content = bytearray(weights.read_bytes())
        # 256 blocks of 4 KiB in 20 MB leave 95% unseen.
        between = len(content) // 256 * 100 + 2 * 4096
        content[between] ^= 1
        weights.write_bytes(content)
        after = resolve(xlmr_copy)
        assert after.sampled_digest == before.sampled_digest
        assert after.digest != before.digest

    def test_any_byte_of_any_file_counts(self, xlmr_copy: Path) -> None:
        rng = random.Random(1)
        names = ["tokenizer.json", "model.safetensors", "sparse_linear.pt", "colbert_linear.pt"]
        before = resolve(xlmr_copy).digest
        for _ in range(40):
            path = xlmr_copy / rng.choice(names)
            content = path.read_bytes()
            changed = bytearray(content)
            changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(changed)
            assert resolve(xlmr_copy).digest != before
            path.write_bytes(content)
        assert resolve(xlmr_copy).digest == before

    def test_the_export_and_the_cache_of_another_bias_are_not_taken(self, xlmr_copy: Path) -> None:
        def nudge(state: dict[str, torch.Tensor]) -> None:
            state["encoder.layer.1.output.dense.bias"][7] += 0.5

        pytest.importorskip("onnx")
        first = BGE_M3_Embedder(str(xlmr_copy), engine="onnx").encode_query("fox").dense
        change_weights(xlmr_copy, nudge)
        second = BGE_M3_Embedder(str(xlmr_copy), engine="onnx").encode_query("fox").dense
        assert first is not None
        assert second is not None
        assert abs(first - second).max() > 1e-3


SENTENCE_FILES = {
    "modules.json": lambda content: content[:-1],
    "1_Pooling/config.json": lambda content: {**content, "pooling_mode_max_tokens": False},
    "sentence_bert_config.json": lambda content: {**content, "module_output_name": "x"},
    "config_sentence_transformers.json": lambda _: {"prompts": {"query": "q: "}},
    "2_Normalize/config.json": lambda _: {"a": 1},
}


@pytest.mark.parametrize("name", SENTENCE_FILES)
def test_the_files_that_sentence_transformers_reads_count(tmp_path: Path, name: str) -> None:
    folder = checkpoints.sentence_model(tmp_path / "model", "mpnet")
    spec = ModelSpec("mine", str(folder))
    before = resolve(spec).digest
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(SENTENCE_FILES[name](content)))
    assert resolve(spec).digest != before


def test_a_modules_folder_counts_whatever_it_is_called(tmp_path: Path) -> None:
    folder = checkpoints.sentence_model(tmp_path / "model", "mpnet", normalise=False)
    modules = json.loads((folder / "modules.json").read_text())
    dense = {"idx": 2, "name": "2", "path": "deep/12_Dense", "type": "sentence_transformers.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense]))
    (folder / "deep/12_Dense").mkdir(parents=True)
    (folder / "deep/12_Dense/config.json").write_text("{}")
    weights = folder / "deep/12_Dense/model.safetensors"
    weights.write_bytes(b"one")
    spec = ModelSpec("mine", str(folder), normalise=False)
    before = resolve(spec).digest
    weights.write_bytes(b"two")
    assert resolve(spec).digest != before


class TestFormerDigest:
    def test_is_what_earlier_versions_computed(self, xlmr: Path) -> None:
        digest = hashlib.blake2b(digest_size=12)
        for name in ("config.json", "tokenizer.json", "sparse_linear.pt", "colbert_linear.pt"):
            content = (xlmr / name).read_bytes()
            digest.update(len(content).to_bytes(8, "little") + content)
        digest.update(b"cls")
        weights = (xlmr / "model.safetensors").read_bytes()
        digest.update(len(weights).to_bytes(8, "little"))
        for i in range(256):
            start = i * len(weights) // 256
            digest.update(weights[start : start + 4096])
        assert resolve(xlmr).sampled_digest == digest.hexdigest()

    def test_is_passed_on_by_an_export(self, xlmr: Path, tmp_path: Path) -> None:
        pytest.importorskip("onnx")
        from unified_embeddings.export.folder import export_onnx

        source, exported = resolve(xlmr), resolve(export_onnx(xlmr, tmp_path / "exported"))
        assert exported.digest == source.digest
        assert exported.sampled_digest == source.sampled_digest


class Opened:
    """Counts the bytes read from one file through `Path.open`."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        real = pathlib.Path.open

        def count(opened: Path, *arguments: Any, **options: Any) -> Any:
            self.times += opened == path
            return real(opened, *arguments, **options)

        monkeypatch.setattr(pathlib.Path, "open", count)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(random.Random(1).randbytes(LARGE))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestRemembering:
    def test_a_file_is_read_once(self, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = Opened(large, monkeypatch)
        assert file_digest(large) == file_digest(large)
        assert opened.times == 1
        assert file_digest(large) == sha256(large)

    def test_a_change_of_the_same_size_is_seen(self, large: Path) -> None:
        before, stat = file_digest(large), large.stat()
        with large.open("r+b") as file:
            file.write(b"changed")
        os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert file_digest(large) == sha256(large) != before

    def test_a_file_in_its_place_is_seen(self, large: Path, tmp_path: Path) -> None:
        before = file_digest(large)
        other = tmp_path / "other"
        other.write_bytes(random.Random(2).randbytes(LARGE))
        other.replace(large)
        assert file_digest(large) == sha256(large) != before

    def test_a_file_that_has_just_changed_is_not_remembered(
        self, large: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(digests, "_SETTLED", 2.0)
        assert file_digest(large) == sha256(large)
        assert not (cache_folder / "digests").exists()

    @pytest.mark.parametrize("damage", ["cut", "digit", "list", "nested"])
    def test_a_damaged_note_is_not_believed(
        self, large: Path, cache_folder: Path, damage: str
    ) -> None:
        digest = file_digest(large)
        (note,) = (cache_folder / "digests").iterdir()
        content = note.read_text()
        damaged = {
            "cut": content[:50],
            "digit": content.replace(digest, digest[:-1] + ("1" if digest[-1] == "0" else "0")),
            "list": "[]",
            "nested": "[" * 100_000,
        }
        note.write_text(damaged[damage])
        assert file_digest(large) == digest

    def test_a_cache_folder_that_cannot_be_written_costs_nothing_else(
        self, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert file_digest(large) == sha256(large)

    def test_a_small_file_is_not_remembered(self, tmp_path: Path, cache_folder: Path) -> None:
        (tmp_path / "small").write_bytes(b"small")
        assert file_digest(tmp_path / "small") == hashlib.sha256(b"small").hexdigest()
        assert not (cache_folder / "digests").exists()


class TestHubBlobs:
    @pytest.fixture
    def blob(self, large: Path, tmp_path: Path) -> Path:
        """A downloaded file, as huggingface_hub keeps it: named after its digest, and linked to."""
        repository = tmp_path / "hub" / "models--me--mine"
        (repository / "blobs").mkdir(parents=True)
        (repository / "snapshots" / "1").mkdir(parents=True)
        blob = repository / "blobs" / sha256(large)
        shutil.copy(large, blob)
        (repository / "snapshots/1/model.safetensors").symlink_to(blob)
        return blob

    def test_are_not_read(self, blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = Opened(blob, monkeypatch)
        link = blob.parent.parent / "snapshots/1/model.safetensors"
        assert file_digest(link) == file_digest(link) == blob.name
        assert opened.times == 0

    def test_have_the_digest_of_a_copy_elsewhere(self, blob: Path, large: Path) -> None:
        assert file_digest(blob) == file_digest(large)

    def test_that_were_changed_since_lose_their_name(self, blob: Path) -> None:
        assert file_digest(blob) == blob.name
        with blob.open("r+b") as file:
            file.write(b"changed")
        assert file_digest(blob) == sha256(blob) != blob.name

    def test_a_file_elsewhere_that_is_named_like_one_is_read(
        self, tmp_path: Path, large: Path
    ) -> None:
        (tmp_path / "blobs").mkdir()
        impostor = tmp_path / "blobs" / ("0" * 64)
        shutil.copy(large, impostor)
        assert file_digest(impostor) == sha256(large)
