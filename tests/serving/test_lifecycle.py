"""A service's process: its port, loading, signals, and its end."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import serve_child

from command import finish, start
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.serving.listening import open_socket

PATIENCE = 60

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


class Child:
    """A running `serve_child.py`."""

    def __init__(self, context: Any, errors: Path, settings: dict[str, Any]) -> None:
        self._orders, theirs = context.Pipe()
        self._errors = errors
        self.process = context.Process(target=serve_child.run, args=(settings, theirs, errors))
        self.process.start()
        theirs.close()
        self.address: str = self.hear()

    def hear(self) -> Any:
        assert self._orders.poll(PATIENCE)
        return self._orders.recv()

    def tell(self, order: str) -> None:
        self._orders.send(order)

    def load(self) -> None:
        """Load the model, and wait until it is ready."""
        self.tell("load")
        assert self.hear() == "ready"

    def signal(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and what it wrote to standard error."""
        self.process.join(PATIENCE)
        errors = self._errors.read_text()
        assert "Traceback" not in errors, errors
        return self.process.exitcode, errors


@pytest.fixture(scope="module")
def context() -> Any:
    """Processes that are forked from one that has imported everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        made = multiprocessing.get_context("forkserver")
        made.set_forkserver_preload(["serve_child"])
        forkserver.ensure_running()
    return made


@pytest.fixture
def children(context: Any, tmp_path: Path) -> Iterator[Any]:
    made: list[Child] = []

    def make(**settings: Any) -> Child:
        made.append(Child(context, tmp_path / f"errors {len(made)}", settings))
        return made[-1]

    yield make
    for child in made:
        child.process.kill()
        child.process.join()


def client(child: Child) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=child.address, timeout=PATIENCE)


async def until(condition: Any) -> None:
    async def wait() -> None:
        while not await condition():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(wait(), PATIENCE)


async def waiting(http: httpx.AsyncClient, name: str) -> float:
    text = (await http.get("/metrics")).text
    (line,) = [line for line in text.splitlines() if line.startswith(f"unified_embeddings_{name} ")]
    return float(line.split()[1])


async def test_the_port_is_open_at_once_and_answers_503_until_the_model_is_warm(
    children: Any,
) -> None:
    child = children()
    async with client(child) as http:
        assert (await http.get("/health")).json() == {"status": "loading"}
        assert (await http.get("/ready")).status_code == 503
        for path, body in (
            ("/embed", {"inputs": "x"}),
            ("/v1/embeddings", {"input": "x"}),
            ("/v1/m3", {"texts": ["x"]}),
        ):
            reply = await http.post(path, json=body)
            assert reply.status_code == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert "being loaded" in reply.text
        child.load()
        assert (await http.get("/ready")).json() == {"status": "ok"}
        assert (await http.post("/embed", json={"inputs": "x"})).status_code == 200
    child.signal()
    assert child.end()[0] == 0


async def test_sigterm_under_load_answers_all_in_hand_and_refuses_new_connections(
    children: Any,
) -> None:
    child = children()
    child.load()
    oracle = FakeEmbedder(32)

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        texts = [f"slow {number} {i}" for i in range(1 + number % 3)]
        reply = await http.post("/embed", json={"inputs": texts})
        assert reply.status_code == 200
        expected = oracle.encode_documents(texts).dense
        np.testing.assert_allclose(reply.json(), expected, rtol=1e-6)

    async with client(child) as http, client(child) as other:
        await other.get("/health")
        tasks = [asyncio.create_task(ask(http, number)) for number in range(40)]
        await until_at_work(other, 40)
        child.signal()
        await asyncio.gather(*tasks)
        with pytest.raises(httpx.ConnectError):
            async with client(child) as late:
                await late.get("/health")
    code, errors = child.end()
    assert code == 0
    assert "ERROR" not in errors
    assert "WARNING" not in errors


async def until_at_work(http: httpx.AsyncClient, requests: int) -> None:
    """Wait until that many requests are in hand, the one that asks for it left out."""

    async def are_there() -> bool:
        return await waiting(http, "requests_in_flight") >= requests + 1

    await until(are_there)


async def test_a_hanging_engine_does_not_outlive_the_drain(children: Any) -> None:
    child = children(drain_timeout=1.0)
    child.load()
    async with client(child) as http:
        tasks = [asyncio.create_task(http.post("/embed", json={"inputs": "hang"}))]
        tasks += [asyncio.create_task(http.post("/embed", json={"inputs": "x"})) for _ in range(5)]
        await until_at_work(http, 6)
        child.signal()
        for reply in await asyncio.gather(*tasks):
            assert reply.status_code == 503
            assert "shutting down" in reply.text
    code, errors = child.end()
    assert code == 0
    assert "Ended with work unfinished" in errors
    assert "ERROR" not in errors


async def test_the_second_signal_ends_at_once(children: Any) -> None:
    child = children(drain_timeout=600.0)
    child.load()
    async with client(child) as http:
        task = asyncio.create_task(http.post("/embed", json={"inputs": "hang"}))
        await until_at_work(http, 1)
        child.signal()
        await asyncio.sleep(0.5)
        assert child.process.is_alive()
        child.signal()
        with pytest.raises(httpx.TransportError):
            await task
    code, errors = child.end()
    assert code == 1
    assert "second signal" in errors


async def test_health_tells_of_a_hanging_engine_within_seconds(children: Any) -> None:
    child = children()
    child.load()
    async with client(child) as http:
        begun = time.monotonic()
        task = asyncio.create_task(http.post("/embed", json={"inputs": "hang"}))

        async def is_unhealthy() -> bool:
            return (await http.get("/health")).status_code == 503

        await until(is_unhealthy)
        assert time.monotonic() - begun < 20  # 4 s, and what a busy machine adds
        reply = await task
        assert reply.status_code == 503
        assert "does not answer" in reply.text
        assert (await http.post("/embed", json={"inputs": "x"})).status_code == 503
    child.signal(signal.SIGINT)
    assert child.end()[0] == 0


async def test_an_engine_that_raises_system_exit_ends_nothing(children: Any) -> None:
    child = children()
    child.load()
    async with client(child) as http:
        reply = await http.post("/embed", json={"inputs": "exit"})
        assert reply.status_code == 500
        assert (await http.post("/embed", json={"inputs": "x"})).status_code == 200
        assert (await http.get("/health")).json() == {"status": "ok"}
    child.signal()
    assert child.end()[0] == 0


async def test_a_signal_while_the_model_loads_ends_the_process(children: Any) -> None:
    child = children()
    async with client(child) as http:
        assert (await http.get("/ready")).status_code == 503
    child.signal()
    assert child.end()[0] == 0


def test_a_model_that_cannot_be_loaded_ends_the_process_with_one_line(children: Any) -> None:
    child = children()
    child.tell("fail")
    code, errors = child.end()
    assert code == 1
    own = [line for line in errors.splitlines() if not line.startswith("{")]
    assert len(own) == 1
    assert own[0].startswith("error: ")
    assert "the weights are not there; download them first" in own[0]


def test_ipv6(children: Any) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    child = children(host="::1")
    assert child.address.startswith("http://[::1]:")
    assert httpx.get(f"{child.address}/health").status_code == 200


# --- the command --------------------------------------------------------------------------------


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = finish(start("serve", "--model", "mini-m3", "--port", str(port), cwd=tmp_path))
    assert ended.code != 0
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in ended.err
    assert "choose another --host or --port" in " ".join(ended.err.split())


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 70 + ".x", "999.1.1.1"])
def test_an_address_that_cannot_be_used_is_one_clear_error(host: str) -> None:
    with pytest.raises(InputError, match=f"cannot listen on {re.escape(host)}:8123: .*--host"):
        open_socket(host, 8123)


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    ended = finish(start("serve", "--model", "./nothing", "--port", "0", cwd=tmp_path))
    assert ended.code == 1
    assert "nothing" in ended.err


def test_what_is_wrong_with_an_option_is_told_without_a_text_of_the_warm_up(tmp_path: Path) -> None:
    ended = finish(
        start("serve", "--model", "mini-m3", "--engine", "no", "--port", "0", cwd=tmp_path)
    )
    assert ended.code == 1
    assert "error: engine must be auto, torch, sentence, onnx, flag, not 'no'" in ended.err


def test_a_place_without_a_collection_is_refused(tmp_path: Path) -> None:
    ended = finish(start("serve", "--model", "mini-m3", "--path", "data", cwd=tmp_path))
    assert ended.code == 1
    assert "name it with --collection" in ended.err


def test_the_command_serves_and_stops(tmp_path: Path) -> None:
    process = start("serve", "--model", "mini-m3", "--port", "0", cwd=tmp_path)
    assert process.stderr is not None
    first = process.stderr.readline()
    address = first[first.index("http://") : first.index(", loading")]
    while "ready at" not in (line := process.stderr.readline()):
        assert line
    reply = httpx.post(f"{address}/embed", json={"inputs": "Foxes jump."}, timeout=PATIENCE)
    assert len(reply.json()[0]) == 384
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    assert ended.code == 0
    assert [json.loads(line)["route"] for line in ended.err.splitlines()] == ["/embed"]
