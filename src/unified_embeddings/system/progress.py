"""One display of progress for all long work: a bar on a terminal, lines elsewhere.

What lives here: drawing, on standard error, and only if asked for. What does not: estimating
(`remaining`).
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

from unified_embeddings.system.remaining import RemainingTime, describe_remaining

_LINE_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""
_BAR_WIDTH = 12
"""Of a line of 80 columns, which also holds the count, the time and the file."""


@dataclass(frozen=True)
class Position:
    """How far work is.

    Attributes:
        done: How many things are done.
        total: How many there are; None while that is not known.
        is_exact: Whether `total` is certain, not an estimate.
        work: What is done in a unit that takes the same time each, as bytes of text do; None: the
            things themselves do.
        total_work: All of it in that unit.
        doing: What is in hand, as a file's path.
    """

    done: int
    total: int | None
    is_exact: bool = True
    work: float | None = None
    total_work: float | None = None
    doing: str = ""


Show = Callable[[Position], None]
"""Shows a position."""


@contextlib.contextmanager
def progress_bar(title: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show the progress of work that takes `total` steps.

    Args:
        title: What is being done.
        total: Number of steps.
        shown: Whether to draw the bar.

    Yields:
        A function to call with the number of steps just done. If the bar is not shown, it does
        nothing.
    """
    with open_ended_progress_bar(title, shown=shown) as (set_total, advance):
        set_total(total)
        yield advance


@contextlib.contextmanager
def open_ended_progress_bar(
    title: str, *, shown: bool = True
) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """Show the progress of work whose number of steps is not known at first.

    Args:
        title: What is being done.
        shown: Whether to draw the bar.

    Yields:
        A function to call once with the total, and one to call with the number of steps just done.
    """
    if not shown:
        yield _ignore, _ignore
        return
    done = 0
    known_total: int | None = None
    with _bar(title, "") as show:

        def set_total(total: int) -> None:
            nonlocal known_total
            known_total = total
            show(Position(done, total))

        def advance(steps: int) -> None:
            nonlocal done
            done += steps
            show(Position(done, known_total))

        yield set_total, advance


@contextlib.contextmanager
def open_progress(
    title: str, unit: str, *, on_terminal: bool, clock: Callable[[], float] = time.monotonic
) -> Iterator[Show]:
    """Show the progress of work whose extent becomes known as it goes.

    Args:
        title: What is being done.
        unit: What is counted, in the plural.
        on_terminal: Whether to draw a bar; otherwise there is a plain line every ten seconds.
        clock: Returns seconds that only grow.

    Yields:
        A function to call with each new position.
    """
    if on_terminal:
        with _bar(title, unit, clock) as show:
            yield show
    else:
        yield _Lines(title, unit, clock).show


class _Estimate:
    """The remaining time of work, as its positions tell it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._remaining = RemainingTime(clock)

    def describe(self, position: Position) -> str:
        """Return how long it will still take, in words; "" while that is not known."""
        work = position.done if position.work is None else position.work
        total = position.total if position.total_work is None else position.total_work
        if work <= 0:
            return ""
        self._remaining.note(work)
        if total is None or work >= total:
            return ""
        return describe_remaining(self._remaining.seconds(total - work))


class _Lines:
    """Plain lines on standard error, for a pipe or a log."""

    def __init__(self, title: str, unit: str, clock: Callable[[], float]) -> None:
        self._title = title
        self._unit = unit
        self._clock = clock
        self._estimate = _Estimate(clock)
        self._last = clock()

    def show(self, position: Position) -> None:
        remaining = self._estimate.describe(position)
        now = self._clock()
        if now - self._last < _LINE_SECONDS:
            return
        self._last = now
        parts = [f"{self._title}: {_describe_count(position)} {self._unit}".rstrip()]
        parts += [part for part in (remaining, position.doing) if part]
        print(", ".join(parts), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _bar(title: str, unit: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Show]:
    """Draw a bar on standard error."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
    from rich.table import Column
    from rich.text import Text

    class TimeColumn(TimeElapsedColumn):
        """The remaining time, and until that is known the time so far."""

        def render(self, task: Task) -> Text:
            if task.fields["remaining"]:
                return Text(task.fields["remaining"], style="progress.remaining")
            return super().render(task)

    estimate = _Estimate(clock)
    with Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=_BAR_WIDTH),
        TextColumn("{task.fields[count]}", table_column=Column(no_wrap=True)),
        TimeColumn(table_column=Column(no_wrap=True)),
        # What is in hand takes the room that is left, and gives way first.
        TextColumn("{task.fields[doing]}", table_column=Column(no_wrap=True, ratio=1)),
        console=Console(stderr=True),
        expand=True,
    ) as progress:
        task = progress.add_task(title, total=None, count="", remaining="", doing="")

        def show(position: Position) -> None:
            work = position.done if position.work is None else position.work
            total = position.total if position.total_work is None else position.total_work
            progress.update(
                task,
                completed=work,
                total=total,
                count=f"{_describe_count(position)} {unit}".rstrip(),
                remaining=estimate.describe(position),
                doing=escape(PurePath(position.doing).name),
            )

        yield show


def _describe_count(position: Position) -> str:
    """Return how many things are done, and of how many."""
    if position.total is None:
        return f"{position.done:,}"
    if not position.is_exact:
        return f"{position.done:,} of about {max(position.done, _rough(position.total)):,}"
    return f"{position.done:,} of {position.total:,}"


def _rough(count: int) -> int:
    """Return an estimated count with its first two digits."""
    step: int = 10 ** max(0, len(str(count)) - 2)
    return round(count / step) * step


def _ignore(_: int) -> None:
    pass
