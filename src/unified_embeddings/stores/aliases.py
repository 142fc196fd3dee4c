"""From an alias to the collection that it names now.

What lives here: resolving names. What does not: switching an alias (`migration.cutover`), and
copying aliases (`copying`).

An alias may be switched at any moment to a collection of another model, with vectors of the same
dimension. Whatever checks a collection's model and then uses it under its alias may use another
one than it checked. So names are resolved first, and the collection is checked and used by its own
name.
"""

from __future__ import annotations

from qdrant_client import AsyncQdrantClient

from unified_embeddings.stores.copy_checks import read_aliases
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client

_OPERATION = "resolving the alias"


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
