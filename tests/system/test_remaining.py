"""How long work will still take, by a clock that the tests set; and how progress is shown."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from unified_embeddings.system.progress import Position, open_progress, progress_bar
from unified_embeddings.system.remaining import RemainingTime, describe_remaining


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestRemainingTime:
    def test_at_constant_speed_it_is_right_from_the_first_tenth_on(self, clock: Clock) -> None:
        remaining = RemainingTime(clock)
        for done in range(1, 1001):
            clock.now += 0.1
            remaining.note(done)
            estimate = remaining.seconds(1000 - done)
            if done >= 100:
                assert estimate == pytest.approx(0.1 * (1000 - done), rel=0.1, abs=0.01)

    def test_texts_of_differing_lengths_are_right_by_their_bytes(self, clock: Clock) -> None:
        """Ten bytes a second; texts of 1 to 200 bytes, which end in bursts of sixteen."""
        random.seed(5)
        lengths = [random.choice((1, 5, 200)) for _ in range(1600)]
        total, done = sum(lengths), 0
        remaining = RemainingTime(clock)
        for start in range(0, len(lengths), 16):
            burst = lengths[start : start + 16]
            clock.now += sum(burst) / 10
            for length in burst:
                done += length
                remaining.note(done)
            if total / 10 <= done < total:
                assert remaining.seconds(total - done) == pytest.approx(
                    (total - done) / 10, rel=0.1
                )

    @pytest.mark.parametrize("loading", [0.0, 5.0, 300.0])
    def test_what_comes_before_the_first_step_does_not_count(
        self, clock: Clock, loading: float
    ) -> None:
        remaining = RemainingTime(clock)
        clock.now += loading
        for done in range(1, 11):
            clock.now += 1
            remaining.note(done)
        assert remaining.seconds(90) == pytest.approx(90)

    def test_it_follows_the_speed_of_the_last_part(self, clock: Clock) -> None:
        remaining = RemainingTime(clock)
        for done in range(1, 101):  # one a second
            clock.now += 1
            remaining.note(done)
        for done in range(101, 141):  # then one in five seconds
            clock.now += 5
            remaining.note(done)
        assert remaining.seconds(100) == pytest.approx(500, rel=0.1)

    def test_nothing_is_said_before_enough_was_seen(self, clock: Clock) -> None:
        remaining = RemainingTime(clock)
        assert remaining.seconds(5) is None
        remaining.note(1)
        assert remaining.seconds(5) is None
        clock.now += 60
        remaining.note(2)
        assert remaining.seconds(5) is None  # one step, however long
        for done in range(3, 6):
            clock.now += 60
            remaining.note(done)
        assert remaining.seconds(5) == pytest.approx(300)

    def test_what_ends_at_once_is_no_speed(self, clock: Clock) -> None:
        remaining = RemainingTime(clock)
        for done in range(1, 500):
            remaining.note(done)
        assert remaining.seconds(5) is None

    def test_a_long_job_keeps_few_marks(self, clock: Clock) -> None:
        remaining = RemainingTime(clock)
        for done in range(1, 50_001):
            clock.now += 1
            remaining.note(done)
        assert len(remaining._marks) < 500
        assert remaining.seconds(1000) == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (0.0, "a few seconds left"),
        (9.9, "a few seconds left"),
        (14, "about 10 s left"),
        (42, "about 40 s left"),
        (56, "about 1 min left"),
        (89, "about 1 min left"),
        (170, "about 3 min left"),
        (11 * 60, "about 10 min left"),
        (43 * 60, "about 45 min left"),
        (59 * 60, "about 1 h left"),
        (74 * 60, "about 1 h 15 min left"),
        (9 * 3600 + 55 * 60, "about 10 h left"),
        (30.4 * 3600, "about 30 h left"),
    ],
)
def test_it_is_said_no_more_exactly_than_it_is_known(seconds: float | None, words: str) -> None:
    assert describe_remaining(seconds) == words


def positions(count: int) -> Iterator[Position]:
    for done in range(1, count + 1):
        yield Position(done, count, is_exact=done > 30, doing=f"docs/[{done}].md")


class TestShowing:
    def test_in_a_pipe_there_are_lines(
        self, clock: Clock, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with open_progress("Indexing", "passages", on_terminal=False, clock=clock) as show:
            for position in positions(60):
                clock.now += 1
                show(position)
        out, err = capsys.readouterr()
        assert out == ""
        assert "\r" not in err
        assert "\x1b" not in err
        assert err.splitlines() == [
            "Indexing: 10 of about 60 passages, about 50 s left, docs/[10].md",
            "Indexing: 20 of about 60 passages, about 40 s left, docs/[20].md",
            "Indexing: 30 of about 60 passages, about 30 s left, docs/[30].md",
            "Indexing: 40 of 60 passages, about 20 s left, docs/[40].md",
            "Indexing: 50 of 60 passages, about 10 s left, docs/[50].md",
            "Indexing: 60 of 60 passages, docs/[60].md",
        ]

    def test_quick_work_prints_no_line(
        self, clock: Clock, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with open_progress("Indexing", "passages", on_terminal=False, clock=clock) as show:
            for position in positions(60):
                clock.now += 0.1
                show(position)
        assert capsys.readouterr() == ("", "")

    def test_on_a_terminal_there_is_a_bar(
        self, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr("rich.console.Console.is_terminal", True)
        monkeypatch.setenv("TERM", "xterm")
        with open_progress("Indexing", "passages", on_terminal=True, clock=clock) as show:
            for position in positions(59):
                clock.now += 1
                show(replace(position, total=60))
        out, err = capsys.readouterr()
        assert out == ""
        # Each state of the bar is one line, however full: nothing is wrapped.
        last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", err).strip().splitlines()[-1]
        assert len(last) <= 80
        assert last.split()[0] == "Indexing"
        assert "59 of 60 passages a few seconds left [59].md" in last  # brackets are no markup

    @pytest.mark.parametrize("columns", [40, 80])
    def test_a_long_name_of_a_file_gives_way(
        self,
        clock: Clock,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        columns: int,
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr("rich.console.Console.is_terminal", True)
        with open_progress("Indexing", "passages", on_terminal=True, clock=clock) as show:
            for number in range(1, 9):
                clock.now += 100
                show(Position(number * 1000, 100_000, is_exact=False, doing="x" * 200))
        lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err).splitlines()
        assert max(len(line.rpartition("\r")[2]) for line in lines) <= columns
        if columns == 80:
            assert "8,000 of about 100,000 passages about 2 h 30 min left" in lines[-1]

    def test_a_bar_that_is_not_shown_prints_nothing(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with progress_bar("Embedding", 3, shown=False) as advance:
            advance(3)
        assert capsys.readouterr() == ("", "")
        with progress_bar("Embedding", 3) as advance:
            advance(3)
        assert "3 of 3" in capsys.readouterr().err
