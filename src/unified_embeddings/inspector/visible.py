"""Text of passages, made fit to be looked at.

What lives here: characters that a browser would swallow, or that would reorder what stands around
them. What does not: escaping HTML, which the templates do (`pages`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_CONTROLS = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks and overrides of direction
    "\ufeff\ufff9-\ufffb\ud800-\udfff"
    "]"
)
_PICTURES = 0x2400
"""Where Unicode's pictures of the first 32 control characters begin."""
_SPOKEN_KEYS = ("title", "file_name", "file_path", "url", "source", "topic", "name")
"""Metadata that may name a passage, the best first."""
_LONGEST_TITLE = 80


def visible(text: str) -> str:
    r"""Return a text whose control characters can be seen, and none of which acts.

    A carriage return before a newline is dropped. Controls become Unicode's pictures of them, and
    marks that change the direction of writing their code points, as in "[U+202E]".

    Example:
        >>> from unified_embeddings.inspector.visible import visible
        >>> visible("a\x00b")
        'a␀b'
    """
    return _CONTROLS.sub(_show, text.replace("\r\n", "\n"))


def one_line(text: str, width: int) -> str:
    """Return a text as one visible line of at most `width` characters."""
    # Cutting first keeps a text of any length cheap; runs of spaces may make the line shorter.
    line = " ".join(visible(text[: 4 * width]).split())
    if len(line) <= width and len(text) <= 4 * width:
        return line
    return line[: width - 1].rstrip() + "…"


def title_of(metadata: Mapping[str, object], point_id: str) -> str:
    """Return what to call a passage: what its metadata names it, or its id."""
    for key in _SPOKEN_KEYS:
        value = metadata.get(key)
        if isinstance(value, str) and value.strip():
            if key == "file_path":
                value = "/".join(re.split(r"[/\\]", value)[-2:])
            return one_line(value, _LONGEST_TITLE)
    return point_id


def _show(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(_PICTURES + code)
    if code == 0x7F:
        return "\u2421"
    return f"[U+{code:04X}]"
