"""Bulk's worker processes embed for a migration; a deadly text costs itself and no other."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import poisoned_model
import pytest
from moving import (
    SOURCE,
    TARGET,
    assert_moved,
    make_old_collection,
    node_id,
    plan_by_hand,
    texts_of,
)
from qdrant_client import QdrantClient

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.migration.backfill import Watching, migrate_points
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.verify import verify_migration
from unified_embeddings.migration.worker_embedding import in_workers

TEXTS = {number: f"Note {number} says that foxes jump {number * 7}." for number in range(60)}


def test_workers_move_all_but_the_texts_at_fault(tmp_path: Path) -> None:
    client = QdrantClient(":memory:")
    make_old_collection(client, {**TEXTS, 7: "deadly", 8: "poison"})
    embedder = FakeEmbedder(model_name="new")
    workers = partial(in_workers, embedder, {}, 2, make=poisoned_model.make)
    with plan_by_hand(client, tmp_path, embedder) as journal:
        migrate_points(journal, client, embedder, batch=16, open_embedding=workers)
        assert journal.failed.keys() == {node_id(7), node_id(8)}
        assert "ends the worker" in journal.failed[node_id(7)]
        assert "not this one" in journal.failed[node_id(8)]
        assert journal.record.state == "backfilled"
        report = verify_migration(journal, client, embedder, accept_failed=True)
        assert report.problems == ()
        assert report.embedded_again == 58
    assert embedder.stats().texts == 58  # by the verification: the workers have embedded the rest


def test_after_ctrl_c_what_was_in_hand_is_written_and_a_further_run_goes_on(
    tmp_path: Path,
) -> None:
    client = QdrantClient(":memory:")
    make_old_collection(client, TEXTS)
    embedder = FakeEmbedder(model_name="new")
    workers = partial(in_workers, embedder, {}, 1, make=poisoned_model.make)

    def stop() -> None:
        if client.collection_exists(TARGET) and client.count(TARGET).count:
            raise KeyboardInterrupt

    with plan_by_hand(client, tmp_path, embedder) as journal:
        with pytest.raises(KeyboardInterrupt):
            migrate_points(
                journal,
                client,
                embedder,
                batch=4,
                open_embedding=workers,
                watching=Watching(check=stop),
            )
        assert 0 < journal.record.counters.read < 60
        assert client.count(TARGET).count >= journal.record.counters.read
        migrate_points(journal, client, embedder, batch=4, open_embedding=workers)
    assert_moved(client, embedder)


def test_a_model_that_fails_on_everything_is_not_the_texts_fault(tmp_path: Path) -> None:
    client = QdrantClient(":memory:")
    make_old_collection(client, {number: f"poison {number}" for number in range(20)})
    embedder = FakeEmbedder(model_name="new")
    workers = partial(in_workers, embedder, {}, 1, make=poisoned_model.make)
    with plan_by_hand(client, tmp_path, embedder) as journal:
        with pytest.raises(MigrationError, match=r"all 20 texts.*not this one"):
            migrate_points(journal, client, embedder, open_embedding=workers)
        assert not journal.failed
    assert len(texts_of(client, SOURCE)) == 20


def test_a_number_of_workers_is_a_number() -> None:
    with pytest.raises(InputError, match="workers"), in_workers(FakeEmbedder(), {}, 0):
        pass
