"""The workers' contracts: all vectors of texts (`/v1/m3`), and a query's (`/query`).

Their JSON is checked and written by `contracts`, which RunPod's handlers and the light endpoint
share; the models here describe it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request, Response
from pydantic import ConfigDict, Field, WithJsonSchema

from unified_embeddings.serving import contracts
from unified_embeddings.serving.schemas import (
    AnyText,
    Encoding,
    Strict,
    StrictRoute,
    error_responses,
    service_of,
    write_json,
    write_many,
)
from unified_embeddings.types import HeadName

router = APIRouter(route_class=StrictRoute, tags=["Workers: documents 000 and 002"])


class Exact(Strict):
    """A part of a request without fields that the contract does not have."""

    model_config = ConfigDict(extra="forbid")


class SparseWeights(Strict):
    """A sparse vector as Qdrant takes it."""

    indices: list[int]
    values: list[float]


class PackedVectors(Strict):
    """ColBERT vectors row by row in little-endian numbers, in base64."""

    shape: list[int]
    dtype: Literal["float16", "float32"]
    data: str


class M3Request(Exact):
    """Document 000's request, with a choice of heads and of their encoding."""

    texts: list[AnyText]
    is_passage: bool = Field(default=False, alias="isPassage")
    batch_size: int = Field(default=8, alias="batchSize", ge=1, description="Has no effect.")
    heads: Annotated[list[HeadName], Field(min_length=1)] | None = None
    encoding: Encoding = "float"
    colbert_dtype: Literal["float16", "float32"] | None = None


class M3Result(Strict):
    """The vectors of one text; those that were asked for."""

    text: str
    dense: list[float] | str | None = None
    sparse: SparseWeights | None = None
    colbert: list[list[float]] | PackedVectors | None = None


class M3Usage(Strict):
    """What it cost."""

    prompt_tokens: int
    total_tokens: int
    truncated: int


class M3Answer(Strict):
    """Document 000's answer."""

    results: list[M3Result]
    model: str
    fingerprint: str
    usage: M3Usage


class QueryInput(Exact):
    """Document 002's action, which its request holds under "input"."""

    action: Literal["embed_query", "embed_batch", "health_check"] = "embed_query"
    query: AnyText | None = None
    queries: list[AnyText] | None = None
    texts: list[AnyText] | None = None
    heads: Annotated[list[HeadName], Field(min_length=1)] | None = None


M3Body = Annotated[Any, WithJsonSchema(M3Request.model_json_schema())]
"""Described by the model above, and checked by `contracts`, whose messages say what to do."""
QueryBody = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "object",
            "properties": {"input": QueryInput.model_json_schema()},
            "required": ["input"],
            "additionalProperties": False,
        }
    ),
]
_M3_EXAMPLE = {"texts": ["Foxes jump."], "isPassage": False, "heads": ["dense", "sparse"]}
_QUERY_EXAMPLE = {"input": {"action": "embed_query", "query": "Who jumps?"}}


@router.post("/v1/m3", response_model=M3Answer, responses=error_responses("document"))
async def m3(
    request: Request,
    body: Annotated[M3Body, Body(openapi_examples={"Document 000": {"value": _M3_EXAMPLE}})],
) -> Response:
    """Embed texts as dense, sparse and ColBERT vectors, in one pass."""
    service = service_of(request)
    service.require_ready()
    parsed = contracts.parse_m3(body, service.embedder.heads)
    answer = await service.embed(
        parsed.texts, role=parsed.role, heads=parsed.heads, is_written_out=True
    )
    return await write_many(
        lambda: contracts.m3_answer(
            parsed,
            answer.embeddings,
            model=service.names[0],
            fingerprint=service.fingerprint or "",
            usage=contracts.Usage(answer.tokens, answer.truncated),
        ),
        answer,
        tokens=answer.tokens,
    )


@router.post("/query", response_model=dict[str, Any], responses=error_responses("document"))
async def query(
    request: Request,
    body: Annotated[QueryBody, Body(openapi_examples={"Document 002": {"value": _QUERY_EXAMPLE}})],
) -> Response:
    """Embed a query, several queries, or texts; or tell what the service runs on."""
    service = service_of(request)
    service.require_ready()
    parsed = contracts.parse_query(body, service.embedder.heads)
    if parsed.is_health_check:
        runtime = service.embedder.models[0].runtime
        return write_json(contracts.health_answer(runtime.engine, runtime.device))
    answer = await service.embed(
        parsed.texts, role=parsed.role, heads=parsed.heads, is_written_out=True
    )
    return await write_many(
        lambda: contracts.query_answer(parsed, answer.embeddings), answer, tokens=answer.tokens
    )
