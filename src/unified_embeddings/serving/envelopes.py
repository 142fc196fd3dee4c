"""What went wrong, in the words of each contract.

What lives here: which error has which status, and the JSON that each family of clients expects
around a message. What does not: raising the errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import orjson
from starlette.responses import Response

from unified_embeddings.errors import (
    InputError,
    ModelLoadError,
    OverloadedError,
    StoreError,
    UnifiedEmbeddingsError,
)
from unified_embeddings.serving.batcher import DeadlineError, EngineStalledError, ShutdownError
from unified_embeddings.serving.loading import NotReadyError
from unified_embeddings.serving.service import EmptyError, TooLongError, UnknownModelError

Contract: TypeAlias = Literal["openai", "rerank", "ollama", "tei", "document"]


@dataclass(frozen=True)
class Problem:
    """One error as every contract tells it.

    Attributes:
        status: HTTP status.
        message: What was expected, what came, what to do next.
        kind: OpenAI's type of error.
        tei_kind: TEI's type of error.
        code: OpenAI's code, None for most.
        retry_after: Seconds after which to try again, None where that does not help.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    tei_kind: str = "Validation"
    code: str | None = None
    retry_after: int | None = None


class RequestError(UnifiedEmbeddingsError):
    """A request that is refused before any work is done for it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.message)


def contract_of(path: str) -> Contract:
    """Return which family of clients a path belongs to."""
    if path in ("/v1/m3", "/query"):
        return "document"
    if path in ("/v1/rerank", "/v2/rerank"):
        return "rerank"
    if path.startswith("/v1/"):
        return "openai"
    if path.startswith("/api/"):
        return "ollama"
    return "tei"


def describe(error: Exception, contract: Contract, retry_after: int = 1) -> Problem:
    """Return the problem that an error is, with the status that the contract gives it.

    What is not meant for users, such as an exception of a library, is told as such, without its
    message: that may quote the text that caused it.
    """
    if isinstance(error, RequestError):
        return error.problem
    if isinstance(error, OverloadedError):
        return Problem(429, str(error), "rate_limit_error", "Overloaded", "rate_limit", retry_after)
    if isinstance(error, NotReadyError | EngineStalledError | ShutdownError):
        return Problem(503, str(error), "server_error", "Unhealthy", "unavailable", retry_after=1)
    if isinstance(error, DeadlineError):
        return Problem(504, str(error), "server_error", "Timeout", "timeout")
    if isinstance(error, UnknownModelError):
        return Problem(404, str(error), tei_kind="NotFound", code="model_not_found")
    if isinstance(error, TooLongError):
        # TEI answers 413 to what is too long, and so do we where the contract is ours: a client
        # learns that less would be answered. The others answer as to any bad input.
        status = 413 if contract in ("tei", "document") else 400
        return Problem(status, str(error), code="context_length_exceeded")
    if isinstance(error, EmptyError):
        return Problem(400, str(error), tei_kind="Empty")
    if isinstance(error, InputError):
        return Problem(bad_input_status(contract), str(error))
    if isinstance(error, StoreError):
        return Problem(502, str(error), "server_error", "Backend", "store_error")
    if isinstance(error, ModelLoadError):
        return Problem(500, str(error), "server_error", "Backend", "model_error")
    if isinstance(error, UnifiedEmbeddingsError):
        return Problem(500, str(error), "server_error", "Backend")
    return Problem(
        500,
        f"the service failed on this request ({type(error).__name__}); the log has the place",
        "server_error",
        "Backend",
    )


def bad_input_status(contract: Contract) -> int:
    """Return the status that a contract gives bad input."""
    return 422 if contract == "tei" else 400


def write(problem: Problem, contract: Contract) -> Response:
    """Return the response that tells a problem as the contract does."""
    headers = {}
    if problem.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(problem.retry_after)))
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(
        orjson.dumps(_body(problem, contract)),
        problem.status,
        headers,
        media_type="application/json",
    )


def _body(problem: Problem, contract: Contract) -> dict[str, object]:
    message = problem.message
    if contract == "tei":
        return {"error": message, "error_type": problem.tei_kind}
    if contract in ("ollama", "document"):
        return {"error": message}
    error = {"message": message, "type": problem.kind, "param": None, "code": problem.code}
    if contract == "rerank":
        # Cohere's clients read "message", Jina's "detail", vLLM's "error".
        return {"message": message, "detail": message, "error": error}
    return {"error": error}
