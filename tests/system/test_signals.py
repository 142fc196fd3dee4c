"""What must not be interrupted runs to its end, and the interrupt comes afterwards."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest

from unified_embeddings.system.signals import uninterrupted


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


def _fail() -> None:
    raise OSError("failed")
