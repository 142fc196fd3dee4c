"""A comparison of systems as a picture: each with its interval, and the queries one by one.

What lives here: drawing. What does not: the figures (`reports`).
"""

from __future__ import annotations

import io
import textwrap
import warnings
from pathlib import Path
from typing import Any

from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.evaluation.reports import Contrast, Evaluation
from unified_embeddings.system.files import make_folder, replace_file

_BASELINE_COLOUR, _SYSTEM_COLOUR = "#2b6cb0", "#4a5568"
_GAIN_COLOUR, _LOSS_COLOUR = "#2f855a", "#c53030"
MOST_CONTRASTS = 100
"""Panels of differences; with more the picture would be wider than a PNG's writer takes."""
_NAME_WIDTH = 28
"""Characters of a system's name in one line of a label."""


def require_matplotlib() -> None:
    """Check that plots can be drawn, before anything is measured.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401 — only to see whether it is installed
    except ImportError as error:
        raise MissingExtraError("matplotlib, which draws the plot,", extra="plot") from error


def draw_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Draw an evaluation into a PNG file.

    On the left, each system's mean nDCG with its 95% bootstrap interval. Then, for each system but
    the baseline, the difference to the baseline of every query, from the largest gain to the
    largest loss.

    Args:
        evaluation: The figures.
        path: The file; its folder is created if it is missing, and an old file replaced.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        InputError: If the file cannot be written, or there are too many systems.
    """
    require_matplotlib()
    # Not pyplot, whose backend belongs to the application: a notebook would show nothing any more.
    from matplotlib.figure import Figure

    if len(evaluation.contrasts) > MOST_CONTRASTS:
        raise InputError(
            f"a plot shows at most {MOST_CONTRASTS} systems beside the baseline, got "
            f"{len(evaluation.contrasts)}; evaluate fewer at once, or leave the plot out"
        )
    panels = 1 + len(evaluation.contrasts)
    height = max(3.2, 1.6 + 0.6 * len(evaluation.systems))
    figure = Figure(figsize=(6 + 4.5 * (panels - 1), height))
    axes_table = figure.subplots(1, panels, squeeze=False)
    _draw_means(axes_table[0][0], evaluation)
    for axes, contrast in zip(axes_table[0][1:], evaluation.contrasts, strict=True):
        _draw_differences(axes, contrast, evaluation)
    figure.suptitle(
        f"{_plain(evaluation.data)}: {evaluation.documents} documents, "
        f"{evaluation.queries} judged queries",
        fontsize=10,
    )
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; a warning for each is no help.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing", category=UserWarning)
        figure.tight_layout()
        figure.savefig(picture, format="png", dpi=120)
    try:
        make_folder(path.parent)
        replace_file(path, picture.getvalue())
    except OSError as error:
        raise InputError(f"the plot {path} cannot be written: {error}; name another") from error


def _draw_means(axes: Any, evaluation: Evaluation) -> None:
    """Draw a point with its interval for each system."""
    systems = evaluation.systems
    for place, system in enumerate(systems):
        spread = ([max(0.0, system.ndcg - system.low)], [max(0.0, system.high - system.ndcg)])
        colour = _BASELINE_COLOUR if system.name == evaluation.baseline else _SYSTEM_COLOUR
        axes.errorbar([system.ndcg], [place], xerr=spread, fmt="o", capsize=4, color=colour)
        axes.annotate(
            f"{system.ndcg:.4f}",
            (system.ndcg, place),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.axvline(systems[0].ndcg, color=_BASELINE_COLOUR, linewidth=0.6, linestyle=":")
    axes.set_yticks(range(len(systems)), [_label(system.name) for system in systems], fontsize=8)
    # The baseline comes first, so it belongs at the top.
    axes.set_ylim(len(systems) - 0.4, -0.6)
    axes.set_title(f"nDCG@{evaluation.k}, 95% intervals", fontsize=10)


def _draw_differences(axes: Any, contrast: Contrast, evaluation: Evaluation) -> None:
    """Draw each query's difference to the baseline, the largest gain first."""
    scores = {system.name: system.query_scores for system in evaluation.systems}
    baseline = scores[contrast.baseline]
    differences = sorted(
        (score - baseline[query_id] for query_id, score in scores[contrast.system].items()),
        reverse=True,
    )
    colours = [_GAIN_COLOUR if gain > 0 else _LOSS_COLOUR for gain in differences]
    axes.bar(range(len(differences)), differences, width=1.0, color=colours)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xlabel(
        f"{contrast.better} better, {contrast.equal} equal, {contrast.worse} worse", fontsize=8
    )
    axes.set_title(
        f"{_label(contrast.system)}\nminus {_label(contrast.baseline)}, by query", fontsize=9
    )


def _label(name: str) -> str:
    return "\n".join(textwrap.wrap(_plain(name), _NAME_WIDTH)) or name


def _plain(text: str) -> str:
    """Return a text that matplotlib draws as it is: a dollar sign would begin a formula."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable.replace("$", r"\$")
