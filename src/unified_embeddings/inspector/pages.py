"""Templates and what they need: every text that they show is escaped.

What lives here: the environment of the templates, and how numbers are written. What does not: what
a page shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jinja2

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"


def make_environment() -> jinja2.Environment:
    """Return the templates' environment: all texts are escaped, and a missing value raises."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=format_count, bytes=format_bytes, score=format_score, percent=format_percent
    )
    return environment


def render(environment: jinja2.Environment, name: str, values: Mapping[str, object]) -> str:
    """Return a page.

    Args:
        environment: Of the templates.
        name: The template.
        values: What it shows.
    """
    return environment.get_template(name).render(values)


def format_count(number: float) -> str:
    """Return a whole number with its thousands parted."""
    return f"{number:,.0f}"


def format_score(score: float) -> str:
    """Return a score with four digits after the point; a large one with two.

    Example:
        >>> from unified_embeddings.inspector.pages import format_score
        >>> format_score(2 / 61), format_score(123.456)
        ('0.0328', '123.46')
    """
    return f"{score:.4f}" if abs(score) < 100 else f"{score:.2f}"


def format_percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.0f}%"


def format_bytes(count: int) -> str:
    """Return a number of bytes with a decimal unit.

    Example:
        >>> from unified_embeddings.inspector.pages import format_bytes
        >>> format_bytes(1_234_567)
        '1.2 MB'
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
