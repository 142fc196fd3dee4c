"""The folder of an embedded store: who has it open, which collections are in it, under which names.

    store/
      .lock          held by the one process that has the store open
      catalog.json   every collection, its settings and folder, and every alias
      shards/<id>/   the points of one collection, which `shard` reads and writes

The catalogue is replaced in one step, so a change to it happened or did not: making, swapping and
deleting a collection and switching aliases are all that one step. A folder under `shards/` that it
does not name is the rest of something that was stopped, and is removed when the store is opened.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from unified_embeddings.errors import StoreError
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.system.files import (
    FileLock,
    LockHeldError,
    LockUnsupportedError,
    make_folder,
    remove_litter,
    replace_file,
    uninterrupted,
)

_FORMAT = 1
_CATALOG = "catalog.json"
_SHARDS = "shards"
_SHARD_NAME = re.compile(r"[0-9a-f]{32}")
_CORE = "qdrant-edge-py"
_CLIENT = "qdrant-client"
"""Whose models the settings are written as."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One collection: its settings, and the folder under `shards/` that holds its points."""

    shard: str
    settings: Settings


@dataclass(frozen=True)
class State:
    """All collections and aliases of one moment, by name."""

    collections: Mapping[str, Entry] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def entry(self, name: str) -> tuple[str, Entry] | None:
        """The collection that a name or an alias stands for: its own name, and what it is."""
        resolved = name if name in self.collections else self.aliases.get(name, name)
        entry = self.collections.get(resolved)
        return None if entry is None else (resolved, entry)


_SETTINGS: TypeAdapter[Settings] = TypeAdapter(Settings)


class Catalog:
    """The collections and aliases of one folder, which this process has to itself.

    Args:
        folder: The store's; made if it is not there.

    Raises:
        StoreError: If another process or client has it open, it cannot be written, was made by
            newer software or by qdrant-client's local mode, or its catalogue is lost or damaged.

    Attributes:
        folder: The store's.
        state: What is in it; replaced as a whole, so that a reader sees all of one moment.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = State()
        try:
            if folder.exists() and not folder.is_dir():
                raise self._error("it is a file; give a folder for the store")
            if is_local_mode_folder(folder):
                raise self._error(
                    "it was made by qdrant-client's local mode. Copy it into a new folder with: "
                    f"unified-embeddings copy --from {folder} --to NEW_FOLDER"
                )
            make_folder(folder / _SHARDS)
            self._lock = self._acquire_lock()
        except (OSError, ValueError) as error:  # ValueError: a path that cannot be
            reason = getattr(error, "strerror", None) or error
            raise self._error(f"it cannot be written: {reason}") from error
        try:
            if self._read():
                self._clean()
            else:
                self.save(self.state)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process open the folder."""
        self._lock.release()

    def shard_path(self, shard: str) -> Path:
        """The folder of one collection's points."""
        return self.folder / _SHARDS / shard

    def new_shard(self) -> str:
        """A name for the points of a collection to be, under which nothing lies yet."""
        return uuid.uuid4().hex

    def drop_shard(self, shard: str) -> None:
        """Remove the points of a collection that the catalogue does not name any more.

        What cannot be removed now (Windows keeps open files) goes when the store is next opened.
        """
        shutil.rmtree(self.shard_path(shard), ignore_errors=True)

    def save(self, state: State) -> None:
        """Replace the state, on disk and here, in one step that outlives a crash.

        Raises:
            StoreError: If it cannot be written; everything is then as it was.
        """
        content = {
            "format": _FORMAT,
            "core": version(_CORE),
            "client": version(_CLIENT),
            "collections": {
                name: {
                    "shard": entry.shard,
                    "settings": _SETTINGS.dump_python(
                        entry.settings, mode="json", exclude_none=True
                    ),
                }
                for name, entry in state.collections.items()
            },
            "aliases": dict(state.aliases),
        }
        text = json.dumps(content, indent=1, ensure_ascii=False)

        def replace_catalogue() -> None:
            replace_file(self.folder / _CATALOG, text.encode())
            self.state = state

        try:
            # Disk and memory change together: an interrupt between the two would make the caller
            # undo, in memory, what is on disk.
            uninterrupted(replace_catalogue)
        except OSError as error:
            raise StoreError(
                str(self.folder), "writing its catalogue", error.strerror or str(error)
            ) from error

    def _acquire_lock(self) -> FileLock:
        try:
            return FileLock(self.folder / ".lock")
        except LockHeldError as error:
            raise self._error(
                "it is open already, in another process or by another client in this one. A "
                "folder serves one process at a time, through one client: close the other one, "
                "share its client, or run a Qdrant server and use url="
            ) from error
        except LockUnsupportedError as error:
            raise self._error(f"its file system does not support locks: {error}") from error

    def _read(self) -> bool:
        """Read the catalogue; False if this is a new store, which has none."""
        file = self.folder / _CATALOG
        if not file.exists():
            if self._shard_folders():
                raise self._error(
                    f"its {_CATALOG} is missing, but there are points under {_SHARDS}/, which are "
                    f"left alone; restore {_CATALOG} from a backup, or give another folder"
                )
            return False
        content: Any = None
        try:
            content = json.loads(file.read_text("utf-8"))
            if content["format"] > _FORMAT or _newer(content["core"], version(_CORE)):
                raise self._error(
                    f"it was written with format {content['format']} and {_CORE} "
                    f"{content['core']}; installed are format {_FORMAT} and {version(_CORE)}. "
                    "Upgrade unified-embeddings"
                )
            self.state = State(
                collections={
                    name: Entry(entry["shard"], _SETTINGS.validate_python(entry["settings"]))
                    for name, entry in content["collections"].items()
                },
                aliases=dict(content["aliases"]),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, ValidationError) and _newer(
                str(content.get("client", "")), version(_CLIENT)
            ):
                raise self._error(
                    f"it was written with {_CLIENT} {content['client']}, installed is "
                    f"{version(_CLIENT)}. Upgrade it"
                ) from error
            raise self._error(
                f"its {_CATALOG} cannot be read ({type(error).__name__}: {error}). The points "
                f"under {_SHARDS}/ are left alone; restore {_CATALOG} from a backup"
            ) from error
        if (content["core"], content.get("client")) != (version(_CORE), version(_CLIENT)):
            self.save(self.state)  # says that this version may have written in it
        return True

    def _shard_folders(self) -> set[str]:
        folders = (self.folder / _SHARDS).iterdir()
        return {path.name for path in folders if _SHARD_NAME.fullmatch(path.name)}

    def _clean(self) -> None:
        """Remove what is under `shards/` and in no collection.

        Only where every collection has its folder: a catalogue from before the last `optimize`, put
        back by hand, would otherwise cost the points it does not know of.
        """
        remove_litter(self.folder)
        known = {entry.shard for entry in self.state.collections.values()}
        there = self._shard_folders()
        if known - there:
            _LOG.warning(
                "A collection's folder is missing under %s; nothing is cleaned up.", self.folder
            )
            return
        for name in there - known:
            path = self.shard_path(name)
            _LOG.warning("Removing %s, left behind by an operation that was stopped.", path)
            shutil.rmtree(path, ignore_errors=True)

    def _error(self, problem: str) -> StoreError:
        return StoreError(str(self.folder), "opening", problem)


def is_local_mode_folder(folder: Path) -> bool:
    """Whether qdrant-client's local mode keeps collections there."""
    with contextlib.suppress(OSError, ValueError):
        return not (folder / _CATALOG).exists() and any((folder / "collection").iterdir())
    return False


def _newer(one: str, other: str) -> bool:
    """Whether a version is above another in its major or minor part, which set what is on disk."""
    numbers = [[int(part) for part in re.findall(r"\d+", text)[:2]] for text in (one, other)]
    return numbers[0] > numbers[1]
