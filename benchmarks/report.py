"""What all parts share: spreads, tables, plots, and the page made of all results."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers import PEERS

Results = dict[str, Any]
"""What a part measured, as its JSON file holds it: names, numbers, lists and dicts of these."""
Row = dict[str, Any]
"""One engine's share of the results."""
Axes = Any
"""Matplotlib's axes; its types are not checked here."""

GIGA = 1e9
BY_HAND = "## Stores\n"
"""The heading at which the hand-written part of the page begins."""
COLOURS = {
    "unified-embeddings": (
        "#1a4f8b", "#2f7fd0", "#4aa5a0", "#7cc4bd", "#8896d8", "#a9b4e6", "#c3cbee",
    ),
    "FlagEmbedding": ("#7a7a7a",),
    "sentence-transformers": ("#d98324", "#b5532a"),
    "bge-m3-lite": ("#8c5aa8", "#b48fc8"),
    "ctranslate2": ("#3f8f4f", "#86bf8f"),
    "openvino": ("#a83c5a", "#d58aa0"),
    "llama-cpp-python": ("#8a7a2f",),
}  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the minimum and the maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of all do not exceed (nearest rank)."""
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line through (x, y) points with at least two x."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Return the power of x that y grows with; 1 is linear."""
    return slope([(math.log(x), math.log(y)) for x, y in points])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, the first column aligned left and the others right."""
    lines = [list(head)]
    for row in rows:
        lines.append([str(cell) for cell in row])
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    drawn = []
    for line in [lines[0], rule, *lines[1:]]:
        cells = [line[0].ljust(widths[0])]
        for cell, width in zip(line[1:], widths[1:], strict=True):
            cells.append(cell.rjust(width))
        drawn.append(f"| {' | '.join(cells)} |")
    return "\n".join(drawn)


def number(value: float | None, digits: int = 0) -> str:
    """Format a number for a table, with commas between thousands; a dash for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def ranged(values: dict[str, float], digits: int = 0) -> str:
    """Format a spread for a table: median (minimum to maximum)."""
    low, high = number(values["min"], digits), number(values["max"], digits)
    return f"{number(values['median'], digits)} ({low} to {high})"


def paragraphs(*texts: str) -> str:
    """Join paragraphs of Markdown, leaving out empty ones."""
    return "\n\n".join(text for text in texts if text)


def reasons(rows: dict[str, Row]) -> str:
    """List what was not measured, or not completely, and why; empty if there is nothing."""
    lines = [f"- {row['label']}: {row['reason']}" for row in rows.values() if row.get("reason")]
    if not lines:
        return ""
    return "Not measured, or not completely:\n\n" + "\n".join(lines)


def bound(
    text: str, measured: float | None, limit: float, *, least: bool = False
) -> dict[str, Any]:
    """Return one bound and whether it holds.

    Args:
        text: What is bounded.
        measured: The figure; None if it was not measured, and then `holds` is None too.
        limit: The bound.
        least: Whether `limit` is a minimum; otherwise it is a maximum.
    """
    holds = None
    if measured is not None:
        holds = measured >= limit if least else measured <= limit
    return {"text": text, "measured": measured, "limit": limit, "least": least, "holds": holds}


def bounds_table(bounds: list[dict[str, Any]]) -> str:
    """Return the bounds next to what was measured."""
    verdicts = {True: "yes", False: "no", None: "not measured"}
    rows = []
    for entry in bounds:
        sign = "≥" if entry["least"] else "≤"
        measured = "-" if entry["measured"] is None else f"{entry['measured']:.3g}"
        limit = f"{sign} {entry['limit']:g}"
        rows.append((entry["text"], limit, measured, verdicts[entry["holds"]]))
    return table(("bound", "required", "measured", "holds"), rows)


# --- plots ----------------------------------------------------------------------------------------


def colours() -> dict[str, str]:
    """Return a colour for each engine, the same in every plot: a family for each library."""
    shades = {library: iter(family) for library, family in COLOURS.items()}
    return {name: next(shades[peer.library]) for name, peer in PEERS.items()}


@contextmanager
def figure(
    path: Path, title: str, panels: int, height: float, *, columns: int | None = None
) -> Iterator[list[Axes]]:
    """Draw a figure and write it to `path` at the end.

    Args:
        path: The PNG file.
        title: Title of the whole figure.
        panels: Number of panels.
        height: Height of one row of panels, in inches.
        columns: Panels next to each other; all of them unless given.

    Yields:
        The axes of the panels.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = columns or panels
    lines = math.ceil(panels / columns)
    drawn, grid = pyplot.subplots(
        lines, columns, figsize=(7 * columns, height * lines), squeeze=False
    )
    axes = list(grid.flat)
    for unused in axes[panels:]:
        unused.set_visible(False)
    yield axes[:panels]
    drawn.suptitle(title, fontsize=10)
    drawn.tight_layout()
    drawn.savefig(path, dpi=110)
    pyplot.close(drawn)


def plain_ticks(axis: Axes, ticks: Sequence[float]) -> None:
    """Label a logarithmic axis with these numbers, written out."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(NullLocator())


# --- the page -------------------------------------------------------------------------------------


def title_of(about: dict[str, Any]) -> str:
    """Describe the machine for a plot's title."""
    return f"{about['machine']['cpu']}, {about['threads']} threads; weights: {about['weights']}"


def read(out: Path, names: Iterable[str]) -> dict[str, Results]:
    """Read the JSON files of the parts measured so far."""
    parts = {}
    for name in names:
        path = out / f"{name}.json"
        if path.exists():
            parts[name] = json.loads(path.read_text("utf-8"))
    return parts


def page(parts: dict[str, Results], tables: dict[str, str]) -> str:
    """Return the page in Markdown: the bounds, then each part and what it was measured on."""
    bounds = [entry for part in parts.values() for entry in part["bounds"]]
    sections = [
        "# Benchmarks",
        "Generated by `benchmarks/run.py` from the JSON files in this folder, up to the section on "
        "stores; `make bench` measures again. Other engines are measured where they are installed: "
        f"`pip install {_packages()}`.",
    ]
    if bounds:
        sections += ["## Bounds", bounds_table(bounds)]
    for name, part in parts.items():
        sections += [f"## {part['title']}", _about(part["about"]), tables[name]]
        if part["plot"]:
            sections.append(f"![{part['title']}]({name}.png)")
    return "\n\n".join(sections) + "\n"


def _packages() -> str:
    """Return what pip installs to have all other engines."""
    packages = [package for peer in PEERS.values() for package in peer.install.split()]
    others = [package for package in packages if "unified-embeddings" not in package]
    return " ".join(dict.fromkeys(others))


def written_by_hand(path: Path) -> str:
    """Return the end of a page from `BY_HAND` on: no JSON file holds it, and it must be kept."""
    text = path.read_text("utf-8") if path.exists() else ""
    if BY_HAND not in text:
        return ""
    return "\n" + text[text.index(BY_HAND) :]


def _about(about: dict[str, Any]) -> str:
    machine = about["machine"]
    flags = ", ".join(machine["flags"]) or "unknown"
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{machine['cpu']} ({flags}), {about['threads']} of {machine['cores']} cores, "
        f"{machine['memory'] / GIGA:.0f} GB, {machine['system']}; {about['date']}, "
        f"commit {about['commit'] or 'unknown'}; weights: {about['weights']}.\n"
        f"{versions}.\n`{about['command']}`"
    )
