"""Emptying a collection, which keeps its settings, its metadata, its indexes and its aliases."""

from __future__ import annotations

import warnings

from qdrant_client import models as qm

from unified_embeddings.stores.aliases import read_aliases, read_aliases_of
from unified_embeddings.stores.copying import creation_options, payload_indexes, set_aliases
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client, is_local_mode

_EVERYTHING = qm.FilterSelector(filter=qm.Filter())


def clear_collection(client: Client, name: str) -> None:
    """Delete all points of a collection.

    A server frees their space by itself. A store in this process would keep it until it is
    optimised, so there the collection is made anew, like the old one: in an embedded store with one
    atomic step, in local mode by deleting it first.

    Args:
        client: Sync client.
        name: The collection's name or an alias.

    Raises:
        Exception: Whatever the client raises.
    """
    if isinstance(client, EdgeQdrantClient):
        client.clear(name)
        return
    if not is_local_mode(client):
        client.delete(name, points_selector=_EVERYTHING)
        return
    real_name = read_aliases(client).get(name, name)
    info = client.get_collection(real_name)
    aliases = read_aliases_of(client, real_name)
    client.delete_collection(real_name)
    client.create_collection(real_name, **creation_options(info, local=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # local mode warns that an index has no effect there
        for field, index in payload_indexes(info, local=True).items():
            client.create_payload_index(real_name, field, field_schema=index)
    if aliases:
        set_aliases(client, real_name, aliases)
