"""What every request passes before its route: keys, limits, an id, and the log.

What lives here: an ASGI middleware around the whole application. What does not: what a route does.
It stands outside of FastAPI, so that a body is never read without a limit, and so that a client
that has gone stops the work on its request.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unified_embeddings.serving.api_keys import ApiKeys
from unified_embeddings.serving.envelopes import (
    Contract,
    Problem,
    RequestError,
    contract_of,
    describe,
    write,
)
from unified_embeddings.serving.loading import NotReadyError
from unified_embeddings.serving.logs import LOG, describe_places
from unified_embeddings.serving.metrics import Metrics
from unified_embeddings.serving.service import EmbeddingService

_OPEN_PATHS = ("/health", "/ready")
"""What needs no key: probes of an orchestrator have none."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
_CLIENT_GONE = 499
"""The status that the log gives a request whose client did not wait; nginx's number."""
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Those that the metrics name; any other counts as "other", so that there is a bound to them."""
_BODIES_HELD = 4
"""Bodies of the largest size that may be held at the same time."""
_LINGER = 10.0
"""Seconds that the rest of a refused body is read and thrown away: many clients send all of it
before they look at the answer, and would see a broken connection instead."""
_GUESSED_JSON = (b"", b"application/x-www-form-urlencoded", b"text/plain")
"""Content types with which `curl -d` and others send JSON."""


class ClientGoneError(Exception):
    """The client has closed the connection."""


@dataclass
class _Exchange:
    """One request and what became of it."""

    request_id: str
    path: str
    method: str
    began: float
    status: int = 0
    problem: str = ""
    body_bytes: int = 0
    is_received: bool = False


class Guard:
    """An ASGI middleware: see the module.

    Args:
        app: What it guards.
        service: Whose settings and fingerprint are used.
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, service: EmbeddingService, metrics: Metrics) -> None:
        self._app = app
        self._service = service
        self._settings = service.settings
        self._metrics = metrics
        self._held_bytes = 0
        self._keys = ApiKeys(self._settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        exchange = _Exchange(
            request_id=_choose_id(headers.get(b"x-request-id", b"")),
            path=scope["path"],
            method=scope["method"],
            began=time.perf_counter(),
        )
        exchange.is_received = not _has_body(headers)
        if exchange.method == "HEAD":
            scope = {**scope, "method": "GET"}  # The server leaves the answer's body out.
        with self._metrics.in_flight():
            try:
                await self._answer(
                    scope, headers, receive, self._labelled(send, exchange), exchange
                )
            except ClientGoneError:
                exchange.status = _CLIENT_GONE
            finally:
                self._held_bytes -= exchange.body_bytes
                self._note(scope, exchange)

    async def _answer(
        self,
        scope: Scope,
        headers: MutableMapping[bytes, bytes],
        receive: Receive,
        send: Send,
        exchange: _Exchange,
    ) -> None:
        contract = contract_of(exchange.path)
        try:
            self._require_key(exchange.path, headers)
            # What is in hand is finished, also what needs several steps; new work is refused.
            if self._service.is_draining and exchange.method == "POST":
                raise RequestError(_shutting_down(contract))
            body = await self._read_body(headers, receive, exchange)
            _name_json(scope, headers)
            await self._run(scope, body, receive, send)
        except RequestError as refusal:
            exchange.problem = refusal.problem.kind
            await _refuse(refusal.problem, scope, receive, send, exchange)
        except ClientGoneError:
            raise
        except asyncio.CancelledError:
            # The server ends and has lost its patience; an answer is better than none.
            exchange.problem = "shutdown"
            if exchange.status:
                raise
            await write(_shutting_down(contract), contract)(scope, receive, send)
        except Exception as error:
            exchange.problem = type(error).__name__
            fields = {"request": exchange.request_id, "exception": describe_places(error)}
            LOG.error("Request failed", extra={"fields": fields})
            if not exchange.status:
                await write(describe(error, contract), contract)(scope, receive, send)

    def _require_key(self, path: str, headers: MutableMapping[bytes, bytes]) -> None:
        """Refuse a request without one of the keys.

        Raises:
            RequestError: If keys are set and the request brings none of them.
        """
        if path not in _OPEN_PATHS and not self._keys.accept(headers.get(b"authorization")):
            raise RequestError(
                Problem(
                    401,
                    "send one of the service's API keys as: Authorization: Bearer KEY",
                    "authentication_error",
                    "Unauthorized",
                    "invalid_api_key",
                )
            )

    async def _read_body(
        self, headers: MutableMapping[bytes, bytes], receive: Receive, exchange: _Exchange
    ) -> bytes:
        """Return the request's body.

        Raises:
            RequestError: If it is over the limit, there is no room for it, or it does not arrive
                in time.
            ClientGoneError: If the client leaves before it is complete.
        """
        length = headers.get(b"content-length", b"")
        if length.isdigit():
            self._require_room(int(length), exchange)
        seconds = self._settings.receive_timeout
        try:
            return await asyncio.wait_for(self._collect(receive, exchange), seconds)
        except asyncio.TimeoutError:
            message = f"the request's body did not arrive within {seconds:g} s"
            raise RequestError(Problem(408, message, tei_kind="Timeout")) from None

    async def _collect(self, receive: Receive, exchange: _Exchange) -> bytes:
        parts: list[bytes] = []
        is_complete = False
        while not is_complete:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part: bytes = message.get("body", b"")
            self._require_room(exchange.body_bytes + len(part), exchange)
            exchange.body_bytes += len(part)
            self._held_bytes += len(part)
            parts.append(part)
            is_complete = not message.get("more_body", False)
        exchange.is_received = True
        return b"".join(parts)

    def _require_room(self, size: int, exchange: _Exchange) -> None:
        """Refuse a body of this size, or of more, if it may not be held.

        Raises:
            RequestError: If it is over the limit, or too much is held for other requests.
        """
        limit = self._settings.max_body_bytes
        if size > limit:
            message = f"the request's body is over the limit of {limit} bytes; send fewer texts"
            raise RequestError(Problem(413, message, code="request_too_large"))
        others = self._held_bytes - exchange.body_bytes
        if others + size > _BODIES_HELD * limit:
            message = f"{others} bytes of other requests are being worked on; try again in 1 s"
            raise RequestError(
                Problem(429, message, "rate_limit_error", "Overloaded", "rate_limit", retry_after=1)
            )

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the application, and stop it when the client goes.

        Raises:
            ClientGoneError: If it did.
        """
        bodies: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.ensure_future(_wait_until_gone(receive))

        async def replay() -> Message:
            if bodies:
                return bodies.pop()
            await asyncio.shield(gone)
            return {"type": "http.disconnect"}

        work = asyncio.ensure_future(self._run_app(scope, replay, send))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientGoneError
            work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _run_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def _labelled(self, send: Send, exchange: _Exchange) -> Send:
        """Return `send` with the headers that every answer carries."""

        async def send_labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                milliseconds = 1000 * (time.perf_counter() - exchange.began)
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", exchange.request_id.encode()),
                    (b"x-total-time", f"{milliseconds:.3f}".encode()),
                    *self._fingerprint_header(),
                ]
            await send(message)

        return send_labelled

    def _fingerprint_header(self) -> list[tuple[bytes, bytes]]:
        fingerprint = self._service.fingerprint
        if fingerprint is None:
            return []
        return [(b"x-model-fingerprint", fingerprint.encode())]

    def _note(self, scope: Scope, exchange: _Exchange) -> None:
        """Count the request and log it, without anything of what it held."""
        seconds = time.perf_counter() - exchange.began
        # The route's own path, so that whatever paths are tried do not make labels without end.
        route = getattr(scope.get("route"), "path", "other")
        method = exchange.method if exchange.method in _METHODS else "other"
        self._metrics.note_request(method, route, exchange.status, seconds)
        fields: dict[str, object] = {
            "request": exchange.request_id,
            "method": method,
            "route": route,
            "status": exchange.status,
            "ms": round(1000 * seconds, 1),
        }
        if exchange.problem:
            fields["error"] = exchange.problem
        LOG.info("Request", extra={"fields": fields})


async def _refuse(
    problem: Problem, scope: Scope, receive: Receive, send: Send, exchange: _Exchange
) -> None:
    """Answer a request whose body may not have been read, and read no more of it than needed."""
    response = write(problem, contract_of(exchange.path))
    if exchange.is_received:
        await response(scope, receive, send)
        return
    response.headers["connection"] = "close"
    held_back: list[Message] = []

    async def send_but_the_end(message: Message) -> None:
        if message["type"] == "http.response.body":
            # The answer is complete for the client, but not for the server, which would close.
            held_back.append({"type": "http.response.body", "body": b"", "more_body": False})
            message = {**message, "more_body": True}
        await send(message)

    await response(scope, receive, send_but_the_end)
    if problem.status != 408:  # It has had its time.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_throw_away(receive), _LINGER)
    for message in held_back:
        await send(message)


async def _throw_away(receive: Receive) -> None:
    message = await receive()
    while message["type"] == "http.request" and message.get("more_body", False):
        message = await receive()


async def _wait_until_gone(receive: Receive) -> None:
    message = await receive()
    while message["type"] != "http.disconnect":
        message = await receive()


def _name_json(scope: MutableMapping[str, Any], headers: MutableMapping[bytes, bytes]) -> None:
    """Take a body for JSON that `curl -d` has labelled as a form: no route takes forms."""
    content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if content_type in _GUESSED_JSON:
        others = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
        scope["headers"] = [*others, (b"content-type", b"application/json")]


def _shutting_down(contract: Contract) -> Problem:
    return describe(NotReadyError("the service is shutting down"), contract)


def _has_body(headers: MutableMapping[bytes, bytes]) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


def _choose_id(given: bytes) -> str:
    """Return the client's id of its request if it is harmless, otherwise a new one."""
    text = given.decode("latin-1")
    return text if _REQUEST_ID.match(text) else uuid.uuid4().hex
