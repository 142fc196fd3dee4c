"""An evaluation for people to read: tables and sentences in the terminal, and a JSON file.

What lives here: which figures are shown and how they are formatted. What does not: the figures
(`evaluation.reports`) and the plot (`evaluation.plots`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.table import Table

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.reports import Contrast, Evaluation, WeakQuery
from unified_embeddings.system.files import make_folder, replace_file

_MISSING = "-"
_SIGNIFICANT = 0.05
"""A p-value below is taken for more than luck."""
_SMALLEST_P = 0.0001
"""The smallest p-value that is shown, near the smallest that 10,000 random draws can give."""
_QUERY_WIDTH = 60
"""Characters of a query's text that are shown."""


def to_json(evaluation: Evaluation) -> str:
    """Return an evaluation as one line of JSON, in ASCII, which any terminal or pipe takes."""
    return json.dumps(asdict(evaluation))


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation to a JSON file, whole or not at all.

    Raises:
        InputError: If it cannot be written.
    """
    content = json.dumps(asdict(evaluation), indent=1, ensure_ascii=False) + "\n"
    try:
        make_folder(path.parent)
        # Half a character, as in a query that is not valid Unicode, becomes a question mark.
        replace_file(path, content.encode(errors="replace"))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}; name another file") from error


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the tables, and what they mean, to standard output."""
    _print(
        f"{evaluation.data}: {evaluation.documents} documents, {evaluation.queries} judged "
        f"queries, {evaluation.depth} results each"
    )
    _print_systems(evaluation)
    if evaluation.contrasts:
        _print_contrasts(evaluation)
    _print()
    for sentence in _sentences(evaluation):
        _print(sentence)
    _print_weak_queries(evaluation)


def _print_systems(evaluation: Evaluation) -> None:
    ndcg, *other_measures = evaluation.systems[0].measures
    lines = []
    for system in evaluation.systems:
        cells = [system.name, f"{system.ndcg:.4f}", f"{system.low:.3f}..{system.high:.3f}"]
        cells += [f"{system.measures[name]:.4f}" for name in other_measures]
        lines.append(cells)
    short_names = [name.replace("recall", "R").replace("precision", "P") for name in other_measures]
    _print_table("Systems", ["", ndcg, "95% interval", *short_names], lines)


def _print_contrasts(evaluation: Evaluation) -> None:
    lines = []
    for contrast in evaluation.contrasts:
        difference = contrast.difference
        t_test = _MISSING
        if difference.t_test is not None:
            t_test = _format_p(difference.t_test.p_value)
        lines.append(
            [
                contrast.system,
                f"{difference.mean:+.4f}",
                f"{difference.low:+.4f}..{difference.high:+.4f}",
                _format_p(difference.p_value),
                t_test,
                f"{contrast.better}/{contrast.equal}/{contrast.worse}",
            ]
        )
    _print_table(
        f"nDCG@{evaluation.k} against {evaluation.baseline}",
        ["", "difference", "95% interval", "p", "p (t-test)", "+/=/-"],
        lines,
    )


def _print_weak_queries(evaluation: Evaluation) -> None:
    """Print a table for each system that has any: what the baseline does better."""
    for system in evaluation.systems:
        weak = [query for query in evaluation.weak_queries if query.system == system.name]
        if not weak:
            continue
        title = f"Largest losses of {system.name} against {evaluation.baseline}"
        if system.name == evaluation.baseline:
            title = f"Worst queries of {system.name}"
        _print_table(
            f"{title}: nDCG@{evaluation.k}, and the rank of the first relevant document",
            ["", "nDCG", "rank", "query"],
            [_weak_cells(query) for query in weak],
            last_is_text=True,
        )


def _weak_cells(query: WeakQuery) -> list[str]:
    score, rank = f"{query.score:.3f}", _format_rank(query.rank)
    if query.baseline_score is not None:
        score = f"{query.baseline_score:.3f} → {score}"
        rank = f"{_format_rank(query.baseline_rank)} → {rank}"
    return [query.query_id, score, rank, shared.one_line(query.text, _QUERY_WIDTH)]


def _sentences(evaluation: Evaluation) -> Iterator[str]:
    """Yield what the figures mean."""
    for contrast in evaluation.contrasts:
        yield _verdict(contrast, evaluation)
    yield _describe_resolution(evaluation)
    for system in evaluation.systems:
        if system.unanswered:
            yield (
                f"{system.name} found nothing for {system.unanswered} of the queries, which count "
                "0."
            )


def _describe_resolution(evaluation: Evaluation) -> str:
    """Return how small a difference the judged queries can show."""
    queries, resolution = evaluation.queries, evaluation.resolution
    if resolution is None:
        return "A single judged query cannot tell a better system from a luckier one."
    if resolution >= 1:
        return f"{queries} judged queries are too few: no difference can be told from chance."
    if not evaluation.contrasts:
        return (
            f"With your {queries} queries, a difference to another system below about "
            f"{resolution:.3f} could not be seen; between similar systems, one of half that size "
            "may be."
        )
    # A system that answers every query as the baseline does has no width.
    widths = [width for width in map(_width, evaluation.contrasts) if width] or [resolution]
    smallest = f"{min(widths):.3f}"
    if smallest != f"{resolution:.3f}":
        smallest = f"{smallest} to {resolution:.3f}, depending on the system,"
    return f"With your {queries} queries, a difference below {smallest} cannot be seen."


def _width(contrast: Contrast) -> float:
    return contrast.difference.half_width or 0.0


def _verdict(contrast: Contrast, evaluation: Evaluation) -> str:
    difference = contrast.difference
    measured = (
        f"95% interval {difference.low:+.4f} to {difference.high:+.4f}, "
        f"p {_format_p(difference.p_value, sign=True)}"
    )
    # Both must agree: near the border, the interval and the test may not.
    if difference.p_value < _SIGNIFICANT and (difference.low > 0 or difference.high < 0):
        word = "better" if difference.mean > 0 else "worse"
        return (
            f"{contrast.system} is {word} than {contrast.baseline} by "
            f"{abs(difference.mean):.4f} nDCG@{evaluation.k}{_share(contrast, evaluation)}: "
            f"{measured}."
        )
    return (
        f"No difference between {contrast.system} and {contrast.baseline} can be seen: "
        f"{difference.mean:+.4f} nDCG@{evaluation.k}, {measured}."
    )


def _share(contrast: Contrast, evaluation: Evaluation) -> str:
    """Return the difference as a share of the baseline's score, in brackets."""
    baseline = evaluation.systems[0].ndcg
    if not baseline:
        return ""
    return f" ({contrast.difference.mean / baseline:+.1%})"


def _format_p(p_value: float, *, sign: bool = False) -> str:
    """Return a p-value as a cell of a table, or with its sign as a part of a sentence."""
    if p_value < _SMALLEST_P:
        return f"< {_SMALLEST_P}" if sign else f"<{_SMALLEST_P}"
    return f"= {p_value:.4f}" if sign else f"{p_value:.4f}"


def _format_rank(rank: int | None) -> str:
    return _MISSING if rank is None else str(rank)


def _print_table(
    title: str,
    headings: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    last_is_text: bool = False,
) -> None:
    """Print a table whose first column, and if so said the last one, holds texts."""
    _print()
    # Names and queries may contain rich's markup, which must not be interpreted.
    _print(title)
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    for place, heading in enumerate(headings):
        is_text = place == 0 or (last_is_text and place == len(headings) - 1)
        # Numbers stay whole, so that a narrow terminal folds the texts alone.
        table.add_column(
            heading,
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=not is_text,
        )
    for cells in lines:
        table.add_row(*map(shared.printable, cells))
    shared.out.print(table, markup=False, highlight=False)


def _print(text: str = "") -> None:
    shared.print_line(shared.printable(text))
