"""The results of the GPU's benchmark in Markdown, and how exact an engine is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpu_peers import Vectors
from gpu_stages import STAGES
from report import number, paragraphs, ranged, reasons, table

Results = dict[str, Any]


def exactness(parts: Sequence[Vectors], reference: Vectors) -> dict[str, float]:
    """Return the smallest and the mean cosine to the reference, dense and, if given, sparse.

    Args:
        parts: What an engine gave in one or several calls.
        reference: What is right, for all of them together.
    """
    dense = np.concatenate([part.dense for part in parts])
    products = np.sum(_unit(dense) * _unit(reference.dense), axis=1)
    results = {"dense_min": float(products.min()), "dense_mean": float(products.mean())}
    sparse = [weights for part in parts for weights in part.sparse or ()]
    if sparse and reference.sparse is not None:
        cosines = []
        for weights, expected in zip(sparse, reference.sparse, strict=True):
            cosines.append(_sparse_cosine(weights, expected))
        results["sparse_min"] = min(cosines)
    return results


def _unit(rows: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def _sparse_cosine(one: dict[int, float], other: dict[int, float]) -> float:
    product = sum(weight * other.get(token, 0.0) for token, weight in one.items())
    norms = [math.hypot(*weights.values()) for weights in (one, other)]
    return product / (norms[0] * norms[1])


def tables(results: Results) -> str:
    """Return all tables."""
    rows = results["rows"]
    measured = [row for row in rows.values() if row["reason"] is None]
    parts = [_queries_table(measured)]
    for kind in ("equal", "mixed"):
        parts += [_TITLES[kind], _documents_table(measured, kind, results)]
    parts += ["Our stages in milliseconds, one after another:", _stages_table(results["stages"])]
    return paragraphs(*parts, reasons(rows))


_TITLES = {
    "equal": "Documents of 128 tokens:",
    "mixed": "Documents of 50 to 1,000 tokens:",
}


def _queries_table(rows: list[Results]) -> str:
    head = ["engine", "gives", "1 query: p50, p95 (ms)", "8 at once", "32 at once"]
    lines = []
    for row in rows:
        cells = []
        for times in row["queries"].values():
            cells.append(f"{number(times['p50_ms'], 2)}, {number(times['p95_ms'], 2)}")
        lines.append([row["label"], row["gives"], *cells])
    return table(head, lines)


def _documents_table(rows: list[Results], kind: str, results: Results) -> str:
    texts = results["scale"][kind]
    head = ["engine", "batch", "tokens/s", "texts/s"]
    if kind == "mixed":
        head += ["GPU memory (GB)", "cosine to fp32, least"]
    lines = []
    for row in rows:
        documents = row["documents"][kind]
        settings = ["default", "best"]
        if documents["default"]["batch_size"] == documents["best"]["batch_size"]:
            settings = ["best"]
        for setting in settings:
            run = documents[setting]
            rate = run["tokens_per_second"]
            per_text = sum(results["tokens"][kind]) / len(results["tokens"][kind]) / texts
            size = f"{number(run['batch_size'])} {run['unit']}"
            if setting == "default" or len(settings) == 1:
                size += " (default)"
            cells = [row["label"], size, ranged(rate), number(rate["median"] / per_text)]
            if kind == "mixed":
                peak = row["peak_bytes"].get(setting)
                cells.append("-" if peak is None else number(peak / 1e9, 2))
                cells.append(number(row["exactness"]["dense_min"], 6))
            lines.append(cells)
    return table(head, lines)


def _stages_table(stages: dict[str, dict[str, float | None]]) -> str:
    names = (*STAGES, "gpu")
    lines = []
    for work, times in stages.items():
        lines.append([work, *(number(times[name], 2) for name in names)])
    return table(["work", *names], lines)
