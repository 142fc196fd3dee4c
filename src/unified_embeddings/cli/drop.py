"""`unified-embeddings drop`: delete a collection, after asking."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import existing, shared
from unified_embeddings.errors import InputError, StoreError

if TYPE_CHECKING:
    from unified_embeddings.stores.listing import CollectionOverview


def drop(
    collection: existing.CollectionName,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    api_key: existing.ApiKey = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    by_alias: Annotated[
        bool,
        typer.Option(
            "--by-alias", help="Accept an alias, and delete the collection that it names."
        ),
    ] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Delete a collection with its passages, its settings and its aliases, for good.

    It says what is lost, and asks for the name. Without a terminal it needs --yes.
    """
    from unified_embeddings.stores.errors import store_errors
    from unified_embeddings.stores.listing import look_at_collection

    client, name = shared.require_collection(
        collection,
        path,
        url,
        api_key=api_key,
        local_mode=True,
        timeout=existing.TIMEOUT,
        hint="",
    )
    if name != collection and not by_alias:
        raise InputError(
            f"{collection!r} is an alias of the collection {name!r}. To delete that collection, "
            "give its own name, or --by-alias"
        )
    overview = look_at_collection(client, name)
    place = shared.name_place(path, url)
    if not yes:
        _require_name(overview, place)
    with store_errors(name, "deleting the collection"):
        client.delete_collection(name)
        still_exists = client.collection_exists(name)
    if still_exists:
        raise StoreError(name, "deleting the collection", "it still exists; is it made meanwhile?")
    if as_json:
        typer.echo(json.dumps({"dropped": asdict(overview)}, ensure_ascii=False))
    else:
        shared.print_line(f"dropped {_describe_loss(overview)}, from {place}")


def _require_name(overview: CollectionOverview, place: str) -> None:
    """Say what would be lost, and have the user type the collection's name.

    Raises:
        InputError: If nobody is there to ask, or the answer is another.
    """
    name = overview.collection
    loss = _describe_loss(overview)
    if not (sys.stdin.isatty() and shared.is_terminal()):
        raise InputError(
            f"this would delete {loss}, from {place}; nobody can be asked here: give --yes to "
            "delete it"
        )
    shared.print_note(f"this deletes {loss}, from {place}. It cannot be undone")
    # Not `typer.prompt`: it writes a blank on standard output, whose reader gets results only.
    typer.echo("Type the collection's name to delete it: ", nl=False, err=True)
    answer = sys.stdin.readline().rstrip("\n")
    if answer != name:
        raise InputError(f"nothing was deleted: {answer!r} is not {name!r}")


def _describe_loss(overview: CollectionOverview) -> str:
    """Return in words what is lost with a collection."""
    facts = [f"{overview.points:,} points"]
    if overview.documents is not None:
        facts.append(f"of {overview.documents:,} documents")
    if overview.bytes is not None:
        facts.append(f"{shared.format_bytes(overview.bytes)} on disk")
    facts.append(f"made by {overview.model or 'an unrecorded model'}")
    if overview.aliases:
        facts.append(f"its aliases {', '.join(map(repr, overview.aliases))} go with it")
    return shared.printable(f"{overview.collection!r} ({', '.join(facts)})")
