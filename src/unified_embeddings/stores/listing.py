"""The collections of a place: what each holds and takes, its documents and its aliases.

What lives here: one overview of every collection. What does not: measuring one (`measuring`), how
one is made and what its points say (`describing`), and printing (`cli`).
"""

from __future__ import annotations

from dataclasses import dataclass

from unified_embeddings.stores.aliases import read_aliases
from unified_embeddings.stores.errors import place_errors, store_errors
from unified_embeddings.stores.measuring import CollectionSize, measure_collection
from unified_embeddings.stores.opening import Client, is_local_mode

MOST_DOCUMENTS = 100_000
"""Documents that are counted at most: their ids are all sent."""
_DOCUMENT_FIELD = "doc_id"
_NO_DOCUMENT = "None"
"""What LlamaIndex writes as the document of a node that has none."""


@dataclass(frozen=True)
class CollectionOverview(CollectionSize):
    """What a collection holds and takes, with its documents and its aliases.

    Attributes:
        documents: Documents that its points are of; a file that was indexed is one. None where the
            points do not tell, as in other software's collections, or there are more than 100,000.
        aliases: Its aliases, sorted.
    """

    documents: int | None
    aliases: tuple[str, ...]


def list_collections(client: Client, place: str) -> list[CollectionOverview]:
    """Return an overview of each collection, sorted by name.

    Args:
        client: Sync client.
        place: What to call the store in messages.

    Raises:
        StoreError: If Qdrant fails.
    """
    with place_errors(place, "listing the collections"):
        names = sorted(info.name for info in client.get_collections().collections)
        aliases = read_aliases(client)
    return [_look_at(client, name, aliases) for name in names]


def look_at_collection(client: Client, name: str) -> CollectionOverview:
    """Return the overview of one collection.

    Args:
        client: Sync client.
        name: The collection's own name.

    Raises:
        StoreError: If it does not exist, or Qdrant fails.
    """
    with store_errors(name, "reading the aliases"):
        aliases = read_aliases(client)
    return _look_at(client, name, aliases)


def count_documents(client: Client, name: str) -> int | None:
    """Return of how many documents a collection's points are.

    Returns:
        None where the points do not tell, or there are more than 100,000.

    Raises:
        StoreError: If Qdrant fails.
    """
    with store_errors(name, "counting its documents"):
        indexed = client.get_collection(name).payload_schema
        # Local mode has no indexes, and counts without one.
        if _DOCUMENT_FIELD not in indexed and not is_local_mode(client):
            return None
        hits = client.facet(name, _DOCUMENT_FIELD, limit=MOST_DOCUMENTS + 1).hits
        documents = sum(hit.value != _NO_DOCUMENT for hit in hits)
        if len(hits) > MOST_DOCUMENTS:
            return None
        if documents == 0 and client.count(name, exact=False).count > 0:
            return None
    return documents


def _look_at(client: Client, name: str, aliases: dict[str, str]) -> CollectionOverview:
    size = measure_collection(client, name)
    return CollectionOverview(
        **vars(size),
        documents=count_documents(client, name),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == name)),
    )
