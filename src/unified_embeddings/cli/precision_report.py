"""A comparison as people read it: tables in the terminal and in Markdown, and a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rich import box
from rich.table import Table

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.evaluation.agreement import TOP_IDS
from unified_embeddings.evaluation.comparison import Comparison, Row

Cells: TypeAlias = Callable[[Row], tuple[str, ...] | None]
"""What a row shows in a table; None leaves the row out of it."""

_KINDS = ("dense", "sparse", "fused")


@dataclass(frozen=True)
class _Group:
    """A small table: narrow enough for a narrow terminal."""

    title: str
    headings: tuple[str, ...]
    cells: Cells


def print_tables(comparison: Comparison) -> None:
    """Print the tables on standard output."""
    shared.out.print(_heading(comparison), markup=False, highlight=False)
    for group, rows in _filled(comparison):
        shared.out.print()
        table = Table(
            title=group.title, title_justify="left", box=box.SIMPLE, pad_edge=False, show_edge=False
        )
        table.add_column("", overflow="fold")
        for heading in group.headings:
            table.add_column(heading, justify="right", overflow="fold")
        for cells in rows:
            table.add_row(*map(shared.printable, cells))
        shared.out.print(table, markup=False)
    notes = [*_notes(comparison)]
    if notes:
        shared.out.print()
    for note in notes:
        shared.out.print(shared.printable(note), markup=False, highlight=False)


def require_folder(folder: Path) -> None:
    """Make the folder that `write` writes into, and see that the plot can be drawn.

    Raises:
        InputError: If there is no such folder and none can be made.
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401 — only whether it is there
    except ImportError as error:
        raise MissingExtraError("matplotlib, which draws the plot,", extra="plot") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made a folder: {error}; name another") from error


def write(comparison: Comparison, folder: Path) -> None:
    """Write comparison.json, comparison.md and comparison.png.

    Raises:
        InputError: If one cannot be written.
    """
    content = json.dumps(asdict(comparison), indent=1, ensure_ascii=False) + "\n"
    try:
        (folder / "comparison.json").write_text(content, "utf-8")
        (folder / "comparison.md").write_text(_markdown(comparison), "utf-8")
        _plot(comparison, folder / "comparison.png")
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}; name another") from error


def _heading(comparison: Comparison) -> str:
    corpus, machine = comparison.corpus, comparison.machine
    return (
        f"{comparison.model} on {corpus['name']} ({corpus['documents']} documents, "
        f"{corpus['queries']} queries); {machine['processor']}, {machine['cores']} cores"
    )


def _notes(comparison: Comparison) -> Iterator[str]:
    if not comparison.corpus["judged"]:
        yield "nDCG@10 needs --data, a folder with relevance judgements."
    for row in comparison.rows:
        if row.problem is not None:
            yield f"{row.name} was not measured: {row.problem}"
        elif row.agreement is None:
            yield f"{row.name} is another model: its vectors do not compare with the reference's."


def _filled(comparison: Comparison) -> Iterator[tuple[_Group, list[tuple[str, ...]]]]:
    """Each table that has anything in it, and its lines."""
    for group in _groups(comparison.rows[0]):
        rows = [
            (row.name, *cells)
            for row in comparison.rows
            if row.problem is None and (cells := group.cells(row)) is not None
        ]
        if rows:
            yield group, rows


def _groups(reference: Row) -> tuple[_Group, ...]:
    return (
        _Group("Memory", ("files MB", "resident MB", "peak MB"), _memory),
        _Group("Loading and one query", ("load s", "query ms p50", "p99"), _latency),
        _Group("Documents, tokens/s", ("median", "min", "max"), _throughput),
        _Group("Dense: cosine", ("min", "mean", "p5"), _dense),
        _Group(
            "Sparse: ids in common",
            ("Jaccard", f"top {TOP_IDS} same", f"top {TOP_IDS} common"),
            _sparse,
        ),
        _Group("ColBERT: difference of MaxSim", ("largest", "mean"), _colbert),
        _Group("Drift, alone or batched", ("1 - cosine", "dense", "sparse", "ColBERT"), _drift),
        _Group("Ten best documents in common", _KINDS, _overlap),
        _Group("nDCG@10", _KINDS, _ndcg),
        _Group("nDCG@10 lost", _KINDS, _ndcg_loss),
        _Group(
            f"Against {reference.name}, times",
            ("files", "resident", "query time", "tokens/s"),
            lambda row: _ratios(reference, row),
        ),
    )


def _memory(row: Row) -> tuple[str, ...] | None:
    if row.cost is None:
        return None
    return tuple(map(_megabytes, (row.cost.size, row.cost.resident, row.cost.peak)))


def _latency(row: Row) -> tuple[str, ...] | None:
    if (cost := row.cost) is None:
        return None
    return tuple(f"{value:.1f}" for value in (cost.load_s, cost.query_ms_p50, cost.query_ms_p99))


def _throughput(row: Row) -> tuple[str, ...] | None:
    if (cost := row.cost) is None:
        return None
    rates = (cost.tokens_per_s, cost.tokens_per_s_min, cost.tokens_per_s_max)
    return tuple(f"{rate:,.0f}" for rate in rates)


def _dense(row: Row) -> tuple[str, ...] | None:
    if row.agreement is None or (found := row.agreement.dense) is None:
        return None
    return tuple(f"{value:.5f}" for value in (found.cosine_min, found.cosine_mean, found.cosine_p5))


def _sparse(row: Row) -> tuple[str, ...] | None:
    if row.agreement is None or (found := row.agreement.sparse) is None:
        return None
    return f"{found.jaccard:.4f}", _percent(found.top_same), _percent(found.top_common)


def _colbert(row: Row) -> tuple[str, ...] | None:
    if row.agreement is None or (found := row.agreement.colbert) is None:
        return None
    return f"{found.maxsim_largest:.5f}", f"{found.maxsim_mean:.5f}"


def _drift(row: Row) -> tuple[str, ...] | None:
    if (found := row.drift) is None:
        return None
    return tuple(
        "-" if value is None else f"{value:.1e}"
        for value in (found.dense_cosine, found.dense, found.sparse, found.colbert)
    )


def _overlap(row: Row) -> tuple[str, ...] | None:
    return tuple(
        _percent(row.retrieval[kind].overlap if kind in row.retrieval else None) for kind in _KINDS
    )


def _ndcg(row: Row) -> tuple[str, ...] | None:
    found = [row.retrieval[kind].ndcg if kind in row.retrieval else None for kind in _KINDS]
    if not any(value is not None for value in found):
        return None
    return tuple("-" if value is None else f"{value:.4f}" for value in found)


def _ndcg_loss(row: Row) -> tuple[str, ...] | None:
    found = [row.retrieval[kind].ndcg_loss if kind in row.retrieval else None for kind in _KINDS]
    if not any(value is not None for value in found):
        return None
    return tuple(_percent(value, digits=2) for value in found)


def _ratios(reference: Row, row: Row) -> tuple[str, ...] | None:
    one, other = reference.cost, row.cost
    if one is None or other is None:
        return None
    return tuple(
        f"{value:.2f}"
        for value in (
            other.size / one.size,
            other.resident / one.resident,
            other.query_ms_p50 / one.query_ms_p50,
            other.tokens_per_s / one.tokens_per_s,
        )
    )


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.0f}"


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{share:.{digits}%}"


def _markdown(comparison: Comparison) -> str:
    lines = [f"# {_heading(comparison)}", ""]
    for group, rows in _filled(comparison):
        lines += [f"## {group.title}", ""]
        lines.append(_markdown_row(("", *group.headings)))
        lines.append(_markdown_row(("---", *("---:" for _ in group.headings))))
        lines += [*map(_markdown_row, rows), ""]
    lines += [f"- {note}" for note in _notes(comparison)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(shared.printable(cell).replace("|", "\\|") for cell in cells) + " |"


def _plot(comparison: Comparison, path: Path) -> None:
    """Bars: memory, query time, throughput, and how well it finds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in comparison.rows if row.cost is not None]
    names = [row.name for row in rows]
    figure, panels = pyplot.subplots(1, 4, figsize=(15, 1.6 + 0.5 * len(rows)), sharey=True)
    for panel, (title, values, spread) in zip(panels, _bars(rows), strict=True):
        panel.barh(
            names, values, xerr=spread, capsize=3, color=["#2b6cb0"] + ["#a0aec0"] * len(rows)
        )
        panel.set_title(title, fontsize=10)
    panels[0].invert_yaxis()
    figure.suptitle(_heading(comparison), fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bars(rows: list[Row]) -> Iterator[tuple[str, list[float], Any]]:
    """Title, values and spread (below and above, or None) of each panel."""
    costs = [row.cost for row in rows if row.cost is not None]
    yield "resident memory, MB", [cost.resident / 1e6 for cost in costs], None
    yield (
        "one query, ms (p50 to p99)",
        [cost.query_ms_p50 for cost in costs],
        [[0.0] * len(costs), [cost.query_ms_p99 - cost.query_ms_p50 for cost in costs]],
    )
    yield (
        "documents, tokens/s (min to max)",
        [cost.tokens_per_s for cost in costs],
        [
            [cost.tokens_per_s - cost.tokens_per_s_min for cost in costs],
            [cost.tokens_per_s_max - cost.tokens_per_s for cost in costs],
        ],
    )
    kind = list(rows[0].retrieval)[-1]  # fused, if the model has both
    found = [row.retrieval.get(kind) for row in rows]
    if found[0] is not None and found[0].ndcg is not None:
        yield f"nDCG@10, {kind}", [(one and one.ndcg) or 0.0 for one in found], None
    else:
        yield f"ten best in common, {kind}", [one.overlap if one else 0.0 for one in found], None
