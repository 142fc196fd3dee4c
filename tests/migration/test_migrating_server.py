"""A migration on a server by its address, with the code of the embedded store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moving import (
    ALIAS,
    SOURCE,
    assert_moved,
    make_node,
    make_old_collection,
    node_id,
    old_store,
    texts_of,
)
from qdrant_client import QdrantClient

import qdrant_server
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.migration.backfill import migrate_points
from unified_embeddings.migration.dual_store import DualWritingStore
from unified_embeddings.migration.journal import Journal, read_record
from unified_embeddings.migration.opening import open_place
from unified_embeddings.migration.plan import plan_migration
from unified_embeddings.migration.verify import verify_migration

TEXTS = {number: f"Note {number} says that foxes jump {number * 7}." for number in range(30)}

Request = tuple[str, str, str, Any]


class Server:
    """A server, the client that holds its collections, and the requests that it gets."""

    def __init__(self, url: str, inner: QdrantClient, requests: list[Request]) -> None:
        self.url = url
        self.inner = inner
        self.requests = requests

    def bodies(self, method: str, action: str, name: str) -> list[Any]:
        return [body for *key, body in self.requests if key == [method, action, name]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    requests: list[Request] = []
    answer = qdrant_server._call

    def call(client: QdrantClient, method: str, action: str, name: str, body: Any) -> Any:
        requests.append((method, action, name, body))
        return answer(client, method, action, name, body)

    monkeypatch.setattr(qdrant_server, "_call", call)
    with qdrant_server.running_server() as (url, inner):
        yield Server(url, inner, requests)


def test_a_collection_is_moved_on_a_server(server: Server, tmp_path: Path) -> None:
    """This server ignores `update_mode`, as old ones do: both sides end equal all the same."""
    make_old_collection(server.inner, TEXTS)
    place = {"url": server.url}
    client = open_place(place)
    embedder = FakeEmbedder(model_name="new")
    planned = plan_migration(
        client, ALIAS, embedder, tmp_path, place=place, model={"model_choice": "fake"}
    )
    assert planned.estimate.free_bytes is None
    assert [method for method, *_ in server.requests if method != "GET"] == [
        "POST",  # a page of points, for the layout
        "POST",  # their number
        "POST",  # the points, for the estimate
    ]
    target = planned.record.target
    old = old_store(client, ALIAS)
    writer = DualWritingStore(old, tmp_path, embedder=embedder)
    with Journal.open(tmp_path) as journal:
        migrate_points(journal, client, embedder, batch=10)
        writer.add([make_node(3, "Changed."), make_node(70, "New.")])
        writer.delete_nodes([node_id(5)])
        assert writer.failures == 0
        assert texts_of(server.inner, target)[node_id(3)] == "Changed."
        assert node_id(5) not in texts_of(server.inner, target)
        migrate_points(journal, client, embedder)
        assert journal.record.counters.repaired == 0
        assert verify_migration(journal, client, embedder).problems == ()
    assert read_record(tmp_path).state == "verified"
    assert_moved(server.inner, embedder, target=target)
    modes = [body.get("update_mode") for body in server.bodies("PUT", "points", target)]
    assert modes[:3] == ["insert_only"] * 3
    assert None in modes  # a live write replaces
    scrolled = server.bodies("POST", "points/scroll", SOURCE)
    assert all(body.get("with_vector") in (False, None) for body in scrolled)


def test_requests_stay_below_what_a_server_accepts(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unified_embeddings.migration.sides._REQUEST_BYTES", 20_000)
    make_old_collection(server.inner, TEXTS)
    client = open_place({"url": server.url})
    embedder = FakeEmbedder(model_name="new")
    planned = plan_migration(client, ALIAS, embedder, tmp_path, place={"url": server.url}, model={})
    with Journal.open(tmp_path) as journal:
        migrate_points(journal, client, embedder, batch=100)
    sizes = [len(body["points"]) for body in server.bodies("PUT", "points", planned.record.target)]
    assert sum(sizes) == 30
    assert len(sizes) > 3
