"""The fusion chosen for a collection: kept in its metadata, through all that else happens to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from qdrant_server import running_server
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import StoreError
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.stores.clearing import clear_collection
from unified_embeddings.stores.copying import copy_collection
from unified_embeddings.stores.creating import ensure_collection
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.fusion_choice import FUSION_KEY, read_choice, write_choice
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import METADATA_KEY, recorded_model

CHOICE = Fusion((0.6, 0.4), k=7, candidates=100, source="our judgements", method="dbsf")
EMBEDDER = FakeEmbedder(dimension=4)


class Upgraded(FakeEmbedder):
    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        return ("former",)


@pytest.fixture(params=["memory", "embedded", "server"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    if request.param == "embedded":
        with EdgeQdrantClient(tmp_path / "store") as client:
            ensure_collection(client, "docs", EMBEDDER)
            yield client
    elif request.param == "memory":
        memory = QdrantClient(":memory:")
        ensure_collection(memory, "docs", EMBEDDER)
        yield memory
        memory.close()
    else:
        with running_server() as (url, _):
            remote = QdrantClient(url=url, check_compatibility=False)
            ensure_collection(remote, "docs", EMBEDDER)
            yield remote
            remote.close()


def choice_of(client: Client, name: str = "docs") -> Fusion | None:
    return read_choice(name, client.get_collection(name))


def fingerprint_of(client: Client, name: str = "docs") -> str:
    model = recorded_model(client.get_collection(name))
    assert model is not None
    return model.fingerprint


def test_a_new_collection_has_none(client: Client) -> None:
    assert choice_of(client) is None


def test_it_is_kept_beside_the_models_record(client: Client) -> None:
    write_choice(client, "docs", CHOICE)
    assert choice_of(client) == CHOICE
    assert fingerprint_of(client) == EMBEDDER.fingerprint


def test_another_replaces_it_and_none_removes_it(client: Client) -> None:
    write_choice(client, "docs", CHOICE)
    other = Fusion((1.0, 0.0))
    write_choice(client, "docs", other)
    assert choice_of(client) == other
    for _ in range(2):  # also where there is none
        write_choice(client, "docs", None)
        assert choice_of(client) is None
    assert fingerprint_of(client) == EMBEDDER.fingerprint


def test_a_new_fingerprint_of_the_model_leaves_it_alone(client: Client) -> None:
    """The collection of an earlier version gets today's fingerprint when it is opened."""
    write_choice(client, "docs", CHOICE)
    former = {"fingerprint": "former", "model": "fake", "revision": ""}
    client.update_collection("docs", metadata={METADATA_KEY: former})
    ensure_collection(client, "docs", Upgraded(dimension=4))
    assert fingerprint_of(client) == EMBEDDER.fingerprint
    assert choice_of(client) == CHOICE


def test_clearing_keeps_it(client: Client) -> None:
    write_choice(client, "docs", CHOICE)
    clear_collection(client, "docs")
    assert choice_of(client) == CHOICE


@pytest.mark.parametrize("client", ["memory", "embedded"], indirect=True)
def test_a_copy_has_it(client: Client, tmp_path: Path) -> None:
    write_choice(client, "docs", CHOICE)
    with EdgeQdrantClient(tmp_path / "target") as target:
        copy_collection(client, target, "docs", target_name="copied")
        assert choice_of(target, "copied") == CHOICE


def test_a_folder_keeps_it_when_it_is_opened_again(tmp_path: Path) -> None:
    with EdgeQdrantClient(tmp_path) as client:
        ensure_collection(client, "docs", EMBEDDER)
        write_choice(client, "docs", CHOICE)
    with EdgeQdrantClient(tmp_path) as client:
        assert choice_of(client) == CHOICE


@pytest.mark.parametrize(
    "record",
    ["dbsf", {"weights": [1, 1], "method": "learned"}, {"weights": [1, 1], "boost": 2}, {}],
)
def test_a_record_of_another_version_is_refused_with_the_way_out(record: object) -> None:
    client = QdrantClient(":memory:")
    ensure_collection(client, "docs", EMBEDDER)
    client.update_collection("docs", metadata={FUSION_KEY: record})
    with pytest.raises(StoreError, match=r"fusion='model'.*tune docs --reset"):
        choice_of(client)


def test_a_store_that_keeps_no_metadata_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server before 1.16."""
    client = QdrantClient(":memory:")
    client.create_collection(
        "docs", vectors_config=qm.VectorParams(size=4, distance=qm.Distance.COSINE)
    )
    monkeypatch.setattr(client, "update_collection", lambda *_, **__: True)
    with pytest.raises(StoreError, match=r"from version 1\.16"):
        write_choice(client, "docs", CHOICE)
