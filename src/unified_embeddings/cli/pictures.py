"""Pictures in `index` and `search`: their options, their collection, and what is printed of them.

What lives here: the collection of pictures beside a collection of texts. What does not: storing
pictures (`llama.image_indexing`), and searching texts (`search`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore, QueryBundle
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
    from unified_embeddings.embedders.clip import ClipEmbedder
    from unified_embeddings.llama.finding import FoundFiles
    from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
    from unified_embeddings.llama.index_report import IndexReport

ImageModel = Annotated[
    str | None,
    typer.Option(
        "--image-model",
        envvar="UNIFIED_EMBEDDINGS_IMAGE_MODEL",
        show_envvar=False,  # Its name does not fit into 80 columns.
        help="Embeds pictures: clip, mini-clip (drawn shapes only), a hub id or a folder; none "
        "leaves pictures out. Also from the environment (docs/images.md).",
    ),
]
ImageCollection = Annotated[
    str | None,
    typer.Option(
        "--image-collection",
        help="The collection of pictures.",
        show_default="the collection's name and -images",
    ),
]
_VARIABLE = "UNIFIED_EMBEDDINGS_IMAGE_MODEL"


def image_collection_of(collection: str, named: str | None) -> str:
    """Return the name of the collection of pictures that belongs to one of texts."""
    return named or f"{collection}-images"


def chosen_image_model(named: str | None) -> str | None:
    """Return the model that was named; None if none was, or "none"."""
    if named is None or not named.strip() or named.strip().lower() == "none":
        return None
    return named


def index_pictures(
    paths: Sequence[Path],
    found: FoundFiles,
    open_store: Callable[..., QdrantVectorStore],
    clip: ClipEmbedder,
    *,
    prune: bool | Callable[[str], bool],
    dry_run: bool,
    shows_bar: bool,
    on_outcome: Callable[[str, str], None],
) -> IndexReport | None:
    """Bring the collection of pictures in line with files and folders.

    Args:
        paths: Files and folders.
        found: What was found there.
        open_store: Opens the collection; with `create`, also one that does not exist, which is so
            for the first picture.
        clip: Embeds the pictures.
        prune: Whether the pictures of a folder that is gone may be removed.
        dry_run: Whether nothing is stored or removed.
        shows_bar: Whether to draw a bar.
        on_outcome: Called with a path and what became of it.

    Returns:
        What was done; None if there are no pictures, neither in the folders nor stored.
    """
    from unified_embeddings.llama.image_indexing import index_images
    from unified_embeddings.system.progress import progress_bar

    count = count_images(map(str, found.files))
    try:
        store: QdrantVectorStore | None = open_store(create=count > 0 and not dry_run)
    except shared.MissingCollectionError:
        if not count:
            return None
        store = None
    with progress_bar("Pictures", count, shown=shows_bar and count > 0) as advance:
        return index_images(
            paths,
            store,
            clip,
            prune=prune,
            dry_run=dry_run,
            found=found,
            on_image=lambda _: advance(1),
            on_outcome=on_outcome,
        )


def open_image_store(
    config: UnifiedEmbeddingConfig, collection: str, path: Path, url: str | None, *, create: bool
) -> FingerprintedStore:
    """Open a collection of pictures.

    Args:
        config: Names the image model.
        collection: Its name.
        path: Folder of the embedded store; ignored if `url` is given.
        url: Address of a server.
        create: Whether to create it if it does not exist.

    Raises:
        MissingCollectionError: If it does not exist and `create` is False.
    """
    client = None
    if not create:
        # It stays referenced while the store opens, as in `shared.open_store`.
        client, collection = shared.require_collection(
            collection,
            path,
            url,
            hint="index some pictures first: unified-embeddings index PATH --image-model MODEL",
        )
    if url:
        store = config.image_store(collection, url=url)
    else:
        store = config.image_store(collection, path=path)
    del client
    return store


def facts_of(report: IndexReport) -> dict[str, object]:
    """Return what was done with pictures, for JSON."""
    return {
        "unchanged": report.unchanged,
        "indexed": report.indexed,
        "moved": report.moved,
        "removed": report.removed,
        "failed": report.failed,
    }


def print_report(
    report: IndexReport,
    texts: IndexReport,
    collection: str,
    *,
    dry_run: bool,
    as_json: bool = False,
) -> None:
    """Print what was done with pictures in a line, unless JSON says it, and those that failed.

    Args:
        report: What was done with pictures.
        texts: What was done with texts; what that says already is not printed again.
        collection: Name of the collection of pictures.
        dry_run: Whether nothing was changed.
        as_json: Whether the line is left out.
    """
    moved = f"{report.moved} moved, " if report.moved else ""
    line = (
        f"{report.indexed} pictures indexed, {report.unchanged} unchanged, {moved}"
        f"{report.removed} removed, {len(report.failed)} failed, in collection {collection!r}"
    )
    if dry_run:
        line = f"dry run, nothing was changed: {line}"
    if not as_json:
        shared.print_line(line)
    for file, reason in report.failed.items():
        if texts.failed.get(file) != reason:
            shared.print_error(f"{file}: {reason}")
    for file, note in report.left_out.items():
        if texts.left_out.get(file) != note:
            shared.print_note(f"{file}: {note}")


def print_hint(skipped: Sequence[str]) -> None:
    """Say how to index pictures, if there are any among the files that were skipped."""
    count = count_images(skipped)
    if not count:
        return
    pictures = "1 picture was" if count == 1 else f"{count} pictures were"
    shared.print_note(
        f"{pictures} not indexed, as no image model is named; --image-model clip indexes pictures "
        "too (mini-clip needs no download, but knows drawn shapes only)"
    )


def count_images(files: Iterable[str]) -> int:
    """Return how many of some files are pictures."""
    from unified_embeddings.llama.finding import is_image

    return sum(is_image(Path(file)) for file in files)


def without_images(skipped: Mapping[str, str]) -> dict[str, str]:
    """Return the files, with their reasons, that are no pictures."""
    from unified_embeddings.llama.finding import is_image

    return {file: reason for file, reason in skipped.items() if not is_image(Path(file))}


# --- search ------------------------------------------------------------------------------------


def search_pictures(
    query: str | None,
    picture: Path | None,
    collection: str,
    path: Path,
    url: str | None,
    image_model: str | None,
    *,
    top_k: int,
    filters: Sequence[str],
    as_json: bool,
) -> None:
    """Print the pictures that fit a text best, or are most like another picture.

    Args:
        query: The text.
        picture: The other picture's file. Exactly one of the two is given.
        collection: Name of the collection of pictures.
        path: Folder of the embedded store; ignored if `url` is given.
        url: Address of a server.
        image_model: The model that the collection was made with; None takes the one that it
            records.
        top_k: Number of pictures to print.
        filters: Conditions on their metadata.
        as_json: Whether to print JSON.

    Raises:
        InputError: If both or none of text and picture are given, no model is named and the
            collection's own has no short name, or the picture cannot be read.
        StoreError: If there is no such collection, or Qdrant fails.
    """
    from unified_embeddings.embedders.clip_text import ClipTextEmbedder
    from unified_embeddings.llama.conditions import check_conditions, parse_conditions, to_filters
    from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever

    if (query is None) == (picture is None):
        raise InputError("pictures are searched by a text or by --image FILE: give one of the two")
    conditions = parse_conditions(filters)
    if image_model is None:
        image_model = _recorded_choice(collection, path, url)
    config = shared.open_config(None, image_model=image_model)
    store = open_image_store(config, collection, path, url, create=False)
    check_conditions(conditions, store, note=shared.print_note)
    retriever = UnifiedHybridRetriever(
        store,
        ClipTextEmbedder(config.clip),
        mode="dense",
        similarity_top_k=top_k,
        filters=to_filters(conditions),
    )
    _print_pictures(retriever.retrieve(_to_bundle(config, query, picture)), as_json=as_json)


def _to_bundle(
    config: UnifiedEmbeddingConfig, query: str | None, picture: Path | None
) -> QueryBundle:
    """Return a text, or a picture's vector, as a question."""
    from llama_index.core.schema import QueryBundle

    if picture is None:
        return QueryBundle(shared.require_text(query or ""))
    try:
        vectors = config.clip.encode_images([picture]).dense
    except InputError as error:
        raise InputError(f"--image: {error.problem}") from error
    return QueryBundle("", embedding=vectors[0].tolist())


def _recorded_choice(collection: str, path: Path, url: str | None) -> str:
    """Return the image model that made a collection, if `models` lists it.

    Raises:
        InputError: If it records none, or one that only its owner can name, as a folder.
    """
    from unified_embeddings.models.catalogue import MODELS
    from unified_embeddings.stores.errors import store_errors
    from unified_embeddings.stores.schema import recorded_model

    client, name = shared.require_collection(collection, path, url)
    with store_errors(name, "reading the collection's settings"):
        recorded = recorded_model(client.get_collection(name))
    for choice, spec in MODELS.items():
        if recorded is not None and spec.images and recorded.name in (choice, spec.model_id):
            return choice
    advice = f"name the image model with --image-model or {_VARIABLE}"
    if recorded is None:
        raise InputError(f"{advice}; collection {name!r} does not record which one made it")
    raise InputError(f"{advice}; collection {name!r} was made by {recorded.name!r}")


def _print_pictures(nodes: Sequence[NodeWithScore], *, as_json: bool) -> None:
    from unified_embeddings.llama.payloads import own_metadata

    if as_json:
        rows = [
            {"id": node.node.node_id, "score": node.score, "metadata": own_metadata(node.node)}
            for node in nodes
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for rank, node in enumerate(nodes, 1):
        source = node.node.metadata.get("file_path", node.node.node_id)
        shared.print_line(f"{rank}. {node.score:.4f}  {shared.printable(source)}")
    if not nodes:
        shared.print_line("no picture found")
