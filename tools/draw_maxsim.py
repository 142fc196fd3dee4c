"""Draw which tokens of a passage a question's tokens meet, and how similar they are.

    python tools/draw_maxsim.py QUESTION PASSAGE FILE.png [--model MODEL]

Each row is a token of the question, and each column one of the passage. A frame marks the token
that a row is scored by: the most similar one. Needs the extra `plot`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.evaluation.plots import require_matplotlib
from unified_embeddings.retrievers.explanation import ColbertPart
from unified_embeddings.retrievers.score_parts import explain_colbert

_CELL = 0.42
"""Height and width of a cell, in inches."""
_DARK = 0.6
"""Share of the colours' range above which a number is written in white."""


def main(arguments: list[str] | None = None) -> None:
    """Draw the picture that the arguments describe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("question")
    parser.add_argument("passage")
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="mini-m3")
    options = parser.parse_args(arguments)
    require_matplotlib()
    embedder = UnifiedEmbeddingConfig(options.model).embedder
    colbert = explain_colbert(embedder, options.question, options.passage)
    draw_map(colbert, options.file, model=options.model)


def draw_map(colbert: ColbertPart, path: Path, *, model: str) -> None:
    """Draw the similarities of all tokens into a PNG file, the best of each row framed.

    Args:
        colbert: The tokens and their similarities.
        path: The file.
        model: The model's name, for the title.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    rows, columns = colbert.similarities.shape
    figure, axes = pyplot.subplots(figsize=(3 + _CELL * columns, 2.2 + _CELL * rows))
    image = axes.imshow(colbert.similarities, cmap="Blues", vmin=0.0, vmax=1.0, aspect="equal")
    axes.set_xticks(range(columns), colbert.passage_tokens, rotation=60, ha="right", fontsize=9)
    axes.set_yticks(range(rows), colbert.query_tokens, fontsize=9)
    axes.set_xlabel("tokens of the passage")
    axes.set_ylabel("tokens of the question")
    for row, match in enumerate(colbert.matches):
        column = match.passage_position
        frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#c05621", lw=2)
        axes.add_patch(frame)
        colour = "white" if match.score > _DARK else "black"
        axes.text(
            column, row, f"{match.score:.2f}", ha="center", va="center", color=colour, fontsize=7
        )
    axes.set_title(
        f"MaxSim, {model}: the mean of the framed similarities is {colbert.score:.3f}", fontsize=10
    )
    figure.colorbar(image, ax=axes, label="dot product of the tokens' vectors", shrink=0.8)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    main()
