"""The folder of an embedded store: its lock, its collections and their aliases.

    store/
      .lock          held by the one process that has the store open
      catalog.json   every collection with its settings and folder, and every alias
      shards/<id>/   the points of one collection, which `shard` reads and writes

What lives here: the catalogue and the names of the folders. What does not: what is in the folders.

The catalogue is replaced atomically (`system.files`), so a change to it happened or did not.
Creating, swapping and deleting a collection and switching aliases are each one such replacement. A
folder under `shards/` that the catalogue does not name is left over from an interrupted operation
and is removed when the store is opened.

The catalogue carries a checksum of itself: one changed letter in a setting would otherwise change
what every later search means. What it names is confined to the store, since deleting a collection
deletes the folder that it names.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from unified_embeddings.errors import StoreError
from unified_embeddings.stores.edge.naming import check_vectors
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.system.files import (
    FileLock,
    LockHeldError,
    LockUnsupportedError,
    make_folder,
    remove_litter,
    replace_file,
)
from unified_embeddings.system.signals import uninterrupted

_FORMAT = 2
"""Version of the catalogue's layout, written into it. Version 1 had no checksum."""
_FIRST_WITH_CHECKSUM = 2
_CHECKSUM = "checksum"
_CATALOG = "catalog.json"
_SHARDS = "shards"
_SHARD_NAME = re.compile(r"[0-9a-f]{32}")
_CORE = "qdrant-edge-py"
"""Package whose files the shards are."""
_CLIENT = "qdrant-client"
"""Package whose models serialise the settings."""
_PROTECTED = (errno.EROFS, errno.EACCES, errno.EPERM)
_ALWAYS_WRITTEN = (
    "Qdrant's core writes to the files of a store even where it only searches: copy the folder to "
    "where it can be written, and open the copy"
)
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading a damaged catalogue can raise. pydantic's ValidationError is a ValueError."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One collection in the catalogue.

    Attributes:
        shard: Name of the folder under `shards/` that holds its points.
        settings: What it was created with.
    """

    shard: str
    settings: Settings


@dataclass(frozen=True)
class State:
    """A snapshot of all collections and aliases.

    Attributes:
        collections: Name → collection.
        aliases: Alias → name of its collection.
    """

    collections: Mapping[str, Entry] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def entry(self, name: str) -> tuple[str, Entry] | None:
        """Resolve a name or an alias.

        Returns:
            The collection's own name, and its entry; None if there is no such collection.
        """
        resolved = name if name in self.collections else self.aliases.get(name, name)
        entry = self.collections.get(resolved)
        return None if entry is None else (resolved, entry)


_SETTINGS: TypeAdapter[Settings] = TypeAdapter(Settings)


class Catalog:
    """The collections and aliases of one folder, which this process alone has open.

    Args:
        folder: The store's folder; created if it is missing.

    Raises:
        StoreError: If the folder is open elsewhere, cannot be written, was made by newer software
            or by qdrant-client's local mode, or its catalogue is missing or damaged.

    Attributes:
        folder: The store's folder.
        state: Its collections and aliases. Replaced as a whole, so a reader always has a snapshot.
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
                    f"unified-embeddings copy --from {shlex.quote(str(folder))} --to NEW_FOLDER"
                )
            make_folder(folder / _SHARDS)
            self._lock = self._acquire_lock()
        except (OSError, ValueError) as error:  # ValueError: there cannot be such a path.
            reason = getattr(error, "strerror", None) or error
            problem = f"it cannot be written: {reason}"
            is_protected = isinstance(error, OSError) and error.errno in _PROTECTED
            if is_protected and os.path.exists(folder / _CATALOG):  # noqa: PTH110 — it never raises
                problem += f". {_ALWAYS_WRITTEN}"
            raise self._error(problem) from error
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the folder, so that another process can open it. Idempotent."""
        self._lock.release()

    def shard_path(self, shard: str) -> Path:
        """Return the folder of one collection's points."""
        return self.folder / _SHARDS / shard

    def new_shard(self) -> str:
        """Return a name, not in use, for the folder of a new collection's points."""
        return uuid.uuid4().hex

    def drop_shard(self, shard: str) -> None:
        """Remove the points of a collection that the catalogue no longer names.

        What cannot be removed now (Windows keeps open files) is removed when the store is next
        opened.
        """
        shutil.rmtree(self.shard_path(shard), ignore_errors=True)

    def save(self, state: State) -> None:
        """Replace the state, on disk and in memory, atomically and durably.

        Raises:
            StoreError: If it cannot be written; everything is then as it was.
        """
        content = _to_json(state)

        def replace_catalogue() -> None:
            replace_file(self.folder / _CATALOG, content.encode())
            self.state = state

        try:
            # Disk and memory change together. If an interrupt came between the two, the caller
            # would take the change for failed and delete what the file on disk names.
            uninterrupted(replace_catalogue)
        except OSError as error:
            raise StoreError.of_place(
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

    def _open(self) -> None:
        """Read the catalogue and clean up; write an empty one if the store is new."""
        file = self.folder / _CATALOG
        if file.exists():
            self._read(file)
            self._clean_up()
            return
        if self._shard_folders():
            raise self._error(
                f"its {_CATALOG} is missing, but there are points under {_SHARDS}/, which are "
                f"left alone; restore {_CATALOG} from a backup, or give another folder"
            )
        self.save(self.state)

    def _read(self, file: Path) -> None:
        """Read the state from the catalogue.

        Raises:
            StoreError: If newer software wrote it, or it is damaged.
        """
        content: Any = None
        try:
            content = json.loads(file.read_text("utf-8"))
            self._require_known_version(content)
            _require_checksum(content)
            self.state = _to_state(content)
        except _UNREADABLE as error:
            if isinstance(error, ValidationError):
                self._require_known_client(content, error)
            raise self._error(
                f"its {_CATALOG} cannot be read ({type(error).__name__}: {error}). The points "
                f"under {_SHARDS}/ are left alone; restore {_CATALOG} from a backup"
            ) from error
        written_by = (content["format"], content["core"], content.get("client"))
        if written_by != (_FORMAT, version(_CORE), version(_CLIENT)):
            self.save(self.state)  # From now on these versions may have written to the store.

    def _require_known_version(self, content: Any) -> None:
        """Refuse a store that a newer version has written, which may have changed its files.

        Raises:
            StoreError: If a newer version has written it.
            TypeError: If the catalogue's versions are not versions.
        """
        if not isinstance(content["format"], int) or not isinstance(content["core"], str):
            raise TypeError("its versions must be a number and a string")
        if content["format"] > _FORMAT or _is_newer(content["core"], version(_CORE)):
            raise self._error(
                f"it was written with format {content['format']} and {_CORE} {content['core']}; "
                f"installed are format {_FORMAT} and {version(_CORE)}. Upgrade unified-embeddings"
            )

    def _require_known_client(self, content: Any, error: ValidationError) -> None:
        """Blame settings that are not understood on a newer qdrant-client, if one wrote them."""
        if isinstance(content, dict) and _is_newer(content.get("client"), version(_CLIENT)):
            raise self._error(
                f"it was written with {_CLIENT} {content['client']}, installed is "
                f"{version(_CLIENT)}. Upgrade it"
            ) from error

    def _shard_folders(self) -> set[str]:
        folders = (self.folder / _SHARDS).iterdir()
        return {path.name for path in folders if _SHARD_NAME.fullmatch(path.name)}

    def _clean_up(self) -> None:
        """Remove what interrupted operations have left.

        Nothing under `shards/` is removed if a collection's folder is missing. The catalogue is
        then probably from before the last `optimize` and was restored by hand, and the points are
        in a folder that it does not name.
        """
        remove_litter(self.folder)
        named_folders = {entry.shard for entry in self.state.collections.values()}
        existing_folders = self._shard_folders()
        if named_folders - existing_folders:
            _LOG.warning(
                "A collection's folder is missing under %s; nothing is cleaned up.", self.folder
            )
            return
        for name in existing_folders - named_folders:
            path = self.shard_path(name)
            _LOG.warning("Removing %s, left behind by an interrupted operation.", path)
            shutil.rmtree(path, ignore_errors=True)

    def _error(self, problem: str) -> StoreError:
        return StoreError.of_place(str(self.folder), "opening", problem)


def is_store_folder(folder: Path) -> bool:
    """Tell whether a folder holds an embedded store, or what is left of one."""
    return (folder / _CATALOG).exists() or (folder / _SHARDS).is_dir()


def is_local_mode_folder(folder: Path) -> bool:
    """Tell whether a folder holds collections of qdrant-client's local mode."""
    with contextlib.suppress(OSError, ValueError):
        return not (folder / _CATALOG).exists() and any((folder / "collection").iterdir())
    return False


def _to_json(state: State) -> str:
    """Return the catalogue's text."""
    collections = {}
    for name, entry in state.collections.items():
        settings = _SETTINGS.dump_python(entry.settings, mode="json", exclude_none=True)
        collections[name] = {"shard": entry.shard, "settings": settings}
    content: dict[str, Any] = {
        "format": _FORMAT,
        "core": version(_CORE),
        "client": version(_CLIENT),
        "collections": collections,
        "aliases": dict(state.aliases),
    }
    content[_CHECKSUM] = _checksum(content)
    return json.dumps(content, indent=1, ensure_ascii=False)


def _checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a catalogue's content, without its checksum, in one fixed spelling."""
    described = {name: value for name, value in content.items() if name != _CHECKSUM}
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _require_checksum(content: dict[str, Any]) -> None:
    """Refuse a catalogue that is not as it was written.

    Raises:
        ValueError: If its checksum is wrong, or missing though its format has one.
    """
    is_required = content["format"] >= _FIRST_WITH_CHECKSUM or _CHECKSUM in content
    if is_required and content.get(_CHECKSUM) != _checksum(content):
        raise ValueError("its checksum is wrong: it was damaged, or changed by hand")


def _to_state(content: Any) -> State:
    """Return the state that a catalogue's content describes.

    Raises:
        Exception: One of `_UNREADABLE`, if the content is not a catalogue's.
    """
    collections = {}
    for name, entry in content["collections"].items():
        settings = _SETTINGS.validate_python(entry["settings"])
        check_vectors(settings)
        collections[name] = Entry(_to_shard_name(entry["shard"]), settings)
    shards = {entry.shard for entry in collections.values()}
    if len(shards) != len(collections):
        raise ValueError("two collections have the same folder")
    aliases = dict(content["aliases"])
    if not all(isinstance(target, str) for target in aliases.values()):
        raise ValueError("an alias must be the name of a collection")
    return State(collections=collections, aliases=aliases)


def _to_shard_name(value: Any) -> str:
    """Return the name of a folder under `shards/`; nothing else may be read, written or deleted.

    Raises:
        ValueError: If it is not one.
    """
    if not isinstance(value, str) or _SHARD_NAME.fullmatch(value) is None:
        raise ValueError(f"{value!r:.80} is not the name of a folder under {_SHARDS}/")
    return value


def _is_newer(one: Any, other: str) -> bool:
    """Tell whether a version is above another in its major or minor part.

    The files' layout is a matter of these two; patch releases do not change it.
    """
    return _major_and_minor(str(one)) > _major_and_minor(other)


def _major_and_minor(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d{1,9}", text)[:2]]
