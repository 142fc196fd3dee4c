"""One progress bar for all long work: drawn on standard error, only on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(title: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show how far work of `total` steps has come.

    Yields:
        A function to call with the number of steps just done; it does nothing where the bar is
        not shown.
    """
    with _bar(title, total, shown=shown) as (_, advance):
        yield advance


@contextlib.contextmanager
def counted_later(
    title: str, *, shown: bool = True
) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """As `progress_bar` where the total is not known yet.

    Yields:
        A function to call once with the total, and one to call with the steps just done.
    """
    with _bar(title, None, shown=shown) as functions:
        yield functions


@contextlib.contextmanager
def _bar(
    title: str, total: int | None, *, shown: bool
) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    if not shown:
        yield (lambda _: None), (lambda _: None)
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
    ) as bar:
        task = bar.add_task(title, total=total)
        yield (lambda found: bar.update(task, total=found)), (lambda n: bar.advance(task, n))
