"""A folder in the working directory never takes the place of the hub's model of its name."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

import checkpoints
from unified_embeddings import BGE_M3_Embedder, ModelEmbedder, ModelSpec, UnifiedEmbeddingConfig
from unified_embeddings.errors import ModelLoadError
from unified_embeddings.models.catalogue import spec_for
from unified_embeddings.models.resolve import require_consent, resolve

COMMIT = "a" * 40


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and an empty cache of the hub's that is not filled."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def put(xlmr: Path, name: str) -> Path:
    return shutil.copytree(xlmr, Path(name))


@pytest.mark.parametrize("name", ["BAAI/bge-m3", "bge-m3", "me/mine"])
def test_a_folder_named_like_a_hub_id_is_not_taken(xlmr: Path, name: str) -> None:
    folder = "BAAI/bge-m3" if name == "bge-m3" else name
    put(xlmr, folder)
    with pytest.raises(ModelLoadError, match=r"not in the local cache.* write \./" + folder):
        resolve(name)
    with pytest.raises(ModelLoadError, match="not in the local cache"):
        UnifiedEmbeddingConfig(name).embedder.encode_query("fox")


def test_a_strangers_model_of_the_folders_name_is_not_fetched(
    xlmr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    put(xlmr, "me/mine")
    with pytest.raises(ModelLoadError, match=r"write \./me/mine"):
        resolve("me/mine")
    # Named with a revision, there is no doubt.
    with pytest.raises(ModelLoadError, match="could not be fetched"):
        resolve("me/mine", revision=COMMIT)


def test_the_hubs_model_is_taken_though_there_is_such_a_folder(
    xlmr: Path, bert: Path, tmp_path: Path
) -> None:
    put(bert, "BAAI/bge-m3")
    repository = tmp_path / "hub" / "models--BAAI--bge-m3"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = shutil.copytree(xlmr, repository / "snapshots" / COMMIT)
    assert resolve("bge-m3").folder == snapshot
    assert resolve("BAAI/bge-m3").model_type == "xlm-roberta"
    assert resolve("./BAAI/bge-m3").model_type == "bert"


@pytest.mark.parametrize("kind", ["dot", "absolute", "path", "slash", "deep", "bare"])
def test_a_folder_is_taken_where_it_is_named_as_one(xlmr: Path, kind: str) -> None:
    folder = put(xlmr, "deep/me/mine" if kind == "deep" else "me/mine")
    if kind == "bare":
        folder = put(xlmr, "mine")
    names = {
        "dot": "./me/mine",
        "absolute": str(folder.absolute()),
        "path": Path("me/mine"),
        "slash": "me/mine/",
        "deep": "deep/me/mine",
        "bare": "mine",
    }
    assert resolve(names[kind]).folder == folder.absolute()


def test_a_path_stays_one_through_pickling(xlmr: Path) -> None:
    put(xlmr, "me/mine")
    embedder = BGE_M3_Embedder(Path("me/mine"))
    assert pickle.loads(pickle.dumps(embedder)).fingerprint == embedder.fingerprint


def test_a_toml_file_beside_such_a_folder_means_the_hubs(xlmr: Path) -> None:
    put(xlmr, "BAAI/bge-m3")
    Path("mine.toml").write_text('model_id = "BAAI/bge-m3"\nlike = "bge-m3"')
    assert spec_for("mine.toml").model_id == "BAAI/bge-m3"
    Path("mine.toml").write_text('model_id = "./BAAI/bge-m3"\nlike = "bge-m3"')
    assert spec_for("mine.toml").model_id == str(Path("BAAI/bge-m3").absolute())


def test_an_exported_folder_of_that_name_lends_no_spec(xlmr: Path) -> None:
    put(xlmr, "me/mine")
    Path("me/mine/export.json").write_text(json.dumps({"spec": {"choice": "x"}, "format": 3}))
    assert spec_for("me/mine").choice == "me/mine"


class TestCode:
    SPEC = ModelSpec(
        "mine", "me/mine", pooling="mean", remote_code=True, revision=COMMIT, engine="sentence"
    )

    def test_of_such_a_folder_is_not_run_under_the_consent_for_a_commit(
        self, tmp_path: Path
    ) -> None:
        folder = checkpoints.sentence_model(Path("me/mine"), "mpnet")
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModel": "code.Model", "AutoConfig": "code.Config"}
        (folder / "config.json").write_text(json.dumps(config))
        trap = tmp_path / "ran"
        (folder / "code.py").write_text(f"open({str(trap)!r}, 'w')")
        with pytest.raises(ModelLoadError, match="not in the local cache"):
            ModelEmbedder(self.SPEC, trust_remote_code=True).encode_query("fox")
        assert not trap.exists()

    def test_needs_a_pin_though_there_is_such_a_folder(self) -> None:
        Path("me/mine").mkdir(parents=True)
        with pytest.raises(ModelLoadError, match="has to be pinned"):
            require_consent(ModelSpec("mine", "me/mine", remote_code=True), None, given=True)

    def test_of_a_folder_named_like_the_codes_repository_is_not_run(self, tmp_path: Path) -> None:
        """Transformers takes a folder for the repository, and with it other code than pinned."""
        folder = checkpoints.sentence_model(tmp_path / "model", "mpnet")
        config = json.loads((folder / "config.json").read_text())
        config |= {"auto_map": {"AutoModel": "me/code--code.Model"}}
        (folder / "config.json").write_text(json.dumps(config))
        trap = tmp_path / "ran"
        Path("me/code").mkdir(parents=True)
        Path("me/code/code.py").write_text(f"open({str(trap)!r}, 'w')")
        spec = ModelSpec("mine", str(folder), remote_code=True, code_revision=COMMIT)
        with pytest.raises(ModelLoadError, match="the working directory has a folder of that name"):
            ModelEmbedder(spec, trust_remote_code=True).encode_query("fox")
        assert not trap.exists()
