"""`unified-embeddings index`: files into a collection."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from unified_embeddings.cli import shared


def index(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    collection: shared.Collection = shared.DEFAULT_COLLECTION,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    model: shared.Model = None,
    sparse_model: shared.SparseModel = None,
    chunk_tokens: Annotated[int, typer.Option(min=32, help="Most tokens of a chunk.")] = 512,
    shard_number: shared.ShardNumber = None,
    replication_factor: shared.ReplicationFactor = None,
    write_consistency: shared.WriteConsistency = None,
    as_json: shared.AsJson = False,
) -> None:
    """Bring a collection in line with files and folders.

    Run it again after any change, or after it was stopped: unchanged files are left alone, changed
    ones replaced, and what has gone from the folders is dropped.
    """
    from unified_embeddings.llama.indexing import index_paths
    from unified_embeddings.system.progress import open_ended_progress_bar

    config = shared.open_config(model, sparse_model)
    settings = shared.server_settings(shard_number, replication_factor, write_consistency)
    store = shared.open_store(config, collection, path, url, create=True, **settings)
    try:
        with open_ended_progress_bar("Indexing", shown=shared.is_terminal()) as (start, step):
            report = index_paths(
                paths,
                store,
                config.embedder,
                chunk_tokens=chunk_tokens,
                exclude=[] if url else [path],
                on_files=start,
                on_file=lambda _: step(1),
            )
    except KeyboardInterrupt:
        shared.complain("stopped; what is stored stays. Run the same command again to go on")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(asdict(report)))
    else:
        shared.out.print(
            f"{report.indexed} files indexed ({report.chunks_added} chunks added), "
            f"{report.unchanged} unchanged, {report.removed} removed "
            f"({report.chunks_removed} chunks dropped), {len(report.skipped)} skipped, "
            f"{len(report.failed)} failed",
            soft_wrap=True,
        )
    for file, reason in report.failed.items():
        shared.complain(f"{file}: {reason}")
    if report.failed:
        raise typer.Exit(1)
