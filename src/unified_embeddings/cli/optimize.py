"""`unified-embeddings optimize`: build the index of a collection in the embedded store."""

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
    """Build an index for a collection of the embedded store, for fast searches over many passages.

    Worth it from about 20,000 passages. It takes minutes, and disk space for three copies of the
    collection. The index is approximate. An interruption changes nothing. Servers index on their
    own.
    """
    from unified_embeddings.stores.edge.client import EdgeQdrantClient

    client, collection = shared.require_collection(collection, path, None)
    assert isinstance(client, EdgeQdrantClient)  # every folder is opened with this client
    name = shared.printable(collection)
    progress: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if shared.is_terminal():
        title = escape(f"Optimizing {name}; Ctrl-C leaves the collection as it is")
        progress = Console(stderr=True).status(title)
    started = time.perf_counter()
    try:
        with progress:
            changed = client.optimize(collection)
    except KeyboardInterrupt:
        shared.print_error("interrupted; the collection is as it was")
        raise typer.Exit(130) from None
    outcome = "nothing to do"
    if changed:
        outcome = f"indexed in {time.perf_counter() - started:.1f} s"
    points_count = client.get_collection(collection).points_count
    shared.print_line(f"{name}: {points_count} points, {outcome}")
