"""The light endpoint's application over a model of the test's own, on a real port."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.serving.query_server import _make_server, listen
from unified_embeddings.serving.query_settings import QuerySettings
from unified_embeddings.serving.query_worker import QueryWorker


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Endpoint(NamedTuple):
    """A running endpoint, and how to ask it."""

    port: int
    worker: QueryWorker

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(
        self,
        path: str = "/query",
        payload: object = None,
        *,
        body: bytes | None = None,
        method: str = "POST",
        headers: dict[str, str] | None = None,
    ) -> Reply:
        connection = self.connect()
        if body is None:
            body = json.dumps(payload).encode()
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())

    def query(self, query: str = "a", **fields: object) -> Reply:
        return self.ask(payload={"input": {"query": query, **fields}})

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.ask("/health", method="GET", body=b"").status == 200)


def wait_until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


@contextlib.contextmanager
def endpoint(load: Callable[[], TextEmbedder], **settings: Any) -> Iterator[Endpoint]:
    chosen = QuerySettings(port=0, **settings)
    worker = QueryWorker(load, capacity=chosen.queue_size, patience=chosen.request_timeout)
    listener = listen(chosen.host, 0)
    server = _make_server(worker, chosen)
    worker.start()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Endpoint(listener.getsockname()[1], worker)
    finally:
        server.should_exit = True
        thread.join(30)
        worker.stop(30)
    assert not thread.is_alive()
