"""Values in a payload by a JSON path: `a.b`, `a[].b`, `a[0]`, `"with space".b`."""

from __future__ import annotations

import re
from typing import Any

from unified_embeddings.errors import InputError

_KEY = re.compile(r'"([^"]*)"|([\w-]+)')
_INDEX = re.compile(r"\[(\d*)\]")

Step = str | int | None
"""A key, a place in a list, or None for every place."""


def parse_path(path: str) -> list[Step]:
    """Return the steps of a JSON path.

    Raises:
        InputError: If it is not one.
    """
    error = InputError(f"{path!r:.80} is not a JSON path such as 'a', 'a.b' or 'a[].b'")
    if not isinstance(path, str):
        raise error
    steps: list[Step] = []
    place = 0
    while True:
        key = _KEY.match(path, place)
        if key is None:
            raise error
        steps.append(key[2] if key[1] is None else key[1])
        place = key.end()
        while index := _INDEX.match(path, place):
            steps.append(int(index[1]) if index[1] else None)
            place = index.end()
        if place == len(path):
            return steps
        if path[place] != ".":
            raise error
        place += 1


def find_values(payload: Any, steps: list[Step]) -> list[Any]:
    """Return the values at a path; those of a list at its end, one by one."""
    if not steps:
        return list(payload) if isinstance(payload, list) else [payload]
    step, rest = steps[0], steps[1:]
    if isinstance(step, str):
        if isinstance(payload, dict) and step in payload:
            return find_values(payload[step], rest)
        return []
    if not isinstance(payload, list):
        return []
    items = payload if step is None else payload[step : step + 1]
    return [value for item in items for value in find_values(item, rest)]
