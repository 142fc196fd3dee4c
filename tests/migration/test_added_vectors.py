"""Heads added to a collection: what it has stays, and an interruption costs nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import MetadataMode
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.exceptions import UnexpectedResponse

from foreign import fill, make_nodes, make_texts
from qdrant_server import running_server
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import FingerprintMismatchError, InputError, StoreError
from unified_embeddings.llama.payloads import build_payloads, own_metadata
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration.added_vectors import add_vectors
from unified_embeddings.migration.adoption import adopt_collection
from unified_embeddings.migration.heads import Watching
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR
from unified_embeddings.stores.stored_colbert import COLBERT_VECTOR

NODES = make_nodes(make_texts(150))
TEXTS = {int(node.node_id): node.get_content(metadata_mode=MetadataMode.EMBED) for node in NODES}


@pytest.fixture(params=["memory", "embedded", "server"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    if request.param == "memory":
        yield QdrantClient(":memory:")
    elif request.param == "embedded":
        with EdgeQdrantClient(tmp_path / "store") as embedded:
            yield embedded
    else:
        with running_server() as (url, _):
            yield QdrantClient(url=url, check_compatibility=False)


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder(16)


def make(client: Client, embedder: FakeEmbedder, **options: Any) -> None:
    fill(client, "docs", embedder, NODES, **options)
    adopt_collection(client, "docs", embedder)


def read(client: Client, name: str = "docs") -> dict[int, qm.Record]:
    records = client.retrieve(name, list(TEXTS), with_payload=True, with_vectors=True)
    return {int(record.id): record for record in records}


def check_all(
    client: Client,
    embedder: FakeEmbedder,
    before: Mapping[int, qm.Record],
    name: str = "docs",
    *,
    heads: tuple[str, ...] = ("sparse", "colbert"),
) -> None:
    """Each point has its old vectors and payload, and the new vectors of its own text."""
    after = read(client, name)
    assert after.keys() == before.keys()
    expected = embedder.encode_documents([TEXTS[key] for key in after], colbert=True)
    assert expected.sparse is not None
    assert expected.colbert is not None
    for place, (key, record) in enumerate(after.items()):
        old = before[key]
        assert record.payload == old.payload
        assert isinstance(record.vector, dict)
        assert isinstance(old.vector, dict)
        assert record.vector[DENSE_VECTOR] == old.vector[DENSE_VECTOR]
        if "sparse" in heads:
            sparse = record.vector[SPARSE_VECTOR]
            assert isinstance(sparse, qm.SparseVector)
            stored = dict(zip(sparse.indices, sparse.values, strict=True))
            assert stored == pytest.approx(dict(expected.sparse[place]))
        if "colbert" in heads:
            np.testing.assert_allclose(
                np.array(record.vector[COLBERT_VECTOR]), expected.colbert[place], atol=1e-6
            )


def test_both_heads_are_added_in_place_and_searched(client: Client, embedder: FakeEmbedder) -> None:
    make(client, embedder)
    dense_only = build_vector_store(embedder, "docs", client=client)
    with pytest.raises(StoreError, match="unified-embeddings add-vectors docs --sparse"):
        UnifiedHybridRetriever(dense_only, embedder)
    before = read(client)
    seen: list[int] = []
    watching = Watching(on_total=seen.append, on_points=seen.append)
    report = add_vectors(client, "docs", embedder, ["sparse", "colbert"], watching=watching)
    assert (report.target, report.is_in_place, report.problems) == ("docs", True, {})
    assert (report.added, report.total) == (150, 150)
    assert seen[0] == sum(seen[1:]) == 150
    check_all(client, embedder, before)
    store = build_vector_store(embedder, "docs", client=client)
    retriever = UnifiedHybridRetriever(store, embedder, similarity_top_k=1, mode="sparse")
    assert retriever.retrieve(NODES[7].text)[0].node.node_id == "7"
    again = add_vectors(client, "docs", embedder, ["sparse", "colbert"])
    assert (again.added, again.total) == (0, 150)


def test_colbert_is_scored_row_by_row(client: Client, embedder: FakeEmbedder) -> None:
    make(client, embedder)
    add_vectors(client, "docs", embedder, ["colbert"])
    (query,) = embedder.encode_query(NODES[3].text, colbert=True).colbert or []
    found = client.query_points("docs", query=query.tolist(), using=COLBERT_VECTOR, limit=1).points
    assert found[0].id == 3
    (own,) = embedder.encode_documents([TEXTS[3]], colbert=True).colbert or []
    assert found[0].score == pytest.approx(float((query @ own.T).max(axis=1).sum()), rel=1e-4)


def test_a_server_builds_no_index_over_colbert_vectors(embedder: FakeEmbedder) -> None:
    with running_server() as (url, _):
        client = QdrantClient(url=url, check_compatibility=False)
        make(client, embedder)
        sent: list[Any] = []
        original = client.update_collection

        def note(name: str, **options: Any) -> bool:
            sent.append((name, options))
            return original(name, **options)

        client.update_collection = note  # type: ignore[method-assign, assignment]
        add_vectors(client, "docs", embedder, ["sparse", "colbert"])
    diff = qm.VectorParamsDiff(hnsw_config=qm.HnswConfigDiff(m=0))
    assert sent[0][1].keys() == {"metadata"}  # how the rows are pooled, before there are any
    assert sent[1:] == [("docs", {"vectors_config": {COLBERT_VECTOR: diff}})]


def test_a_text_too_long_for_a_multi_vector_is_pooled_until_it_fits() -> None:
    client, wide = QdrantClient(":memory:"), FakeEmbedder(4096)
    nodes = make_nodes([*make_texts(19), *make_texts(1, words=300)])
    fill(client, "docs", wide, nodes)
    adopt_collection(client, "docs", wide)
    report = add_vectors(client, "docs", wide, ["sparse", "colbert"])
    assert (report.added, report.problems) == (20, {})
    (record,) = client.retrieve("docs", [19], with_vectors=True)
    assert np.shape(record.vector[COLBERT_VECTOR]) == (2**20 // 4096, 4096)


def test_an_interrupted_run_is_resumed(client: Client, embedder: FakeEmbedder) -> None:
    make(client, embedder)
    before = read(client)
    steps = 0

    def interrupt() -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_vectors(client, "docs", embedder, ["sparse"], watching=Watching(check=interrupt))
    report = add_vectors(client, "docs", embedder, ["sparse"])
    assert 0 < report.added < 150
    check_all(client, embedder, before, heads=("sparse",))


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_killed_run_is_resumed(tmp_path: Path, embedder: FakeEmbedder) -> None:
    with EdgeQdrantClient(tmp_path / "store") as client:
        make(client, embedder)
        before = read(client)
    program = (
        "import os, signal, sys\n"
        "from unified_embeddings.embedders.fake import FakeEmbedder\n"
        "from unified_embeddings.migration.added_vectors import add_vectors\n"
        "from unified_embeddings.migration.heads import Watching\n"
        "from unified_embeddings.stores.edge.client import EdgeQdrantClient\n"
        "done = 0\n"
        "def count(points):\n"
        "    global done\n"
        "    done += points\n"
        "    if done >= int(sys.argv[2]):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "client = EdgeQdrantClient(sys.argv[1])\n"
        "watching = Watching(on_points=count)\n"
        "heads = ['sparse', 'colbert']\n"
        "add_vectors(client, 'docs', FakeEmbedder(16), heads, watching=watching)\n"
    )
    for points in ("1", "64"):
        ended = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "store"), points], check=False
        )
        assert ended.returncode == -signal.SIGKILL
    with EdgeQdrantClient(tmp_path / "store") as client:
        report = add_vectors(client, "docs", embedder, ["sparse", "colbert"])
        assert report.added == 150 - 128  # two pages were written before the two deaths
        check_all(client, embedder, before)


def test_points_without_text_are_told_and_left_as_they_are(
    client: Client, embedder: FakeEmbedder
) -> None:
    make(client, embedder)
    client.overwrite_payload("docs", {"title": "nothing"}, points=[4, 5])
    report = add_vectors(client, "docs", embedder, ["sparse"])
    assert report.added == 148
    ((problem, count),) = report.problems.items()
    assert "no '_node_content'" in problem
    assert count == 2
    assert set(read(client)[4].vector or {}) == {DENSE_VECTOR}


def test_a_text_that_changes_meanwhile_gets_the_vectors_of_the_new_text(
    embedder: FakeEmbedder,
) -> None:
    client = QdrantClient(":memory:")
    make(client, embedder)
    (new,) = make_nodes(["Quite another text about glaciers."])
    payload = node_to_metadata_dict(new)
    original = client.update_vectors
    changed = False

    def change_first(name: str, points: Any, **options: Any) -> Any:
        nonlocal changed
        if not changed:
            changed = True
            client.overwrite_payload(name, payload, points=[0])
            client.delete(name, [1])  # and another is deleted
        return original(name, points, **options)

    client.update_vectors = change_first  # type: ignore[method-assign, assignment]
    report = add_vectors(client, "docs", embedder, ["sparse"])
    assert report.total == 149
    (record,) = client.retrieve("docs", [0], with_vectors=True)
    assert isinstance(record.vector, dict)
    sparse = record.vector[SPARSE_VECTOR]
    assert isinstance(sparse, qm.SparseVector)
    text = new.get_content(metadata_mode=MetadataMode.EMBED)
    (expected,) = embedder.encode_documents([text]).sparse or []
    assert set(sparse.indices) == set(expected)
    lacking = qm.Filter(must_not=[qm.HasVectorCondition(has_vector=SPARSE_VECTOR)])
    assert client.count("docs", lacking).count == 0


# --- a second collection --------------------------------------------------------------------------


def make_old_server(client: Client, status: int = 404) -> None:
    """Let a client answer as a server does that knows no request for a new vector name."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise UnexpectedResponse(status, "Not Found", b"", None)  # type: ignore[arg-type]

    client.create_vector_name = refuse  # type: ignore[method-assign]


def test_an_old_server_gets_a_second_collection(embedder: FakeEmbedder) -> None:
    client = QdrantClient(":memory:")
    make(client, embedder, metadata={"owner": "me"})
    make_old_server(client)
    before = read(client)
    report = add_vectors(client, "docs", embedder, ["sparse", "colbert"])
    assert (report.target, report.is_in_place, report.alias) == ("docs-sparse-colbert", False, "")
    assert (report.added, report.total) == (150, 150)
    check_all(client, embedder, before, "docs-sparse-colbert")
    info, old_info = client.get_collection("docs-sparse-colbert"), client.get_collection("docs")
    assert info.config.metadata == old_info.config.metadata
    vectors = info.config.params.vectors
    assert isinstance(vectors, dict)
    assert vectors[COLBERT_VECTOR].hnsw_config == qm.HnswConfigDiff(m=0)
    assert read(client) == before
    build_vector_store(embedder, "docs-sparse-colbert", client=client)


def test_a_second_collection_on_request_interrupted_and_reached_by_an_alias(
    tmp_path: Path, embedder: FakeEmbedder
) -> None:
    with EdgeQdrantClient(tmp_path / "store") as client:
        make(client, embedder)
        before = read(client)
        client.update_collection_aliases(
            [
                qm.CreateAliasOperation(
                    create_alias=qm.CreateAlias(collection_name="docs", alias_name="live")
                )
            ]
        )
        steps = 0

        def interrupt() -> None:
            nonlocal steps
            steps += 1
            if steps == 3:
                raise KeyboardInterrupt

        def run(watching: Watching = Watching()) -> Any:  # noqa: B008
            return add_vectors(
                client, "docs", embedder, ["sparse"],
                copy_to="new", alias="live", watching=watching,
            )  # fmt: skip

        with pytest.raises(KeyboardInterrupt):
            run(Watching(check=interrupt))
        assert client.get_aliases().aliases[0].collection_name == "docs"
        report = run()
        assert 0 < report.added < 150
        assert (report.total, report.alias) == (150, "live")
        assert client.get_aliases().aliases[0].collection_name == "new"
        check_all(client, embedder, before, "new", heads=("sparse",))
        assert read(client) == before
        assert run().added == 0  # once more, without harm


def test_an_alias_stays_where_the_copy_is_not_complete(embedder: FakeEmbedder) -> None:
    client = QdrantClient(":memory:")
    make(client, embedder)
    for alias, owner in (("live", "docs"), ("elsewhere", "other")):
        if owner == "other":
            fill(client, "other", embedder, NODES[:20])
        operation = qm.CreateAlias(collection_name=owner, alias_name=alias)
        client.update_collection_aliases([qm.CreateAliasOperation(create_alias=operation)])
    with pytest.raises(StoreError, match=r"'elsewhere'.*should name 'docs', but it names 'other'"):
        add_vectors(client, "docs", embedder, ["sparse"], copy_to="new", alias="elsewhere")
    client.delete("docs", [0])  # the copy has it still
    with pytest.raises(StoreError, match="has 149 points and 'new' has 150"):
        add_vectors(client, "docs", embedder, ["sparse"], copy_to="new", alias="live")
    client.delete("new", [0])
    changed = NODES[1].model_copy(update={"text": "Changed after it was copied."})
    (payload,) = build_payloads([changed])
    client.overwrite_payload("docs", payload, [1])
    expected = "1 are missing or have another payload, such as 1: .*Delete"
    with pytest.raises(StoreError, match=expected):
        add_vectors(client, "docs", embedder, ["sparse"], copy_to="new", alias="live")
    owners = {alias.alias_name: alias.collection_name for alias in client.get_aliases().aliases}
    assert owners == {"live": "docs", "elsewhere": "other"}
    client.delete_collection("new")
    add_vectors(client, "docs", embedder, ["sparse"], copy_to="new", alias="live")
    (record,) = client.retrieve("new", [1])
    assert record.payload == payload


def test_a_copy_is_a_collection_of_ours(embedder: FakeEmbedder) -> None:
    client = QdrantClient(":memory:")
    payloads = [{"page_content": node.text, "metadata": {"page": 3}} for node in NODES]
    make(client, embedder, dense_name="", mode=MetadataMode.NONE, payloads=payloads)
    before = read(client)
    report = add_vectors(client, "docs", embedder, ["sparse"], copy_to="new")
    assert report.added == 150
    after = read(client, "new")
    for key, record in after.items():
        assert isinstance(record.vector, dict)
        assert record.vector[DENSE_VECTOR] == before[key].vector
    store = build_vector_store(embedder, "new", client=client)
    (found,) = UnifiedHybridRetriever(store, embedder, similarity_top_k=1).retrieve(NODES[9].text)
    assert (found.node.node_id, found.text) == ("9", NODES[9].text)
    assert own_metadata(found.node) == {"page": 3}
    assert read(client) == before


def test_a_copy_without_further_heads() -> None:
    client, dense_only = QdrantClient(":memory:"), FakeEmbedder(16, heads=("dense",))
    make(client, dense_only, dense_name="")
    report = add_vectors(client, "docs", dense_only, [], copy_to="new")
    assert (report.added, report.heads) == (150, ())
    store = build_vector_store(dense_only, "new", client=client)
    retriever = UnifiedHybridRetriever(store, dense_only, similarity_top_k=1, mode="dense")
    assert retriever.retrieve(TEXTS[9])[0].node.node_id == "9"


# --- what is refused ------------------------------------------------------------------------------


def test_a_collection_must_record_its_model_first(client: Client, embedder: FakeEmbedder) -> None:
    fill(client, "docs", embedder, NODES[:20])
    with pytest.raises(StoreError, match="unified-embeddings adopt docs"):
        add_vectors(client, "docs", embedder, ["sparse"])
    adopt_collection(client, "docs", embedder)
    with pytest.raises(FingerprintMismatchError):
        add_vectors(client, "docs", FakeEmbedder(16, model_name="other"), ["sparse"])
    assert client.get_collection("docs").config.params.sparse_vectors in (None, {})


def test_heads_that_the_model_does_not_give(embedder: FakeEmbedder) -> None:
    client = QdrantClient(":memory:")
    make(client, embedder)
    dense_only = FakeEmbedder(16, heads=("dense",))
    with pytest.raises(InputError, match="gives dense vectors, no sparse ones"):
        add_vectors(client, "docs", dense_only, ["sparse"])
    with pytest.raises(InputError, match="expected heads to add: sparse, colbert or both"):
        add_vectors(client, "docs", embedder, [])
    with pytest.raises(InputError, match="got dense"):
        add_vectors(client, "docs", embedder, ["dense"])


def test_another_vector_of_the_name_is_refused(client: Client, embedder: FakeEmbedder) -> None:
    make(client, embedder)
    client.create_vector_name(
        "docs",
        COLBERT_VECTOR,
        qm.DenseVectorNameConfig(dense=qm.DenseVectorConfig(size=3, distance=qm.Distance.COSINE)),
    )
    with pytest.raises(StoreError, match="3 x Cosine, one vector, expected 16 x Cosine, multi"):
        add_vectors(client, "docs", embedder, ["colbert"])


def test_a_target_that_does_not_fit_is_refused(embedder: FakeEmbedder) -> None:
    client = QdrantClient(":memory:")
    make(client, embedder)
    fill(client, "other", embedder, NODES[:20])
    adopt_collection(client, "other", embedder)
    with pytest.raises(StoreError, match="it exists and lacks the vectors 'text-sparse-new'"):
        add_vectors(client, "docs", embedder, ["sparse"], copy_to="other")
    with pytest.raises(InputError, match="cannot be copied onto itself"):
        add_vectors(client, "docs", embedder, ["sparse"], copy_to="docs")


def test_a_server_that_fails_is_an_error_and_no_reason_to_copy(embedder: FakeEmbedder) -> None:
    client = QdrantClient(":memory:")
    make(client, embedder)
    make_old_server(client, status=500)
    with pytest.raises(StoreError, match="adding the vector 'text-sparse-new'"):
        add_vectors(client, "docs", embedder, ["sparse"])
    assert [each.name for each in client.get_collections().collections] == ["docs"]
