"""The contract of OpenAI's embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Body, Path, Request, Response
from pydantic import Field

from unified_embeddings.serving.refusals import Inputs
from unified_embeddings.serving.routes.tei import read_inputs
from unified_embeddings.serving.schemas import (
    AnyText,
    Encoding,
    Strict,
    StrictRoute,
    encode_vector,
    error_responses,
    service_of,
    shorten,
    write_json,
)
from unified_embeddings.serving.service import EmbeddingService
from unified_embeddings.types import Role

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])


class EmbeddingsRequest(Strict):
    """OpenAI's request; `input_type` is an extension that Voyage, Cohere and NVIDIA share."""

    input: Inputs = Field(description="One text or several, or their token ids.")
    model: AnyText | None = None
    encoding_format: Encoding = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: AnyText | None = None
    input_type: Literal["query", "passage", "document"] | None = None


class Embedding(Strict):
    """One vector: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(Strict):
    """Tokens that ran through the model."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(Strict):
    """The vectors in the order of the input."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(Strict):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Strict):
    """The models that are served."""

    object: Literal["list"]
    data: list[Model]


_EXAMPLE = {"model": "bge-m3", "input": ["Foxes jump.", "Dogs sleep."]}


@router.post(
    "/v1/embeddings", response_model=EmbeddingsAnswer, responses=error_responses("openai", 404)
)
async def embeddings(
    request: Request, body: Annotated[EmbeddingsRequest, Body(examples=[_EXAMPLE])]
) -> Response:
    """Embed texts as dense vectors."""
    service = service_of(request)
    service.require_model(body.model)
    texts = read_inputs(service, body.input)
    role: Role = "query" if body.input_type == "query" else "document"
    answer = await service.embed(texts, role=role, heads=("dense",))
    assert answer.embeddings.dense is not None
    data = []
    for index, vector in enumerate(shorten(answer.embeddings.dense, body.dimensions)):
        data.append(
            {
                "object": "embedding",
                "index": index,
                "embedding": encode_vector(vector, body.encoding_format),
            }
        )
    content = {
        "object": "list",
        "data": data,
        "model": body.model or service.names[0],
        "usage": {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens},
    }
    return write_json(content, answer)


@router.get("/v1/models", response_model=Models, responses=error_responses("openai"))
async def models(request: Request) -> Response:
    """List the names that the served model answers to."""
    service = service_of(request)
    data = [_describe(service, name) for name in service.names]
    return write_json({"object": "list", "data": data})


@router.get(
    "/v1/models/{name:path}", response_model=Model, responses=error_responses("openai", 404)
)
async def model(request: Request, name: Annotated[str, Path(examples=["bge-m3"])]) -> Response:
    """Tell about one name of the served model."""
    service = service_of(request)
    service.require_model(name)
    return write_json(_describe(service, name))


def _describe(service: EmbeddingService, name: str) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": int(service.started),
        "owned_by": "unified-embeddings",
    }
