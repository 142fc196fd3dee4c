"""A comparison for people to read: tables in the terminal and in Markdown, and a plot.

What lives here: which values are shown and how they are formatted. What does not: measuring them
(`evaluation`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from rich import box
from rich.table import Table

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.evaluation.agreement import TOP_IDS
from unified_embeddings.evaluation.comparison import Comparison, Row

Cells: TypeAlias = tuple[str, ...]
"""The texts of one line of a table, without the row's name."""

_RANKING_KINDS = ("dense", "sparse", "fused")
_MISSING = "-"
"""Shown for a value that a model or the system does not give."""
_REFERENCE_COLOUR, _CANDIDATE_COLOUR = "#2b6cb0", "#a0aec0"


@dataclass(frozen=True)
class _Section:
    """A small table, narrow enough for a narrow terminal.

    Attributes:
        title: Shown above the table.
        headings: One per column, without the column of names.
        cells_of: Returns the cells of a row; None leaves the row out of this table.
    """

    title: str
    headings: tuple[str, ...]
    cells_of: Callable[[Row], Cells | None]


@dataclass(frozen=True)
class _Panel:
    """One bar chart.

    Attributes:
        title: Shown above the chart.
        values: One per row of the comparison.
        spread: How far the error bars reach below and above each value; None for no error bars.
    """

    title: str
    values: list[float]
    spread: tuple[list[float], list[float]] | None = None


def print_tables(comparison: Comparison) -> None:
    """Print the tables to standard output."""
    # Names come from the user and may contain rich's markup, which must not be interpreted.
    shared.out.print(_headline(comparison), markup=False, highlight=False)
    for section, lines in _filled_sections(comparison):
        shared.out.print()
        table = Table(
            title=section.title,
            title_justify="left",
            box=box.SIMPLE,
            pad_edge=False,
            show_edge=False,
        )
        table.add_column("", overflow="fold")
        for heading in section.headings:
            table.add_column(heading, justify="right", overflow="fold")
        for cells in lines:
            table.add_row(*map(shared.printable, cells))
        shared.out.print(table, markup=False)
    notes = list(_notes(comparison))
    if notes:
        shared.out.print()
    for note in notes:
        shared.out.print(shared.printable(note), markup=False, highlight=False)


def prepare_folder(folder: Path) -> None:
    """Create the folder that `write_report` writes into, and check that the plot can be drawn.

    Raises:
        InputError: If the folder does not exist and cannot be created.
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401 — only to see whether it is installed
    except ImportError as error:
        raise MissingExtraError("matplotlib, which draws the plot,", extra="plot") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be created: {error}; name another") from error


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write comparison.json, comparison.md and comparison.png.

    Raises:
        InputError: If one of them cannot be written.
    """
    content = json.dumps(asdict(comparison), indent=1, ensure_ascii=False) + "\n"
    try:
        (folder / "comparison.json").write_text(content, "utf-8")
        (folder / "comparison.md").write_text(_markdown_page(comparison), "utf-8")
        _draw_plot(comparison, folder / "comparison.png")
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error}; name another") from error


def _headline(comparison: Comparison) -> str:
    corpus, machine = comparison.corpus, comparison.machine
    return (
        f"{comparison.model} on {corpus.name} ({corpus.documents} documents, "
        f"{corpus.queries} queries); {machine['processor']}, {machine['cores']} cores"
    )


def _notes(comparison: Comparison) -> Iterator[str]:
    if not comparison.corpus.judged:
        yield "nDCG@10 needs --data, a folder with relevance judgements."
    for row in comparison.rows:
        if row.problem is not None:
            yield f"{row.name} was not measured: {row.problem}"
        elif row.agreement is None:
            yield (
                f"{row.name} is a different model: its vectors are not comparable with the "
                "reference's."
            )


# --- tables -------------------------------------------------------------------------------------


def _filled_sections(comparison: Comparison) -> Iterator[tuple[_Section, list[Cells]]]:
    """Yield each table that is not empty, with its lines: the row's name, then its cells."""
    for section in _sections(comparison.rows[0]):
        lines: list[Cells] = []
        for row in comparison.rows:
            cells = section.cells_of(row)
            if row.problem is None and cells is not None:
                lines.append((row.name, *cells))
        if lines:
            yield section, lines


def _sections(reference: Row) -> tuple[_Section, ...]:
    top_same, top_common = f"top {TOP_IDS} same", f"top {TOP_IDS} common"
    return (
        _Section("Memory", ("files MB", "resident MB", "peak MB"), _memory_cells),
        _Section("Loading and one query", ("load s", "query ms p50", "p99"), _latency_cells),
        _Section("Documents, tokens/s", ("median", "min", "max"), _throughput_cells),
        _Section("Dense: cosine", ("min", "mean", "p5"), _dense_cells),
        _Section("Sparse: ids in common", ("Jaccard", top_same, top_common), _sparse_cells),
        _Section("ColBERT: MaxSim difference", ("largest", "mean"), _colbert_cells),
        _Section(
            "Drift: alone or in a batch", ("1 - cosine", "dense", "sparse", "ColBERT"), _drift_cells
        ),
        _Section("Top 10 documents in common", _RANKING_KINDS, _overlap_cells),
        _Section("nDCG@10", _RANKING_KINDS, _ndcg_cells),
        _Section("nDCG@10 loss", _RANKING_KINDS, _ndcg_loss_cells),
        _Section(
            f"Relative to {reference.name}",
            ("files", "resident", "query time", "tokens/s"),
            partial(_ratio_cells, reference),
        ),
    )


def _memory_cells(row: Row) -> Cells | None:
    if row.cost is None:
        return None
    peak_megabytes = None if row.cost.peak is None else row.cost.peak / 1e6
    return (
        f"{row.cost.size / 1e6:,.0f}",
        f"{row.cost.resident / 1e6:,.0f}",
        _format(peak_megabytes, ",.0f"),
    )


def _latency_cells(row: Row) -> Cells | None:
    cost = row.cost
    if cost is None:
        return None
    return f"{cost.load_s:.1f}", f"{cost.query_ms_p50:.1f}", f"{cost.query_ms_p99:.1f}"


def _throughput_cells(row: Row) -> Cells | None:
    cost = row.cost
    if cost is None:
        return None
    return (
        f"{cost.tokens_per_s:,.0f}",
        f"{cost.tokens_per_s_min:,.0f}",
        f"{cost.tokens_per_s_max:,.0f}",
    )


def _dense_cells(row: Row) -> Cells | None:
    if row.agreement is None or row.agreement.dense is None:
        return None
    dense = row.agreement.dense
    return f"{dense.cosine_min:.5f}", f"{dense.cosine_mean:.5f}", f"{dense.cosine_p5:.5f}"


def _sparse_cells(row: Row) -> Cells | None:
    if row.agreement is None or row.agreement.sparse is None:
        return None
    sparse = row.agreement.sparse
    return f"{sparse.jaccard:.4f}", f"{sparse.top_same:.1%}", f"{sparse.top_common:.1%}"


def _colbert_cells(row: Row) -> Cells | None:
    if row.agreement is None or row.agreement.colbert is None:
        return None
    colbert = row.agreement.colbert
    return f"{colbert.maxsim_largest:.5f}", f"{colbert.maxsim_mean:.5f}"


def _drift_cells(row: Row) -> Cells | None:
    drift = row.drift
    if drift is None:
        return None
    return (
        _format(drift.dense_cosine, ".1e"),
        _format(drift.dense, ".1e"),
        _format(drift.sparse, ".1e"),
        _format(drift.colbert, ".1e"),
    )


def _overlap_cells(row: Row) -> Cells | None:
    overlaps = {kind: retrieval.overlap for kind, retrieval in row.retrieval.items()}
    return tuple(_format(overlaps.get(kind), ".1%") for kind in _RANKING_KINDS)


def _ndcg_cells(row: Row) -> Cells | None:
    ndcgs = {kind: retrieval.ndcg for kind, retrieval in row.retrieval.items()}
    if all(ndcg is None for ndcg in ndcgs.values()):
        return None
    return tuple(_format(ndcgs.get(kind), ".4f") for kind in _RANKING_KINDS)


def _ndcg_loss_cells(row: Row) -> Cells | None:
    losses = {kind: retrieval.ndcg_loss for kind, retrieval in row.retrieval.items()}
    if all(loss is None for loss in losses.values()):
        return None
    return tuple(_format(losses.get(kind), ".2%") for kind in _RANKING_KINDS)


def _ratio_cells(reference: Row, row: Row) -> Cells | None:
    """Return a row's costs divided by the reference's."""
    cost, reference_cost = row.cost, reference.cost
    if cost is None or reference_cost is None:
        return None
    return (
        f"{cost.size / reference_cost.size:.2f}",
        f"{cost.resident / reference_cost.resident:.2f}",
        f"{cost.query_ms_p50 / reference_cost.query_ms_p50:.2f}",
        f"{cost.tokens_per_s / reference_cost.tokens_per_s:.2f}",
    )


def _format(value: float | None, format_spec: str) -> str:
    if value is None:
        return _MISSING
    return format(value, format_spec)


def _markdown_page(comparison: Comparison) -> str:
    lines = [f"# {_headline(comparison)}", ""]
    for section, section_lines in _filled_sections(comparison):
        alignments = ["---:"] * len(section.headings)
        lines += [f"## {section.title}", ""]
        lines.append(_markdown_row(("", *section.headings)))
        lines.append(_markdown_row(("---", *alignments)))
        lines += map(_markdown_row, section_lines)
        lines.append("")
    lines += [f"- {note}" for note in _notes(comparison)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_row(cells: Cells) -> str:
    # An unescaped bar would start another cell.
    escaped_cells = [shared.printable(cell).replace("|", "\\|") for cell in cells]
    return "| " + " | ".join(escaped_cells) + " |"


# --- the plot -----------------------------------------------------------------------------------


def _draw_plot(comparison: Comparison, path: Path) -> None:
    """Draw bars of memory, query time, throughput and retrieval quality."""
    import matplotlib

    # A backend that draws into a file and needs no display.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in comparison.rows if row.cost is not None]
    names = [row.name for row in rows]
    colours = [_REFERENCE_COLOUR] + [_CANDIDATE_COLOUR] * (len(rows) - 1)
    height = 1.6 + 0.5 * len(rows)
    figure, axes_list = pyplot.subplots(1, 4, figsize=(15, height), sharey=True)
    for axes, panel in zip(axes_list, _panels(rows), strict=True):
        axes.barh(names, panel.values, xerr=panel.spread, capsize=3, color=colours)
        axes.set_title(panel.title, fontsize=10)
    # The reference comes first, so it belongs at the top.
    axes_list[0].invert_yaxis()
    figure.suptitle(_headline(comparison), fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _panels(rows: list[Row]) -> Iterator[_Panel]:
    """Yield the four charts of rows that were measured, the reference first."""
    costs = [row.cost for row in rows if row.cost is not None]
    yield _Panel("resident memory, MB", [cost.resident / 1e6 for cost in costs])
    below_median = [0.0] * len(costs)
    above_median = [cost.query_ms_p99 - cost.query_ms_p50 for cost in costs]
    yield _Panel(
        "one query, ms (p50 to p99)",
        [cost.query_ms_p50 for cost in costs],
        spread=(below_median, above_median),
    )
    yield _Panel(
        "documents, tokens/s (min to max)",
        [cost.tokens_per_s for cost in costs],
        spread=(
            [cost.tokens_per_s - cost.tokens_per_s_min for cost in costs],
            [cost.tokens_per_s_max - cost.tokens_per_s for cost in costs],
        ),
    )
    yield _retrieval_panel(rows)


def _retrieval_panel(rows: list[Row]) -> _Panel:
    """Return the chart of nDCG@10, or without relevance judgements of the overlap."""
    kind = list(rows[0].retrieval)[-1]  # "fused" if the model has dense and sparse vectors.
    is_judged = rows[0].retrieval[kind].ndcg is not None
    values = []
    for row in rows:
        # A model without this kind of ranking gets an empty bar.
        value: float | None = None
        if kind in row.retrieval:
            retrieval = row.retrieval[kind]
            value = retrieval.ndcg if is_judged else retrieval.overlap
        values.append(value or 0.0)
    title = "nDCG@10" if is_judged else "top 10 documents in common"
    return _Panel(f"{title}, {kind}", values)
