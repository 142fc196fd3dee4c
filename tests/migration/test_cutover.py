"""The switch, back, and the end of the old collection: atomic, repeatable, and never by mistake."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from two_models import NEW, OLD, QUESTIONS, TEXTS, fill, point

from qdrant_server import running_server
from unified_embeddings.errors import FingerprintMismatchError, StoreError
from unified_embeddings.migration import journal as journal_module
from unified_embeddings.migration.backfill import migrate_points
from unified_embeddings.migration.cutover import (
    GateClosedError,
    cut_over,
    is_switched,
    retire,
    roll_back,
)
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.gate import GateCheck, GateReport, judge
from unified_embeddings.migration.journal import (
    Journal,
    append_event,
    read_events,
    read_record,
)
from unified_embeddings.migration.record import MigrationRecord
from unified_embeddings.migration.states import MigrationStateError, State
from unified_embeddings.migration.traffic import enter_shadow
from unified_embeddings.migration.versioned_retriever import VersionedRetriever
from unified_embeddings.stores.aliases import read_aliases, switch_alias
from unified_embeddings.stores.opening import Client, make_thread_safe

OPEN = GateReport(checks=(GateCheck("verified", passed=True, reason="clean"),))
CLOSED = GateReport(
    checks=(
        GateCheck("verified", passed=True, reason="clean"),
        GateCheck("quality", passed=False, reason="the new side is worse"),
    )
)
TO_VERIFIED: list[State] = ["backfilling", "backfilled", "verified"]


@pytest.fixture
def client(any_client: Client) -> Client:
    """A store with a collection of each model, and an alias of the old one."""
    fill(any_client, "docs-1", OLD)
    fill(any_client, "docs-2", NEW)
    point(any_client, "docs", "docs-1")
    return any_client


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """The journal of a migration that was verified."""
    record = MigrationRecord(
        alias="docs",
        place={"path": str(tmp_path)},
        source="docs-1",
        target="docs-2",
        model={"model_choice": "mini-m3"},
        model_name="new",
        fingerprint=NEW.fingerprint,
    )
    with Journal.create(tmp_path / "journal", record) as made:
        for state in TO_VERIFIED:
            made.enter(state)
        yield made


def owner(client: Client) -> str:
    return read_aliases(client)["docs"]


def answers(client: Client) -> list[Any]:
    retriever = VersionedRetriever(client, "docs", [OLD, NEW])
    return [
        [
            (scored.node.node_id, scored.score, scored.text)
            for scored in retriever.retrieve(question)
        ]
        for question in QUESTIONS[:10]
    ]


def test_there_and_back_and_there_again(client: Client, journal: Journal) -> None:
    before = answers(client)
    assert cut_over(journal, client, OPEN).outcome == "switched"
    assert owner(client) == "docs-2"
    assert read_record(journal.folder).state == "cut_over"
    assert is_switched(client, journal.record)
    assert answers(client) != before
    assert cut_over(journal, client, CLOSED).outcome == "unchanged"
    assert roll_back(journal, client).outcome == "switched"
    assert answers(client) == before
    assert read_record(journal.folder).state == "rolled_back"
    assert roll_back(journal, client).outcome == "unchanged"
    assert cut_over(journal, client, OPEN).outcome == "switched"
    assert retire(journal, client, confirmed=True)
    assert not retire(journal, client, confirmed=True)
    assert read_record(journal.folder).state == "retired"
    assert not client.collection_exists("docs-1")
    assert client.count("docs-2").count == len(TEXTS)
    with pytest.raises(MigrationStateError, match="deleted and cannot answer again"):
        roll_back(journal, client)


def test_the_switch_is_one_request(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    change = client.update_collection_aliases

    def watch(operations: Any, **options: Any) -> Any:
        asked.append(operations)
        return change(operations, **options)

    monkeypatch.setattr(client, "update_collection_aliases", watch)
    switch_alias(client, "docs", owner="docs-1", to="docs-2")
    switch_alias(client, "docs", owner="docs-1", to="docs-2")
    assert asked == [
        [
            qm.DeleteAliasOperation(delete_alias=qm.DeleteAlias(alias_name="docs")),
            qm.CreateAliasOperation(
                create_alias=qm.CreateAlias(collection_name="docs-2", alias_name="docs")
            ),
        ]
    ]
    assert owner(client) == "docs-2"


def test_what_a_server_is_asked_is_what_qdrant_documents(journal: Journal) -> None:
    sent: list[tuple[str, str, Any]] = []
    with running_server() as (url, _):
        client = QdrantClient(url=url, check_compatibility=False)
        fill(client, "docs-1", OLD)
        fill(client, "docs-2", NEW)
        point(client, "docs", "docs-1")

        def record(request: httpx.Request) -> None:
            body = json.loads(request.content) if request.content else None
            sent.append((request.method, request.url.path, body))

        inner: Any = client._client
        inner.openapi_client.client._client.event_hooks["request"].append(record)
        cut_over(journal, client, OPEN)
        roll_back(journal, client)
    switches = [request for request in sent if request[1] == "/collections/aliases"]
    assert switches == [
        (
            "POST",
            "/collections/aliases",
            {
                "actions": [
                    {"delete_alias": {"alias_name": "docs"}},
                    {"create_alias": {"collection_name": name, "alias_name": "docs"}},
                ]
            },
        )
        for name in ("docs-2", "docs-1")
    ]
    assert {method for method, _, _ in sent} == {"GET", "POST"}  # nothing else is changed


def test_no_reader_sees_the_alias_missing(client: Client) -> None:
    done = threading.Event()
    seen: set[str | None] = set()

    def watch() -> None:
        while not done.is_set():
            seen.add(read_aliases(client).get("docs"))

    watcher = threading.Thread(target=watch)
    make_thread_safe(client)
    watcher.start()
    try:
        for _ in range(20):
            switch_alias(client, "docs", owner="docs-1", to="docs-2")
            switch_alias(client, "docs", owner="docs-2", to="docs-1")
    finally:
        done.set()
        watcher.join()
    assert seen <= {"docs-1", "docs-2"}


# --- refusals -----------------------------------------------------------------------------------


def test_a_closed_gate_stops_and_force_is_recorded(client: Client, journal: Journal) -> None:
    with pytest.raises(GateClosedError, match=r"closed .quality: the new side is worse"):
        cut_over(journal, client, CLOSED)
    assert owner(client) == "docs-1"
    record = read_record(journal.folder)
    assert (record.state, record.overrides) == ("verified", ())
    assert record.gate is not None
    assert record.gate["passed"] is False
    switch = cut_over(journal, client, CLOSED, force=True)
    assert (switch.outcome, switch.overridden) == ("switched", ("quality",))
    (override,) = read_record(journal.folder).overrides
    assert override["overridden"] == {"quality": "the new side is worse"}
    events = [event.event for event in read_events(journal.folder)]
    assert events[-3:] == ["gate_closed", "cutting_over", "entered"]


def test_an_alias_of_a_third_collection_is_left_alone(client: Client, journal: Journal) -> None:
    fill(client, "docs-3", NEW)
    point(client, "docs", "docs-3")
    for step in (_switch, roll_back):
        with pytest.raises(MigrationError, match="'docs' names collection 'docs-3'"):
            step(journal, client)
    with pytest.raises(StoreError, match="should name 'docs-1', but it names 'docs-3'"):
        switch_alias(client, "docs", owner="docs-1", to="docs-2")
    assert owner(client) == "docs-3"
    assert journal.record.state == "verified"


def test_an_unready_migration_is_not_switched(client: Client, tmp_path: Path) -> None:
    record = MigrationRecord(
        alias="docs", place={}, source="docs-1", target="docs-2", model={}, model_name="new",
        fingerprint=NEW.fingerprint,
    )  # fmt: skip
    with Journal.create(tmp_path / "planned", record) as journal:
        with pytest.raises(MigrationStateError, match="'planned'"):
            cut_over(journal, client, OPEN)
        with pytest.raises(MigrationStateError, match="'planned'"):
            roll_back(journal, client)
        with pytest.raises(MigrationStateError, match="'planned'"):
            retire(journal, client, confirmed=True)


def test_a_target_that_is_missing_or_another_models_is_not_switched_to(
    client: Client, journal: Journal
) -> None:
    client.delete_collection("docs-2")
    with pytest.raises(MigrationError, match="'docs-2' does not exist"):
        cut_over(journal, client, OPEN, force=True)
    fill(client, "docs-2", OLD)
    with pytest.raises(FingerprintMismatchError):
        cut_over(journal, client, OPEN, force=True)
    assert owner(client) == "docs-1"


def test_the_old_collection_is_deleted_only_when_told_to(client: Client, journal: Journal) -> None:
    with pytest.raises(MigrationStateError, match="'verified'"):
        retire(journal, client, confirmed=True)
    cut_over(journal, client, OPEN)
    with pytest.raises(MigrationError, match=r"with its 6 points.*--yes"):
        retire(journal, client, confirmed=False)
    point(client, "archive", "docs-1")
    with pytest.raises(MigrationError, match="'archive' still names"):
        retire(journal, client, confirmed=True)
    assert client.collection_exists("docs-1")
    point(client, "archive", "docs-2")
    point(client, "docs", "docs-1")
    with pytest.raises(MigrationError, match="'docs' still names"):
        retire(journal, client, confirmed=True)
    assert client.count("docs-1").count == len(TEXTS)


def test_a_rollback_without_the_old_collection_changes_nothing(
    client: Client, journal: Journal
) -> None:
    cut_over(journal, client, OPEN)
    client.delete_collection("docs-1")
    with pytest.raises(MigrationError, match="does not exist any more"):
        roll_back(journal, client)
    assert owner(client) == "docs-2"


def test_a_rollback_counts_the_writes_that_the_old_side_lacks(
    client: Client, journal: Journal
) -> None:
    append_event(journal.folder, "dirty", side="target", ids=["0"])
    cut_over(journal, client, OPEN)
    append_event(journal.folder, "dirty", side="source", ids=["1"])
    append_event(journal.folder, "dirty", side="source", ids=["2"])
    with pytest.raises(MigrationError, match=r"2 writes.*--accept-lacking"):
        roll_back(journal, client)
    assert owner(client) == "docs-2"
    assert journal.record.state == "cut_over"
    assert roll_back(journal, client, accept_lacking=True).lacking == 2
    assert owner(client) == "docs-1"


def test_writes_that_the_new_side_lacks_are_told_and_not_deleted(
    client: Client, journal: Journal
) -> None:
    append_event(journal.folder, "dirty", side="target", ids=["0"])
    assert cut_over(journal, client, OPEN).lacking == 1
    with pytest.raises(MigrationError, match=r"1 writes.*'docs-1' only.*--discard-source-writes"):
        retire(journal, client, confirmed=True)
    assert client.count("docs-1").count == len(TEXTS)
    assert retire(journal, client, confirmed=True, discard_source_writes=True)


def test_what_a_killed_writer_left_on_one_side_closes_the_gate(
    client: Client, journal: Journal
) -> None:
    """Nothing notes it; the sides are compared right before the switch."""
    fill(client, "docs-1", OLD, [*TEXTS, "Added to the old side only."])
    with pytest.raises(GateClosedError, match=r"equal: 1 points differ.*000000000006"):
        cut_over(journal, client, OPEN)
    fill(client, "docs-2", NEW, [*TEXTS, "Added to the old side only.", "And to the new one."])
    with pytest.raises(GateClosedError, match=r"equal: 1 points differ.*000000000007"):
        cut_over(journal, client, OPEN)
    fill(
        client,
        "docs-1",
        OLD,
        ["Changed.", *TEXTS[1:], "Added to the old side only.", "And to the new one."],
    )
    with pytest.raises(GateClosedError, match=r"equal: 1 points differ.*000000000000"):
        cut_over(journal, client, OPEN)
    assert owner(client) == "docs-1"
    switch = cut_over(journal, client, OPEN, force=True)
    assert switch.overridden == ("equal",)


def test_points_that_could_not_be_embedded_do_not_close_the_gate(
    client: Client, journal: Journal
) -> None:
    fill(client, "docs-1", OLD, [*TEXTS, "Poison."])
    journal.note_failed({"00000000-0000-4000-8000-000000000006": "too long"})
    assert cut_over(journal, client, OPEN).outcome == "switched"


def test_a_rollback_takes_back_what_was_verified(client: Client, journal: Journal) -> None:
    """Or shadow after a rollback would lead to a cut-over without a look at what was written."""
    journal.update(verify={"is_clean": True})
    cut_over(journal, client, OPEN)
    roll_back(journal, client)
    enter_shadow(journal)
    (verified, *_) = judge(journal.record).checks
    assert not verified.passed
    assert "migrate verify" in verified.reason


def test_an_alias_switched_by_hand_before_its_time_can_be_taken_back(
    client: Client, journal: Journal
) -> None:
    journal.enter("backfilling")
    point(client, "docs", "docs-2")
    with pytest.raises(MigrationError, match=r"names 'docs-2' already.*migrate rollback"):
        migrate_points(journal, client, NEW)
    assert roll_back(journal, client).outcome == "switched"
    assert owner(client) == "docs-1"
    assert journal.record.state == "backfilling"


def test_a_copy_begun_after_an_interrupted_cut_over_removes_nothing(
    client: Client, journal: Journal
) -> None:
    point(client, "docs", "docs-2")  # and killed before the journal knew
    fill(client, "docs-2", NEW, [*TEXTS, "Written by the alias."])
    with pytest.raises(MigrationError, match="migrate cutover"):
        migrate_points(journal, client, NEW)
    assert client.count("docs-2").count == len(TEXTS) + 1


# --- crashes ------------------------------------------------------------------------------------


class Crash(BaseException):
    """Stands for the end of the process."""


class Crashing:
    """Ends the step before or after its n-th change of the journal or the store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
        self.left = -1
        self.after = False
        for target, name in (
            (journal_module, "replace_file"),
            (journal_module, "append_lines"),
            (client, "update_collection_aliases"),
            (client, "delete_collection"),
        ):
            monkeypatch.setattr(target, name, self._wrap(getattr(target, name)))

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Crash
            result = function(*args, **options)
            if self.left == 0:
                raise Crash
            return result

        return call


def _switch(journal: Journal, client: Client) -> object:
    return cut_over(journal, client, OPEN)


def _retire(journal: Journal, client: Client) -> object:
    return retire(journal, client, confirmed=True)


STEPS: list[tuple[Callable[[Journal, Client], object], str, State]] = [
    (_switch, "docs-2", "cut_over"),
    (roll_back, "docs-1", "rolled_back"),
    (_switch, "docs-2", "cut_over"),
    (_retire, "docs-2", "retired"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_every_step_can_be_interrupted_anywhere_and_repeated(
    client: Client, journal: Journal, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    crashing = Crashing(monkeypatch, client)
    folder = journal.folder
    journal.close()
    crashes = 0
    for step, collection, state in STEPS:
        for place in range(1, 20):
            crashing.left, crashing.after = place, after
            with Journal.open(folder) as again:
                try:
                    step(again, client)
                except Crash:
                    crashes += 1
                    # The alias names one of the two at every moment, and both can answer.
                    assert client.count("docs").count == len(TEXTS)
                    continue
            if crashing.left > 0:  # it came to its end without a crash
                break
        crashing.left = -1
        assert owner(client) == collection
        assert read_record(folder).state == state
        assert read_record(folder).overrides == ()
    assert crashes >= len(STEPS) * 2
    assert not client.collection_exists("docs-1")


def test_a_rollback_completes_an_interrupted_cutover_first(
    client: Client, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = answers(client)
    monkeypatch.setattr(journal, "enter", lambda *_, **__: (_ for _ in ()).throw(Crash()))
    with pytest.raises(Crash):
        cut_over(journal, client, OPEN)
    monkeypatch.undo()
    assert (owner(client), journal.record.state) == ("docs-2", "verified")
    assert roll_back(journal, client).outcome == "switched"
    assert answers(client) == before
    states = [entered.state for entered in journal.record.entered]
    assert states[-2:] == ["cut_over", "rolled_back"]


def test_an_interrupted_rollback_is_finished_before_another_cutover(
    client: Client, journal: Journal
) -> None:
    cut_over(journal, client, OPEN)
    switch_alias(client, "docs", owner="docs-2", to="docs-1")
    with pytest.raises(MigrationError, match="Run `migrate rollback`"):
        cut_over(journal, client, OPEN)
    assert roll_back(journal, client).outcome == "completed"
    assert cut_over(journal, client, dataclasses.replace(OPEN)).outcome == "switched"
