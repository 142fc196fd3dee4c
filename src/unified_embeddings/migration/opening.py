"""What a migration's record names, opened: the place, the new model, and both collections' names.

What lives here: clients and models from plain values, which alias belongs to a migration, and
whether the source is still the collection that was planned. What does not: changing anything but
the alias that a plan is asked to make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import FingerprintMismatchError, InputError, StoreError
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.record import MigrationRecord
from unified_embeddings.stores.aliases import read_aliases
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.errors import place_errors, store_errors
from unified_embeddings.stores.opening import Client, open_folder
from unified_embeddings.stores.schema import dense_vectors, sparse_vectors
from unified_embeddings.types import Options

_TIMEOUT = 120
"""Seconds that a server has for a request: a page of points with long texts takes a while."""


def open_place(place: Mapping[str, str], *, api_key: str | None = None) -> Client:
    """Return a client of a record's place: a folder of this machine, or a server.

    Args:
        place: {"path": folder} or {"url": address}.
        api_key: The server's.

    Raises:
        StoreError: If the folder does not exist or is in use by another process.
        InputError: If it names neither.
    """
    if "url" in place:
        with place_errors(place["url"], "connecting"):
            return QdrantClient(
                url=place["url"], api_key=api_key, timeout=_TIMEOUT, check_compatibility=False
            )
    if "path" not in place:
        raise InputError(
            f"a migration's place is a folder or a server's address, not {dict(place)!r}; give the "
            "client itself"
        )
    if not Path(place["path"]).is_dir():
        raise StoreError.of_place(place["path"], "opening", "the folder does not exist")
    return open_folder(place["path"])


def open_model(record: MigrationRecord) -> UnifiedEmbeddingConfig:
    """Return the new model as the record names it; what it runs on is read from the environment.

    Raises:
        FingerprintMismatchError: If the model there now is not the one that was planned.
    """
    options: Options = dict(record.model)
    config = UnifiedEmbeddingConfig.from_env(**options)
    check_model(record, config.embedder)
    return config


def check_model(record: MigrationRecord, embedder: TextEmbedder) -> None:
    """Refuse another model than the one that a migration was planned for.

    Raises:
        FingerprintMismatchError: If it is another.
    """
    known = (embedder.fingerprint, *embedder.former_fingerprints)
    if record.fingerprint not in known:
        raise FingerprintMismatchError(
            record.target,
            expected=embedder.fingerprint,
            found=record.fingerprint,
            model=embedder.model_name,
            found_model=record.model_name,
        )


@dataclass(frozen=True)
class Names:
    """Which collection is to be moved, and the alias that moves with it.

    Attributes:
        source: The collection's own name.
        alias: The name that applications open.
        is_new: Whether the alias is still to be made.
    """

    source: str
    alias: str
    is_new: bool


def choose_names(client: Client, source: str, alias: str | None) -> Names:
    """Return what a migration moves; nothing is changed.

    Args:
        client: Of the place.
        source: A collection or an alias of one.
        alias: The alias that applications open; None takes the source's only one.

    Raises:
        StoreError: If there is no such collection.
        MigrationError: If no alias can be chosen, or the alias is another collection's.
    """
    with store_errors(source, "reading the collections"):
        collections = {info.name for info in client.get_collections().collections}
        aliases = read_aliases(client)
    if source in aliases:
        alias, source = alias or source, aliases[source]
    if source not in collections:
        known = ", ".join(map(repr, sorted(collections))) or "none"
        place = f" in the folder {client.path}" if isinstance(client, EdgeQdrantClient) else ""
        raise StoreError(
            source, "planning", f"it does not exist{place}; existing collections: {known}"
        )
    if alias is None:
        alias = _only_alias(source, aliases)
    if alias in collections:
        raise MigrationError(
            f"{alias!r} is a collection, so that it cannot become an alias; give another name with "
            "--alias"
        )
    owner = aliases.get(alias)
    if owner not in (None, source):
        raise MigrationError(
            f"the alias {alias!r} belongs to collection {owner!r}, not to {source!r}: whoever "
            "opens it would be moved from another collection. Give the alias of the collection "
            "that is to be moved"
        )
    return Names(source=source, alias=alias, is_new=owner is None)


def _only_alias(source: str, aliases: Mapping[str, str]) -> str:
    of_source = sorted(alias for alias, owner in aliases.items() if owner == source)
    if not of_source:
        raise MigrationError(
            f"{source!r} is a collection's own name, and Qdrant cannot point that to another "
            "collection. Applications are to open an alias, which then moves at once: give "
            "--alias NAME to make one for this collection, and open NAME in the applications"
        )
    if len(of_source) > 1:
        names = ", ".join(map(repr, of_source))
        raise MigrationError(
            f"collection {source!r} has several aliases ({names}); name the one to move with "
            "--alias"
        )
    return of_source[0]


def make_alias(client: Client, names: Names) -> None:
    """Let a new alias name the source, in one operation; an alias that is there is left alone.

    Raises:
        StoreError: If the store refuses.
    """
    if not names.is_new:
        return
    operation = qm.CreateAliasOperation(
        create_alias=qm.CreateAlias(collection_name=names.source, alias_name=names.alias)
    )
    with store_errors(names.alias, "making the alias"):
        client.update_collection_aliases([operation])


def describe_vectors(info: qm.CollectionInfo) -> dict[str, str]:
    """Return a collection's vectors by name, in words."""
    described = {}
    for name, dense in dense_vectors(info).items():
        described[name or "(unnamed)"] = f"{dense.size} x {dense.distance.value}"
    for name in sparse_vectors(info):
        described[name] = "sparse"
    return described


def check_source(client: Client, record: MigrationRecord) -> qm.CollectionInfo:
    """Refuse a source that is gone or is not the collection that was planned any more.

    Returns:
        What the store reports about it.

    Raises:
        MigrationError: If it does not exist, or has other vectors.
        StoreError: If the store cannot be read.
    """
    with store_errors(record.source, "reading the source"):
        if not client.collection_exists(record.source):
            raise MigrationError(
                f"the source {record.source!r} does not exist any more. The target "
                f"{record.target!r} is left as it is; restore the source (a snapshot, or `copy` "
                "from elsewhere) and run the command again, or plan anew"
            )
        info = client.get_collection(record.source)
    vectors = describe_vectors(info)
    if record.source_vectors and vectors != dict(record.source_vectors):
        raise MigrationError(
            f"the source {record.source!r} is not the collection that was planned: its vectors "
            f"were {dict(record.source_vectors)!r} and are {vectors!r}. Nothing was changed in the "
            "target; plan anew with another --journal"
        )
    return info


def check_alias_owner(client: Client, record: MigrationRecord) -> None:
    """Refuse to work on a migration whose alias names a third collection.

    Raises:
        MigrationError: If it names neither the source nor the target, or does not exist.
        StoreError: If the store cannot be read.
    """
    with store_errors(record.alias, "reading the aliases"):
        owner = read_aliases(client).get(record.alias)
    if owner in (record.source, record.target):
        return
    found = "does not exist" if owner is None else f"names collection {owner!r}"
    raise MigrationError(
        f"the alias {record.alias!r} {found}, but this migration moves it from {record.source!r} "
        f"to {record.target!r}. Somebody changed it; let it name {record.source!r} again, or plan "
        "anew"
    )
