"""Workers without a model, run in child processes by the tests of `serving.workers`."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from unified_embeddings.errors import ModelLoadError
from unified_embeddings.serving.channel import WorkerOrder
from unified_embeddings.serving.settings import ServiceSettings


def count_start(options: dict[str, Any], order: WorkerOrder) -> int:
    """Note this start; returns how often this place was started before."""
    note = Path(options["starts"])
    with note.open("a") as file:
        file.write(f"{order.number}\n")
    return note.read_text().split().count(str(order.number)) - 1


class Reporter:
    def __init__(self, order: WorkerOrder) -> None:
        self.end = socket.socket(fileno=order.channel)

    def say(self, *, is_ready: bool = True, problem: str | None = None) -> None:
        message = {"is_ready": is_ready, "problem": problem, "metrics": ""}
        self.end.sendall(json.dumps(message).encode() + b"\n")

    def stay(self) -> None:
        """Report that all is well until SIGTERM."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        while True:
            self.say()
            time.sleep(0.05)


def work(options: dict[str, Any], settings: ServiceSettings, order: WorkerOrder) -> None:
    count_start(options, order)
    Reporter(order).stay()


def have_a_problem_at_first(
    options: dict[str, Any], settings: ServiceSettings, order: WorkerOrder
) -> None:
    """The first worker in each place gets ready, and then its engine hangs."""
    starts = count_start(options, order)
    reporter = Reporter(order)
    reporter.say()
    if starts == 0:
        reporter.say(is_ready=False, problem="the engine does not answer")
    reporter.stay()


def fall_silent_at_first(
    options: dict[str, Any], settings: ServiceSettings, order: WorkerOrder
) -> None:
    starts = count_start(options, order)
    reporter = Reporter(order)
    reporter.say()
    if starts == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    reporter.stay()


def fail_to_load(options: dict[str, Any], settings: ServiceSettings, order: WorkerOrder) -> None:
    count_start(options, order)
    raise ModelLoadError("bge-m3", "model.safetensors is truncated; fetch it again")


def die_while_loading(
    options: dict[str, Any], settings: ServiceSettings, order: WorkerOrder
) -> None:
    count_start(options, order)
    os.kill(os.getpid(), signal.SIGKILL)


def die_once_ready(options: dict[str, Any], settings: ServiceSettings, order: WorkerOrder) -> None:
    """The first two in each place die as soon as they are ready."""
    starts = count_start(options, order)
    reporter = Reporter(order)
    reporter.say()
    if starts < 2:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    reporter.stay()


def hang_when_told(options: dict[str, Any], settings: ServiceSettings, order: WorkerOrder) -> None:
    """A real worker, whose engine hangs at a text with the word "hang"."""
    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
    from unified_embeddings.embedders.fake import FakeEmbedder
    from unified_embeddings.serving.worker import run_worker

    class HangingEmbedder(FakeEmbedder):
        def encode(self, texts: Any, **how: Any) -> Any:
            if any("hang" in text for text in texts):
                time.sleep(600)
            return super().encode(texts, **how)

    embedder = HangingEmbedder(8)
    UnifiedEmbeddingConfig.embedder = property(lambda self: embedder)  # type: ignore[assignment]
    count_start(options, order)
    run_worker({"model_choice": "mini-m3"}, settings, order)
