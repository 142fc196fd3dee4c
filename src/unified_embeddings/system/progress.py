"""One progress bar for all long work, drawn on standard error, and only if asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


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
    with _open_bar(title, total, shown=shown) as (_, advance):
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
    with _open_bar(title, None, shown=shown) as functions:
        yield functions


@contextlib.contextmanager
def _open_bar(
    title: str, total: int | None, *, shown: bool
) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    if not shown:
        yield _ignore, _ignore
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task(title, total=total)

        def set_total(total: int) -> None:
            progress.update(task, total=total)

        def advance(steps: int) -> None:
            progress.advance(task, steps)

        yield set_total, advance


def _ignore(_: int) -> None:
    pass
