"""What the subcommands share: their common options, their output, and opening a collection.

What lives here: options that more than one subcommand has, and printing that is safe for a
terminal. What does not: anything that a single subcommand needs.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from unified_embeddings.cli.hints import complete_hints
from unified_embeddings.errors import InputError, StoreError, hide_passwords

if TYPE_CHECKING:
    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
    from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
    from unified_embeddings.stores.opening import Client
    from unified_embeddings.types import Options


def require_path(text: str) -> Path:
    """Return a path that was given as an option or an argument.

    Raises:
        BadParameter: If it is empty, which `Path` would take as the current folder. It comes from a
            variable that is not set.
    """
    if not str(text).strip():
        raise typer.BadParameter("it is empty; the current folder is .")
    return Path(text)


out = Console()
"""Standard output. Errors and progress go to standard error, so that pipes get results only."""

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A name from `models`, a hub id, a folder or a TOML file.",
        show_default="bge-m3",
    ),
]
SparseModel = Annotated[
    str | None,
    typer.Option(
        "--sparse-model",
        help="Gives sparse vectors beside --model: another model, or bm25, bm25:german, ... for "
        "words.",
    ),
]
Keywords = Annotated[
    str | None,
    typer.Option(
        "--keywords",
        help="A keyword list beside the model's own vectors: bm25, bm25:german, ...; a collection "
        "keeps its own.",
    ),
]
ModelUrl = Annotated[
    str | None,
    typer.Option(
        "--model-url",
        help="Address of a service that has the model (`serve`). Its key is read from the "
        "environment (_API_KEY).",
    ),
]
Collection = Annotated[str, typer.Option("--collection", "-c", help="The collection's name.")]
StorePath = Annotated[
    Path,
    typer.Option(
        "--path", parser=require_path, metavar="<path>", help="Folder of the embedded Qdrant store."
    ),
]
StoreUrl = Annotated[
    str | None, typer.Option("--url", help="Address of a Qdrant server, used instead of --path.")
]
ShardNumber = Annotated[
    int | None, typer.Option(min=1, help="Shards of a new collection (server only).")
]
ReplicationFactor = Annotated[
    int | None, typer.Option(min=1, help="Replicas of each shard (new collection, server only).")
]
WriteConsistency = Annotated[
    int | None,
    typer.Option(min=1, help="Write consistency factor (new collection, server only)."),
]
Adopt = Annotated[
    Literal["trust"] | None,
    typer.Option(
        "--adopt", help="Accept a collection that does not record its model as this model's own."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_PATH = Path("qdrant_data")
DEFAULT_COLLECTION = "documents"
INDEX_HINT = "index some files first: unified-embeddings index PATH"
_DEFAULT_MODEL = "bge-m3"


class MissingCollectionError(StoreError):
    """There is no collection of that name, or no store at all."""


def print_error(problem: str) -> None:
    """Print an error message on standard error; commands that it suggests can be pasted."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"error: {printable(hide_passwords(complete_hints(problem)))}", markup=False)


def open_config(
    model: str | None,
    sparse_model: str | None = None,
    model_url: str | None = None,
    keywords: str | None = None,
    image_model: str | None = None,
) -> UnifiedEmbeddingConfig:
    """Read the options from the environment; those of the command line win over it."""
    # It imports the embedders, which `serve-query` loads in another thread meanwhile.
    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig

    return UnifiedEmbeddingConfig.from_env(
        model_choice=model,
        sparse_model=sparse_model,
        url=model_url,
        keywords=keywords,
        image_model=image_model,
    )


def open_store(
    config: UnifiedEmbeddingConfig,
    collection: str,
    path: Path,
    url: str | None,
    *,
    create: bool,
    adopt: Literal["trust"] | None = None,
    colbert: str | None = None,
    **settings: int | str | None,
) -> FingerprintedStore:
    """Open the collection to work on: on the server `url` if given, otherwise in a folder.

    Args:
        config: Config of the model whose vectors the collection holds.
        collection: Name of the collection.
        path: Folder of the embedded store; ignored if `url` is given.
        url: Address of a server.
        create: Whether to create the collection if it does not exist.
        adopt: Whether to accept a collection that does not record its model.
        colbert: Whether points hold ColBERT vectors too, "pooled" or "full"; None does as an
            existing collection does.
        **settings: Result of `server_settings`, used if the collection is created, and what an
            existing collection's fields are called.

    Raises:
        StoreError: If the collection does not exist and `create` is False.
    """
    # `client` stays referenced while the store opens. The embedded client of a folder is shared
    # through a weak reference: without an owner it would be closed, and the folder read twice.
    client = None
    if not create:
        client, collection = require_collection(collection, path, url)
        note_other_model(client, collection, config)
    options: Options = {**settings, "adopt": adopt, "colbert": colbert}
    if url:
        options["url"] = url
    else:
        options["path"] = path
    store = config.vector_store(collection, **options)
    del client
    return store


def note_other_model(client: Client, collection: str, config: UnifiedEmbeddingConfig) -> None:
    """Say so where the default model is asked for a collection that another one made.

    Opening the store compares the models themselves, for which it has to load, and maybe to
    download, the default one: 2.3 GB for a forgotten --model.
    """
    from unified_embeddings.models.catalogue import MODELS
    from unified_embeddings.stores.errors import store_errors
    from unified_embeddings.stores.schema import recorded_model

    if config.url is not None or config.model_choice != _DEFAULT_MODEL:
        return
    with store_errors(collection, "opening"):
        recorded = recorded_model(client.get_collection(collection))
    if recorded is None or recorded.name in (_DEFAULT_MODEL, MODELS[_DEFAULT_MODEL].model_id):
        return
    name, _, sparse_name = recorded.name.partition(" + ")
    options = f"--model {shlex.quote(name)}"
    if sparse_name:
        options += f" --sparse-model {shlex.quote(sparse_name)}"
    print_note(
        f"collection {collection!r} was made by model {recorded.name!r}, and the default is "
        f"{_DEFAULT_MODEL!r}; to take that model: {options}"
    )


def require_collection(
    collection: str,
    path: Path,
    url: str | None,
    *,
    api_key: str | None = None,
    local_mode: bool = False,
    timeout: int | None = None,
    hint: str = INDEX_HINT,
) -> tuple[Client, str]:
    """Open the place of an existing collection; return its client and the collection's own name.

    The collection may be given by an alias.

    Args:
        collection: Name of the collection, or an alias.
        path: Folder of the store; ignored if `url` is given.
        url: Address of a server.
        api_key: The server's.
        local_mode: Whether the folder may also be one of qdrant-client's local mode.
        timeout: Seconds that a server may take for one request; None is qdrant-client's own.
        hint: What to do where there is no such collection.

    Raises:
        MissingCollectionError: If the collection does not exist. The message lists those that do.
        StoreError: If the place cannot be opened.
    """
    from unified_embeddings.stores.aliases import read_aliases
    from unified_embeddings.stores.errors import store_errors

    advice = f"; {hint}" if hint else ""
    if not url and not path.expanduser().is_dir():
        raise MissingCollectionError.of_place(
            str(path), "opening", f"there is no such folder; give --path or --url{advice}"
        )
    client = open_place(path, url, api_key=api_key, local_mode=local_mode, timeout=timeout)
    with store_errors(collection, f"connecting to {url}" if url else "opening"):
        names = sorted(info.name for info in client.get_collections().collections)
        if collection in names:
            return client, collection
        aliases = read_aliases(client)
    if collection in aliases:
        return client, aliases[collection]
    existing = ", ".join(map(repr, names)) or "none"
    if aliases:
        existing += f", and aliases: {', '.join(map(repr, sorted(aliases)))}"
    raise MissingCollectionError(
        collection,
        "opening",
        f"it does not exist in {name_place(path, url)}; existing collections: {existing}{advice}",
    )


def look_for_record(
    collection: str, path: Path, url: str | None, key: str
) -> tuple[Client, str, bool]:
    """Open the place of a collection; return client, own name, and whether it has a record.

    Args:
        collection: The collection's name, or an alias.
        path: Folder of the store; ignored if `url` is given.
        url: Address of a server.
        key: The record's key in the collection's metadata.

    Raises:
        MissingCollectionError: If the collection does not exist.
        StoreError: If its settings cannot be read.
    """
    from unified_embeddings.stores.errors import store_errors
    from unified_embeddings.stores.records import read_record

    client, name = require_collection(collection, path, url)
    with store_errors(name, "reading the collection's settings"):
        info = client.get_collection(name)
    return client, name, read_record(info, key) is not None


def name_place(path: Path, url: str | None) -> str:
    """Return a place in words. Messages name it, as --path has a default and is forgotten."""
    return hide_passwords(url) if url else f"the folder {printable(str(path))}"


def open_place(
    path: Path,
    url: str | None,
    *,
    api_key: str | None = None,
    local_mode: bool = False,
    timeout: int | None = None,
) -> Client:
    """Open a store that exists, on the server `url` if given, otherwise in a folder.

    Args:
        path: Folder of the store; ignored if `url` is given.
        url: Address of a server.
        api_key: The server's.
        local_mode: Whether the folder may also be one of qdrant-client's local mode.
        timeout: Seconds that a server may take for one request; None is qdrant-client's own.

    Raises:
        StoreError: If there is no such folder, or another process has it open.
    """
    from qdrant_client import QdrantClient

    from unified_embeddings.stores.edge.catalog import is_local_mode_folder
    from unified_embeddings.stores.opening import open_folder, open_local_mode_folder

    if url:
        return QdrantClient(url=url, api_key=api_key, timeout=timeout, check_compatibility=False)
    folder = path.expanduser()
    if not folder.is_dir():
        raise StoreError.of_place(
            str(path), "opening", "there is no such folder; --path names another"
        )
    if local_mode and is_local_mode_folder(folder):
        return open_local_mode_folder(folder)
    return open_folder(folder)


def server_settings(
    shard_number: int | None, replication_factor: int | None, write_consistency: int | None
) -> dict[str, int]:
    """Return those of Qdrant's settings for a new collection on a server that were given."""
    settings = {
        "shard_number": shard_number,
        "replication_factor": replication_factor,
        "write_consistency_factor": write_consistency,
    }
    return {name: number for name, number in settings.items() if number is not None}


def print_note(note: str) -> None:
    """Print on standard error what is worth knowing but no error."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"note: {printable(hide_passwords(complete_hints(note)))}", markup=False)


def print_line(text: str) -> None:
    """Print a line as it is, without markup, colours or wrapping, so that scripts can read it."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Replace control characters by spaces, so that no text can control the terminal.

    Halves of characters, as in a file's name that is not valid Unicode, become question marks.
    """
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text.encode(errors="replace").decode())


def escaped(text: str) -> str:
    """Return a text for a cell of a table: printable, and without markup."""
    from rich.markup import escape

    return escape(printable(text))


def one_line(text: str, width: int) -> str:
    """Return a text as one line of at most `width` printable characters."""
    line = " ".join(printable(text).split())
    if len(line) <= width:
        return line
    return line[: width - 1] + "…"


def require_text(query: str) -> str:
    """Return the query unless it is blank.

    Raises:
        InputError: If it is blank.
    """
    if not query.strip():
        raise InputError("the query is blank; ask a question")
    return query


def format_bytes(count: int) -> str:
    """Return a number of bytes with a decimal unit: "1.2 GB"."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    if size < 999.5:
        return f"{size:.3g} GB"
    return f"{size:,.0f} GB"


def is_terminal() -> bool:
    """Tell whether standard error is a terminal, where progress may be drawn."""
    return sys.stderr.isatty()
