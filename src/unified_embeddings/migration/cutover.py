"""The switch from the old index to the new one, back, and the end of the old one.

What lives here: three steps, each of which may be interrupted anywhere and repeated. What does not:
whether the new side is good enough (`gate`), and copying points (`backfill`).

A switch is one request that takes the alias from one collection and gives it to the other, which
Qdrant does at once. The journal is written before it (a note of what is about to happen) and after
it (the state). A crash in between leaves the alias switched and the state not yet changed: the step
that is repeated sees where the alias points, and only completes the journal.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from unified_embeddings.errors import FingerprintMismatchError
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.gate import GateReport
from unified_embeddings.migration.journal import Journal, read_unrepaired
from unified_embeddings.migration.last_look import compare_now
from unified_embeddings.migration.opening import check_alias_owner
from unified_embeddings.migration.record import MigrationRecord
from unified_embeddings.migration.states import MigrationStateError, State, require_transition
from unified_embeddings.stores.aliases import read_aliases, switch_alias
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import recorded_model

_UNFINISHED: frozenset[State] = frozenset({"planned", "backfilling", "backfilled"})
"""States from which there is no cut-over: the target is not known to be complete."""


class GateClosedError(MigrationError):
    """The gate does not let the new index take over.

    Attributes:
        report: What it says.
    """

    def __init__(self, report: GateReport) -> None:
        self.report = report
        failed = "; ".join(f"{check.name}: {check.reason}" for check in report.failed_checks)
        super().__init__(
            f"the gate is closed ({failed}). Nothing was switched. Mend what failed, or override "
            "it with --force, which the journal records"
        )


@dataclass(frozen=True)
class Switch:
    """What a step did.

    Attributes:
        alias: The alias.
        collection: The collection that it names now.
        outcome: "switched"; "completed", if an earlier run had switched it and not recorded so; or
            "unchanged", if nothing was left to do.
        overridden: The gate's conditions that were overridden.
        lacking: Writes that the collection lacks, since they have reached the other one only.
        gate: What the gate said right before the switch; None where it was not asked.
    """

    alias: str
    collection: str
    outcome: Literal["switched", "completed", "unchanged"]
    overridden: tuple[str, ...] = ()
    lacking: int = 0
    gate: GateReport | None = None


def is_switched(client: Client, record: MigrationRecord) -> bool:
    """Tell whether the alias names the target already.

    Raises:
        MigrationError: If it names neither side.
        StoreError: If the store cannot be read.
    """
    return _owner(client, record) == record.target


def cut_over(
    journal: Journal, client: Client, report: GateReport, *, force: bool = False
) -> Switch:
    """Let the alias name the new collection.

    Both collections are compared once more right before: a difference closes the gate as well.

    Args:
        journal: The migration's journal.
        client: Client of its place.
        report: What the gate says. It is recorded, and not asked again where the alias was already
            switched.
        force: Switch even if the gate is closed; what it overrides is recorded.

    Raises:
        GateClosedError: If the gate is closed and `force` is not given.
        MigrationStateError: If the migration's state does not allow it.
        MigrationError: If the alias is another collection's, or the target is not there.
        FingerprintMismatchError: If the target records another model than the migration's.
        StoreError: If the store fails.
    """
    record = journal.record
    require_transition(record.state, "cut_over")
    owner = _owner(client, record)
    if record.state == "cut_over":
        if owner == record.target:
            return Switch(record.alias, record.target, "unchanged")
        raise MigrationError(
            f"the journal says that {record.alias!r} was switched to {record.target!r}, but it "
            f"names {record.source!r}: a rollback was interrupted, or somebody switched it by "
            "hand. Run `migrate rollback` to record that, and then cut over again"
        )
    _check_target(client, record)
    if owner == record.target:
        journal.enter("cut_over")
        return Switch(record.alias, record.target, "completed")
    if report.passed or force:
        report = dataclasses.replace(report, checks=(*report.checks, compare_now(journal, client)))
    overridden = tuple(check.name for check in report.failed_checks)
    if overridden and not force:
        journal.update(gate=report.to_dict())
        journal.note("gate_closed", failed=list(overridden))
        raise GateClosedError(report)
    overrides = record.overrides
    if overridden:
        reasons = {check.name: check.reason for check in report.failed_checks}
        overrides = (*overrides, {"time": _now(), "step": "cutover", "overridden": reasons})
    # Recorded before the switch: nobody is to find a switched alias without the reason.
    journal.update(gate=report.to_dict(), overrides=overrides)
    journal.note("cutting_over", alias=record.alias, to=record.target, overridden=list(overridden))
    switch_alias(client, record.alias, owner=record.source, to=record.target)
    journal.enter("cut_over")
    # Until then the old side was written first, and a write may have failed on the new one.
    lacking = read_unrepaired(journal.folder, "target")
    return Switch(record.alias, record.target, "switched", overridden, lacking, report)


def roll_back(journal: Journal, client: Client, *, accept_lacking: bool = False) -> Switch:
    """Let the alias name the old collection again.

    It answers as before, with what the dual-writing store has written since. Writes that failed
    there are counted in `Switch.lacking`, and the journal's events "dirty" name the points.

    Args:
        journal: The migration's journal.
        client: Client of its place.
        accept_lacking: Whether to go back though the old collection lacks writes.

    Raises:
        MigrationStateError: If there was no cut-over, or the old collection was retired.
        MigrationError: If the alias is another collection's, the old collection is gone, or it
            lacks writes and `accept_lacking` is not given.
        StoreError: If the store fails.
    """
    record = journal.record
    owner = _owner(client, record)
    lacking = read_unrepaired(journal.folder, "source")
    if owner == record.target and record.state in _UNFINISHED:
        # Switched by hand, since no cut-over begins in these states, which thus stay.
        _switch_back(journal, client, lacking, accept_lacking=accept_lacking)
        return Switch(record.alias, record.source, "switched", lacking=lacking)
    if owner == record.target and record.state not in ("cut_over", "retired"):
        # A cut-over was interrupted between the switch and the journal.
        journal.enter("cut_over")
        record = journal.record
    if record.state == "rolled_back":
        return Switch(record.alias, record.source, "unchanged", lacking=lacking)
    if record.state == "retired":
        raise MigrationStateError(
            f"the migration is 'retired': the old collection {record.source!r} was deleted and "
            "cannot answer again. Plan a migration back to the old model"
        )
    require_transition(record.state, "rolled_back")
    if owner == record.source:
        _enter_rolled_back(journal)
        return Switch(record.alias, record.source, "completed", lacking=lacking)
    _switch_back(journal, client, lacking, accept_lacking=accept_lacking)
    _enter_rolled_back(journal)
    return Switch(record.alias, record.source, "switched", lacking=lacking)


def _enter_rolled_back(journal: Journal) -> None:
    """Record a rollback; what was verified before the cut-over proves nothing any more."""
    journal.enter("rolled_back", verify=None)


def _switch_back(journal: Journal, client: Client, lacking: int, *, accept_lacking: bool) -> None:
    """Give the alias to the old collection, unless that is gone or lacks writes."""
    record = journal.record
    with store_errors(record.source, "looking it up"):
        if not client.collection_exists(record.source):
            raise MigrationError(
                f"the old collection {record.source!r} does not exist any more, so the alias "
                f"{record.alias!r} stays where it is"
            )
    if lacking and not accept_lacking:
        raise MigrationError(
            f"{lacking} writes since the cut-over have reached {record.target!r} only, so that "
            f"{record.source!r} would answer without them. They are the events 'dirty' with the "
            "side 'source' in the journal's events.jsonl. Nothing was switched; to go back all "
            "the same, give --accept-lacking"
        )
    journal.note("rolling_back", alias=record.alias, to=record.source, lacking=lacking)
    switch_alias(client, record.alias, owner=record.target, to=record.source)


def retire(
    journal: Journal, client: Client, *, confirmed: bool, discard_source_writes: bool = False
) -> bool:
    """Delete the old collection; there is no way back from this.

    Args:
        journal: The migration's journal.
        client: Client of its place.
        confirmed: Whether somebody has said that it is to be deleted.
        discard_source_writes: Whether to delete it though it holds writes that the new collection
            lacks.

    Returns:
        Whether it was deleted now; False if it was gone already.

    Raises:
        MigrationStateError: If the new collection does not serve.
        MigrationError: If it is not confirmed, an alias still names the old collection, or that
            holds writes that the new one lacks.
        StoreError: If the store fails.
    """
    record = journal.record
    require_transition(record.state, "retired")
    if record.state == "retired":
        return False
    with store_errors(record.source, "looking it up"):
        aliases = read_aliases(client)
        exists = client.collection_exists(record.source)
        # An alias may have taken the name of the collection after that was deleted.
        is_collection = exists and record.source not in aliases
    _refuse_if_named(record, aliases)
    if not is_collection:
        journal.enter("retired")
        return False
    if not confirmed:
        with store_errors(record.source, "counting its points"):
            count = client.count(record.source).count
        raise MigrationError(
            f"this deletes the old collection {record.source!r} with its {count} points, after "
            "which there is no rollback. Say so with --yes"
        )
    _check_source_writes(journal, discard=discard_source_writes)
    journal.note("retiring", collection=record.source)
    with store_errors(record.source, "deleting it"):
        client.delete_collection(record.source)
    journal.enter("retired")
    return True


def _check_source_writes(journal: Journal, *, discard: bool) -> None:
    """Refuse to delete the only copy of writes."""
    lacking = read_unrepaired(journal.folder, "target")
    if not lacking:
        return
    if discard:
        journal.note("discarded", side="target", writes=lacking)
        return
    raise MigrationError(
        f"{lacking} writes have reached {journal.record.source!r} only, and would be lost with it. "
        "They are the events 'dirty' with the side 'target' in the journal's events.jsonl. Write "
        "them again, or roll back, catch up (`migrate start`) and switch again; to delete the old "
        "collection all the same, give --discard-source-writes"
    )


def _owner(client: Client, record: MigrationRecord) -> str:
    """Return which of the two sides the alias names."""
    check_alias_owner(client, record)
    with store_errors(record.alias, "reading the aliases"):
        return read_aliases(client)[record.alias]


def _check_target(client: Client, record: MigrationRecord) -> None:
    """Refuse a target that is missing, or that another model has made."""
    with store_errors(record.target, "reading the target"):
        if not client.collection_exists(record.target):
            raise MigrationError(
                f"the target {record.target!r} does not exist, so {record.alias!r} stays with "
                f"{record.source!r}; run `migrate start`"
            )
        model = recorded_model(client.get_collection(record.target))
    if model is None or model.fingerprint != record.fingerprint:
        raise FingerprintMismatchError(
            record.target,
            expected=record.fingerprint,
            found="nothing recorded" if model is None else model.fingerprint,
            model=record.model_name,
            found_model="unknown" if model is None else model.name,
        )


def _refuse_if_named(record: MigrationRecord, aliases: dict[str, str]) -> None:
    """Refuse to delete the source while a name leads to it, or the target does not serve."""
    names = sorted(alias for alias, owner in aliases.items() if owner == record.source)
    if names:
        raise MigrationError(
            f"{', '.join(map(repr, names))} still names the old collection {record.source!r}: "
            "whoever opens that would lose it. Let it name another collection first"
        )
    if aliases.get(record.alias) != record.target:
        raise MigrationError(
            f"the alias {record.alias!r} does not name the new collection {record.target!r}, so "
            f"the old one {record.source!r} is kept"
        )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
