"""How the part on speed is shown: tables and plot.

What lives here: showing results, as `speed.measure` returned them and its JSON file holds them.
What does not: what is required of them (`speed_bounds`).
"""

from __future__ import annotations

from pathlib import Path

import exactness
from report import (
    Axes,
    Results,
    Row,
    colours,
    figure,
    number,
    paragraphs,
    plain_ticks,
    ranged,
    reasons,
    table,
)
from speed_bounds import run_of


def tables(results: Results) -> str:
    """Return documents, limit, queries and exactness, and what is missing."""
    rows = results["rows"]
    workloads = results["documents"]
    return paragraphs(
        _documents_text(results),
        _other_work_text(results),
        *(_documents_table(rows, name, facts) for name, facts in workloads.items()),
        _notes(rows),
        _limit_text(results),
        f"One query at a time, {results['queries']['number']} different ones of each length.",
        _queries_table(results),
        _queries_cpu(results),
        exactness.tables(results, rows),
        reasons(rows),
    )


def plot(results: Results, path: Path, title: str) -> None:
    """Draw a panel of bars for each workload, and one of lines for the queries."""
    workloads = results["documents"]
    rows = results["rows"]
    height = 2.0 + 0.4 * len(rows)
    with figure(path, title, len(workloads) + 1, height, columns=2) as axes:
        for panel, (name, facts) in zip(axes[:-1], workloads.items(), strict=True):
            _plot_documents(panel, results, name)
            panel.set_title(facts["title"], fontsize=9)
        _plot_queries(axes[-1], results)


# --- tables ---------------------------------------------------------------------------------------


def _documents_text(results: Results) -> str:
    rounds = len(next(iter(results["documents"].values()))["tokens"])
    trial = results["trial"]
    sizes = ", ".join(map(str, trial["batch_sizes"]))
    return (
        f"Documents: different texts in each of {rounds} rounds. Mixed lengths are log-normal "
        "around 90 tokens, cut at 512. Tokens/s is the median over the rounds; a ratio is the "
        "median of the rounds' ratios. Our engines have no batch size to choose: `torch` packs "
        "texts and `onnx` runs those of one length together, so neither pads. The others pad each "
        "text to the longest of its batch. They are measured at their default batch size and at "
        f"their best: the fastest of the default and {sizes}, tried once on up to "
        f"{trial['documents']} documents of the same kind; larger sizes are not tried once the "
        "rate falls. Processor time (user and system, all threads), share and ratio are at the "
        "best."
    )


def _documents_table(rows: dict[str, Row], workload: str, facts: Row) -> str:
    head = (
        "engine",
        "default batch",
        "tokens/s (range)",
        "best batch",
        "tokens/s (range)",
        "CPU ms per token (range)",
        "share of its limit",
        "times FlagEmbedding",
    )
    lines = []
    missing = []
    for row in rows.values():
        if workload not in row.get("documents", {}):
            continue
        default, best = (run_of(row, workload, setting) for setting in ("default", "best"))
        lines.append(
            (
                row["label"],
                number(default["batch_size"]),
                _rate_range(default),
                number(best["batch_size"]),
                _rate_range(best),
                _cpu_range(best),
                _percent(best.get("share_of_limit")),
                number(best.get("times_reference"), 2),
            )
        )
        for run in (default, best):
            if "reason" in run:
                text = f"- {row['label']}, batch size {run['batch_size']}: {run['reason']}"
                missing.append(text)
    tokens = facts["tokens"]
    text = f"{facts['title']}: {min(tokens):,} to {max(tokens):,} tokens a round"
    # One line if default and best are the same run.
    return paragraphs(text, table(head, lines), "\n".join(dict.fromkeys(missing)))


def _notes(rows: dict[str, Row]) -> str:
    """Return what a reader must know to compare the engines."""
    measured = [row for row in rows.values() if row["note"] and "documents" in row]
    return "\n".join(f"- {row['label']}: {row['note']}" for row in measured)


def _queries_cpu(results: Results) -> str:
    """Return the processor time of the queries; empty for results from before it was measured."""
    queries = [q for row in results["rows"].values() for q in row.get("queries", {}).values()]
    if not all("cpu_ms" in query for query in queries):
        return ""
    return paragraphs(
        "The same queries in processor time: user and system, all threads. The median, and the "
        "range of the rounds' medians.",
        _cpu_table(results),
    )


def _queries_table(results: Results) -> str:
    lengths = [str(tokens) for tokens in results["queries"]["tokens"]]
    head = [
        "engine",
        *(f"{length} tokens: p50, p99 (ms)" for length in lengths),
        "16 tokens, times FlagEmbedding",
    ]
    lines = []
    for row in results["rows"].values():
        if "queries" not in row:
            continue
        queries = row["queries"]
        ratio = queries.get("16", {}).get("times_reference")
        cells = [_latency(queries.get(length)) for length in lengths]
        lines.append([row["label"], *cells, number(ratio, 2)])
    return table(head, lines)


def _cpu_table(results: Results) -> str:
    lengths = [str(tokens) for tokens in results["queries"]["tokens"]]
    head = ["engine", *(f"{length} tokens: CPU ms" for length in lengths)]
    lines = []
    for row in results["rows"].values():
        if "queries" in row:
            cells = [ranged(row["queries"][length]["cpu_ms"], 1) for length in lengths]
            lines.append([row["label"], *cells])
    return table(head, lines)


def _other_work_text(results: Results) -> str:
    """Say how much else ran on the machine; empty for results from before it was measured."""
    if "other_work" not in results:
        return ""
    shares = {name: 100 * share for name, share in results["other_work"].items()}
    return (
        f"Other programs took {ranged(shares)}% of all cores during the rounds. They lengthen "
        "times on the wall clock, and the processor time of engines whose threads spin while they "
        "wait for each other."
    )


def _limit_text(results: Results) -> str:
    """Describe how fast the machine itself is."""
    parts = []
    for precision, row in results["limit"].items():
        if "tokens_per_second" in row:
            parts.append(
                f"{precision}: {ranged(row['gflops'])} GFLOP/s, so at most "
                f"{number(row['tokens_per_second'])} tokens/s"
            )
        else:
            parts.append(f"{precision}: not measured, {row['reason']}")
    cost = results["flop_per_token"] / 1e9
    return (
        "The limit is the rate of torch's product of (2048, 1024) and (1024, 4096), measured in "
        f"the same rounds, divided by {cost:.3g} GFLOP per token: the layers' weights, without "
        f"attention. {'; '.join(parts)}. There is no limit for int8."
    )


def _rate_range(run: Row) -> str:
    if "tokens_per_second" not in run:
        return "-"
    return ranged(run["tokens_per_second"])


def _cpu_range(run: Row) -> str:
    if "cpu_ms_per_token" not in run:
        return "-"
    return ranged(run["cpu_ms_per_token"], 2)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _latency(query: Row | None) -> str:
    if query is None:
        return "-"
    return f"{number(query['p50_ms'], 1)}, {number(query['p99_ms'], 1)}"


# --- plot -----------------------------------------------------------------------------------------


def _plot_documents(axes: Axes, results: Results, workload: str) -> None:
    """Draw two bars for each engine: its best batch size, and lighter its default one."""
    colour = colours()
    measured = {
        name: row for name, row in results["rows"].items() if workload in row.get("documents", {})
    }
    for place, (name, row) in enumerate(measured.items()):
        default, best = (run_of(row, workload, setting) for setting in ("default", "best"))
        _plot_bar(axes, place, best, colour[name], alpha=1.0)
        if default["batch_size"] != best["batch_size"]:
            _plot_bar(axes, place + 0.4, default, colour[name], alpha=0.45)
    for precision, style in (("fp32", ":"), ("bf16", "--")):
        limit = results["limit"][precision].get("tokens_per_second")
        if limit:
            axes.axvline(limit, color="black", linestyle=style, label=f"{precision} GEMM limit")
            axes.legend(fontsize=8, loc="lower right")
    axes.set_yticks(range(len(measured)), [row["label"] for row in measured.values()])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: number(value))
    axes.margins(x=0.2)
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s, logarithmic (more is better); lighter: default batch size")


def _plot_bar(axes: Axes, place: float, run: Row, colour: str, *, alpha: float) -> None:
    if "tokens_per_second" not in run:
        return
    rate = run["tokens_per_second"]
    errors = [[rate["median"] - rate["min"]], [rate["max"] - rate["median"]]]
    axes.barh(place, rate["median"], height=0.4, xerr=errors, color=colour, alpha=alpha)
    text = number(rate["median"])
    if run["batch_size"] is not None:
        text += f" (batch {run['batch_size']})"
    axes.text(rate["max"] * 1.05, place, text, va="center", fontsize=7)


def _plot_queries(axes: Axes, results: Results) -> None:
    """Draw a line for each engine over the length of a query."""
    colour = colours()
    for name, row in results["rows"].items():
        queries = row.get("queries")
        if queries:
            lengths = [int(length) for length in queries]
            times = [query["p50_ms"] for query in queries.values()]
            axes.plot(lengths, times, "o-", color=colour[name], label=row["label"])
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_ticks(axes.xaxis, results["queries"]["tokens"])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.set_title("one query at a time", fontsize=9)
    axes.set_xlabel("tokens of the query, logarithmic")
    axes.set_ylabel("p50 in ms, logarithmic (less is better)")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=7)
