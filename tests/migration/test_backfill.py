"""Every point of the old collection arrives in the new one, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from moving import (
    ALIAS,
    SOURCE,
    TARGET,
    assert_moved,
    dual_store,
    make_node,
    make_old_collection,
    node_id,
    plan_by_hand,
    texts_of,
)
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.migration.backfill import Watching, migrate_points
from unified_embeddings.migration.journal import Journal, read_events, read_record
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client


@pytest.fixture(params=["memory", "edge"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    opened: Client
    if request.param == "memory":
        opened = QdrantClient(":memory:")
    else:
        opened = EdgeQdrantClient(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder(model_name="new")


TEXTS = {number: f"Note {number} says that foxes jump {number * 7}." for number in range(50)}


def test_every_point_arrives_once_with_the_new_vectors(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    make_old_collection(client, TEXTS)
    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        migrate_points(journal, client, embedder, batch=7)
        record = journal.record
    assert record.state == "backfilled"
    assert (record.counters.read, record.counters.written) == (50, 50)
    assert record.counters.embedded == 50
    assert_moved(client, embedder)
    assert client.count(SOURCE).count == 50


def test_after_an_interruption_nothing_is_embedded_twice_but_the_batch_in_hand(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    make_old_collection(client, TEXTS)
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt

    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        with pytest.raises(KeyboardInterrupt):
            migrate_points(journal, client, embedder, batch=7, watching=Watching(check=stop))
        first = journal.record.counters
    assert 0 < first.written < 50
    fresh = FakeEmbedder(model_name="new")
    with Journal.open(tmp_path / "journal") as journal:
        migrate_points(journal, client, fresh, batch=7)
        assert journal.record.counters.read == 50
        assert journal.record.counters.embedded <= 50 + 7
    assert fresh.stats().texts <= 50 - first.written + 7 if hasattr(fresh.stats(), "texts") else True
    assert_moved(client, embedder)
