"""What the contracts have in common: the base of their models, errors, and how answers are written.

What lives here: the base class, reading a request strictly, writing an answer quickly. What does
not: the models of one contract, which stand beside its routes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, StringConstraints

from unified_embeddings.serving.contracts import to_base64
from unified_embeddings.serving.envelopes import Contract, bad_input_status
from unified_embeddings.serving.service import Answer, EmbeddingService
from unified_embeddings.types import FloatArray

Responses: TypeAlias = "dict[int | str, dict[str, Any]]"
"""Status → its description, as FastAPI takes it."""

AnyText = Annotated[str, StringConstraints(strict=True)]
Encoding = Literal["float", "base64"]


class Strict(BaseModel):
    """A part of a request, or of an answer: no value is taken for one of another type.

    Fields that a contract does not have are ignored, as its own server ignores them: clients send
    what their library's version happens to know.
    """

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class TeiError(Strict):
    """An error as text-embeddings-inference tells it."""

    error: str
    error_type: str


class OpenAIErrorDetail(Strict):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Strict):
    """An error as OpenAI tells it."""

    error: OpenAIErrorDetail


class RerankError(Strict):
    """An error as Cohere ("message"), Jina ("detail") and vLLM ("error") tell it."""

    message: str
    detail: str
    error: OpenAIErrorDetail


class PlainError(Strict):
    """An error as Ollama and the workers tell it."""

    error: str


_ERRORS: Mapping[Contract, type[Strict]] = {
    "tei": TeiError,
    "openai": OpenAIError,
    "rerank": RerankError,
    "ollama": PlainError,
    "document": PlainError,
}
_STATUSES = {
    401: "No API key, or a wrong one",
    408: "The request's body did not arrive in time",
    413: "The body, or a text, is too long",
    429: "Too much work is waiting; Retry-After tells when to try again",
    500: "The model failed",
    503: "The model is being loaded, or does not answer",
    504: "Not answered within the deadline",
}
_FURTHER = {
    400: "There is no text",
    404: "Not served here",
    502: "The store failed",
}


def error_responses(contract: Contract, *further: int) -> Responses:
    """Return what a route may answer when it fails, for its documentation.

    Args:
        contract: Whose envelope is used.
        *further: Statuses besides those that every route has.
    """
    descriptions = {**_STATUSES, bad_input_status(contract): "The request is not usable"}
    for status in further:
        descriptions[status] = _FURTHER[status]
    model = _ERRORS[contract]
    return {
        status: {"model": model, "description": description}
        for status, description in sorted(descriptions.items())
    }


class StrictRequest(Request):
    """A request whose JSON is read strictly: no NaN, no half of a character, no bottomless nest."""

    async def json(self) -> Any:
        """Return the body's value.

        Raises:
            JSONDecodeError: If it is not JSON; FastAPI makes a validation error of it.
        """
        body = await self.body()
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            # Without the document, which an error message could quote.
            raise json.JSONDecodeError(error.msg, "", 0) from None


class StrictRoute(APIRoute):
    """A route that reads its request strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, given a StrictRequest."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


def service_of(request: Request) -> EmbeddingService:
    """Return the service that the application was made for."""
    service: EmbeddingService = request.app.state.service
    return service


def write_json(content: object, answer: Answer | None = None) -> Response:
    """Return a response of plain values and NumPy arrays, with what the answer cost."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = {} if answer is None else cost_headers(answer)
    return Response(body, headers=headers, media_type="application/json")


def cost_headers(answer: Answer) -> dict[str, str]:
    """Return what an answer cost as headers, named as TEI names them; times in ms."""
    headers = {
        "x-compute-tokens": str(answer.tokens),
        "x-tokenization-time": _milliseconds(answer.tokenise_seconds),
        "x-queue-time": _milliseconds(answer.queue_seconds),
        "x-inference-time": _milliseconds(answer.compute_seconds),
    }
    if answer.truncated:
        headers["x-truncated-texts"] = str(answer.truncated)
    return headers


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3f}"


def encode_vector(vector: FloatArray, encoding: Encoding) -> FloatArray | str:
    """Return a vector in the encoding that was asked for."""
    if encoding == "base64":
        return to_base64(vector)
    return np.ascontiguousarray(vector)  # orjson takes no other
