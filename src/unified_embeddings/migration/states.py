"""The states of a migration, and which may follow which.

What lives here: the order of the steps, as data. What does not: the record of a migration and its
file (`journal`), and what a step does.

    planned -> backfilling -> backfilled -> verified -> [shadow] -> [canary] -> cut_over -> retired
                                                                                  |  ^
                                                                                  v  |
                                                                               rolled_back

Shadow and canary can be left out. Until cut-over, the backfill can be made again, which also copies
what has changed since; the migration is to be verified again then.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from unified_embeddings.errors import UnifiedEmbeddingsError

State: TypeAlias = Literal[
    "planned",
    "backfilling",
    "backfilled",
    "verified",
    "shadow",
    "canary",
    "cut_over",
    "rolled_back",
    "retired",
]

_NEXT: dict[State, frozenset[State]] = {
    "planned": frozenset({"backfilling"}),
    "backfilling": frozenset({"backfilled"}),
    "backfilled": frozenset({"backfilling", "verified"}),
    "verified": frozenset({"backfilling", "shadow", "canary", "cut_over"}),
    "shadow": frozenset({"backfilling", "verified", "canary", "cut_over"}),
    "canary": frozenset({"backfilling", "verified", "shadow", "cut_over"}),
    "cut_over": frozenset({"rolled_back", "retired"}),
    "rolled_back": frozenset({"backfilling", "verified", "shadow", "canary", "cut_over"}),
    "retired": frozenset(),
}

_STEPS: dict[str, tuple[State, ...]] = {
    "start": ("backfilling", "backfilled"),
    "verify": ("verified",),
    "shadow": ("shadow",),
    "canary": ("canary",),
    "cutover": ("cut_over",),
    "rollback": ("rolled_back",),
    "retire": ("retired",),
}
"""Step → the states that it leads to, in the usual order."""


class MigrationStateError(UnifiedEmbeddingsError):
    """A step was asked for that the migration's state does not allow."""


def require_transition(now: State, following: State) -> None:
    """Refuse a state that may not follow; a state may always be entered again.

    Raises:
        MigrationStateError: If it may not; the message names the steps that may follow.

    Example:
        >>> from unified_embeddings.migration.states import require_transition
        >>> require_transition("verified", "cut_over")
        >>> require_transition("planned", "cut_over")
        Traceback (most recent call last):
            ...
        unified_embeddings.migration.states.MigrationStateError: the migration is 'planned' and ...
    """
    if following == now or following in _NEXT[now]:
        return
    steps = [step for step, states in _STEPS.items() if not _NEXT[now].isdisjoint(states)]
    allowed = ", ".join(f"`migrate {step}`" for step in steps) or "nothing"
    raise MigrationStateError(
        f"the migration is {now!r} and cannot become {following!r}; what may follow: {allowed}"
    )
