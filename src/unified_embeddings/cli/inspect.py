"""`unified-embeddings inspect`: a page in the browser that shows what is found, and why."""

from __future__ import annotations

import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError, MissingExtraError, UnifiedEmbeddingsError

if TYPE_CHECKING:
    from unified_embeddings.inspector.library import Library

_WARM_UP = "Foxes jump over lazy dogs."


def inspect(
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection",
            "-c",
            help="Collection to show first.",
            show_default="the first by name",
        ),
    ] = None,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A name from `models`, a hub id, a folder or a TOML file.",
            show_default="what each collection records",
        ),
    ] = None,
    sparse_model: shared.SparseModel = None,
    model_url: shared.ModelUrl = None,
    adopt: shared.Adopt = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="Questions to compare on: a folder in BEIR's layout, or a file of JSON lines.",
            show_default=False,
        ),
    ] = None,
    qrels: Annotated[
        Path | None,
        typer.Option(help="Judgements of these questions in TREC's format.", show_default=False),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 0,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Look at collections in the browser: what a question finds in each list, and why.

    The page is served on 127.0.0.1 alone and only reads. Ctrl-C ends it.
    """
    try:
        from unified_embeddings.inspector.app import make_app
        from unified_embeddings.inspector.server import open_port, run
    except ImportError as error:
        if isinstance(error, MissingExtraError):
            raise
        raise MissingExtraError(
            "Jinja2, Starlette or uvicorn, which `inspect` runs on,", extra="inspect"
        ) from None
    from unified_embeddings.inspector.comparing import load_questions

    if qrels is not None and queries is None:
        raise InputError("--qrels judges questions; name those with --queries")
    questions = None if queries is None else load_questions(queries, qrels)
    library = _open_library(path, url, model, sparse_model, model_url, adopt)
    first = collection or next(iter(library.names()), None)
    if first is None:
        raise InputError(
            f"there is no collection in {shared.name_place(path, url)}; index some files first: "
            "unified-embeddings index PATH"
        )
    opened = library.open(first)
    listener = open_port(port)
    app = make_app(library, collection=opened.name, questions=questions)

    def warm_up() -> None:
        # The page itself tells what is wrong with a model.
        try:
            opened.embedder.encode_query(_WARM_UP)
        except UnifiedEmbeddingsError as error:
            shared.print_error(str(error))

    def tell_ready(address: str) -> None:
        shared.print_note(f"{opened.name!r} is shown at {address} (Ctrl-C ends it)")
        threading.Thread(target=warm_up, daemon=True).start()
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    run(app, listener, on_ready=tell_ready)


def _open_library(
    path: Path,
    url: str | None,
    model: str | None,
    sparse_model: str | None,
    model_url: str | None,
    adopt: str | None,
) -> Library:
    """Open the place; a model is named only where one was asked for."""
    from unified_embeddings.inspector.library import Library, Place

    config = None
    if model is not None or sparse_model is not None or model_url is not None or adopt is not None:
        config = shared.open_config(model, sparse_model, model_url)
    client = shared.open_place(path, url)
    place = Place(url=url) if url else Place(path=path)
    return Library(client, place, config=config, adopt="trust" if adopt else None)
