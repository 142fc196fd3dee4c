"""Several workers behind one port: they share the work, are replaced, and end together."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import command
import worker_functions
from unified_embeddings.errors import InputError, ModelLoadError, UnifiedEmbeddingsError
from unified_embeddings.serving import workers
from unified_embeddings.serving.listening import open_socket
from unified_embeddings.serving.metrics import merge_metrics
from unified_embeddings.serving.settings import ServiceSettings
from unified_embeddings.serving.workers import serve_with_workers

httpx = pytest.importorskip("httpx")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers inherit a socket")

PATIENCE = 120.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.05)


# --- supervision, without a model ---------------------------------------------------------------


class Watched:
    """A service of two workers that run a function of `worker_functions`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch = monkeypatch
        self.note = folder / "starts"
        self.was_ready = False
        self.url = ""

    @property
    def starts(self) -> dict[int, int]:
        """How often each place was filled."""
        places = self.note.read_text().split() if self.note.exists() else []
        return {number: places.count(str(number)) for number in (0, 1)}

    def run(self, work: Callable[..., None], until: Callable[[], bool] = lambda: False) -> None:
        """Serve until a condition holds, then end as by SIGTERM; or until the service gives up."""
        self._monkeypatch.setattr(workers, "run_worker", work)
        self._monkeypatch.setattr(workers, "_DELAYS", (0.0, 0.05))
        others = set(psutil.Process().children())  # Of earlier tests: multiprocessing's helpers.
        has_ended = threading.Event()
        late = []

        def stop() -> None:
            deadline = time.monotonic() + PATIENCE
            while not (self.was_ready and until()):
                if has_ended.wait(0.02):
                    return
                if time.monotonic() > deadline:
                    late.append(self.starts)
                    break
            os.kill(os.getpid(), signal.SIGTERM)

        def note_ready(address: str) -> None:
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
            self.url, self.was_ready = address, True

        stopper = threading.Thread(target=stop)
        # Should the signal come late, the test must live on.
        previous = signal.signal(signal.SIGTERM, lambda *_: None)
        stopper.start()
        try:
            serve_with_workers(
                {"starts": str(self.note)},
                ServiceSettings(workers=2, drain_timeout=5),
                open_socket("127.0.0.1", 0),
                on_ready=note_ready,
            )
        finally:
            has_ended.set()
            stopper.join()
            signal.signal(signal.SIGTERM, previous)
        assert not late, f"the condition never held: {late[0]}"
        assert not set(psutil.Process().children()) - others


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watched:
    return Watched(monkeypatch, tmp_path)


def test_each_place_is_filled_once_if_nothing_happens(watched: Watched) -> None:
    watched.run(worker_functions.work, until=lambda: True)
    assert watched.starts == {0: 1, 1: 1}


def test_workers_that_do_not_work_are_replaced(watched: Watched) -> None:
    watched.run(
        worker_functions.have_a_problem_at_first, until=lambda: watched.starts == {0: 2, 1: 2}
    )


def test_workers_that_fall_silent_are_replaced_by_force(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_SILENCE", 0.5)
    monkeypatch.setattr(workers, "_GRACE", 0.2)
    watched.run(worker_functions.fall_silent_at_first, until=lambda: watched.starts == {0: 2, 1: 2})


def test_workers_that_die_again_and_again_are_replaced_each_time(watched: Watched) -> None:
    watched.run(worker_functions.die_once_ready, until=lambda: watched.starts == {0: 3, 1: 3})


def test_a_worker_whose_engine_hangs_is_replaced_and_its_client_told(watched: Watched) -> None:
    answers = []

    def is_replaced() -> bool:
        if not answers:
            body = {"inputs": "please hang"}
            answers.append(httpx.post(f"{watched.url}/embed", json=body, timeout=PATIENCE))
        return sum(watched.starts.values()) == 3

    watched.run(worker_functions.hang_when_told, until=is_replaced)
    assert answers[0].status_code == 503
    assert "the engine does not answer" in answers[0].json()["error"]


def test_a_model_that_cannot_be_loaded_is_the_services_error(watched: Watched) -> None:
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is truncated"):
        watched.run(worker_functions.fail_to_load)
    assert watched.starts == {0: 1, 1: 0}  # One load is enough to know.


def test_workers_that_die_while_loading_are_given_up(watched: Watched) -> None:
    with pytest.raises(UnifiedEmbeddingsError, match=r"3 worker processes .* exit code -9"):
        watched.run(worker_functions.die_while_loading)
    assert watched.starts == {0: 3, 1: 0}


def test_windows_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with (
        open_socket("127.0.0.1", 0) as listener,
        pytest.raises(InputError, match=r"must be 1 on Windows, got 2.*ports of their own"),
    ):
        serve_with_workers({}, ServiceSettings(workers=2), listener)


def test_an_embedded_store_is_not_for_several_workers() -> None:
    with pytest.raises(InputError, match="cannot open one embedded store"):
        ServiceSettings(workers=2, store_path="store", collection="documents")
    ServiceSettings(workers=2, qdrant_url="http://localhost:6333", collection="documents")


def test_metrics_of_workers_are_told_apart() -> None:
    text = (
        "# HELP requests_total Requests answered.\n# TYPE requests_total counter\n"
        'requests_total{{route="/embed"}} {}\n# HELP ready Ready.\n# TYPE ready gauge\nready 1.0\n'
    )
    merged = merge_metrics({"1": text.format(5.0), "0": text.format(3.0)}).decode()
    assert merged.splitlines() == [
        "# HELP requests_total Requests answered.",
        "# TYPE requests_total counter",
        'requests_total{route="/embed",worker="0"} 3.0',
        'requests_total{route="/embed",worker="1"} 5.0',
        "# HELP ready Ready.",
        "# TYPE ready gauge",
        'ready{worker="0"} 1.0',
        'ready{worker="1"} 1.0',
    ]


# --- the command, with mini-m3 ------------------------------------------------------------------


class Service:
    """`unified-embeddings serve --workers 2` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    command.COMMAND, "serve", "--model", "mini-m3", "--device", "cpu",
                    "--port", str(self.port), "--workers", "2", *arguments,
                ],
                cwd=folder,
                env=command.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )  # fmt: skip

    def wait_until_ready(self) -> None:
        wait_for(lambda: f"ready at {self.url}" in self.log.read_text(), self.log.read_text())

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def embed(self, text: str, **options: Any) -> Any:
        response = httpx.post(f"{self.url}/embed", json={"text": text}, **options)
        assert response.status_code == 200, response.text
        return response.json()["embedding"]

    def ready_workers(self) -> int:
        with contextlib.suppress(httpx.HTTPError):
            return self.counts("ready").count(1.0)
        return 0

    def counts(self, name: str) -> list[float]:
        """Return a metric of each worker."""
        text = httpx.get(f"{self.url}/metrics").text
        values = re.findall(rf"^unified_embeddings_{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
        return [float(value) for value in values]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert "Traceback" not in self.log.read_text()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    started = Service(tmp_path, "--drain-timeout", "100")
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.end()


def test_workers_answer_are_replaced_and_drain(service: Service) -> None:
    expected = {f"text {i}": service.embed(f"text {i}") for i in range(8)}
    wait_for(lambda: service.ready_workers() == 2, "both tell their metrics")

    # Many connections at once are shared.
    clients = [httpx.Client() for _ in range(16)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for client in clients:
            pool.submit(client.post, f"{service.url}/embed", json={"text": "all at once"})
    wait_for(lambda: all(service.counts("texts_total")), "both have embedded something")

    # One is killed under requests. What it had in hand is lost; nothing is answered wrongly.
    is_over = threading.Event()
    answered: list[str] = []

    def ask_on(text: str) -> None:
        while not is_over.is_set():
            with contextlib.suppress(httpx.TransportError):
                np.testing.assert_allclose(service.embed(text), expected[text], atol=1e-6)
                answered.append(text)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask_on, text) for text in expected]
        try:
            victim = service.workers()[0]
            victim.kill()
            count = len(answered)
            wait_for(lambda: len(answered) > count + 20, "the other one answers")
            wait_for(lambda: service.ready_workers() == 2, "there are two again")
        finally:
            is_over.set()
        for task in asking:
            task.result()
    assert victim not in service.workers()
    assert len(service.workers()) == 2

    # SIGTERM: what is in hand is answered, and all end in good order.
    left = service.workers()
    long_text = "Foxes jump over lazy dogs. " * 40
    texts = [f"{i} {long_text}" for i in range(20)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [
            pool.submit(
                httpx.post,
                f"{service.url}/v1/m3",
                json={"texts": [f"{number} {text}" for text in texts], "isPassage": True},
                timeout=PATIENCE,
            )
            for number in range(4)
        ]
        wait_for(lambda: sum(service.counts("requests_in_flight")) >= 4, "all four are in hand")
        service.process.terminate()
        for answer in waiting:
            assert answer.result().status_code == 200
            assert len(answer.result().json()["results"]) == 20
    assert service.process.wait(PATIENCE) == 0
    assert not any(worker.is_running() for worker in left)
    assert "Traceback" not in service.log.read_text()


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    service = Service(tmp_path, "--model", "no/such")
    try:
        assert service.process.wait(PATIENCE) == 1
    finally:
        service.end()
    listening, error = service.log.read_text().splitlines()
    assert listening.startswith("note: listening on")
    assert error.startswith("error: Cannot load model 'no/such'")


def test_workers_end_with_the_process_that_watches_them(tmp_path: Path) -> None:
    service = Service(tmp_path)
    try:
        wait_for(lambda: len(service.workers()) > 0, "a worker was started")
        left = service.workers()
    finally:
        service.end()
    _, alive = psutil.wait_procs(left, timeout=PATIENCE)
    assert not alive
