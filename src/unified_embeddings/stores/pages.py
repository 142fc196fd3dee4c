"""Reading many points page by page, whichever client answers."""

from __future__ import annotations

from qdrant_client import models as qm

from unified_embeddings.validation import require_whole_number

_POINTS_PER_PAGE = 500


class Pages:
    """The points read so far, page by page.

    Args:
        limit: The most points to read; None for all.

    Raises:
        InputError: If the limit is not a whole number >= 1.
    """

    def __init__(self, limit: int | None) -> None:
        self.points: list[qm.Record] = []
        self.offset: qm.ExtendedPointId | None = None
        self._limit = None
        if limit is not None:
            self._limit = require_whole_number("limit", limit)
        self._is_complete = False

    @property
    def wanted(self) -> int:
        """How many points to read next; 0 after the last page."""
        if self._is_complete:
            return 0
        if self._limit is None:
            return _POINTS_PER_PAGE
        return min(_POINTS_PER_PAGE, self._limit - len(self.points))

    def add(self, page: tuple[list[qm.Record], qm.ExtendedPointId | None]) -> None:
        """Add a page, and where the next one begins."""
        points, self.offset = page
        self.points += points
        self._is_complete = self.offset is None
