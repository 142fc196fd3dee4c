"""A new process that opens a store of `stores.py` and queries it, measured from within.

    python benchmarks/open_store.py KIND FOLDER QUERIES

KIND is one of `OPEN`; QUERIES is a JSON file, a list of [dense, indices, values]. Prints JSON.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR
from unified_embeddings.system import memory

NAME = "points"
LIMIT, CANDIDATES = 10, 20
_RRF_K = 61
"""Qdrant counts ranks from 0, so its 61 is the k = 60 of the formula (docs/adr/0004)."""


def _open_local(folder: str) -> QdrantClient:
    return QdrantClient(path=folder)


OPEN: dict[str, Callable[[str], Client]] = {
    "local": _open_local,
    "edge": EdgeQdrantClient,
    "optimized": EdgeQdrantClient,
}
_ROLLUP, _MAPS = Path("/proc/self/smaps_rollup"), Path("/proc/self/maps")


def fused_request(
    dense: list[float], sparse: qm.SparseVector, *, exact: bool = False, limit: int = LIMIT
) -> dict[str, Any]:
    """Return the arguments of a hybrid `query_points`: 20 by each vector, fused with RRF."""
    params = qm.SearchParams(exact=True) if exact else None
    prefetch = [
        qm.Prefetch(query=vector, using=name, limit=CANDIDATES, params=params)
        for vector, name in ((dense, DENSE_VECTOR), (sparse, SPARSE_VECTOR))
    ]
    return {
        "collection_name": NAME,
        "prefetch": prefetch,
        "query": qm.RrfQuery(rrf=qm.Rrf(k=_RRF_K)),
        "limit": limit,
        "with_payload": True,
    }


def _measure(kind: str, folder: Path, queries: list[Any]) -> dict[str, Any]:
    """Open a store, count its points and query it; return seconds and memory."""
    requests = [
        fused_request(dense, qm.SparseVector(indices=indices, values=values))
        for dense, indices, values in queries
    ]
    before = _memory(folder)
    started = time.perf_counter()
    client = OPEN[kind](str(folder))
    opened = time.perf_counter()
    count = client.count(NAME).count
    counted = time.perf_counter()
    client.query_points(**requests[0])
    answered = time.perf_counter()
    for request in requests[1:]:
        client.query_points(**request)
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
    """Return the bytes of this process that are resident, and how many of them are mapped files.

    The system may drop the pages of the collection's files whenever it needs memory, since they can
    be read again.
    """
    proportional = anonymous = None
    if _ROLLUP.exists():
        lines = dict(re.findall(r"^(\w+): +(\d+) kB$", _ROLLUP.read_text("ascii"), re.MULTILINE))
        proportional = int(lines["Pss"]) * 1024
        anonymous = int(lines["Anonymous"]) * 1024
    mapped = _MAPS.read_text("utf-8", "surrogateescape") if _MAPS.exists() else ""
    spans: list[tuple[int, int]] = []
    for file in folder.resolve().rglob("*"):
        if str(file) in mapped:  # cheap, where reading the spans of every file is slow
            spans += memory.mapped_spans(file)
    return {
        "resident": memory.process_bytes(),
        "proportional": proportional,
        "anonymous": anonymous,
        "files": memory.resident_bytes((start, end - start) for start, end in spans),
    }


if __name__ == "__main__":
    queries_given = json.loads(Path(sys.argv[3]).read_text("utf-8"))
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]), queries_given)))
