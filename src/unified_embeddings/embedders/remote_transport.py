"""JSON over HTTP to one service: pooled, retried, and safe in any number of threads and loops.

What lives here: connections, time-outs, retries, and what is wrong with an answer's status or
form. What does not: what is asked and what an answer means (`remote`, `remote_answers`, `runpod`).

There is one sync client. Coroutines use it from threads of their own, as the stores do: an async
client's connections belong to one event loop and have to be closed before that loop ends, which
nobody tells a library (ADR 23).

The environment is not read: no HTTP_PROXY, no .netrc, no SSL_CERT_FILE. Redirects are not followed,
so that texts and keys go to the address given and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TypeVar

import httpx

from unified_embeddings._version import __version__
from unified_embeddings.embedders.remote_options import Limits
from unified_embeddings.errors import (
    InputError,
    OverloadedError,
    ServiceError,
    UnifiedEmbeddingsError,
)

Result = TypeVar("Result")

_RETRIED = (429, 502, 503, 504)
_KEEP_ALIVE = 4.0
"""Seconds that an idle connection is kept: less than the 5 of uvicorn, which then ends it."""
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 8.0
"""Seconds before the first retry, doubled for each further one, and the most of these."""
_MOST_BYTES = 512 * 2**20
"""Of an answer: ten times the ColBERT vectors of 8,192 tokens."""
_SHOWN = 300
"""Characters of a service's text that a message repeats."""
_ADVICE = (
    "Give the address of the service itself, as in http://127.0.0.1:8000, without /v1 or /embed, "
    "and check that it runs: unified-embeddings ping URL"
)


@dataclass(frozen=True)
class Answer:
    """A service's answer of status 200.

    Attributes:
        data: The body, read as JSON.
        headers: By lower-case name.
    """

    data: object
    headers: Mapping[str, str]


@dataclass(frozen=True)
class _Failure:
    """Why a try failed, whether another may succeed, and the seconds the service asks to wait."""

    error: UnifiedEmbeddingsError
    is_passing: bool = False
    retry_after: float | None = None


@dataclass(frozen=True)
class _Pool:
    """Connections and threads of one process."""

    client: httpx.Client
    threads: ThreadPoolExecutor
    process: int = field(default_factory=os.getpid)


class Transport:
    """Requests to one service. Thread-safe; a forked process connects anew.

    Args:
        url: The service's address, checked; see `require_url`.
        api_key: Sent as `Authorization: Bearer`.
        limits: How long to wait, and how often to ask again.
        advice: What to check where the service is not there, or has no such path.
    """

    def __init__(
        self, url: str, api_key: str | None, limits: Limits, *, advice: str = _ADVICE
    ) -> None:
        self.url = url
        self._advice = advice
        self._limits = limits
        self._headers = {
            "Accept": "application/json",
            # Vectors do not get smaller by it, and an answer cannot unfold to more than was sent.
            "Accept-Encoding": "identity",
            "User-Agent": f"unified-embeddings/{__version__}",
        }
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._has_key = api_key is not None
        self._lock = threading.Lock()
        self._pool: _Pool | None = None
        self._is_closed = False

    def get(self, path: str) -> Answer:
        """Return the answer to a GET request; see `_request`."""
        return self._request("GET", path, None)

    def post(self, path: str, body: object) -> Answer:
        """Return the answer to a POST request with a body of JSON; see `_request`."""
        return self._request("POST", path, json.dumps(body, ensure_ascii=False).encode())

    async def in_thread(self, function: Callable[[], Result]) -> Result:
        """Await a function that sends requests, in a thread for that."""
        context = contextvars.copy_context()  # does not reach an executor's threads by itself
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._open_pool().threads, partial(context.run, function))

    def close(self) -> None:
        """Close the connections. Later requests fail."""
        with self._lock:
            self._is_closed = True
            pool, self._pool = self._pool, None
        # A forked process leaves its parent's connections alone.
        if pool is not None and pool.process == os.getpid():
            pool.client.close()
            pool.threads.shutdown(wait=False)

    def _open_pool(self) -> _Pool:
        with self._lock:
            if self._is_closed:
                raise UnifiedEmbeddingsError("This embedder is closed; make a new one")
            if self._pool is None or self._pool.process != os.getpid():
                self._pool = _Pool(self._make_client(), self._make_threads())
            return self._pool

    def _make_client(self) -> httpx.Client:
        limits = self._limits
        return httpx.Client(
            headers=self._headers,
            verify=_tls_context(limits.ca_file),
            timeout=httpx.Timeout(limits.timeout, connect=limits.connect_timeout),
            limits=httpx.Limits(
                max_connections=limits.max_connections,
                max_keepalive_connections=limits.max_connections,
                keepalive_expiry=_KEEP_ALIVE,
            ),
            trust_env=False,
            follow_redirects=False,
        )

    def _make_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._limits.max_connections, thread_name_prefix="remote-embed")

    # --- one request ----------------------------------------------------------------------------

    def _request(self, method: str, path: str, content: bytes | None) -> Answer:
        """Return the answer to a request, which is repeated where that may help.

        Raises:
            ServiceError: If the service cannot be reached, or refuses or fails.
            OverloadedError: If it still has too much to do after the last try.
            UnifiedEmbeddingsError: If this was closed.
        """
        waited = 0.0
        attempt = 0
        while True:
            outcome = self._try(method, path, content)
            if isinstance(outcome, Answer):
                return outcome
            wait = _wait_before_retry(attempt, outcome.retry_after)
            is_last = attempt == self._limits.retries or waited + wait > self._limits.max_retry_wait
            if is_last or not outcome.is_passing:
                raise outcome.error
            time.sleep(wait)
            waited += wait
            attempt += 1

    def _try(self, method: str, path: str, content: bytes | None) -> Answer | _Failure:
        operation = f"{method} {path}"
        client = self._open_pool().client
        headers = {} if content is None else {"Content-Type": "application/json"}
        end = time.monotonic() + self._limits.timeout
        try:
            with client.stream(
                method, self.url + path, content=content, headers=headers
            ) as response:
                body = self._read_body(response, end)
        except _BadBodyError as error:
            return _Failure(self._error(operation, str(error), response.status_code))
        except httpx.InvalidURL as error:
            return _Failure(self._error(operation, f"{error}. {self._advice}"))
        except httpx.HTTPError as error:
            return self._describe_failure(operation, error)
        except RuntimeError:
            self._open_pool()  # says so where another thread has closed it meanwhile
            raise
        if response.status_code == 200:
            return self._read_answer(operation, response, body)
        return self._describe_refusal(operation, response, body)

    def _read_body(self, response: httpx.Response, end: float) -> bytes:
        """Return the body.

        Raises:
            _BadBodyError: If it is too long, or dribbles in for longer than the time-out.
        """
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MOST_BYTES:
                raise _BadBodyError(
                    f"its answer is larger than {_MOST_BYTES >> 20} MiB; send fewer texts a request"
                )
            if time.monotonic() > end:
                raise _BadBodyError(self._late())
        return bytes(body)

    def _read_answer(
        self, operation: str, response: httpx.Response, body: bytes
    ) -> Answer | _Failure:
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            return _Failure(self._error(operation, _describe_non_json(response, body), 200))
        return Answer(data, {name.lower(): text for name, text in response.headers.items()})

    # --- what went wrong ------------------------------------------------------------------------

    def _error(self, operation: str, problem: str, status: int | None = None) -> ServiceError:
        return ServiceError(self.url, operation, problem, status=status)

    def _late(self) -> str:
        return (
            f"no answer within {self._limits.timeout:g} s; raise timeout, or send fewer texts a "
            "request"
        )

    def _describe_failure(self, operation: str, error: httpx.HTTPError) -> _Failure:
        """Return what a request without an answer means."""
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
            return _Failure(self._error(operation, self._late()))
        if isinstance(error, httpx.PoolTimeout):
            problem = (
                f"all {self._limits.max_connections} connections were busy for "
                f"{self._limits.timeout:g} s; raise max_connections"
            )
            return _Failure(self._error(operation, problem))
        detail = _printable(str(error)) or type(error).__name__
        if "SSL" in detail or "certificate" in detail:
            problem = (
                f"no secure connection ({detail}). For a certificate of your own give its file as "
                "ca_file; a service without TLS has an address with http://"
            )
            return _Failure(self._error(operation, problem))
        if isinstance(error, httpx.ConnectTimeout):
            detail = f"no connection within {self._limits.connect_timeout:g} s"
        # Of the others, an answer that is not HTTP stays so; connections come and go.
        is_passing = isinstance(error, httpx.TransportError)
        return _Failure(self._error(operation, f"{detail}. {self._advice}"), is_passing=is_passing)

    def _describe_refusal(self, operation: str, response: httpx.Response, body: bytes) -> _Failure:
        """Return what an answer of another status than 200 means."""
        status = response.status_code
        message = _find_message(response, body)
        said = f": {message}" if message else ""
        retry_after = _read_retry_after(response.headers.get("retry-after"))
        if status == 429:
            wait_note = "" if retry_after is None else f" (it asks to wait {retry_after:g} s)"
            error = OverloadedError(
                f"Embedding service {self.url} has too much to do{wait_note}{said}; try again "
                "later, send less at a time, or start more of them"
            )
            return _Failure(error, is_passing=True, retry_after=retry_after)
        if status in (401, 403) and self._has_key:
            problem = f"it does not accept this key (status {status}{said})"
        elif status in (401, 403):
            problem = f"it needs a key: give api_key (status {status}{said})"
        elif 300 <= status < 400:
            target = _printable(response.headers.get("location", "elsewhere"))
            problem = f"it redirects to {target}, which is not followed; give that address"
        elif status in (404, 405):
            problem = f"it has no such path (status {status}{said}). {self._advice}"
        elif status == 503:
            problem = f"it is not ready, or shuts down (status 503{said}); try again later"
        else:
            problem = f"status {status}{said}"
        return _Failure(
            self._error(operation, problem, status),
            is_passing=status in _RETRIED,
            retry_after=retry_after,
        )


class _BadBodyError(Exception):
    """Why a body is not read to its end. It never leaves this module."""


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return the settings of TLS.

    Raises:
        InputError: If `ca_file` cannot be read as certificates.
    """
    if ca_file is None:
        return httpx.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise InputError(
            f"ca_file {ca_file!r} cannot be read as certificates in PEM format: {error}"
        ) from error


def _wait_before_retry(attempt: int, retry_after: float | None) -> float:
    """Return the seconds before the next try: random, so that clients do not come back as one."""
    spread = random.random()  # noqa: S311 — no secret
    if retry_after is not None:
        return max(retry_after, _FIRST_WAIT) * (1 + 0.25 * spread)
    longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(attempt, 10))
    return longest * (0.5 + 0.5 * spread)


def _read_retry_after(text: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which holds seconds or a date."""
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text.strip()):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _find_message(response: httpx.Response, body: bytes) -> str:
    """Return what a service says of an error, in whichever form; "" for a page of HTML."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        is_html = "html" in response.headers.get("content-type", "")
        return "" if is_html else _printable(body[: 4 * _SHOWN].decode(errors="replace"))
    if isinstance(data, dict):
        data = data.get("error", data.get("detail", data))
    if isinstance(data, dict):
        data = data.get("message", data)
    return _printable(data if isinstance(data, str) else json.dumps(data))


def _describe_non_json(response: httpx.Response, body: bytes) -> str:
    kind = _printable(response.headers.get("content-type", "without a type"))
    start = _printable(body[:80].decode(errors="replace"))
    return (
        f"expected JSON, the answer is {kind} and begins with {start!r}. Is this the address of "
        "an embedding service, and not of a page before it?"
    )


def _printable(text: str) -> str:
    """Return a service's text on one line, cut, without what could control a terminal."""
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
