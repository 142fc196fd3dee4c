"""Collections that exist already, whoever made them: the options of the commands about them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unified_embeddings.cli import shared

if TYPE_CHECKING:
    from unified_embeddings.migration.probes import Layout
    from unified_embeddings.stores.opening import Client

TIMEOUT = 120
"""Seconds that a server may take for one request; storing 16 MB of vectors takes a while."""

CollectionName = Annotated[str, typer.Argument(help="The collection's name, or an alias of it.")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="QDRANT_API_KEY", help="API key of the server.")
]
LayoutOption = Annotated[
    Literal["llama_index", "langchain", "haystack", "plain", "mixed"] | None,
    typer.Option(
        "--layout",
        metavar="LAYOUT",
        help="How the payloads are laid out: llama_index, langchain, haystack, plain or mixed.",
        show_default="seen from a sample",
    ),
]
TextKey = Annotated[
    str | None,
    typer.Option("--text-key", help="Key of the payload that holds the text, in a plain layout."),
]
MetadataKey = Annotated[
    str | None,
    typer.Option("--metadata-key", help="Key that holds the metadata, in a plain layout."),
]


def open_existing(
    collection: str, path: Path, url: str | None, api_key: str | None
) -> tuple[Client, str]:
    """Return a client of a collection that is about to change, and its name if an alias is given.

    Args:
        collection: Name of the collection, or an alias.
        path: Folder of the store, the embedded one's or qdrant-client's; ignored if `url` is given.
        url: Address of a server.
        api_key: The server's.

    Raises:
        MissingCollectionError: If there is none of that name. The message lists those that exist.
        StoreError: If the place cannot be opened.
    """
    client, name = shared.require_collection(
        collection, path, url, api_key=api_key, local_mode=True, timeout=TIMEOUT, hint=""
    )
    if name != collection:
        shared.print_note(f"{collection!r} is an alias of {name!r}")
    return client, name


def describe_reading(layout: str | None) -> str | None:
    """Return what has to be given to read a collection; None if nothing has to be.

    Args:
        layout: Of its payloads; None if they were not read.
    """
    if layout == "plain":
        return (
            "to read it, give the key of its texts: vector_store(..., text_key=...), or search "
            "--text-key"
        )
    if layout == "mixed":
        return (
            "its payloads are of several layouts; to open it, give the keys of the software that "
            "is to read what is written: vector_store(..., text_key=..., metadata_key=...)"
        )
    return None


def read_layout(
    layout: Literal["llama_index", "langchain", "haystack", "plain", "mixed"] | None,
    text_key: str | None,
    metadata_key: str | None,
) -> Layout:
    """Return the options that say how payloads are laid out as one value."""
    from unified_embeddings.migration.probes import Layout

    return Layout(layout, text_key=text_key, metadata_key=metadata_key)
