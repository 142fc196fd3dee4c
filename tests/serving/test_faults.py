"""A service whose engine fails, hangs or is overrun: what clients and health are told."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
from gated import PATIENCE, GatedEmbedder
from running import Reply, Running, read_reply, request, running
from test_guard import until

from unified_embeddings.embedders.base import Piece
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.serving import batcher as batcher_module
from unified_embeddings.serving import loading as loading_module
from unified_embeddings.types import Text


@pytest.fixture
async def gated() -> AsyncIterator[tuple[GatedEmbedder, Running]]:
    """A warm service whose engine waits for the test, and takes 1,000 waiting tokens."""
    engine = GatedEmbedder(32)
    engine.let_go(2)
    async with running(engine, max_waiting_tokens=1000) as made:
        for _ in range(2):
            await engine.entered()
        yield engine, made
        engine.set_free()


async def wait_for_health(service: Running, status: int) -> Reply:
    async def ask() -> Reply:
        while (reply := await service.get("/health")).status != status:
            await asyncio.sleep(0.01)
        return reply

    return await asyncio.wait_for(ask(), PATIENCE)


# --- an engine that fails -----------------------------------------------------------------------


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading_module, "_PROBE_INTERVAL", 0.02)


@pytest.mark.usefixtures("eager")
async def test_health_fails_with_the_engine_and_recovers_without_any_request() -> None:
    engine = GatedEmbedder(32)
    engine.set_free()
    async with running(engine) as service:

        def fail(texts: Sequence[Text]) -> None:
            raise RuntimeError("the GPU has fallen off the bus")

        engine.before = fail
        reply = await service.post("/embed", {"inputs": ["foxes", "dogs"]})
        assert reply.status == 500
        health = await wait_for_health(service, 503)
        assert health.json["problem"] == "the engine fails on every text"
        assert (await service.get("/ready")).status == 503
        engine.before = lambda texts: None
        # A load balancer sends nothing to an unhealthy service; it must find out by itself.
        await wait_for_health(service, 200)
        assert (await service.get("/ready")).status == 200


@pytest.mark.usefixtures("eager")
async def test_texts_that_the_engine_cannot_take_leave_health_alone() -> None:
    engine = GatedEmbedder(32)
    engine.set_free()
    async with running(engine) as service:

        def fail_on_bad(texts: Sequence[Text]) -> None:
            if "bad" in texts:
                raise RuntimeError("index out of range")

        engine.before = fail_on_bad
        for _ in range(10):  # as a client does that tries again
            assert (await service.post("/embed", {"inputs": "bad"})).status == 500
            assert (await service.get("/health")).status == 200
        await until(lambda: any("Again" in str(call) for call in engine.calls))
        assert (await service.get("/health")).status == 200


async def test_an_engine_that_hangs_and_returns(
    gated: tuple[GatedEmbedder, Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "_STALL_FLOOR", 0.1)
    monkeypatch.setattr(batcher_module, "_STALL_FACTOR", 0)
    engine, service = gated
    waiting = [
        asyncio.create_task(service.post("/embed", {"inputs": f"foxes {i}"})) for i in range(5)
    ]
    health = await wait_for_health(service, 503)
    assert health.json["problem"] == "the engine does not answer"
    for task in waiting:
        reply = await task
        assert reply.status == 503
        assert reply.headers["retry-after"] == "1"
    assert (await service.post("/embed", {"inputs": "dogs"})).status == 503
    engine.set_free()
    await wait_for_health(service, 200)
    assert (await service.post("/embed", {"inputs": "dogs"})).status == 200
    assert service.service.batcher.waiting_tokens == 0


# --- too much work ------------------------------------------------------------------------------


async def test_over_the_limit_each_contract_says_429_at_once(
    gated: tuple[GatedEmbedder, Running],
) -> None:
    engine, service = gated
    first = asyncio.create_task(service.post("/embed", {"inputs": "foxes"}))
    await engine.entered()
    # One large request is taken however large it is.
    large = asyncio.create_task(service.post("/embed", {"inputs": ["a b c"] * 2000}))
    await until(lambda: service.service.batcher.waiting_tokens == 10_000)
    for path, body in (
        ("/embed", {"inputs": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/api/embed", {"model": "mini-m3", "input": "x"}),
        ("/v1/m3", {"texts": ["x"]}),
        ("/query", {"input": {"query": "x"}}),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}),
    ):
        reply = await service.post(path, body)
        assert reply.status == 429
        assert int(reply.headers["retry-after"]) >= 1
        assert "10000 tokens are waiting, and the limit is 1000" in reply.body.decode()
    assert (await service.get("/health")).status == 200  # Busy is not broken.
    engine.set_free()
    assert (await first).status == 200
    assert len((await large).json) == 2000
    assert (await service.post("/embed", {"inputs": "x"})).status == 200


async def test_large_requests_are_refused_before_they_are_tokenised(
    gated: tuple[GatedEmbedder, Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each of them would be tokenised in its turn, and refused only after that."""
    engine, service = gated
    measured = 0
    measure = type(engine).measure

    def count(self: Any, texts: Any, **options: Any) -> Any:
        nonlocal measured
        measured += 1
        return measure(self, texts, **options)

    monkeypatch.setattr(GatedEmbedder, "measure", count)
    body = {"inputs": ["many words " * 100] * 100}
    tasks = [asyncio.create_task(service.post("/embed", body)) for _ in range(20)]
    await asyncio.wait(tasks, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    engine.set_free()
    statuses = [reply.status for reply in await asyncio.gather(*tasks)]
    assert statuses.count(429) == 20 - measured
    assert statuses.count(200) == measured
    assert measured < 20


async def test_a_request_past_its_deadline_is_a_504() -> None:
    engine = GatedEmbedder(32)
    engine.let_go(2)
    async with running(engine, request_timeout=0.2) as service:
        for _ in range(2):
            await engine.entered()
        reply = await service.post("/v1/embeddings", {"input": ["foxes"] * 100})
        assert reply.status == 504
        assert "not answered within" in reply.json["error"]["message"]
        await until(lambda: service.service.batcher.waiting_tokens == 0)
        engine.set_free()
        assert (await service.post("/embed", {"inputs": "dogs"})).status == 200


async def test_a_reranking_whose_documents_fail_leaves_no_work_behind() -> None:
    engine = GatedEmbedder(32)
    engine.set_free()
    async with running(engine) as service:

        def fail_on_bad(texts: Sequence[Text]) -> None:
            if "bad" in texts:
                raise RuntimeError("no")

        engine.before = fail_on_bad
        body = {"query": "foxes", "documents": ["bad", *["fine"] * 1500]}
        assert (await service.post("/v1/rerank", body)).status == 500
        batcher = service.service.batcher
        await until(lambda: batcher.is_idle)
        assert batcher.waiting_tokens == 0
        assert sum(map(len, engine.calls)) < 1000  # one pass, halved until the text was found


async def test_while_it_drains_what_is_in_hand_is_finished_and_new_work_is_refused(
    gated: tuple[GatedEmbedder, Running],
) -> None:
    engine, service = gated
    first = asyncio.create_task(service.post("/embed", {"inputs": "foxes"}))
    await engine.entered()
    body = json.dumps({"query": "foxes", "texts": ["dogs"]}).encode()
    reader, writer = await service.connect()
    writer.write(request("POST", "/rerank", body)[:-1])  # its body is not complete yet
    await until(lambda: len(service.server.server_state.tasks) == 2)
    service.service.is_draining = True
    refused = await service.post("/embed", {"inputs": "late"})
    assert refused.status == 503
    assert refused.headers["connection"] == "close"
    assert refused.headers["retry-after"] == "1"
    assert (await service.get("/ready")).json["status"] == "draining"
    engine.set_free()
    writer.write(body[-1:])
    assert (await first).status == 200
    assert (await read_reply(reader)).status == 200


# --- all together -------------------------------------------------------------------------------


async def test_faulty_clients_and_texts_swap_and_lose_no_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each answer is compared with its own text's vector, whatever the neighbours do."""
    dice = random.Random(3)
    engine = GatedEmbedder(32)
    engine.set_free()
    oracle = FakeEmbedder(32, cache=None)

    def misbehave(texts: Sequence[Text]) -> None:
        if any("bad" in str(text) for text in texts):
            raise dice.choice([RuntimeError, MemoryError, SystemExit])("zebra")

    engine.before = misbehave
    answered = 0

    async def ask(service: Running, number: int) -> None:
        nonlocal answered
        texts = [f"text {number} {i}" for i in range(dice.choice([1, 2, 40]))]
        is_bad = dice.random() < 0.1
        if is_bad:
            texts[-1] = "bad"
        task = asyncio.create_task(service.post("/embed", {"inputs": texts}))
        if dice.random() < 0.2:
            await asyncio.sleep(dice.random() / 20)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for writer in service.connections[-3:]:
                if dice.random() < 0.2:
                    writer.transport.abort()
            return
        try:
            reply = await task
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # One of those that were aborted.
        assert reply.status == (500 if is_bad else 200)
        if not is_bad:
            answered += 1
            expected = oracle.encode_documents(texts).dense
            np.testing.assert_allclose(reply.json, expected, rtol=1e-6)

    async with running(engine) as service:
        for _ in range(10):
            await asyncio.gather(*(ask(service, number) for number in range(40)))
        batcher = service.service.batcher
        await until(lambda: batcher.is_idle)
        assert (batcher.waiting_tokens, batcher.waiting_requests) == (0, 0)
        await wait_for_health(service, 200)
        assert "requests_in_flight 1.0" in (await service.get("/metrics")).body.decode()
    assert answered > 200
    gc.collect()
    own = [record for record in caplog.records if "never retrieved" in record.getMessage()]
    assert not own
    assert not [
        r
        for r in caplog.records
        if r.name.startswith(("uvicorn", "asyncio")) and r.levelno >= logging.ERROR
    ]


class SlowSplitter(FakeEmbedder):
    """Splits no text before it is told to."""

    def __init__(self) -> None:
        super().__init__(32)
        self.may_go_on = threading.Event()

    def split(self, text: str, *, special: bool = False) -> list[Piece]:
        self.may_go_on.wait(PATIENCE)
        return super().split(text, special=special)


async def test_tokenising_has_a_deadline_too() -> None:
    embedder = SlowSplitter()
    async with running(embedder, request_timeout=0.2) as service:
        try:
            reply = await service.post("/tokenize", {"inputs": "a"})
            waiting = await service.post("/tokenize", {"inputs": "a"})
        finally:
            embedder.may_go_on.set()
        assert (reply.status, waiting.status) == (504, 504)
        assert "not answered within 0.2 s" in reply.json["error"]
        assert (await service.post("/tokenize", {"inputs": "a"})).status == 200
