"""Every point of the old collection arrives in the new one, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from moving import (
    ALIAS,
    SOURCE,
    TARGET,
    assert_moved,
    dual_store,
    let_alias_name,
    make_node,
    make_old_collection,
    node_id,
    old_store,
    old_vector,
    plan_by_hand,
    texts_of,
)
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import FingerprintMismatchError, StoreError
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration.backfill import Watching, migrate_points
from unified_embeddings.migration.dual_store import DualWritingStore
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.journal import Journal, read_events, read_record
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client
from unified_embeddings.types import Embeddings, Text


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
    assert fresh.stats().texts <= 50 - first.written + 7
    assert_moved(client, embedder)


def test_a_second_run_embeds_nothing_and_copies_what_changed_since(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    store = make_old_collection(client, TEXTS)
    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        migrate_points(journal, client, embedder)
        before = embedder.stats().texts
        migrate_points(journal, client, embedder)
        assert embedder.stats().texts == before
        store.add([make_node(3, "Something else."), make_node(99, "A new note.")])
        store.delete_nodes([node_id(7)])
        migrate_points(journal, client, embedder)
        assert embedder.stats().texts == before + 2
    assert_moved(client, embedder)
    texts = texts_of(client, TARGET)
    assert texts[node_id(3)] == "Something else."
    assert node_id(7) not in texts


class Meddling(FakeEmbedder):
    """An embedder during whose first passes somebody else does something."""

    def __init__(self, *actions: Callable[[], object]) -> None:
        super().__init__(model_name="new", cache=None)
        self._actions = list(actions)

    def encode(self, *args: Any, **options: Any) -> Embeddings:
        embeddings = super().encode(*args, **options)
        if self._actions:
            self._actions.pop(0)()
        return embeddings


def meddle(client: Client, folder: Path, act: Callable[[DualWritingStore], object]) -> None:
    """Migrate, while a writer does something between the first batch's reading and writing."""
    writer: list[DualWritingStore] = []
    embedder = Meddling(lambda: act(writer[0]))
    with plan_by_hand(client, folder, embedder) as journal:
        writer.append(dual_store(client, folder, FakeEmbedder(model_name="new")))
        migrate_points(journal, client, embedder, batch=100)


def test_a_node_that_is_deleted_while_it_is_embedded_stays_deleted(
    client: Client, tmp_path: Path
) -> None:
    make_old_collection(client, TEXTS)
    meddle(client, tmp_path / "journal", lambda writer: writer.delete_nodes([node_id(3)]))
    assert node_id(3) not in texts_of(client, TARGET)
    assert_moved(client)
    # The backfill itself has seen to it, not a later comparison.
    counters = read_record(tmp_path / "journal").counters
    assert (counters.removed, counters.repaired, counters.sweeps) == (1, 0, 1)


def test_a_document_that_is_deleted_while_it_is_embedded_stays_deleted(
    client: Client, tmp_path: Path
) -> None:
    make_old_collection(client, TEXTS)
    meddle(client, tmp_path / "journal", lambda writer: writer.delete("document 2"))
    assert len(texts_of(client, TARGET)) == 40
    assert_moved(client)


def test_a_node_that_is_changed_while_it_is_embedded_keeps_its_new_text(
    client: Client, tmp_path: Path
) -> None:
    make_old_collection(client, TEXTS)
    meddle(client, tmp_path / "journal", lambda writer: writer.add([make_node(3, "Changed.")]))
    assert texts_of(client, TARGET)[node_id(3)] == "Changed."
    assert_moved(client)


def test_a_node_that_is_deleted_and_added_again_meanwhile_is_there(
    client: Client, tmp_path: Path
) -> None:
    make_old_collection(client, TEXTS)

    def act(writer: DualWritingStore) -> None:
        writer.delete_nodes([node_id(3)])
        writer.add([make_node(3, "Back again.")])

    meddle(client, tmp_path / "journal", act)
    assert texts_of(client, TARGET)[node_id(3)] == "Back again."
    assert_moved(client)


def test_a_node_that_is_changed_while_a_sweep_mends_it_ends_with_its_last_text(
    client: Client, tmp_path: Path
) -> None:
    store = make_old_collection(client, TEXTS)
    folder = tmp_path / "journal"
    writer: list[DualWritingStore] = []
    with plan_by_hand(client, folder, FakeEmbedder(model_name="new")) as journal:
        migrate_points(journal, client, FakeEmbedder(model_name="new"))
        writer.append(dual_store(client, folder, FakeEmbedder(model_name="new")))
        store.add([make_node(3, "Written to the old side only.")])
        embedder = Meddling(lambda: writer[0].add([make_node(3, "Written to both sides.")]))
        migrate_points(journal, client, embedder)
    assert texts_of(client, TARGET)[node_id(3)] == "Written to both sides."
    assert_moved(client)


def test_everything_that_is_cleared_meanwhile_is_gone(client: Client, tmp_path: Path) -> None:
    make_old_collection(client, TEXTS)
    meddle(client, tmp_path / "journal", lambda writer: writer.clear())
    assert texts_of(client, TARGET) == {}
    assert client.count(ALIAS).count == 0


def test_a_writer_to_the_old_side_only_is_named(
    client: Client, tmp_path: Path, embedder: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unified_embeddings.migration.sides._PAUSES", ())
    store = make_old_collection(client, TEXTS)
    numbers = iter(range(1000))

    def write() -> None:
        store.add([make_node(1, f"Version {next(numbers)}.")])

    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        with pytest.raises(MigrationError, match=f"writes to '{SOURCE}' only") as raised:
            migrate_points(journal, client, embedder, watching=Watching(check=write))
        assert node_id(1) in str(raised.value)
        assert journal.record.state == "backfilling"
        migrate_points(journal, client, embedder)
    assert_moved(client, embedder)


class Poisoned(FakeEmbedder):
    """Fails on texts with a word, in words or with an error of the machine's."""

    def encode(self, texts: Sequence[Text], **options: Any) -> Embeddings:
        for text in texts:
            if "poison" in text:
                raise ValueError("not this one")
        return super().encode(texts, **options)


def test_a_text_that_the_model_fails_on_is_recorded_and_the_others_arrive(
    client: Client, tmp_path: Path
) -> None:
    make_old_collection(client, {**TEXTS, 7: "poison", 8: "   "})
    embedder = Poisoned(model_name="new")
    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        migrate_points(journal, client, embedder, batch=16)
        assert journal.failed == {
            node_id(7): "ValueError: not this one",
            node_id(8): "its text is empty",
        }
        assert journal.record.state == "backfilled"
        assert client.count(TARGET).count == 48
        # Once they have a text, a further run moves them.
        old_store(client).add([make_node(7, "Harmless."), make_node(8, "Text.")])
        migrate_points(journal, client, embedder)
        assert not journal.failed
    assert_moved(client, embedder)


def test_a_text_that_becomes_poison_leaves_no_outdated_vectors(
    client: Client, tmp_path: Path
) -> None:
    store = make_old_collection(client, TEXTS)
    embedder = Poisoned(model_name="new")
    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        migrate_points(journal, client, embedder)
        store.add([make_node(7, "poison"), make_node(8, "")])
        migrate_points(journal, client, embedder)
        assert set(journal.failed) == {node_id(7), node_id(8)}
    assert set(texts_of(client, TARGET)) == set(texts_of(client, SOURCE)) - {
        node_id(7),
        node_id(8),
    }


def test_a_model_that_fails_on_everything_is_not_the_texts_fault(
    client: Client, tmp_path: Path
) -> None:
    make_old_collection(client, {number: f"poison {number}" for number in range(30)})
    embedder = Poisoned(model_name="new")
    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        with pytest.raises(MigrationError, match=r"8 texts in a row.*ValueError: not this one"):
            migrate_points(journal, client, embedder)
        assert not journal.failed
        migrate_points(journal, client, FakeEmbedder(model_name="new"))
    assert_moved(client, FakeEmbedder(model_name="new"))


def test_a_source_that_is_deleted_meanwhile_costs_nothing(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    make_old_collection(client, TEXTS)
    seen = []

    def delete() -> None:
        seen.append(1)
        if len(seen) == 6:
            client.delete_collection(SOURCE)

    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        with pytest.raises(MigrationError, match=f"source '{SOURCE}' does not exist any more"):
            migrate_points(journal, client, embedder, batch=5, watching=Watching(check=delete))
        moved = client.count(TARGET).count
        assert moved >= 10
        # Restored, the migration goes on.
        make_old_collection(client, TEXTS)
        migrate_points(journal, client, embedder, batch=5)
    assert_moved(client, embedder)


def test_a_source_that_is_replaced_by_another_collection_is_refused(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    make_old_collection(client, TEXTS)
    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        migrate_points(journal, client, embedder)
        client.delete_collection(SOURCE)
        client.create_collection(
            SOURCE, vectors_config=qm.VectorParams(size=3, distance=qm.Distance.DOT)
        )
        let_alias_name(client, SOURCE)
        with pytest.raises(MigrationError, match=r"8 x Cosine.*3 x Dot"):
            migrate_points(journal, client, embedder)
    assert client.count(TARGET).count == 50


def test_payloads_of_another_layout_are_noticed_before_all_is_lost(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    make_old_collection(client, TEXTS)
    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        migrate_points(journal, client, embedder)
        for number in range(200):
            client.upsert(
                SOURCE,
                [
                    qm.PointStruct(
                        id=node_id(number + 500),
                        vector={"": old_vector("x")},
                        payload={"page_content": f"Page {number}.", "metadata": {}},
                    )
                ],
            )
        with pytest.raises(MigrationError, match=r"no '_node_content'.*--layout"):
            migrate_points(journal, client, embedder)
        assert client.count(TARGET).count == 50
        journal.update(layout="mixed")
        migrate_points(journal, client, embedder)
    assert client.count(TARGET).count == 250


def test_an_alias_of_another_collection_stops_it(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    make_old_collection(client, TEXTS)
    client.create_collection("third", vectors_config=qm.VectorParams(size=3, distance="Dot"))  # type: ignore[arg-type]
    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        let_alias_name(client, "third")
        with pytest.raises(MigrationError, match="names collection 'third'"):
            migrate_points(journal, client, embedder)
    assert not client.collection_exists(TARGET)


def test_a_target_of_somebody_else_is_left_alone(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    make_old_collection(client, TEXTS)
    client.create_collection(TARGET, vectors_config=qm.VectorParams(size=3, distance="Dot"))  # type: ignore[arg-type]
    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        with pytest.raises(MigrationError, match="has not made it"):
            migrate_points(journal, client, embedder)
        assert journal.record.state == "planned"


def test_a_target_that_is_gone_is_filled_again(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    make_old_collection(client, TEXTS)
    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        migrate_points(journal, client, embedder)
        client.delete_collection(TARGET)
        migrate_points(journal, client, embedder)
        assert "target_gone" in [event.event for event in read_events(journal.folder)]
    assert_moved(client, embedder)


def test_another_model_than_the_planned_one_is_refused(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    make_old_collection(client, TEXTS)
    with (
        plan_by_hand(client, tmp_path / "journal", embedder) as journal,
        pytest.raises(FingerprintMismatchError, match="other"),
    ):
        migrate_points(journal, client, FakeEmbedder(model_name="other"))


def test_a_full_disk_stops_it_in_words_and_it_goes_on_afterwards(
    client: Client, tmp_path: Path, embedder: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old_collection(client, TEXTS)
    written: Any = type(client).upsert
    calls = []

    def fail(self: Client, *args: Any, **options: Any) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return written(self, *args, **options)

    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        monkeypatch.setattr(type(client), "upsert", fail)
        with pytest.raises(StoreError, match="No space left on device") as raised:
            migrate_points(journal, client, embedder, batch=10)
        assert "run the same command again to resume" in str(raised.value)
        assert journal.record.counters.written == 20
        migrate_points(journal, client, embedder, batch=10)
    assert_moved(client, embedder)


NESTED = {"page": 3, "score": 0.1, "tags": ["a", "b"], "inner": {"x": None}, "whole": 2.0}


@pytest.mark.parametrize(
    ("layout", "payload"),
    [
        ("langchain", {"page_content": "Foxes jump.", "metadata": NESTED}),
        ("haystack", {"id": "d1", "content": "Foxes jump.", "meta": NESTED, "score": None}),
        ("mixed", {"page_content": "Foxes jump.", "metadata": NESTED}),
    ],
)
def test_other_layouts_are_moved_under_their_ids_and_compare_equal_afterwards(
    client: Client,
    tmp_path: Path,
    embedder: FakeEmbedder,
    layout: str,
    payload: dict[str, object],
) -> None:
    client.create_collection(
        SOURCE, vectors_config=qm.VectorParams(size=2, distance=qm.Distance.COSINE)
    )
    let_alias_name(client, SOURCE)
    client.upsert(
        SOURCE,
        [qm.PointStruct(id=number, vector=[1.0, 0.0], payload=payload) for number in range(20)],
    )
    with plan_by_hand(client, tmp_path / "journal", embedder, layout=layout) as journal:
        migrate_points(journal, client, embedder, batch=7)
        assert journal.record.counters.sweeps == 1
        migrate_points(journal, client, embedder)
        assert journal.record.counters.written == 20
    points, _ = client.scroll(TARGET, limit=100)
    assert [point.id for point in points] == list(range(20))
    (node,) = build_vector_store(embedder, TARGET, client=client).get_nodes(["7"])
    assert node.get_content() == "Foxes jump."
    assert node.metadata.items() >= NESTED.items()
