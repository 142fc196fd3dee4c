"""Texts without the folders of this machine, for results that others read.

It imports nothing of the project: the processes that are measured import it.
"""

from __future__ import annotations

import re
from pathlib import Path

_QUOTED_PATH = re.compile(r"""(['"])~?/(?:[^'"\n]*/)?([^'"/\n]+)\1""")
"""A path in quotes, which may hold blanks, and its last name."""
_PLAIN_PATH = re.compile(r"(?<![\w/])~?(?:/[\w.+@-]+)*/(?=[\w.])")
"""The folders of a path without quotes."""


def without_folders(text: str) -> str:
    """Return a text, such as an error's, with the last name alone of each path in it."""
    text = _QUOTED_PATH.sub(r"\1\2\1", text)
    home = str(Path.home())
    if len(home) > 1:
        text = text.replace(home, "~")
    return _PLAIN_PATH.sub("", text)
