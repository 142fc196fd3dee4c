"""Ask a service from many connections at once: a process of its own, so that it slows nobody else.

    python benchmarks/load.py JOB.json

The job says whom to ask, from how many connections, and for how long; see `Job`. Answers are lines
of JSON on standard output: one after each so many requests, and the measurements at the end.

Each connection sends its next request once it has the answer to its last. Requests are written, and
answers taken apart, as bytes: a client library would take as much time as the service.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from report import percentile

_SEED = 11
_NO_ANSWER = "none"
"""Stands for the status of a request whose connection broke."""


@dataclass(frozen=True)
class Job:
    """What to ask.

    Attributes:
        host: Whom.
        port: Where.
        path: Route.
        key: Name of the field that holds the texts.
        texts: File with a JSON list of texts.
        clients: Connections.
        seconds: How long; None until `requests` are answered.
        requests: How many; None until `seconds` are over.
        sizes: How many texts a request holds: one of these, drawn at random.
        report_every: Requests after which to say how many there were.
        extra: Further fields of each request.
    """

    host: str
    port: int
    path: str
    key: str
    texts: str
    clients: int
    seconds: float | None = None
    requests: int | None = None
    sizes: tuple[int, ...] = (1,)
    report_every: int | None = None
    extra: dict[str, str] | None = None

    def write(self, file: Path) -> None:
        """Write the job for a process to read."""
        file.write_text(json.dumps(asdict(self)), "utf-8")


class _Load:
    """The measurements of all connections."""

    def __init__(self, job: Job, requests: Iterator[tuple[bytes, int]]) -> None:
        self._job = job
        self._requests = requests
        self._sent = 0
        self._answered = 0
        self._open = job.clients
        self._started = time.perf_counter()
        self._ended = self._started
        self._latencies: dict[str, list[float]] = {}
        self._texts = 0
        self.done = asyncio.get_running_loop().create_future()

    def next_request(self) -> tuple[bytes, int] | None:
        """Return a request and how many texts it holds; None if there were enough."""
        job = self._job
        is_over = (
            job.seconds is not None and time.perf_counter() - self._started > job.seconds
        ) or (job.requests is not None and self._sent >= job.requests)
        if is_over:
            return None
        self._sent += 1
        return next(self._requests)

    def note(self, status: str, seconds: float, texts: int) -> None:
        """Count an answer."""
        self._latencies.setdefault(status, []).append(seconds)
        self._ended = time.perf_counter()
        self._answered += 1
        if status == "200":
            self._texts += texts
        every = self._job.report_every
        if every is not None and self._answered % every == 0:
            print(json.dumps({"answered": self._answered}), flush=True)

    def close_one(self) -> None:
        """Count a connection that asks no more."""
        self._open -= 1
        if self._open == 0 and not self.done.done():
            self.done.set_result(None)

    def summary(self) -> dict[str, object]:
        """Return the rates, and the latencies by status, in seconds."""
        seconds = self._ended - self._started
        statuses = {}
        for status, latencies in sorted(self._latencies.items()):
            statuses[status] = {
                "count": len(latencies),
                "p50": percentile(latencies, 50),
                "p99": percentile(latencies, 99),
                "max": max(latencies),
            }
        return {"seconds": seconds, "texts_per_second": self._texts / seconds, "status": statuses}


class _Connection(asyncio.Protocol):
    """One connection, which asks and waits in turn."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._answer = b""
        self._size: int | None = None
        self._texts = 0
        self._sent_at = 0.0
        self._is_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if self._size is None:
            head, separator, _ = self._answer.partition(b"\r\n\r\n")
            if not separator:
                return
            (line,) = [row for row in head.lower().split(b"\r\n") if row.startswith(b"content-len")]
            self._size = len(head) + 4 + int(line.partition(b":")[2])
        if len(self._answer) < self._size:
            return
        status = self._answer[9:12].decode()
        self._answer, self._size, self._is_waiting = b"", None, False
        self._load.note(status, time.perf_counter() - self._sent_at, self._texts)
        if status == "200":
            self._ask()
        else:
            # Whoever is refused waits a little, as clients do.
            asyncio.get_running_loop().call_later(0.02, self._ask)

    def connection_lost(self, error: Exception | None) -> None:
        del error
        if self._is_waiting:
            self._load.note(_NO_ANSWER, time.perf_counter() - self._sent_at, self._texts)
        self._load.close_one()

    def _ask(self) -> None:
        if self._transport.is_closing():
            return
        request = self._load.next_request()
        if request is None:
            self._transport.close()
            return
        content, self._texts = request
        self._sent_at = time.perf_counter()
        self._is_waiting = True
        self._transport.write(content)


def make_requests(job: Job, texts: Sequence[str]) -> Iterator[tuple[bytes, int]]:
    """Yield requests without end, the same each time, and how many texts each holds."""
    rng = random.Random(_SEED)
    stream = itertools.cycle(texts)
    while True:
        size = rng.choice(job.sizes)
        chosen = [next(stream) for _ in range(size)]
        body = json.dumps({job.key: chosen, **(job.extra or {})}).encode()
        head = (
            f"POST {job.path} HTTP/1.1\r\nhost: {job.host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        yield head.encode() + body, size


async def run(job: Job) -> dict[str, object]:
    """Ask, and return the measurements."""
    texts = json.loads(Path(job.texts).read_text("utf-8"))
    loop = asyncio.get_running_loop()
    load = _Load(job, make_requests(job, texts))
    for _ in range(job.clients):
        await loop.create_connection(lambda: _Connection(load), job.host, job.port)
    await load.done
    return load.summary()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Job(**json.loads(Path(sys.argv[1]).read_text("utf-8")))))))
