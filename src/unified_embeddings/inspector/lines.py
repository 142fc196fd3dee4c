"""Lines that join the same passage across lists that stand side by side.

What lives here: where the lines run, in units of a drawing that is stretched over the lists. What
does not: how the lists are laid out (`static/inspector.css`), which has the same proportions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLUMN, GAP, ROW = 100, 22, 10
"""Width of a list, width between two lists, height of a passage."""


@dataclass(frozen=True)
class Line:
    """A line from a passage in one list to the same passage in a list to its right.

    Attributes:
        key: The passage.
        path: The line, as SVG's attribute `d` has it.
    """

    key: str
    path: str


@dataclass(frozen=True)
class Drawing:
    """All lines over some lists.

    Attributes:
        width: Of the drawing.
        height: Of the drawing.
        lines: The lines.
    """

    width: int
    height: int
    lines: tuple[Line, ...]


def join_lists(lists: Sequence[Sequence[str]]) -> Drawing:
    """Return the lines that join each passage with itself in the next list that has it.

    Args:
        lists: The passages of each list, in order.

    Example:
        >>> from unified_embeddings.inspector.lines import join_lists
        >>> [line.key for line in join_lists([["a", "b"], ["b"]]).lines]
        ['b']
    """
    lines = []
    for left, keys in enumerate(lists):
        for row, key in enumerate(keys):
            target = _find_next(lists, left, key)
            if target is not None:
                right, target_row = target
                lines.append(Line(key, _draw(left, row, right, target_row)))
    columns = len(lists)
    width = columns * COLUMN + max(0, columns - 1) * GAP
    height = ROW * max((len(keys) for keys in lists), default=0)
    return Drawing(width, height, tuple(lines))


def _find_next(lists: Sequence[Sequence[str]], left: int, key: str) -> tuple[int, int] | None:
    for right in range(left + 1, len(lists)):
        if key in lists[right]:
            return right, lists[right].index(key)
    return None


def _draw(left: int, row: int, right: int, target_row: int) -> str:
    """Return a curve from the right edge of one list to the left edge of another."""
    start_x = left * (COLUMN + GAP) + COLUMN
    end_x = right * (COLUMN + GAP)
    start_y, end_y = row * ROW + ROW / 2, target_row * ROW + ROW / 2
    bend = GAP / 2
    return (
        f"M{start_x} {start_y:g}C{start_x + bend:g} {start_y:g} "
        f"{end_x - bend:g} {end_y:g} {end_x} {end_y:g}"
    )
