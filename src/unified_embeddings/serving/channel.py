"""Between a worker process and the process that watches it.

What lives here: what a worker is started with, and the private channel between the two. What does
not: what they say (`worker`, `workers`). Only the standard library is imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass

_LINE_LIMIT = 16 * 2**20
"""Bytes that a message may have; the metrics of many workers take some."""


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


class Channel:
    """One end of the private channel between a worker and the process that watches it.

    Both sides send lines of JSON.

    Args:
        end: A connected socket; the channel closes it.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Attach it to the running event loop."""
        self._reader, self._writer = await asyncio.open_connection(
            sock=self._end, limit=_LINE_LIMIT
        )

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
