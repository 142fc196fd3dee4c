"""Damage an embedded store in random places and tell what a program that opens it is told.

    python tools/damage_store.py                        # 200 mutations of each kind of file
    python tools/damage_store.py --mutations 5 --state killed

A store with every kind of file is made: dense, sparse and multi-vectors, quantised and indexed,
and payload indexes of each type. Each trial copies it, changes one of its files (a bit, a byte, a
run of bytes, a block of zeros, a shorter or a longer file, none), opens the copy in a process of
its own and asks for everything. The store was closed, or its process was killed while it had
written more; a killed one has no checksums.

What can come of it:

    same    the answers are those of the intact store: the damage does not matter, or was repaired
    error   a StoreError
    died    the process ended, and `unified-embeddings check` finds the damage
    BAD     anything else: other answers, another exception, more than two minutes

Prints a table, and exits 1 if a trial of a closed store was bad.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import selectors
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from qdrant_client import models as qm

from unified_embeddings.errors import StoreError
from unified_embeddings.stores.edge.checking import check_store
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.system.files import copy_with_holes

DIMENSION = 8
POINTS = 120
INDEXES = ("keyword", "integer", "float", "bool", "datetime", "text", "geo", "uuid")
LONGEST = 120.0
"""Seconds after which a trial counts as hanging."""
Expected: TypeAlias = Callable[[str], str]
"""File → what asking its collection gives if nothing is damaged."""
OUTCOMES = ("same", "error", "died", "BAD")
_UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32}")
_FOLDERS = ("*", "shards", "segments", "payload_index")


# --- the store ----------------------------------------------------------------------------------


def make_store(folder: Path, state: str) -> str:
    """Make the store, and close it or have its process killed while it writes."""
    client = EdgeQdrantClient(folder)
    quantization = qm.ScalarQuantization(
        scalar=qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8, always_ram=False)
    )
    for name, options in {"plain": {}, "indexed": {"quantization_config": quantization}}.items():
        _make_collection(client, name, options)
        client.upsert(name, [make_point(number) for number in range(POINTS)])
        client.delete(name, [3, 5, 8])
    client.optimize("indexed")
    client.upsert("indexed", [make_point(POINTS)])
    alias = qm.CreateAlias(collection_name="plain", alias_name="other")
    client.update_collection_aliases([qm.CreateAliasOperation(create_alias=alias)])
    client.close()
    if state == "closed":
        return ""
    client = EdgeQdrantClient(folder)
    for name in ("plain", "indexed"):
        client.upsert(name, [make_point(number) for number in (7, POINTS + 1)])
        client.delete(name, [1])
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def _make_collection(client: EdgeQdrantClient, name: str, options: dict[str, Any]) -> None:
    multi = qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM)
    client.create_collection(
        name,
        vectors_config={
            "dense": qm.VectorParams(size=DIMENSION, distance=qm.Distance.COSINE),
            "multi": qm.VectorParams(
                size=DIMENSION, distance=qm.Distance.DOT, multivector_config=multi
            ),
        },
        sparse_vectors_config={"sparse": qm.SparseVectorParams(modifier=qm.Modifier.IDF)},
        optimizers_config=qm.OptimizersConfigDiff(indexing_threshold=1),
        hnsw_config=qm.HnswConfigDiff(m=4, full_scan_threshold=10),
        metadata={"made": "by hand"},
        **options,
    )
    for kind in INDEXES:
        client.create_payload_index(name, kind, kind)


def make_point(number: int) -> qm.PointStruct:
    """Return a point whose vectors and payload follow from its number."""
    generator = random.Random(number)
    rows = [[generator.uniform(-1, 1) for _ in range(DIMENSION)] for _ in range(3)]
    sparse = qm.SparseVector(indices=[number % 7, 10 + number % 3], values=[1.0, 0.5])
    payload = {
        "keyword": f"word{number % 4}",
        "integer": number,
        "float": number / 8,
        "bool": number % 2 == 0,
        "datetime": f"2024-01-{1 + number % 28:02d}T00:00:00Z",
        "text": f"the number {number % 10} and its text",
        "geo": {"lon": number % 90, "lat": number % 45},
        "uuid": f"00000000-0000-0000-0000-{number:012d}",
    }
    vectors: Any = {"dense": rows[0], "multi": rows[1:], "sparse": sparse}
    return qm.PointStruct(id=number, vector=vectors, payload=payload)


def ask_everything(folder: Path, file: str = "") -> str:
    """Open a store, ask for what it holds and search it; return the answers as text.

    Args:
        folder: The store.
        file: If given, only the collection that this file belongs to is asked.
    """
    answers: list[Any] = []
    with EdgeQdrantClient(folder) as client:
        names = sorted(entry.name for entry in client.get_collections().collections)
        aliases = client.get_aliases().aliases
        answers += [names, sorted((alias.alias_name, alias.collection_name) for alias in aliases)]
        for name in names:
            if not is_asked(folder, file, name):
                continue
            answers.append(client.get_collection(name).config.model_dump(mode="json"))
            points, _ = client.scroll(name, limit=10 * POINTS, with_vectors=True)
            answers.append([point.model_dump(mode="json") for point in points])
            answers.append(client.count(name).count)
            answers += [_search(client, name, **request) for request in _requests()]
    return json.dumps(answers, sort_keys=True)


def is_asked(folder: Path, file: str, name: str) -> bool:
    """Tell whether a file belongs to a collection; a file outside `shards` belongs to all."""
    if not file.startswith("shards/"):
        return True
    catalog = json.loads((folder / "catalog.json").read_text("utf-8"))
    return bool(file.split("/")[1] == catalog["collections"][name]["shard"])


def _requests() -> Iterator[dict[str, Any]]:
    vectors: Any = make_point(11).vector
    for name, vector in vectors.items():
        for exact in (True, False):
            params = qm.SearchParams(exact=exact)
            yield {"query": vector, "using": name, "search_params": params}
    for test in (
        {"key": "keyword", "match": {"value": "word1"}},
        {"key": "integer", "range": {"gte": 20, "lt": 30}},
        {"key": "integer", "match": {"value": 21}},
        {"key": "float", "range": {"gte": 2, "lt": 3}},
        {"key": "bool", "match": {"value": True}},
        {"key": "datetime", "range": {"gte": "2024-01-20T00:00:00Z"}},
        {"key": "text", "match": {"text": "number 7"}},
        {"key": "geo", "geo_radius": {"center": {"lon": 5, "lat": 5}, "radius": 500_000}},
        {"key": "uuid", "match": {"value": "00000000-0000-0000-0000-000000000021"}},
    ):
        yield {"query_filter": {"must": [test]}}


def _search(client: EdgeQdrantClient, name: str, **request: Any) -> list[tuple[Any, float]]:
    found = client.query_points(name, limit=POINTS // 2, **request).points
    return sorted((point.id, point.score) for point in found)


# --- mutations ----------------------------------------------------------------------------------


def find_kinds(folder: Path) -> dict[str, list[str]]:
    """Return the store's files, relative to it, by kind: their paths without names and ids."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.stat().st_size == 0:
            continue
        path = file.relative_to(folder)
        names = [_without_names(part) for part in path.parts]
        kind = "/".join([name for name in names if name not in _FOLDERS][-3:])
        kinds[kind].append(str(path))
    return dict(kinds)


def _without_names(part: str) -> str:
    """Return a part of a path without what differs between vectors, fields and ids."""
    if _UUID.fullmatch(part):
        return "*"
    part = re.sub(r"-(dense|multi|sparse)$", "", part)
    part = re.sub(r"[0-9a-z]{24}-\w+-(map|null|numeric|bool|text)$", r"index of \1", part)
    return re.sub(r"^(open|closed)-\d+$", r"\1-N", part)


def mutate(file: Path, generator: random.Random) -> str:
    """Damage a file in one of eight ways, near its data if it is mostly holes; say how."""
    size = file.stat().st_size
    used = max(1, file.stat().st_blocks * 512)
    position = generator.randrange(min(size, used) if generator.random() < 0.8 else size)
    way = generator.randrange(8)
    with file.open("r+b") as handle:
        handle.seek(position)
        if way <= 1:
            old = handle.read(1)
            handle.seek(position)
            handle.write(bytes([old[0] ^ (1 << generator.randrange(8))]))
            return f"bit at {position}"
        if way == 2:
            handle.write(generator.randbytes(1))
            return f"byte at {position}"
        if way == 3:
            handle.write(generator.randbytes(min(size - position, generator.randrange(2, 64))))
            return f"bytes at {position}"
        if way == 4:
            handle.write(bytes(min(size - position, 4096)))
            return f"zeros at {position}"
        if way == 5:
            handle.truncate(position)
            return f"truncated to {position}"
        if way == 6:
            handle.seek(0, os.SEEK_END)
            handle.write(generator.randbytes(generator.randrange(1, 64)))
            return "bytes at the end"
    file.unlink()
    return "removed"


def copy_store(source: Path, target: Path) -> None:
    """Copy a store, reading nothing of its holes."""
    for file in source.rglob("*"):
        if file.is_file():
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            _copy_file(file, copy)


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        size = os.fstat(reading.fileno()).st_size
        position = 0
        while position < size:
            try:
                start = os.lseek(reading.fileno(), position, os.SEEK_DATA)
            except OSError:
                break  # a hole up to the end
            position = os.lseek(reading.fileno(), start, os.SEEK_HOLE)
            reading.seek(start)
            writing.seek(start)
            writing.write(reading.read(position - start))
        writing.truncate(size)


# --- trials -------------------------------------------------------------------------------------


@dataclass
class Trial:
    """One mutation, and the process that finds out what comes of it."""

    kind: str
    file: str
    seed: int
    folder: Path
    process: int = 0
    pipe: int = -1
    started: float = 0.0

    def start(self, template: Path, expected: Expected) -> None:
        """Damage a copy in a forked process, and ask it for everything."""

        def report() -> str:
            copy_store(template, self.folder)
            how = mutate(self.folder / self.file, random.Random(self.seed))
            return f"{_open_damaged(self.folder, self.file, expected(self.file))} ({how})"

        self.process, self.pipe = fork(report)
        self.started = time.monotonic()

    def finish(self) -> tuple[str, str]:
        """Return the outcome and what to say about it."""
        os.kill(self.process, signal.SIGKILL)
        text = _read_all(self.pipe)
        os.waitpid(self.process, 0)
        outcome, _, note = text.partition("\t")
        if outcome in OUTCOMES:
            return outcome, note
        if time.monotonic() - self.started > LONGEST:
            return "BAD", "it hangs"
        return self._ask_check()

    def _ask_check(self) -> tuple[str, str]:
        """The process ended; tell whether a check finds the damage."""

        def report() -> str:
            try:
                problems = [line for line in check_store(self.folder) if line.problems]
            except StoreError:
                return "error"
            return "damaged" if problems else "nothing"

        process, pipe = fork(report)
        answer = _read_all(pipe)
        os.waitpid(process, 0)
        if answer in ("error", "damaged"):
            return "died", ""
        return "BAD", f"the process ended, and check says {answer or 'nothing, it ended as well'}"


def _open_damaged(folder: Path, file: str, expected: str) -> str:
    try:
        answers = ask_everything(folder, file)
    except StoreError as error:
        return f"error\t{error}"
    except BaseException as error:
        return f"BAD\t{type(error).__name__}: {str(error)[:200]}"
    return "same\t" if answers == expected else "BAD\tother answers"


def fork(function: Callable[[], str]) -> tuple[int, int]:
    """Run a function in a forked process; return its id and the pipe that its result comes by."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 2)  # Rust reports its panics there
            os.write(writing, function().encode(errors="replace"))
        except BaseException:
            print(traceback.format_exc(), flush=True)
        finally:
            os._exit(0)
    os.close(writing)
    return process, reading


def _read_all(pipe: int) -> str:
    with os.fdopen(pipe, "rb") as reading:
        return reading.read().decode()


def run_trials(
    trials: Iterator[Trial], template: Path, expected: Expected, jobs: int
) -> Iterator[tuple[Trial, str, str]]:
    """Run the trials, some at a time; yield each with its outcome and a note."""
    selector = selectors.DefaultSelector()
    while True:
        while len(selector.get_map()) < jobs and (trial := next(trials, None)) is not None:
            expected(trial.file)  # asked before forking, so that it is remembered
            trial.start(template, expected)
            selector.register(trial.pipe, selectors.EVENT_READ, trial)
        if not selector.get_map():
            return
        ready = [key.data for key, _ in selector.select(timeout=1)]
        for key in list(selector.get_map().values()):
            trial = key.data
            if trial in ready or time.monotonic() - trial.started > LONGEST:
                selector.unregister(trial.pipe)
                outcome, note = trial.finish()
                shutil.rmtree(trial.folder, ignore_errors=True)
                yield trial, outcome, note


def main() -> None:
    """Run the trials and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=200, help="of each kind of file")
    parser.add_argument("--state", choices=["closed", "killed"], default="closed")
    parser.add_argument("--only", default="", help="kinds of files whose name contains this")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # 5 times as fast
    with tempfile.TemporaryDirectory(dir=in_memory) as temporary:
        bad = _run(Path(temporary), arguments)
    if bad and arguments.state == "closed":
        sys.exit(1)


def _run(folder: Path, arguments: argparse.Namespace) -> int:
    made, template = folder / "made", folder / "template"
    process, pipe = fork(lambda: make_store(made, arguments.state))
    _read_all(pipe)
    os.waitpid(process, 0)
    # In memory (tmpfs) the core's files have no holes until they are copied with them.
    shutil.copytree(made, template, copy_function=copy_with_holes)

    @cache
    def expected_of_shard(shard: str) -> str:
        intact = folder / f"intact-{shard}"
        copy_store(template, intact)
        process, pipe = fork(lambda: ask_everything(intact, f"shards/{shard}/" if shard else ""))
        answers = _read_all(pipe)
        os.waitpid(process, 0)
        assert answers, "the intact store cannot be read"
        return answers

    def expected(file: str) -> str:
        return expected_of_shard(file.split("/")[1] if file.startswith("shards/") else "")

    kinds = {kind: files for kind, files in find_kinds(template).items() if arguments.only in kind}

    serial = itertools.count()

    def trials() -> Iterator[Trial]:
        for kind, files in kinds.items():
            for number in range(arguments.mutations):
                seed = 10**6 * arguments.seed + number
                file = files[number % len(files)]
                yield Trial(kind, file, seed, folder / f"trial-{next(serial)}")

    table: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    notes: list[str] = []
    for trial, outcome, note in run_trials(trials(), template, expected, arguments.jobs):
        table[trial.kind][outcome] += 1
        if outcome == "BAD":
            notes.append(f"{trial.file} (seed {trial.seed}): {note}")
    _print_table(table)
    print(*notes[:40], sep="\n")
    return len(notes)


def _print_table(table: dict[str, Counter[str]]) -> None:
    width = max(map(len, table))
    print(f"{'file':<{width}}", *(f"{outcome:>6}" for outcome in OUTCOMES))
    for kind, counts in sorted(table.items()):
        print(f"{kind:<{width}}", *(f"{counts[outcome]:>6}" for outcome in OUTCOMES))
    totals = sum(table.values(), Counter())
    print(f"{'all':<{width}}", *(f"{totals[outcome]:>6}" for outcome in OUTCOMES))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
