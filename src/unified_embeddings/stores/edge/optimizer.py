"""Optimising a shard in its files, which a process of its own does (see `shard`).

What lives here: what that process imports. It starts in a fraction of a second because this module
imports Qdrant's core and nothing else.
"""

from __future__ import annotations

import qdrant_edge as core


def optimize_folder(folder: str) -> bool:
    """Merge and index the points of the shard in a folder, and flush it.

    Returns:
        Whether there was something to do.

    Raises:
        Exception: If the core fails; it has no exception classes of its own.
    """
    shard = core.EdgeShard.load(folder)
    has_changed = bool(shard.optimize())
    shard.flush()
    shard.close()
    return has_changed
