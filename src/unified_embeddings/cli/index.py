"""`unified-embeddings index`: put files into a collection."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import shared

if TYPE_CHECKING:
    from unified_embeddings.llama.indexing import IndexReport


def index(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    collection: shared.Collection = shared.DEFAULT_COLLECTION,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    model: shared.Model = None,
    sparse_model: shared.SparseModel = None,
    chunk_tokens: Annotated[
        int, typer.Option(min=32, help="Maximum number of tokens in a chunk.")
    ] = 512,
    shard_number: shared.ShardNumber = None,
    replication_factor: shared.ReplicationFactor = None,
    write_consistency: shared.WriteConsistency = None,
    adopt: shared.Adopt = None,
    as_json: shared.AsJson = False,
) -> None:
    """Bring a collection up to date with files and folders.

    Run it again after any change or interruption: unchanged files are skipped, changed files are
    replaced, and files that were deleted from the folders are removed.
    """
    from unified_embeddings.llama.indexing import index_paths
    from unified_embeddings.system.progress import open_ended_progress_bar

    config = shared.open_config(model, sparse_model)
    settings = shared.server_settings(shard_number, replication_factor, write_consistency)
    store = shared.open_store(config, collection, path, url, create=True, adopt=adopt, **settings)
    # `index .` must not index the store that it writes to.
    excluded_folders = [] if url else [path]
    try:
        with open_ended_progress_bar("Indexing", shown=shared.is_terminal()) as (start, advance):
            report = index_paths(
                paths,
                store,
                config.embedder,
                chunk_tokens=chunk_tokens,
                exclude=excluded_folders,
                on_files=start,
                on_file=lambda _: advance(1),
            )
    except KeyboardInterrupt:
        shared.print_error(
            "interrupted; what was stored is kept. Run the same command again to resume"
        )
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(asdict(report)))
    else:
        shared.out.print(_report_line(report), soft_wrap=True)
    for file, reason in report.failed.items():
        shared.print_error(f"{file}: {reason}")
    if report.failed:
        raise typer.Exit(1)


def _report_line(report: IndexReport) -> str:
    """Describe a finished run in one line."""
    return (
        f"{report.indexed} files indexed ({report.chunks_added} chunks added), "
        f"{report.unchanged} unchanged, {report.removed} removed "
        f"({report.chunks_removed} chunks dropped), {len(report.skipped)} skipped, "
        f"{len(report.failed)} failed"
    )
