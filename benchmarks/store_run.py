"""Measuring for `stores`: collections are written, opened anew, asked, optimized and asked again.

What lives here: what is measured, and how it is made fair: batches, processes and questions in
turn. What does not: the points (`points`), what a new process does (`open_store`), the command line
and how results are shown (`stores`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llama_index.core.schema import MetadataMode
from qdrant_client import QdrantClient, models

import machine
from open_store import CANDIDATES, LIMIT, NAME, OPEN, hybrid
from points import DIMENSION, Prepared, Question, Recipe, structs
from report import percentile, spread
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.schema import DENSE_VECTOR
from unified_embeddings.system.progress import progress_bar

LABELS = {"local": "local mode", "edge": "edge", "optimized": "edge after optimize"}
_BATCH = 256
_WARM = 3
"""Questions asked before those that count."""
_CHILD_QUERIES = 20
_UNCOUNTED_STARTS = 1
_LLAMA = 2_000
_TIED = 1e-6
_BLOCK = 4096
_SCRIPT = Path(__file__).with_name("open_store.py")


@dataclass
class Store:
    """One that is open, with its whole retriever."""

    client: Any
    retriever: UnifiedHybridRetriever


class Run:
    """One run over all sizes.

    Args:
        given: The command line.
        recipe: How points are made.
        work: Where collections are written.
    """

    def __init__(self, given: argparse.Namespace, recipe: Recipe, work: Path) -> None:
        self.given, self.recipe, self.work = given, recipe, work
        self.embedder = Prepared()
        self.questions = recipe.questions(given.queries + _WARM)
        self.embedder.known = {one.text: (one.dense, one.sparse) for one in self.questions}
        # So that the cache knows them all, and no call below has anything to compute.
        self.embedder.encode_queries([one.text for one in self.questions])

    def measure(self) -> Iterator[dict[str, Any]]:
        """The results so far, after each size."""
        given = self.given
        results: dict[str, Any] = {
            "data": given.data,
            "dimension": DIMENSION,
            "queries": given.queries,
            "limit": LIMIT,
            "candidates": CANDIDATES,
            "batch": _BATCH,
            "starts": given.starts,
            "llama_index": None,
            "sizes": {},
        }
        results["llama_index"] = self._add_nodes(min(_LLAMA, given.sizes[-1]))
        for size in given.sizes:
            print(f"{size:,} points", flush=True)
            results["sizes"][str(size)] = self._size(size)
            yield results

    def _size(self, size: int) -> dict[str, Any]:
        """All figures of one size."""
        given = self.given
        in_folders = ["edge"]
        if size <= given.local_up_to:
            in_folders.insert(0, "local")
        folders = {name: self._folder(name, size) for name in (*in_folders, "optimized")}
        rows = {
            name: {"label": LABELS[name], "in": "folder", **row}
            for name, row in self._collections(size, {n: folders[n] for n in in_folders}).items()
        }
        if given.optimize:
            row = self._optimized(folders["edge"], folders["optimized"])
            rows["optimized"] = {"label": LABELS["optimized"], "in": "folder", **row}
        self._reopen(rows, folders)
        with ExitStack() as stack:
            stores = {name: self._open(stack, name, str(folders[name] / "store")) for name in rows}
            if given.local_up_to < size <= given.in_memory_up_to:
                client = stack.enter_context(_closing(QdrantClient(":memory:")))
                seconds = self._fill({"local": client}, size)["local"]
                rows["local"] = {
                    "label": LABELS["local"], "in": "memory", "write": _rates(seconds, size),
                }  # fmt: skip
                stores["local"] = self._store(client)
            ratios = self._ask(rows, stores)
            for name in ratios:
                rows[name]["recall"] = self._recall(name, stores[name].client)
        if given.work is None:
            for folder in folders.values():  # so that a small disk will do
                shutil.rmtree(folder, ignore_errors=True)
        return {"rows": rows, "times_local": ratios}

    # --- collections ------------------------------------------------------------------------------

    def _folder(self, name: str, size: int) -> Path:
        """Where a collection of this recipe and these versions is."""
        found = machine.versions(["qdrant-client" if name == "local" else "qdrant-edge-py"])
        version = "-".join(found.values())
        return self.work / f"{name}-{self.recipe.data}-{size}-{self.recipe.digest}-{version}"

    def _collections(self, size: int, folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
        """Write those that are not there, in turn, batch by batch; what writing took."""
        missing = {name: folder for name, folder in folders.items() if not folder.exists()}
        for name in folders.keys() - missing.keys():
            print(f"  {LABELS[name]}: the collection of an earlier run", flush=True)
        with ExitStack() as stack:
            parts = {name: _part(stack, folder) for name, folder in missing.items()}
            with ExitStack() as opened:
                clients = {
                    name: opened.enter_context(_closing(OPEN[name](str(part / "store"))))
                    for name, part in parts.items()
                }
                seconds = self._fill(clients, size) if clients else {}
            for name, part in parts.items():
                _finish(part, folders[name], {"write": _rates(seconds[name], size)})
        return {
            name: {**_record(folder), "earlier": name not in missing, "disk": _disk(folder)}
            for name, folder in folders.items()
        }

    def _fill(self, clients: dict[str, Any], size: int) -> dict[str, list[float]]:
        """Seconds of each batch, then of what brings all to the disk; the batches in turn."""
        seconds: dict[str, list[float]] = {name: [] for name in clients}
        for client in clients.values():
            build_vector_store(self.embedder, NAME, client=client)
        title = " and ".join(LABELS[name] for name in clients)
        with progress_bar(f"  writing to {title}", size) as advance:
            for first, dense, sparse in self.recipe.blocks(size):
                for at in range(0, len(dense), _BATCH):
                    rows = slice(at, at + _BATCH)
                    nodes = self.recipe.nodes(first + at, dense[rows])
                    batch = structs(nodes, dense[rows], sparse[rows])
                    for name, client in clients.items():
                        seconds[name].append(_timed(client.upsert, NAME, batch))
                    advance(len(batch))
        for name, client in clients.items():
            if isinstance(client, EdgeQdrantClient):
                seconds[name].append(_timed(client.flush))
        return seconds

    def _optimized(self, source: Path, target: Path) -> dict[str, Any]:
        """A copy of a collection, indexed; how long that took and whether there was an index."""
        earlier = target.exists()
        if earlier:
            print(f"  {LABELS['optimized']}: the collection of an earlier run", flush=True)
        else:
            print("  optimizing", flush=True)
            with ExitStack() as stack:
                part = _part(stack, target)
                shutil.copytree(source / "store", part / "store", copy_function=_copied)
                with EdgeQdrantClient(part / "store") as client:
                    started = time.perf_counter()
                    changed = client.optimize(NAME)
                    taken = time.perf_counter() - started
                    before = client.count(NAME).count  # each has one sparse vector, indexed as well
                    indexed = client.get_collection(NAME).indexed_vectors_count or 0
                _finish(
                    part,
                    target,
                    {
                        "optimize_seconds": taken,
                        "changed": changed,
                        "dense_indexed": max(0, indexed - before),
                    },
                )
        return {**_record(target), "earlier": earlier, "disk": _disk(target)}

    def _add_nodes(self, size: int) -> dict[str, Any]:
        """Points a second through LlamaIndex's QdrantVectorStore.add, all vectors known before."""
        rates = []
        embedder = Prepared()
        with (
            tempfile.TemporaryDirectory(dir=self.work) as folder,
            EdgeQdrantClient(folder) as client,
            progress_bar("  adding through LlamaIndex", size) as advance,
        ):
            store = build_vector_store(embedder, NAME, client=client)
            for first, dense, sparse in self.recipe.blocks(size):
                for at in range(0, len(dense), _BATCH):
                    rows = slice(at, at + _BATCH)
                    nodes = self.recipe.nodes(first + at, dense[rows])
                    texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
                    pairs = zip(dense[rows], sparse[rows], strict=True)
                    embedder.known = dict(zip(texts, pairs, strict=True))
                    embedder.encode_documents(texts)
                    rates.append(len(nodes) / _timed(store.add, nodes))
                    advance(len(nodes))
        return {"points": size, "points_per_second": _summary(rates)}

    # --- figures ----------------------------------------------------------------------------------

    def _reopen(self, rows: dict[str, dict[str, Any]], folders: dict[str, Path]) -> None:
        """New processes of each store, in turn: seconds to the first answer, and memory."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in rows}
        queries = [
            [one.dense.tolist(), one.sparse.indices.tolist(), one.sparse.values.tolist()]
            for one in self.questions[:_CHILD_QUERIES]
        ]
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            file = Path(folder) / "queries.json"
            file.write_text(json.dumps(queries), "utf-8")
            starts = self.given.starts + _UNCOUNTED_STARTS
            with progress_bar("  new processes", starts * len(rows)) as advance:
                for _ in range(starts):
                    for name, answers in found.items():
                        answers.append(_child(name, folders[name] / "store", file))
                        advance(1)
        for name, answers in found.items():
            counted = answers[_UNCOUNTED_STARTS:]
            rows[name]["reopen_seconds"] = {
                stage: spread([one["seconds"][stage] for one in counted])
                for stage in counted[0]["seconds"]
            } | {"all": spread([sum(one["seconds"].values()) for one in counted])}
            rows[name]["count"] = counted[0]["count"]
            rows[name]["memory"] = {when: counted[-1][when] for when in ("before", "after")}

    def _open(self, stack: ExitStack, name: str, folder: str) -> Store:
        return self._store(stack.enter_context(_closing(OPEN[name](folder))))

    def _store(self, client: Any) -> Store:
        store = build_vector_store(self.embedder, NAME, client=client)
        return Store(client, UnifiedHybridRetriever(store, self.embedder, similarity_top_k=LIMIT))

    def _ask(self, rows: dict[str, dict[str, Any]], stores: dict[str, Store]) -> dict[str, Any]:
        """Ask all stores the same, in turn; how often each is faster than local mode."""
        ratios: dict[str, Any] = {name: {} for name in stores if name != "local"}
        kinds: dict[str, Callable[[Store, Question], float]] = {
            "query_ms": _query,
            "retriever_ms": lambda store, one: _timed(store.retriever.retrieve, one.text),
        }
        # Local mode takes seconds where the others take milliseconds: it gets every n-th.
        every = max(1, len(self.questions) // self.given.local_queries)
        with progress_bar("  asking", len(kinds) * len(self.questions)) as advance:
            for kind, ask in kinds.items():
                times: dict[str, dict[int, float]] = {name: {} for name in stores}
                for turn, question in enumerate(self.questions):
                    names = list(stores)
                    # By chance: who comes after local mode finds the processor's cache emptied.
                    random.Random(turn).shuffle(names)
                    for name in names:
                        if name != "local" or turn < _WARM or (turn - _WARM) % every == 0:
                            times[name][turn] = 1000 * ask(stores[name], question)
                    advance(1)
                for name, taken in times.items():
                    counted = [value for turn, value in taken.items() if turn >= _WARM]
                    rows[name][kind] = _summary(counted)
                for name, found in ratios.items() if "local" in times else ():
                    both = [turn for turn in times["local"] if turn >= _WARM]
                    pairs = [times["local"][turn] / times[name][turn] for turn in both]
                    found[kind.removesuffix("_ms")] = _summary(pairs)
        return ratios

    def _recall(self, name: str, client: Any) -> dict[str, float]:
        """Shares of the exact ten that are among the ten found, over all questions."""
        hits: dict[str, list[float]] = {"dense": [], "fused": []}
        counted = self.questions[_WARM:]
        with progress_bar(f"  recall, {LABELS[name]}", len(counted)) as advance:
            for one in counted:
                for kind, request in (("dense", _dense_request), ("fused", _fused_request)):
                    found = client.query_points(**request(one, exact=False, limit=LIMIT)).points
                    exact = request(one, exact=True, limit=2 * CANDIDATES)
                    hits[kind].append(recall(found, client.query_points(**exact).points))
                advance(1)
        return {kind: sum(shares) / len(shares) for kind, shares in hits.items()}


def recall(found: list[Any], exact: list[Any]) -> float:
    """The share of the exact best that was found.

    Fused scores are often equal, and which of two such points comes first is chance: one that
    scores as much as the last of the best counts as one of them.

    Args:
        found: The points found, with ids.
        exact: All candidates, best first, with ids and scores; more than are looked for.
    """
    wanted = min(LIMIT, len(exact))
    least = exact[wanted - 1].score - _TIED
    good = {point.id for point in exact if point.score >= least}
    return min(wanted, len(good & {point.id for point in found})) / wanted


def _query(store: Store, one: Question) -> float:
    # Made beforehand: what a caller has are lists, not ours to time.
    request = _fused_request(one, exact=False, limit=LIMIT)
    return _timed(store.client.query_points, **request)


def _fused_request(one: Question, *, exact: bool, limit: int) -> dict[str, Any]:
    sparse = models.SparseVector(**cast("dict[str, Any]", one.sparse.to_qdrant()))
    return hybrid(one.dense.tolist(), sparse, exact=exact, limit=limit)


def _dense_request(one: Question, *, exact: bool, limit: int) -> dict[str, Any]:
    return {
        "collection_name": NAME,
        "query": one.dense.tolist(),
        "using": DENSE_VECTOR,
        "limit": limit,
        "search_params": models.SearchParams(exact=True) if exact else None,
    }


def _child(name: str, folder: Path, queries: Path) -> dict[str, Any]:
    """What a new process says of a store."""
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), name, str(folder), str(queries)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _timed(call: Callable[..., Any], *given: Any, **named: Any) -> float:
    started = time.perf_counter()
    call(*given, **named)
    return time.perf_counter() - started


def _summary(values: list[float]) -> dict[str, float]:
    """The middle and what four of five values lie between."""
    return {
        **{f"p{percent}": percentile(values, percent) for percent in (10, 50, 90)},
        "number": len(values),
    }


def _rates(seconds: list[float], size: int) -> dict[str, Any]:
    """Points a second over all, and how it differs between whole batches."""
    whole = [_BATCH / one for one in seconds[: size // _BATCH]]
    return {
        "seconds": sum(seconds),
        "points_per_second": size / sum(seconds),
        "batches": _summary(whole) if whole else None,
    }


@contextmanager
def _closing(client: Any) -> Iterator[Any]:
    try:
        yield client
    finally:
        client.close()


def _part(stack: ExitStack, folder: Path) -> Path:
    """A folder to make another in, gone with the stack; a killed run's is gone at once."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    stack.callback(shutil.rmtree, part, ignore_errors=True)
    part.mkdir()
    return part


def _finish(part: Path, folder: Path, record: dict[str, Any]) -> None:
    """Give a whole collection, with what making it took, its name."""
    (part / "made.json").write_text(json.dumps(record), "utf-8")
    part.replace(folder)


def _copied(source: str, target: str) -> None:
    """Copy a file and leave out what is zero: the core's are mostly room to grow, never written."""
    with Path(source).open("rb") as old, Path(target).open("wb") as new:
        while block := old.read(_BLOCK):
            if block.count(0) == len(block):
                new.seek(len(block), os.SEEK_CUR)
            else:
                new.write(block)
        new.truncate(new.tell())


def _record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "made.json").read_text("utf-8"))
    return found


def _disk(folder: Path) -> dict[str, int]:
    """Bytes of a collection's files: as long as they say they are, and as the disk holds them."""
    found = [file.stat() for file in (folder / "store").rglob("*") if file.is_file()]
    return {
        "length": sum(one.st_size for one in found),
        "held": sum(512 * getattr(one, "st_blocks", -(-one.st_size // 512)) for one in found),
    }
