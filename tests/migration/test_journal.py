"""A migration's record survives a crash at any point, and one process works on it at a time."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unified_embeddings.migration import journal as journal_module
from unified_embeddings.migration.journal import (
    Journal,
    JournalError,
    append_event,
    read_events,
    read_failed,
    read_record,
    read_unrepaired,
)
from unified_embeddings.migration.record import (
    Counters,
    MigrationRecord,
    record_from_json,
    record_to_json,
)
from unified_embeddings.migration.states import MigrationStateError
from unified_embeddings.migration.traffic import latest_report, record_report
from unified_embeddings.retrievers.transition_report import TransitionReport
from unified_embeddings.system import files


def make_record(**changes: object) -> MigrationRecord:
    values: dict[str, object] = {
        "alias": "docs",
        "place": {"path": "/data"},
        "source": "docs-1",
        "target": "docs-2",
        "model": {"model_choice": "mini-m3"},
        "model_name": "mini-m3",
        "fingerprint": "f" * 8,
    }
    return MigrationRecord(**(values | changes))  # type: ignore[arg-type]


def test_a_record_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    with Journal.create(tmp_path, make_record()) as journal:
        journal.enter("backfilling", offset=17, counters=Counters(read=3, written=2))
        journal.update(traffic={"share": 0.1}, overrides=({"gate": "quality"},))
        assert read_record(tmp_path) == journal.record
    record = read_record(tmp_path)
    assert (record.offset, record.counters.read) == (17, 3)
    assert record.traffic == {"share": 0.1}
    assert record.overrides == ({"gate": "quality"},)
    assert [entered.state for entered in record.entered] == ["planned", "backfilling"]


def test_a_state_that_may_not_follow_changes_nothing(tmp_path: Path) -> None:
    with Journal.create(tmp_path, make_record()) as journal:
        before = (tmp_path / "migration.json").read_bytes()
        with pytest.raises(MigrationStateError, match="what may follow: `migrate start`"):
            journal.enter("cut_over", offset=3)
        assert journal.record.offset is None
        assert (tmp_path / "migration.json").read_bytes() == before


def test_entering_a_state_again_keeps_its_time(tmp_path: Path) -> None:
    with Journal.create(tmp_path, make_record()) as journal:
        journal.enter("backfilling")
        first = journal.record.entered
        journal.enter("backfilling", offset=1)
        assert journal.record.entered == first


def test_the_target_serves_after_cut_over_only(tmp_path: Path) -> None:
    assert make_record(state="canary").serving_collection == "docs-1"
    assert make_record(state="cut_over").serving_collection == "docs-2"
    assert make_record(state="rolled_back").serving_collection == "docs-1"
    assert make_record(state="retired").serving_collection == "docs-2"


def test_two_cannot_work_on_one_migration(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from unified_embeddings.migration.journal import "
        "Journal; Journal.open(Path(sys.argv[1]))"
    )
    with Journal.create(tmp_path, make_record()):
        with pytest.raises(JournalError, match="another process or thread"):
            Journal.open(tmp_path)
        child = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True
        )
        assert "is being worked on by another process" in child.stderr
        append_event(tmp_path, "dirty", point="1")  # needs no lock
    Journal.open(tmp_path).close()


def test_a_migration_that_has_begun_is_not_planned_anew(tmp_path: Path) -> None:
    with Journal.create(tmp_path, make_record()) as journal:
        journal.note_failed({1: "no text"})
    with Journal.create(tmp_path, make_record(target="docs-3")) as journal:
        assert not journal.failed
        journal.enter("backfilling")
    with pytest.raises(JournalError, match="continue it"):
        Journal.create(tmp_path, make_record())
    assert read_record(tmp_path).target == "docs-3"


def test_a_crash_while_the_record_is_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal.create(tmp_path, make_record()) as journal:

        def fail(file: Path, target: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files, "publish_file", fail)
        with pytest.raises(JournalError, match="No space left"):
            journal.enter("backfilling")
        assert journal.record.state == "planned"
        assert read_record(tmp_path).state == "planned"


@pytest.mark.parametrize("cut", [2, 5, 20, 40])
def test_half_a_line_costs_that_line_only(tmp_path: Path, cut: int) -> None:
    with Journal.create(tmp_path, make_record()) as journal:
        journal.note("first", number=1)
        journal.note("second", number=2)
        journal.note_failed({"a": "poison", 2: "no text"})
    for name in ("events.jsonl", "failed.jsonl"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-cut])
    append_event(tmp_path, "third", number=3)
    events = [(event.event, dict(event.facts)) for event in read_events(tmp_path)]
    assert events[1:] == [("first", {"number": 1}), ("third", {"number": 3})]
    with Journal.open(tmp_path) as journal:
        assert "a" not in journal.failed or journal.failed["a"] == "poison"
        journal.note_failed({2: "no text", 3: "no text"})
    assert {2, 3} <= set(read_failed(tmp_path))


def test_a_failed_point_is_forgotten_once_it_is_mended(tmp_path: Path) -> None:
    with Journal.create(tmp_path, make_record()) as journal:
        journal.note_failed({1: "poison", "a-b": "no text"})
        journal.note_failed({1: None, 7: None})
        assert journal.failed == {"a-b": "no text"}
    assert read_failed(tmp_path) == {"a-b": "no text"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: b"", "Expecting value"),
        (lambda content: content[:40], "Unterminated|Expecting|delimiter"),
        (lambda content: b"[]", "no format number"),
        (lambda content: content.replace(b'"planned"', b'"flying"'), "no state 'flying'"),
        (lambda content: content.replace(b'"format": 1', b'"format": 9'), "newer version"),
        (lambda content: content.replace(b'"alias"', b'"nickname"'), "damaged"),
    ],
)
def test_a_damaged_record_is_refused_in_words(tmp_path: Path, change: object, problem: str) -> None:
    assert callable(change)
    Journal.create(tmp_path, make_record()).close()
    path = tmp_path / "migration.json"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(JournalError, match=problem):
        Journal.open(tmp_path)


def test_a_folder_without_a_migration_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="migrate plan"):
        Journal.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_every_field_is_plain_json() -> None:
    record = make_record(estimate={"seconds": 3.5}, source_model=None)
    assert record_from_json(record_to_json(record)) == record
    assert json.loads(record_to_json(record))["format"] == 1


def test_what_a_former_migration_noted_is_not_the_next_ones(tmp_path: Path) -> None:
    with Journal.create(tmp_path, make_record()) as journal:
        for state in ("backfilling", "backfilled", "verified", "cut_over"):
            journal.enter(state)
        journal.note("dirty", side="source", ids=["1"])
        journal.note("dirty", side="target", ids=["2"])
        record_report(tmp_path, TransitionReport(depth=10, share=0, queries=1, compared=1))
        assert latest_report(tmp_path) is not None
        journal.enter("retired")
    with Journal.create(tmp_path, make_record(source="docs-2", target="docs-3")):
        assert latest_report(tmp_path) is None
        assert read_unrepaired(tmp_path, "source") == read_unrepaired(tmp_path, "target") == 0
        assert [event.event for event in read_events(tmp_path)] == ["planned"]
    content = (tmp_path / "events.jsonl").read_text()
    assert content.count('"dirty"') == 2  # the history is kept


def test_a_plan_that_is_interrupted_leaves_the_former_migration_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal.create(tmp_path, make_record()):
        pass

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_module.Journal, "_write", fail)
    with pytest.raises(OSError, match="No space"):
        Journal.create(tmp_path, make_record(target="docs-3"))
    monkeypatch.undo()
    assert read_record(tmp_path).target == "docs-2"
    with Journal.create(tmp_path, make_record(target="docs-3")) as journal:
        assert journal.record.target == "docs-3"


def test_a_disk_that_takes_half_a_line_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A raw write returns how much it wrote, without an error."""

    class Half(io.FileIO):
        def write(self, content: Any) -> int:
            if len(content) < 8:
                raise OSError(28, "No space left on device")
            return super().write(content[: len(content) // 2])

    monkeypatch.setattr(Path, "open", lambda path, mode, **_: Half(path, mode.replace("b", "")))
    with pytest.raises(JournalError, match="No space left"):
        append_event(tmp_path, "dirty", side="target")
    monkeypatch.undo()
    append_event(tmp_path, "swept")
    assert [event.event for event in read_events(tmp_path)] == ["swept"]


def test_names_that_are_no_unicode_are_kept(tmp_path: Path) -> None:
    """A file name of other bytes arrives as half a character, as does an alias typed so."""
    with Journal.create(tmp_path, make_record(alias="docs-\udcff")) as journal:
        journal.note("dirty", side="target", ids=["caf\udce9.txt", "a\u2028b"])
    assert read_record(tmp_path).alias == "docs-\udcff"
    assert read_events(tmp_path)[-1].facts["ids"] == ["caf\udce9.txt", "a\u2028b"]
