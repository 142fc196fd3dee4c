"""The inspector as an ASGI application.

What lives here: addresses, and what each page is made of. What does not: finding it (`searching`,
`passage`, `collection`, `comparing`), and running the application (`server`).
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from unified_embeddings.errors import (
    FingerprintMismatchError,
    InputError,
    StoreError,
    UnifiedEmbeddingsError,
)
from unified_embeddings.inspector import pages
from unified_embeddings.inspector.comparing import QuestionSet
from unified_embeddings.inspector.library import Library, UnknownCollectionError
from unified_embeddings.inspector.security import LocalOnly
from unified_embeddings.inspector.views import Views

_LOG = logging.getLogger(__name__)
_MESSAGES = {
    404: "There is no such page here.",
    405: "This page is only read.",
}
Answer = Callable[[Request], Response]


def make_app(
    library: Library,
    *,
    collection: str | None = None,
    questions: QuestionSet | None = None,
    require_ready: Callable[[], None] | None = None,
) -> Starlette:
    """Make the application that shows a library's collections.

    It answers to this machine's own names only (`security`), wherever it is mounted.

    Args:
        library: The collections.
        collection: The one that is shown first; None takes the first by name.
        questions: For the page that compares.
        require_ready: Called before a page is made; raises while a model is being loaded.

    Example:
        >>> from qdrant_client import QdrantClient
        >>> from starlette.testclient import TestClient
        >>> from unified_embeddings.inspector.app import make_app
        >>> from unified_embeddings.inspector.library import Library, Place
        >>> app = make_app(Library(QdrantClient(":memory:"), Place()))
        >>> TestClient(app, base_url="http://127.0.0.1").get("/search").status_code
        404
    """
    views = Views(library, collection=collection, questions=questions)

    def guard(view: Answer) -> Answer:
        def answer(request: Request) -> Response:
            try:
                if require_ready is not None:
                    require_ready()
                return view(request)
            except Exception as error:  # a browser gets a page, and no traceback
                return views.tell(request, *describe(error))

        return answer

    async def tell_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = _MESSAGES.get(error.status_code, str(error.detail))
        return views.tell(request, error.status_code, message)

    app = Starlette(
        routes=[
            Route("/", _go_to_search, name="start"),
            Route("/search", guard(views.search), name="search"),
            Route("/passage", guard(views.passage), name="passage"),
            Route("/collection", guard(views.collection), name="collection"),
            Route("/compare", guard(views.compare), name="compare"),
            Mount("/static", StaticFiles(directory=pages.STATIC), name="static"),
        ],
        middleware=[Middleware(LocalOnly)],
        exception_handlers={HTTPException: tell_http_error},
    )
    app.state.library = library
    return app


def describe(error: Exception) -> tuple[int, str]:
    """Return the status and the message of an error.

    One that is no error of ours is logged with its place, and without its message, which may quote
    a passage.

    Args:
        error: What a page raised.
    """
    if isinstance(error, UnknownCollectionError):
        return 404, str(error)
    if isinstance(error, InputError):
        return 400, str(error)
    if isinstance(error, FingerprintMismatchError):
        return 409, str(error)
    if isinstance(error, StoreError):
        return 502, str(error)
    if isinstance(error, UnifiedEmbeddingsError):
        return 503, str(error)
    places = traceback.extract_tb(error.__traceback__)
    place = f"{Path(places[-1].filename).name}:{places[-1].lineno}" if places else "unknown"
    _LOG.error("A page failed: %s at %s", type(error).__name__, place)
    return 500, (
        f"The page could not be made ({type(error).__name__}). The inspector's terminal names the "
        "place."
    )


def _go_to_search(request: Request) -> Response:
    return RedirectResponse(f"{request.scope.get('root_path', '')}/search", status_code=307)
