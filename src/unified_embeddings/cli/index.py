"""`unified-embeddings index`: put files into a collection."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unified_embeddings.cli import pictures, shared
from unified_embeddings.errors import InputError

if TYPE_CHECKING:
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
    from unified_embeddings.llama.image_indexing import ImageReport
    from unified_embeddings.llama.indexing import IndexReport

_INPUT = Path("-")


def index(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Files and folders, or - to read a document from standard input."),
    ],
    collection: shared.Collection = shared.DEFAULT_COLLECTION,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    model: shared.Model = None,
    sparse_model: shared.SparseModel = None,
    keywords: shared.Keywords = None,
    model_url: shared.ModelUrl = None,
    chunk_tokens: Annotated[
        int, typer.Option(min=32, help="Maximum number of tokens in a chunk.")
    ] = 512,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out what matches, as in .gitignore ('drafts/', '*.log'), or is this path; "
            "passages of it are removed. Repeatable."
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="Take only files that match, as in .gitignore ('*.md'); the others' passages are "
            "removed. Repeatable."
        ),
    ] = None,
    gitignore: Annotated[
        bool, typer.Option("--gitignore", help="Leave out what .gitignore files name.")
    ] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Remove the passages of a PATH that is gone or holds no file any more, and of "
            "links that lead to nothing now.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")
    ] = False,
    allow_errors: Annotated[
        bool, typer.Option("--allow-errors", help="Exit with 0 though files could not be read.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print what became of each file.")
    ] = False,
    name: Annotated[
        str,
        typer.Option(help="What standard input is called; the ending says how it is read."),
    ] = "stdin.txt",
    colbert: Annotated[
        str | None,
        typer.Option(
            "--colbert",
            help="Store ColBERT vectors too, for search --rerank: pooled or full.",
        ),
    ] = None,
    image_model: pictures.ImageModel = None,
    image_collection: pictures.ImageCollection = None,
    shard_number: shared.ShardNumber = None,
    replication_factor: shared.ReplicationFactor = None,
    write_consistency: shared.WriteConsistency = None,
    adopt: shared.Adopt = None,
    as_json: shared.AsJson = False,
) -> None:
    """Bring a collection up to date with files and folders.

    Run it again after any change or interruption: unchanged files are skipped, changed files are
    replaced, and files that were deleted from the folders are removed. If a folder is gone or empty
    altogether, it asks first, or needs --prune. Where an image model is named, pictures are indexed
    as well, into a collection of their own.
    """
    from unified_embeddings.llama.indexing import index_paths
    from unified_embeddings.system.progress import open_ended_progress_bar

    image_name = pictures.image_collection_of(collection, image_collection)
    reads_input = _INPUT in paths
    if reads_input and (len(paths) > 1 or prune or exclude or include):
        raise InputError("- stands alone, without other paths, --prune, --exclude and --include")
    clip_model = pictures.chosen_image_model(image_model)
    config = shared.open_config(model, sparse_model, model_url, keywords, clip_model)
    settings = shared.server_settings(shard_number, replication_factor, write_consistency)
    store = _open_store(
        config,
        collection,
        path,
        url,
        [] if reads_input else paths,
        dry_run=dry_run,
        adopt=adopt,
        colbert=colbert,
        **settings,
    )
    if reads_input:
        report = _index_input(config, store, name, chunk_tokens, dry_run=dry_run)
        _print_report(report, dry_run=dry_run, as_json=as_json)
        return
    shows_bar = shared.is_terminal() and not (verbose or dry_run)
    lists_files = (verbose or dry_run) and not as_json
    # First, so that a model that is missing is noticed before hours of texts.
    images = None
    if clip_model is not None:
        images = pictures.index_pictures(
            config,
            paths,
            image_name,
            path,
            url,
            exclude=_excluded(exclude or ()),
            include=include or (),
            gitignore=gitignore,
            prune=prune or (_would_refuse if dry_run else _ask),
            dry_run=dry_run,
            shows_bar=shows_bar,
            on_outcome=_print_outcome if lists_files else _ignore_outcome,
        )
    try:
        with open_ended_progress_bar("Indexing", shown=shows_bar) as (start, advance):
            report = index_paths(
                paths,
                store,
                config.embedder,
                chunk_tokens=chunk_tokens,
                exclude=[*_excluded(exclude or ()), *([] if url else [path])],
                include=include or (),
                gitignore=gitignore,
                prune=prune or (_would_refuse if dry_run else _ask),
                dry_run=dry_run,
                on_files=start,
                on_file=lambda _: advance(1),
                on_outcome=_print_outcome if lists_files else _ignore_outcome,
            )
    except KeyboardInterrupt:
        shared.print_error(
            "interrupted; what was stored is kept. Run the same command again to resume"
        )
        raise typer.Exit(130) from None
    _print_report(report, dry_run=dry_run, as_json=as_json, images=images)
    if images is not None:
        pictures.print_report(images, image_name, dry_run=dry_run, as_json=as_json)
    elif image_model is None:
        pictures.print_hint([*report.skipped])
    if (report.failed or (images and images.failed)) and not allow_errors:
        raise typer.Exit(1)


def _index_input(
    config: UnifiedEmbeddingConfig,
    store: QdrantVectorStore | None,
    name: str,
    chunk_tokens: int,
    *,
    dry_run: bool,
) -> IndexReport:
    """Store what comes through standard input, to its end."""
    from unified_embeddings.llama.indexing_input import index_input

    return index_input(
        sys.stdin.buffer.read(),
        name,
        store,
        config.embedder,
        chunk_tokens=chunk_tokens,
        dry_run=dry_run,
    )


def _print_report(
    report: IndexReport, *, dry_run: bool, as_json: bool, images: ImageReport | None = None
) -> None:
    """Print what was done with texts; as JSON also what was done with pictures."""
    if as_json:
        facts = asdict(report)
        if images is not None:
            facts["images"] = asdict(images)
        typer.echo(json.dumps(facts))
    else:
        skipped = len(report.skipped)
        if images is not None:  # They are skipped here only.
            skipped -= pictures.count_images([*report.skipped])
        shared.out.print(_report_line(report, skipped, dry_run=dry_run), soft_wrap=True)
    _print_problems(report)


def _open_store(
    config: UnifiedEmbeddingConfig,
    collection: str,
    path: Path,
    url: str | None,
    paths: list[Path],
    *,
    dry_run: bool,
    adopt: Literal["trust"] | None,
    colbert: str | None,
    **settings: int,
) -> QdrantVectorStore | None:
    """Open the collection; make it unless there is nothing to store in it.

    Returns:
        The store; None for a dry run without a collection.

    Raises:
        InputError: If one of `paths` does not exist, and there is no collection that could hold
            what it was.
    """
    from unified_embeddings.llama.finding import is_gone, named_path

    missing = [root for root in map(named_path, paths) if is_gone(root)]
    if not missing and not dry_run:
        return shared.open_store(
            config,
            collection,
            path,
            url,
            create=True,
            adopt=adopt,
            colbert=colbert,
            **settings,
        )
    try:
        return shared.open_store(
            config, collection, path, url, create=False, adopt=adopt, colbert=colbert
        )
    except shared.MissingCollectionError:
        if not missing:
            return None
        problem = f"{missing[0]} does not exist, and nothing of it is indexed"
        raise InputError(problem) from None


def _excluded(exclude: Sequence[str]) -> list[Path | str]:
    """Return what to leave out: each as a pattern, and also as a path if it is one."""
    excluded: list[Path | str] = [*exclude]
    for pattern in exclude:
        if os.path.lexists(pattern):
            excluded.append(Path(pattern))
    return excluded


def _ask(problem: str) -> bool:
    """Ask on a terminal whether passages are to be removed; elsewhere nobody is there to say so."""
    if not _is_answered():
        return False
    return typer.confirm(f"{shared.printable(problem)}. Remove their passages?", err=True)


def _is_answered() -> bool:
    """Tell whether somebody at a terminal can read a question and answer it."""
    return sys.stdin.isatty() and shared.is_terminal()


def _would_refuse(problem: str) -> bool:
    """Go on with a dry run, and say that the real run would not."""
    shared.print_note(f"{problem}. The run would ask first, or need --prune")
    return True


def _print_outcome(path: str, outcome: str) -> None:
    shared.print_line(shared.printable(f"{path}: {outcome}"))


def _ignore_outcome(path: str, outcome: str) -> None:
    pass


def _report_line(report: IndexReport, skipped: int, *, dry_run: bool) -> str:
    """Describe a finished run in one line."""
    moved = f"{report.moved} moved, " if report.moved else ""
    line = (
        f"{report.indexed} files indexed ({report.chunks_added} chunks added), "
        f"{report.unchanged} unchanged, {moved}{report.removed} removed "
        f"({report.chunks_removed} chunks dropped), {skipped} skipped, "
        f"{len(report.failed)} failed"
    )
    return f"dry run, nothing was changed: {line}" if dry_run else line


def _print_problems(report: IndexReport) -> None:
    """Print what could not be read and what is worth knowing, on standard error."""
    for file, reason in report.failed.items():
        shared.print_error(f"{file}: {reason}")
    for file, note in (*report.notes.items(), *report.left_out.items()):
        shared.print_note(f"{file}: {note}")
