"""The journal of parts: what a crash, a damage or another job leaves behind."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embeddings.bulk.job import JobFolder, Journal, OtherJobError, PartLine, sha256_of
from unified_embeddings.bulk.planning import FirstOccurrences, plan_parts
from unified_embeddings.bulk.rows import Row
from unified_embeddings.errors import InputError

DESCRIPTION = {"model": "fake", "fingerprint": "f" * 32}


def add_part(journal: Journal, number: int, content: bytes = b"vectors", failed: int = 0) -> None:
    path = journal.part_path(number)
    path.write_bytes(content)
    journal.add(
        PartLine(
            part=number,
            first_row=10 * number,
            rows=10,
            rows_digest=f"digest {number}",
            sha256=sha256_of(path),
            bytes=len(content),
            computed=8 - failed,
            failed=failed,
            tokens=100,
            truncated=0,
            seconds=0.5,
        )
    )


def test_finished_parts_are_there_after_a_restart(tmp_path: Path) -> None:
    with Journal(tmp_path, DESCRIPTION) as journal:
        add_part(journal, 1)
        add_part(journal, 0, failed=1)
    with Journal(tmp_path, DESCRIPTION) as journal:
        assert [line.part for line in journal.lines] == [0, 1]
        assert journal.is_done(0, "digest 0")
        assert not journal.is_done(2, "digest 2")
        assert dataclasses.asdict(journal.totals) == {
            "rows": 20,
            "computed": 15,
            "failed": 1,
            "tokens": 200,
            "truncated": 0,
            "seconds": 1.0,
        }
        assert journal.totals.repeated == 4


def test_a_file_without_a_line_and_a_line_without_its_file_are_computed_again(
    tmp_path: Path,
) -> None:
    with Journal(tmp_path, DESCRIPTION) as journal:
        for number in range(4):
            add_part(journal, number)
        journal.part_path(4).write_bytes(b"an orphan")
        journal.part_path(1).unlink()
        journal.part_path(2).write_bytes(b"vectorz")
    with Journal(tmp_path, DESCRIPTION) as journal:
        assert journal.damaged == (1, 2)
        assert [line.part for line in journal.lines] == [0, 3]
        assert not journal.part_path(4).exists()
    with Journal(tmp_path, DESCRIPTION) as journal:
        assert journal.damaged == ()


@given(cut=st.integers(min_value=1, max_value=400))
def test_a_manifest_cut_at_any_byte_loses_only_lines_from_there(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("job")
    with Journal(folder, DESCRIPTION) as journal:
        for number in range(3):
            add_part(journal, number)
    manifest = folder / "manifest.jsonl"
    content = manifest.read_bytes()
    kept = content[:-cut]
    manifest.write_bytes(kept)
    whole = kept.count(b"}")  # a line without its end of line is whole all the same
    with Journal(folder, DESCRIPTION) as journal:
        assert [line.part for line in journal.lines] == list(range(whole))
        add_part(journal, 7)
    with Journal(folder, DESCRIPTION) as journal:
        assert [line.part for line in journal.lines] == [*range(whole), 7]


def test_another_job_is_refused_with_what_differs(tmp_path: Path) -> None:
    Journal(tmp_path, DESCRIPTION).__exit__()
    with pytest.raises(OtherJobError, match="fingerprint is 'gggg"):
        Journal(tmp_path, {**DESCRIPTION, "fingerprint": "g" * 32})
    with pytest.raises(OtherJobError, match=r"heads is \['dense'\], was None"):
        Journal(tmp_path, {**DESCRIPTION, "heads": ["dense"]})
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(OtherJobError, match="damaged"):
        Journal(tmp_path, DESCRIPTION)


def test_changed_rows_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path, DESCRIPTION) as journal:
        add_part(journal, 1)
        with pytest.raises(OtherJobError, match="rows 10 to 19 are others now"):
            journal.is_done(1, "another digest")


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    with Journal(tmp_path, DESCRIPTION) as journal:
        add_part(journal, 0)

        def write_half(handle: int, data: bytes) -> int:
            return real_write(handle, data[: len(data) // 2])

        monkeypatch.setattr(os, "write", write_half)
        with pytest.raises(OSError, match="No space"):
            add_part(journal, 1)
        monkeypatch.undo()
        add_part(journal, 2)
    with Journal(tmp_path, DESCRIPTION) as journal:
        assert [line.part for line in journal.lines] == [0, 2]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    problems: list[str] = []

    def enter() -> None:
        try:
            JobFolder(tmp_path)
        except InputError as error:
            problems.append(str(error))

    with JobFolder(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(problems) == 1
    assert "another run" in problems[0]
    JobFolder(tmp_path).__exit__()


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="--output"):
        JobFolder(tmp_path / "taken")


# --- planning -----------------------------------------------------------------------------------

TEXTS = st.lists(st.one_of(st.none(), st.sampled_from("abcdefg")), max_size=40)


@given(texts=TEXTS, part_rows=st.integers(min_value=1, max_value=7))
def test_each_text_is_computed_once_and_each_row_knows_where(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], part_rows: int
) -> None:
    rows = [
        Row(number, text, "broken" if text is None else None, {"n": number})
        for number, text in enumerate(texts)
    ]
    with FirstOccurrences(tmp_path_factory.mktemp("dedupe"), str.lower) as occurrences:
        tasks = list(plan_parts(rows, part_rows, occurrences))
        assert occurrences.repeated == sum(text is not None for text in texts) - len(
            {text for text in texts if text is not None}
        )
    sources = [source for task in tasks for source in task.sources.tolist()]
    first: dict[str, int] = {}
    for number, text in enumerate(texts):
        if text is None:
            assert sources[number] == -1
        else:
            assert sources[number] == first.setdefault(text, number)
    assert [text for task in tasks for text in task.texts] == list(first)
    assert [record.fields["n"] for task in tasks for record in task.records] == list(
        range(len(texts))
    )


def test_equal_rows_give_equal_digests_and_others_do_not(tmp_path: Path) -> None:
    def digest(text: str, fields: dict[str, object]) -> str:
        (task,) = plan_parts([Row(0, text, None, fields)], 5, None)
        return task.rows_digest

    assert digest("a", {"x": 1, "y": 2}) == digest("a", {"y": 2, "x": 1})
    assert digest("a", {"x": 1}) != digest("b", {"x": 1})
    assert digest("a", {"x": 1}) != digest("a", {"x": "1"})
    assert json.loads(json.dumps(digest("a", {})))
