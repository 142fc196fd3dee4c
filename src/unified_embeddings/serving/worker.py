"""One of several processes that serve behind one port.

What lives here: what a worker process runs, and its private channel to the process that watches
it. What does not: starting and replacing workers (`workers`), serving itself (`server`).

Both sides of the channel send lines of JSON. A worker tells its state twice a second, from its
event loop: one that hangs falls silent. It also sends its metrics, and may ask for the others'.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import FastAPI

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.serving.metrics import Metrics
from unified_embeddings.serving.server import serve
from unified_embeddings.serving.service import EmbeddingService
from unified_embeddings.serving.settings import ServiceSettings
from unified_embeddings.system.hardware import share_machine
from unified_embeddings.types import Options

BEAT = 0.5
"""Seconds between two reports of a worker."""
LINE_LIMIT = 16 * 2**20
"""Bytes that a line of the channel may have; the metrics of many workers take some."""
_ANSWER_TIME = 2.0
"""Seconds in which the other side tells the metrics of all workers."""


@dataclass(frozen=True)
class WorkerOrder:
    """What a worker process is started with.

    Attributes:
        number: Its place among the workers, from 0.
        workers: How many there are.
        accepts_early: Whether it takes connections while it loads its model, as the first one does,
            which nobody else could answer.
        listener: File descriptor of the socket that all workers accept from.
        channel: File descriptor of its end of the private channel.
    """

    number: int
    workers: int
    accepts_early: bool
    listener: int
    channel: int


def run_worker(options: Options, settings: ServiceSettings, order: WorkerOrder) -> None:
    """Serve a model in this process, as one of several; returns when it has been told to end.

    Args:
        options: Of `UnifiedEmbeddingConfig`.
        settings: Of the service.
        order: Which of the workers this is, and its sockets.

    Raises:
        UnifiedEmbeddingsError: If the model cannot be loaded.
    """
    share_machine(order.workers)
    set_up_logging(f"worker {order.number}: ")
    channel = Channel(socket.socket(fileno=order.channel))
    serve(
        UnifiedEmbeddingConfig(**options),
        settings,
        listener=socket.socket(fileno=order.listener),
        accepts_early=order.accepts_early,
        is_shared=True,
        companion=lambda app: _report(app, channel, str(order.number)),
    )


def set_up_logging(label: str = "") -> None:
    """Log to standard error.

    Args:
        label: What each message begins with.
    """
    pattern = f"%(asctime)s %(levelname)s %(name)s {label}%(message)s"
    logging.basicConfig(level=logging.INFO, format=pattern)
    logging.getLogger("httpx").setLevel(logging.WARNING)


class Channel:
    """One end of the private channel between a worker and the process that watches it.

    Args:
        end: A connected socket; the channel closes it.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Attach it to the running event loop."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._end, limit=LINE_LIMIT)

    async def send(self, message: Mapping[str, object]) -> None:
        """Send a message; do nothing if the other side has ended."""
        assert self._writer is not None
        with contextlib.suppress(OSError):
            self._writer.write(json.dumps(message).encode() + b"\n")
            await self._writer.drain()

    async def receive(self) -> dict[str, object] | None:
        """Return the next message; None if the other side has ended."""
        assert self._reader is not None
        try:
            line = await self._reader.readline()
        except OSError:
            return None
        # A line without an end is half of a message, from a process that was killed.
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        """Close this end."""
        if self._writer is not None:
            self._writer.close()
        else:
            self._end.close()


async def _report(app: FastAPI, channel: Channel, own_name: str) -> None:
    """Tell the watching process how this worker does, until cancelled."""
    service: EmbeddingService = app.state.service
    metrics: Metrics = app.state.metrics
    answers: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def ask_others() -> dict[str, str]:
        while not answers.empty():  # What came too late for an earlier question.
            answers.get_nowait()
        await channel.send({"asks_for_metrics": True})
        return await asyncio.wait_for(answers.get(), _ANSWER_TIME)

    await channel.open()
    metrics.join_workers(own_name, ask_others)
    listening = asyncio.create_task(_take_answers(channel, answers))
    try:
        while True:
            await channel.send(
                {
                    "is_ready": service.is_ready,
                    "problem": service.problem,
                    "metrics": metrics.write().decode(),
                }
            )
            await asyncio.sleep(BEAT)
    finally:
        listening.cancel()


async def _take_answers(channel: Channel, answers: asyncio.Queue[dict[str, str]]) -> None:
    while (message := await channel.receive()) is not None:
        texts = message["metrics"]
        assert isinstance(texts, dict)
        answers.put_nowait(texts)
