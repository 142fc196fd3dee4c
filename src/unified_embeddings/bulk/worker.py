"""The child process that computes parts.

What lives here: loading the model, computing a part slice by slice, finding rows that fail, and
publishing the part. What does not: which worker gets which part (`pool`).

Before each slice the worker says which rows it begins, so that its parent knows which rows were in
hand if it dies or hangs.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Client
from pathlib import Path
from typing import TypeAlias

import numpy as np

from unified_embeddings.bulk.job import part_name
from unified_embeddings.bulk.parts import FAILED, Part, Record, build_part, part_to_bytes
from unified_embeddings.bulk.planning import PartTask
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.isolation import GroupSize, isolate_failures
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.system.files import publish_file, scratch_folder
from unified_embeddings.system.hardware import share_machine
from unified_embeddings.types import Embeddings, HeadName, Role

MakeEmbedder: TypeAlias = Callable[..., TextEmbedder]
"""Makes the embedder in the child; a function of an importable module."""

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system reports where a disk is full, or somebody's share of it."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know besides its parts.

    Attributes:
        make_embedder: Makes its embedder, with `options` as keyword arguments.
        options: Plain values.
        heads: What to compute.
        role: Of the texts.
        dtype: "float32" or "float16", of dense and ColBERT vectors.
        folder: Where parts are published.
        slice_rows: The most rows that are computed in one call.
        processes: How many workers share this machine; see `share_machine`.
    """

    make_embedder: MakeEmbedder
    options: Mapping[str, object]
    heads: tuple[HeadName, ...]
    role: Role
    dtype: str
    folder: Path
    slice_rows: int
    processes: int = 1


@dataclass(frozen=True, eq=False)
class Assignment:
    """A part to compute, and what is known of its rows.

    Attributes:
        task: The part.
        alone: Places among its texts that are computed one at a time: one of them may be deadly.
        poison: Place among its texts → why it is not computed.
    """

    task: PartTask
    alone: frozenset[int] = frozenset()
    poison: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Begun:
    """A worker's word that it begins to compute some of a part's texts."""

    part: int
    places: tuple[int, ...]
    characters: int


@dataclass(frozen=True)
class Finished:
    """A worker's word that a part is published.

    Attributes:
        part: Its number.
        sha256: Of its file.
        bytes: Size of its file.
        computed: Rows whose vectors were computed.
        failed: Rows of it without vectors.
        tokens: Tokens that ran through the model.
        truncated: Texts that were cut.
        seconds: Spent on it.
    """

    part: int
    sha256: str
    bytes: int
    computed: int
    failed: int
    tokens: int
    truncated: int
    seconds: float


@dataclass(frozen=True)
class Ready:
    """A worker's word that its model is loaded."""

    runtime: Mapping[str, str]


@dataclass(frozen=True)
class Broken:
    """A worker's word that it cannot go on: the model does not load, or the disk is full."""

    error: Exception


def work(address: object, key: bytes, number: int, settings: WorkerSettings) -> None:
    """Compute parts for the parent process until it says that there are no more.

    Args:
        address: Of the parent's listener.
        key: Proves to the parent that this is its child.
        number: Which child.
        settings: What to compute.
    """
    share_machine(settings.processes)
    with Client(address, authkey=key) as connection:  # type: ignore[arg-type]
        connection.send(number)
        try:
            computer = PartComputer(settings)
            connection.send(Ready(computer.runtime))
            while (assignment := connection.recv()) is not None:
                finished, content = computer.compute(assignment, connection.send)
                publish_part(content, settings.folder, finished.part)
                connection.send(finished)
        except (EOFError, BrokenPipeError):
            return  # The parent has ended.
        except Exception as error:
            connection.send(Broken(_portable(error, settings.folder)))


def _portable(error: Exception, folder: Path) -> Exception:
    """Return an error as one that comes whole out of another process, which not every one does."""
    if isinstance(error, UnifiedEmbeddingsError):
        return error
    if isinstance(error, OSError) and is_full_disk(error):
        return OSError(error.errno, "No space left on device")
    if isinstance(error, FileNotFoundError) and str(error.filename).startswith(str(folder)):
        return FileNotFoundError(error.errno, error.strerror, str(error.filename))
    return UnifiedEmbeddingsError(f"{type(error).__name__}: {error}")


class PartComputer:
    """One loaded model that computes parts.

    Args:
        settings: What to compute.

    Attributes:
        runtime: What the model runs on.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._embedder = settings.make_embedder(**settings.options)
        self._group_size = GroupSize(settings.slice_rows)
        # One text, so that a model that does not load is told apart from a row that fails.
        self._embedder.encode(["warm-up"], role=settings.role, heads=settings.heads)
        self.runtime = _describe_runtime(self._embedder)

    def compute(
        self, assignment: Assignment, begin: Callable[[Begun], None]
    ) -> tuple[Finished, bytes]:
        """Compute one part; return what there is to say of it, and its file's content.

        Args:
            assignment: The part.
            begin: Called before each slice.
        """
        begun = time.perf_counter()
        before = self._embedder.stats()
        task = assignment.task
        outcomes: dict[int, Embeddings | str] = dict(assignment.poison)
        for places in self._slices(assignment):
            characters = sum(len(task.texts[place]) for place in places)
            begin(Begun(task.number, places, characters))
            outcomes.update(self._compute_places(task, places))
        part = _assemble(task, outcomes, self._settings.dtype)
        content = part_to_bytes(part)
        after = self._embedder.stats()
        finished = Finished(
            part=task.number,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            computed=len(part.own_rows),
            failed=sum(record.problem is not None for record in part.records),
            tokens=after.tokens - before.tokens,
            truncated=after.truncated - before.truncated,
            seconds=time.perf_counter() - begun,
        )
        return finished, content

    def _slices(self, assignment: Assignment) -> list[tuple[int, ...]]:
        """Return the places of a part's texts in groups of similar length, longest first.

        Equal parts give equal groups, so that a part that is computed again is the same.
        """
        texts = assignment.task.texts
        places = [place for place in range(len(texts)) if place not in assignment.poison]
        together = [place for place in places if place not in assignment.alone]
        together.sort(key=lambda place: -len(texts[place]))
        size = self._settings.slice_rows
        groups = [tuple(together[start : start + size]) for start in range(0, len(together), size)]
        return groups + [(place,) for place in places if place in assignment.alone]

    def _compute_places(
        self, task: PartTask, places: tuple[int, ...]
    ) -> dict[int, Embeddings | str]:
        """Compute some texts; where that fails, halve them until the bad one is alone."""

        def compute(group: Sequence[int]) -> list[Embeddings]:
            embeddings = self._encode([task.texts[place] for place in group])
            return [embeddings[i : i + 1] for i in range(len(group))]

        found = isolate_failures(compute, places, size=self._group_size, is_fatal=is_full_disk)
        outcomes: dict[int, Embeddings | str] = {}
        for place, outcome in zip(places, found, strict=True):
            assert outcome is not None
            if isinstance(outcome, Exception):
                outcomes[place] = _describe_failure(outcome)
            else:
                outcomes[place] = outcome
        return outcomes

    def _encode(self, texts: Sequence[str]) -> Embeddings:
        settings = self._settings
        return self._embedder.encode(texts, role=settings.role, heads=settings.heads)


def _assemble(task: PartTask, outcomes: Mapping[int, Embeddings | str], dtype: str) -> Part:
    """Put a part together from what became of each of its texts."""
    records = list(task.records)
    sources = task.sources.copy()
    rows = []
    own_places = np.flatnonzero(sources == np.arange(task.first_row, task.first_row + len(records)))
    for place, row in enumerate(own_places.tolist()):
        outcome = outcomes[place]
        if isinstance(outcome, str):
            records[row] = Record(records[row].fields, outcome, records[row].text)
            sources[row] = FAILED
        else:
            rows.append(outcome)
    embeddings = Embeddings.join(rows) if rows else None
    return build_part(task.first_row, records, sources, embeddings, dtype)


def publish_part(content: bytes, folder: Path, number: int) -> None:
    """Write a part's file, atomically and durably."""
    name = part_name(number)
    with scratch_folder(folder) as scratch:
        file = scratch / name
        file.write_bytes(content)
        publish_file(file, folder / name)


def is_full_disk(error: Exception) -> bool:
    """Tell whether the disk is full, which is no row's fault."""
    return isinstance(error, OSError) and error.errno in DISK_FULL


def _describe_failure(error: Exception) -> str:
    if isinstance(error, InputError):
        return error.problem
    return f"the model failed on it: {type(error).__name__}: {error}"


def _describe_runtime(embedder: TextEmbedder) -> dict[str, str]:
    if not embedder.models:
        return {}
    runtime = embedder.models[0].runtime
    return {"engine": runtime.engine, "device": runtime.device, "precision": runtime.precision}
