"""The embedded store behind the client: its state, its locks and its changes.

What lives here: which collections exist, which shards are open, who may write, and what is repaired
after a crash. What does not: qdrant-client's signatures (`client`), how objects are converted for
the core (`translation` and the modules beside it), the catalogue's file (`catalog`) and the points
of one collection (`shard`).
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.stores.edge.bounds import check_settings
from unified_embeddings.stores.edge.catalog import Catalog, Entry, State
from unified_embeddings.stores.edge.configuration import to_core_config, vector_creation
from unified_embeddings.stores.edge.core_types import CoreConfig, CoreShard, CoreUpdate
from unified_embeddings.stores.edge.creation import checked_config
from unified_embeddings.stores.edge.naming import check_is_text, check_name, check_vectors
from unified_embeddings.stores.edge.settings import Settings, settings_with
from unified_embeddings.stores.edge.shard import Shard
from unified_embeddings.stores.edge.translation import argument_errors

T = TypeVar("T")


class EmbeddedStore:
    """The collections of one folder, in this process alone.

    Thread-safe, with two kinds of locks. A shard's `writing` is held by its writer, and by
    `optimize` for minutes. `_changing` is held while the catalogue changes or a shard is opened. A
    thread that needs both takes `writing` first: the other way round, every change to the
    catalogue would wait for an optimisation to end. Reads take neither lock once a shard is open.

    Args:
        path: The folder, absolute; created if it does not exist.

    Raises:
        StoreError: If the folder is in use, cannot be written, or was made by other or newer
            software.

    Attributes:
        path: The folder.
        released: Set once the store is closed and another client may open the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.released = threading.Event()
        self._catalog = Catalog(path)
        self._shards: dict[str, Shard] = {}
        self._changing = threading.RLock()
        self._process = os.getpid()
        # Closes the store when `close` is called, when nobody holds it, or at interpreter exit.
        self._release = weakref.finalize(
            self,
            _release_folder,
            self._catalog,
            self._shards,
            self._changing,
            self.released,
            self._process,
        )

    @property
    def closed(self) -> bool:
        """Tell whether `close` was called."""
        return not self._release.alive

    @property
    def forked(self) -> bool:
        """Tell whether the store was opened by the process that this one was forked from."""
        return os.getpid() != self._process

    def close(self) -> None:
        """Flush every collection and let another process open the folder. Idempotent.

        Raises:
            StoreError: If a log cannot be flushed; what was acknowledged is in it all the same.
        """
        self._release()

    def flush(self, name: str | None = None) -> None:
        """Force one collection, or all of them, to the disk.

        Raises:
            InputError: If there is no such collection.
            StoreError: If it cannot be written.
        """
        names = [name] if name else list(self.state().collections)
        for collection_name in names:
            shard, _ = self.collection(collection_name)
            shard.flush()

    # --- reading --------------------------------------------------------------------------------

    def state(self) -> State:
        """Return a snapshot of all collections and aliases.

        Raises:
            StoreError: If the store was closed, or opened by the process this one was forked from.
        """
        if self.closed:
            raise StoreError.of_place(
                str(self.path), "reading", "the store has been closed; open it again"
            )
        if self.forked:
            raise StoreError.of_place(
                str(self.path),
                "reading",
                "it was opened before this process was forked, and two processes would damage it. "
                'Start workers with the method "spawn" and open the store in one of them',
            )
        return self._catalog.state

    def collection(self, name: str) -> tuple[Shard, Settings]:
        """Return the shard and the settings of a collection; open and repair the shard if needed.

        Args:
            name: The collection's name or an alias.

        Raises:
            InputError: If there is no such collection.
            StoreError: If its shard cannot be repaired, or the store was closed.
        """
        resolved_name, entry = self._find_entry(name)
        shard = self._shards.get(resolved_name)
        if shard is None:
            with self._changing:
                # Looked up again: another thread may have opened, dropped or switched it.
                resolved_name, entry = self._find_entry(name)
                shard = self._shards.get(resolved_name)
                if shard is None:
                    shard = Shard(resolved_name, self._catalog.shard_path(entry.shard))
                    entry = self._repair_vector_names(shard, entry)
                    self._shards[resolved_name] = shard
        return shard, entry.settings

    def read(self, name: str, operation: str, question: Callable[[Settings, CoreShard], T]) -> T:
        """Return the core's answer to a question about a collection.

        If `name` is an alias that is switched while this runs, and its old collection is dropped,
        the new collection is asked instead.

        Args:
            name: The collection's name or an alias.
            operation: What is being done, for messages.
            question: Asks the core's shard; called again if the alias was switched.

        Raises:
            InputError: If there is no such collection.
            StoreError: If the core fails, or the store was closed.
        """
        while True:
            shard, settings = self.collection(name)
            try:
                return shard.read(operation, partial(question, settings))
            except StoreError:
                if not shard.closed or self.collection(name)[0] is shard:
                    raise

    # --- writing --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[tuple[Shard, Settings]]:
        """Hold a collection's write lock: nobody else writes to it or changes its vectors.

        Raises:
            InputError: If there is no such collection.
            StoreError: If its shard cannot be repaired, or the store was closed.
        """
        while True:
            shard, _ = self.collection(name)
            with shard.writing:
                current_shard, settings = self.collection(name)
                if current_shard is shard:  # no alias was switched while this thread waited
                    yield shard, settings
                    return

    def write(self, name: str, operation: str, update: CoreUpdate) -> None:
        """Apply one of the core's operations to a collection.

        Raises:
            InputError: If there is no such collection.
            StoreError: If it cannot be written.
        """
        with self.writing(name) as (shard, _):
            shard.write(operation, update)

    def write_index(self, name: str, operation: str, update: CoreUpdate) -> None:
        """Apply an operation that creates or drops a payload index.

        Raises:
            InputError: If there is no such collection.
            StoreError: If it cannot be written.
        """
        with self.writing(name) as (shard, _):
            shard.write_index(operation, update)

    def optimize(self, name: str) -> bool:
        """Merge and index a collection's points; see `EdgeQdrantClient.optimize`."""
        shard, _ = self.collection(name)
        new_folder = self._catalog.new_shard()
        old_folder: str | None = None

        def commit() -> None:
            nonlocal old_folder
            old_folder = self._replace_shard_folder(shard, new_folder)

        def current_config() -> CoreConfig:
            return to_core_config(self.collection(shard.collection)[1])

        try:
            return shard.optimize(self._catalog.shard_path(new_folder), commit, current_config)
        finally:
            # Also after an interrupt: what counts is whether the shard works on the copy by now.
            if old_folder is not None and shard.folder.name == new_folder:
                self._catalog.drop_shard(old_folder)

    def _replace_shard_folder(self, shard: Shard, new_folder: str) -> str:
        """Record another folder as a collection's in the catalogue; return the previous one.

        Raises:
            StoreError: If the collection was deleted in the meantime, or the catalogue cannot be
                written.
        """
        name = shard.collection
        with self._changing:
            state = self.state()
            entry = state.collections.get(name)
            if entry is None or self._shards.get(name) is not shard:
                raise StoreError(name, "optimizing", "the collection was deleted meanwhile")
            self._save_entry(state, name, Entry(new_folder, entry.settings))
        return entry.shard

    # --- changing collections -------------------------------------------------------------------

    def create_collection(self, name: str, settings: Settings) -> None:
        """Create an empty collection; atomic.

        Raises:
            InputError: If the name is taken or invalid, or the settings are not supported.
            StoreError: If it cannot be written.
        """
        settings = copy.deepcopy(settings)  # the caller may change theirs
        config = checked_config(name, settings)
        with self._changing:
            state = self.state()
            if name in state.collections:
                raise InputError(f"collection {name!r} already exists")
            if name in state.aliases:
                raise InputError(f"alias {name!r} already exists")
            self._create_shard(state, name, settings, config)

    def clear_collection(self, name: str) -> None:
        """Empty a collection, which keeps its settings, payload indexes and aliases; atomic.

        A running `optimize` is ended. Writes that this has not waited for come after it.

        Args:
            name: The collection's name or an alias.

        Raises:
            InputError: If there is no such collection.
            StoreError: If its payload indexes cannot be read, or the new one cannot be written.
        """
        shard, _ = self.collection(name)
        shard.stop_optimizing()
        with self.writing(name) as (shard, _), self._changing:
            state = self.state()
            real_name, entry = self._resolve(state, shard.collection)
            indexes = shard.read("clearing", _index_creations)
            config = to_core_config(entry.settings)
            try:
                self._create_shard(state, real_name, entry.settings, config, indexes)
            finally:
                # Also after an interrupt: what counts is whether the old shard is out of use.
                if self._shards.get(real_name) is not shard:
                    shard.close(keep=False)
                    self._catalog.drop_shard(entry.shard)

    def delete_collection(self, name: str) -> bool:
        """Delete a collection, its points and its aliases.

        Returns:
            Whether there was a collection of this name.

        Raises:
            StoreError: If the catalogue cannot be written.
        """
        check_is_text(name)
        with self._changing:
            state = self.state()
            collections = dict(state.collections)
            entry = collections.pop(name, None)
            if entry is None:
                return False
            aliases = {alias: target for alias, target in state.aliases.items() if target != name}
            self._catalog.save(State(collections, aliases))
            shard = self._shards.pop(name, None)
        # Outside the lock: closing waits for the shard's writer.
        try:
            if shard is not None:
                shard.close(keep=False)
        finally:
            self._catalog.drop_shard(entry.shard)
        return True

    def update_settings(self, name: str, change: Callable[[Settings], Settings]) -> None:
        """Replace a collection's settings; its files follow when it is next optimised.

        Args:
            name: The collection's name or an alias.
            change: Returns the new settings for the present ones.

        Raises:
            InputError: If there is no such collection, or `change` refuses.
            StoreError: If the catalogue cannot be written.
        """
        with self._changing:
            _, settings = self.collection(name)
            changed = copy.deepcopy(change(settings))  # the caller may change what is in it
            if changed != settings:
                self._save_settings(name, changed)

    def add_vector(
        self, name: str, vector_name: str, params: qm.VectorParams | qm.SparseVectorParams
    ) -> None:
        """Add a vector name to a collection; its points have no vector of this name yet.

        Raises:
            InputError: If the name is invalid or taken by a different vector.
            StoreError: If it cannot be written.
        """
        with self.writing(name) as (shard, _), self._changing:
            _, settings = self.collection(shard.collection)  # metadata may have changed meanwhile
            dense = dict(settings.vectors)
            sparse = dict(settings.sparse_vectors)
            existing = dense.get(vector_name) or sparse.get(vector_name)
            if existing is not None and existing != params:
                raise InputError(
                    f"the collection already has a different vector named {vector_name!r}"
                )
            if isinstance(params, qm.VectorParams):
                dense[vector_name] = params
            else:
                sparse[vector_name] = params
            changed = settings_with(settings, vectors=dense, sparse_vectors=sparse)
            check_vectors(changed)
            check_settings(changed)
            with argument_errors("the vector"):
                update = vector_creation(vector_name, params)
            # The shard first, then the catalogue: `_repair_vector_names` relies on this order.
            shard.write_alone("adding a vector", update)
            self._save_settings(shard.collection, changed)

    def remove_vector(self, name: str, vector_name: str) -> None:
        """Remove a vector name from a collection and from all its points.

        Raises:
            InputError: If the collection has no such vector.
            StoreError: If it cannot be written.
        """
        with self.writing(name) as (shard, _), self._changing:
            _, settings = self.collection(shard.collection)  # metadata may have changed meanwhile
            dense = dict(settings.vectors)
            sparse = dict(settings.sparse_vectors)
            if dense.pop(vector_name, None) is None and sparse.pop(vector_name, None) is None:
                raise InputError(f"the collection has no vector named {vector_name!r}")
            changed = settings_with(settings, vectors=dense, sparse_vectors=sparse)
            update = core.UpdateOperation.delete_vector_name(vector_name)
            # The shard first, then the catalogue: `_repair_vector_names` relies on this order.
            shard.write_alone("removing a vector", update)
            self._save_settings(shard.collection, changed)

    def change_aliases(self, operations: Sequence[qm.AliasOperations]) -> None:
        """Apply changes to the aliases; atomic: all of them or, after an error or a crash, none.

        Raises:
            InputError: If an alias would point at no collection or take a collection's name, or an
                alias to rename does not exist.
            StoreError: If the catalogue cannot be written.
        """
        with self._changing:
            state = self.state()
            aliases = dict(state.aliases)
            for operation in operations:
                match operation:
                    case qm.CreateAliasOperation(create_alias=creation):
                        if creation.collection_name not in state.collections:
                            raise self._not_found_error(creation.collection_name)
                        _check_new_alias(creation.alias_name, state)
                        aliases[creation.alias_name] = creation.collection_name
                    case qm.DeleteAliasOperation(delete_alias=deletion):
                        aliases.pop(deletion.alias_name, None)
                    case qm.RenameAliasOperation(rename_alias=renaming):
                        _check_new_alias(renaming.new_alias_name, state)
                        if renaming.old_alias_name not in aliases:
                            raise InputError(f"alias {renaming.old_alias_name!r} does not exist")
                        aliases[renaming.new_alias_name] = aliases.pop(renaming.old_alias_name)
                    case _:
                        raise InputError(f"not an operation on aliases: {type(operation).__name__}")
            self._catalog.save(State(state.collections, aliases))

    # --- inside ---------------------------------------------------------------------------------

    def _create_shard(
        self,
        state: State,
        name: str,
        settings: Settings,
        config: CoreConfig,
        indexes: Sequence[CoreUpdate] = (),
    ) -> None:
        """Make an empty shard a collection's, in the place of one that it may have had.

        Called while `_changing` is held.

        Raises:
            StoreError: If it cannot be written; everything is then as it was.
        """
        entry = Entry(self._catalog.new_shard(), settings)
        shard = Shard(name, self._catalog.shard_path(entry.shard))
        try:
            shard.create(config, indexes)
            self._save_entry(state, name, entry)
        finally:
            # An interrupt may come right after the catalogue was saved. What it says then decides
            # whether the shard is the collection's.
            if self._catalog.state.collections.get(name) is entry:
                self._shards[name] = shard
            else:
                shard.close(keep=False)
                self._catalog.drop_shard(entry.shard)

    def _find_entry(self, name: str) -> tuple[str, Entry]:
        """Return a collection's own name and its entry, by that name or an alias."""
        return self._resolve(self.state(), name)

    def _resolve(self, state: State, name: str) -> tuple[str, Entry]:
        check_is_text(name)
        resolved = state.entry(name)
        if resolved is None:
            raise self._not_found_error(name)
        return resolved

    def _not_found_error(self, name: str) -> InputError:
        existing_names = ", ".join(map(repr, sorted(self._catalog.state.collections))) or "none"
        return InputError(f"collection {name!r} not found; existing collections: {existing_names}")

    def _repair_vector_names(self, shard: Shard, entry: Entry) -> Entry:
        """Repair a change of vector names that a crash interrupted.

        Such a change is written to the shard first and to the catalogue second. Where they differ,
        interrupted removals are completed and interrupted additions are rolled back.

        Returns:
            The collection's entry after the repair.
        """
        settings = entry.settings
        stored_names = shard.vector_names()
        known_names = {*settings.vectors, *settings.sparse_vectors}
        if stored_names is None or stored_names == known_names:
            return entry
        # A name may also differ because a file is damaged. Then loading fails, before anything is
        # removed for good.
        shard.read("opening", lambda _: None)
        stored_names = shard.vector_names() or known_names
        for added_name in stored_names - known_names:
            update = core.UpdateOperation.delete_vector_name(added_name)
            shard.write_alone("rolling back an interrupted addition", update)
        if known_names <= stored_names:
            return entry
        dense = {name: params for name, params in settings.vectors.items() if name in stored_names}
        sparse = {
            name: params for name, params in settings.sparse_vectors.items() if name in stored_names
        }
        repaired = settings_with(settings, vectors=dense, sparse_vectors=sparse)
        return self._save_settings(shard.collection, repaired)

    def _save_settings(self, name: str, settings: Settings) -> Entry:
        state = self.state()
        resolved_name, old_entry = self._resolve(state, name)
        entry = Entry(old_entry.shard, settings)
        self._save_entry(state, resolved_name, entry)
        return entry

    def _save_entry(self, state: State, name: str, entry: Entry) -> None:
        """Save the catalogue with one collection's entry added or replaced."""
        self._catalog.save(State({**state.collections, name: entry}, state.aliases))


def _release_folder(
    catalog: Catalog,
    shards: dict[str, Shard],
    changing: threading.RLock,
    released: threading.Event,
    process: int,
) -> None:
    """Close a store's shards and its catalogue.

    Not a method: the finalizer that calls it must not keep the store alive.

    Raises:
        StoreError: If a shard could not be closed properly; the others and the catalogue are closed
            all the same.
    """
    if os.getpid() != process:
        return  # a forked child has copies of handles that its parent will close
    with changing:  # a collection that is being created is in `shards` afterwards; no more follow
        open_shards = list(shards.values())
        shards.clear()
    failure: StoreError | None = None
    try:
        for shard in open_shards:
            try:
                shard.close()
            except StoreError as error:
                failure = failure or error
    finally:
        catalog.close()
        released.set()
    if failure is not None:
        raise failure


def _index_creations(core_shard: CoreShard) -> list[CoreUpdate]:
    """Return the operations that would create a shard's payload indexes."""
    return [
        core.UpdateOperation.create_field_index(field_name, index.params or index.data_type)
        for field_name, index in core_shard.info().payload_schema.items()
    ]


def _check_new_alias(alias: str, state: State) -> None:
    check_name(alias)
    if alias in state.collections:
        raise InputError(f"collection {alias!r} already exists; an alias needs another name")
