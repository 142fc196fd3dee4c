"""Show the examples of docstrings as code: an extension of griffe, which reads them for the site.

Docstrings here head their example with "Example:". The parser knows "Examples:" as the section of
examples, and takes the other for a note, whose prompts Markdown turns into quotations.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_HEADING = re.compile(r"^( *)Example:$", re.MULTILINE)


class DocstringExamples(griffe.Extension):
    """Rename the heading in every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the heading in the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = _HEADING.sub(r"\1Examples:", obj.docstring.value)
