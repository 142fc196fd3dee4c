"""A plan says what a migration takes, and refuses what cannot work before anything is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from moving import (
    ALIAS,
    SOURCE,
    let_alias_name,
    make_node,
    make_old_collection,
    node_id,
    old_store,
)
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration import plan as planning
from unified_embeddings.migration.backfill import migrate_points
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.journal import Journal, JournalError, read_record
from unified_embeddings.migration.plan import Plan, plan_migration
from unified_embeddings.stores.aliases import read_aliases
from unified_embeddings.system.files import NoSpaceError

TEXTS = {number: f"one two three {number}" for number in range(40)}


@pytest.fixture
def client() -> QdrantClient:
    return QdrantClient(":memory:")


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder(model_name="new")


def plan(client: QdrantClient, folder: Path, name: str = ALIAS, **options: Any) -> Plan:
    embedder = options.pop("embedder", None) or FakeEmbedder(model_name="new")
    return plan_migration(
        client, name, embedder, folder, **({"place": {}, "model": {"model_choice": "x"}} | options)
    )


def test_the_estimate_is_counted_from_the_texts(client: QdrantClient, tmp_path: Path) -> None:
    make_old_collection(client, TEXTS)
    estimate = plan(client, tmp_path).estimate
    assert (estimate.points, estimate.scanned, estimate.without_text) == (40, 40, 0)
    # "page: 7", a blank line, "one two three 7" and two special tokens: a word is a token here.
    assert estimate.tokens == 40 * (2 + 4 + 2)
    assert estimate.truncated == 0
    # 64 floats, and 5 or 6 entries of 8 bytes each: the two numbers are one word.
    assert 40 * (64 * 4 + 5 * 8) <= estimate.vector_bytes <= 40 * (64 * 4 + 6 * 8)
    assert estimate.payload_bytes > 40 * 300
    assert estimate.free_bytes is None


def test_the_plan_is_recorded_and_nothing_else_is_written(
    client: QdrantClient, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    make_old_collection(client, TEXTS)
    planned = plan(client, tmp_path)
    record = read_record(tmp_path)
    assert record == planned.record
    assert (record.alias, record.source, record.state) == (ALIAS, SOURCE, "planned")
    assert record.target == f"docs-new-{embedder.fingerprint[:8]}"
    assert (record.source_model, record.layout) == (None, "llama_index")
    assert record.estimate is not None
    assert record.estimate["points"] == 40
    assert any("nothing records which model" in note for note in planned.notes)
    assert [info.name for info in client.get_collections().collections] == [SOURCE]


def test_a_keyword_list_is_not_moved_and_the_plan_says_how_to_have_one(
    client: QdrantClient, tmp_path: Path
) -> None:
    old = FakeEmbedder(model_name="old")
    store = build_vector_store(old, "notes", client=client, keywords="bm25:none")
    node = make_node(1, "Text.")
    node.embedding = old.encode_documents(["Text."]).dense[0].tolist()  # type: ignore[index]
    store.add([node])
    planned = plan(client, tmp_path, "notes", alias="live")
    (note,) = [note for note in planned.notes if "keyword list" in note]
    target = planned.record.target
    assert f"add-vectors {target} --keywords bm25:none --model new" in note


def test_points_without_text_are_counted_and_shown(client: QdrantClient, tmp_path: Path) -> None:
    make_old_collection(client, TEXTS)
    old_store(client).add([make_node(50, "")])
    client.upsert(
        SOURCE, [qm.PointStruct(id=node_id(51), vector=[0.5] * 8, payload={"other": "text"})]
    )
    estimate = plan(client, tmp_path).estimate
    assert (estimate.points, estimate.without_text) == (42, 2)
    assert {example.point_id for example in estimate.examples} == {node_id(50), node_id(51)}


def test_a_physical_collection_needs_an_alias_which_is_made_on_demand(
    client: QdrantClient, tmp_path: Path
) -> None:
    old_store(client, "notes").add([make_node(1, "Text.")])
    with pytest.raises(MigrationError, match="--alias NAME"):
        plan(client, tmp_path, "notes")
    assert read_aliases(client) == {}
    planned = plan(client, tmp_path, "notes", alias="live")
    assert planned.makes_alias
    assert read_aliases(client) == {"live": "notes"}
    assert not plan(client, tmp_path, "notes").makes_alias  # the only alias is found


def test_wrong_owners_and_names_are_refused(client: QdrantClient, tmp_path: Path) -> None:
    make_old_collection(client, TEXTS)
    old_store(client, "third").add([make_node(1, "Text.")])
    with pytest.raises(MigrationError, match=f"'docs' belongs to collection '{SOURCE}'"):
        plan(client, tmp_path, "third", alias=ALIAS)
    with pytest.raises(MigrationError, match="'third' is a collection"):
        plan(client, tmp_path, SOURCE, alias="third")
    with pytest.raises(StoreError, match=r"'nothing'.*does not exist.*'docs-old', 'third'"):
        plan(client, tmp_path, "nothing")
    with pytest.raises(MigrationError, match="collection 'third' already"):
        plan(client, tmp_path, target="third")
    with pytest.raises(MigrationError, match=f"'docs' is an alias of '{SOURCE}'"):
        plan(client, tmp_path, target=ALIAS)
    with pytest.raises(MigrationError, match="both the alias and the new"):
        plan(client, tmp_path, SOURCE, alias="live", target="live")
    let_alias_name(client, SOURCE)
    client.update_collection_aliases(
        [
            qm.CreateAliasOperation(
                create_alias=qm.CreateAlias(collection_name=SOURCE, alias_name="second")
            )
        ]
    )
    with pytest.raises(MigrationError, match="several aliases"):
        plan(client, tmp_path, SOURCE)
    assert not any(tmp_path.iterdir())


def test_the_same_model_is_refused_and_another_is_named(
    client: QdrantClient, tmp_path: Path
) -> None:
    old = FakeEmbedder(model_name="old")
    store = build_vector_store(old, SOURCE, client=client)
    node = make_node(1, "Text.")
    node.embedding = [0.1] * 64
    store.add([node])
    let_alias_name(client, SOURCE)
    with pytest.raises(MigrationError, match="'old' already"):
        plan(client, tmp_path, embedder=old)
    planned = plan(client, tmp_path)
    assert planned.record.source_model == "old"
    assert planned.record.source_fingerprint == old.fingerprint


def test_a_collection_without_any_text_is_refused(client: QdrantClient, tmp_path: Path) -> None:
    client.create_collection(SOURCE, vectors_config=qm.VectorParams(size=2, distance="Dot"))  # type: ignore[arg-type]
    let_alias_name(client, SOURCE)
    with pytest.raises(InputError, match="no points"):
        plan(client, tmp_path)
    client.upsert(SOURCE, [qm.PointStruct(id=1, vector=[1.0, 0.0], payload={"number": 3})])
    with pytest.raises(InputError, match="--text-key"):
        plan(client, tmp_path)
    with pytest.raises(MigrationError, match=r"none of the 1 points.*no 'body'"):
        plan(client, tmp_path, text_key="body")


def test_a_plain_layout_is_recorded_with_its_keys(
    client: QdrantClient, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    client.create_collection(SOURCE, vectors_config=qm.VectorParams(size=2, distance="Dot"))  # type: ignore[arg-type]
    let_alias_name(client, SOURCE)
    for number in range(5):
        payload = {"body": f"Note {number}.", "page": number}
        client.upsert(SOURCE, [qm.PointStruct(id=number, vector=[1.0, 0.0], payload=payload)])
    record = plan(client, tmp_path, text_key="body").record
    assert (record.layout, record.text_key) == ("plain", "body")
    with Journal.open(tmp_path) as journal:
        migrate_points(journal, client, embedder)
        assert journal.record.state == "backfilled"
    points, _ = client.scroll(record.target, limit=10)
    assert [point.id for point in points] == [0, 1, 2, 3, 4]


def test_a_disk_that_is_too_small_is_refused(
    client: QdrantClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old_collection(client, TEXTS)

    def refuse(path: Path, needed: int) -> None:
        raise NoSpaceError(f"the disk has 0 MiB free, {needed} are needed")

    monkeypatch.setattr(planning, "require_space", refuse)
    with pytest.raises(MigrationError, match=r"does not fit beside the old one.*make room"):
        plan(client, tmp_path / "journal", place={"path": str(tmp_path)})
    assert not (tmp_path / "journal").exists()


def test_a_plan_can_be_made_again_until_the_migration_begins(
    client: QdrantClient, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    make_old_collection(client, TEXTS)
    first = plan(client, tmp_path).record
    again = plan(client, tmp_path).record
    assert dataclasses.replace(first, entered=(), estimate=None) == dataclasses.replace(
        again, entered=(), estimate=None
    )
    with Journal.open(tmp_path) as journal:
        migrate_points(journal, client, embedder)
    with pytest.raises(JournalError, match="continue it"):
        plan(client, tmp_path)
