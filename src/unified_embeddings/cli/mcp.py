"""`unified-embeddings mcp`: the collections as tools of an assistant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.system.collector import paused_collector


def mcp(
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection", "-c", help="Offer this collection alone.", show_default="all there are"
        ),
    ] = None,
    model: shared.Model = None,
    sparse_model: shared.SparseModel = None,
    model_url: shared.ModelUrl = None,
    http: Annotated[
        bool, typer.Option("--http", help="Serve on 127.0.0.1, for several clients.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port for --http; 0 takes one.", show_default="8765"),
    ] = None,
    allow_writes: Annotated[
        bool, typer.Option("--allow-writes", help="Offer index_paths too; needs --root.")
    ] = False,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            parser=shared.require_path,
            metavar="<path>",
            help="Folder whose files index_paths may read. Repeatable.",
        ),
    ] = None,
) -> None:
    """Offer the collections to an assistant, over the Model Context Protocol.

    The assistant starts this command itself, and talks to it over standard input and output. Its
    tools are search, explain and list_collections.
    """
    # An assistant's configuration goes through no shell, which would expand ~.
    path = path.expanduser()
    roots = _check_roots(root or [], allow_writes=allow_writes)
    if port is not None and not http:
        raise InputError("--port is for --http")
    if not url and not allow_writes and not path.is_dir():
        raise InputError(
            f"folder {path} does not exist; --path names the folder of a store, best with its "
            "whole path, as an assistant may start this command in any folder"
        )
    try:
        with paused_collector():
            from unified_embeddings.serving.mcp import run_http, run_stdio
    except ImportError as error:
        raise MissingExtraError("the MCP SDK", extra="mcp") from error
    from unified_embeddings.serving.mcp_place import Place
    from unified_embeddings.serving.mcp_tools import make_tools

    config = shared.open_config(model, sparse_model, model_url)
    place = Place(config, path=path, url=url, only=collection, may_create=allow_writes)
    tools = make_tools(place, roots)
    if http:
        run_http(tools, place, 8765 if port is None else port, note=shared.print_note)
    else:
        run_stdio(tools, place)


def _check_roots(roots: list[Path], *, allow_writes: bool) -> list[Path]:
    """Return the folders that may be indexed.

    Raises:
        InputError: If the options contradict each other, or a root is not a folder.
    """
    if allow_writes and not roots:
        raise InputError(
            "--allow-writes needs --root FOLDER, once or more: the files that may be indexed"
        )
    if roots and not allow_writes:
        raise InputError("--root says what may be indexed, which needs --allow-writes")
    folders = [folder.expanduser() for folder in roots]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--root {folder} is not a folder")
    return folders
