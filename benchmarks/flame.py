"""Flame graphs: sampling what a piece of code calls, and drawing it as SVG.

What lives here: a sampler over an interval timer, and the drawing. What does not: what is sampled
(`query`). A handler of the timer's signal runs between two of Python's instructions, so what a call
into C takes counts for the Python function around it.
"""

from __future__ import annotations

import html
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeAlias

Stack: TypeAlias = "tuple[str, ...]"
"""Names of functions, the outermost first."""

_PERIOD = 0.0005
"""Seconds between two samples."""
_WIDTH, _ROW, _MARGIN, _HEAD = 1000, 17, 10, 24
_CHARACTER = 6.3
"""Width of a character of the labels."""
_LEAST_SHARE = 0.004
"""Of the samples: a narrower box would be less than four pixels wide."""
_OURS, _LLAMA_INDEX, _OTHERS = "#f2a65a", "#9bc1e0", "#d8d8d0"


@dataclass
class Panel:
    """One flame graph of a drawing.

    Attributes:
        title: What was sampled.
        stacks: How often each stack was seen.
    """

    title: str
    stacks: Counter[Stack] = field(default_factory=Counter)


@contextmanager
def sampled(stacks: Counter[Stack], root: Callable[..., object]) -> Iterator[None]:
    """Count the main thread's stacks inside this context, from the function `root` inwards."""

    def note(number: int, frame: FrameType | None) -> None:
        del number
        names: list[str] = []
        while frame is not None and frame.f_code is not root.__code__:
            names.append(_name(frame))
            frame = frame.f_back
        if frame is not None:
            stacks[tuple(reversed(names))] += 1

    former = signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, _PERIOD, _PERIOD)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write an SVG with one panel under another, the outermost call at the bottom of each."""
    body: list[str] = []
    top = _MARGIN
    for panel in panels:
        depth = max(map(len, panel.stacks), default=0)
        bottom = top + _HEAD + depth * _ROW
        title = html.escape(panel.title)
        body.append(f'<text x="{_MARGIN}" y="{top + 14}" font-size="13">{title}</text>')
        body += _boxes(panel.stacks, float(_MARGIN), bottom, _WIDTH / max(panel.stacks.total(), 1))
        top = bottom + _MARGIN
    size = f'width="{_WIDTH + 2 * _MARGIN}" height="{top}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="monospace" font-size="10.5">',
        '<rect width="100%" height="100%" fill="white"/>',
        *body,
        "</svg>",
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _boxes(stacks: Counter[Stack], left: float, bottom: float, scale: float) -> Iterator[str]:
    """Yield a box for each function of a level, and those above it."""
    least = _LEAST_SHARE * _WIDTH
    levels: dict[str, Counter[Stack]] = {}
    for stack, count in stacks.items():
        if stack:
            levels.setdefault(stack[0], Counter())[stack[1:]] += count
    for name, above in sorted(levels.items()):
        width = above.total() * scale
        if width < least:
            continue
        yield _box(name, left, bottom - _ROW, width)
        yield from _boxes(above, left, bottom - _ROW, scale)
        left += width


def _box(name: str, left: float, top: float, width: float) -> str:
    room = int((width - 4) / _CHARACTER)
    shown = ".".join(name.split(".")[-2:])  # class and method; the whole name is in the title
    label = html.escape(shown[: max(room, 0)])
    share = f"{100 * width / _WIDTH:.1f}%"
    return (
        f'<g><title>{html.escape(name)} {share}</title><rect x="{left:.1f}" y="{top:.0f}" '
        f'width="{max(width - 0.5, 0.5):.1f}" height="{_ROW - 1}" fill="{_colour(name)}"/>'
        f'<text x="{left + 2:.1f}" y="{top + 12:.0f}">{label if room > 2 else ""}</text></g>'
    )


def _colour(name: str) -> str:
    if name.startswith("unified_embeddings."):
        return _OURS
    return _LLAMA_INDEX if name.startswith(("llama_index", "pydantic", "wrapt")) else _OTHERS


def _name(frame: FrameType) -> str:
    """Return module and function."""
    module = str(frame.f_globals.get("__name__", "?"))
    return f"{module}.{frame.f_code.co_qualname}"
