"""A running service in the test's own event loop, and a client that sends any bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from gated import PATIENCE

from conftest import fake_config
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.serving.app import make_app
from unified_embeddings.serving.listening import open_socket
from unified_embeddings.serving.server import Server, make_server
from unified_embeddings.serving.service import EmbeddingService
from unified_embeddings.serving.settings import ServiceSettings


@dataclass(frozen=True)
class Reply:
    """An HTTP answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A service that listens."""

    host: str
    port: int
    service: EmbeddingService
    server: Server
    connections: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        self.connections.append(writer)
        return reader, writer

    async def send(self, *parts: bytes, method: str = "POST") -> Reply:
        """Send bytes on a connection of their own, and read one answer."""
        reader, writer = await self.connect()
        for part in parts:
            writer.write(part)
            await writer.drain()
        reply = await read_reply(reader, method=method)
        writer.close()
        return reply

    async def get(self, path: str, **headers: str) -> Reply:
        return await self.send(request("GET", path, **headers))

    async def post(self, path: str, body: Any, **headers: str) -> Reply:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.send(request("POST", path, content, **headers))


def request(method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
    """Write a request; underscores in the headers' names stand for dashes."""
    lines = [f"{method} {path} HTTP/1.1", "host: test"]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


async def read_reply(reader: asyncio.StreamReader, *, method: str = "POST") -> Reply:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    status_line, *lines = head.decode("latin-1").rstrip().split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = b""
    if method != "HEAD" and "content-length" in headers:
        body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), PATIENCE)
    elif method != "HEAD":
        body = await asyncio.wait_for(reader.read(), PATIENCE)
    return Reply(int(status_line.split()[1]), headers, body)


@contextlib.asynccontextmanager
async def running(
    embedder: FakeEmbedder | None = None, *, is_loaded: bool = True, **options: Any
) -> AsyncIterator[Running]:
    """A service of a fake embedder on a free port.

    Args:
        embedder: Its embedder; None takes a FakeEmbedder of 32 dimensions.
        is_loaded: Whether to wait until it is ready.
        **options: Of ServiceSettings.
    """
    settings = ServiceSettings(port=0, **options)
    config = fake_config()
    if embedder is not None:
        config._embedder = embedder
    app = make_app(config, settings)
    server = make_server(app, settings)
    listener = open_socket("127.0.0.1", 0)
    host, port = listener.getsockname()
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.001)
    service: EmbeddingService = app.state.service
    made = Running(host, port, service, server)
    try:
        if is_loaded:
            await asyncio.wait_for(service.loaded(), PATIENCE)
        yield made
    finally:
        for writer in made.connections:
            writer.close()
        server.drain()
        await asyncio.wait_for(task, PATIENCE)
