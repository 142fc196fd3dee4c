"""`unified-embeddings optimize`: an index for a collection of the embedded store."""

from __future__ import annotations

import contextlib
import time

import typer
from rich.console import Console
from rich.markup import escape

from unified_embeddings.cli import shared


def optimize(
    collection: shared.Collection = shared.DEFAULT_COLLECTION,
    path: shared.StorePath = shared.DEFAULT_PATH,
) -> None:
    """Index a collection of the embedded store, for quick searches over many passages.

    Worth it from some 20,000 passages; takes minutes there, and room for three copies. The index is
    approximate. Stopped, it leaves everything as it was. A server indexes by itself.
    """
    from unified_embeddings.stores.edge.client import EdgeQdrantClient

    client = shared.require_collection(collection, path, None)
    assert isinstance(client, EdgeQdrantClient)  # what a folder is opened with
    title = escape(f"Optimizing {shared.printable(collection)}; Ctrl-C leaves it as it is")
    spinner = Console(stderr=True).status(title)
    started = time.perf_counter()
    try:
        with spinner if shared.is_terminal() else contextlib.nullcontext():
            changed = client.optimize(collection)
    except KeyboardInterrupt:
        shared.complain("stopped; the collection is as it was")
        raise typer.Exit(130) from None
    info = client.get_collection(collection)
    shared.out.print(
        f"{shared.printable(collection)}: {info.points_count} points, "
        + (f"indexed in {time.perf_counter() - started:.1f} s" if changed else "nothing to do"),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
