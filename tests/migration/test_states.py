"""The steps of a migration come in one order."""

from __future__ import annotations

from itertools import pairwise

import pytest

from unified_embeddings.migration.states import MigrationStateError, State, require_transition


@pytest.mark.parametrize(
    "way",
    [
        ["planned", "backfilling", "backfilled", "verified", "cut_over", "retired"],
        ["verified", "shadow", "canary", "cut_over", "rolled_back", "cut_over", "retired"],
        ["backfilled", "backfilling", "backfilling", "backfilled", "verified", "verified"],
        ["canary", "shadow", "verified", "backfilling"],
    ],
)
def test_steps_in_their_order_are_allowed(way: list[State]) -> None:
    for now, following in pairwise(way):
        require_transition(now, following)


@pytest.mark.parametrize(
    ("now", "following"),
    [
        ("planned", "verified"),
        ("backfilling", "verified"),
        ("backfilled", "cut_over"),
        ("rolled_back", "retired"),
        ("retired", "rolled_back"),
        ("cut_over", "backfilling"),
    ],
)
def test_other_steps_are_refused_with_what_may_follow(now: State, following: State) -> None:
    with pytest.raises(MigrationStateError, match=f"is '{now}' and cannot become '{following}'"):
        require_transition(now, following)


def test_a_refusal_names_the_commands_that_may_follow() -> None:
    with pytest.raises(MigrationStateError, match=r"what may follow: `migrate start`$"):
        require_transition("planned", "cut_over")
    with pytest.raises(MigrationStateError, match=r"follow: `migrate rollback`, `migrate retire`$"):
        require_transition("cut_over", "backfilling")
