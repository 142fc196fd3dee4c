"""What every part shares: spreads, tables, plots, and the page made of all parts' results."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers import PEERS

GIGA = 1e9
BY_HAND = "## Stores\n"
"""The heading that the part of the page begins with that is written by hand."""
COLOURS = {
    "unified-embeddings": (
        "#1a4f8b", "#2f7fd0", "#4aa5a0", "#7cc4bd", "#8896d8", "#a9b4e6", "#c3cbee",
    ),
    "FlagEmbedding": ("#7a7a7a",),
    "sentence-transformers": ("#d98324", "#e8a85c", "#b5532a", "#cf8163"),
    "bge-m3-lite": ("#8c5aa8", "#b48fc8"),
}  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that `percent` of all are not above (nearest rank)."""
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The steepness of the line of least squares through (x, y) points; at least two x differ."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The power of x that y grows with; 1 is linear."""
    return slope([(math.log(x), math.log(y)) for x, y in points])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    lines = [list(head), *([*map(str, row)] for row in rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    filled = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        for line in [lines[0], rule, *lines[1:]]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in filled)


def number(value: float | None, digits: int = 0) -> str:
    """A number for a table, thousands apart; a dash for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def ranged(values: dict[str, float], digits: int = 0) -> str:
    """A spread for a table: median (least to most)."""
    low, high = number(values["min"], digits), number(values["max"], digits)
    return f"{number(values['median'], digits)} ({low} to {high})"


def reasons(rows: dict[str, dict[str, Any]]) -> str:
    """What was not measured, or not wholly, and why, as a list; empty if there is nothing."""
    lines = [f"- {row['label']}: {row['reason']}" for row in rows.values() if row.get("reason")]
    return "Not measured, or not to the end:\n\n" + "\n".join(lines) if lines else ""


def bound(
    text: str, measured: float | None, limit: float, *, least: bool = False
) -> dict[str, Any]:
    """One bound: at most `limit`, or at least; `holds` is None where it was not measured."""
    holds = None if measured is None else measured >= limit if least else measured <= limit
    return {"text": text, "measured": measured, "limit": limit, "least": least, "holds": holds}


def bounds_table(bounds: list[dict[str, Any]]) -> str:
    """The bounds beside what was measured."""
    verdict = {True: "yes", False: "no", None: "not measured"}
    return table(
        ("bound", "asked", "measured", "holds"),
        (
            (
                one["text"],
                f"{'≥' if one['least'] else '≤'} {one['limit']:g}",
                "-" if one["measured"] is None else f"{one['measured']:.3g}",
                verdict[one["holds"]],
            )
            for one in bounds
        ),
    )


# --- plots ----------------------------------------------------------------------------------------


def colours() -> dict[str, str]:
    """A colour for each engine, the same in every plot: one family for each library."""
    left = {library: iter(shades) for library, shades in COLOURS.items()}
    return {name: next(left[peer.library]) for name, peer in PEERS.items()}


@contextmanager
def figure(path: Path, title: str, panels: int, height: float) -> Iterator[list[Any]]:
    """Axes side by side; written to `path` at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(1, panels, figsize=(7 * panels, height), squeeze=False)
    yield list(axes[0])
    drawn.suptitle(title, fontsize=10)
    drawn.tight_layout()
    drawn.savefig(path, dpi=110)
    pyplot.close(drawn)


def plain_ticks(axis: Any, ticks: Sequence[float]) -> None:
    """Label a logarithmic axis with these numbers, written out."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(NullLocator())


# --- the page -------------------------------------------------------------------------------------


def title_of(about: dict[str, Any]) -> str:
    """The machine, for a plot's title."""
    return f"{about['machine']['cpu']}, {about['threads']} threads; weights: {about['weights']}"


def read(out: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The parts measured so far."""
    found = {name: out / f"{name}.json" for name in names}
    return {
        name: json.loads(path.read_text("utf-8")) for name, path in found.items() if path.exists()
    }


def page(parts: dict[str, dict[str, Any]], tables: dict[str, str]) -> str:
    """The whole page in Markdown: the bounds, then each part with what it was measured on."""
    bounds = [one for part in parts.values() for one in part["bounds"]]
    sections = [
        "# Benchmarks",
        "Written by `benchmarks/run.py` from the JSON files beside it; `make bench` measures anew.",
    ]
    if bounds:
        sections += ["## Bounds", bounds_table(bounds)]
    for name, part in parts.items():
        sections += [f"## {part['title']}", _about(part["about"]), tables[name]]
        if part["plot"]:
            sections.append(f"![{part['title']}]({name}.png)")
    return "\n\n".join(sections) + "\n"


def written_by_hand(path: Path) -> str:
    """What a page there has from `BY_HAND` on: it is not made from JSON files, and stays."""
    text = path.read_text("utf-8") if path.exists() else ""
    return "\n" + text[text.index(BY_HAND) :] if BY_HAND in text else ""


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
