"""Files with hostile values: a ModelLoadError each, in bounded time and memory.

Each case runs with a limit on this process's memory, and the whole file takes seconds.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import checkpoints
from unified_embeddings import BGE_M3_Embedder, ClipEmbedder, ModelEmbedder, ModelSpec
from unified_embeddings.errors import ModelLoadError
from unified_embeddings.models import bounds
from unified_embeddings.models.checkpoint import Checkpoint

MEMORY = 6 * 2**30
"""Bytes of address space that a case may take beyond what is taken when it begins."""
PATIENCE = 20.0
"""Seconds that a case may take. Without the checks each takes hours, or all memory."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    former = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, former[1]))
    started = time.monotonic()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)
    assert time.monotonic() - started < PATIENCE


def embed(folder: Path, engine: str = "torch") -> None:
    BGE_M3_Embedder(str(folder), engine=engine, cache=None).encode_documents(
        ["A fox jumps over a dog.", ""], colbert=True
    )


def assert_refused(run: Callable[[], object]) -> str:
    with bounded(), pytest.raises(ModelLoadError) as caught:
        run()
    return str(caught.value)


@pytest.fixture
def model(xlmr: Path, tmp_path: Path) -> Path:
    return shutil.copytree(xlmr, tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


NESTED = "[" * 100_000 + "]" * 100_000
JSON_FILES = (
    "config.json",
    "1_Pooling/config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


class TestSettings:
    @pytest.mark.parametrize("name", JSON_FILES)
    @pytest.mark.parametrize(
        "content",
        [
            NESTED,
            '{"a":' * 100_000,
            "",
            "\ud800".encode("utf-8", "surrogatepass"),
            b"\0" * 5000,
            "null",
            "[1, [2]]",
            '{"hidden_size": ' + "9" * 5000 + "}",
        ],
        ids=["lists", "objects", "empty", "surrogate", "zeros", "null", "numbers", "digits"],
    )
    def test_that_are_no_settings(self, model: Path, name: str, content: str | bytes) -> None:
        raw = content if isinstance(content, bytes) else content.encode()
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(raw)
        assert_refused(lambda: embed(model))

    @pytest.mark.parametrize("name", JSON_FILES)
    def test_of_gigabytes(self, model: Path, name: str) -> None:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("{}")
        os.truncate(model / name, 2**36)
        assert "bytes" in assert_refused(lambda: embed(model))

    @pytest.mark.parametrize(
        "changes",
        [
            {"num_hidden_layers": 10**9},
            {"num_hidden_layers": 10**12, "hidden_size": 10**12},
            {"num_hidden_layers": -1},
            {"num_hidden_layers": 0},
            {"num_hidden_layers": 2.5},
            {"num_hidden_layers": True},
            {"num_hidden_layers": "2"},
            {"num_hidden_layers": None},
            {"num_hidden_layers": [2]},
            {"hidden_size": 10**9},
            {"hidden_size": 0},
            {"hidden_size": float("inf")},
            {"num_attention_heads": 10**9},
            {"num_attention_heads": 0},
            {"num_attention_heads": -4},
            {"intermediate_size": 10**15},
            {"intermediate_size": 0},
            {"vocab_size": 10**12},
            {"vocab_size": 1},
            {"vocab_size": -1},
            {"max_position_embeddings": 10**12},
            {"max_position_embeddings": 1},
            {"max_position_embeddings": float("nan")},
            {"type_vocab_size": 0},
            {"type_vocab_size": 10**10},
            {"pad_token_id": -1000},
            {"pad_token_id": 10**9},
            {"pad_token_id": "1"},
            {"layer_norm_eps": float("nan")},
            {"layer_norm_eps": -1},
            {"layer_norm_eps": "1e-5"},
            {"hidden_act": "__import__('os')"},
            {"model_type": "../../evil"},
            {"model_type": None},
        ],
        ids=str,
    )
    def test_with_absurd_numbers(self, model: Path, changes: dict[str, Any]) -> None:
        edit(model / "config.json", **changes)
        assert_refused(lambda: embed(model))

    @pytest.mark.parametrize(
        "changes",
        [
            {"num_hidden_layers": 10**9},
            {"num_hidden_layers": 900, "num_experts": 900},
            {"hidden_size": 10**9},
            {"vocab_size": 10**12},
            {"max_position_embeddings": 10**12},
            {"num_attention_heads": 0},
            {"transformers_weights": "../other.safetensors"},
            {"transformers_weights": "other.safetensors"},
            {"attn_implementation": "me/kernel"},
            {"_attn_implementation": {"": "kernels-community/flash-attn"}},
            {"experts_implementation": "me/kernel"},
            {"auto_map": {"AutoModel": "me/mine--code.Model"}, "model_type": "mine"},
        ],
        ids=str,
    )
    def test_that_transformers_would_read(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        folder = checkpoints.sentence_model(tmp_path / "model", "mpnet")
        edit(folder / "config.json", **changes)
        spec = ModelSpec("mine", str(folder))
        assert_refused(lambda: ModelEmbedder(spec).encode_documents(["fox"]))

    @pytest.mark.parametrize(
        "changes",
        [
            {"shared_expert_intermediate_size": 20_480, "num_experts": 64},  # Qwen2-MoE's
            {"vocab_size_per_layer_input": 262_144},  # Gemma 3n's
            {"layerdrop": 0.0, "layer_norm_eps": 1e-12, "rope_theta": 1e30},
        ],
        ids=str,
    )
    def test_with_large_numbers_of_real_models(self, model: Path, changes: dict[str, Any]) -> None:
        edit(model / "config.json", **changes)
        bounds.check_settings(Checkpoint("a model", model))

    @pytest.mark.parametrize(
        "entry",
        [
            {"type": "sentence_transformers.models.Router", "path": ""},
            {"type": "os.system", "path": ""},
            {"type": "sentence_transformers.models.Dense", "path": "../../elsewhere"},
            {"type": "sentence_transformers.models.Dense", "path": "/elsewhere"},
            {"type": "sentence_transformers.models.Dense", "path": "a\0b"},
            {"path": ""},
            5,
            None,
        ],
        ids=str,
    )
    def test_with_modules_from_elsewhere(self, tmp_path: Path, entry: Any) -> None:
        folder = checkpoints.sentence_model(tmp_path / "model", "mpnet")
        path = folder / "modules.json"
        path.write_text(json.dumps([*json.loads(path.read_text()), entry]))
        spec = ModelSpec("mine", str(folder))
        assert_refused(lambda: ModelEmbedder(spec).encode_documents(["fox"]))


def replacement(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def template(**token: Any) -> dict[str, Any]:
    return {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"], **token}},
    }


class TestTokenizers:
    @pytest.mark.parametrize(
        "changes",
        [
            {"normalizer": replacement({"String": "a"}, "a" * 10**6)},
            {"normalizer": replacement({"Regex": ""}, "a" * 10**6)},
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [replacement({"String": "a"}, "aa")] * 60,
                }
            },
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}},
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}},
            {"normalizer": {"type": "Unheard"}},
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
            {"post_processor": template(ids=[4_000_000_000])},
            {"post_processor": template(ids=[10_000])},
            {"post_processor": template(ids=[0] * 100_000, tokens=["<s>"] * 100_000)},
            {"post_processor": None},
            {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a"]]}},
            {"model": {"type": "WordLevel", "vocab": {"A": 2**32 - 1}, "unk_token": "A"}},
            {"model": {"type": "Unigram", "unk_id": 99, "vocab": [["a", 0.0]]}},
            {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}},
            {"model": None},
            {"added_tokens": [{"id": 0}]},
        ],
        ids=lambda changes: str(changes)[:60],
    )
    def test_with_absurd_parts(self, model: Path, changes: dict[str, Any]) -> None:
        edit(model / "tokenizer.json", **changes)
        assert_refused(lambda: embed(model))

    def test_with_a_map_of_characters_under_an_escaped_name(self, model: Path) -> None:
        changes = {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}
        edit(model / "tokenizer.json", normalizer=changes)
        path = model / "tokenizer.json"
        path.write_text(
            path.read_text().replace("precompiled_charsmap", r"precompiled\u005fcharsmap")
        )
        assert "announces" in assert_refused(lambda: embed(model))

    def test_with_padding_to_any_length(self, model: Path) -> None:
        padding = {
            "strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>",
        }  # fmt: skip
        edit(model / "tokenizer.json", padding=padding)
        with bounded():
            embed(model)

    def test_that_try_every_way_of_matching_a_text(self, model: Path) -> None:
        edit(model / "tokenizer.json", normalizer=replacement({"Regex": "(a|aa)+$"}, "x"))
        embedder = BGE_M3_Embedder(str(model))
        embedder.encode_query("a fox")
        assert_refused(lambda: embedder.encode_query("a" * 100 + "!"))
        embedder.encode_query("a dog")

    @pytest.mark.parametrize("content", [NESTED, '{"a":' * 10**5, "", "{}", "null", b"\xff\xfe"])
    def test_that_are_none(self, model: Path, content: str | bytes) -> None:
        raw = content if isinstance(content, bytes) else content.encode()
        (model / "tokenizer.json").write_bytes(raw)
        assert_refused(lambda: embed(model))

    def test_of_gigabytes(self, model: Path) -> None:
        os.truncate(model / "tokenizer.json", 2**36)
        assert_refused(lambda: embed(model))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = {name: t.clone() for name, t in load_file(folder / "model.safetensors").items()}
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


class TestWeights:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize(
        "name",
        [
            "encoder.layer.0.attention.self.query.weight",
            "encoder.layer.1.output.dense.bias",
            "embeddings.word_embeddings.weight",
            "embeddings.LayerNorm.weight",
        ],
    )
    @pytest.mark.parametrize("engine", ["torch", "onnx"])
    def test_that_are_no_numbers(self, model: Path, name: str, value: float, engine: str) -> None:
        def spoil(state: dict[str, torch.Tensor]) -> None:
            state[name].view(-1)[:200] = value

        edit_weights(model, spoil)
        assert_refused(lambda: embed(model, engine))

    @pytest.mark.parametrize("head", ["sparse_linear.pt", "colbert_linear.pt"])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_of_a_head_that_are_no_numbers(self, model: Path, head: str, value: float) -> None:
        state = torch.load(model / head)
        state["weight"][0, 0] = value
        torch.save(state, model / head)
        assert "NaN or infinity" in assert_refused(lambda: embed(model))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
    def test_of_another_kind(self, model: Path, dtype: torch.dtype) -> None:
        def convert(state: dict[str, torch.Tensor]) -> None:
            name = "encoder.layer.1.output.dense.bias"
            state[name] = torch.ones(state[name].shape, dtype=dtype)

        edit_weights(model, convert)
        assert_refused(lambda: embed(model))

    @pytest.mark.parametrize(
        "header",
        [
            b"\xff" * 8,
            (2**40).to_bytes(8, "little"),
            (200_000).to_bytes(8, "little") + b'{"a":' * 40_000,
            (4).to_bytes(8, "little") + b"null",
        ],
    )
    def test_with_a_broken_header(self, model: Path, header: bytes) -> None:
        (model / "model.safetensors").write_bytes(header + bytes(5000))
        assert_refused(lambda: embed(model))

    def test_that_were_never_written(self, model: Path) -> None:
        os.truncate(model / "model.safetensors", 2**34)
        assert "mostly empty" in assert_refused(lambda: embed(model))

    def test_of_which_few_blocks_are_counted_yet_are_read(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """ZFS counts the blocks of a new file some seconds later."""
        path = model / "model.safetensors"
        content = path.read_bytes() + np.random.default_rng(0).bytes(2**21)
        path.write_bytes(content)
        stat = Path.stat

        def stat_of_new_file(path: Path, **options: Any) -> Any:
            found = stat(path, **options)
            return SimpleNamespace(st_size=found.st_size, st_blocks=1, st_mode=found.st_mode)

        monkeypatch.setattr(Path, "stat", stat_of_new_file)
        checkpoint = Checkpoint("a model", model)
        bounds._check_written(checkpoint, path)
        path.write_bytes(bytes(len(content)))
        with pytest.raises(ModelLoadError, match="mostly empty"):
            bounds._check_written(checkpoint, path)

    def test_of_one_number_in_every_place(self, model: Path) -> None:
        """A tensor of a terabyte, over one number: a pickle of a kilobyte can describe it."""
        state = load_file(model / "model.safetensors")
        huge = 2**23
        edit(model / "config.json", vocab_size=huge)
        name = "embeddings.word_embeddings.weight"
        state[name] = torch.ones(1, 1).expand(huge, checkpoints.WIDTH)
        (model / "model.safetensors").unlink()
        torch.save(state, model / "pytorch_model.bin")
        assert_refused(lambda: embed(model))

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "colbert_linear.pt"])
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"PK\x03\x04" + bytes(200),
            pickle.dumps({"a": 1}),
            pickle.dumps([[]]),
            b"\x80\x02" + b"]" * 100_000 + b".",
            pickle.dumps(print),
        ],
        ids=["empty", "zip", "dict", "list", "deep", "function"],
    )
    def test_that_are_no_pickle_of_tensors(self, model: Path, name: str, content: bytes) -> None:
        if name == "pytorch_model.bin":
            (model / "model.safetensors").unlink()
        (model / name).write_bytes(content)
        assert_refused(lambda: embed(model))

    def test_whose_pickle_is_a_zip_bomb(self, model: Path) -> None:
        bomb = io.BytesIO()
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}." + bytes(50_000_000))
            archive.writestr("archive/version", b"3")
        (model / "colbert_linear.pt").write_bytes(bomb.getvalue())
        assert_refused(lambda: embed(model))

    @pytest.mark.parametrize("shard", ["../stolen.safetensors", "/etc/passwd", "a\0b", "", ".."])
    def test_in_a_shard_outside_the_folder(self, model: Path, shard: str) -> None:
        shutil.copy(model / "model.safetensors", model.parent / "stolen.safetensors")
        (model / "model.safetensors").unlink()
        index = {"weight_map": {"embeddings.word_embeddings.weight": shard}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        assert_refused(lambda: embed(model))


class TestImageModels:
    @pytest.fixture
    def model(self, clip: Path, tmp_path: Path) -> Path:
        return shutil.copytree(clip, tmp_path / "clip")

    def embed(self, folder: Path) -> None:
        embedder = ClipEmbedder(str(folder), cache=None)
        embedder.encode_images([Image.new("RGB", (40, 30))])
        embedder.encode_texts(["fox"])

    @pytest.mark.parametrize(
        "changes",
        [
            {"size": {"height": 10**6, "width": 10**6}, "do_resize": True},
            {"size": {"shortest_edge": 10**7}},
            {"crop_size": {"height": 10**6, "width": 10**6}},
            {"crop_size": {"height": 0, "width": 0}},
            {"size": -5},
            {"image_mean": [float("nan")] * 3},
            {"image_std": [0.0] * 3},
            {"image_processor_type": "Evil"},
        ],
        ids=str,
    )
    def test_with_absurd_image_settings(self, model: Path, changes: dict[str, Any]) -> None:
        edit(model / "preprocessor_config.json", **changes)
        assert_refused(lambda: self.embed(model))

    @pytest.mark.parametrize(
        "changes",
        [
            {"num_hidden_layers": 10**9},
            {"hidden_size": 10**9},
            {"image_size": 10**9},
            {"patch_size": 0},
            {"num_channels": 10**9},
        ],
        ids=str,
    )
    def test_with_absurd_numbers(self, model: Path, changes: dict[str, Any]) -> None:
        vision = json.loads((model / "config.json").read_text())["vision_config"]
        edit(model / "config.json", vision_config={**vision, **changes})
        assert_refused(lambda: self.embed(model))

    def test_with_weights_that_are_no_numbers(self, model: Path) -> None:
        def spoil(state: dict[str, torch.Tensor]) -> None:
            state["visual_projection.weight"][0, 0] = float("nan")

        edit_weights(model, spoil)
        assert_refused(lambda: self.embed(model))

    @pytest.mark.parametrize("content", [NESTED, "", "[]", "null"])
    @pytest.mark.parametrize(
        "name", ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
    )
    def test_with_settings_that_are_none(self, model: Path, name: str, content: str) -> None:
        (model / name).write_text(content)
        assert_refused(lambda: self.embed(model))


class TestModuleFolders:
    def test_of_terabytes(self, tmp_path: Path) -> None:
        folder = checkpoints.sentence_model(tmp_path / "model", "mpnet")
        (folder / "1_Pooling" / "more.bin").touch()
        os.truncate(folder / "1_Pooling" / "more.bin", 2**40)
        spec = ModelSpec("mine", str(folder))
        assert_refused(lambda: ModelEmbedder(spec).encode_documents(["fox"]))

    def test_that_lead_to_themselves(self, tmp_path: Path) -> None:
        folder = checkpoints.sentence_model(tmp_path / "model", "mpnet")
        (folder / "1_Pooling" / "again").symlink_to(folder / "1_Pooling")
        (folder / "1_Pooling" / "itself").symlink_to(folder / "1_Pooling" / "itself")
        with bounded():
            ModelEmbedder(ModelSpec("mine", str(folder))).encode_documents(["fox"])


class TestExports:
    @pytest.fixture(scope="class")
    def exported(self, xlmr: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        pytest.importorskip("onnx")
        from unified_embeddings.export.folder import export_onnx

        return export_onnx(xlmr, tmp_path_factory.mktemp("exports") / "exported")

    @pytest.fixture
    def model(self, exported: Path, tmp_path: Path) -> Path:
        return shutil.copytree(exported, tmp_path / "model")

    def edit_graph(self, folder: Path, change: Callable[[Any], object]) -> None:
        """Change the graph, and the notes as somebody would who wants the change to go unseen."""
        import onnx

        from unified_embeddings.models.digests import content_digest

        graph = onnx.load(folder / "model.onnx", load_external_data=False)
        change(graph)
        (folder / "model.onnx").write_bytes(graph.SerializeToString())
        content = content_digest([folder / "model.onnx", folder / "model.onnx.data"])
        edit(folder / "export.json", content=content)

    def test_of_our_own_are_taken(self, model: Path) -> None:
        self.edit_graph(model, lambda _: None)
        embed(model, "auto")

    def test_with_a_loop_that_does_not_end(self, model: Path) -> None:
        from onnx import TensorProto, helper

        def loop(model_proto: Any) -> None:
            true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
            body = helper.make_graph(
                [helper.make_node("Not", ["condition"], ["next"])],
                "body",
                [
                    helper.make_tensor_value_info("i", TensorProto.INT64, []),
                    helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
                ],
                [helper.make_tensor_value_info("next", TensorProto.BOOL, [])],
            )
            model_proto.graph.initializer.append(true)
            model_proto.graph.node.insert(0, helper.make_node("Loop", ["", "true"], [], body=body))

        self.edit_graph(model, loop)
        assert "'Loop'" in assert_refused(lambda: embed(model, "auto"))

    def test_with_a_loop_in_a_branch(self, model: Path) -> None:
        def loop(model_proto: Any) -> None:
            node = next(node for node in model_proto.graph.node if node.op_type == "If")
            node.attribute[0].g.node[0].op_type = "Scan"

        self.edit_graph(model, loop)
        assert "'Scan'" in assert_refused(lambda: embed(model, "auto"))

    def test_with_branches_in_branches(self, model: Path) -> None:
        def nest(model_proto: Any) -> None:
            node = next(node for node in model_proto.graph.node if node.op_type == "If")
            for _ in range(30):
                inner = copy.deepcopy(node)
                node.attribute[0].g.node.append(inner)
                node = node.attribute[0].g.node[-1]

        self.edit_graph(model, nest)
        assert "nested" in assert_refused(lambda: embed(model, "auto"))

    def test_that_double_a_tensor_again_and_again(self, model: Path) -> None:
        from onnx import helper

        def double(model_proto: Any) -> None:
            last = model_proto.graph.initializer[0].name
            for i in range(60):
                node = helper.make_node("Concat", [last, last], [f"twice {i}"], axis=0)
                model_proto.graph.node.append(node)
                last = f"twice {i}"

        self.edit_graph(model, double)
        assert "concatenations" in assert_refused(lambda: embed(model, "auto"))

    @pytest.mark.parametrize("operator", ["ConstantOfShape", "Tile", "RandomNormal", "PythonOp"])
    def test_with_another_operator(self, model: Path, operator: str) -> None:
        def swap(model_proto: Any) -> None:
            model_proto.graph.node[5].op_type = operator

        self.edit_graph(model, swap)
        assert operator in assert_refused(lambda: embed(model, "auto"))

    def test_with_functions(self, model: Path) -> None:
        from onnx import helper

        def define(model_proto: Any) -> None:
            function = helper.make_function(
                "mine", "f", [], [], [helper.make_node("f", [], [], domain="mine")], []
            )
            model_proto.functions.append(function)

        self.edit_graph(model, define)
        assert "functions" in assert_refused(lambda: embed(model, "auto"))

    @pytest.mark.parametrize("location", ["../stolen", "/etc/passwd", "other", "", "a\0b"])
    def test_with_weights_elsewhere(self, model: Path, location: str) -> None:
        shutil.copy(model / "model.onnx.data", model.parent / "stolen")
        shutil.copy(model / "model.onnx.data", model / "other")

        def move(model_proto: Any) -> None:
            for tensor in model_proto.graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = location

        self.edit_graph(model, move)
        assert "reads the file" in assert_refused(lambda: embed(model, "auto"))

    @pytest.mark.parametrize("key", ["offset", "length"])
    def test_with_weights_beyond_their_file(self, model: Path, key: str) -> None:
        def move(model_proto: Any) -> None:
            for tensor in model_proto.graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == key:
                        entry.value = str(2**50)

        self.edit_graph(model, move)
        assert_refused(lambda: embed(model, "auto"))

    def test_with_a_tensor_of_absurd_size(self, model: Path) -> None:
        def widen(model_proto: Any) -> None:
            for tensor in model_proto.graph.initializer:
                if tensor.external_data:
                    tensor.dims[0] = 2**40

        self.edit_graph(model, widen)
        assert_refused(lambda: embed(model, "auto"))

    @pytest.mark.parametrize(
        "changes",
        [
            {"file": "../model/model.onnx"},
            {"file": "/etc/passwd"},
            {"file": "a\0b"},
            {"file": ""},
            {"file": 5},
            {"content": "0" * 24},
            {"format": 2},
            {"format": 10**400},
            {"precision": []},
            {"spec": 5},
            {"spec": {"choice": "x", "model_id": ".", "heads": ["evil"]}},
        ],
        ids=lambda changes: str(changes)[:40],
    )
    def test_with_other_notes(self, model: Path, changes: dict[str, Any]) -> None:
        edit(model / "export.json", **changes)
        assert_refused(lambda: embed(model, "auto"))

    @pytest.mark.parametrize("content", [NESTED, "", "[]", "null", "{}"])
    def test_with_notes_that_are_none(self, model: Path, content: str) -> None:
        (model / "export.json").write_text(content)
        assert_refused(lambda: embed(model, "auto"))

    def test_of_another_width_than_the_configurations(self, model: Path) -> None:
        edit(model / "config.json", hidden_size=64)
        assert "is expected" in assert_refused(lambda: embed(model, "auto"))

    def test_that_say_they_have_code(self, model: Path) -> None:
        notes = json.loads((model / "export.json").read_text())
        edit(model / "export.json", spec={**notes["spec"], "engine": "sentence"})
        assert BGE_M3_Embedder(str(model)).runtime.engine == "onnx"

    def test_with_random_damage_to_the_graph(self, model: Path) -> None:
        rng = np.random.default_rng(1)
        graph = (model / "model.onnx").read_bytes()

        from unified_embeddings.models.digests import content_digest

        for _ in range(40):
            damaged = bytearray(graph)
            for _ in range(rng.integers(1, 4)):
                damaged[rng.integers(len(graph))] = rng.integers(256)
            (model / "model.onnx").write_bytes(damaged)
            content = content_digest([model / "model.onnx", model / "model.onnx.data"])
            edit(model / "export.json", content=content)
            with bounded(), contextlib.suppress(ModelLoadError):
                embed(model, "auto")
