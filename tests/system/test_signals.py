"""What must not be interrupted runs to its end or to a good place, and the interrupt comes then."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from unified_embeddings.system.signals import Interrupts, hold_interrupts, uninterrupted


class TestUninterrupted:
    def test_it_hands_back_results_and_errors(self) -> None:
        assert uninterrupted(lambda: 5) == 5
        with pytest.raises(OSError, match="failed"):
            uninterrupted(_fail)

    @pytest.mark.parametrize("signals", [1, 3])
    @pytest.mark.parametrize("ends", ["well", "with an error"])
    def test_signals_wait_until_the_call_has_ended(self, signals: int, ends: str) -> None:
        done: list[str] = []

        def call() -> None:
            for _ in range(signals):
                signal.raise_signal(signal.SIGINT)
                time.sleep(0.05)
            done.append("done")
            if ends != "well":
                _fail()

        with pytest.raises(KeyboardInterrupt):
            uninterrupted(call)
        assert done == ["done"]

    def test_without_a_thread_the_call_is_not_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        called: list[Callable[[], None]] = []
        monkeypatch.setattr(threading.Thread, "start", failing)
        with pytest.raises(RuntimeError, match="start new thread"):
            uninterrupted(lambda: called.append(_fail))
        assert called == []


def hold(work: Callable[[Interrupts], None]) -> None:
    """Work while interrupts are held back."""
    with hold_interrupts() as interrupts:
        work(interrupts)


class TestHoldInterrupts:
    def test_the_first_waits_for_a_check_and_the_second_does_not(self) -> None:
        done = []

        def work(interrupts: Interrupts) -> None:
            interrupts.check()
            signal.raise_signal(signal.SIGINT)
            done.append("one step")
            with pytest.raises(KeyboardInterrupt):
                interrupts.check()
            done.append("tidying up")
            signal.raise_signal(signal.SIGINT)
            done.append("never")

        with pytest.raises(KeyboardInterrupt):
            hold(work)
        assert done == ["one step", "tidying up"]

    def test_none_is_lost_if_nobody_asks(self) -> None:
        done = []

        def work(_: Interrupts) -> None:
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")

        with pytest.raises(KeyboardInterrupt):
            hold(work)
        assert done == ["all of it"]

    def test_an_error_of_the_work_goes_before(self) -> None:
        def work(_: Interrupts) -> None:
            signal.raise_signal(signal.SIGINT)
            _fail()

        with pytest.raises(OSError, match="failed"):
            hold(work)

    def test_the_former_handler_is_back_afterwards(self) -> None:
        seen: list[int] = []
        former = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
        try:
            with hold_interrupts():
                pass
            with pytest.raises(OSError, match="failed"), hold_interrupts():
                _fail()
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, former)
        assert seen == [signal.SIGINT]

    def test_what_is_ignored_stays_ignored(self) -> None:
        former = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with hold_interrupts() as interrupts:
                signal.raise_signal(signal.SIGINT)
                interrupts.check()
        finally:
            signal.signal(signal.SIGINT, former)

    def test_it_does_nothing_outside_of_the_main_thread(self) -> None:
        handlers = []

        def work() -> None:
            with hold_interrupts() as interrupts:
                handlers.append(signal.getsignal(signal.SIGINT))
                interrupts.check()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert handlers == [signal.getsignal(signal.SIGINT)]

    def test_waiting_for_an_item_is_interrupted_at_once(self) -> None:
        def items() -> Iterator[int]:
            yield 1
            yield 2
            signal.raise_signal(signal.SIGINT)
            raise AssertionError

        taken = []

        def work(interrupts: Interrupts) -> None:
            for item in interrupts.let_through(items()):
                taken.append(item)

        with pytest.raises(KeyboardInterrupt):
            hold(work)
        assert taken == [1, 2]

    def test_items_end_where_they_end(self) -> None:
        with hold_interrupts() as interrupts:
            assert list(interrupts.let_through(iter([1, 2]))) == [1, 2]

    def test_no_item_is_taken_once_it_was_held_back(self) -> None:
        taken = []

        def work(interrupts: Interrupts) -> None:
            items = interrupts.let_through(iter([1, 2, 3]))
            taken.append(next(items))
            signal.raise_signal(signal.SIGINT)
            taken.append(next(items))

        with pytest.raises(KeyboardInterrupt):
            hold(work)
        assert taken == [1]


def _fail() -> None:
    raise OSError("failed")


@pytest.mark.skipif(sys.platform == "win32", reason="raises SIGTERM")
class TestOtherSignals:
    def test_one_is_held_back_like_control_c(self) -> None:
        former = signal.getsignal(signal.SIGTERM)
        done: list[int] = []

        def work() -> None:
            with hold_interrupts(signal.SIGTERM) as interrupts:
                for number in range(3):
                    interrupts.check()
                    signal.raise_signal(signal.SIGTERM)
                    done.append(number)

        with pytest.raises(KeyboardInterrupt):
            work()
        assert done == [0]
        assert signal.getsignal(signal.SIGTERM) is former

    def test_one_that_is_ignored_stays_ignored(self) -> None:
        former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            with hold_interrupts(signal.SIGTERM) as interrupts:
                signal.raise_signal(signal.SIGTERM)
                interrupts.check()
                signal.raise_signal(signal.SIGINT)
                with pytest.raises(KeyboardInterrupt):
                    interrupts.check()
                interrupts._was_asked = False
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGTERM, former)
