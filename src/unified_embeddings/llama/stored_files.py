"""What a collection holds of files, and giving stored chunks the new path of a file that moved.

What lives here: reading the bookkeeping that each chunk carries, and telling which stored file is
which file on disk. What does not: deciding what to store or remove (`indexing`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models as qm

from unified_embeddings.llama.finding import Places
from unified_embeddings.llama.reading import bookkeeping, chunk_id, document_id
from unified_embeddings.stores.errors import store_errors

_SCROLL_POINTS = 1000
_BOOKKEEPING_KEYS = ("file_path", "file_version", "file_chunks")
_RELATIVE_KEY = "file_relative_path"


@dataclass
class StoredFile:
    """What the collection holds of one file.

    Attributes:
        chunk_ids: The ids of the chunks that are stored, by version. An interrupted run may leave
            chunks of two versions.
        chunk_counts: How many chunks a version has once it is complete.
        stored_paths: The paths under which chunks are stored. After a move there may be two.
    """

    chunk_ids: dict[str, set[str]] = field(default_factory=dict)
    chunk_counts: dict[str, int] = field(default_factory=dict)
    stored_paths: set[str] = field(default_factory=set)

    def expected_ids(self, path: str, version: str) -> set[str]:
        """Return the ids that a version's chunks have once it is complete under a path."""
        count = self.chunk_counts.get(version, 0)
        return {chunk_id(path, version, position) for position in range(count)}

    def is_complete(self, path: str, version: str) -> bool:
        """Tell whether all chunks of a version are stored under a path."""
        expected = self.expected_ids(path, version)
        return bool(expected) and expected <= self.chunk_ids[version]

    def complete_path(self, version: str) -> str | None:
        """Return a path under which all chunks of a version are stored, or None."""
        for path in sorted(self.stored_paths):
            if self.is_complete(path, version):
                return path
        return None

    def all_ids(self) -> set[str]:
        """Return the ids of all versions' chunks."""
        return set().union(*self.chunk_ids.values())

    def add(self, other: StoredFile) -> None:
        """Add what is stored of the same file under another path."""
        for version, ids in other.chunk_ids.items():
            self.chunk_ids.setdefault(version, set()).update(ids)
            self.chunk_counts[version] = other.chunk_counts[version]
        self.stored_paths |= other.stored_paths


@dataclass(frozen=True)
class StoredPath:
    """A path under which chunks are stored.

    Attributes:
        path: The path.
        relative: The path as seen from the store's folder, if the store knew it.
    """

    path: str
    relative: str | None


def read_stored_files(
    store: QdrantVectorStore, paths: Sequence[str] | None = None
) -> dict[StoredPath, StoredFile]:
    """Return what the collection holds, by the path under which it is stored.

    Points without our bookkeeping were stored by other means. They are not counted, and so never
    removed.

    Args:
        store: The store of the collection.
        paths: The paths of the files to look for; None for all files.

    Raises:
        StoreError: If Qdrant fails.
    """
    stored_files: dict[StoredPath, StoredFile] = {}
    selected = None
    if paths is not None:
        # Nothing is stored of a path that is not valid Unicode, and no filter can hold it.
        valid_paths = [path for path in paths if _is_unicode(path)]
        is_one = qm.FieldCondition(key="file_path", match=qm.MatchAny(any=valid_paths))
        selected = qm.Filter(must=[is_one])
    offset: qm.ExtendedPointId | None = None
    while True:
        with store_errors(store.collection_name, "listing the stored chunks"):
            points, offset = store.client.scroll(
                store.collection_name,
                scroll_filter=selected,
                limit=_SCROLL_POINTS,
                offset=offset,
                with_payload=[*_BOOKKEEPING_KEYS, _RELATIVE_KEY],
                with_vectors=False,
            )
        for point in points:
            payload = point.payload or {}
            if not all(key in payload for key in _BOOKKEEPING_KEYS):
                continue
            place = StoredPath(payload["file_path"], payload.get(_RELATIVE_KEY))
            stored = stored_files.setdefault(place, StoredFile(stored_paths={place.path}))
            version = payload["file_version"]
            stored.chunk_counts[version] = payload["file_chunks"]
            stored.chunk_ids.setdefault(version, set()).add(str(point.id))
        if offset is None:
            return stored_files


def _is_unicode(path: str) -> bool:
    """Tell whether a path can be stored; `reading.check_name` rejects a file with another one."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def identify(
    stored_files: Mapping[StoredPath, StoredFile],
    files: Sequence[Path],
    roots: Sequence[Path],
    base: Path | None,
    versions_of: Callable[[Path], Iterable[str]],
) -> dict[str, StoredFile]:
    """Return what is stored by the path of the file on disk.

    A stored file is the one at its path. If its path is not among those that are indexed, it may
    have moved: with the store's folder, or elsewhere with the same name and content. A file that is
    reached by another link is the same file too, and one that is gone is gone by every name.

    Args:
        stored_files: What is stored, by path.
        files: The files that were found.
        roots: The folders and files that are indexed.
        base: The folder that the store's folder lies in; None if the store is elsewhere.
        versions_of: Returns the versions under which the content of a file on disk may be stored.
            It reads the file, and is called once at most for each.
    """
    found = {str(file) for file in files}
    by_real_path = {os.path.realpath(file): str(file) for file in files}
    stored_paths = {place.path for place in stored_files}
    new_files = _FilesByContent([file for file in files if str(file) not in stored_paths])
    root_places = Places(roots)
    real_roots = {os.path.realpath(root): root for root in roots}
    identified: dict[str, StoredFile] = {}
    for place, stored in stored_files.items():
        path = place.path
        if path not in found and not root_places.holding(path):
            path = _moved_with_store(place, base) or path
            if path not in found and os.path.lexists(path):
                path = by_real_path.get(os.path.realpath(path), path)
            elif path not in found:
                same = new_files.find(Path(path).name, stored.chunk_ids, versions_of)
                path = same or _named_by_root(path, real_roots) or path
        identified.setdefault(path, StoredFile()).add(stored)
    return identified


class _FilesByContent:
    """Files by name and content; those of a name are read when that name is asked for.

    Args:
        files: The files.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._unread: dict[str, list[Path]] = {}
        for file in files:
            self._unread.setdefault(file.name, []).append(file)
        self._paths: dict[tuple[str, str], str] = {}

    def find(
        self, name: str, versions: Iterable[str], versions_of: Callable[[Path], Iterable[str]]
    ) -> str | None:
        """Return the first file of a name that has one of some versions, or None."""
        for file in self._unread.pop(name, ()):
            for version in versions_of(file):
                self._paths.setdefault((name, version), str(file))
        for version in versions:
            if (name, version) in self._paths:
                return self._paths[name, version]
        return None


def _named_by_root(path: str, real_roots: Mapping[str, Path]) -> str | None:
    """Return the name that a file would have below a root that is the same folder by another name.

    Args:
        path: The path of a file that does not exist.
        real_roots: The roots, by their paths without links.
    """
    real = os.path.realpath(path)
    for place in Places(real_roots).holding(real):
        return str(real_roots[place] / Path(real).relative_to(place))
    return None


def _moved_with_store(place: StoredPath, base: Path | None) -> str | None:
    """Return where a file is after it was moved or copied together with the store's folder.

    That is so if it is at the same place as seen from the store, or nowhere any more.
    """
    if base is None or place.relative is None:
        return None
    path = os.path.normpath(base / place.relative)
    if os.path.lexists(path) or not os.path.lexists(place.path):
        return path
    return None


def relative_to_store(path: Path, base: Path | None) -> str | None:
    """Return a file's path as seen from the folder that the store lies in; None if not below it."""
    if base is None:
        return None
    for candidate in (path, Path(os.path.realpath(path.parent)) / path.name):
        if candidate.is_relative_to(base):
            return candidate.relative_to(base).as_posix()
    return None


def relabel(
    store: QdrantVectorStore,
    old_path: str,
    new_path: str,
    version: str,
    count: int,
    base: Path | None,
) -> None:
    """Store the chunks of a file that moved under its new path, vectors included.

    The old chunks stay; they are removed like any others of a file that has new ones.

    Args:
        store: The store of the collection.
        old_path: The path under which the chunks are stored.
        new_path: The file's path now.
        version: The version of the chunks.
        count: How many there are.
        base: The folder that the store's folder lies in; None if the store is elsewhere.

    Raises:
        StoreError: If Qdrant fails.
    """
    new_ids = [chunk_id(new_path, version, position) for position in range(count)]
    relative = relative_to_store(Path(new_path), base)
    facts: dict[str, object] = {
        **bookkeeping(new_path, version, count, relative),
        "file_name": Path(new_path).name,
    }
    for start in range(0, count, _SCROLL_POINTS):
        positions = range(start, min(count, start + _SCROLL_POINTS))
        old_ids = [chunk_id(old_path, version, position) for position in positions]
        with store_errors(store.collection_name, "reading the chunks of a file that moved"):
            points = store.client.retrieve(
                store.collection_name, old_ids, with_payload=True, with_vectors=True
            )
        by_id = {str(point.id): point for point in points}
        moved = [
            _relabelled(by_id[old_id], store, new_ids, position, facts)
            for old_id, position in zip(old_ids, positions, strict=True)
        ]
        with store_errors(store.collection_name, "storing the chunks of a file that moved"):
            store.client.upsert(store.collection_name, moved)


def _relabelled(
    point: qm.Record,
    store: QdrantVectorStore,
    new_ids: Sequence[str],
    position: int,
    facts: Mapping[str, object],
) -> qm.PointStruct:
    """Return a chunk as a point with a new id and new metadata."""
    (node,) = store.parse_to_query_result([point]).nodes or ()
    node.id_ = new_ids[position]
    if isinstance(node, ImageNode):
        node.image_path = cast("str", facts["file_path"])
    node.metadata.pop(_RELATIVE_KEY, None)
    node.metadata.update(facts)
    node.excluded_embed_metadata_keys = list(node.metadata)
    shown = set(node.metadata) - set(node.excluded_llm_metadata_keys) - {_RELATIVE_KEY}
    node.excluded_llm_metadata_keys = [key for key in node.metadata if key not in shown]
    path = cast("str", facts["file_path"])
    related = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document_id(path))}
    if position:
        related[NodeRelationship.PREVIOUS] = RelatedNodeInfo(node_id=new_ids[position - 1])
    if position + 1 < len(new_ids):
        related[NodeRelationship.NEXT] = RelatedNodeInfo(node_id=new_ids[position + 1])
    node.relationships = {**related}
    payload = node_to_metadata_dict(node, remove_text=False, flat_metadata=store.flat_metadata)
    vector = cast("qm.VectorStruct", point.vector)
    return qm.PointStruct(id=new_ids[position], vector=vector, payload=payload)


def remove_chunks(store: QdrantVectorStore, chunk_ids: Iterable[str]) -> int:
    """Remove chunks by their ids, and return how many ids were given.

    Raises:
        StoreError: If Qdrant fails.
    """
    point_ids: list[qm.ExtendedPointId] = [*sorted(chunk_ids)]
    if point_ids:
        with store_errors(store.collection_name, "removing chunks"):
            store.client.delete(
                store.collection_name, points_selector=qm.PointIdsList(points=point_ids)
            )
    return len(point_ids)
