"""`unified-embeddings list`: which collections a store has."""

from __future__ import annotations

from unified_embeddings.cli import existing, shared


def list_collections(
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    api_key: existing.ApiKey = None,
    as_json: shared.AsJson = False,
) -> None:
    """List a store's collections: points, documents, size on disk, vectors, model, aliases.

    A dash stands for what the store does not tell: a server tells no sizes, and other software's
    collections no documents.
    """
    from unified_embeddings.cli.collection_facts import print_overviews
    from unified_embeddings.stores.listing import list_collections

    client = shared.open_place(path, url, api_key=api_key, local_mode=True)
    print_overviews(list_collections(client, url or str(path)), as_json=as_json)
