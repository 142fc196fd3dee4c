"""Letting others see a piece of work while it is done, without knowing who they are.

What lives here: how a watcher is called. What does not: what the work is (`embedders`,
`retrievers`), what watchers make of it (`monitoring`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

Work = TypeVar("Work")

_CHANGING = threading.Lock()


class Watchers(Generic[Work]):
    """Those who see each piece of some work; none at first.

    A watcher is called with the work before it begins, and returns a context manager around it. By
    the end of the context, the work's record holds its outcome. What a watcher raises reaches the
    caller, so it should not raise.

    Example:
        >>> import contextlib
        >>> from unified_embeddings.system.watching import Watchers
        >>> watchers: Watchers[str] = Watchers()
        >>> @contextlib.contextmanager
        ... def tell(work):
        ...     print("begins:", work)
        ...     yield
        ...     print("ended:", work)
        >>> stop = watchers.add(tell)
        >>> with watchers.around("a search"):
        ...     print("searching")
        begins: a search
        searching
        ended: a search
        >>> stop()
        >>> bool(watchers)
        False
    """

    def __init__(self) -> None:
        self._watchers: tuple[Callable[[Work], AbstractContextManager[None]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self._watchers)

    def add(self, watcher: Callable[[Work], AbstractContextManager[None]]) -> Callable[[], None]:
        """Let a watcher see the work from now on; return what ends that."""
        with _CHANGING:
            self._watchers = (*self._watchers, watcher)

        def stop() -> None:
            with _CHANGING:
                self._watchers = tuple(other for other in self._watchers if other is not watcher)

        return stop

    @contextlib.contextmanager
    def around(self, work: Work) -> Iterator[None]:
        """Let the watchers see the work that is done inside the context."""
        with contextlib.ExitStack() as stack:
            for watcher in self._watchers:
                stack.enter_context(watcher(work))
            yield
