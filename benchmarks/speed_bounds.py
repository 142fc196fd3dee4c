"""What the part on speed must show: ours against the peers and the machine, of the same run.

What lives here: reading results, as `speed.measure` returned them and its JSON file holds them, and
holding them against what is required.
"""

from __future__ import annotations

from collections.abc import Iterable

from report import Results, Row, bound

_WORKLOAD = "mixed"
_BATCH_PEER = "sentence-transformers-bf16"
_INT8 = "ours-onnx-int8"
_INT8_PEER = "ctranslate2-int8"
EXACT = 0.99
"""Smallest cosine with our fp32 vectors of an engine that others are held against."""
_UNPADDED = "llama-cpp-python"
"""The library among the peers that does not pad."""


def bounds(results: Results) -> list[Row]:
    """Return what ours must reach. Everyone is taken at their best batch size."""
    return [*_against_references(results), *_int8_bounds(results), *_fp32_bounds(results)]


def run_of(row: Row, workload: str, setting: str) -> Row:
    """Return what an engine reached on a workload at a setting; empty if it was not measured."""
    found: Row = row.get("documents", {}).get(workload, {}).get(setting, {})
    return found


def is_exact(row: Row) -> bool:
    """Tell whether an engine's vectors are close enough to ours in fp32, or were not compared."""
    cosine: float = row.get("exactness", {}).get("min", 1.0)
    return cosine >= EXACT


def _against_references(results: Results) -> list[Row]:
    """Return the bounds of our fastest rows, whatever their precision."""
    rows = results["rows"]
    fastest = _fastest_at_documents(rows)
    documents = run_of(fastest, _WORKLOAD, "best")
    limit = results["limit"]["bf16"].get("tokens_per_second")
    times_peer = _ratio(_rate(fastest, "best"), _rate(rows.get(_BATCH_PEER, {}), "best"))
    share = _ratio(_rate(fastest, "best"), limit)
    label = f"documents, {fastest.get('label', 'ours')}"
    quickest = _fastest_at_queries(rows)
    query = quickest.get("queries", {}).get("16", {})
    query_label = f"one 16-token query, {quickest.get('label', 'ours')}"
    return [
        bound(
            f"{label}: times FlagEmbedding at its best",
            documents.get("times_reference"),
            20,
            least=True,
        ),
        bound(f"{label}: times sentence-transformers bf16 at its best", times_peer, 2, least=True),
        bound(f"{label}: % of the bf16 limit", _percent(share), 70, least=True),
        bound(f"{query_label}: p50 ms", query.get("p50_ms"), 20),
        bound(f"{query_label}: times FlagEmbedding", query.get("times_reference"), 15, least=True),
    ]


def _int8_bounds(results: Results) -> list[Row]:
    """Return the bounds of our int8 engine against every other library that is exact enough."""
    rows = results["rows"]
    int8 = rows.get(_INT8, {})
    others = [row for row in rows.values() if row["library"] != "unified-embeddings"]
    peers = [row for row in others if is_exact(row)]
    padded = [row for row in peers if row["library"] != _UNPADDED]
    fp32 = [row for row in _ours(rows) if row["precision"] == "fp32"]
    rate = _rate(int8, "best")
    label = "onnx int8"
    return [
        bound(
            f"one 16-token query, {label}: CPU time over the best peer's",
            _ratio(_query_cpu(int8, "16"), _smallest(_query_cpu(row, "16") for row in peers)),
            0.95,
        ),
        bound(
            f"one 128-token query, {label}: CPU time over CTranslate2 int8's",
            _ratio(_query_cpu(int8, "128"), _query_cpu(rows.get(_INT8_PEER, {}), "128")),
            1.05,
        ),
        bound(
            f"documents, {label}: times our fp32",
            _ratio(rate, _largest(_rate(row, "best") for row in fp32)),
            1.3,
            least=True,
        ),
        bound(
            f"documents, {label}: times the fastest peer that pads, at its default",
            _ratio(rate, _largest(_rate(row, "default") for row in padded)),
            2,
            least=True,
        ),
        bound(
            f"documents, {label}: times the fastest peer, at its best",
            _ratio(rate, _largest(_rate(row, "best") for row in peers)),
            1,
            least=True,
        ),
    ]


def _fp32_bounds(results: Results) -> list[Row]:
    """Return the bound of our fastest fp32 engine against the machine."""
    fp32 = [row for row in _ours(results["rows"]) if row["precision"] == "fp32"]
    limit = results["limit"]["fp32"].get("tokens_per_second")
    share = _ratio(_largest(_rate(row, "best") for row in fp32), limit)
    return [bound("documents, our fp32: % of the fp32 limit", _percent(share), 95, least=True)]


def _rate(row: Row, setting: str) -> float | None:
    """Return the median tokens/s on the documents that bounds are for."""
    rate: float | None = run_of(row, _WORKLOAD, setting).get("tokens_per_second", {}).get("median")
    return rate


def _query_cpu(row: Row, tokens: str) -> float | None:
    """Return the median processor time of a query of that many tokens, in ms."""
    median: float | None = row.get("queries", {}).get(tokens, {}).get("cpu_ms", {}).get("median")
    return median


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator and denominator else None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _smallest(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _ours(rows: dict[str, Row]) -> list[Row]:
    return [row for row in rows.values() if row["library"] == "unified-embeddings"]


def _fastest_at_documents(rows: dict[str, Row]) -> Row:
    """Return our row with the highest rate on documents; empty if there is none."""
    measured = [row for row in _ours(rows) if _rate(row, "best")]
    return max(measured, key=lambda row: _rate(row, "best") or 0.0, default={})


def _fastest_at_queries(rows: dict[str, Row]) -> Row:
    """Return our row with the fastest 16-token query; empty if there is none."""
    measured = [row for row in _ours(rows) if "16" in row.get("queries", {})]
    return min(measured, key=lambda row: float(row["queries"]["16"]["p50_ms"]), default={})
