"""Names for what Qdrant's core takes and answers.

The core's type stubs are partly wrong (docs/adr/0018), so mypy skips them and all of these are
`Any`. The names tell a reader which of the core's objects an argument is.
"""

from __future__ import annotations

from typing import Any, TypeAlias

CoreShard: TypeAlias = Any
"""An open `EdgeShard`: the points of one collection."""
CoreConfig: TypeAlias = Any
"""The settings that a shard is created with, or a part of them."""
CoreEnum: TypeAlias = Any
"""One of the core's enums, or a member of it."""
CoreFilter: TypeAlias = Any
"""A filter or one of its conditions; None selects every point."""
CorePoint: TypeAlias = Any
"""A point to store, or one that the core found."""
CoreQuery: TypeAlias = Any
"""A query request, a prefetch, or what they score by."""
CoreUpdate: TypeAlias = Any
"""An `UpdateOperation`: a change to the points or the indexes of a shard."""
CoreVector: TypeAlias = Any
"""A list of floats, a list of such lists for a multi-vector, or the core's `SparseVector`."""
