"""The service as an ASGI application.

What lives here: putting routes, errors and the guard together. What does not: what a route does
(`routes`), running the application (`server`).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from unified_embeddings._version import __version__
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.serving.api_description import DescribedApp
from unified_embeddings.serving.engine_thread import EngineThread
from unified_embeddings.serving.envelopes import Problem, bad_input_status, contract_of, describe
from unified_embeddings.serving.envelopes import write as write_problem
from unified_embeddings.serving.guard import Guard
from unified_embeddings.serving.inspecting import mount_inspector
from unified_embeddings.serving.metrics import Metrics
from unified_embeddings.serving.refusals import describe_validation
from unified_embeddings.serving.routes import (
    documents,
    images,
    ollama,
    openai,
    operations,
    rerank,
    search,
    tei,
)
from unified_embeddings.serving.searching import Search
from unified_embeddings.serving.service import EmbeddingService
from unified_embeddings.serving.settings import ServiceSettings

_SUMMARY = "Dense, sparse and ColBERT vectors of one model, as many clients ask for them."


def make_app(config: UnifiedEmbeddingConfig, settings: ServiceSettings | None = None) -> FastAPI:
    """Make the application that serves a config's model.

    The model is loaded in the background from the application's start; until then its routes answer
    503.

    Args:
        config: Of the model.
        settings: Limits and keys; the defaults if None.

    Example:
        >>> from unified_embeddings import UnifiedEmbeddingConfig
        >>> from unified_embeddings.serving.app import make_app
        >>> app = make_app(UnifiedEmbeddingConfig("mini-m3"))    # run it with uvicorn
        >>> "/v1/embeddings" in app.openapi()["paths"]
        True
    """
    settings = settings or ServiceSettings()
    service = EmbeddingService(config, settings, prepare=lambda: _open_search(app))
    metrics = Metrics(service)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service:
            yield

    app = DescribedApp(
        title="unified-embeddings",
        summary=_SUMMARY,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # Its page loads scripts from elsewhere; /openapi.json is offline.
        redoc_url=None,
        redirect_slashes=False,  # Clients would lose their body, or leave the contract's statuses.
    )
    app.needs_key = bool(settings.api_keys)
    app.state.service = service
    app.state.metrics = metrics
    app.state.image_thread = EngineThread()
    for module in (operations, tei, openai, ollama, rerank, documents, images, search):
        app.include_router(module.router)
    if settings.inspect:
        mount_inspector(app)
    app.add_exception_handler(UnifiedEmbeddingsError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_bad_request)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_middleware(Guard, service=service, metrics=metrics)
    return app


def _open_search(app: FastAPI) -> None:
    """Open the collection that is searched, if there is one."""
    service: EmbeddingService = app.state.service
    if service.settings.collection is not None:
        app.state.search = Search(service.config, service.settings)
        app.state.metrics.tell_searches(app.state.search)
    if service.settings.images:
        # Loads the model: 400 MB that the first request should not wait for.
        service.config.clip.encode_texts(["warm-up"])


async def _answer_error(request: Request, error: Exception) -> Response:
    contract = contract_of(request.url.path)
    service: EmbeddingService = request.app.state.service
    return write_problem(describe(error, contract, service.batcher.retry_after()), contract)


async def _answer_bad_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    contract = contract_of(request.url.path)
    message = describe_validation(error.errors())
    return write_problem(Problem(bad_input_status(contract), message), contract)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    contract = contract_of(request.url.path)
    messages = {
        404: "there is no such route; /openapi.json lists those there are",
        405: "the route does not take this method",
    }
    message = messages.get(error.status_code, error.detail)
    kind = "Validation" if error.status_code == 413 else "NotFound"
    response = write_problem(Problem(error.status_code, message, tei_kind=kind), contract)
    response.headers.update(error.headers or {})
    return response
