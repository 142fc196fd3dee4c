"""Aliases: which collection one names now, and giving one to another collection.

What lives here: reading, resolving and switching. What does not: copying aliases (`copying`), and
whether a switch may be made (`migration`).

An alias may be switched at any moment to a collection of another model, with vectors of the same
dimension. Whatever checks a collection's model and then uses it under its alias may use another
one than it checked. So names are resolved first, and the collection is checked and used by its own
name.
"""

from __future__ import annotations

from qdrant_client import AsyncQdrantClient
from qdrant_client import models as qm

from unified_embeddings.errors import StoreError
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client

_OPERATION = "resolving the alias"


def read_aliases(client: Client) -> dict[str, str]:
    """Return alias → collection."""
    return {alias.alias_name: alias.collection_name for alias in client.get_aliases().aliases}


def read_aliases_of(client: Client, name: str) -> tuple[str, ...]:
    """Return the aliases of one collection sorted.

    Raises:
        StoreError: If the store cannot be read.
    """
    with store_errors(name, "reading the aliases"):
        aliases = read_aliases(client)
    return tuple(sorted(alias for alias, target in aliases.items() if target == name))


def resolve_name(client: Client, name: str) -> str:
    """Return the own name of the collection that an alias names now.

    A collection's own name, and a name that nothing has yet, are returned as they are.

    Raises:
        StoreError: If Qdrant fails.
    """
    with store_errors(name, _OPERATION):
        return read_aliases(client).get(name, name)


async def aresolve_name(client: AsyncQdrantClient, name: str) -> str:
    """Like `resolve_name`, but without blocking the event loop."""
    with store_errors(name, _OPERATION):
        aliases = (await client.get_aliases()).aliases
    for alias in aliases:
        if alias.alias_name == name:
            return str(alias.collection_name)
    return name


def switch_alias(client: Client, alias: str, *, owner: str, to: str) -> None:
    """Take an alias from one collection and give it to another, in one atomic request.

    Raises:
        StoreError: If the alias is not `owner`'s, or the store fails; then it is where it was.
    """
    with store_errors(alias, "reading the aliases"):
        found = read_aliases(client).get(alias)
    if found == to:
        return
    if found != owner:
        names = "it does not exist" if found is None else f"it names {found!r}"
        raise StoreError(alias, "switching the alias", f"it should name {owner!r}, but {names}")
    operations: list[qm.AliasOperations] = [
        qm.DeleteAliasOperation(delete_alias=qm.DeleteAlias(alias_name=alias)),
        qm.CreateAliasOperation(create_alias=qm.CreateAlias(collection_name=to, alias_name=alias)),
    ]
    with store_errors(alias, f"switching the alias to {to!r}"):
        client.update_collection_aliases(operations)
