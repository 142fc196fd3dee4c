"""`unified-embeddings index`: put files into a collection."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import pictures, shared
from unified_embeddings.errors import InputError
from unified_embeddings.types import Options

if TYPE_CHECKING:
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
    from unified_embeddings.llama.index_report import IndexReport


_INPUT = Path("-")
_NAMED_SKIPPED = 3
"""Skipped files that are named without --verbose."""


def index(
    paths: Annotated[
        list[Path],
        typer.Argument(
            parser=shared.require_path,
            help="Files and folders, or - to read a document from standard input.",
        ),
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
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Then follow the folders: index what changes, remove what is deleted. Ctrl-C ends "
            "it.",
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
    from unified_embeddings.cli.index_passes import Passes
    from unified_embeddings.cli.index_watch import WatchedPictures, Watching, describe_watching
    from unified_embeddings.cli.index_watch import watch as follow
    from unified_embeddings.llama.finding import FileSelection, find_files, named_path
    from unified_embeddings.llama.following import FolderWatch

    _check_options(paths, prune=prune, exclude=exclude, include=include, watch=watch, dry=dry_run)
    clip_model = pictures.chosen_image_model(image_model)
    config = shared.open_config(model, sparse_model, model_url, keywords, clip_model)
    settings = shared.server_settings(shard_number, replication_factor, write_consistency)
    options: Options = {"adopt": adopt, "colbert": colbert, **settings}
    open_store = partial(shared.open_store, config, collection, path, url, **options)
    store = _open_store(open_store, paths, dry_run=dry_run)
    if _INPUT in paths:
        report = _index_input(config, store, name, chunk_tokens, dry_run=dry_run)
        _print_report(report, dry_run=dry_run, as_json=as_json)
        return
    selection = FileSelection(
        exclude=[*_excluded(exclude or ()), *([] if url else [path])],
        include=include or (),
        gitignore=gitignore,
    )
    # Once, for texts, pictures and watching; before them, so that what changes meanwhile is seen.
    found = find_files([named_path(root) for root in paths], selection)
    folders = FolderWatch(paths, selection, note=shared.print_note, found=found) if watch else None
    image_name = pictures.image_collection_of(collection, image_collection)
    open_images = partial(pictures.open_image_store, config, image_name, path, url)
    passes = Passes(paths, found, prune=prune, dry_run=dry_run, verbose=verbose, as_json=as_json)
    images = None
    with _resumable():
        if watch and clip_model is not None:
            # Asked for now, so that a model that is missing is noticed before a picture comes.
            _ = config.clip.fingerprint
        if clip_model is not None:
            # First, so that a model that is missing is noticed before hours of texts.
            images = passes.index_pictures(open_images, config.clip)
        report = passes.index_texts(store, config.embedder, chunk_tokens)
    _print_report(report, dry_run=dry_run, as_json=as_json, images=images)
    if images is not None:
        pictures.print_report(images, report, image_name, dry_run=dry_run, as_json=as_json)
    elif image_model is None:
        pictures.print_hint([*report.skipped])
    if folders is not None:
        assert store is not None  # Only a dry run goes without.
        store.client.close()
        shared.print_note(describe_watching(paths, path, url))
        reopen = partial(open_store, create=False)
        watched = WatchedPictures(open_images, config.clip) if clip_model is not None else None
        follow(folders, Watching(reopen, config.embedder, chunk_tokens, as_json, watched))
    elif (report.failed or (images and images.failed)) and not allow_errors:
        raise typer.Exit(1)


def _check_options(
    paths: list[Path],
    *,
    prune: bool,
    exclude: list[str] | None,
    include: list[str] | None,
    watch: bool,
    dry: bool,
) -> None:
    """Refuse options that do not go together.

    Raises:
        InputError: If some do not.
    """
    if _INPUT in paths and (len(paths) > 1 or prune or exclude or include or watch):
        raise InputError(
            "- stands alone, without other paths, --prune, --exclude, --include and --watch"
        )
    if watch and dry:
        raise InputError("--watch stores what changes; leave out --dry-run")


@contextlib.contextmanager
def _resumable() -> Iterator[None]:
    """Say, if Ctrl-C ends what is done inside, how it goes on.

    Raises:
        Exit: With code 130, if it does.
    """
    try:
        yield
    except KeyboardInterrupt:
        shared.print_error(
            "interrupted; what was stored is kept. Run the same command again to resume"
        )
        raise typer.Exit(130) from None


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
    report: IndexReport, *, dry_run: bool, as_json: bool, images: IndexReport | None = None
) -> None:
    """Print what was done with texts; as JSON also what was done with pictures."""
    # Pictures are told of by `pictures`, whether they were indexed or not.
    skipped = pictures.without_images(report.skipped)
    if as_json:
        facts = asdict(report)
        if images is not None:
            facts["images"] = pictures.facts_of(images)
        typer.echo(json.dumps(facts))
    else:
        count = len(skipped if images is not None else report.skipped)
        shared.out.print(_report_line(report, count, dry_run=dry_run), soft_wrap=True)
    _print_problems(report, skipped)


def _open_store(
    open_store: Callable[..., QdrantVectorStore], paths: list[Path], *, dry_run: bool
) -> QdrantVectorStore | None:
    """Open the collection; make it unless there is nothing to store in it.

    Returns:
        The store; None for a dry run without a collection.

    Raises:
        InputError: If one of `paths` does not exist, and there is no collection that could hold
            what it was.
    """
    from unified_embeddings.llama.finding import is_gone, named_path

    roots = [named_path(root) for root in paths if root != _INPUT]
    missing = [root for root in roots if is_gone(root)]
    if not missing and not dry_run:
        return open_store(create=True)
    try:
        return open_store(create=False)
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


def _print_problems(report: IndexReport, skipped: Mapping[str, str]) -> None:
    """Print what could not be read and what is worth knowing, on standard error."""
    for file, reason in report.failed.items():
        shared.print_error(f"{file}: {reason}")
    for file, note in (*report.notes.items(), *report.left_out.items()):
        shared.print_note(f"{file}: {note}")
    if skipped:
        shared.print_note(_describe_skipped(skipped))


def _describe_skipped(skipped: Mapping[str, str]) -> str:
    """Return how many files were skipped, and the first of them with the reason."""
    first = [f"{Path(file).name} ({reason})" for file, reason in sorted(skipped.items())]
    count = "1 file was" if len(skipped) == 1 else f"{len(skipped)} files were"
    line = f"{count} skipped: {', '.join(first[:_NAMED_SKIPPED])}"
    if len(first) <= _NAMED_SKIPPED:
        return line
    return f"{line} and {len(first) - _NAMED_SKIPPED} more; --verbose names all"
