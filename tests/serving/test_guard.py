"""What stands before every route: keys, sizes, slow and vanishing clients, and the log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from gated import PATIENCE, GatedEmbedder
from running import Reply, Running, read_reply, request, running

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.serving.logs import set_up_logging

MIB = 1024 * 1024


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that the process logs, as the command writes it."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    levels = {name: logging.getLogger(name).level for name in ("uvicorn", "httpx", "asyncio")}
    showwarning = warnings.showwarning
    stream = io.StringIO()
    set_up_logging(stream)
    yield stream
    root.handlers[:], root.level = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    warnings.showwarning = showwarning


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


@pytest.fixture
async def service() -> AsyncIterator[Running]:
    async with running(max_body_bytes=100_000, receive_timeout=0.3) as made:
        yield made


async def check_alive(service: Running) -> None:
    reply = await service.post("/embed", {"inputs": "foxes"})
    assert reply.status == 200
    expected = FakeEmbedder(32).encode_documents(["foxes"]).dense
    np.testing.assert_allclose(reply.json, expected, rtol=1e-6)


# --- bodies -------------------------------------------------------------------------------------


async def test_a_body_of_a_gigabyte_is_refused_by_its_length_before_it_comes(
    service: Running,
) -> None:
    for path in ("/embed", "/v1/embeddings", "/api/embed", "/v1/m3", "/v1/rerank"):
        reply = await service.send(request("POST", path, content_length=str(1024 * MIB)))
        assert reply.status == 413
        assert reply.headers["connection"] == "close"
        assert "over the limit of 100000 bytes" in json.dumps(reply.json)
    await check_alive(service)


async def test_a_body_without_a_length_is_refused_where_the_limit_is_passed(
    service: Running,
) -> None:
    head = request("POST", "/embed", transfer_encoding="chunked")
    chunk = b"%x\r\n%s\r\n" % (60_000, b" " * 60_000)
    reply = await service.send(head, chunk, chunk)
    assert reply.status == 413
    await check_alive(service)


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_client_that_sends_all_before_it_reads_sees_the_refusal(
    service: Running, is_chunked: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * MIB

    headers = {} if is_chunked else {"content-length": str(64 * MIB)}
    async with httpx.AsyncClient(base_url=f"http://{service.host}:{service.port}") as client:
        reply = await client.post("/embed", content=pieces(), headers=headers)
        assert reply.status_code == 413
        reply = await client.post("/embed", json={"inputs": "foxes"})
        assert reply.status_code == 200


async def test_bodies_together_are_bounded_too() -> None:
    async with running(max_body_bytes=1000, receive_timeout=PATIENCE) as service:
        held = []
        for _ in range(4):
            _, writer = await service.connect()
            writer.write(request("POST", "/embed", content_length="1000") + b" " * 999)
            held.append(writer)
        guard_holds = 4 * 999

        async def until_refused() -> Reply:
            while True:
                reply = await service.post("/embed", b" " * 900)
                if reply.status == 429:
                    return reply
                await asyncio.sleep(0.01)  # the bodies above are still on their way

        reply = await asyncio.wait_for(until_refused(), PATIENCE)
        assert reply.headers["retry-after"] == "1"
        assert f"{guard_holds} bytes of other requests" in reply.json["error"]
        for writer in held:
            writer.close()

        async def until_taken() -> None:
            while (await service.post("/embed", b" " * 900)).status == 429:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(until_taken(), PATIENCE)
        await check_alive(service)


async def test_a_body_that_does_not_arrive_in_time_is_a_408(service: Running) -> None:
    reply = await service.send(request("POST", "/embed", content_length="100"), b'{"inp')
    assert reply.status == 408
    assert reply.headers["connection"] == "close"
    await check_alive(service)


async def test_a_head_that_does_not_arrive_in_time_closes_the_connection(
    service: Running,
) -> None:
    silent, _ = await service.connect()
    started, writer = await service.connect()
    writer.write(b"POST /embed HTTP/1.1\r\nhost:")
    kept, writer = await service.connect()
    writer.write(request("GET", "/health"))
    assert (await read_reply(kept)).status == 200
    writer.write(b"GET /heal")
    for reader in (silent, started, kept):
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
    await check_alive(service)


async def test_a_connection_that_waits_for_its_next_request_stays_open(service: Running) -> None:
    reader, writer = await service.connect()
    for _ in range(3):
        writer.write(request("GET", "/health"))
        assert (await read_reply(reader)).status == 200
        await asyncio.sleep(0.4)  # longer than a head may take


# --- clients that go ----------------------------------------------------------------------------


async def until(condition: Any) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(wait(), PATIENCE)


@pytest.fixture
async def gated() -> AsyncIterator[tuple[GatedEmbedder, Running]]:
    engine = GatedEmbedder(32)
    engine.let_go(2)  # the warm-up
    async with running(engine) as made:
        for _ in range(2):
            await engine.entered()
        yield engine, made
        engine.set_free()


async def test_the_work_of_a_client_that_goes_is_dropped_and_no_error(
    gated: tuple[GatedEmbedder, Running], log: io.StringIO
) -> None:
    engine, service = gated
    body = json.dumps({"inputs": "foxes"}).encode()
    _, in_pass = await service.connect()
    in_pass.write(request("POST", "/embed", body))
    assert await engine.entered() == ["foxes"]
    _, queued = await service.connect()
    queued.write(request("POST", "/embed", json.dumps({"inputs": ["gone"] * 50}).encode()))
    batcher = service.service.batcher
    await until(lambda: batcher.waiting_requests == 1)
    _, before = await service.connect()
    before.write(request("POST", "/embed", content_length="500") + b"{")
    for writer in (queued, before, in_pass):
        writer.close()
    await until(lambda: batcher.waiting_requests == 0)
    assert batcher.waiting_tokens == 0
    await until(lambda: len(lines(log)) >= 3)
    engine.set_free()
    await check_alive(service)
    assert engine.calls[3:] == [["foxes"]]
    logged = lines(log)
    assert [line["status"] for line in logged] == [499, 499, 499, 200]
    assert {line["level"] for line in logged} == {"INFO"}
    metrics = (await service.get("/metrics")).body.decode()
    assert 'status="499"} 2.0' in metrics


async def test_pipelined_requests_are_answered_in_their_order(service: Running) -> None:
    reader, writer = await service.connect()
    texts = ["foxes", "dogs", "cats", "seas"]
    for text in texts:
        writer.write(request("POST", "/embed", json.dumps({"inputs": text}).encode()))
    embedder = FakeEmbedder(32)
    for text in texts:
        reply = await read_reply(reader)
        np.testing.assert_allclose(reply.json, embedder.encode_documents([text]).dense, rtol=1e-6)


# --- odd requests -------------------------------------------------------------------------------


async def test_head_is_get_without_its_body(service: Running) -> None:
    for path in ("/health", "/ready", "/info"):
        reader, writer = await service.connect()
        writer.write(request("HEAD", path) + request("GET", path))
        head = await read_reply(reader, method="HEAD")
        body = await read_reply(reader)
        assert (head.status, body.status) == (200, 200)
        assert head.headers["content-length"] == body.headers["content-length"]


async def test_other_methods_are_405(service: Running) -> None:
    for method in ("OPTIONS", "PUT", "DELETE", "TRACE", "PROPFIND", "HEAD"):
        reply = await service.send(request(method, "/v1/embeddings"), method=method)
        assert reply.status == 405
        assert reply.headers["allow"] == "POST"


async def test_odd_targets(service: Running) -> None:
    targets = {
        "http://other.example/health": 200,
        "/%68ealth": 200,
        "/health?x=%ff": 200,
        "/%00": 404,
        "/%ff%fe": 404,
        "/../../etc/passwd": 404,
        "//health": 404,
        "/" + "a" * 20_000: 404,
        "*": 404,
    }
    for target, status in targets.items():
        assert (await service.get(target)).status == status, target[:50]
    await check_alive(service)


NO_HTTP = {
    "bytes": b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    "start of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "negative": b"POST /embed HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
    "two": b"POST /embed HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n12345",
    "both": b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\n\r\n",
}


async def test_what_is_no_http_is_a_400_and_no_error(service: Running, log: io.StringIO) -> None:
    for name, raw in NO_HTTP.items():
        assert (await service.send(raw)).status == 400, name
    await check_alive(service)
    assert "ERROR" not in log.getvalue()
    assert "exception" not in log.getvalue()


BAD_BODIES = {
    "deep list": b"[" * 10_000 + b"]" * 10_000,
    "deep texts": b'{"inputs":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "deep objects": b'{"inputs":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
    "open deep list": b"[" * 50_000,
    "no UTF-8": b'{"inputs": "\xff\xfe"}',
    "lone surrogate": b'{"inputs": "\\ud800"}',
    "NaN": b'{"inputs": NaN}',
    "UTF-16": '{"inputs": "a"}'.encode("utf-16"),
    "null": b"null",
    "nothing": b"",
    "number": b"1e999",
    "long number": b'{"inputs": [[' + b"9" * 5000 + b"]]}",
}


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/api/embed", "/v1/m3", "/query"])
async def test_what_is_no_usable_json_is_the_clients_fault(service: Running, path: str) -> None:
    for name, body in BAD_BODIES.items():
        reply = await service.post(path, body)
        assert reply.status in (400, 422), name
        assert "Traceback" not in reply.body.decode()
        assert reply.json["error"]


async def test_the_clients_request_id_is_kept_if_it_is_harmless(service: Running) -> None:
    for given in ("abc-1.2:3_4", "A" * 128):
        assert (await service.get("/health", x_request_id=given)).headers["x-request-id"] == given
    for given in ("", "a b", 'a"}', "A" * 129, "\xe4", "a\tb", "../x", "<b>"):
        reply = await service.get("/health", x_request_id=given)
        assert reply.headers["x-request-id"] not in ("", given)
        assert len(reply.headers["x-request-id"]) == 32


# --- keys ---------------------------------------------------------------------------------------


@pytest.fixture
async def locked() -> AsyncIterator[Running]:
    async with running(api_keys=("first-key", "second-key")) as made:
        yield made


async def test_each_key_opens_each_route(locked: Running) -> None:
    for value in ("Bearer first-key", "bearer second-key", "BEARER  first-key "):
        reply = await locked.post("/embed", {"inputs": "x"}, authorization=value)
        assert reply.status == 200


WRONG_KEYS = (
    *("", "Bearer", "Bearer ", "first-key", "Basic first-key", "Bearer first"),
    *("Bearer first-key2", "Bearer FIRST-KEY", "Bearer first-key,second-key"),
    *("Bearer \xff\xfe", "Bearer \xe4\xb8\xad"),
)


async def test_without_a_key_nothing_but_health_is_told(locked: Running) -> None:
    for path in ("/embed", "/v1/embeddings", "/metrics", "/info", "/nothing"):
        for value in WRONG_KEYS:
            reply = await locked.get(path, authorization=value)
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert "first-key" not in reply.body.decode()
    for open_path in ("/health", "/ready"):
        assert (await locked.get(open_path)).status == 200


async def test_without_a_key_a_body_is_not_read(locked: Running) -> None:
    reply = await locked.send(request("POST", "/embed", content_length="1000000"))
    assert reply.status == 401


# --- metrics and log ----------------------------------------------------------------------------


async def test_the_labels_of_the_metrics_have_a_bound(service: Running) -> None:
    for number in range(20):
        await service.get(f"/nothing/{number}")
        await service.get(f"/api/show/{number}?x={number}")
    for method in ("PROPFIND", "MKCOL", "TRACE", "PURGE"):
        await service.send(request(method, "/embed"))
        await service.send(request(method, "/nothing"))
    text = (await service.get("/metrics")).body.decode()
    rows = [row for row in text.splitlines() if row.startswith("unified_embeddings_requests_total")]
    assert len(rows) <= 4
    assert 'method="other",route="/embed",status="405"} 4.0' in text
    assert 'method="GET",route="other",status="404"} 40.0' in text


class Failing(FakeEmbedder):
    """Fails on some words, with messages and warnings that quote the text, as libraries do."""

    def encode(self, texts: Any, *, role: Any, heads: Any) -> Any:
        for text in texts:
            if "warning" in text:
                warnings.warn(f"odd text: {text}", stacklevel=1)
                logging.getLogger("some.library").warning("odd text\n%s", text)
            if "failure" in text:
                raise RuntimeError(f"cannot embed {text}")
        return super().encode(texts, role=role, heads=heads)


async def test_a_failure_shows_neither_traceback_nor_text(log: io.StringIO) -> None:
    async with running(Failing(32)) as service:
        for path, body in (
            ("/embed", {"inputs": "secretword failure"}),
            ("/v1/embeddings", {"input": ["fine", "secretword failure"]}),
            ("/v1/m3", {"texts": ["secretword failure"]}),
            ("/v1/rerank", {"query": "secretword failure", "documents": ["a"]}),
        ):
            reply = await service.post(path, body)
            assert reply.status == 500
            text = reply.body.decode()
            assert "secretword" not in text
            assert "Traceback" not in text
            assert ".py" not in text
            assert "the log has the place" in text
        await check_alive(service)
    errors = [line for line in lines(log) if line["level"] == "ERROR"]
    assert len(errors) == 4
    assert all("RuntimeError at " in line["exception"] for line in errors)
    assert "secretword" not in log.getvalue()


async def test_the_log_holds_no_word_of_any_request(log: io.StringIO) -> None:
    async with running(Failing(32), max_body_bytes=5000, api_keys=("quartzkey",)) as service:
        secret = "zebraword"

        async def ask(path: str, body: Any, **headers: str) -> Reply:
            headers = {"authorization": "Bearer quartzkey"} | headers
            return await service.post(path, body, **headers)

        tasks = []
        for number in range(40):
            text = f"{secret} {number}"
            tasks += [
                ask("/embed", {"inputs": text}),
                ask(f"/embed?{secret}", {"inputs": [text, f"{text} failure"]}),
                ask(f"/{secret}", {"inputs": text}),
                ask("/v1/embeddings", {"input": text, "model": secret}),
                ask("/v1/embeddings", {"input": {secret: secret}, "dimensions": secret}),
                ask("/v1/m3", {"texts": [secret, 7], secret: secret}),
                ask("/v1/m3", f'{{"texts": ["{secret} \\ud800"]}}'.encode()),
                ask("/embed", b'{"inputs": "' + secret.encode() + b'" oops'),
                ask("/embed", {"inputs": secret * 1000}),
                ask("/embed", {"inputs": secret}, x_request_id=f"<{secret}>"),
                ask("/embed", {"inputs": secret}, authorization=f"Bearer {secret}"),
                ask("/query", {"input": {"query": f"{text} warning"}}),
                ask("/v1/rerank", {"query": text, "documents": [text, secret]}),
                ask("/tokenize", {"inputs": text}),
            ]
        replies = await asyncio.gather(*tasks)
        assert {reply.status for reply in replies} >= {200, 400, 401, 404, 413, 422, 500}
    content = log.getvalue()
    logged = lines(log)
    requests = [line for line in logged if line["message"] == "Request"]
    assert len(requests) == len(tasks)
    assert {"request", "method", "route", "status", "ms"} <= requests[0].keys()
    assert secret not in content
    assert "quartzkey" not in content
    messages = [line["message"] for line in logged]
    assert any(message.startswith("UserWarning from") for message in messages)
    assert any(message.startswith("left out") for message in messages)
