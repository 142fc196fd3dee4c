"""`list`, `info` and `drop`: what a store holds, told and deleted."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from command import COMMAND, Ended, environment, run_here
from qdrant_server import running_server
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.text import UnifiedTextEmbedding
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.stores.calibration_record import write_calibration
from unified_embeddings.stores.fusion_choice import write_choice
from unified_embeddings.stores.opening import open_folder

Run = Callable[..., Ended]
Opener = Callable[[], Any]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    return lambda *arguments: run_here(arguments, capsys, monkeypatch)


def fill(client: Any, name: str = "animals", *, documents: int = 2, pieces: int = 3) -> None:
    """Store the pieces of some documents, each with a field that repeats and one that does not."""
    embedder = FakeEmbedder(8)
    store = build_vector_store(embedder, name, client=client)
    nodes = []
    for document in range(documents):
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"document {document}")}
        for piece in range(pieces):
            number = document * pieces + piece
            facts = {
                "kind": "odd" if number % 2 else "even",
                "number": number,
                "last_modified_date": f"2026-01-0{document + 1}",
            }
            text = f"{'long ' * 40}{number}"
            nodes.append(TextNode(text=text, metadata=facts, relationships={**source}))
    store.add(UnifiedTextEmbedding(embedder)(nodes))


def name_by(client: Any, alias: str, name: str) -> None:
    change = qm.CreateAlias(collection_name=name, alias_name=alias)
    client.update_collection_aliases([qm.CreateAliasOperation(create_alias=change)])


@contextmanager
def embedded() -> Iterator[tuple[tuple[str, str], Opener]]:
    yield ("--path", "store"), lambda: open_folder("store")


@contextmanager
def local_mode() -> Iterator[tuple[tuple[str, str], Opener]]:
    yield ("--path", "local"), lambda: QdrantClient(path="local")


@contextmanager
def server() -> Iterator[tuple[tuple[str, str], Opener]]:
    with running_server() as (url, _):
        yield ("--url", url), lambda: QdrantClient(url=url, check_compatibility=False)


@pytest.fixture(params=[embedded, local_mode, server])
def place(request: pytest.FixtureRequest, run: Run) -> Iterator[tuple[tuple[str, str], Opener]]:
    """The options that name a place, and what opens it beside the command."""
    with request.param() as opened:
        yield opened


def names(opener: Opener) -> set[str]:
    client = opener()
    try:
        return {info.name for info in client.get_collections().collections}
    finally:
        client.close()


class TestList:
    def test_collections_with_documents_and_aliases(self, run: Run) -> None:
        with open_folder("qdrant_data") as client:
            fill(client, documents=2, pieces=3)
            fill(client, "plants", documents=5, pieces=1)
            name_by(client, "live", "plants")
        lines = run("list").out.splitlines()
        assert lines[0].split() == [
            "collection", "points", "documents", "indexed", "bytes", "vectors", "model", "aliases",
        ]  # fmt: skip
        first, second = (line.split() for line in lines[1:])
        assert first[:3] == ["animals", "6", "2"]
        assert second[:3] == ["plants", "5", "5"]
        assert second[-5:] == ["8", "+", "sparse", "fake", "live"]

    def test_stats_without_a_service_says_the_same(self, run: Run) -> None:
        with open_folder("qdrant_data") as client:
            fill(client)
        assert run("list").out == run("stats").out
        assert run("list", "--json").out == run("stats", "--json").out
        (listed,) = json.loads(run("list", "--json").out)
        assert (listed["collection"], listed["documents"], listed["aliases"]) == ("animals", 2, [])
        assert listed["bytes"] > 1000

    def test_in_every_place(self, run: Run, place: tuple[tuple[str, str], Opener]) -> None:
        options, opener = place
        client = opener()
        fill(client)
        client.close()
        (listed,) = json.loads(run("list", *options, "--json").out)
        assert (listed["points"], listed["model"]) == (6, "fake")
        # A server counts documents by an index, which the tests' server has not.
        assert listed["documents"] == (None if options[0] == "--url" else 2)

    def test_points_without_a_document_are_of_none(self, run: Run) -> None:
        embedder = FakeEmbedder(8)
        with open_folder("qdrant_data") as client:
            store = build_vector_store(embedder, "loose", client=client)
            store.add(UnifiedTextEmbedding(embedder)([TextNode(text="a"), TextNode(text="b")]))
            build_vector_store(embedder, "vacant", client=client)
        documents = {
            listed["collection"]: listed["documents"] for listed in run("list", "--json").json
        }
        assert documents == {"loose": None, "vacant": 0}

    def test_a_long_name_stays_in_one_line_of_a_pipe(self, run: Run) -> None:
        name = "a-collection-with-a-very-long-name-" * 4
        with open_folder("qdrant_data") as client:
            fill(client, name)
        assert name in run("list").out

    def test_nothing_there(self, run: Run) -> None:
        ended = run("list", "--path", "nowhere")
        assert (ended.code, ended.out) == (1, "")
        assert "there is no such folder" in ended.err
        assert not Path("nowhere").exists()
        open_folder("empty").close()
        assert run("list", "--path", "empty").out == "the store has no collections\n"
        assert run("list", "--path", "empty", "--json").json == []


class TestInfo:
    def test_settings_records_and_fields(self, run: Run) -> None:
        with open_folder("qdrant_data") as client:
            fill(client)
            name_by(client, "live", "animals")
            write_choice(client, "animals", Fusion(weights=(1, 0.3), source="our judgements"))
            write_calibration(
                client,
                "animals",
                Calibration(
                    intercept=-6,
                    dense_gap=10,
                    sparse_share=1,
                    sparse_lead=0,
                    agreement=4,
                    background=0.2,
                    source="200 questions",
                    ece=0.0213,
                ),
            )
        ended = run("info", "live")
        assert (ended.code, ended.err) == (0, "")
        facts = {line[:28].strip(): line[28:] for line in ended.out.splitlines()}
        assert facts["collection"] == "animals"
        assert facts["aliases"] == "live"
        assert (facts["points"], facts["documents"]) == ("6", "2")
        assert facts["fingerprint"] == FakeEmbedder(8).fingerprint
        assert facts["vector text-dense"] == "8 numbers, Cosine"
        assert facts["vector text-sparse-new"] == "sparse"
        assert facts["ColBERT vectors"] == "none"
        assert facts["fusion"] == "RRF, k 60, weights 1 : 0.3, 20 candidates (our judgements)"
        assert facts["calibration"] == "200 questions, expected error 0.021"
        assert facts["payload indexes"] == "doc_id (keyword)"
        assert facts["files last changed"] == "2026-01-01 to 2026-01-02"
        assert facts["kind"] == "6 points, 2 values: even (3), odd (3)"
        assert facts["number"] == "6 points, 6 values"
        assert "doc_id" not in facts
        assert "_node_content" not in ended.out

    def test_json_in_every_place(self, run: Run, place: tuple[tuple[str, str], Opener]) -> None:
        options, opener = place
        client = opener()
        fill(client)
        client.close()
        told = run("info", "animals", *options, "--json").json
        assert (told["collection"], told["points"], told["sample"]) == ("animals", 6, 6)
        assert (told["fusion"], told["calibration"], told["colbert"]) == (None, None, None)
        kinds = next(field for field in told["fields"] if field["name"] == "kind")
        assert kinds == {
            "name": "kind",
            "points": 6,
            "distinct": 2,
            "frequent": [["even", 3], ["odd", 3]],
        }

    def test_stored_colbert_and_quantisation_are_told(self, run: Run) -> None:
        with open_folder("qdrant_data") as client:
            build_vector_store(FakeEmbedder(8), "pooled", client=client, colbert="pooled")
            client.create_collection(
                "theirs",
                qm.VectorParams(
                    size=4,
                    distance=qm.Distance.DOT,
                    on_disk=True,
                    quantization_config=qm.ScalarQuantization(
                        scalar=qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8)
                    ),
                ),
            )
            theirs = [
                qm.PointStruct(id=1, vector=[1, 0, 0, 0], payload={"metadata": {"a": [1, 2]}})
            ]
            client.upsert("theirs", theirs)
        told = run("info", "pooled").out
        assert "pooled by 2, turbo4" in told
        assert "without an index" in told
        ended = run("info", "theirs")
        assert (
            "vector (unnamed)            4 numbers, Dot, scalar quantisation, on disk" in ended.out
        )
        assert "metadata.a                1 points, 2 values" in ended.out
        assert "`adopt` proves which one made it" in ended.err

    def test_a_keyword_list_and_what_follows_from_it_are_told(self, run: Run) -> None:
        with open_folder("qdrant_data") as client:
            build_vector_store(
                FakeEmbedder(8), "words", client=client, keywords="bm25:german", colbert="full"
            )
        assert "8 + sparse + bm25 + ColBERT" in run("list").out
        told = " ".join(run("info", "words").out.split())
        assert "keyword list bm25:german" in told
        assert "fusion DBSF, weights 0.4 : 0.2 : 0.4, 100 candidates" in told
        assert "calibration not used: it holds for the model's own two lists alone" in told

    def test_a_record_of_a_later_version_is_told_and_nothing_fails(self, run: Run) -> None:
        with open_folder("qdrant_data") as client:
            fill(client)
            later = {"unified_embeddings_fusion": {"method": "telepathy"}}
            client.update_collection("animals", metadata=later)
        ended = run("info", "animals")
        assert ended.code == 0
        assert "unreadable: " in ended.out

    def test_none_of_that_name(self, run: Run) -> None:
        with open_folder("qdrant_data") as client:
            fill(client)
        ended = run("info", "nowhere")
        assert (ended.code, ended.out) == (1, "")
        assert "existing collections: 'animals'" in ended.err


class TestDrop:
    def test_in_every_place(self, run: Run, place: tuple[tuple[str, str], Opener]) -> None:
        options, opener = place
        client = opener()
        fill(client)
        fill(client, "plants")
        client.close()
        del client
        ended = run("drop", "animals", *options, "--yes")
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith("dropped 'animals' (6 points, ")
        assert names(opener) == {"plants"}

    def test_without_a_terminal_it_needs_yes_and_says_what_would_be_lost(self, run: Run) -> None:
        with open_folder("qdrant_data") as client:
            fill(client)
            name_by(client, "live", "animals")
        ended = run("drop", "animals")
        assert (ended.code, ended.out) == (1, "")
        for told in ("6 points", "of 2 documents", "made by fake", "'live'", "--yes"):
            assert told in ended.err
        assert names(lambda: open_folder("qdrant_data")) == {"animals"}

    def test_an_alias_is_refused_unless_told(self, run: Run) -> None:
        with open_folder("qdrant_data") as client:
            fill(client)
            name_by(client, "live", "animals")
        ended = run("drop", "live", "--yes")
        assert (ended.code, ended.out) == (1, "")
        assert "an alias of the collection 'animals'" in ended.err
        assert names(lambda: open_folder("qdrant_data")) == {"animals"}
        dropped = run("drop", "live", "--by-alias", "--yes", "--json").json["dropped"]
        assert (dropped["collection"], dropped["aliases"]) == ("animals", ["live"])
        with open_folder("qdrant_data") as client:
            assert client.get_collections().collections == []
            assert client.get_aliases().aliases == []

    def test_none_of_that_name(self, run: Run) -> None:
        with open_folder("qdrant_data") as client:
            fill(client)
        ended = run("drop", "nowhere", "--yes")
        assert (ended.code, ended.out) == (1, "")
        assert "existing collections: 'animals'" in ended.err
        assert run("drop", "nowhere", "--yes", "--path", "missing").code == 1
        assert not Path("missing").exists()

    @pytest.mark.skipif(os.name != "posix", reason="types into a terminal of its own")
    @pytest.mark.parametrize(("typed", "is_dropped"), [("animals", True), ("animal", False)])
    def test_the_name_is_asked_for_on_a_terminal(
        self, run: Run, tmp_path: Path, typed: str, is_dropped: bool
    ) -> None:
        with open_folder("qdrant_data") as client:
            fill(client)
        typing, terminal = os.openpty()
        process = subprocess.Popen(
            [COMMAND, "drop", "animals"],
            cwd=tmp_path,
            env=environment(),
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=terminal,
        )
        os.close(terminal)
        shown = b""
        while b"Type the collection's name" not in shown:
            shown += os.read(typing, 1024)
        os.write(typing, f"{typed}\n".encode())
        out, _ = process.communicate(timeout=60)
        os.close(typing)
        assert process.returncode == (0 if is_dropped else 1)
        assert b"It cannot be undone" in shown
        assert out.startswith(b"dropped 'animals'" if is_dropped else b"")
        assert names(lambda: open_folder("qdrant_data")) == (set() if is_dropped else {"animals"})
