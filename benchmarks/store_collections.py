"""The collections that `store_run` measures: writing them, and what writing took.

What lives here: the folders of collections, filling them batch by batch, optimizing a copy, and
adding nodes through LlamaIndex. What does not: querying them (`store_run`).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from llama_index.core.schema import MetadataMode

import machine
from open_store import NAME, OPEN
from points import Prepared, Recipe, make_structs
from report import Row, percentile
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client
from unified_embeddings.system.progress import progress_bar

LABELS = {"local": "local mode", "edge": "edge", "optimized": "edge after optimize"}
BATCH = 256
_COPY_BLOCK = 4096
_DISK_BLOCK = 512
"""Unit of `st_blocks` (POSIX, sys/stat.h)."""


class Collections:
    """Makes the collections of one recipe, unless an earlier run has.

    Args:
        recipe: How points are made.
        work: Folder for the collections.
    """

    def __init__(self, recipe: Recipe, work: Path) -> None:
        self._recipe = recipe
        self._work = work
        self._embedder = Prepared()

    def folder(self, name: str, size: int) -> Path:
        """Return the folder of a collection of this recipe and these versions."""
        library = "qdrant-client" if name == "local" else "qdrant-edge-py"
        version = "-".join(machine.versions([library]).values())
        return self._work / f"{name}-{self._recipe.data}-{size}-{self._recipe.digest}-{version}"

    def write(self, size: int, folders: dict[str, Path]) -> dict[str, Row]:
        """Write the collections that are missing, in turn, and return what writing took."""
        missing = {name: folder for name, folder in folders.items() if not folder.exists()}
        for name in folders.keys() - missing.keys():
            print(f"  {LABELS[name]}: the collection of an earlier run", flush=True)
        with ExitStack() as stack:
            unfinished = {name: _make_unfinished(stack, path) for name, path in missing.items()}
            seconds: dict[str, list[float]] = {}
            with ExitStack() as opened:
                clients: dict[str, Client] = {}
                for name, folder in unfinished.items():
                    client = OPEN[name](str(folder / "store"))
                    clients[name] = opened.enter_context(closing(client))
                if clients:
                    seconds = self.fill(clients, size)
            for name, folder in unfinished.items():
                _publish(folder, folders[name], {"write": rates_of(seconds[name], size)})
        rows = {}
        for name, folder in folders.items():
            earlier = name not in missing
            rows[name] = {**_read_record(folder), "earlier": earlier, "disk": _disk_usage(folder)}
        return rows

    def fill(self, clients: dict[str, Client], size: int) -> dict[str, list[float]]:
        """Write the points to all clients, batch by batch in turn.

        Returns:
            For each client the seconds of its batches; for the core also those of the final flush.
        """
        seconds: dict[str, list[float]] = {name: [] for name in clients}
        for client in clients.values():
            build_vector_store(self._embedder, NAME, client=client)
        title = " and ".join(LABELS[name] for name in clients)
        with progress_bar(f"  writing to {title}", size) as advance:
            for first, dense, sparse in self._recipe.blocks(size):
                for start in range(0, len(dense), BATCH):
                    rows = slice(start, start + BATCH)
                    nodes = self._recipe.nodes(first + start, dense[rows])
                    batch = make_structs(nodes, dense[rows], sparse[rows])
                    for name, client in clients.items():
                        seconds[name].append(timed(client.upsert, NAME, batch))
                    advance(len(batch))
        for name, client in clients.items():
            if isinstance(client, EdgeQdrantClient):
                seconds[name].append(timed(client.flush))
        return seconds

    def optimize(self, source: Path, target: Path) -> Row:
        """Optimize a copy of a collection and return what that took."""
        earlier = target.exists()
        if earlier:
            print(f"  {LABELS['optimized']}: the collection of an earlier run", flush=True)
        else:
            print("  optimizing", flush=True)
            with ExitStack() as stack:
                unfinished = _make_unfinished(stack, target)
                store = unfinished / "store"
                shutil.copytree(source / "store", store, copy_function=_copy_sparse)
                _publish(unfinished, target, _optimize_store(store))
        return {**_read_record(target), "earlier": earlier, "disk": _disk_usage(target)}

    def add_nodes(self, size: int) -> Row:
        """Measure points/s through LlamaIndex's QdrantVectorStore.add, all vectors being cached."""
        rates = []
        embedder = Prepared()
        with (
            tempfile.TemporaryDirectory(dir=self._work) as folder,
            EdgeQdrantClient(folder) as client,
            progress_bar("  adding through LlamaIndex", size) as advance,
        ):
            store = build_vector_store(embedder, NAME, client=client)
            for first, dense, sparse in self._recipe.blocks(size):
                for start in range(0, len(dense), BATCH):
                    rows = slice(start, start + BATCH)
                    nodes = self._recipe.nodes(first + start, dense[rows])
                    texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
                    vectors = zip(dense[rows], sparse[rows], strict=True)
                    embedder.known = dict(zip(texts, vectors, strict=True))
                    embedder.encode_documents(texts)
                    rates.append(len(nodes) / timed(store.add, nodes))
                    advance(len(nodes))
        return {"points": size, "points_per_second": summary(rates)}


def _optimize_store(folder: Path) -> Row:
    """Optimize the collection in a folder and return what that took."""
    with EdgeQdrantClient(folder) as client:
        started = time.perf_counter()
        changed = client.optimize(NAME)
        seconds = time.perf_counter() - started
        points = client.count(NAME).count
        indexed = client.get_collection(NAME).indexed_vectors_count or 0
    # Each point has one sparse vector, which is indexed too.
    return {
        "optimize_seconds": seconds,
        "changed": changed,
        "dense_indexed": max(0, indexed - points),
    }


def timed(function: Callable[..., object], *arguments: object, **options: object) -> float:
    started = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - started


def summary(values: list[float]) -> Row:
    """Return the median, the 10th and the 90th percentile, and the number of values."""
    percentiles = {f"p{percent}": percentile(values, percent) for percent in (10, 50, 90)}
    return {**percentiles, "number": len(values)}


def rates_of(seconds: list[float], size: int) -> Row:
    """Return points/s over all, and how it varies between full batches."""
    full_batches = [BATCH / batch_seconds for batch_seconds in seconds[: size // BATCH]]
    return {
        "seconds": sum(seconds),
        "points_per_second": size / sum(seconds),
        "batches": summary(full_batches) if full_batches else None,
    }


def _make_unfinished(stack: ExitStack, folder: Path) -> Path:
    """Make the folder in which another one is prepared.

    It is removed with the stack unless it was published; one that a killed run left behind is
    removed at once.
    """
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    stack.callback(shutil.rmtree, unfinished, ignore_errors=True)
    unfinished.mkdir()
    return unfinished


def _publish(unfinished: Path, folder: Path, record: Row) -> None:
    """Give a complete collection its name, with a record of what making it took."""
    (unfinished / "made.json").write_text(json.dumps(record), "utf-8")
    unfinished.replace(folder)


def _read_record(folder: Path) -> Row:
    """Return the record that was published with a collection."""
    record: Row = json.loads((folder / "made.json").read_text("utf-8"))
    return record


def _copy_sparse(source: str, target: str) -> None:
    """Copy a file and leave holes where it is zero.

    The files of Qdrant's core are mostly preallocated space that was never written.
    """
    with Path(source).open("rb") as old, Path(target).open("wb") as new:
        while block := old.read(_COPY_BLOCK):
            if block.count(0) == len(block):
                new.seek(len(block), os.SEEK_CUR)
            else:
                new.write(block)
        new.truncate(new.tell())


def _disk_usage(folder: Path) -> dict[str, int]:
    """Return the bytes of a collection's files: their length, and what the disk holds of them."""
    length = held = 0
    for path in (folder / "store").rglob("*"):
        if path.is_file():
            status = path.stat()
            length += status.st_size
            # Windows does not tell: the length, in whole blocks.
            blocks = getattr(status, "st_blocks", -(-status.st_size // _DISK_BLOCK))
            held += blocks * _DISK_BLOCK
    return {"length": length, "held": held}
