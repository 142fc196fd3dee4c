"""What operators ask: is it alive, is it ready, what is it, what has it done."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from unified_embeddings._version import __version__
from unified_embeddings.serving.loading import NotReadyError
from unified_embeddings.serving.metrics import CONTENT_TYPE, Metrics
from unified_embeddings.serving.schemas import (
    Strict,
    StrictRoute,
    error_responses,
    service_of,
    write_json,
)

router = APIRouter(route_class=StrictRoute, tags=["Operations"])


class State(Strict):
    """The service's state."""

    status: Literal["ok", "loading", "draining", "failed"]
    problem: str | None = None


class Info(Strict):
    """What is served: TEI's fields, and ours under "unified_embeddings"."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str = Field(examples=[__version__])
    unified_embeddings: dict[str, Any]


@router.get("/health", response_model=State, responses=error_responses("tei"))
async def health(request: Request) -> Response:
    """Answer 200 while the service can do its work or is loading, 503 once it cannot."""
    service = service_of(request)
    problem = service.problem
    if problem is not None:
        return _tell({"status": "failed", "problem": problem, "error": problem}, 503)
    return _tell({"status": _status(request)}, 200)


@router.get("/ready", response_model=State, responses=error_responses("tei"))
async def ready(request: Request) -> Response:
    """Answer 200 when requests are answered, 503 while loading, draining, or failed."""
    status = _status(request)
    return _tell({"status": status}, 200 if status == "ok" else 503)


@router.get("/info", response_model=Info, responses=error_responses("tei"))
async def info(request: Request) -> Response:
    """Tell which model is served, how, and within which limits."""
    service = service_of(request)
    if service.fingerprint is None:
        raise NotReadyError("the model is being loaded; try again in a moment")
    return write_json(service.describe())


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        **error_responses("tei"),
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
    },
)
async def metrics(request: Request) -> Response:
    """Tell the counters in Prometheus's text format."""
    counters: Metrics = request.app.state.metrics
    return Response(await counters.write_all(), headers={"content-type": CONTENT_TYPE})


def _status(request: Request) -> str:
    service = service_of(request)
    if service.problem is not None:
        return "failed"
    if service.is_draining:
        return "draining"
    return "ok" if service.is_ready else "loading"


def _tell(content: dict[str, object], status: int) -> Response:
    response = write_json({**content, "error_type": "Unhealthy"} if status == 503 else content)
    response.status_code = status
    return response
