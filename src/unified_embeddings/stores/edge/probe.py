"""Reading all of a shard, which a process of its own does (see `shard` and `checking`).

What lives here: what that process imports. It starts in a fraction of a second because this module
imports Qdrant's core and nothing else. If a damaged file ends the process or keeps it busy for
ever, the process that waits for it can tell, and lives.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import qdrant_edge as core

_PAGE = 256
_PAGE_OF_MULTI_VECTORS = 8
"""Points read at once. A multi-vector of a long text takes 32 MiB (8,192 rows of 1,024)."""
_PROBLEMS_SHOWN = 20


@dataclass
class ReadReport:
    """What reading a shard showed.

    Attributes:
        points: How many points were read.
        problems: What is wrong with them, one line each; the first few.
    """

    points: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        """Add a problem, unless there are many already."""
        if len(self.problems) < _PROBLEMS_SHOWN:
            self.problems.append(problem)


def read_shard(folder: str) -> ReadReport:
    """Load a shard, read every point with its vectors and payload, flush it and close it.

    Loading applies what a crash has left in the log.

    Raises:
        Exception: If the core fails; it has no exception classes of its own.
    """
    shard = core.EdgeShard.load(folder)
    config = json.loads(Path(folder, "edge_config.json").read_text("utf-8"))
    report = ReadReport()
    seen_ids = set()
    has_multi_vectors = any(
        params.get("multivector_config") for params in config["vectors"].values()
    )
    page_size = _PAGE_OF_MULTI_VECTORS if has_multi_vectors else _PAGE
    for point in _points(shard, page_size):
        if point.id in seen_ids:
            report.add(f"point {point.id} is there twice")
        seen_ids.add(point.id)
        for problem in _find_problems(point, config):
            report.add(f"point {point.id}: {problem}")
    report.points = len(seen_ids)
    counted = shard.count(core.CountRequest(exact=True))
    if counted != report.points:
        report.add(f"{counted} points are counted and {report.points} can be read")
    _use_indexes(shard, config)
    shard.flush()
    shard.close()
    return report


def _points(shard: Any, page_size: int) -> Iterator[Any]:
    offset = None
    while True:
        request = core.ScrollRequest(
            offset=offset, limit=page_size, with_payload=True, with_vector=True
        )
        points, offset = shard.scroll(request)
        yield from points
        if offset is None:
            return


def _find_problems(point: Any, config: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a point's vectors."""
    vectors = point.vector
    if not isinstance(vectors, dict):
        vectors = {} if vectors is None else {"": vectors}
    for name, vector in vectors.items():
        if name in config["sparse_vectors"]:
            if len(vector.indices) != len(vector.values):
                yield f"sparse vector {name!r} has indices without values"
            rows = [vector.values]
            size = len(vector.values)
        elif name in config["vectors"]:
            rows = vector if vector and isinstance(vector[0], list) else [vector]
            size = config["vectors"][name]["size"]
        else:
            yield f"vector {name!r} is not one of the collection's"
            continue
        if any(len(row) != size for row in rows):
            yield f"vector {name!r} has another dimension than {size}"
        if not all(math.isfinite(sum(row)) for row in rows):
            yield f"vector {name!r} contains NaN or infinity"


def _use_indexes(shard: Any, config: dict[str, Any]) -> None:
    """Search each vector and filter by each indexed field once, so that all indexes are read."""
    for name, params in config["vectors"].items():
        vector: Any = [1.0] * params["size"]
        if params.get("multivector_config"):
            vector = [vector]
        _search(shard, name, vector)
    for name in config["sparse_vectors"]:
        _search(shard, name, core.SparseVector([0], [1.0]))
    for path in shard.info().payload_schema:
        condition = core.Filter(must_not=[core.IsEmptyCondition(path)])
        shard.count(core.CountRequest(exact=True, filter=condition))


def _search(shard: Any, name: str, vector: Any) -> None:
    query = core.Query.Nearest(vector, using=name or None)
    shard.query(core.QueryRequest(limit=1, query=query))
