"""Calls that no signal interrupts.

What lives here: running a call to its end. What does not: what must not be interrupted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")


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
