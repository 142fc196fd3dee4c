"""Both collections compared once more right before the switch; nothing is changed.

What lives here: ids and payloads, both ways. What does not: vectors (`verify`), and mending
(`catch_up`).

An application that is killed between its two writes leaves no note of it. What it wrote reached one
side, and no count of failures tells.
"""

from __future__ import annotations

from collections.abc import Iterator

from unified_embeddings.migration.gate import GateCheck
from unified_embeddings.migration.journal import Journal
from unified_embeddings.migration.record import PointId
from unified_embeddings.migration.sides import Sides
from unified_embeddings.stores.opening import Client

_PAGE = 1_000
_EXAMPLES = 3


def compare_now(journal: Journal, client: Client) -> GateCheck:
    """Return whether the target holds the points of the source, with the same payloads.

    Points that could not be embedded are left out: `verify` has them accepted or not.

    Raises:
        StoreError: If a side cannot be read.
    """
    count = 0
    examples: list[PointId] = []
    for point_ids in _differences(journal, Sides(client, journal.record)):
        count += len(point_ids)
        examples += point_ids[: _EXAMPLES - len(examples)]
    if not count:
        return GateCheck("equal", passed=True, reason="both sides hold the same points now")
    return GateCheck(
        "equal",
        passed=False,
        reason=f"{count} points differ on the two sides now, such as "
        f"{', '.join(map(repr, examples))}: something was written to one side only. Run `migrate "
        "start` and `migrate verify`",
    )


def _differences(journal: Journal, sides: Sides) -> Iterator[list[PointId]]:
    """Yield the ids that differ, page by page."""
    for page in sides.source.pages(_PAGE):
        differences = sides.compare_source_page(page)
        yield [point_id for point_id in differences.ids if point_id not in journal.failed]
    for page in sides.target.pages(_PAGE):
        yield sides.compare_target_page(page)


def target_only(sides: Sides) -> list[PointId]:
    """Return some ids that only the target has, empty if there are none.

    Raises:
        StoreError: If a side cannot be read.
    """
    for page in sides.target.pages(_PAGE):
        extra = sides.compare_target_page(page)
        if extra:
            return extra
    return []
