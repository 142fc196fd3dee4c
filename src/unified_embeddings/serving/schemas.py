"""What the contracts have in common: the base of their models, errors, and how answers are written.

What lives here: the base class, reading a request strictly, writing an answer quickly. What does
not: the models of one contract, which stand beside its routes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import numpy as np
import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.exceptions import HTTPException

from unified_embeddings.errors import InputError
from unified_embeddings.heads import normalise
from unified_embeddings.serving.contracts import to_base64
from unified_embeddings.serving.envelopes import Contract, bad_input_status
from unified_embeddings.serving.service import Answer, EmbeddingService
from unified_embeddings.system.collector import paused_collector
from unified_embeddings.types import FloatArray

Responses: TypeAlias = "dict[int | str, dict[str, Any]]"
"""Status → its description, as FastAPI takes it."""

Item = TypeVar("Item")
AnyText = Annotated[str, StringConstraints(strict=True)]
ListOf = Annotated[list[Item], Field(fail_fast=True)]
"""A list whose first bad item is told: an error for each of millions takes pydantic a minute, in
which the event loop stands still."""
_MOST_VALUES = 1_048_576
"""Values of one body that are looked at in any case: more than any usable request holds."""
Encoding = Literal["float", "base64"]

_QUICK_TOKENS = 8192
"""Tokens of an answer that is written in a few milliseconds, at once."""


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
    400: "The request holds no text",
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
            HTTPException: If it holds more values than any request of ours.
        """
        body = await self.body()
        try:
            # It would look through millions of new lists again and again, for four times as long as
            # it takes to read them; JSON has no cycles.
            with paused_collector():
                value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            # Without the document, which an error message could quote.
            raise json.JSONDecodeError(error.msg, "", 0) from None
        limit = max(_MOST_VALUES, service_of(self).settings.max_request_tokens)
        if not holds_at_most(value, limit):
            # FastAPI lets through no other error from here.
            raise HTTPException(
                413, f"the body holds more than {limit} values; send fewer texts or token ids"
            )
        return value


class StrictRoute(APIRoute):
    """A route that reads its request strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, given a StrictRequest."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


def holds_at_most(value: object, limit: int) -> bool:
    """Tell whether a JSON value holds no more than so many others, without looking at many more.

    Example:
        >>> holds_at_most({"inputs": [[1, 2], [3]]}, 6), holds_at_most({"inputs": [[1, 2], [3]]}, 5)
        (True, False)
    """
    containers = [value]
    count = 0
    while containers:
        container = containers.pop()
        items: Collection[object]
        if isinstance(container, dict):
            items = container.values()
        elif isinstance(container, list):
            items = container
        else:
            continue
        count += len(items)
        if count > limit:
            return False
        containers += [item for item in items if isinstance(item, dict | list)]
    return True


def service_of(request: Request) -> EmbeddingService:
    """Return the service that the application was made for."""
    service: EmbeddingService = request.app.state.service
    return service


def write_json(content: object, answer: Answer | None = None) -> Response:
    """Return a response of plain values and NumPy arrays, with what the answer cost."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = {} if answer is None else cost_headers(answer)
    return Response(body, headers=headers, media_type="application/json")


async def write_many(
    make_content: Callable[[], object], answer: Answer | None = None, *, tokens: int
) -> Response:
    """Return the response that `write_json` makes, from another thread if there is much to write.

    Args:
        make_content: Makes what is written.
        answer: What it cost.
        tokens: How many tokens it tells of; a large answer would stop the event loop.
    """
    if tokens <= _QUICK_TOKENS:
        return write_json(make_content(), answer)
    return await asyncio.to_thread(lambda: write_json(_in_fragments(make_content()), answer))


def _in_fragments(content: object) -> object:
    """Return the content with the items of its long lists written one by one.

    orjson lets no other thread run while it writes, and so is called for a little at a time.
    """
    if isinstance(content, dict):
        return {name: _in_fragments(value) for name, value in content.items()}
    if not isinstance(content, list) or len(content) <= 1:
        return content
    return [
        orjson.Fragment(orjson.dumps(item, option=orjson.OPT_SERIALIZE_NUMPY)) for item in content
    ]


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


def shorten(dense: FloatArray, dimensions: int | None) -> FloatArray:
    """Return the first dimensions of vectors, at unit length again.

    Args:
        dense: float32 (n, d).
        dimensions: How many to keep; None keeps all.

    Raises:
        InputError: If that is not between 1 and d.
    """
    if dimensions is None:
        return dense
    width = dense.shape[1]
    if not 1 <= dimensions <= width:
        raise InputError(f"dimensions must be between 1 and {width}, got {dimensions}")
    if dimensions == width:
        return dense
    return normalise(np.ascontiguousarray(dense[:, :dimensions]))
