"""One of several processes that serve behind one port.

What lives here: what a worker process runs, and what it reports to the process that watches it.
What does not: starting and replacing workers (`workers`), serving itself (`server`).

A worker reports twice a second from its event loop, so that one that hangs falls silent.
"""

from __future__ import annotations

import asyncio
import socket

from fastapi import FastAPI

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.serving.channel import Channel, WorkerOrder
from unified_embeddings.serving.loading import NotReadyError
from unified_embeddings.serving.logs import set_up_logging
from unified_embeddings.serving.metrics import Metrics
from unified_embeddings.serving.server import serve
from unified_embeddings.serving.service import EmbeddingService
from unified_embeddings.serving.settings import ServiceSettings
from unified_embeddings.system.hardware import share_machine
from unified_embeddings.types import Options

_BEAT = 0.5
"""Seconds between two reports."""
_ANSWER_TIME = 2.0
"""Seconds in which the other side tells the metrics of all workers."""


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
    set_up_logging(worker=order.number)
    channel = Channel(socket.socket(fileno=order.channel))
    serve(
        UnifiedEmbeddingConfig(**options),
        settings,
        listener=socket.socket(fileno=order.listener),
        accepts_early=order.accepts_early,
        is_shared=True,
        companion=lambda app: _report(app, channel, str(order.number)),
    )


async def _report(app: FastAPI, channel: Channel, own_name: str) -> None:
    """Tell the watching process how this worker does, until cancelled."""
    service: EmbeddingService = app.state.service
    metrics: Metrics = app.state.metrics
    answers: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    turn = asyncio.Lock()

    async def ask_others() -> dict[str, str]:
        async with turn:
            while not answers.empty():  # What came too late for an earlier question.
                answers.get_nowait()
            await channel.send({"asks_for_metrics": True})
            try:
                return await asyncio.wait_for(answers.get(), _ANSWER_TIME)
            except asyncio.TimeoutError:
                raise NotReadyError("the metrics of the other workers did not arrive") from None

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
            await asyncio.sleep(_BEAT)
    finally:
        listening.cancel()


async def _take_answers(channel: Channel, answers: asyncio.Queue[dict[str, str]]) -> None:
    while (message := await channel.receive()) is not None:
        texts = message["metrics"]
        assert isinstance(texts, dict)
        answers.put_nowait(texts)
