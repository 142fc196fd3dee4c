"""The plan of a migration: what is to move where, what it takes, and why it cannot work.

What lives here: refusing what cannot work, naming the target, and starting the journal. What does
not: the numbers (`estimate`).
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.llama.layouts import LayoutName, PayloadReader, choose_reader
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.estimate import Estimate, estimate_migration, sample_payloads
from unified_embeddings.migration.journal import Journal, require_free
from unified_embeddings.migration.opening import (
    Names,
    choose_names,
    describe_vectors,
    make_alias,
)
from unified_embeddings.migration.record import MigrationRecord
from unified_embeddings.migration.sides import Collection
from unified_embeddings.stores.aliases import read_aliases
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.keyword_list import recorded_name
from unified_embeddings.stores.opening import Client, make_thread_safe
from unified_embeddings.stores.schema import SPARSE_VECTOR, recorded_model, sparse_vectors
from unified_embeddings.system.files import NoSpaceError, free_space, require_space

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_FINGERPRINT_DIGITS = 8


@dataclass(frozen=True)
class Plan:
    """A migration that has been planned.

    Attributes:
        record: As the journal holds it.
        estimate: What it takes.
        makes_alias: Whether the alias was made for it.
        notes: What is worth knowing, in words.
    """

    record: MigrationRecord
    estimate: Estimate
    makes_alias: bool
    notes: tuple[str, ...]


def plan_migration(
    client: Client,
    source: str,
    embedder: TextEmbedder,
    folder: Path,
    *,
    place: Mapping[str, str],
    model: Mapping[str, object],
    alias: str | None = None,
    target: str | None = None,
    layout: LayoutName | None = None,
    text_key: str | None = None,
    metadata_key: str | None = None,
) -> Plan:
    """Plan a migration, and record the plan in a journal.

    Nothing else is written, but for the alias if it is named and does not exist yet. A plan can be
    made again until the migration has begun.

    Args:
        client: Of the place.
        source: The old collection, or an alias of it.
        embedder: The new model's.
        folder: The journal's.
        place: {"path": folder} or {"url": address}; {} where only the caller's client can open it.
        model: Options of `UnifiedEmbeddingConfig` that make the embedder.
        alias: The name that applications open; None takes the source's only alias.
        target: The new collection's name; None makes one of alias, model and fingerprint.
        layout: Of the source's payloads; None finds it out.
        text_key: Key of the text, for a plain layout.
        metadata_key: Key of the metadata, likewise.

    Raises:
        MigrationError: If it cannot work: the message says why, and what to do.
        InputError: If the payloads' layout cannot be told.
        StoreError: If the source does not exist or cannot be read.
        JournalError: If the folder holds a migration that has begun.
    """
    make_thread_safe(client)
    require_free(folder)
    names = choose_names(client, source, alias)
    with store_errors(names.source, "reading the source"):
        info = client.get_collection(names.source)
    _refuse_same_model(names, info, embedder)
    target = target or _default_target(names.alias, embedder)
    _refuse_taken(client, target, names)
    collection = Collection(client, names.source)
    reader = choose_reader(
        sample_payloads(collection), layout=layout, text_key=text_key, metadata_key=metadata_key
    )
    free_bytes = free_space(Path(place["path"])) if "path" in place else None
    estimate = estimate_migration(collection, reader, embedder, free_bytes=free_bytes)
    _refuse_no_text(names, estimate, reader)
    _refuse_full_disk(place, estimate)
    model_of_source = recorded_model(info)
    record = MigrationRecord(
        alias=names.alias,
        place=place,
        source=names.source,
        target=target,
        model=model,
        model_name=embedder.model_name,
        fingerprint=embedder.fingerprint,
        source_model=None if model_of_source is None else model_of_source.name,
        source_fingerprint=None if model_of_source is None else model_of_source.fingerprint,
        source_vectors=describe_vectors(info),
        layout=reader.layout,
        text_key=text_key,
        metadata_key=metadata_key,
        estimate=dataclasses.asdict(estimate) | {"examples": _plain_examples(estimate)},
    )
    with Journal.create(folder, record) as journal:
        make_alias(client, names)
        return Plan(journal.record, estimate, names.is_new, _notes(names, record, estimate, info))


def _default_target(alias: str, embedder: TextEmbedder) -> str:
    """Return a name that tells what is in the collection."""
    model = Path(embedder.model_name.rstrip("/\\")).name
    name = f"{alias}-{model}-{embedder.fingerprint[:_FINGERPRINT_DIGITS]}"
    return _UNSAFE.sub("-", name)


def _refuse_same_model(names: Names, info: qm.CollectionInfo, embedder: TextEmbedder) -> None:
    model = recorded_model(info)
    if model is None:
        return
    if model.fingerprint in (embedder.fingerprint, *embedder.former_fingerprints):
        hint = "Name another model with --model"
        if "sparse" in embedder.heads and SPARSE_VECTOR not in sparse_vectors(info):
            hint = (
                "What it lacks are sparse vectors, which `unified-embeddings add-vectors "
                f"{names.source} --sparse` adds; or name another model with --model"
            )
        raise MigrationError(
            f"{names.source!r} was made with {embedder.model_name!r} already; there is nothing to "
            f"move. {hint}"
        )


def _refuse_taken(client: Client, target: str, names: Names) -> None:
    with store_errors(target, "reading the target"):
        exists = client.collection_exists(target)
        owner = read_aliases(client).get(target)
    if owner is not None:
        raise MigrationError(
            f"{target!r} is an alias of {owner!r}; give the new collection another name (--target)"
        )
    if exists:
        raise MigrationError(
            f"there is a collection {target!r} already, which this plan has not made. If a former "
            "migration left it, delete it; or give the new collection another name (--target)"
        )
    if target == names.alias:
        raise MigrationError(
            f"{target!r} cannot be both the alias and the new collection; give another --target"
        )


def _refuse_no_text(names: Names, estimate: Estimate, reader: PayloadReader) -> None:
    if not estimate.points:
        raise MigrationError(
            f"{names.source!r} is empty: there is nothing to move. Index into a new collection"
        )
    if estimate.without_text < estimate.points:
        return
    first = estimate.examples[0]
    raise MigrationError(
        f"none of the {estimate.points:,} points of {names.source!r} has a text that the layout "
        f"{reader.layout!r} finds; {first.point_id!r}: {first.problem}. Name the layout with "
        "--layout, or the text's key with --text-key; without texts nothing can be embedded again"
    )


def _refuse_full_disk(place: Mapping[str, str], estimate: Estimate) -> None:
    if estimate.free_bytes is None:
        return
    try:
        require_space(Path(place["path"]), estimate.bytes)
    except NoSpaceError as error:
        raise MigrationError(
            f"the new collection does not fit beside the old one: {error}; make room first"
        ) from error


def _notes(
    names: Names, record: MigrationRecord, estimate: Estimate, info: qm.CollectionInfo
) -> tuple[str, ...]:
    notes = []
    keywords = recorded_name(info)
    if keywords is not None:
        notes.append(
            f"{names.source!r} has a keyword list ({keywords}), which is not moved. Once the new "
            "collection is filled, and before the cutover, give it one: unified-embeddings "
            f"add-vectors {shlex.quote(record.target)} --keywords {shlex.quote(keywords)} "
            f"--model {shlex.quote(record.model_name)}"
        )
    if record.source_model is None:
        notes.append(
            f"nothing records which model made {names.source!r}; its vectors are not used, only "
            "its texts. `migrate shadow` and `migrate cutover --data` ask it questions: name its "
            "model with --old-model, or record it before them: unified-embeddings adopt "
            f"{shlex.quote(names.source)}"
        )
    if estimate.without_text:
        notes.append(
            f"{estimate.without_text:,} points have no text and cannot be moved; to continue "
            "without them, verify with --accept-failed"
        )
    if estimate.scanned < estimate.points:
        notes.append(f"projected from {estimate.scanned:,} of {estimate.points:,} points")
    if names.is_new:
        notes.append(
            f"made the alias {names.alias!r} of {names.source!r}: let the applications open "
            f"{names.alias!r} from now on"
        )
    return tuple(notes)


def _plain_examples(estimate: Estimate) -> list[dict[str, object]]:
    return [dataclasses.asdict(example) for example in estimate.examples]
