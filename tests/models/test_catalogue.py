"""Model choices: the user's own specs, consent to remote code, two models as one, LlamaIndex."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from qdrant_client import QdrantClient

import checkpoints
from unified_embeddings import (
    BGE_M3_Embedder,
    EmbeddingCache,
    InputError,
    ModelLoadError,
    ModelSpec,
    PairedEmbedder,
    UnifiedEmbeddingConfig,
    UnifiedHuggingFaceEmbedding,
    UnifiedTextEmbedding,
    make_embedder,
)
from unified_embeddings.models.catalogue import MODELS, spec_for, spec_from_dict
from unified_embeddings.models.fusion import DEFAULT_FUSION, Fusion

TEXTS = ["The quick brown fox jumps over the lazy dog", "fusion merges two rankings", "fox fox"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """E5's prefixes on a tiny BERT."""
    folder = checkpoints.sentence_model(tmp_path_factory.mktemp("models") / "e5", "bert")
    return dataclasses.replace(
        MODELS["e5-small-v2"], model_id=str(folder), dimension=checkpoints.WIDTH
    )


@pytest.fixture(scope="module")
def splade(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = checkpoints.sentence_model(tmp_path_factory.mktemp("models") / "splade", "splade")
    return dataclasses.replace(MODELS["Splade_PP_en_v1"], model_id=str(folder))


class TestSpec:
    @pytest.mark.parametrize("name", MODELS)
    def test_a_choice_is_found_by_name_and_by_hub_id(self, name: str) -> None:
        assert spec_for(name).choice == name
        assert spec_for(MODELS[name].model_id).model_id == MODELS[name].model_id

    def test_a_hub_id_of_two_choices_is_the_single_model(self) -> None:
        assert spec_for("BAAI/bge-large-en-v1.5").sparse_model is None

    @pytest.mark.parametrize("name", MODELS)
    def test_every_choice_has_its_facts(self, name: str) -> None:
        spec = MODELS[name]
        assert spec.licence != "unknown"
        # BM25 has no weights and cuts no text.
        assert (spec.parameters is None) == (name == "bm25")
        assert (spec.max_length is None) == (name == "bm25")
        assert spec.dimension is not None or spec.heads == ("sparse",)
        assert spec.pooling is not None or spec.choice in ("bge-m3", "mini-m3", "clip", "mini-clip")
        assert not spec.remote_code or spec.choice in ("nomic", "jina-clip")
        if spec.choice == "nomic":
            assert len(spec.revision or "") == len(spec.code_revision or "") == 40

    def test_fusions_have_their_source(self) -> None:
        """The paper's weights for BGE-M3 and checkpoints in its layout; mini-m3 was measured."""
        assert spec_for("bge-m3").fusion == spec_for("/models/bge-m3").fusion
        bge, mini = MODELS["bge-m3"].fusion, MODELS["mini-m3"].fusion
        assert bge is not None
        assert mini is not None
        assert (bge.weights, bge.k) == ((1.0, 0.3), 60)
        assert "paper" in bge.source
        assert "measured on MED, CACM and XQuAD-R" in mini.source
        assert "not measured" in DEFAULT_FUSION.source
        for fusion in (bge, mini, DEFAULT_FUSION):
            dense_weight, sparse_weight = fusion.weights
            assert dense_weight > sparse_weight > 0  # equal weights are worse than dense alone

    def test_a_fusion_of_ones_own(self, tmp_path: Path) -> None:
        path = tmp_path / "ours.toml"
        path.write_text(
            'like = "bge-m3"\nmodel_id = "me/ours"\n'
            'fusion = { weights = [1, 0.4], k = 10, candidates = 50, source = "our judgements" }\n'
        )
        spec = spec_for(path)
        assert spec.fusion == Fusion((1.0, 0.4), k=10, candidates=50, source="our judgements")
        assert BGE_M3_Embedder(spec).fusion is spec.fusion
        assert hash(spec) == hash(dataclasses.replace(spec))

    def test_only_mini_m3_sums_the_tokens_that_a_query_repeats(self) -> None:
        """Every other model keeps to BGE-M3's rule, as FlagEmbedding has it."""
        assert [name for name, spec in MODELS.items() if spec.sum_query_repeats] == ["mini-m3"]
        assert not spec_for("/models/bge-m3").sum_query_repeats

    def test_jinas_licence_is_not_for_commerce(self) -> None:
        assert MODELS["jina-v3"].licence == "CC-BY-NC-4.0"

    @given(name=st.sampled_from(sorted(MODELS)))
    def test_through_plain_values_and_back(self, name: str) -> None:
        spec = MODELS[name]
        assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec

    def test_numpys_numbers_become_pythons(self) -> None:
        spec = ModelSpec("mine", "a/b", dimension=np.int64(5), normalise=np.bool_(False))  # type: ignore[arg-type]
        assert spec == ModelSpec("mine", "a/b", dimension=5, normalise=False)
        assert json.loads(json.dumps(spec.to_dict()))["dimension"] == 5

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"dimension": 0}, "dimension must be above 0"),
            ({"dimension": "384"}, "dimension must be int or none"),
            ({"dimension": True}, "dimension must be int"),
            ({"max_length": -5}, "max_length must be above 0"),
            ({"heads": ("dense", "spare")}, "heads can be dense, sparse, colbert"),
            ({"heads": ()}, "at least one"),
            ({"heads": "dense"}, "heads must be tuple or list"),
            ({"pooling": "max"}, "pooling can be cls, mean, splade"),
            ({"pooling": "splade"}, "go together"),
            ({"heads": ("sparse",)}, "go together"),
            ({"engine": "tensorrt"}, "engine can be torch, sentence, onnx"),
            ({"heads": ("dense", "")}, "heads can be dense, sparse, colbert"),
            ({"heads": (["dense"],)}, "heads can be dense, sparse, colbert"),
            ({"pooling": ""}, "pooling can be cls, mean, splade"),
            ({"engine": ""}, "engine can be torch, sentence, onnx"),
            ({"query_prefix": None}, "query_prefix must be str"),
            ({"normalise": 1}, "normalise must be bool"),
            ({"sparse_idf": 1}, "sparse_idf must be bool"),
            ({"sum_query_repeats": 1}, "sum_query_repeats must be bool"),
            (
                {"heads": ("sparse",), "pooling": "splade", "sum_query_repeats": True},
                "sum_query_repeats needs a weight for each token",
            ),
            ({"fusion": [1, 0.3]}, "fusion must be Fusion or dict or none"),
            ({"fusion": {}}, "fusion.*needs weights"),
            ({"fusion": {"weights": [1, 1], "depth": 3}}, "fusion.*weights, k, candidates, source"),
            ({"fusion": {"weights": [1, -1]}}, "fusion: weights must be two numbers"),
            ({"fusion": {"weights": [1, 1], "k": -1}}, "fusion: k must be a whole number"),
            ({"fusion": {"weights": [1, 1], "candidates": 0}}, "fusion: candidates must be"),
            ({"fusion": {"weights": [1, 1], "source": 3}}, "fusion: source must be a text"),
        ],
    )
    def test_invalid_fields(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            ModelSpec("mine", "some/model", **fields)

    def test_from_toml(self, dense: ModelSpec, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(
            f'like = "e5-small-v2"\nmodel_id = "{dense.model_id}"\ndimension = 32\n'
            'choice = "mine"\n'
        )
        spec = spec_for(path)
        assert spec == dataclasses.replace(dense, choice="mine", licence="unknown", parameters=None)
        by_file, by_spec = BGE_M3_Embedder(path), BGE_M3_Embedder(dense)
        np.testing.assert_array_equal(
            by_file.encode_query("fox").dense, by_spec.encode_query("fox").dense
        )

    def test_a_users_toml_is_dense_unless_it_says_otherwise(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text('model_id = "some/model"\nquery_prefix = "q: "\nheads = ["dense"]\n')
        assert spec_for(path) == ModelSpec("some/model", "some/model", query_prefix="q: ")

    def test_a_tomls_paths_are_its_own(
        self, dense: ModelSpec, splade: ModelSpec, tmp_path: Path
    ) -> None:
        copied(dense, tmp_path / "e5")
        copied(splade, tmp_path / "splade")
        (tmp_path / "splade.toml").write_text('like = "Splade_PP_en_v1"\nmodel_id = "./splade"\n')
        (tmp_path / "both.toml").write_text(
            'like = "e5-small-v2"\nmodel_id = "e5"\ndimension = 32\nsparse_model = "splade.toml"\n'
        )
        embedder = make_embedder(tmp_path / "both.toml")
        assert embedder.heads == ("dense", "sparse")
        assert len(embedder.encode_query("fox").sparse[0]) > 0

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("model_id = ", "not a readable TOML"),
            ("dimension = 5", "needs model_id"),
            ('model_id = "a/b"\ncolour = "red"', "unknown .*colour"),
            ('like = "e6"\nmodel_id = "a/b"', "like must be one of"),
            ('model_id = "a/b"\nmax_length = "long"', r"mine\.toml: .*max_length must be int"),
            ("\x00", "not a readable TOML"),
        ],
    )
    def test_a_toml_with_an_invalid_spec(self, content: str, message: str, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            BGE_M3_Embedder(path)
        with pytest.raises(InputError, match="there is no file /"):
            BGE_M3_Embedder(tmp_path / "missing.toml")


class TestCheckpoint:
    def test_without_heads_and_without_a_spec(self, dense: ModelSpec) -> None:
        with pytest.raises(ModelLoadError, match=r"sparse_linear\.pt is missing.*ModelSpec"):
            BGE_M3_Embedder(dense.model_id).encode_query("fox")

    def test_another_dimension_than_its_spec(self, dense: ModelSpec) -> None:
        for engine in ("torch", "sentence"):
            spec = dataclasses.replace(dense, dimension=384)
            with pytest.raises(ModelLoadError, match=r"32 dimensions.*says 384"):
                BGE_M3_Embedder(spec, engine=engine).encode_query("fox")

    def test_another_pooling_than_its_files(self, dense: ModelSpec) -> None:
        spec = dataclasses.replace(dense, pooling="cls")
        with pytest.raises(ModelLoadError, match=r"'mean'.*spec for cls"):
            BGE_M3_Embedder(spec).encode_query("fox")

    @pytest.mark.parametrize("engine", ["torch", "sentence"])
    def test_no_file_says_the_pooling(self, engine: str, tmp_path: Path, dense: ModelSpec) -> None:
        import shutil

        twin = tmp_path / "twin"
        shutil.copytree(dense.model_id, twin)
        shutil.rmtree(twin / "1_Pooling")
        (twin / "modules.json").unlink()
        with pytest.raises(ModelLoadError, match="name its pooling"):
            BGE_M3_Embedder(ModelSpec("mine", str(twin)), engine=engine).encode_query("fox")
        said = dataclasses.replace(dense, model_id=str(twin))
        np.testing.assert_allclose(
            BGE_M3_Embedder(said, engine=engine, precision="fp32").encode_query("fox").dense,
            BGE_M3_Embedder(dense, precision="fp32").encode_query("fox").dense,
            atol=1e-6,
        )

    @pytest.mark.parametrize("kind", ["mpnet", "splade"])
    def test_a_missing_tensor_is_not_made_up(self, kind: str, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        folder = checkpoints.sentence_model(tmp_path / kind, kind)
        state = load_file(folder / "model.safetensors")
        gone = next(name for name in state if "layer.1" in name)
        del state[gone]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        heads = ("sparse",) if kind == "splade" else ("dense",)
        pooling: Any = "splade" if kind == "splade" else None
        spec = ModelSpec("mine", str(folder), heads=heads, pooling=pooling)
        with pytest.raises(ModelLoadError, match="1 tensors are missing"):
            BGE_M3_Embedder(spec).encode_query("fox")

    def test_the_torch_engine_says_what_it_cannot_run(self, tmp_path: Path) -> None:
        folder = checkpoints.sentence_model(tmp_path / "mpnet", "mpnet")
        with pytest.raises(ModelLoadError, match=r"engine 'torch' cannot run it.*mpnet"):
            BGE_M3_Embedder(ModelSpec("mine", str(folder)), engine="torch").encode_query("fox")

    def test_the_reference_engine_needs_all_heads(self, dense: ModelSpec) -> None:
        with pytest.raises(ModelLoadError, match="all three heads"):
            BGE_M3_Embedder(dense, engine="flag").encode_query("fox")

    def test_the_sentence_engine_needs_one_head(self, xlmr: Path) -> None:
        with pytest.raises(ModelLoadError, match="dense or sparse vectors, not"):
            BGE_M3_Embedder(xlmr, engine="sentence").encode_query("fox")

    def test_fingerprints_tell_prefixes_and_normalisation_apart(self, dense: ModelSpec) -> None:
        specs = [
            dense,
            dataclasses.replace(dense, query_prefix="find: "),
            dataclasses.replace(dense, document_prefix="text: "),
        ]
        assert len({BGE_M3_Embedder(spec).fingerprint for spec in specs}) == 3

    def test_fingerprints_tell_raw_vectors_apart(self, tmp_path: Path) -> None:
        folder = checkpoints.sentence_model(tmp_path / "raw", "bert", normalise=False)
        specs = [ModelSpec("mine", str(folder), normalise=on) for on in (True, False)]
        assert len({BGE_M3_Embedder(spec).fingerprint for spec in specs}) == 2

    @pytest.mark.parametrize("room", [40, 41])
    def test_a_document_that_fills_its_room_is_not_cut(self, room: int, dense: ModelSpec) -> None:
        embedder = BGE_M3_Embedder(dense, max_length=room)
        assert embedder.document_length == room - 2 - len(embedder.tokenise("passage: "))
        embedder.encode_documents(["fox " * embedder.document_length])
        assert embedder.stats().truncated == 0
        embedder.encode_documents(["fox " * (embedder.document_length + 1)])
        assert embedder.stats().truncated == 1

    def test_roles_do_not_share_the_cache(self, dense: ModelSpec) -> None:
        embedder = BGE_M3_Embedder(dense, precision="fp32")
        query, document = embedder.encode_queries(["fox"]), embedder.encode_documents(["fox"])
        assert embedder.stats().forwards == 2
        assert np.abs(query.dense - document.dense).max() > 1e-3

    def test_an_adapters_role_its_settings_and_lower_case_are_in_the_fingerprint(
        self, tmp_path: Path, dense: ModelSpec
    ) -> None:
        folder = checkpoints.sentence_model(tmp_path / "jina", "jina")
        one = ModelSpec("mine", str(folder), query_adapter="retrieval_query")
        other = ModelSpec("mine", str(folder), document_adapter="retrieval_query")
        prints = [BGE_M3_Embedder(spec).fingerprint for spec in (one, other)]
        edit(folder / "retrieval_query" / "adapter_config.json", lora_alpha=64)
        prints.append(BGE_M3_Embedder(one).fingerprint)
        for lower in (True, False):
            twin = copied(dense, tmp_path / f"twin{lower}")
            edit(twin / "sentence_bert_config.json", do_lower_case=lower)
            spec = dataclasses.replace(dense, model_id=str(twin))
            prints.append(BGE_M3_Embedder(spec).fingerprint)
        assert len(set(prints)) == 5

    @pytest.mark.parametrize("damage", ["missing", "renamed"])
    def test_an_adapter_that_lacks_a_tensor_is_refused(self, damage: str, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        folder = checkpoints.sentence_model(tmp_path / "jina", "jina")
        path = folder / "retrieval_query" / "adapter_model.safetensors"
        state = load_file(path)
        tensor = state.pop(sorted(state)[0])
        if damage == "renamed":
            state["base_model.model.nonsense.lora_A.weight"] = tensor
        save_file(state, path, metadata={"format": "pt"})
        spec = dataclasses.replace(
            MODELS["jina-v3"], model_id=str(folder), dimension=32, query_prefix=""
        )
        with pytest.raises(ModelLoadError, match="of the adapter retrieval_query are missing"):
            BGE_M3_Embedder(spec).encode_query("fox")

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("modules.json", [{"type": "custom.Transformer", "path": ""}], "the model's own code"),
            ("modules.json", [], "lists no modules"),
            ("modules.json", {"a": 1}, "not a list of modules"),
            (
                "modules.json",
                [{"type": "sentence_transformers.models.Transformer", "path": "0_T"}],
                "which is not read",
            ),
            ("1_Pooling/config.json", {"include_prompt": False}, "out of pooling"),
            ("1_Pooling/config.json", {"pooling_mode": [["mean"]]}, "only cls or mean"),
            ("sentence_bert_config.json", {"model_args": {"variant": "x"}}, "model_args"),
            ("sentence_bert_config.json", {"max_seq_length": 0}, "texts of 0 tokens"),
            ("adapter_config.json", {"base_model_name_or_path": "x"}, "an adapter of another"),
            ("config.json", {"vocab_size": None}, "vocab_size = None"),
            ("config.json", {"type_vocab_size": "two"}, "type_vocab_size = 'two'"),
            ("config.json", {"num_attention_heads": 0}, "no usable model"),
            (
                "config_sentence_transformers.json",
                {"prompts": {"q": "query: "}, "default_prompt_name": "q"},
                "'query: ' before every text",
            ),
        ],
    )
    def test_files_that_ask_for_what_is_not_supported(
        self, name: str, change: Any, message: str, tmp_path: Path
    ) -> None:
        folder = checkpoints.sentence_model(tmp_path / "bert", "bert")
        if isinstance(change, dict) and "a" not in change:
            edit(folder / name, **change)
        else:
            (folder / name).write_text(json.dumps(change))
        with pytest.raises(ModelLoadError, match=message):
            BGE_M3_Embedder(ModelSpec("mine", str(folder))).encode_query("fox")

    def test_a_spec_cannot_undo_the_files_normalisation(self, dense: ModelSpec) -> None:
        spec = dataclasses.replace(dense, normalise=False)
        with pytest.raises(ModelLoadError, match="normalises its vectors, but its spec does not"):
            BGE_M3_Embedder(spec).encode_query("fox")

    def test_a_prefix_that_fills_every_text(self, dense: ModelSpec) -> None:
        with pytest.raises(InputError, match=r"no room for a text after the prefix 'query: '"):
            BGE_M3_Embedder(dense, max_length=5).encode_query("fox")

    def test_a_tokenizer_without_special_tokens(self, dense: ModelSpec, tmp_path: Path) -> None:
        twin = copied(dense, tmp_path / "twin")
        edit(twin / "tokenizer.json", post_processor=None)
        with pytest.raises(ModelLoadError, match="adds no special tokens"):
            BGE_M3_Embedder(dataclasses.replace(dense, model_id=str(twin))).encode_query("fox")

    def test_text_is_lower_cased_if_the_files_ask_for_it(
        self, dense: ModelSpec, tmp_path: Path
    ) -> None:
        import shutil

        twin = tmp_path / "twin"
        shutil.copytree(dense.model_id, twin)
        (twin / "sentence_bert_config.json").write_text(
            json.dumps({"max_seq_length": 40, "do_lower_case": True})
        )
        tokenizer = json.loads((twin / "tokenizer.json").read_text())
        tokenizer["normalizer"]["lowercase"] = False
        (twin / "tokenizer.json").write_text(json.dumps(tokenizer))
        embedder = BGE_M3_Embedder(dataclasses.replace(dense, model_id=str(twin)))
        assert embedder.tokenise("THE FOX") == embedder.tokenise("the fox")


def copied(spec: ModelSpec, folder: Path) -> Path:
    import shutil

    shutil.copytree(spec.model_id, folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


class TestNames:
    @pytest.mark.parametrize("name", [5, None, b"bge-m3", ["bge-m3"]])
    def test_what_is_not_a_name(self, name: Any) -> None:
        for make in (BGE_M3_Embedder, make_embedder):
            with pytest.raises(InputError, match="a model is a name"):
                make(name)
        if name is not None:  # A config takes None for its default.
            with pytest.raises(InputError, match="a model is a name"):
                UnifiedEmbeddingConfig(name)
            with pytest.raises(InputError, match="a model is a name"):
                UnifiedEmbeddingConfig(image_model=name)
            with pytest.raises(InputError, match="a model is a name"):
                make_embedder("arctic", sparse_model=name)

    @pytest.mark.parametrize("name", ["~nosuchuser/x", "x" * 5000, "a\x00b", "~nosuchuser/x.toml"])
    def test_names_that_no_folder_can_have(self, name: str) -> None:
        with pytest.raises((ModelLoadError, InputError)):
            BGE_M3_Embedder(name, local_files_only=True).encode_query("fox")

    @pytest.mark.parametrize("adapter", ["/etc", "../outside", "a/../../b"])
    def test_adapters_are_within_the_model(self, adapter: str) -> None:
        with pytest.raises(InputError, match="a folder within the model's"):
            ModelSpec("mine", "some/model", query_adapter=adapter)

    def test_like_does_not_lend_its_pins_to_another_repository(self) -> None:
        spec = spec_from_dict({"like": "nomic", "model_id": "me/fine"})
        assert (spec.choice, spec.licence, spec.revision) == ("me/fine", "unknown", None)
        assert (spec.query_prefix, spec.remote_code) == ("search_query: ", True)
        with pytest.raises(ModelLoadError, match="has to be pinned"):
            BGE_M3_Embedder(spec, trust_remote_code=True).encode_query("fox")
        for fields in ([1, 2], "x"):
            with pytest.raises(InputError, match="must be a mapping"):
                spec_from_dict(fields)  # type: ignore[arg-type]

    def test_models_of_images_are_another_class(self) -> None:
        with pytest.raises(InputError, match="take a ClipEmbedder"):
            make_embedder("clip")
        with pytest.raises(InputError, match="one engine"):
            UnifiedEmbeddingConfig("clip", engine="torch")
        with pytest.raises(InputError, match="max_length"):
            UnifiedEmbeddingConfig("clip", max_length=-5)


class TestRemoteCode:
    def test_it_is_off(self) -> None:
        with pytest.raises(ModelLoadError, match="trust_remote_code=True"):
            BGE_M3_Embedder("nomic").encode_query("fox")

    def test_the_pinned_commit_is_what_is_looked_for(self) -> None:
        with pytest.raises(ModelLoadError, match="1066b6599d099fbb93dfcb64f9c37a7c9e503e85"):
            BGE_M3_Embedder("nomic", trust_remote_code=True).encode_query("fox")

    @pytest.mark.parametrize("revision", ["main", "v1.5", "1066b65", "A" * 40])
    def test_a_name_that_can_move_is_not_a_pin(self, revision: str) -> None:
        with pytest.raises(ModelLoadError, match="has to be pinned"):
            BGE_M3_Embedder("nomic", trust_remote_code=True, revision=revision).encode_query("x")

    @pytest.fixture
    def custom(self, tmp_path: Path) -> Path:
        """A BERT that needs code of its own, which leaves a trace when it is run."""
        folder = checkpoints.sentence_model(tmp_path / "custom", "bert")
        config = json.loads((folder / "config.json").read_text())
        config |= {
            "model_type": "custom",
            "auto_map": {
                "AutoConfig": "custom_code.CustomConfig", "AutoModel": "custom_code.CustomModel",
            },
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "custom_code.py").write_text(
            "from pathlib import Path\n"
            "from transformers import BertConfig, BertModel\n"
            f"Path({str(tmp_path / 'was run')!r}).touch()\n"
            "class CustomConfig(BertConfig):\n    model_type = 'custom'\n"
            "class CustomModel(BertModel):\n    config_class = CustomConfig\n"
        )
        return folder

    def test_a_folders_code_runs_only_with_consent(self, custom: Path, tmp_path: Path) -> None:
        spec = ModelSpec("mine", str(custom), remote_code=True)
        with pytest.raises(ModelLoadError, match="trust_remote_code=True"):
            BGE_M3_Embedder(spec).encode_query("fox")
        silent = ModelSpec("mine", str(custom))
        with pytest.raises(ModelLoadError):
            BGE_M3_Embedder(silent, trust_remote_code=True).encode_query("fox")
        assert not (tmp_path / "was run").exists()
        result = BGE_M3_Embedder(spec, trust_remote_code=True).encode_query("fox").dense
        assert (tmp_path / "was run").exists()
        plain = checkpoints.sentence_model(tmp_path / "plain", "bert")
        expected = BGE_M3_Embedder(ModelSpec("plain", str(plain))).encode_query("fox").dense
        np.testing.assert_allclose(result, expected, atol=1e-5)

    @pytest.mark.parametrize("name", ["tokenizer_config.json", "modules.json"])
    def test_more_code_from_elsewhere_is_refused(
        self, name: str, custom: Path, tmp_path: Path
    ) -> None:
        if name == "modules.json":
            kinds = ["owner/code--custom.Transformer", "sentence_transformers.models.Pooling"]
            content: Any = [
                {"type": k, "path": p} for k, p in zip(kinds, ("", "1_Pooling"), strict=True)
            ]
            (custom / name).write_text(json.dumps(content))
        else:
            edit(custom / name, auto_map={"AutoTokenizer": [None, "owner/code--tk.T"]})
        spec = ModelSpec("mine", str(custom), remote_code=True)
        with pytest.raises(ModelLoadError, match="asks for code from another repository"):
            BGE_M3_Embedder(spec, trust_remote_code=True).encode_query("fox")
        assert not (tmp_path / "was run").exists()

    def test_code_that_is_not_on_disk_is_named(self, custom: Path) -> None:
        edit(custom / "config.json", auto_map={"AutoModel": "owner/code--custom_code.M"})
        spec = ModelSpec("mine", str(custom), remote_code=True, code_revision="a" * 40)
        with pytest.raises(ModelLoadError, match=r"hf download owner/code --revision a{40}"):
            BGE_M3_Embedder(spec, trust_remote_code=True).encode_query("fox")

    def test_a_change_of_a_folders_code_is_another_model(self, custom: Path) -> None:
        spec = ModelSpec("mine", str(custom), remote_code=True)
        before = BGE_M3_Embedder(spec, trust_remote_code=True).fingerprint
        with (custom / "custom_code.py").open("a") as file:
            file.write("# changed")
        assert BGE_M3_Embedder(spec, trust_remote_code=True).fingerprint != before

    def test_code_in_another_repository_has_its_own_pin(self, custom: Path) -> None:
        config = json.loads((custom / "config.json").read_text())
        config["auto_map"]["AutoModel"] = "owner/code--custom_code.CustomModel"
        (custom / "config.json").write_text(json.dumps(config))
        spec = ModelSpec("mine", str(custom), remote_code=True)
        with pytest.raises(ModelLoadError, match=r"is in owner/code.*code_revision"):
            BGE_M3_Embedder(spec, trust_remote_code=True).encode_query("fox")


class TestPair:
    def test_each_vector_comes_from_its_model(self, dense: ModelSpec, splade: ModelSpec) -> None:
        pair = make_embedder(dense, sparse_model=splade, precision="fp32")
        assert isinstance(pair, PairedEmbedder)
        assert pair.heads == ("dense", "sparse")
        one, other = (BGE_M3_Embedder(spec, precision="fp32") for spec in (dense, splade))
        for name in ("encode_documents", "encode_queries"):
            both = getattr(pair, name)(TEXTS)
            np.testing.assert_array_equal(both.dense, getattr(one, name)(TEXTS).dense)
            assert both.sparse == getattr(other, name)(TEXTS).sparse
            assert both.colbert is None
        assert pair.encode_documents(TEXTS, dense=False).dense is None
        assert pair.encode_documents([]).dense.shape == (0, 32)
        with pytest.raises(InputError, match="no colbert ones"):
            pair.encode_query("fox", colbert=True)

    def test_only_the_model_that_is_asked_runs(self, dense: ModelSpec, splade: ModelSpec) -> None:
        pair = make_embedder(dense, sparse_model=splade)
        pair.encode_documents(TEXTS, sparse=False)
        assert [part.stats().forwards for part in pair.models] == [1, 0]
        pair.encode_documents(TEXTS)
        assert [part.stats().forwards for part in pair.models] == [1, 1]
        assert pair.stats().forwards == 2
        assert pair.cache is pair.models[1].cache

    def test_fingerprints(self, dense: ModelSpec, splade: ModelSpec) -> None:
        pair = make_embedder(dense, sparse_model=splade)
        prints = {pair.fingerprint, *(part.fingerprint for part in pair.models)}
        assert len(prints) == 3
        assert make_embedder(dense, sparse_model=splade).fingerprint == pair.fingerprint

    def test_the_three_model_baseline_by_name(self) -> None:
        pair = make_embedder("bge-large-splade")
        assert [part.spec.model_id for part in pair.models] == [
            "BAAI/bge-large-en-v1.5", "prithivida/Splade_PP_en_v1",
        ]  # fmt: skip
        assert pair.models[0].spec.query_prefix.startswith("Represent this sentence")
        assert UnifiedEmbeddingConfig("bge-large-splade").embedder.heads == ("dense", "sparse")
        with pytest.raises(InputError, match="make_embedder"):
            BGE_M3_Embedder("bge-large-splade")

    def test_what_cannot_be_paired(self, dense: ModelSpec, splade: ModelSpec) -> None:
        with pytest.raises(InputError, match="no sparse ones"):
            make_embedder(dense, sparse_model=dense)
        with pytest.raises(InputError, match="no dense ones"):
            make_embedder(splade, sparse_model=splade)

    def test_copies(self, dense: ModelSpec, splade: ModelSpec) -> None:
        pair = make_embedder(dense, sparse_model=splade, max_length=99)
        copy = pickle.loads(pickle.dumps(pair))
        assert copy.fingerprint == pair.fingerprint
        options = json.loads(json.dumps(pair.options))
        assert make_embedder(pair.model_name, **options).fingerprint == pair.fingerprint
        assert options["max_length"] == 99

    def test_a_text_model_over_a_pair_goes_through_json(
        self, dense: ModelSpec, splade: ModelSpec
    ) -> None:
        model = UnifiedTextEmbedding(make_embedder(dense, sparse_model=splade))
        copy = UnifiedTextEmbedding.from_dict(json.loads(json.dumps(model.to_dict())))
        assert copy.embedder.fingerprint == model.embedder.fingerprint

    def test_closing(self, dense: ModelSpec, splade: ModelSpec) -> None:
        pair = make_embedder(dense, sparse_model=splade, cache=None)
        with pair:
            pair.encode_query("fox")
        with pytest.raises(Exception, match="closed"):
            pair.encode_query("fox")


class TestLlamaIndex:
    def test_a_dense_model_is_a_huggingface_embedding(self, dense: ModelSpec) -> None:
        config = UnifiedEmbeddingConfig(dense, precision="fp32", max_length=99)
        model = config.text_model
        assert isinstance(model, HuggingFaceEmbedding)
        assert model.query_instruction == "query: "
        assert model.text_instruction == "passage: "
        assert (model.max_length, model.normalize) == (99, True)
        query, document = config.embedder.encode_query("fox"), config.embedder.encode_documents
        np.testing.assert_array_equal(model.get_query_embedding("fox"), query.dense[0])
        np.testing.assert_array_equal(model.get_text_embedding_batch(TEXTS), document(TEXTS).dense)
        assert asyncio.run(model.aget_query_embedding("fox")) == query.dense[0].tolist()
        assert config.embedder.stats().forwards == 2

    def test_it_goes_through_json(self, dense: ModelSpec) -> None:
        model = UnifiedEmbeddingConfig(dense, max_length=40).text_model
        copy = UnifiedHuggingFaceEmbedding.from_dict(json.loads(json.dumps(model.to_dict())))
        assert copy.embedder.fingerprint == model.embedder.fingerprint
        assert copy.embedder.options == model.embedder.options

    def test_the_stock_class_gives_the_same_vectors(self, dense: ModelSpec) -> None:
        ours = UnifiedEmbeddingConfig(dense, precision="fp32").text_model
        stock = HuggingFaceEmbedding(
            dense.model_id, query_instruction="query: ", text_instruction="passage: "
        )
        for ask in ("get_query_embedding", "get_text_embedding"):
            np.testing.assert_allclose(
                getattr(stock, ask)("the quick fox"), getattr(ours, ask)("the quick fox"), atol=1e-5
            )

    def test_a_url_in_a_text_is_a_text(
        self, dense: ModelSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from image_files import no_network

        model = UnifiedEmbeddingConfig(dense).text_model
        model.get_text_embedding("warm")
        no_network(monkeypatch)
        assert len(model.get_text_embedding("http://example.com/fox.png")) == 32

    def test_dense_only_in_the_retriever(self, dense: ModelSpec) -> None:
        config = UnifiedEmbeddingConfig(dense, precision="fp32")
        store = config.vector_store("texts", client=QdrantClient(":memory:"))
        index = VectorStoreIndex.from_vector_store(store, embed_model=config.text_model)
        index.insert_nodes([TextNode(text=text) for text in TEXTS])
        found = config.retriever(store).retrieve("quick fox")
        query = config.embedder.encode_query("quick fox").dense[0]
        scores = config.embedder.encode_documents(TEXTS).dense @ query
        assert [n.text for n in found] == [TEXTS[i] for i in np.argsort(-scores)]
        assert found[0].score == pytest.approx(scores.max(), abs=1e-5)
        with pytest.raises(InputError, match="set a sparse_model for it"):
            config.retriever(store, mode="hybrid")
        with pytest.raises(InputError, match="no colbert ones"):
            config.retriever(store, rerank="colbert")

    def test_hybrid_with_a_sparse_model_beside_it(
        self, dense: ModelSpec, splade: ModelSpec
    ) -> None:
        config = UnifiedEmbeddingConfig(dense, sparse_model=splade, precision="fp32")
        store = config.vector_store("texts", client=QdrantClient(":memory:"))
        index = VectorStoreIndex.from_vector_store(store, embed_model=config.text_model)
        index.insert_nodes([TextNode(text=text) for text in TEXTS])
        assert [part.stats().forwards for part in config.embedder.models] == [1, 1]
        ranks = [
            [n.text for n in config.retriever(store, mode=mode).retrieve(TEXTS[1])]
            for mode in ("dense", "sparse")
        ]
        for node in config.retriever(store, weights=(1, 1)).retrieve(TEXTS[1]):
            shares = [1 / (61 + texts.index(node.text)) for texts in ranks if node.text in texts]
            assert node.score == pytest.approx(sum(shares))
        sparse = config.retriever(store, mode="sparse").retrieve(TEXTS[1])
        vectors = config.embedder.encode_documents(TEXTS).sparse
        expected = sum(w * vectors[1].get(i, 0.0) for i, w in vectors[1].items())
        scores = {node.text: node.score for node in sparse}
        assert scores[TEXTS[1]] == pytest.approx(expected, rel=1e-4)

    def test_adapters_of_models_without_their_vectors(
        self, dense: ModelSpec, splade: ModelSpec
    ) -> None:
        for ask in ("get_text_embedding", "get_query_embedding"):
            with pytest.raises(InputError, match="no sparse ones"):
                getattr(UnifiedEmbeddingConfig(dense).sparse_model, ask)("fox")
            with pytest.raises(InputError, match="no dense ones"):
                getattr(UnifiedTextEmbedding(BGE_M3_Embedder(splade)), ask)("fox")
        with pytest.raises(InputError, match="no sparse ones"):
            UnifiedEmbeddingConfig(dense).sparse_model.get_text_embedding_batch(["fox"])
        for arguments in (
            {"embedder": make_embedder(dense, sparse_model=splade)},
            {"embedder": BGE_M3_Embedder(splade)},
            {"model_name": "bge-large-splade"},
        ):
            with pytest.raises(InputError, match="not one model that gives dense"):
                UnifiedHuggingFaceEmbedding(**arguments)  # type: ignore[arg-type]

    def test_a_bad_texts_index_counts_in_the_whole_batch(self, dense: ModelSpec) -> None:
        with pytest.raises(InputError) as caught:
            UnifiedEmbeddingConfig(dense).text_model.get_text_embedding_batch(
                [*["a"] * 200, "\ud800"]
            )
        assert caught.value.index == 200

    def test_sparse_alone_makes_no_store(self, splade: ModelSpec) -> None:
        config = UnifiedEmbeddingConfig(splade)
        with pytest.raises(InputError, match="gives no dense vectors"):
            config.vector_store("texts", client=QdrantClient(":memory:"))

    def test_one_cache_serves_many_models(self, dense: ModelSpec, splade: ModelSpec) -> None:
        cache = EmbeddingCache()
        one = BGE_M3_Embedder(dense, cache=cache).encode_documents(["fox"])
        other = BGE_M3_Embedder(splade, cache=cache).encode_documents(["fox"])
        assert one.sparse is None
        assert other.dense is None
