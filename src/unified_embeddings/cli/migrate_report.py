"""What the steps of a migration print for people.

What lives here: lines and values. What does not: the steps (`migrate`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from unified_embeddings.cli import shared

if TYPE_CHECKING:
    from unified_embeddings.migration.estimate import Estimate
    from unified_embeddings.migration.plan import Plan
    from unified_embeddings.migration.record import MigrationRecord, PointId
    from unified_embeddings.migration.verify import VerifyReport

_SHOWN = 5
_CUT_OVER = (
    "run `migrate cutover {alias}` once the comparison is good, or with judged queries: "
    "`migrate cutover {alias} --data JUDGED`"
)
_NEXT = {
    "planned": "let every writer use the dual-writing store, then run `migrate start {alias}`",
    "backfilling": "run `migrate start {alias}` to resume",
    "backfilled": "run `migrate verify {alias}`",
    "verified": "run `migrate cutover {alias} --data JUDGED`, or, without judged queries, compare "
    "first: `migrate shadow {alias} --queries FILE`",
    "shadow": _CUT_OVER,
    "canary": _CUT_OVER,
    "cut_over": "run `migrate rollback {alias}` to go back, or `migrate retire {alias}` once sure",
    "rolled_back": "run `migrate start {alias}` to catch up, then verify again",
    "retired": "nothing; the migration is over",
}


def plan_values(planned: Plan) -> dict[str, object]:
    """Return a plan as plain values."""
    record = planned.record
    return {
        "alias": record.alias,
        "source": record.source,
        "target": record.target,
        "source_model": record.source_model,
        "model": record.model_name,
        "layout": record.layout,
        "estimate": dataclasses.asdict(planned.estimate),
        "makes_alias": planned.makes_alias,
        "notes": list(planned.notes),
        "next": next_step(record),
    }


def print_plan(planned: Plan) -> None:
    """Print a plan, and what comes next."""
    record, estimate = planned.record, planned.estimate
    for line in (
        f"moves: {record.source} ({record.source_model or 'model not recorded'}) → "
        f"{record.target} ({record.model_name}), under the alias {record.alias}",
        f"points: {estimate.points:,}, payloads of the layout {record.layout}",
        f"tokens: {estimate.tokens:,}; {estimate.truncated:.0%} of the texts are cut",
        f"time: about {_duration(estimate.seconds)} of embedding in one process",
        f"storage: {_storage(estimate)}",
    ):
        shared.print_line(shared.printable(line))
    for note in planned.notes:
        shared.print_note(note)
    for example in estimate.examples:
        shared.print_note(f"point {example.point_id}: {example.problem}")
    print_next(record)


def print_verified(report: VerifyReport) -> None:
    """Print what a verification found; faults go to standard error."""
    shared.print_line(
        f"{report.source_points:,} points in the source, {report.target_points:,} in the target; "
        f"{report.checked_vectors:,} vectors looked at, {report.embedded_again:,} texts embedded "
        "again"
    )
    if report.lowest_dense_cosine is not None:
        shared.print_line(f"lowest cosine to the new vectors: {report.lowest_dense_cosine:.5f}")
    for problem in report.problems:
        shared.print_error(problem)
    if report.is_clean:
        accepted = f" ({report.failed:,} points without vectors accepted)" if report.failed else ""
        shared.print_line(f"verified{accepted}")


def print_next(record: MigrationRecord, *, is_clean: bool = True) -> None:
    """Print what to do next."""
    if is_clean:
        shared.print_line(shared.printable(f"next: {next_step(record)}"))
    else:
        shared.print_line(
            shared.printable(f"next: run `migrate start {record.alias}` to mend, then verify again")
        )


def next_step(record: MigrationRecord) -> str:
    """Return what to do next, in words."""
    return _NEXT[record.state].format(alias=record.alias)


def _planned_points(record: MigrationRecord) -> str:
    points = (record.estimate or {}).get("points")
    return f"{points:,}" if isinstance(points, int) else "?"


def _recorded_problems(record: MigrationRecord) -> list[str]:
    problems = (record.verify or {}).get("problems", [])
    return [str(problem) for problem in problems] if isinstance(problems, list) else []


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _storage(estimate: Estimate) -> str:
    mib = 2**20
    text = (
        f"{estimate.vector_bytes / mib:,.1f} MiB of vectors and "
        f"{estimate.payload_bytes / mib:,.1f} MiB of payloads, besides indexes"
    )
    if estimate.free_bytes is not None:
        text += f"; {estimate.free_bytes / mib:,.0f} MiB are free"
    return text


def started_values(record: MigrationRecord, failed: Mapping[PointId, str]) -> dict[str, object]:
    """Return what a backfill has done as plain values."""
    return dataclasses.asdict(record.counters) | {
        "state": record.state,
        "failed": [{"id": point_id, "problem": problem} for point_id, problem in failed.items()],
    }


def print_started(record: MigrationRecord, failed: Mapping[PointId, str]) -> None:
    """Print what a backfill has done, and what comes next."""
    counters = record.counters
    shared.print_line(
        f"{record.source} → {record.target}: {counters.written:,} points written in all, "
        f"{counters.removed:,} removed, {len(failed):,} without vectors; both sides are equal"
    )
    for point_id, problem in list(failed.items())[:_SHOWN]:
        shared.print_note(f"point {point_id}: {problem}")
    print_next(record)


def print_status(record: MigrationRecord, *, failed: int, unrepaired: int) -> None:
    """Print how far a migration is."""
    since = record.entered[-1].time if record.entered else "?"
    counters = record.counters
    lines = [
        f"state: {record.state}, since {since}",
        f"moves: {record.source} → {record.target} ({record.model_name})",
        f"answers: {record.serving_collection}, under the alias {record.alias}",
        f"read: {counters.read:,} of {_planned_points(record)} points; {counters.written:,} "
        f"written, {counters.embedded:,} embedded here, {counters.repaired:,} repaired, "
        f"{counters.removed:,} removed",
        f"without vectors: {failed:,} points",
        f"writes that reached one side only: {unrepaired:,}",
        *[f"verify: {problem}" for problem in _recorded_problems(record)],
        f"next: {next_step(record)}",
    ]
    for line in lines:
        shared.print_line(shared.printable(line))
