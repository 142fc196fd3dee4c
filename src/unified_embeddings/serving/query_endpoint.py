"""The light endpoint's web application: a query in, its vector out, over HTTP or as RunPod has it.

What lives here: routes, limits and errors. What does not: the model (`query_worker`), the process
(`query_server`). It stands on Starlette, FastAPI's own base: the requests are checked by
`contracts`, and FastAPI with pydantic would take 0.2 s of every cold start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from unified_embeddings.errors import InputError, OverloadedError, UnifiedEmbeddingsError
from unified_embeddings.serving.api_keys import ApiKeys
from unified_embeddings.serving.contracts import Json, parse_query
from unified_embeddings.serving.query_settings import QuerySettings
from unified_embeddings.serving.query_worker import Answer, Job, NotReadyError, QueryWorker

_LOG = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PHRASES = {404: "there is no such route; POST /query", 405: "this route takes another method"}


class RequestError(Exception):
    """A request that gets an error instead of an answer.

    Attributes:
        status: The status code.
        headers: Further headers.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.headers = headers or {}
        super().__init__(message)


def make_app(worker: QueryWorker, settings: QuerySettings) -> Starlette:
    """Return the application.

    Routes: POST /query and POST / answer with the bare object, POST /runsync as RunPod does, GET
    /health with 200, or 503 while the model is loading. Errors are `{"error": "..."}`.

    Args:
        worker: The model, started.
        settings: What one request may ask.
    """
    endpoint = _Endpoint(worker, settings)
    return Starlette(
        routes=[
            Route("/query", endpoint.guard(endpoint.query), methods=["POST"]),
            Route("/", endpoint.guard(endpoint.query), methods=["POST"]),
            Route("/runsync", endpoint.guard(endpoint.runsync), methods=["POST"]),
            Route("/health", endpoint.health, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_error},
    )


class _Endpoint:
    """The routes over one model."""

    def __init__(self, worker: QueryWorker, settings: QuerySettings) -> None:
        self._worker = worker
        self._settings = settings
        self._keys = ApiKeys(settings.api_keys)

    def guard(
        self, route: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return a route that asks for a key, and whose errors are JSON."""

        async def guarded(request: Request) -> Response:
            began = time.monotonic()
            try:
                self._require_key(request)
                response = await route(request)
            except RequestError as error:
                response = _error(error.status, str(error), error.headers)
            except ClientDisconnect:
                response = _error(400, "the client has gone")  # nobody reads it
            except asyncio.CancelledError:
                # uvicorn cancels what is not done when the time to drain is over. The client gets
                # an answer all the same, and the log no traceback.
                response = _error(503, "the endpoint is shutting down; ask again elsewhere")
            except Exception as error:
                _LOG.error("a request failed: %s", type(error).__name__)
                response = _error(500, "something went wrong inside; the log has more")
            response.headers["x-request-id"] = _request_id(request)
            response.headers["x-total-time"] = _milliseconds(time.monotonic() - began)
            return response

        return guarded

    def _require_key(self, request: Request) -> None:
        header = request.headers.get("authorization")
        if not self._keys.accept(None if header is None else header.encode("latin-1")):
            raise RequestError(
                401,
                "a key is needed; send it as Authorization: Bearer KEY",
                {"www-authenticate": "Bearer"},
            )

    async def query(self, request: Request) -> Response:
        """Answer a request with the bare object."""
        try:
            return await self._answer(request)
        except InputError as error:
            raise RequestError(422, str(error)) from None

    async def runsync(self, request: Request) -> Response:
        """Answer a request as RunPod's /runsync does, which tells a job's failure in its body."""
        job_id = f"sync-{uuid.uuid4()}"
        try:
            response = await self._answer(request)
        except InputError as error:
            return _json({"id": job_id, "status": "FAILED", "error": str(error)})
        prefix = f'{{"id":"{job_id}","status":"COMPLETED","output":'.encode()
        headers = {name: response.headers[name] for name in response.headers if name[0] == "x"}
        return Response(prefix + bytes(response.body) + b"}", 200, headers, "application/json")

    async def health(self, request: Request) -> Response:
        """Tell whether requests would be answered now."""
        del request  # The route hands it over, and nothing in it matters.
        try:
            return _json(self._worker.health())
        except NotReadyError as error:
            return _error(503, str(error), {"retry-after": "1"})

    # --- one request ----------------------------------------------------------------------------

    async def _answer(self, request: Request) -> Response:
        """Read, check and answer a request.

        Raises:
            InputError: If it breaks the contract.
            RequestError: If it cannot be read, or gets no answer.
        """
        deadline = time.monotonic() + self._settings.request_timeout
        checked = parse_query(_read_json(await self._read_body(request)))
        try:
            if checked.is_health_check:
                return _json(self._worker.health())
            job = self._worker.submit(checked)
        except OverloadedError as error:
            wait = str(self._worker.seconds_until_free())
            raise RequestError(429, str(error), {"retry-after": wait}) from None
        except NotReadyError as error:
            raise RequestError(503, str(error), {"retry-after": "1"}) from None
        answer = await self._wait(request, job, deadline)
        headers = {
            "x-model-fingerprint": answer.fingerprint,
            "x-queue-time": _milliseconds(answer.waited),
            "x-inference-time": _milliseconds(answer.computed),
        }
        return Response(answer.body, 200, headers, "application/json")

    async def _read_body(self, request: Request) -> bytes:
        most = self._settings.max_body_bytes
        too_large = RequestError(413, f"the body is larger than {most:,} bytes; send fewer texts")
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and (len(announced) > len(str(most)) or int(announced) > most):
            raise too_large
        body = bytearray()

        async def receive() -> None:
            async for chunk in request.stream():
                body.extend(chunk)
                if len(body) > most:
                    raise too_large

        try:
            await asyncio.wait_for(receive(), self._settings.receive_timeout)
        except (asyncio.TimeoutError, TimeoutError):
            seconds = self._settings.receive_timeout
            raise RequestError(408, f"the body did not arrive within {seconds:g} s") from None
        return bytes(body)

    async def _wait(self, request: Request, job: Job, deadline: float) -> Answer:
        """Wait for an answer as long as the client does, and not beyond the deadline."""
        answer = asyncio.ensure_future(asyncio.wrap_future(job.future))
        # After the body, the next message says that the client has gone.
        gone = asyncio.ensure_future(request.receive())
        try:
            seconds = max(deadline - time.monotonic(), 0)
            await asyncio.wait((answer, gone), timeout=seconds, return_when="FIRST_COMPLETED")
            if answer.done():
                return _result(answer)
            if gone.done():
                raise ClientDisconnect
            raise self._too_late(job)
        finally:
            gone.cancel()
            if not answer.done():
                self._worker.abandon(job)
                answer.cancel()

    def _too_late(self, job: Job) -> RequestError:
        seconds = f"{self._settings.request_timeout:g} s"
        if self._worker.is_loading:
            message = f"the model is still being loaded after {seconds}; try again in a moment"
            return RequestError(503, message, {"retry-after": "1"})
        if job.began is None:
            return RequestError(504, f"its turn did not come within {seconds}; try again later")
        return RequestError(504, f"it took more than {seconds}; send fewer or shorter texts")


def _result(answer: asyncio.Future[Answer]) -> Answer:
    """Return an answer, or raise what the client is told instead.

    Raises:
        InputError: If the request is to blame.
        RequestError: If something else is.
    """
    try:
        return answer.result()
    except InputError:
        raise
    except NotReadyError as error:
        raise RequestError(503, str(error), {"retry-after": "1"}) from None
    except UnifiedEmbeddingsError as error:
        raise RequestError(500, str(error)) from None


def _read_json(body: bytes) -> object:
    """Return what a body holds.

    Raises:
        RequestError: If it is not JSON in UTF-8.
    """
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise RequestError(400, "the body is not readable: it is nested too deep") from None
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON in UTF-8: {error!s:.200}") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _json(content: Json, status: int = 200) -> Response:
    return Response(json.dumps(content).encode(), status, media_type="application/json")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps({"error": message}).encode()
    return Response(body, status, headers, "application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    """Give Starlette's own errors, such as an unknown route, the envelope of all others."""
    del request
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    return _error(error.status_code, _PHRASES.get(error.status_code, error.detail), headers)


def _request_id(request: Request) -> str:
    """Return the id that the client gave the request, if it is a plain one, or a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"
