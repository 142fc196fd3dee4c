"""A verification finds every kind of fault, names it, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moving import (
    SOURCE,
    TARGET,
    let_alias_name,
    make_node,
    make_old_collection,
    node_id,
    old_store,
    plan_by_hand,
)
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import FingerprintMismatchError
from unified_embeddings.migration.backfill import migrate_points
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.journal import Journal, read_record
from unified_embeddings.migration.states import MigrationStateError
from unified_embeddings.migration.verify import VerifyReport, verify_migration
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client

TEXTS = {number: f"Note {number} says that foxes jump {number * 7}." for number in range(30)}


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified_embeddings.migration.sides._PAUSES", ())


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


@pytest.fixture
def journal(client: Client, tmp_path: Path, embedder: FakeEmbedder) -> Iterator[Journal]:
    """The journal of a migration whose points were copied."""
    make_old_collection(client, TEXTS)
    with plan_by_hand(client, tmp_path / "journal", embedder) as opened:
        migrate_points(opened, client, embedder)
        yield opened


def put(
    client: Client,
    number: int,
    vectors: Mapping[str, object] | None = None,
    payload: Mapping[str, object] | None = None,
) -> None:
    """Replace parts of a point of the target."""
    (point,) = client.retrieve(TARGET, [node_id(number)], with_vectors=True)
    assert isinstance(point.vector, dict)
    changed: Any = {**point.vector, **(vectors or {})}
    client.upsert(
        TARGET,
        [
            qm.PointStruct(
                id=point.id, vector=changed, payload={**(point.payload or {}), **(payload or {})}
            )
        ],
    )


def test_what_was_copied_is_clean(client: Client, journal: Journal, embedder: FakeEmbedder) -> None:
    report = verify_migration(journal, client, embedder)
    assert report.is_clean
    assert report.problems == ()
    assert (report.source_points, report.target_points, report.checked_vectors) == (30, 30, 30)
    assert report.embedded_again == 30
    assert report.lowest_dense_cosine == pytest.approx(1.0, abs=1e-5)
    assert report.lowest_sparse_cosine == pytest.approx(1.0, abs=1e-5)
    record = read_record(journal.folder)
    assert record.state == "verified"
    assert record.verify is not None
    assert record.verify["is_clean"] is True


Damage = Callable[[Client], object]


def other_direction(dimension: int = 64) -> list[float]:
    vector = np.zeros(dimension)
    vector[0] = 1.0
    return [float(number) for number in vector]


def delete_a_point(client: Client) -> None:
    client.delete(TARGET, qm.PointIdsList(points=[node_id(3)]))


def add_a_point(client: Client) -> None:
    (point,) = client.retrieve(TARGET, [node_id(3)], with_vectors=True)
    client.upsert(
        TARGET,
        [qm.PointStruct(id=node_id(900), vector=point.vector, payload=point.payload)],  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (delete_a_point, "1 points are missing in the target, such as"),
        (add_a_point, "1 points are in the target only, such as"),
        (
            lambda client: put(client, 3, payload={"page": 77}),
            "1 points have another text or other metadata in the target, such as",
        ),
        (
            lambda client: put(client, 3, {"text-dense": other_direction()}),
            "1 points have a dense vector that is not the model's for their text, such as",
        ),
        (
            lambda client: put(client, 3, {"text-dense": [0.0] * 64}),
            "1 points have a dense vector whose length is not 1, such as",
        ),
        (
            lambda client: put(
                client, 3, {"text-sparse-new": qm.SparseVector(indices=[5], values=[1.0])}
            ),
            "1 points have a sparse vector that is not the model's for their text, such as",
        ),
        (
            lambda client: client.delete_vectors(TARGET, ["text-sparse-new"], [node_id(3)]),
            "1 points have a sparse vector that is not the model's for their text, such as",
        ),
        (
            lambda client: client.delete_vectors(TARGET, ["text-dense"], [node_id(3)]),
            "1 points have no dense vector of the model's dimension, such as",
        ),
    ],
)
def test_each_fault_is_named_and_mended_by_a_further_start(
    client: Client, journal: Journal, embedder: FakeEmbedder, damage: Damage, problem: str
) -> None:
    damage(client)
    report = verify_migration(journal, client, embedder)
    assert not report.is_clean
    (found,) = report.problems
    assert found.startswith(problem)
    assert repr(node_id(900 if damage is add_a_point else 3)) in found
    assert journal.record.state == "backfilled"
    assert journal.record.verify is not None
    assert journal.record.verify["problems"] == [found]
    migrate_points(journal, client, embedder)
    assert verify_migration(journal, client, embedder).problems == ()


def test_a_verified_migration_that_is_not_clean_any_more_says_so(
    client: Client, journal: Journal, embedder: FakeEmbedder
) -> None:
    verify_migration(journal, client, embedder)
    delete_a_point(client)
    report = verify_migration(journal, client, embedder)
    assert not report.is_clean
    assert journal.record.verify is not None
    assert journal.record.verify["is_clean"] is False
    migrate_points(journal, client, embedder)
    assert verify_migration(journal, client, embedder).is_clean


def test_points_without_text_have_to_be_accepted(
    client: Client, journal: Journal, embedder: FakeEmbedder
) -> None:
    old_store(client).add([make_node(3, "   ")])
    migrate_points(journal, client, embedder)
    report = verify_migration(journal, client, embedder)
    (problem,) = report.problems
    assert "could not be embedded (its text is empty)" in problem
    assert "--accept-failed" in problem
    accepted = verify_migration(journal, client, embedder, accept_failed=True)
    assert accepted.is_clean
    assert (accepted.failed, accepted.accepted_failed) == (1, True)
    assert journal.record.state == "verified"
    assert verify_migration(journal, client, embedder).is_clean  # it was recorded


def test_a_text_without_words_has_no_sparse_vector_and_is_clean(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    store = make_old_collection(client, TEXTS)
    node = make_node(3, "?!")
    node.metadata = {}
    store.add([node])
    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        migrate_points(journal, client, embedder)
        assert verify_migration(journal, client, embedder).problems == ()


def test_before_the_backfill_there_is_nothing_to_verify(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    make_old_collection(client, TEXTS)
    with (
        plan_by_hand(client, tmp_path / "journal", embedder) as journal,
        pytest.raises(MigrationStateError, match="migrate start"),
    ):
        verify_migration(journal, client, embedder)


def verify(client: Client, journal: Journal, embedder: FakeEmbedder) -> VerifyReport:
    return verify_migration(journal, client, embedder)


def test_a_target_of_another_model_or_none_is_found(
    client: Client, journal: Journal, embedder: FakeEmbedder
) -> None:
    client.update_collection(
        TARGET, metadata={"unified_embeddings": {"fingerprint": "f", "model": "other"}}
    )
    (problem,) = verify(client, journal, embedder).problems
    assert "records 'other' (f), not 'new'" in problem
    client.delete_collection(TARGET)
    (problem,) = verify(client, journal, embedder).problems
    assert "does not exist any more" in problem


def test_another_model_or_alias_is_refused(
    client: Client, journal: Journal, embedder: FakeEmbedder
) -> None:
    with pytest.raises(FingerprintMismatchError):
        verify(client, journal, FakeEmbedder(model_name="other"))
    client.create_collection("third", vectors_config=qm.VectorParams(size=3, distance="Dot"))  # type: ignore[arg-type]
    let_alias_name(client, "third")
    with pytest.raises(MigrationError, match="names collection 'third'"):
        verify(client, journal, embedder)
    let_alias_name(client, SOURCE)
    client.delete_collection(SOURCE)
    with pytest.raises(MigrationError):
        verify(client, journal, embedder)
