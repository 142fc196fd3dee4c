"""Token ids that were asked for lately, so that a service is not asked for them again."""

from __future__ import annotations

import threading
from collections import OrderedDict

_REMEMBERED_CHARACTERS = 2**20
"""Of texts whose token ids are kept: a splitter counts the same titles and metadata often."""


class TokenMemory:
    """The token ids of texts that were asked for lately, bounded in characters of text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: OrderedDict[str, list[int]] = OrderedDict()
        self._characters = 0

    def get(self, text: str) -> list[int] | None:
        """Return the ids of a text that is remembered."""
        with self._lock:
            if text in self._ids:
                self._ids.move_to_end(text)
            return self._ids.get(text)

    def put(self, text: str, ids: list[int]) -> None:
        """Remember a text's ids, and forget those that were not asked for the longest."""
        with self._lock:
            if text not in self._ids:
                self._ids[text] = ids
                self._characters += len(text)
            while self._characters > _REMEMBERED_CHARACTERS:
                forgotten, _ = self._ids.popitem(last=False)
                self._characters -= len(forgotten)
