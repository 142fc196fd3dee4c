"""Jupyter notebooks into text: prose, code, and what the code printed.

What lives here: the cells in order. What does not: pictures among the results.
"""

from __future__ import annotations

import json
import re
from typing import Any

from unified_embeddings.errors import InputError
from unified_embeddings.llama.readers.content import FileContent, Section
from unified_embeddings.llama.readers.plain_text import decode_text

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def read_notebook(data: bytes) -> FileContent:
    """Read a notebook of format 3 or 4.

    Raises:
        InputError: If it is not a notebook.
    """
    text, notes = decode_text(data)
    try:
        notebook = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not a Jupyter notebook: {error}") from error
    cells = _cells(notebook)
    if cells is None:
        raise InputError("is not a Jupyter notebook: it has no list of cells")
    blocks: list[str] = []
    for cell in cells:
        if not isinstance(cell, dict):
            continue
        blocks.append(_joined(cell.get("source", cell.get("input"))))
        for output in cell.get("outputs") or ():
            if isinstance(output, dict):
                blocks.append(_output_text(output))
    return FileContent([Section("\n\n".join(block for block in blocks if block.strip()))], notes)


def _cells(notebook: Any) -> list[Any] | None:
    """Return the cells; those of format 3 are in worksheets. None if there are none."""
    if not isinstance(notebook, dict):
        return None
    if isinstance(notebook.get("cells"), list):
        return list(notebook["cells"])
    worksheets = notebook.get("worksheets")
    if not isinstance(worksheets, list):
        return None
    cells: list[Any] = []
    for sheet in worksheets:
        if isinstance(sheet, dict) and isinstance(sheet.get("cells"), list):
            cells.extend(sheet["cells"])
    return cells


def _output_text(output: dict[str, Any]) -> str:
    """Return what a cell printed, its result as plain text, or its error."""
    data = output.get("data")
    if output.get("output_type") in ("pyerr", "error"):
        text = "\n".join(_joined(line) for line in output.get("traceback") or ())
    elif isinstance(data, dict):
        text = _joined(data.get("text/plain"))
    else:
        text = _joined(output.get("text"))
    return _TERMINAL_CODES.sub("", text)


def _joined(source: Any) -> str:
    """Return a text that is stored whole or as a list of lines; "" if it is neither."""
    if isinstance(source, list):
        return "".join(line for line in source if isinstance(line, str))
    return source if isinstance(source, str) else ""
