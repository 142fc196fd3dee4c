"""A store that writes to both sides of a migration; the side that serves has the last word."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import Document
from llama_index.core.vector_stores.types import (
    ExactMatchFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
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

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import FingerprintMismatchError, InputError, StoreError
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration.backfill import migrate_points
from unified_embeddings.migration.dual_store import DualWritingStore
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.journal import (
    Journal,
    JournalError,
    append_event,
    read_events,
    read_record,
    read_unrepaired,
)
from unified_embeddings.migration.sides import Collection
from unified_embeddings.migration.states import MigrationStateError
from unified_embeddings.migration.traffic import JournalShare
from unified_embeddings.migration.verify import verify_migration
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client, make_thread_safe

TEXTS = {number: f"Note {number} says that foxes jump {number * 7}." for number in range(20)}


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


@pytest.fixture
def store(client: Client, journal: Journal, embedder: FakeEmbedder) -> DualWritingStore:
    return dual_store(client, journal.folder, embedder)


class OldModel(BaseEmbedding):
    """The old model as LlamaIndex has it."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return old_vector(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return old_vector(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return old_vector(query)


def cut_over(journal: Journal, client: Client, embedder: FakeEmbedder) -> None:
    verify_migration(journal, client, embedder)
    let_alias_name(client, TARGET)
    journal.enter("cut_over")


def test_every_write_reaches_both_sides(
    client: Client, store: DualWritingStore, embedder: FakeEmbedder
) -> None:
    assert isinstance(store, QdrantVectorStore)
    assert store.add([make_node(3, "Changed."), make_node(70, "New.")]) == [node_id(3), node_id(70)]
    store.delete_nodes([node_id(5)])
    store.delete("document 2")
    texts = texts_of(client, TARGET)
    assert texts[node_id(3)] == "Changed."
    assert texts[node_id(70)] == "New."
    assert node_id(5) not in texts
    assert node_id(7) not in texts
    assert_moved(client, embedder)
    store.clear()
    assert client.count(SOURCE).count == client.count(TARGET).count == 0
    assert client.count(ALIAS).count == 0  # the alias is still there


async def test_every_write_in_an_event_loop_reaches_both_sides(
    client: Client, store: DualWritingStore, embedder: FakeEmbedder
) -> None:
    await store.async_add([make_node(3, "Changed."), make_node(70, "New.")])
    await store.adelete_nodes([node_id(5)])
    await store.adelete("document 2")
    assert_moved(client, embedder)
    assert len(texts_of(client, TARGET)) == 16
    (node,) = await store.aget_nodes([node_id(70)])
    assert node.get_content() == "New."
    await store.aclear()
    assert client.count(TARGET).count == 0


@pytest.mark.parametrize("with_ids", [True, False])
def test_filters_and_ids_delete_the_same_on_both_sides(
    client: Client, store: DualWritingStore, embedder: FakeEmbedder, with_ids: bool
) -> None:
    filters = MetadataFilters(filters=[ExactMatchFilter(key="page", value=4)])
    store.delete_nodes([node_id(4), node_id(5)] if with_ids else None, filters)
    assert texts_of(client, SOURCE).keys() == {node_id(number) for number in TEXTS if number != 4}
    assert_moved(client, embedder)


def test_an_index_over_it_inserts_and_deletes_documents(
    client: Client, store: DualWritingStore, embedder: FakeEmbedder
) -> None:
    index = VectorStoreIndex.from_vector_store(store, embed_model=OldModel(), transformations=[])
    index.insert(Document(id_="a", text="A whole document.", metadata={"page": 3}))
    index.insert(Document(id_="b", text="Another one."))
    index.delete_ref_doc("b")
    texts = texts_of(client, TARGET).values()
    assert "A whole document." in texts
    assert "Another one." not in texts
    assert_moved(client, embedder)
    assert index.as_retriever(similarity_top_k=3).retrieve("A whole document.")


def test_a_failure_of_the_new_side_does_not_fail_the_write_and_is_repaired(
    client: Client,
    journal: Journal,
    store: DualWritingStore,
    embedder: FakeEmbedder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    verify_migration(journal, client, embedder)

    def fail(*_: object, **__: object) -> None:
        raise StoreError(TARGET, "writing", "no space")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(Collection, "write", fail)
        store.add([make_node(3, "Changed.")])
    assert "no space" in caplog.text
    assert store.failures == 1
    assert texts_of(client, SOURCE)[node_id(3)] == "Changed."
    event = next(event for event in read_events(journal.folder) if event.event == "dirty")
    assert event.facts["side"] == "target"
    assert event.facts["ids"] == [node_id(3)]
    assert read_unrepaired(journal.folder) == 1
    assert not verify_migration(journal, client, embedder).is_clean
    migrate_points(journal, client, embedder)
    assert read_unrepaired(journal.folder) == 0
    assert_moved(client, embedder)


def test_a_failure_of_the_old_side_is_raised_and_nothing_is_written(
    client: Client, store: DualWritingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreError(SOURCE, "writing", "no space")

    monkeypatch.setattr(QdrantVectorStore, "add", fail)
    with pytest.raises(StoreError, match="no space"):
        store.add([make_node(70, "New.")])
    assert node_id(70) not in texts_of(client, TARGET)


class Poisoned(FakeEmbedder):
    """Fails on texts with a word."""

    def encode(self, texts: Sequence[Any], **options: Any) -> Any:
        if any("poison" in text for text in texts):
            raise ValueError("not this one")
        return super().encode(texts, **options)


def test_a_text_that_the_new_model_fails_on_leaves_no_outdated_vectors(
    client: Client, journal: Journal
) -> None:
    store = dual_store(client, journal.folder, Poisoned(model_name="new"))
    store.add([make_node(3, "poison"), make_node(4, "   "), make_node(5, "Fine.")])
    texts = texts_of(client, TARGET)
    assert node_id(3) not in texts
    assert node_id(4) not in texts
    assert texts[node_id(5)] == "Fine."
    assert read_unrepaired(journal.folder) == 1


def test_before_the_backfill_only_the_old_side_is_written(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    make_old_collection(client, TEXTS)
    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        store = dual_store(client, journal.folder, embedder)
        store.add([make_node(70, "New.")])
        store.delete_nodes([node_id(3)])
        assert not client.collection_exists(TARGET)
        # The backfill has begun, and has not made the target yet: that is no failure.
        journal.enter("backfilling")
        store.add([make_node(71, "New too.")])
        store.delete("document 1")
        assert store.failures == 0
        migrate_points(journal, client, embedder)
    assert_moved(client, embedder)
    assert len(texts_of(client, TARGET)) == 20 + 2 - 1 - 4


def test_after_cut_over_the_new_side_answers_and_its_errors_count(
    client: Client,
    journal: Journal,
    embedder: FakeEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = DualWritingStore(
        old_store(client), journal.folder, embedder=embedder, source_model=OldModel()
    )
    query = VectorStoreQuery(
        query_embedding=old_vector("x"), query_str=f"page: 7\n\n{TEXTS[7]}", similarity_top_k=1
    )
    cut_over(journal, client, embedder)
    # The caller still brings the old model's vector: the new side is asked with its own.
    assert store.query(query).ids == [node_id(7)]
    with pytest.raises(InputError, match="query_str"):
        store.query(VectorStoreQuery(query_embedding=old_vector("x"), similarity_top_k=1))
    store.add([make_node(70, "New.")])
    assert_moved(client, embedder)

    def fail(*_: object, **__: object) -> None:
        raise StoreError("x", "writing", "no space")

    with monkeypatch.context() as patched:
        patched.setattr(QdrantVectorStore, "add", fail)
        store.add([make_node(71, "Only on the new side.")])
    assert read_unrepaired(journal.folder, "source") == 1
    assert read_unrepaired(journal.folder) == 0
    with monkeypatch.context() as patched:
        patched.setattr(Collection, "write", fail)
        with pytest.raises(StoreError, match="no space"):
            store.add([make_node(72, "Nowhere.")])
    assert node_id(72) not in texts_of(client, SOURCE)
    # Rolled back, the old side answers, with the current texts.
    let_alias_name(client, SOURCE)
    journal.enter("rolled_back")
    assert node_id(70) in texts_of(client, SOURCE)
    assert store.query(query).ids is not None
    # What reached the new side only would be lost there too: that takes a decision.
    with pytest.raises(MigrationError, match=r"1 writes since the switch.*--discard-target-writes"):
        migrate_points(journal, client, embedder)
    assert node_id(71) in texts_of(client, TARGET)
    migrate_points(journal, client, embedder, discard_target_writes=True)
    assert_moved(client, embedder)
    assert read_unrepaired(journal.folder, "source") == 0


def test_callers_may_bring_the_new_models_vectors_after_cut_over(
    client: Client, journal: Journal, embedder: FakeEmbedder
) -> None:
    cut_over(journal, client, embedder)
    with pytest.raises(InputError, match="give source_model"):
        DualWritingStore(old_store(client), journal.folder, embedder=embedder, brings="target")
    store = DualWritingStore(
        old_store(client),
        journal.folder,
        embedder=embedder,
        brings="target",
        source_model=OldModel(),
    )
    node = make_node(70, "New.")
    node.embedding = embedder.encode_query("anything").dense[0].tolist()  # type: ignore[index]
    store.add([node])
    assert_moved(client, embedder)
    (point,) = client.retrieve(SOURCE, [node_id(70)], with_vectors=True)
    assert point.vector == pytest.approx(old_vector("page: 70\n\nNew."), abs=1e-5)


def test_the_old_store_may_be_opened_by_the_alias_and_stays_the_old_one(
    client: Client, journal: Journal, embedder: FakeEmbedder
) -> None:
    store = DualWritingStore(
        old_store(client, ALIAS), journal.folder, embedder=embedder, source_model=OldModel()
    )
    cut_over(journal, client, embedder)
    store.add([make_node(70, "New.")])
    assert node_id(70) in texts_of(client, SOURCE)
    assert_moved(client, embedder)


def test_once_retired_only_the_new_side_is_written(
    client: Client, journal: Journal, store: DualWritingStore, embedder: FakeEmbedder
) -> None:
    cut_over(journal, client, embedder)
    journal.enter("retired")
    client.delete_collection(SOURCE)
    store.add([make_node(70, "New.")])
    store.delete_nodes([node_id(3)])
    assert store.failures == 0
    assert len(texts_of(client, TARGET)) == 20


def test_a_collection_of_ours_is_moved_to_another_of_our_models(
    client: Client, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    old = FakeEmbedder(dimension=8, model_name="old")
    make_thread_safe(client)
    source = build_vector_store(old, SOURCE, client=client)
    source.add([make_node(number, text) for number, text in TEXTS.items()])
    let_alias_name(client, SOURCE)
    with plan_by_hand(client, tmp_path / "journal", embedder) as journal:
        store = DualWritingStore(
            build_vector_store(old, ALIAS, client=client), journal.folder, embedder=embedder
        )
        migrate_points(journal, client, embedder)
        node = make_node(3, "Changed.")
        node.metadata |= {"doc_id": "the node's own", "when": None}
        store.add([node])
        store.delete_nodes([node_id(5)])
        assert store.failures == 0
        migrate_points(journal, client, embedder)
        assert journal.record.counters.repaired == 0  # both sides were equal already
        assert verify_migration(journal, client, embedder).problems == ()
    assert len(texts_of(client, TARGET)) == 19


def test_what_does_not_fit_is_refused(
    client: Client, journal: Journal, embedder: FakeEmbedder, tmp_path: Path
) -> None:
    old_store(client, "third").add([make_node(1, "Text.")])
    with pytest.raises(InputError, match="is over 'third', but the migration moves 'docs-old'"):
        DualWritingStore(old_store(client, "third"), journal.folder, embedder=embedder)
    with pytest.raises(FingerprintMismatchError):
        DualWritingStore(old_store(client), journal.folder, embedder=FakeEmbedder())
    with pytest.raises(JournalError, match="holds no migration"):
        DualWritingStore(old_store(client), tmp_path / "none", embedder=embedder)
    with pytest.raises(InputError, match="brings"):
        DualWritingStore(
            old_store(client),
            journal.folder,
            embedder=embedder,
            brings="both",  # type: ignore[arg-type]
        )
    assert read_record(journal.folder).state == "backfilled"


def test_a_store_of_a_former_migration_writes_nothing_for_the_next_one(
    client: Client, journal: Journal, store: DualWritingStore, embedder: FakeEmbedder
) -> None:
    """It would make the old collection anew, and write there what nobody reads."""
    cut_over(journal, client, embedder)
    share = JournalShare(journal.folder)
    journal.enter("retired")
    client.delete_collection(SOURCE)
    journal.close()
    record = dataclasses.replace(
        journal.record, source=TARGET, target="docs-third", state="planned", entered=()
    )
    with Journal.create(journal.folder, record):
        for write in (
            lambda: store.add([make_node(70, "New.")]),
            lambda: store.delete_nodes([node_id(3)]),
        ):
            with pytest.raises(JournalError, match=r"another migration.*Open it anew"):
                write()
        share._read -= 10
        assert share() == 1  # as it was: the new side of the former one still answers
    assert not client.collection_exists(SOURCE)
    assert len(texts_of(client, TARGET)) == 20


def test_what_only_the_new_side_has_after_a_rollback_is_not_removed_untold(
    client: Client, journal: Journal, store: DualWritingStore, embedder: FakeEmbedder
) -> None:
    """A writer that is killed after its write to the side that serves leaves no note."""
    cut_over(journal, client, embedder)
    store.add([make_node(70, "New.")])
    client.delete(SOURCE, points_selector=[node_id(70)])
    let_alias_name(client, SOURCE)
    journal.enter("rolled_back")
    with pytest.raises(MigrationError, match=f"{node_id(70)}.*--discard-target-writes"):
        migrate_points(journal, client, embedder)
    assert node_id(70) in texts_of(client, TARGET)
    migrate_points(journal, client, embedder, discard_target_writes=True)
    assert_moved(client, embedder)


def test_a_step_that_is_not_allowed_discards_nothing(
    client: Client, journal: Journal, embedder: FakeEmbedder
) -> None:
    cut_over(journal, client, embedder)
    append_event(journal.folder, "dirty", side="source", ids=[node_id(3)])
    with pytest.raises(MigrationStateError, match="'cut_over'"):
        migrate_points(journal, client, embedder, discard_target_writes=True)
    assert read_unrepaired(journal.folder, "source") == 1
