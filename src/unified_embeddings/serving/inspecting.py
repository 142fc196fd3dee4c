"""The inspector's pages as a part of the service, for the browsers of this machine.

What lives here: mounting them. What does not: the pages (the room `inspector`), and who may have
them mounted (`settings`).
"""

from __future__ import annotations

import threading
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from unified_embeddings.errors import MissingExtraError
from unified_embeddings.serving.searching import Search
from unified_embeddings.serving.service import EmbeddingService

PREFIX = "/inspect"


class MountedInspector:
    """An ASGI application: the inspector, made at the first request after the model is loaded.

    Args:
        app: The service's application.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._pages: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        service: EmbeddingService = self._app.state.service
        if not service.is_ready:
            waiting = PlainTextResponse(
                "The model is being loaded; try again.\n", 503, {"retry-after": "1"}
            )
            await waiting(scope, receive, send)
            return
        await self._make()(scope, receive, send)

    def _make(self) -> ASGIApp:
        from unified_embeddings.inspector.app import make_app
        from unified_embeddings.inspector.library import Library, Place

        with self._lock:
            if self._pages is None:
                service: EmbeddingService = self._app.state.service
                search: Search = self._app.state.search
                settings = service.settings
                place = Place(url=settings.qdrant_url)
                if settings.qdrant_url is None:
                    place = Place(path=Path(str(settings.store_path)))
                library = Library(search.client, place, config=service.config)
                self._pages = make_app(library, collection=settings.collection)
            return self._pages


def mount_inspector(app: FastAPI) -> None:
    """Offer the inspector under /inspect.

    Args:
        app: The service's application.

    Raises:
        MissingExtraError: If Jinja2 is not installed.
    """
    try:
        import unified_embeddings.inspector.app  # noqa: F401 — only whether it can be
    except ImportError:
        raise MissingExtraError(
            "Jinja2, which `serve --inspect` runs on,", extra="inspect"
        ) from None

    async def go_there() -> RedirectResponse:
        return RedirectResponse(f"{PREFIX}/search", status_code=307)

    app.add_api_route(PREFIX, go_there, include_in_schema=False)
    app.mount(PREFIX, MountedInspector(app))
