"""`adopt` and `add-vectors` as commands: what they print, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.schema import MetadataMode
from qdrant_client import QdrantClient
from qdrant_client import models as qm

import checkpoints
from command import Ended, Run
from foreign import fill, make_nodes, make_texts
from qdrant_server import running_server
from unified_embeddings.cli import app
from unified_embeddings.embedders.single_model import ModelEmbedder
from unified_embeddings.stores.edge.client import EdgeQdrantClient

NODES = make_nodes(make_texts(30))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process."""

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr("sys.argv", ["unified-embeddings", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def work(tmp_path: Path, xlmr: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store whose collection other software made, and an alias of it."""
    monkeypatch.chdir(tmp_path)
    with EdgeQdrantClient(tmp_path / "qdrant_data") as client, ModelEmbedder(str(xlmr)) as embedder:
        fill(client, "theirs", embedder, NODES)
        alias = qm.CreateAlias(collection_name="theirs", alias_name="live")
        client.update_collection_aliases([qm.CreateAliasOperation(create_alias=alias)])
    return tmp_path


def test_from_an_unknown_collection_to_hybrid_search(run: Run, work: Path, xlmr: Path) -> None:
    question = ("search", NODES[3].text, "-c", "theirs", "--model", xlmr)
    ended = run(*question)
    assert ended.code == 1
    assert f"unified-embeddings adopt theirs --model {xlmr}" in ended.err
    ended = run("adopt", "theirs", "--model", xlmr)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].startswith("dense vectors: cosine 1.000 for three quarters of 20 texts")
    assert lines[1] == "what was embedded: the text with the metadata meant for it"
    assert lines[2].startswith(f"theirs: made by {xlmr}, and recorded now")
    ended = run(*question)
    assert "unified-embeddings add-vectors theirs --sparse" in ended.err
    ended = run("add-vectors", "theirs", "--sparse", "--colbert", "full", "--model", xlmr)
    assert (ended.code, ended.err) == (0, "")
    assert "theirs: sparse and colbert vectors added to 30 of 30 points" in ended.out
    ended = run(*question, "--json")
    assert (ended.code, ended.json[0]["text"]) == (0, NODES[3].text)
    assert run("adopt", "theirs", "--model", xlmr).out.endswith("already; nothing to do\n")


def test_unnamed_dense_vectors_are_searched_and_given_sparse_ones(
    run: Run, work: Path, xlmr: Path
) -> None:
    with EdgeQdrantClient("qdrant_data") as client, ModelEmbedder(str(xlmr)) as embedder:
        fill(client, "unnamed", embedder, NODES, dense_name="")
    question = ("search", NODES[3].text, "-c", "unnamed", "--model", xlmr)
    assert f"unified-embeddings adopt unnamed --model {xlmr}" in run(*question).err
    adopted = run("adopt", "unnamed", "--model", xlmr)
    assert (adopted.code, adopted.out.endswith("s)\n")) == (0, True)
    refused = run(*question).err
    assert "mode='dense'" in refused
    assert "unified-embeddings add-vectors unnamed --sparse" in refused
    ended = run(*question, "--mode", "dense", "--json")
    assert (ended.code, ended.json[0]["text"]) == (0, NODES[3].text)
    ended = run("add-vectors", "unnamed", "--sparse", "--model", xlmr)
    assert (ended.code, ended.err) == (0, "")
    ended = run(*question, "--json")
    assert (ended.code, ended.json[0]["text"]) == (0, NODES[3].text)


def test_texts_under_a_key_of_their_own_are_searched_with_it(
    run: Run, work: Path, xlmr: Path
) -> None:
    payloads = [{"body": node.text, "shelf": number % 3} for number, node in enumerate(NODES)]
    with EdgeQdrantClient("qdrant_data") as client, ModelEmbedder(str(xlmr)) as embedder:
        fill(client, "plain", embedder, NODES, mode=MetadataMode.NONE, payloads=payloads)
    adopted = run("adopt", "plain", "--model", xlmr, "--text-key", "body").out
    assert "search --text-key" in adopted
    question = ("search", NODES[3].text, "-c", "plain", "--model", xlmr, "--mode", "dense")
    assert "(text_key=)" in run(*question).err
    found = run(*question, "--text-key", "body", "--filter", "shelf=0", "--json")
    assert found.json[0]["text"] == NODES[3].text
    assert {row["metadata"]["shelf"] for row in found.json} == {0}


def test_a_forgotten_path_is_seen_in_the_message(run: Run, work: Path, xlmr: Path) -> None:
    for command in ("adopt", "make-queries"):
        options = ("--output", "new") if command == "make-queries" else ("--model", xlmr)
        assert "in the folder qdrant_data" in run(command, "nowhere", *options).err
    sought = run("search", "fox", "-c", "nowhere", "--model", xlmr).err
    assert "existing collections: 'theirs', and aliases: 'live'" in sought
    planned = run("migrate", "plan", "nowhere", "--alias", "a", "--model", xlmr)
    assert f"in the folder {work / 'qdrant_data'}" in planned.err


def test_another_model_is_refused_with_exit_code_1(run: Run, work: Path, tmp_path: Path) -> None:
    other = checkpoints.bert(tmp_path / "bert")
    ended = run("adopt", "theirs", "--model", other)
    assert ended.code == 1
    assert ended.out.startswith("dense vectors: cosine ")
    assert "collection 'theirs' is not recorded as made by" in ended.err
    assert "--trust records it without a proof" in ended.err
    ended = run("adopt", "theirs", "--model", other, "--json")
    assert (ended.code, ended.err, ended.json["outcome"]) == (1, "", "refused")
    assert ended.json["dense"]["cosine"] < 0.97
    ended = run("adopt", "theirs", "--model", other, "--trust", "--json")
    assert (ended.code, ended.json["outcome"]) == (0, "trusted")


def test_a_dry_run(run: Run, work: Path, xlmr: Path) -> None:
    ended = run("adopt", "theirs", "--model", xlmr, "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert "not recorded (--dry-run)" in ended.out
    assert "adopt theirs" in run("search", "fox", "-c", "theirs", "--model", xlmr).err


def test_an_alias_stands_for_its_collection(run: Run, work: Path, xlmr: Path) -> None:
    ended = run("adopt", "live", "--model", xlmr)
    assert ended.code == 0
    assert ended.err == "note: 'live' is an alias of 'theirs'\n"
    assert "theirs: made by" in ended.out
    ended = run("add-vectors", "live", "--sparse", "--copy-to", "hybrid", "--model", xlmr)
    assert ended.code == 0
    assert "the alias live names hybrid now" in ended.out
    assert "theirs is as it was; delete it once you no longer need it" in ended.out
    ended = run("add-vectors", "live", "--sparse", "--model", xlmr)
    assert "hybrid: sparse vectors added to 0 of 30 points" in ended.out


def test_a_second_collection_without_an_alias_is_named(run: Run, work: Path, xlmr: Path) -> None:
    assert run("adopt", "theirs", "--model", xlmr).code == 0
    ended = run("add-vectors", "theirs", "--sparse", "--copy-to", "hybrid", "--model", xlmr)
    assert "open hybrid from now on" in ended.out


def test_what_does_not_exist(run: Run, work: Path, xlmr: Path) -> None:
    for command in (("adopt",), ("add-vectors", "--sparse")):
        ended = run(*command, "nowhere", "--model", xlmr)
        assert (ended.code, ended.out) == (1, "")
        assert "existing collections: 'theirs', and aliases: 'live'" in ended.err
        ended = run(*command, "theirs", "--path", "nothing", "--model", xlmr)
        assert (ended.code, ended.out) == (1, "")
        assert "Store nothing: opening failed: there is no such folder" in ended.err
        assert not Path("nothing").exists()
        ended = run(*command, "theirs", "--url", "http://127.0.0.2:9", "--model", xlmr)
        assert (ended.code, ended.out) == (1, "")
        assert "Is the Qdrant server running" in ended.err


def test_options_that_make_no_sense(run: Run, work: Path, xlmr: Path) -> None:
    ended = run("add-vectors", "theirs", "--model", xlmr)
    assert ended.code == 1
    assert "name the vectors to add: --sparse, --colbert pooled or --keywords bm25" in ended.err
    ended = run("adopt", "theirs", "--layout", "langchain", "--text-key", "x", "--model", xlmr)
    assert ended.code == 1
    assert "belong to the layout 'plain'" in ended.err
    assert run("adopt", "theirs", "--layout", "other", "--model", xlmr).code == 2


def test_a_server_and_a_folder_of_local_mode(run: Run, tmp_path: Path, xlmr: Path) -> None:
    with ModelEmbedder(str(xlmr)) as embedder:
        with running_server() as (url, client):
            fill(client, "theirs", embedder, NODES)
            assert run("adopt", "theirs", "--url", url, "--model", xlmr).code == 0
            ended = run("add-vectors", "theirs", "--sparse", "--url", url, "--model", xlmr)
            assert "added to 30 of 30 points" in ended.out
        local = QdrantClient(path=str(tmp_path / "local"))
        fill(local, "theirs", embedder, NODES)
        local.close()
    place = ("--path", tmp_path / "local", "--model", xlmr)
    assert run("adopt", "theirs", *place).code == 0
    assert "30 of 30 points" in run("add-vectors", "theirs", "--colbert", "full", *place).out
