"""A new process that opens a store of `stores.py` and asks it, timed and weighed from within.

    python benchmarks/open_store.py KIND FOLDER QUERIES

KIND is one of `OPEN`; QUERIES a JSON file, a list of [dense, indices, values]. Prints JSON.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models

from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR
from unified_embeddings.system import memory

NAME = "points"
LIMIT, CANDIDATES = 10, 20
OPEN: dict[str, Callable[[str], Any]] = {
    "local": lambda folder: QdrantClient(path=folder),
    "edge": EdgeQdrantClient,
    "optimized": EdgeQdrantClient,
}
_ROLLUP, _MAPS = Path("/proc/self/smaps_rollup"), Path("/proc/self/maps")


def hybrid(
    dense: list[float], sparse: models.SparseVector, *, exact: bool = False, limit: int = LIMIT
) -> dict[str, Any]:
    """What `query_points` is asked: 20 by each vector, fused as the retriever has them fused."""
    params = models.SearchParams(exact=True) if exact else None
    prefetch = [
        models.Prefetch(query=vector, using=name, limit=CANDIDATES, params=params)
        for vector, name in ((dense, DENSE_VECTOR), (sparse, SPARSE_VECTOR))
    ]
    return {
        "collection_name": NAME,
        "prefetch": prefetch,
        "query": models.RrfQuery(rrf=models.Rrf(k=61)),
        "limit": limit,
        "with_payload": True,
    }


def _measure(kind: str, folder: Path, queries: list[Any]) -> dict[str, Any]:
    asked = [
        hybrid(dense, models.SparseVector(indices=indices, values=values))
        for dense, indices, values in queries
    ]
    before = _memory(folder)
    started = time.perf_counter()
    client = OPEN[kind](str(folder))
    opened = time.perf_counter()
    count = client.count(NAME).count
    counted = time.perf_counter()
    client.query_points(**asked[0])
    answered = time.perf_counter()
    for one in asked[1:]:
        client.query_points(**one)
    after = _memory(folder)
    client.close()
    return {
        "count": count,
        "seconds": {
            "open": opened - started,
            "count": counted - opened,
            "first query": answered - counted,
        },
        "before": before,
        "after": after,
    }


def _memory(folder: Path) -> dict[str, int | None]:
    """Bytes of this process in physical memory, and what of them are the collection's files.

    Those the system may drop whenever it needs the room: they can be read again.
    """
    found = dict.fromkeys(("Pss", "Anonymous"))
    if _ROLLUP.exists():
        lines = dict(re.findall(r"^(\w+): +(\d+) kB$", _ROLLUP.read_text("ascii"), re.MULTILINE))
        found = {name: int(lines[name]) * 1024 for name in found}
    mapped = _MAPS.read_text("utf-8", "surrogateescape") if _MAPS.exists() else ""
    spans = [
        span
        for file in folder.resolve().rglob("*")
        if str(file) in mapped  # each look at the spans is a long one
        for span in memory.mapped_spans(file)
    ]
    return {
        "resident": memory.process_bytes(),
        "proportional": found["Pss"],
        "anonymous": found["Anonymous"],
        "files": memory.resident_bytes((start, end - start) for start, end in spans),
    }


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[3]).read_text("utf-8"))
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]), asked)))
