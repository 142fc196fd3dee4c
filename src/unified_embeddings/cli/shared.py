"""What the subcommands share: options, output, and opening the collection they work on."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.errors import InputError, StoreError

if TYPE_CHECKING:
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    from unified_embeddings.stores.opening import Client

out = Console()

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A choice (see models), hub id, folder or TOML file. [default: bge-m3]",
    ),
]
SparseModel = Annotated[
    str | None,
    typer.Option("--sparse-model", help="Gives the sparse vectors beside a dense-only model."),
]
Collection = Annotated[str, typer.Option("--collection", "-c", help="The collection's name.")]
StorePath = Annotated[
    Path, typer.Option("--path", help="Folder of the embedded Qdrant, unless --url is given.")
]
StoreUrl = Annotated[str | None, typer.Option("--url", help="Address of a Qdrant server.")]
ShardNumber = Annotated[
    int | None, typer.Option(min=1, help="Shards of a collection made on a server.")
]
ReplicationFactor = Annotated[
    int | None, typer.Option(min=1, help="Replicas of each shard of a collection made on a server.")
]
WriteConsistency = Annotated[
    int | None, typer.Option(min=1, help="Replicas that must confirm a write, made on a server.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_PATH = Path("qdrant_data")
DEFAULT_COLLECTION = "documents"


def complain(problem: str) -> None:
    """Say on standard error what went wrong."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"error: {printable(problem)}", markup=False
    )


def open_config(model: str | None, sparse_model: str | None = None) -> UnifiedEmbeddingConfig:
    """The environment's options with --model and --sparse-model over them."""
    return UnifiedEmbeddingConfig.from_env(model_choice=model, sparse_model=sparse_model)


def open_store(
    config: UnifiedEmbeddingConfig,
    collection: str,
    path: Path,
    url: str | None,
    *,
    create: bool,
    **settings: int,
) -> QdrantVectorStore:
    """The collection to work on, at `url` if given, else in the folder `path`.

    Args:
        config: Whose model's collection it is.
        collection: Its name.
        path: Folder of the embedded store.
        url: Address of a server.
        create: Make it if it is not there.
        **settings: Of `server_settings`, for one that is made.

    Raises:
        StoreError: If it is not there and `create` is False.
    """
    place: dict[str, Any] = {"url": url} if url else {"path": path}
    place |= settings
    # Kept while the store opens: a local client that nobody holds is closed, and read again.
    held = None if create else require_collection(collection, path, url)
    store = config.vector_store(collection, **place)
    del held
    return store


def require_collection(collection: str, path: Path, url: str | None) -> Client:
    """The client of the place where a collection is.

    Raises:
        StoreError: If it is not there; names those that are.
    """
    from qdrant_client import QdrantClient

    from unified_embeddings.stores.errors import store_errors
    from unified_embeddings.stores.opening import open_folder

    hint = "index some files first: unified-embeddings index PATH"
    if not url and not path.is_dir():
        raise StoreError(collection, "opening", f"there is no folder {path}; {hint}")
    client = QdrantClient(url=url, check_compatibility=False) if url else open_folder(path)
    with store_errors(collection, f"connecting to {url}" if url else "opening"):
        names = [one.name for one in client.get_collections().collections]
    if collection not in names:
        there = ", ".join(map(repr, sorted(names))) or "none"
        raise StoreError(
            collection, "opening", f"it does not exist; collections there: {there}. {hint}"
        )
    return client


def server_settings(
    shard_number: int | None, replication_factor: int | None, write_consistency: int | None
) -> dict[str, int]:
    """Qdrant's options for a collection on a server, those that were given."""
    given = {
        "shard_number": shard_number,
        "replication_factor": replication_factor,
        "write_consistency_factor": write_consistency,
    }
    return {name: number for name, number in given.items() if number is not None}


def printable(text: str) -> str:
    """A text with control characters turned to spaces, so that none reaches the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)


def one_line(text: str, width: int) -> str:
    """A text as one line of at most `width` printable characters."""
    flat = " ".join(printable(text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def require_text(query: str) -> str:
    """The query, if there is something in it.

    Raises:
        InputError: If it is blank, or holds bytes that were no valid text.
    """
    if not query.strip():
        raise InputError("the query is blank; give a question")
    return query


def is_terminal() -> bool:
    """Whether progress may be drawn."""
    return sys.stderr.isatty()
