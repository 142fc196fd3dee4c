"""Finding a model's files in folders, in the hub's cache and on the hub; errors if that fails."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import checkpoints
from unified_embeddings.errors import ModelLoadError
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.resolve import resolve

OLD = "0123456789abcdef0123456789abcdef01234567"
NEW = "fedcba9876543210fedcba9876543210fedcba98"
NAME = "BAAI/bge-m3"
MODEL_FILES = ["config.json", "tokenizer.json", "sparse_linear.pt", "colbert_linear.pt"]


@pytest.fixture
def xlmr(xlmr: Path, tmp_path: Path) -> Path:
    """A copy that the test may break."""
    return shutil.copytree(xlmr, tmp_path / "xlmr")


@pytest.fixture
def bert(bert: Path, tmp_path: Path) -> Path:
    """A copy that the test may break."""
    return shutil.copytree(bert, tmp_path / "bert")


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses that anything tried to reach; nothing gets through."""
    tried: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def change(path: Path, **settings: Any) -> None:
    """Set keys of a JSON file; None deletes one."""
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    content.update(settings)
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({key: value for key, value in content.items() if value is not None}), "utf-8"
    )


class TestFolder:
    @pytest.mark.parametrize("weights", ["safetensors", "bin"])
    def test_a_complete_folder(self, tmp_path: Path, weights: str) -> None:
        folder = checkpoints.xlm_roberta(tmp_path / "model", weights=weights)
        found = resolve(folder)
        assert found.folder == folder
        assert found.name == str(folder)
        assert found.revision == found.digest
        assert found.hidden_size == 32
        assert found.model_type == "xlm-roberta"
        file = "model.safetensors" if weights == "safetensors" else "pytorch_model.bin"
        assert found.weight_files == [folder / file]
        assert found.tokenizer_file == folder / "tokenizer.json"

    def test_a_path_relative_to_the_working_folder(
        self, xlmr: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(xlmr.parent)
        assert resolve("xlmr").folder == xlmr
        assert resolve("./xlmr").folder == xlmr

    def test_home_is_expanded(self, xlmr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(xlmr.parent))
        assert resolve("~/xlmr").folder == xlmr

    @pytest.mark.parametrize("missing", MODEL_FILES)
    def test_a_missing_file_is_named(self, xlmr: Path, missing: str) -> None:
        (xlmr / missing).unlink()
        with pytest.raises(ModelLoadError, match=missing) as caught:
            resolve(xlmr)
        assert str(xlmr) in str(caught.value)
        assert caught.value.model == str(xlmr)

    def test_missing_weights_are_named_in_both_forms(self, xlmr: Path) -> None:
        (xlmr / "model.safetensors").unlink()
        with pytest.raises(ModelLoadError, match=r"model\.safetensors or pytorch_model\.bin"):
            resolve(xlmr)

    def test_empty_weights_are_named(self, xlmr: Path) -> None:
        (xlmr / "model.safetensors").write_bytes(b"")
        with pytest.raises(ModelLoadError, match=r"model\.safetensors is empty"):
            resolve(xlmr)

    def test_safetensors_come_before_a_pickle(self, xlmr: Path) -> None:
        torch.save({}, xlmr / "pytorch_model.bin")
        assert resolve(xlmr).weight_files == [xlmr / "model.safetensors"]

    def test_a_folder_has_no_revisions(self, xlmr: Path) -> None:
        with pytest.raises(ModelLoadError, match="a folder has no revisions") as caught:
            resolve(xlmr, revision="main")
        assert caught.value.revision == "main"


class TestShards:
    @pytest.fixture
    def sharded(self, xlmr: Path) -> Path:
        state = load_file(xlmr / "model.safetensors")
        names = sorted(state)
        parts = {"model-00002-of-00002": names[::2], "model-00001-of-00002": names[1::2]}
        for part, keys in parts.items():
            save_file({key: state[key] for key in keys}, xlmr / f"{part}.safetensors")
        weight_map = {key: f"{part}.safetensors" for part, keys in parts.items() for key in keys}
        change(xlmr / "model.safetensors.index.json", weight_map=weight_map)
        (xlmr / "model.safetensors").unlink()
        return xlmr

    def test_are_listed_once_each_in_order(self, sharded: Path) -> None:
        assert [path.name for path in resolve(sharded).weight_files] == [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ]

    def test_a_missing_shard_is_named(self, sharded: Path) -> None:
        (sharded / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(ModelLoadError, match=r"model-00002-of-00002\.safetensors is missing"):
            resolve(sharded)

    @pytest.mark.parametrize("weight_map", [None, {}, ["model-00001-of-00002.safetensors"]])
    def test_an_index_that_lists_no_shards_is_named(self, sharded: Path, weight_map: Any) -> None:
        change(sharded / "model.safetensors.index.json", weight_map=weight_map)
        with pytest.raises(ModelLoadError, match=r"model\.safetensors\.index\.json"):
            resolve(sharded)

    def test_a_change_in_any_shard_changes_the_digest(self, sharded: Path) -> None:
        before = resolve(sharded).digest
        shard = sharded / "model-00002-of-00002.safetensors"
        raw = bytearray(shard.read_bytes())
        raw[-1] ^= 1
        shard.write_bytes(raw)
        assert resolve(sharded).digest != before


class TestSettings:
    @pytest.mark.parametrize("content", ["{", "", "not json"])
    def test_unreadable_json_is_named(self, xlmr: Path, content: str) -> None:
        (xlmr / "config.json").write_text(content)
        with pytest.raises(ModelLoadError, match=r"config\.json is not readable JSON"):
            resolve(xlmr).hidden_size  # noqa: B018 - reading it is the act

    def test_json_in_another_encoding_is_named(self, xlmr: Path) -> None:
        (xlmr / "config.json").write_bytes(b'{"hidden_size": "\xff"}')
        with pytest.raises(ModelLoadError, match=r"config\.json is not readable JSON"):
            resolve(xlmr).hidden_size  # noqa: B018

    def test_json_that_is_not_an_object_is_named(self, xlmr: Path) -> None:
        (xlmr / "config.json").write_text("[1]")
        with pytest.raises(ModelLoadError, match=r"config\.json should hold a JSON object"):
            resolve(xlmr).hidden_size  # noqa: B018

    @pytest.mark.parametrize(
        ("key", "attribute"),
        [
            ("hidden_size", "hidden_size"),
            ("model_type", "model_type"),
            ("max_position_embeddings", "max_length"),
            ("pad_token_id", "max_length"),
        ],
    )
    def test_a_missing_setting_is_named(self, xlmr: Path, key: str, attribute: str) -> None:
        change(xlmr / "config.json", **{key: None})
        with pytest.raises(ModelLoadError, match=f"no '{key}'"):
            getattr(resolve(xlmr), attribute)


class TestPooling:
    @pytest.mark.parametrize(
        ("settings", "pooling"),
        [
            ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
            ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
            ({"pooling_mode_mean_tokens": True}, "mean"),
            ({"pooling_mode": "cls"}, "cls"),
            ({"pooling_mode": "mean"}, "mean"),
            ({"pooling_mode": ["mean"]}, "mean"),
            ({"pooling_mode": "mean", "pooling_mode_mean_tokens": True}, "mean"),
            (
                {"pooling_mode": "cls", "word_embedding_dimension": 32, "include_prompt": True},
                "cls",
            ),
        ],
    )
    def test_is_read_from_older_flags_and_the_newer_name(
        self, xlmr: Path, settings: dict[str, Any], pooling: str
    ) -> None:
        change(xlmr / "1_Pooling/config.json", **settings)
        assert resolve(xlmr).pooling == pooling

    def test_without_the_file_it_is_cls(self, xlmr: Path) -> None:
        assert not (xlmr / "1_Pooling").exists()
        assert resolve(xlmr).pooling == "cls"

    def test_of_the_bert_layout_is_mean(self, bert: Path) -> None:
        assert resolve(bert).pooling == "mean"

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "'cls', 'mean'"),
            ({"pooling_mode": ["cls", "mean"]}, "'cls', 'mean'"),
            ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, "'cls', 'mean'"),
            ({"pooling_mode_max_tokens": True}, "'max'"),
            ({"pooling_mode_mean_sqrt_len_tokens": True}, "'mean_sqrt_len'"),
            ({"pooling_mode": "lasttoken"}, "'lasttoken'"),
            ({"pooling_mode_cls_token": False}, r"\[\]"),
        ],
    )
    def test_that_cannot_be_computed_is_named(
        self, xlmr: Path, settings: dict[str, Any], named: str
    ) -> None:
        change(xlmr / "1_Pooling/config.json", **settings)
        with pytest.raises(ModelLoadError, match=rf"1_Pooling/config\.json.*{named}"):
            resolve(xlmr)


class TestMaxLength:
    def test_of_roberta_is_its_positions_less_the_two_reserved(self, xlmr: Path) -> None:
        assert resolve(xlmr).max_length == 512  # 514 - 2

    def test_of_bert_is_all_its_positions(self, bert: Path) -> None:
        (bert / "sentence_bert_config.json").unlink()
        assert resolve(bert).max_length == 300

    def test_sentence_transformers_limit_applies_if_it_is_smaller(self, bert: Path) -> None:
        assert resolve(bert).max_length == 256

    def test_sentence_transformers_limit_does_not_raise_the_models(self, bert: Path) -> None:
        change(bert / "sentence_bert_config.json", max_seq_length=1000)
        assert resolve(bert).max_length == 300

    def test_no_limit_in_sentence_transformers_file(self, xlmr: Path) -> None:
        (xlmr / "sentence_bert_config.json").write_text('{"max_seq_length": null}')
        assert resolve(xlmr).max_length == 512


class TestDigest:
    def test_is_24_hex_digits(self, xlmr: Path) -> None:
        digest = resolve(xlmr).digest
        assert len(digest) == 24
        assert int(digest, 16) >= 0

    def test_of_a_copy_elsewhere_is_the_same(self, xlmr: Path, tmp_path: Path) -> None:
        copied = shutil.copytree(xlmr, tmp_path / "elsewhere")
        assert resolve(copied).digest == resolve(xlmr).digest

    def test_of_other_weights_differs(self, xlmr: Path, tmp_path: Path) -> None:
        other = checkpoints.xlm_roberta(tmp_path / "other", seed=1)
        for file in MODEL_FILES:
            shutil.copy(xlmr / file, other / file)
        assert resolve(other).digest != resolve(xlmr).digest

    @pytest.mark.parametrize("head", ["sparse_linear.pt", "colbert_linear.pt"])
    def test_of_another_head_differs(self, xlmr: Path, head: str) -> None:
        before = resolve(xlmr).digest
        state = torch.load(xlmr / head)
        state["bias"] += 1
        torch.save(state, xlmr / head)
        assert resolve(xlmr).digest != before

    def test_of_another_tokenizer_differs(self, xlmr: Path) -> None:
        before = resolve(xlmr).digest
        change(xlmr / "tokenizer.json", truncation=None)
        assert resolve(xlmr).digest != before

    def test_of_another_pooling_differs(self, xlmr: Path) -> None:
        before = resolve(xlmr).digest
        change(xlmr / "1_Pooling/config.json", pooling_mode="mean")
        assert resolve(xlmr).digest != before

    def test_a_note_beside_the_model_changes_nothing(self, xlmr: Path) -> None:
        before = resolve(xlmr).digest
        (xlmr / "README.md").write_text("a model")
        assert resolve(xlmr).digest == before


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, with downloads not switched off."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return folder


def snapshot(hub_cache: Path, source: Path, commit: str = OLD, ref: str = "main") -> Path:
    """Lay out a model like in huggingface_hub's cache."""
    repository = hub_cache / "models--BAAI--bge-m3"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    return shutil.copytree(source, repository / "snapshots" / commit)


class TestNotFound:
    @pytest.mark.parametrize(
        "name",
        [
            "/no/such/folder",
            "./no-such-folder",
            "../no-such-folder",
            "~/no-such-folder",
            "no/such/folder",
            "not a hub id",
            "BAAI/bge--m3..",
            " ",
        ],
    )
    def test_a_name_that_cannot_be_a_hub_id_is_refused_without_asking_the_hub(
        self, hub_cache: Path, connections: list[Any], name: str
    ) -> None:
        with pytest.raises(ModelLoadError, match="no such folder"):
            resolve(name)
        assert connections == []

    def test_a_hub_model_that_is_not_here_with_downloads_off(
        self, hub_cache: Path, connections: list[Any]
    ) -> None:
        with pytest.raises(ModelLoadError, match=f"hf download {NAME}") as caught:
            resolve(NAME, local_files_only=True)
        assert "not in the local cache" in str(caught.value)
        assert caught.value.model == NAME
        assert connections == []

    def test_hub_offline_mode_is_honoured(
        self, hub_cache: Path, connections: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ModelLoadError, match=f"downloads are off .*hf download {NAME}"):
            resolve(NAME)
        assert connections == []

    def test_a_hub_that_cannot_be_reached_is_a_model_load_error(
        self, hub_cache: Path, connections: list[Any]
    ) -> None:
        with pytest.raises(ModelLoadError, match=r"could not be fetched.*mini-m3"):
            resolve(NAME)
        assert connections != []

    def test_the_revision_asked_for_is_in_the_error(
        self, hub_cache: Path, connections: list[Any]
    ) -> None:
        with pytest.raises(ModelLoadError, match=r"revision v2") as caught:
            resolve(NAME, revision="v2", local_files_only=True)
        assert caught.value.revision == "v2"


class TestHubCache:
    def test_a_complete_snapshot_is_taken_with_its_commit_as_revision(
        self, hub_cache: Path, xlmr: Path, connections: list[Any]
    ) -> None:
        folder = snapshot(hub_cache, xlmr)
        found = resolve(NAME, local_files_only=True)
        assert found.revision == OLD
        assert found.folder == folder
        assert found.name == NAME
        assert connections == []

    def test_a_complete_snapshot_is_taken_without_asking_the_hub(
        self, hub_cache: Path, xlmr: Path, connections: list[Any]
    ) -> None:
        snapshot(hub_cache, xlmr)
        assert resolve(NAME).revision == OLD
        assert connections == []

    def test_a_revision_chooses_among_snapshots(
        self, hub_cache: Path, xlmr: Path, connections: list[Any]
    ) -> None:
        snapshot(hub_cache, xlmr, NEW, ref="v2")
        snapshot(hub_cache, xlmr, OLD)
        assert resolve(NAME, local_files_only=True).revision == OLD
        assert resolve(NAME, revision="v2", local_files_only=True).revision == NEW
        assert resolve(NAME, revision=NEW, local_files_only=True).revision == NEW
        with pytest.raises(ModelLoadError, match="not in the local cache"):
            resolve(NAME, revision="v3", local_files_only=True)
        assert connections == []

    @pytest.mark.parametrize("missing", [*MODEL_FILES, "model.safetensors"])
    def test_an_incomplete_snapshot_is_named_with_downloads_off(
        self, hub_cache: Path, xlmr: Path, connections: list[Any], missing: str
    ) -> None:
        folder = snapshot(hub_cache, xlmr)
        (folder / missing).unlink()
        with pytest.raises(ModelLoadError, match="incomplete") as caught:
            resolve(NAME, local_files_only=True)
        assert str(folder) in str(caught.value)
        assert connections == []


class Hub:
    """A hub of one repository on this machine, speaking as much of the protocol as is needed."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.commit = OLD
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def answer(self) -> None:
                path = self.path.partition("?")[0]
                hub.asked.append(path)
                raw = hub.content(path)
                self.send_response(404 if raw is None else 200)
                self.send_header("Content-Length", str(len(raw or b"")))
                self.send_header("Content-Type", "application/json")
                self.send_header("X-Repo-Commit", hub.commit)
                self.send_header("ETag", f'"{hashlib.sha1(raw or b"").hexdigest()}"')
                if raw is None:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()
                if self.command == "GET" and raw:
                    self.wfile.write(raw)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def content(self, path: str) -> bytes | None:
        files = {
            file.relative_to(self.source).as_posix(): file
            for file in sorted(self.source.rglob("*"))
            if file.is_file()
        }
        api = f"/api/models/{NAME}"
        if path.startswith(f"{api}/tree/"):
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                }
                for name, file in files.items()
            ]
            return json.dumps(entries).encode()
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name} for name in files]
            return json.dumps({"id": NAME, "sha": self.commit, "siblings": siblings}).encode()
        file = files.get(path.removeprefix(f"/{NAME}/resolve/{self.commit}/"))
        return file.read_bytes() if file else None

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def hub(hub_cache: Path, xlmr: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(xlmr)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield hub
    hub.close()


def names_in(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


class TestDownload:
    def test_fetches_what_is_needed_and_nothing_else(self, hub: Hub) -> None:
        (hub.source / "onnx").mkdir()
        (hub.source / "onnx" / "model.onnx").write_bytes(bytes(1000))
        (hub.source / "README.md").write_text("a model")
        found = resolve(NAME)
        assert found.revision == OLD
        assert names_in(found.folder) == {
            *MODEL_FILES,
            "tokenizer_config.json",
            "model.safetensors",
        }

    def test_of_two_forms_of_weights_fetches_safetensors(self, hub: Hub) -> None:
        torch.save({}, hub.source / "pytorch_model.bin")
        found = resolve(NAME)
        assert [path.name for path in found.weight_files] == ["model.safetensors"]
        assert "pytorch_model.bin" not in names_in(found.folder)

    def test_fetches_the_pickle_if_there_are_no_safetensors(self, hub: Hub) -> None:
        (hub.source / "model.safetensors").unlink()
        torch.save({"a": torch.zeros(1)}, hub.source / "pytorch_model.bin")
        assert [path.name for path in resolve(NAME).weight_files] == ["pytorch_model.bin"]

    def test_a_repository_without_heads_is_named(self, hub: Hub) -> None:
        (hub.source / "sparse_linear.pt").unlink()
        with pytest.raises(ModelLoadError, match=r"sparse_linear\.pt is missing") as caught:
            resolve(NAME)
        assert caught.value.revision == OLD

    def test_a_repository_the_hub_does_not_know(self, hub: Hub) -> None:
        with pytest.raises(ModelLoadError, match=r"nobody/nothing.*could not be fetched"):
            resolve("nobody/nothing")

    @pytest.mark.parametrize("extra", [(), ("README.md",)], ids=["all", "part"])
    def test_what_was_fetched_serves_offline(self, hub: Hub, extra: tuple[str, ...]) -> None:
        for name in extra:
            (hub.source / name).write_text("not needed, so not fetched")
        fetched = resolve(NAME)
        hub.asked.clear()
        again = resolve(NAME, local_files_only=True)
        assert (again.revision, again.folder) == (OLD, fetched.folder)
        assert hub.asked == []

    @pytest.mark.parametrize("extra", [(), ("README.md",)], ids=["all", "part"])
    def test_an_upgrade_on_the_hub_does_not_change_a_fetched_model(
        self, hub: Hub, extra: tuple[str, ...]
    ) -> None:
        for name in extra:
            (hub.source / name).write_text("not needed, so not fetched")
        resolve(NAME)
        hub.asked.clear()
        hub.commit = NEW
        assert resolve(NAME).revision == OLD
        assert hub.asked == []

    def test_naming_the_new_revision_moves_to_it(self, hub: Hub) -> None:
        resolve(NAME)
        hub.commit = NEW
        assert resolve(NAME, revision=NEW).revision == NEW
        assert resolve(NAME).revision == OLD

    def test_an_interrupted_download_is_completed(self, hub: Hub) -> None:
        folder = resolve(NAME).folder
        (folder / "tokenizer.json").unlink()
        assert resolve(NAME).folder == folder
        assert "tokenizer.json" in names_in(folder)


class TestCheckpointValue:
    def test_a_revision_that_is_given_is_kept(self, xlmr: Path) -> None:
        assert Checkpoint("x", xlmr, revision=OLD).revision == OLD

    def test_problem_names_model_and_revision(self, xlmr: Path) -> None:
        error = Checkpoint("x", xlmr, revision=OLD).problem("it is broken")
        assert isinstance(error, ModelLoadError)
        assert (error.model, error.revision) == ("x", OLD)
        assert str(error) == f"Cannot load model 'x' (revision {OLD}): it is broken"


def test_an_incomplete_snapshot_says_offline_which_file_it_lacks(hub: Hub) -> None:
    folder = resolve(NAME).folder
    (folder / "sparse_linear.pt").unlink()
    with pytest.raises(ModelLoadError, match=r"incomplete \(sparse_linear\.pt is missing"):
        resolve(NAME, local_files_only=True)
