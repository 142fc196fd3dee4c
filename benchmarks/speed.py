"""Speed: documents and single queries, all engines in one run, in turn.

One process an engine stays alive, the others asleep while it works; each round gives all of them
the same new texts, so that whatever else the machine does falls on all alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from context import Bench
from peers import REFERENCE
from report import (
    bound,
    colours,
    figure,
    number,
    percentile,
    plain_ticks,
    ranged,
    reasons,
    spread,
    table,
)
from workers import GEMM, UnavailableError, Worker

TITLE = "Speed"
_PRODUCTS = 10
_BATCH_PEERS = ("sentence-transformers-bf16-8", "sentence-transformers-bf16-32")

Samples = dict[str, list[float]]


def measure(bench: Bench) -> dict[str, Any]:
    """Run all rounds."""
    rows, scale = bench.rows(), bench.scale
    rates: Samples = {name: [] for name in rows}
    queries = {str(n): {name: [] for name in rows} for n in scale.query_tokens}  # type: dict[str, Samples]
    limit = {kind: _limit_row(bench, kind) for kind in ("fp32", "bf16")}
    tokens = []
    with (
        Worker(GEMM, bench.folder, bench.timeout) as gemm,
        bench.all_started(rows) as workers,
    ):
        _warm_up(bench, rows, workers)
        for turn in range(scale.rounds):
            _measure_limit(gemm, limit)
            texts = bench.words.mix(bench.rng, scale.documents, scale.outlier)
            tokens.append(sum(map(bench.words.count, texts)))
            for name in _in_turn(rows, workers, turn):
                answer = _ask(rows, workers, name, "documents", texts)
                if answer:
                    rates[name].append(tokens[-1] / answer["seconds"])
            for length, samples in queries.items():
                share = scale.queries * (turn + 1) // scale.rounds
                asked = share - scale.queries * turn // scale.rounds
                texts = [bench.words.text(bench.rng, int(length)) for _ in range(asked)]
                for name in _in_turn(rows, workers, turn):
                    answer = _ask(rows, workers, name, "queries", texts)
                    if answer:
                        samples[name] += [1000 * seconds for seconds in answer["seconds"]]
            bench.say(f"round {turn + 1} of {scale.rounds} done")
    for row in limit.values():
        if row["gflops"]:
            row["gflops"] = spread(row["gflops"])
            row["tokens_per_second"] = row["gflops"]["median"] * 1e9 / bench.flop_per_token
    _add_documents(rows, rates, limit)
    _add_queries(rows, queries)
    return {
        "documents": {"number": scale.documents, "outlier": scale.outlier, "tokens": tokens},
        "queries": {"number": scale.queries, "tokens": list(scale.query_tokens)},
        "flop_per_token": bench.flop_per_token,
        "limit": limit,
        "rows": rows,
    }


def tables(results: dict[str, Any]) -> str:
    """The limit, documents, queries, and what is missing."""
    rows, tokens = results["rows"], results["documents"]["tokens"]
    done = [row for row in rows.values() if "documents" in row]
    asked = [row for row in rows.values() if "queries" in row]
    lengths = [str(n) for n in results["queries"]["tokens"]]
    documents = table(
        ("engine", "tokens/s (range)", "share of its limit", "times FlagEmbedding", "note"),
        (
            (
                row["label"],
                ranged(row["documents"]["tokens_per_second"]),
                _percent(row["documents"]["share_of_limit"]),
                number(row["documents"]["times_reference"], 2),
                row["note"],
            )
            for row in done
        ),
    )
    queries = table(
        (
            "engine",
            *(f"{n} tokens: p50, p99 (ms)" for n in lengths),
            "16 tokens, times FlagEmbedding",
        ),
        (
            (
                row["label"],
                *(_latency(row["queries"].get(n)) for n in lengths),
                number(row["queries"].get("16", {}).get("times_reference"), 2),
            )
            for row in asked
        ),
    )
    parts = (
        f"Documents: {len(tokens)} rounds of {results['documents']['number']} different texts, "
        f"{min(tokens):,} to {max(tokens):,} tokens: lengths log-normal around 90, cut at 512, and "
        f"one outlier of {results['documents']['outlier']:,}. Median over the rounds; a ratio is "
        "that of the rounds' ratios.",
        documents,
        _limit_text(results),
        f"One query at a time, {results['queries']['number']} different ones of each length.",
        queries,
        reasons(rows),
    )
    return "\n\n".join(filter(None, parts))


def bounds(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What ours is to reach."""
    rows = results["rows"]
    ours = {n: row for n, row in rows.items() if row["library"] == "unified-embeddings"}
    rate, name = max(
        ((_rate(row), name) for name, row in ours.items() if _rate(row)), default=(None, "")
    )
    best = rows.get(name, {}).get("documents", {})
    peers = [found for peer in _BATCH_PEERS if (found := _rate(rows.get(peer, {})))]
    query, asked = min(
        (
            (row["queries"]["16"]["p50_ms"], name)
            for name, row in ours.items()
            if "16" in row.get("queries", {})
        ),
        default=(None, ""),
    )
    fastest = rows.get(asked, {}).get("queries", {}).get("16", {})
    top, label = results["limit"]["bf16"].get("tokens_per_second"), rows.get(name, {}).get("label")
    label, quick = label or "ours", rows.get(asked, {}).get("label") or "ours"
    return [
        bound(
            f"documents, {label}: times FlagEmbedding", best.get("times_reference"), 20, least=True
        ),
        bound(
            f"documents, {label}: times sentence-transformers bf16 at its better batch size",
            rate / max(peers) if rate and peers else None,
            2,
            least=True,
        ),
        bound(
            f"documents, {label}: % of the bf16 limit",
            100 * rate / top if rate and top else None,
            70,
            least=True,
        ),
        bound(f"one 16-token query, {quick}: p50 ms", query, 20),
        bound(
            f"one 16-token query, {quick}: times FlagEmbedding",
            fastest.get("times_reference"),
            15,
            least=True,
        ),
    ]


def plot(results: dict[str, Any], path: Path, title: str) -> None:
    """Documents as bars with the limits as lines; queries as lines over their length."""
    rows = results["rows"]
    colour = colours()
    done = {name: row["documents"] for name, row in rows.items() if "documents" in row}
    with figure(path, title, 2, 2.5 + 0.35 * len(rows)) as (left, right):
        for name, row in done.items():
            rate = row["tokens_per_second"]
            errors = [[rate["median"] - rate["min"]], [rate["max"] - rate["median"]]]
            left.barh(rows[name]["label"], rate["median"], xerr=errors, color=colour[name])
            left.text(rate["max"] * 1.05, rows[name]["label"], number(rate["median"]), va="center")
        for kind, style in (("fp32", ":"), ("bf16", "--")):
            if limit := results["limit"][kind].get("tokens_per_second"):
                left.axvline(limit, color="black", linestyle=style, label=f"{kind} GEMM limit")
                left.legend(fontsize=8, loc="lower right")
        left.set_xscale("log")
        left.xaxis.set_major_formatter(lambda value, _: number(value))
        left.margins(x=0.15)
        left.invert_yaxis()
        left.set_xlabel("documents: tokens/s, logarithmic (more is better)")
        for name, row in rows.items():
            if points := row.get("queries"):
                lengths = [int(n) for n in points]
                times = [one["p50_ms"] for one in points.values()]
                right.plot(lengths, times, "o-", color=colour[name], label=row["label"])
        right.set_xscale("log")
        right.set_yscale("log")
        plain_ticks(right.xaxis, results["queries"]["tokens"])
        right.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        right.set_xlabel("tokens of one query, logarithmic")
        right.set_ylabel("p50 in ms, logarithmic (less is better)")
        right.grid(visible=True, alpha=0.3)
        right.legend(fontsize=7)


# --- measuring ------------------------------------------------------------------------------------


def _ask(
    rows: dict[str, dict[str, Any]],
    workers: dict[str, Worker],
    name: str,
    do: str,
    texts: list[str],
) -> dict[str, Any] | None:
    """An engine's answer; None once it has failed, which its row then tells."""
    try:
        return workers[name].ask(do, peer=name, texts=texts)
    except UnavailableError as error:
        rows[name]["reason"] = str(error)
        return None


def _in_turn(rows: dict[str, dict[str, Any]], workers: dict[str, Worker], turn: int) -> list[str]:
    """The engines still running; each round begins with another."""
    names = [name for name in workers if not rows[name]["reason"]]
    first = turn % len(names) if names else 0
    return names[first:] + names[:first]


def _warm_up(bench: Bench, rows: dict[str, dict[str, Any]], workers: dict[str, Worker]) -> None:
    texts = [bench.words.text(bench.rng, n) for n in (16, 64, 128)]
    for name in workers:
        _ask(rows, workers, name, "documents", texts)


def _limit_row(bench: Bench, kind: str) -> dict[str, Any]:
    skipped = kind == "bf16" and not bench.has_amx and not bench.slow
    reason = "this CPU has no amx_bf16; --slow measures it" if skipped else None
    return {"gflops": [], "reason": reason}


def _measure_limit(gemm: Worker, limit: dict[str, dict[str, Any]]) -> None:
    for kind, row in limit.items():
        if not row["reason"]:
            try:
                found = gemm.ask("gemm", precision=kind, repeats=_PRODUCTS)
                row["gflops"].append(found["flops"] / 1e9)
            except UnavailableError as error:
                row["reason"] = str(error)


def _add_documents(
    rows: dict[str, dict[str, Any]], rates: Samples, limit: dict[str, dict[str, Any]]
) -> None:
    for name, samples in rates.items():
        if not samples:
            continue
        found = spread(samples)
        top = limit.get(rows[name]["precision"], {}).get("tokens_per_second")
        rows[name]["documents"] = {
            "tokens_per_second": found,
            "rounds": samples,
            "share_of_limit": found["median"] / top if top else None,
            "times_reference": _ratio(samples, rates.get(REFERENCE, [])),
        }


def _add_queries(rows: dict[str, dict[str, Any]], queries: dict[str, Samples]) -> None:
    for length, by_name in queries.items():
        for name, samples in by_name.items():
            if samples:
                rows[name].setdefault("queries", {})[length] = {
                    "p50_ms": percentile(samples, 50),
                    "p99_ms": percentile(samples, 99),
                    "number": len(samples),
                    "times_reference": _ratio(by_name.get(REFERENCE, []), samples),
                }


def _ratio(above: list[float], below: list[float]) -> float | None:
    """The median of what was measured on the same texts, divided pair by pair."""
    pairs = [a / b for a, b in zip(above, below, strict=False)]  # one may have failed midway
    return spread(pairs)["median"] if pairs else None


# --- showing --------------------------------------------------------------------------------------


def _rate(row: dict[str, Any]) -> float | None:
    rate: float | None = row.get("documents", {}).get("tokens_per_second", {}).get("median")
    return rate


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _latency(found: dict[str, Any] | None) -> str:
    return f"{number(found['p50_ms'], 1)}, {number(found['p99_ms'], 1)}" if found else "-"


def _limit_text(results: dict[str, Any]) -> str:
    """The machine's own rate, in words."""
    lines = []
    for kind, row in results["limit"].items():
        if "tokens_per_second" in row:
            lines.append(
                f"{kind}: {ranged(row['gflops'])} GFLOP/s, so at most "
                f"{number(row['tokens_per_second'])} tokens/s"
            )
        else:
            lines.append(f"{kind}: not measured, {row['reason']}")
    cost = results["flop_per_token"] / 1e9
    return (
        "The limit is torch's product of (2048, 1024) and (1024, 4096) in the same rounds, over "
        f"{cost:.3g} GFLOP a token: the layers' weights, without attention. " + "; ".join(lines)
    ) + ". There is no limit for int8."
