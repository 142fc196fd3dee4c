"""Damage an embedded store in random places and tell what a program that opens it is told.

    python tools/damage_store.py                        # 200 mutations of each kind of file
    python tools/damage_store.py --mutations 5 --state killed

A store with every kind of file is made: dense, sparse and multi-vectors, quantised and indexed,
and payload indexes of each type. Each trial changes one file of a copy (a bit, a byte, a run of
bytes, a block of zeros, a shorter or a longer file, none), opens the copy in a process that may
come to grief, and asks for everything. The store was closed, or its process was killed while it
had written more; a killed one has no checksums.

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
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
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
        kinds["/".join(names[-2:])].append(str(path))
    return dict(kinds)


def _without_names(part: str) -> str:
    """Return a part of a path without what differs between vectors, fields and ids."""
    if _UUID.fullmatch(part):
        return "*"
    part = re.sub(r"-(dense|multi|sparse)$", "", part)
    part = re.sub(r"[0-9a-z]{24}-\w+-(map|null|numeric|bool|text)$", "index", part)
    return re.sub(r"^(open|closed)-\d+$", r"\1-N", part)


def mutate(file: Path, generator: random.Random) -> str:
    """Damage a file, near its data if it is mostly holes; say how. Its content changes always."""
    size = file.stat().st_size
    used = max(1, file.stat().st_blocks * 512)
    position = generator.randrange(min(size, used) if generator.random() < 0.8 else size)
    way = generator.choice(["bit", "bit", "byte", "bytes", "zeros", "cut", "longer", "removed"])
    if way == "removed":
        file.unlink()
        return way
    with file.open("r+b") as handle:
        if way == "cut":
            handle.truncate(position)
        elif way == "longer":
            handle.seek(0, os.SEEK_END)
            handle.write(generator.randbytes(generator.randrange(1, 64)))
        else:
            handle.seek(position)
            lengths = {"bit": 1, "byte": 1, "bytes": generator.randrange(2, 64), "zeros": 4096}
            old = handle.read(lengths[way])
            new = bytes(len(old)) if way == "zeros" else generator.randbytes(len(old))
            if way == "bit" or new == old:
                new = bytes([old[0] ^ (1 << generator.randrange(8))]) + old[1:]
            handle.seek(position)
            handle.write(new)
    return f"{way} at {position}"


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


@dataclass(frozen=True)
class Mutation:
    """A file to damage, relative to the store, and how."""

    file: str
    seed: int


@dataclass
class Trials:
    """Mutations of files in a copy of the store, one after the other.

    Attributes:
        template: The intact store.
        folder: Where the copy is made.
        expected: What asking a file's collection gives if nothing is damaged.
    """

    template: Path
    folder: Path
    expected: Expected

    def run(self, mutations: list[Mutation]) -> Iterator[tuple[Mutation, str, str]]:
        """Yield each mutation with its outcome and a note.

        They are made in a forked process. If it ends, a new one goes on with the next.
        """
        remaining = list(mutations)
        while remaining:
            process, pipe = fork(partial(self._report, remaining))
            for line in _lines(pipe):
                outcome, _, note = line.partition("\t")
                yield remaining.pop(0), outcome, note
            hangs = _outlives(process)
            if remaining:
                outcome, note = ("BAD", "it hangs") if hangs else self._ask_check()
                yield remaining.pop(0), outcome, note
            shutil.rmtree(self.folder, ignore_errors=True)

    def _report(self, mutations: list[Mutation], send: Callable[[str], None]) -> None:
        for mutation in mutations:
            file = self.folder / mutation.file
            if not self.folder.exists():
                copy_store(self.template, self.folder)
            how = mutate(file, random.Random(mutation.seed))
            outcome = _open_damaged(self.folder, mutation.file, self.expected(mutation.file))
            if outcome.startswith("error") and any(self.folder.rglob("checksums.json")):
                # Found before anything was loaded: all but this file is as it was.
                _copy_file(self.template / mutation.file, file)
            else:
                shutil.rmtree(self.folder)
            send(f"{outcome} ({how})".replace("\n", " "))

    def _ask_check(self) -> tuple[str, str]:
        """The process ended; tell whether a check finds the damage."""

        def report(send: Callable[[str], None]) -> None:
            try:
                problems = [line for line in check_store(self.folder) if line.problems]
                send("damaged" if problems else "nothing")
            except StoreError:
                send("error")

        process, pipe = fork(report)
        answer = "".join(_lines(pipe))
        _outlives(process)
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


def fork(function: Callable[[Callable[[str], None]], None]) -> tuple[int, int]:
    """Run a function in a forked process; return its id and the pipe of the lines that it sends."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading)
            os.dup2(os.open(os.devnull, os.O_RDWR), 2)  # Rust reports its panics there
            with os.fdopen(writing, "w", buffering=1) as lines:
                function(lambda line: print(line, file=lines))
        except BaseException:
            print(traceback.format_exc(), flush=True)
        finally:
            os._exit(0)
    os.close(writing)
    return process, reading


def _lines(pipe: int) -> Iterator[str]:
    """Yield the lines from a pipe until it is closed, or none comes for too long."""
    buffer = b""
    with os.fdopen(pipe, "rb", buffering=0) as reading:
        while select.select([reading], [], [], LONGEST)[0]:
            received = reading.read(2**16)
            if not received:
                return
            *lines, buffer = (buffer + received).split(b"\n")
            yield from (line.decode() for line in lines)


def _outlives(process: int) -> bool:
    """Tell whether a process had to be killed now; it has ended afterwards."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(process, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
                continue
        return False
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return True


def ask(function: Callable[[], str]) -> str:
    """Return a function's result from a forked process."""
    process, pipe = fork(lambda send: send(function()))
    answer = "".join(_lines(pipe))
    _outlives(process)
    return answer


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
    """Make the store, run the trials in several processes, print what came of them."""
    made, template = folder / "made", folder / "template"
    ask(lambda: make_store(made, arguments.state))
    # In memory (tmpfs) the core's files have no holes until they are copied with them.
    shutil.copytree(made, template, copy_function=copy_with_holes)
    expected = _remembered_answers(template, folder)
    kinds = {kind: files for kind, files in find_kinds(template).items() if arguments.only in kind}
    for files in kinds.values():
        for file in files:
            expected(file)  # asked before forking, so that it is remembered

    def work(job: int, send: Callable[[str], None]) -> None:
        trials = Trials(template, folder / f"copy-{job}", expected)
        for kind, files in list(kinds.items())[job :: arguments.jobs]:
            mutations = [
                Mutation(files[number % len(files)], seed=10**6 * arguments.seed + number)
                for number in range(arguments.mutations)
            ]
            counts: Counter[str] = Counter()
            bad = []
            for mutation, outcome, note in trials.run(mutations):
                counts[outcome] += 1
                if outcome == "BAD":
                    bad.append(f"{mutation.file} (seed {mutation.seed}): {note}")
            send(json.dumps([kind, counts, bad]))

    table: dict[str, Counter[str]] = {}
    notes: list[str] = []
    workers = [fork(partial(work, job)) for job in range(arguments.jobs)]
    for process, pipe in workers:
        with os.fdopen(pipe, "r") as lines:
            for line in lines:
                kind, counts, bad = json.loads(line)
                table[kind] = Counter(counts)
                notes += bad
        os.waitpid(process, 0)
    _print_table(table)
    print(*notes[:40], sep="\n")
    return len(notes)


def _remembered_answers(template: Path, folder: Path) -> Expected:
    @cache
    def answers_of_shard(shard: str) -> str:
        intact = folder / f"intact-{shard}"
        copy_store(template, intact)
        answers = ask(lambda: ask_everything(intact, f"shards/{shard}/" if shard else ""))
        assert answers, "the intact store cannot be read"
        return answers

    return lambda file: answers_of_shard(file.split("/")[1] if file.startswith("shards/") else "")


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
