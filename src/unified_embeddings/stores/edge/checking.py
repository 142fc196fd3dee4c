"""Checking a whole store: every file against its checksum, and every point by reading it.

What lives here: what `unified-embeddings check` asks. What does not: the checksums (`seal`) and the
process that reads the points (`probe`), both of which are used whenever a collection is opened.

Nothing that is damaged is changed by a check: such a collection is read from a copy.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unified_embeddings.errors import StoreError
from unified_embeddings.stores.edge.catalog import Catalog, Entry, is_store_folder
from unified_embeddings.stores.edge.seal import (
    Seal,
    break_seal,
    find_damage,
    find_damage_after_crash,
    read_seal,
    write_seal,
)
from unified_embeddings.stores.edge.shard import read_in_child
from unified_embeddings.system.files import copy_with_holes, scratch_folder
from unified_embeddings.system.processes import ChildFailedError


@dataclass(frozen=True)
class CollectionReport:
    """What checking one collection showed.

    Attributes:
        collection: Its name.
        points: How many points could be read; None if it cannot be loaded.
        was_closed: Whether it has checksums to compare with, from when it was last closed.
        problems: What is wrong, one line each; empty if all is well.
    """

    collection: str
    points: int | None
    was_closed: bool
    problems: tuple[str, ...] = ()


def check_store(path: Path) -> Iterator[CollectionReport]:
    """Check the collections of a store, one after the other.

    What a crash has left in a collection's log is applied first, as opening it would.

    Args:
        path: The store's folder. It must not be open elsewhere.

    Yields:
        One report per collection, by name.

    Raises:
        StoreError: If the folder is not a store, is in use, or its catalogue is damaged.
    """
    if not is_store_folder(path):
        raise StoreError.of_place(
            str(path), "checking", "it is not the folder of an embedded store"
        )
    catalog = Catalog(path)
    try:
        for name, entry in sorted(catalog.state.collections.items()):
            yield _check_collection(name, entry, catalog)
    finally:
        catalog.close()


def _check_collection(name: str, entry: Entry, catalog: Catalog) -> CollectionReport:
    folder = catalog.shard_path(entry.shard)
    if not folder.is_dir():
        problem = f"its folder is missing: {folder}"
        return CollectionReport(name, points=None, was_closed=False, problems=(problem,))
    seal = read_seal(folder)
    problems: list[str] = []
    try:
        if seal is None:
            problems += find_damage_after_crash(folder, read_all=True)
        else:
            problems += find_damage(folder, seal, read_all=True)
        points = _read_points(folder, seal, problems)
    except OSError as error:
        problems.append(str(error))
        points = None
    return CollectionReport(
        name, points=points, was_closed=seal is not None, problems=tuple(problems)
    )


def _read_points(folder: Path, seal: Seal | None, problems: list[str]) -> int | None:
    """Read every point and add what is wrong to the problems; return how many there are.

    Raises:
        OSError: If the files cannot be read or copied.
    """
    if problems:
        with scratch_folder(folder.parent) as scratch:
            copy = scratch / folder.name
            shutil.copytree(folder, copy, copy_function=copy_with_holes)
            return _read_and_count(copy, seal, problems)
    break_seal(folder)  # loading writes to some of the files
    points = _read_and_count(folder, seal, problems)
    if points is not None:
        write_seal(folder, points, unchanged=seal)
    return points


def _read_and_count(folder: Path, seal: Seal | None, problems: list[str]) -> int | None:
    try:
        report = read_in_child(folder)
    except ChildFailedError as error:
        problems.append(f"it cannot be read: {error}")
        return None
    if report is None:
        problems.append("its points cannot be read by a frozen program")
        return None
    problems += report.problems
    if seal is not None and report.points != seal.points:
        problems.append(f"{report.points} points can be read; there were {seal.points}")
    return report.points
