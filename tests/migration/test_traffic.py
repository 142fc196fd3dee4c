"""Both sides of a migration as an application asks them, led by the journal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import TextNode
from qdrant_client import models as qm
from two_models import NEW, OLD, QUESTIONS, fill, point
from typer.testing import CliRunner

from unified_embeddings.cli.app import app
from unified_embeddings.cli.migrate_traffic import read_questions
from unified_embeddings.errors import FingerprintMismatchError, InputError, UnifiedEmbeddingsError
from unified_embeddings.evaluation.corpora import Corpus
from unified_embeddings.llama.payloads import build_payloads
from unified_embeddings.migration import traffic
from unified_embeddings.migration.comparison import compare_traffic, measure_quality
from unified_embeddings.migration.cutover import cut_over, roll_back
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.gate import GateReport
from unified_embeddings.migration.journal import Journal, JournalError
from unified_embeddings.migration.record import MigrationRecord
from unified_embeddings.migration.states import MigrationStateError, State
from unified_embeddings.migration.traffic import (
    JournalShare,
    enter_shadow,
    latest_report,
    open_sides,
    open_transition,
    prove_source,
    record_report,
    set_share,
)
from unified_embeddings.retrievers.transition_report import TransitionReport
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client, open_folder
from unified_embeddings.stores.schema import recorded_model

TO_VERIFIED: list[State] = ["backfilling", "backfilled", "verified"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The journal of a migration that is only planned."""
    record = MigrationRecord(
        alias="docs",
        place={"path": str(tmp_path / "store")},
        source="docs-1",
        target="docs-2",
        model={"model_choice": "mini-m3"},
        model_name="new",
        fingerprint=NEW.fingerprint,
    )
    Journal.create(tmp_path / "migrations" / "docs", record).close()
    return tmp_path / "migrations" / "docs"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    """The same, verified and open."""
    with Journal.open(folder) as opened:
        for state in TO_VERIFIED:
            opened.enter(state)
        yield opened


@pytest.fixture
def client(any_client: Client) -> Client:
    """A store with a collection of each model, and an alias of the old one."""
    fill(any_client, "docs-1", OLD)
    fill(any_client, "docs-2", NEW)
    point(any_client, "docs", "docs-1")
    return any_client


def test_an_application_follows_the_journal_from_shadow_to_rollback(
    client: Client, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "_READ_SECONDS", 0.0)
    retriever = open_transition(journal.folder, client, OLD, new_embedder=NEW, shadow=False)

    def share_answered_by_new() -> float:
        before = retriever.report()
        for question in QUESTIONS[:20]:
            retriever.retrieve(question)
        after = retriever.report()
        return (after.answered_by_new - before.answered_by_new) / 20

    assert share_answered_by_new() == 0
    enter_shadow(journal)
    assert share_answered_by_new() == 0
    set_share(journal, 0.5)
    assert 0.2 < share_answered_by_new() < 0.8
    enter_shadow(journal)  # the canary goes on
    assert journal.record.state == "canary"
    set_share(journal, 1)
    assert share_answered_by_new() == 1
    cut_over(journal, client, GateReport(checks=()))
    assert share_answered_by_new() == 1
    roll_back(journal, client)
    assert share_answered_by_new() == 0
    assert retriever.report().fallbacks == {}


def test_the_share_is_kept_while_the_journal_cannot_be_read(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "_READ_SECONDS", 0.0)
    set_share(journal, 0.25)
    share = JournalShare(journal.folder)
    assert share() == 0.25
    (journal.folder / "migration.json").rename(journal.folder / "away")
    assert share() == 0.25
    with pytest.raises(JournalError):
        JournalShare(journal.folder)


def test_a_canary_needs_a_verified_migration_and_a_share(folder: Path) -> None:
    with Journal.open(folder) as journal:
        with pytest.raises(MigrationStateError, match="'planned' and cannot become 'canary'"):
            set_share(journal, 0.1)
        with pytest.raises(InputError, match="from 0"):
            set_share(journal, 1.5)


def test_the_gate_finds_the_latest_comparison(client: Client, journal: Journal) -> None:
    assert latest_report(journal.folder) is None
    sides = open_sides(journal.record, client, OLD, NEW)
    first = compare_traffic(sides.old, sides.new, QUESTIONS[:3])
    second = compare_traffic(sides.old, sides.new, QUESTIONS[:7])
    record_report(journal.folder, first)
    record_report(journal.folder, second)
    assert latest_report(journal.folder) == second
    assert (second.compared, second.answered_by_old, second.dropped) == (7, 7, 0)
    with pytest.raises(FingerprintMismatchError):
        open_sides(journal.record, client, OLD, OLD)
    with pytest.raises(InputError, match="at least one question"):
        compare_traffic(sides.old, sides.new, [])


def test_a_new_side_that_fails_is_counted_not_raised(client: Client, journal: Journal) -> None:
    sides = open_sides(journal.record, client, OLD, NEW)
    client.delete_collection("docs-2")
    report = compare_traffic(sides.old, sides.new, QUESTIONS[:4])
    assert (report.compared, report.failed) == (0, {"new": 4})
    assert report.last_error is not None
    assert "docs-2" in report.last_error


def test_quality_is_measured_on_both_sides(client: Client, journal: Journal) -> None:
    ids = [f"00000000-0000-4000-8000-{number:012}" for number in range(2)]
    queries = {"q1": "Which foxes jump over dogs?", "q2": "Dogs that sleep at noon"}
    qrels = {"q1": {ids[0]: 1}, "q2": {ids[1]: 1}}
    corpus = Corpus("tiny", dict.fromkeys(ids, "-"), queries, qrels)
    sides = open_sides(journal.record, client, OLD, NEW)
    quality = measure_quality(sides.old, sides.new, corpus)
    assert (quality.old_ndcg, quality.new_ndcg, quality.difference.queries) == (1, 1, 2)
    with pytest.raises(InputError, match="no judgements"):
        measure_quality(sides.old, sides.new, Corpus("bare", corpus.documents, queries))


# --- the command --------------------------------------------------------------------------------


def test_questions_are_read_from_lines_and_from_json(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("one\n\n two \none\n")
    assert read_questions(tmp_path / "q.txt") == ["one", "two"]
    (tmp_path / "q.jsonl").write_text('{"_id": "1", "text": "first"}\n{"text": "second"}\n')
    assert read_questions(tmp_path / "q.jsonl") == ["first", "second"]
    (tmp_path / "bad.jsonl").write_text('{"text": "first"}\n{"question": "second"}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl, line 2"):
        read_questions(tmp_path / "bad.jsonl")
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(InputError, match="no question"):
        read_questions(tmp_path / "empty.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_questions(tmp_path / "none.txt")


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Any:
    """Runs a step of the command on the migration, in this process."""
    with EdgeQdrantClient(tmp_path / "store") as client:
        fill(client, "docs-1", OLD)
        fill(client, "docs-2", NEW)
        point(client, "docs", "docs-1")

    def call(*arguments: str) -> Any:
        step, *rest = arguments
        return CliRunner().invoke(
            app, ["migrate", step, "docs", "--journal", str(folder.parent), *rest]
        )

    return call


def enter(folder: Path, *states: State, **changes: object) -> None:
    with Journal.open(folder) as journal:
        for state in states:
            journal.enter(state)
        if changes:
            journal.update(**changes)


def test_a_step_out_of_order_is_an_error_in_words(run: Any, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("one\n")
    for arguments, following in (
        (("shadow", "--queries", str(tmp_path / "q.txt")), "shadow"),
        (("canary", "--share", "0.5"), "canary"),
        (("cutover",), "cut_over"),
        (("rollback",), "rolled_back"),
        (("retire", "--yes"), "retired"),
    ):
        error = run(*arguments).exception
        assert isinstance(error, UnifiedEmbeddingsError)
        assert f"the migration is 'planned' and cannot become '{following}'" in str(error)
    assert run("canary", "--share", "2").exit_code == 2


def test_the_steps_without_models_by_command(run: Any, folder: Path, tmp_path: Path) -> None:
    enter(folder, *TO_VERIFIED, verify={"is_clean": True})
    closed = run("cutover", "--json")
    assert isinstance(closed.exception, UnifiedEmbeddingsError)
    assert json.loads(closed.stdout)["outcome"] == "closed"
    report = TransitionReport(depth=10, share=0, compared=500, mean_overlap=0.1)
    record_report(folder, report)
    printed = run("cutover")
    assert "passed verified" in printed.stdout
    assert "FAILED overlap: of the first 10 nodes 10% are common" in printed.stdout
    forced = json.loads(run("cutover", "--force", "--json").stdout)
    assert (forced["collection"], forced["outcome"]) == ("docs-2", "switched")
    assert forced["overridden"] == ["overlap", "latency"]
    assert json.loads(run("cutover", "--json").stdout)["outcome"] == "unchanged"
    refused = run("retire").exception
    assert "with its 6 points" in str(refused)
    back = json.loads(run("rollback", "--json").stdout)
    assert (back["collection"], back["outcome"]) == ("docs-1", "switched")
    # The commands' own client, which the refusal's traceback may still hold.
    client = open_folder(tmp_path / "store")
    assert {info.name for info in client.get_collections().collections} == {"docs-1", "docs-2"}


def test_a_source_of_unknown_origin_needs_its_model_named(
    run: Any, folder: Path, tmp_path: Path
) -> None:
    enter(folder, *TO_VERIFIED)
    with EdgeQdrantClient(tmp_path / "store") as client:
        client.delete_collection("docs-1")
        client.create_collection(
            "docs-1", vectors_config=qm.VectorParams(size=4, distance=qm.Distance.COSINE)
        )
    (tmp_path / "q.txt").write_text("one\n")
    error = run("shadow", "--queries", str(tmp_path / "q.txt")).exception
    assert isinstance(error, InputError)
    assert "--old-model" in str(error)


def test_a_source_that_was_adopted_after_the_plan_is_asked_by_its_model(
    run: Any, folder: Path, tmp_path: Path
) -> None:
    enter(folder, *TO_VERIFIED)
    (tmp_path / "q.txt").write_text("one\n")
    # The journal knows no model, but the collection does; what is refused is the new one's double.
    error = run("shadow", "--queries", str(tmp_path / "q.txt")).exception
    assert isinstance(error, FingerprintMismatchError)
    assert "'docs-2' was made with 'new'" in str(error)


def test_an_alias_of_a_third_collection_is_left_alone_by_command(
    run: Any, folder: Path, tmp_path: Path
) -> None:
    enter(folder, *TO_VERIFIED, verify={"is_clean": True})
    with EdgeQdrantClient(tmp_path / "store") as client:
        fill(client, "docs-3", OLD)
        point(client, "docs", "docs-3")
    for step in ("cutover", "rollback"):
        assert "'docs' names collection 'docs-3'" in str(run(step).exception)


def test_a_model_named_for_an_unrecorded_source_is_not_taken_at_its_word(
    any_client: Client, journal: Journal
) -> None:
    """Both models have the same dimension; nothing but the vectors can tell."""
    params = qm.VectorParams(size=OLD.dimension, distance=qm.Distance.COSINE)
    any_client.create_collection("docs-1", {"text-dense": params})
    nodes = [TextNode(text=question) for question in QUESTIONS]
    vectors = OLD.encode_documents(QUESTIONS).dense
    assert vectors is not None
    rows = zip(vectors, build_payloads(nodes), strict=True)
    points = [
        qm.PointStruct(id=number, vector={"text-dense": vector.tolist()}, payload=payload)
        for number, (vector, payload) in enumerate(rows)
    ]
    any_client.upsert("docs-1", points)
    prove_source(journal.record, any_client, OLD)
    with pytest.raises(MigrationError, match=r"'docs-1'.*not proved to be 'new'.*cosine"):
        prove_source(journal.record, any_client, NEW)
    assert recorded_model(any_client.get_collection("docs-1")) is None
