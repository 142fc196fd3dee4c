"""The contract of Ollama's embeddings: who runs its bge-m3 switches by changing the address."""

from __future__ import annotations

import datetime
import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from pydantic import Field

from unified_embeddings._version import __version__
from unified_embeddings.serving.refusals import Texts
from unified_embeddings.serving.schemas import (
    AnyText,
    Strict,
    StrictRoute,
    error_responses,
    service_of,
    shorten,
    write_json,
)
from unified_embeddings.serving.service import EmbeddingService

router = APIRouter(route_class=StrictRoute, tags=["Ollama"])


Ignored = Annotated[Any, Field(description="Has no effect: the model stays as it was loaded.")]


class EmbedRequest(Strict):
    """Ollama's request for one vector or several."""

    model: AnyText
    input: Texts
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    options: Ignored = None
    keep_alive: Ignored = None


class EmbedAnswer(Strict):
    """Ollama's answer; durations in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class PromptRequest(Strict):
    """Ollama's older request for one vector."""

    model: AnyText
    prompt: AnyText
    options: Ignored = None
    keep_alive: Ignored = None


class PromptAnswer(Strict):
    """Ollama's older answer."""

    embedding: list[float]


class ModelDetails(Strict):
    """What Ollama tells of a model."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class ModelTag(Strict):
    """One model."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: ModelDetails


class Tags(Strict):
    """The models that are served."""

    models: list[ModelTag]


class Version(Strict):
    """The service's version."""

    version: str = Field(examples=[__version__])


@router.post("/api/embed", response_model=EmbedAnswer, responses=error_responses("ollama", 404))
async def embed(
    request: Request,
    body: Annotated[EmbedRequest, Body(examples=[{"model": "bge-m3", "input": ["Foxes jump."]}])],
) -> Response:
    """Embed texts as dense vectors."""
    begun = time.perf_counter_ns()
    service = service_of(request)
    service.require_model(body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    answer = await service.embed(texts, role="document", heads=("dense",), truncate=body.truncate)
    assert answer.embeddings.dense is not None
    content = {
        "model": body.model,
        "embeddings": shorten(answer.embeddings.dense, body.dimensions),
        "total_duration": time.perf_counter_ns() - begun,
        "load_duration": 0,
        "prompt_eval_count": answer.tokens,
    }
    return write_json(content, answer)


@router.post(
    "/api/embeddings", response_model=PromptAnswer, responses=error_responses("ollama", 404)
)
async def embeddings(
    request: Request,
    body: Annotated[PromptRequest, Body(examples=[{"model": "bge-m3", "prompt": "Foxes jump."}])],
) -> Response:
    """Embed one text as a dense vector."""
    service = service_of(request)
    service.require_model(body.model)
    answer = await service.embed([body.prompt], role="document", heads=("dense",))
    assert answer.embeddings.dense is not None
    return write_json({"embedding": answer.embeddings.dense[0]}, answer)


@router.get("/api/tags", response_model=Tags, responses=error_responses("ollama"))
async def tags(request: Request) -> Response:
    """List the names that the served model answers to, as Ollama's tags."""
    service = service_of(request)
    return write_json({"models": [_describe(service, name) for name in service.names]})


@router.get("/api/version", response_model=Version, responses=error_responses("ollama"))
async def version() -> Response:
    """Tell the service's version."""
    return write_json({"version": __version__})


def _describe(service: EmbeddingService, name: str) -> dict[str, object]:
    tag = name if ":" in name else f"{name}:latest"
    started = datetime.datetime.fromtimestamp(service.started, tz=datetime.timezone.utc)
    runtime = service.embedder.models[0].runtime if service.is_ready else None
    return {
        "name": tag,
        "model": tag,
        "modified_at": started.isoformat(),
        "size": 0,
        "digest": service.fingerprint or "",
        "details": {
            "parent_model": "",
            "format": "" if runtime is None else runtime.engine,
            "family": "",
            "families": [],
            "parameter_size": "",
            "quantization_level": "" if runtime is None else runtime.precision,
        },
    }
