"""One object for a pipeline's choices: reading them, holding them, sharing what is made of them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.errors import InputError, ModelLoadError, UnifiedEmbeddingsError
from unified_embeddings.models.catalogue import MODELS
from unified_embeddings.models.spec import ModelSpec

PREFIX = "UNIFIED_EMBEDDINGS_"


def from_env(variables: dict[str, str], **overrides: Any) -> UnifiedEmbeddingConfig:
    environ = {PREFIX + name: value for name, value in variables.items()}
    return UnifiedEmbeddingConfig.from_env(environ, **overrides)


class TestDefaults:
    def test_are_bge_m3_on_whatever_hardware_there_is(self) -> None:
        config = UnifiedEmbeddingConfig()
        assert config.model_choice == "bge-m3"
        assert config.embedder.options == {
            "engine": "auto",
            "precision": "auto",
            "device": "auto",
            "max_length": 8192,
            "batch_tokens": 4096,
            "revision": None,
            "local_files_only": False,
            "trust_remote_code": False,
        }
        assert config.embedder.cache.max_bytes == 268_435_456

    def test_an_empty_environment_gives_the_same(self) -> None:
        config, plain = from_env({}), UnifiedEmbeddingConfig()
        assert config.model_choice == plain.model_choice
        assert config.embedder.options == plain.embedder.options
        assert config.embedder.cache.max_bytes == plain.embedder.cache.max_bytes

    def test_making_one_looks_for_no_model(self, tmp_path: Path) -> None:
        config = UnifiedEmbeddingConfig(tmp_path / "not there yet")
        assert config.model_choice == str(tmp_path / "not there yet")
        with pytest.raises(ModelLoadError, match="not there yet"):
            config.embedder.dimension  # noqa: B018 - reading it is the act

    def test_options_reach_the_embedder(self) -> None:
        cache = EmbeddingCache(max_bytes=1)
        config = UnifiedEmbeddingConfig(
            "some/model", engine="flag", max_length=77, cache=cache, revision="v2"
        )
        assert config.model_choice == config.embedder.model_name == "some/model"
        assert config.embedder.cache is cache
        assert config.embedder.options["engine"] == "flag"
        assert config.embedder.options["max_length"] == 77
        assert config.embedder.options["revision"] == "v2"

    def test_repr_names_both_models(self) -> None:
        config = UnifiedEmbeddingConfig("arctic", sparse_model="Splade_PP_en_v1")
        assert repr(config) == "UnifiedEmbeddingConfig('arctic', sparse_model='Splade_PP_en_v1')"

    def test_an_image_name_for_texts(self) -> None:
        with pytest.raises(InputError, match="give it as image_model"):
            UnifiedEmbeddingConfig("ViT-B/32")

    def test_repr_names_the_model(self) -> None:
        assert repr(UnifiedEmbeddingConfig("mini-m3")) == "UnifiedEmbeddingConfig('mini-m3')"


class TestRefused:
    @pytest.mark.parametrize("choice", MODELS)
    def test_every_choice_is_taken_by_name_and_says_what_it_lacks(self, choice: str) -> None:
        if choice in ("Splade_PP_en_v1", "bm25"):
            pytest.skip("gives sparse vectors alone")
        config = UnifiedEmbeddingConfig(choice, local_files_only=True)
        assert config.model_choice == choice
        if choice not in ("mini-m3", "mini-clip"):  # They come with packages.
            with pytest.raises(ModelLoadError, match=r"downloads are off|trust_remote_code=True"):
                config.embedder.encode_query("fox")

    @pytest.mark.parametrize("option", ["max_length", "batch_tokens"])
    @pytest.mark.parametrize("value", [0, -1, 1.5, "8192"])
    def test_lengths_out_of_range(self, option: str, value: Any) -> None:
        with pytest.raises(InputError, match=f"{option} must be a whole number >= 1"):
            UnifiedEmbeddingConfig(**{option: value})

    def test_a_cache_of_another_kind(self) -> None:
        with pytest.raises(InputError, match=r"cache must be an EmbeddingCache.*not dict"):
            UnifiedEmbeddingConfig(cache={})  # type: ignore[arg-type]

    def test_an_unknown_option(self) -> None:
        with pytest.raises(TypeError, match="colour"):
            UnifiedEmbeddingConfig(colour="red")  # type: ignore[call-arg]

    def test_openais_names_need_openais_package(self) -> None:
        config = UnifiedEmbeddingConfig("mini-m3", image_model="ViT-B/32")
        with pytest.raises(UnifiedEmbeddingsError, match=r"'ViT-B/32'.*pip install git\+.*CLIP"):
            config.image_model  # noqa: B018
        with pytest.raises(UnifiedEmbeddingsError, match="ViT-B/32"):
            config.configure_settings()
        with pytest.raises(InputError, match="LlamaIndex's ClipEmbedding"):
            config.clip  # noqa: B018

    @pytest.mark.parametrize("image_model", ["bge-m3", "arctic", "mini-m3"])
    def test_a_text_model_for_images(self, image_model: str) -> None:
        with pytest.raises(InputError, match="embeds no images; clip, mini-clip, jina-clip do"):
            UnifiedEmbeddingConfig(image_model=image_model)

    def test_no_image_model(self) -> None:
        config = UnifiedEmbeddingConfig("mini-m3", image_model=None)
        for name in ("image_model", "clip"):
            with pytest.raises(InputError, match="image_model=None; name one"):
                getattr(config, name)

    def test_a_sparse_model_beside_a_model_of_images(self) -> None:
        with pytest.raises(InputError, match="takes no sparse_model"):
            UnifiedEmbeddingConfig("jina-clip", sparse_model="Splade_PP_en_v1")


class TestImmutable:
    @pytest.mark.parametrize("name", ["model_choice", "embedder", "text_model", "anything"])
    def test_nothing_can_be_set(self, name: str) -> None:
        config = UnifiedEmbeddingConfig("mini-m3")
        with pytest.raises(AttributeError, match=name):
            setattr(config, name, "other")
        assert config.model_choice == "mini-m3"
        assert not hasattr(config, "anything")

    @pytest.mark.parametrize("name", ["model_choice", "embedder"])
    def test_nothing_can_be_deleted(self, name: str) -> None:
        config = UnifiedEmbeddingConfig("mini-m3")
        with pytest.raises(AttributeError):
            delattr(config, name)
        assert hasattr(config, name)


class TestFromEnv:
    @pytest.mark.parametrize(
        ("variable", "text", "option", "value"),
        [
            ("ENGINE", "flag", "engine", "flag"),
            ("PRECISION", "fp32", "precision", "fp32"),
            ("DEVICE", "cuda:1", "device", "cuda:1"),
            ("MAX_LENGTH", "512", "max_length", 512),
            ("BATCH_TOKENS", " 1024 ", "batch_tokens", 1024),
            ("REVISION", "v2", "revision", "v2"),
            ("LOCAL_FILES_ONLY", "1", "local_files_only", True),
            ("LOCAL_FILES_ONLY", "True", "local_files_only", True),
            ("LOCAL_FILES_ONLY", "YES", "local_files_only", True),
            ("LOCAL_FILES_ONLY", "0", "local_files_only", False),
            ("LOCAL_FILES_ONLY", "false", "local_files_only", False),
            ("LOCAL_FILES_ONLY", "No", "local_files_only", False),
        ],
    )
    def test_each_variable_sets_its_option(
        self, variable: str, text: str, option: str, value: Any
    ) -> None:
        options = from_env({variable: text}).embedder.options
        assert options == UnifiedEmbeddingConfig().embedder.options | {option: value}
        assert type(options[option]) is type(value)

    def test_model(self) -> None:
        config = from_env({"MODEL": "mini-m3"})
        assert config.model_choice == config.embedder.model_name == "mini-m3"

    def test_image_model(self) -> None:
        assert from_env({"IMAGE_MODEL": "some/clip"}).clip.model_name == "some/clip"
        assert not from_env({"IMAGE_MODEL": "some/clip"}).clip.options["allow_urls"]
        assert from_env({"ALLOW_URLS": "yes"}).clip.options["allow_urls"]

    def test_no_image_model(self) -> None:
        with pytest.raises(InputError, match="image_model=None"):
            from_env({"IMAGE_MODEL": "None"}).clip  # noqa: B018

    def test_sparse_model(self) -> None:
        config = from_env({"MODEL": "arctic", "SPARSE_MODEL": "Splade_PP_en_v1"})
        assert config.embedder.heads == ("dense", "sparse")

    def test_trust(self) -> None:
        assert from_env({"TRUST_REMOTE_CODE": "1"}).embedder.options["trust_remote_code"] is True

    def test_cache_bytes(self) -> None:
        assert from_env({"CACHE_BYTES": "1000000"}).embedder.cache.max_bytes == 1_000_000
        assert from_env({"CACHE_BYTES": "0"}).embedder.cache.max_bytes == 0

    def test_cache_path(self, tmp_path: Path) -> None:
        path = tmp_path / "cache.sqlite"
        config = from_env({"CACHE_PATH": str(path)})
        assert path.is_file()
        assert config.embedder.cache.max_bytes == 268_435_456
        config.embedder.cache.close()

    def test_cache_bytes_and_path_together(self, tmp_path: Path) -> None:
        path = tmp_path / "cache.sqlite"
        config = from_env({"CACHE_PATH": str(path), "CACHE_BYTES": "5000"})
        assert path.is_file()
        assert config.embedder.cache.max_bytes == 5000
        config.embedder.cache.close()

    def test_the_process_environment_is_read_by_default(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(PREFIX + "MODEL", "some/model")
        monkeypatch.setenv(PREFIX + "MAX_LENGTH", "99")
        config = UnifiedEmbeddingConfig.from_env()
        assert config.model_choice == "some/model"
        assert config.embedder.options["max_length"] == 99

    def test_only_from_env_reads_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(PREFIX + "MODEL", "some/model")
        assert UnifiedEmbeddingConfig().model_choice == "bge-m3"
        assert from_env({}).model_choice == "bge-m3"

    @pytest.mark.parametrize("blank", ["", "  "])
    def test_a_blank_variable_counts_as_not_set(self, blank: str) -> None:
        variables = dict.fromkeys(("MODEL", "MAX_LENGTH", "LOCAL_FILES_ONLY", "CACHE_PATH"), blank)
        config = from_env(variables)
        assert config.model_choice == "bge-m3"
        assert config.embedder.options == UnifiedEmbeddingConfig().embedder.options

    @pytest.mark.parametrize(
        ("variable", "text"),
        [
            ("MAX_LENGTH", "long"),
            ("MAX_LENGTH", "8192.0"),
            ("BATCH_TOKENS", "4k"),
            ("CACHE_BYTES", "256 MiB"),
            ("LOCAL_FILES_ONLY", "maybe"),
            ("LOCAL_FILES_ONLY", "2"),
        ],
    )
    def test_a_value_that_does_not_read_is_named_with_its_variable(
        self, variable: str, text: str
    ) -> None:
        with pytest.raises(InputError, match=f"{PREFIX}{variable}='{text}' is not usable"):
            from_env({variable: text})

    @pytest.mark.parametrize(
        ("variable", "problem"),
        [
            ("MAX_LENGTH", "max_length must be"),
            ("BATCH_TOKENS", "batch_tokens must be"),
            ("CACHE_BYTES", "max_bytes must be >= 0"),
        ],
    )
    def test_a_value_out_of_range_is_refused(self, variable: str, problem: str) -> None:
        with pytest.raises(InputError, match=problem):
            from_env({variable: "-1"})

    def test_overrides_win(self) -> None:
        variables = {"MODEL": "some/model", "MAX_LENGTH": "99", "ENGINE": "flag"}
        config = from_env(variables, model_choice="mini-m3", max_length=11)
        assert config.model_choice == "mini-m3"
        assert config.embedder.options["max_length"] == 11
        assert config.embedder.options["engine"] == "flag"

    def test_an_override_of_none_leaves_the_environment(self) -> None:
        config = from_env({"MODEL": "some/model"}, model_choice=None, max_length=None)
        assert config.model_choice == "some/model"
        assert config.embedder.options["max_length"] == 8192

    def test_a_cache_given_wins_over_the_caches_variables(self, tmp_path: Path) -> None:
        cache, path = EmbeddingCache(max_bytes=77), tmp_path / "cache.sqlite"
        config = from_env({"CACHE_BYTES": "5000", "CACHE_PATH": str(path)}, cache=cache)
        assert config.embedder.cache is cache
        assert not path.exists()

    def test_other_programs_variables_are_ignored(self) -> None:
        environ = {"MODEL": "x", "EMBEDDINGS_MODEL": "x", PREFIX + "UNKNOWN": "x"}
        assert UnifiedEmbeddingConfig.from_env(environ).model_choice == "bge-m3"


class TestTextModel:
    def test_there_is_one_and_it_shares_the_embedder(self) -> None:
        config = UnifiedEmbeddingConfig("mini-m3")
        assert config.text_model is config.text_model
        assert config.text_model.embedder is config.embedder

    def test_the_sparse_model_finds_what_the_text_model_computed(self, xlmr: Path) -> None:
        config = UnifiedEmbeddingConfig(xlmr, precision="fp32", device="cpu")
        assert len(config.text_model.get_text_embedding("the quick brown fox")) == 32
        assert len(config.sparse_model.get_text_embedding("the quick brown fox")) > 0
        assert config.embedder.stats().forwards == 1

    def test_two_configs_have_their_own(self) -> None:
        one, other = UnifiedEmbeddingConfig("mini-m3"), UnifiedEmbeddingConfig("mini-m3")
        assert one.text_model is not other.text_model
        assert one.embedder is not other.embedder

    def test_threads_asking_at_once_get_the_same(self) -> None:
        config, barrier, got = UnifiedEmbeddingConfig("mini-m3"), threading.Barrier(8), []

        def ask() -> None:
            barrier.wait(30)
            got.append(config.text_model)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 8
        assert len({id(model) for model in got}) == 1

    def test_configure_settings_sets_llama_indexs_text_model(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from llama_index.core import Settings

        monkeypatch.setattr(Settings, "_embed_model", None)
        monkeypatch.setattr(Settings, "_node_parser", None)
        monkeypatch.setattr(Settings, "_transformations", None)
        config = UnifiedEmbeddingConfig("mini-m3")
        config.configure_settings()
        assert Settings.embed_model is config.text_model

    def test_configure_settings_makes_chunks_fit_the_model(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """LlamaIndex's own chunks of 1,024 tokens would lose three quarters with mini-m3's 256."""
        from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex

        from unified_embeddings import UnifiedSentenceSplitter

        monkeypatch.setattr(Settings, "_embed_model", None)
        monkeypatch.setattr(Settings, "_node_parser", None)
        monkeypatch.setattr(Settings, "_transformations", None)
        assert len(Settings.transformations) == 1  # LlamaIndex's own, kept from the first index on
        config = UnifiedEmbeddingConfig("mini-m3")
        config.configure_settings()
        assert isinstance(Settings.node_parser, UnifiedSentenceSplitter)
        assert Settings.chunk_size == config.embedder.document_length == 254
        store = config.vector_store("long", client=QdrantClient(":memory:"))
        text = " ".join(f"Line {number} says little." for number in range(120))
        VectorStoreIndex.from_documents(
            [Document(text=text)],
            storage_context=StorageContext.from_defaults(vector_store=store),
        )
        assert config.embedder.stats().truncated == 0
        Settings.chunk_size = 100
        assert Settings.node_parser.chunk_size == 100

    def test_configure_settings_leaves_a_node_parser_on_request(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from llama_index.core import Settings
        from llama_index.core.node_parser import TokenTextSplitter

        monkeypatch.setattr(Settings, "_embed_model", None)
        monkeypatch.setattr(Settings, "_node_parser", None)
        monkeypatch.setattr(Settings, "_transformations", None)
        mine = TokenTextSplitter()
        Settings.node_parser = mine
        UnifiedEmbeddingConfig("mini-m3").configure_settings(node_parser=False)
        assert Settings.node_parser is mine
        Settings.transformations = [mine, mine]
        UnifiedEmbeddingConfig("mini-m3").configure_settings()
        assert Settings.transformations == [mine, mine]


class TestImages:
    def test_settings_get_both_models(self, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from llama_index.core import Settings
        from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding

        monkeypatch.setattr(Settings, "_embed_model", None)
        monkeypatch.setattr(Settings, "_node_parser", None)
        monkeypatch.setattr(Settings, "_transformations", None)
        monkeypatch.setattr(Settings, "image_embed_model", None, raising=False)
        config = UnifiedEmbeddingConfig("mini-m3", image_model=clip)
        config.configure_settings()
        assert Settings.image_embed_model is config.image_model
        assert isinstance(config.image_model, MultiModalEmbedding)
        UnifiedEmbeddingConfig("mini-m3", image_model=None).configure_settings()
        assert Settings.image_embed_model is config.image_model

    def test_openais_names_go_to_llama_indexs_class(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "clip.py").write_text(
            "def load(name, device):\n    return ('a model for ' + name, None)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        model = UnifiedEmbeddingConfig("mini-m3", image_model="ViT-B/32").image_model
        assert type(model).__name__ == "ClipEmbedding"
        assert model._model == "a model for ViT-B/32"

    def test_one_cache_and_the_same_options_for_both(self, clip: Path) -> None:
        config = UnifiedEmbeddingConfig("mini-m3", clip, precision="fp32", device="cpu")
        assert config.clip.cache is config.embedder.cache
        assert config.clip is config.clip
        assert config.clip.options["precision"] == "fp32"
        assert config.clip.options["device"] == "cpu"

    def test_one_model_for_both_is_held_once(self, clip: Path) -> None:
        spec = ModelSpec("both", str(clip), images=True)
        config = UnifiedEmbeddingConfig(spec)
        assert config.embedder.clip is config.clip
        assert config.text_model is config.image_model
        assert len(config.text_model.get_text_embedding("fox")) == 24

    def test_a_config_with_specs_can_be_pickled(self, clip: Path) -> None:
        import pickle

        spec = ModelSpec("mine", "some/model", images=False, query_prefix="q: ")
        config = UnifiedEmbeddingConfig(spec, image_model=clip, sparse_model="Splade_PP_en_v1")
        copy = pickle.loads(pickle.dumps(config))
        assert copy.model_choice == "mine"
        assert copy.embedder.options == config.embedder.options
        assert copy.clip.model_name == str(clip)


class TestMemory:
    def test_only_what_is_loaded_counts(self, xlmr: Path, clip: Path) -> None:
        config = UnifiedEmbeddingConfig(xlmr, image_model=clip, precision="fp32", device="cpu")
        assert config.memory().models == ()
        config.embedder.encode_query("fox")
        (text,) = config.memory().models
        assert text.model == str(xlmr)
        assert text.runs_on == "torch, fp32, cpu"
        config.clip.encode_texts(["fox"])
        report = config.memory()
        assert [one.model for one in report.models] == [str(xlmr), str(clip)]
        assert report.weights == sum(one.weights for one in report.models)
        assert report.process > report.weights

    def test_weights_are_the_bytes_of_the_parameters(self, clip: Path) -> None:
        from transformers import CLIPModel

        config = UnifiedEmbeddingConfig("mini-m3", image_model=clip, precision="bf16")
        config.clip.encode_texts(["fox"])
        (one,) = config.memory().models
        model = CLIPModel.from_pretrained(clip)
        parameters = sum(tensor.numel() for tensor in model.parameters())
        positions = sum(tensor.nbytes for tensor in model.buffers())
        assert one.weights == 2 * parameters + positions

    def test_the_budget_is_the_documents(self) -> None:
        report = UnifiedEmbeddingConfig("mini-m3").memory()
        assert (report.budget, report.baseline) == (3_600_000_000, 4_200_000_000)
