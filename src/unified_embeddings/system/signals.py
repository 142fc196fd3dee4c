"""Work that no signal interrupts.

What lives here: running a call to its end, and holding Ctrl-C back until work is at a good place to
stop. What does not: what must not be interrupted.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from types import FrameType
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None
"""What Python's `signal` takes and gives as a signal's handler."""


def uninterrupted(call: Callable[[], T]) -> T:
    """Run a call to its end, even if signals such as Ctrl-C arrive meanwhile.

    Python runs signal handlers in the main thread, so the call runs in another one, and this waits
    for it. `call` must not need a lock that its caller holds.

    Raises:
        BaseException: What a signal handler raised meanwhile, or else what `call` raised.
    """
    future: Future[T] = Future()

    def work() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    interruption: BaseException | None = None
    try:
        threading.Thread(target=work, name="uninterrupted").start()
    except BaseException as error:
        if future.cancel():  # It has not begun, and now it never will.
            raise
        interruption = error
    has_ended = False
    while not has_ended:
        try:
            wait([future])
            has_ended = True
        except BaseException as error:  # A signal's, and there may be several.
            interruption = error
    if interruption is not None:
        raise interruption from future.exception()
    return future.result()


class Interrupts:
    """Ctrl-C as something to ask about, for as long as `hold_interrupts` lasts."""

    def __init__(self) -> None:
        self._was_asked = False
        self._raises_at_once = False

    def check(self) -> None:
        """Raise what was held back; called where work may stop.

        Raises:
            KeyboardInterrupt: If Ctrl-C was pressed.
        """
        if self._was_asked:
            raise KeyboardInterrupt

    def let_through(self, items: Iterator[T]) -> Iterator[T]:
        """Yield items; Ctrl-C while one is waited for is raised at once.

        What comes from a pipe or a slow disk may not come for a long time.

        Raises:
            KeyboardInterrupt: If Ctrl-C is pressed meanwhile, or was before.
        """
        while True:
            self._raises_at_once = True
            try:
                self.check()
                item = next(items)
            except StopIteration:
                return
            finally:
                self._raises_at_once = False
            yield item

    def note(self, *_: object) -> None:
        """Take a signal: hold it back the first time, raise it the second.

        Raises:
            KeyboardInterrupt: If it is the second, or is let through.
        """
        is_first = not self._was_asked
        self._was_asked = True
        if self._raises_at_once or not is_first:
            raise KeyboardInterrupt


@contextlib.contextmanager
def hold_interrupts(*others: signal.Signals) -> Iterator[Interrupts]:
    """Hold the first Ctrl-C back until `check` is called; a second one is raised at once.

    Only the main thread gets signals: elsewhere, and for a signal that is ignored, this does
    nothing.

    Args:
        *others: Signals that are treated like Ctrl-C, such as SIGTERM.

    Raises:
        KeyboardInterrupt: At the end, if Ctrl-C was held back and the work has ended well.

    Example:
        >>> with hold_interrupts() as interrupts:
        ...     for number in range(3):
        ...         interrupts.check()      # between two steps, never within one
    """
    interrupts = Interrupts()
    formers: dict[signal.Signals, _Handler] = {}
    if threading.current_thread() is threading.main_thread():
        for kind in (signal.SIGINT, *others):
            former = signal.getsignal(kind)
            if former is not None and former is not signal.SIG_IGN:
                formers[kind] = former
    try:
        for kind in formers:
            signal.signal(kind, interrupts.note)
        yield interrupts
    finally:
        for kind, former in formers.items():
            signal.signal(kind, former)
    interrupts.check()
