"""How `embed` shows its progress: a bar, plain lines, or JSON events.

What lives here: what a user sees of a job. What does not: the job (`bulk`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import hide_passwords
from unified_embeddings.system.remaining import RemainingTime, describe_remaining

if TYPE_CHECKING:
    from unified_embeddings.bulk.estimate import Estimate
    from unified_embeddings.bulk.options import ModelReport, Progress

_LINE_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""


class Reporter(Protocol):
    """Shows what a job does."""

    def progress(self, progress: Progress) -> None:
        """Show how far a model is."""
        ...

    def report(self, report: ModelReport) -> None:
        """Show what became of a model."""
        ...

    def estimate(self, estimate: Estimate) -> None:
        """Show what a model would cost."""
        ...


@contextlib.contextmanager
def open_reporter(*, as_json: bool) -> Iterator[Reporter]:
    """Choose how to show progress, and end it with the context."""
    if as_json:
        yield _JsonReporter()
    elif shared.is_terminal():
        with _BarReporter() as reporter:
            yield reporter
    else:
        yield _LineReporter()


class _JsonReporter:
    """One JSON object in each line of standard output."""

    def progress(self, progress: Progress) -> None:
        self._print("progress", {**dataclasses.asdict(progress), "rate": progress.rows_per_second})

    def report(self, report: ModelReport) -> None:
        content = dataclasses.asdict(report)
        content["files"] = [hide_passwords(str(file)) for file in report.files]
        self._print("finished", content)

    def estimate(self, estimate: Estimate) -> None:
        self._print("estimate", dataclasses.asdict(estimate))

    def _print(self, event: str, content: dict[str, object]) -> None:
        typer.echo(json.dumps({"event": event, **content}, ensure_ascii=False))


class _TextReporter:
    """What the bar and the lines share: the remaining time, and the summary at the end."""

    def __init__(self) -> None:
        self._remaining: dict[str, RemainingTime] = {}

    def describe(self, progress: Progress) -> str:
        """Return in words how far a model is."""
        remaining = self._remaining.setdefault(progress.model, RemainingTime())
        seconds = None
        if progress.fraction and progress.rows > progress.resumed:
            remaining.note(progress.fraction)
            seconds = remaining.seconds(1 - progress.fraction)
        return _describe_progress(progress, describe_remaining(seconds))

    def report(self, report: ModelReport) -> None:
        shared.print_line(hide_passwords(_describe_report(report)))

    def estimate(self, estimate: Estimate) -> None:
        shared.print_line(_describe_estimate(estimate))


class _LineReporter(_TextReporter):
    """A plain line on standard error every few seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._last = 0.0

    def progress(self, progress: Progress) -> None:
        line = self.describe(progress)  # Each position counts for the remaining time.
        now = time.monotonic()
        if now - self._last >= _LINE_SECONDS or progress.phase == "writing":
            self._last = now
            typer.echo(line, err=True)


class _BarReporter(_TextReporter):
    """A bar on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__()
        self._bar = Progress(
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> _BarReporter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def progress(self, progress: Progress) -> None:
        if progress.model not in self._tasks:
            total = None if progress.fraction is None else 1.0
            self._tasks[progress.model] = self._bar.add_task(progress.model, total=total)
        self._bar.update(
            self._tasks[progress.model],  # type: ignore[arg-type]
            completed=progress.fraction or 0.0,
            description=self.describe(progress),
        )

    def report(self, report: ModelReport) -> None:
        self._bar.stop()
        super().report(report)


def _describe_progress(progress: Progress, remaining: str) -> str:
    parts = [f"{progress.model}: {progress.rows:,} rows"]
    if progress.phase == "writing":
        parts.append("writing the outputs")
    else:
        parts.append(f"{progress.rows_per_second:,.0f} rows/s")
        if remaining:
            parts.append(remaining)
    if progress.repeated:
        parts.append(f"{progress.repeated:,} repeated")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    return ", ".join(parts)


def _describe_report(report: ModelReport) -> str:
    parts = [f"{report.model}: {report.rows:,} rows in {_duration(report.seconds)}"]
    if report.was_finished:
        parts = [f"{report.model}: nothing to do, {report.rows:,} rows were finished before"]
    elif report.resumed:
        parts.append(f"{report.resumed:,} of them from an earlier run")
    if report.repeated:
        parts.append(f"{report.repeated:,} repeat another row's text and cost nothing")
    if report.failed:
        parts.append(f"{report.failed:,} failed, listed in {_failures_file(report)}")
    lines = [", ".join(parts), *(f"  {file}" for file in report.files)]
    return "\n".join(lines)


def _describe_estimate(estimate: Estimate) -> str:
    rows = "an unknown number of rows" if estimate.rows is None else f"about {estimate.rows:,} rows"
    parts = [f"{estimate.model}: {rows}"]
    if estimate.tokens is not None:
        parts.append(f"{estimate.tokens:,} tokens")
    if estimate.seconds is not None:
        parts.append(f"{_duration(estimate.seconds)} of computing")
    if estimate.bytes is not None:
        parts.append(f"{shared.format_bytes(estimate.bytes)} of parts and outputs")
    parts.append(f"{shared.format_bytes(estimate.free_bytes)} are free")
    return ", ".join(parts)


def _failures_file(report: ModelReport) -> str:
    """Return where the failures are listed: beside the outputs."""
    from unified_embeddings.bulk.output import FAILED_FILE

    for file in report.files:
        if str(file).endswith(FAILED_FILE):
            return str(file)
    last = report.files[-1]
    if isinstance(last, Path):
        return str(last.with_name(FAILED_FILE))
    return f"{last.rpartition('/')[0]}/{FAILED_FILE}"  # On an object store.


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
