"""`unified-embeddings migrate`: the steps that move traffic to the new collection, and back.

What lives here: `shadow`, `canary`, `cutover`, `rollback` and `retire`. What does not: the steps
before them (`migrate`), the rule of the gate and the switch (`migration`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.cli.migrate import (
    DEFAULT_JOURNAL,
    Alias,
    ApiKey,
    JournalDir,
    journal_folder,
    open_collections,
)
from unified_embeddings.cli.migrate_report import print_next
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError

if TYPE_CHECKING:
    from unified_embeddings.migration.cutover import Switch
    from unified_embeddings.migration.gate import GateOptions, GateReport
    from unified_embeddings.migration.journal import Journal
    from unified_embeddings.migration.record import MigrationRecord
    from unified_embeddings.migration.traffic import SidesToAsk
    from unified_embeddings.retrievers.transition_report import Latency, TransitionReport
    from unified_embeddings.stores.opening import Client

OldModel = Annotated[
    str | None,
    typer.Option(
        "--old-model",
        help="The model that made the old collection.",
        show_default="the one that it records",
    ),
]
OldSparseModel = Annotated[
    str | None,
    typer.Option("--old-sparse-model", help="Its second model, for sparse vectors, if it had one."),
]
_SHOWN_EXAMPLES = 3
_QUERY_WIDTH = 80


def shadow(
    alias: Alias,
    queries: Annotated[
        Path,
        typer.Option(help="Questions: a text file with one a line, or JSON lines with a `text`."),
    ],
    old_model: OldModel = None,
    old_sparse_model: OldSparseModel = None,
    journal: JournalDir = DEFAULT_JOURNAL,
    api_key: ApiKey = None,
    as_json: shared.AsJson = False,
) -> None:
    """Ask both collections the same questions, and compare the answers and how long they take.

    Nobody else's answers change. The comparison goes into the journal, for the gate.
    """
    from unified_embeddings.migration.comparison import compare_traffic
    from unified_embeddings.migration.traffic import (
        enter_shadow,
        record_report,
        require_comparable,
    )
    from unified_embeddings.system.progress import progress_bar

    questions = read_questions(queries)
    with open_collections(alias, journal, api_key) as (opened, client):
        require_comparable(opened.record)
        sides = _open_sides(opened.record, client, old_model, old_sparse_model)
        shown = shared.is_terminal() and not as_json
        with progress_bar("Asking both sides", len(questions), shown=shown) as advance:
            report = compare_traffic(sides.old, sides.new, questions, on_query=advance)
        enter_shadow(opened)
        record_report(opened.folder, report)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False))
        return
    _print_traffic(report)
    print_next(opened.record)


def canary(
    alias: Alias,
    share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the questions that the new side answers."),
    ],
    journal: JournalDir = DEFAULT_JOURNAL,
    as_json: shared.AsJson = False,
) -> None:
    """Let the new collection answer a share of the questions.

    Applications that ask through `open_transition` follow within a second.
    """
    from unified_embeddings.migration.journal import Journal
    from unified_embeddings.migration.traffic import set_share

    with Journal.open(journal_folder(journal, alias)) as opened:
        set_share(opened, share)
        record = opened.record
    if as_json:
        typer.echo(json.dumps({"state": record.state, "share": share}))
        return
    shared.print_line(f"the new side answers {share:.0%} of the questions")
    print_next(record)


def cutover(
    alias: Alias,
    data: Annotated[
        Path | None,
        typer.Option(help="Judged queries in BEIR's layout, whose documents are in the index."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Loss in nDCG@10 that need not be ruled out.")
    ] = 0.02,
    min_judged: Annotated[
        int, typer.Option(min=1, help="Judged queries that are needed, with --data.")
    ] = 30,
    min_overlap: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of common nodes, without --data.")
    ] = 0.3,
    max_slowdown: Annotated[
        float, typer.Option(min=0, help="How many times slower is fine, without --data.")
    ] = 2.0,
    force: Annotated[
        bool, typer.Option("--force", help="Switch although the gate is closed; it is recorded.")
    ] = False,
    old_model: OldModel = None,
    old_sparse_model: OldSparseModel = None,
    journal: JournalDir = DEFAULT_JOURNAL,
    api_key: ApiKey = None,
    as_json: shared.AsJson = False,
) -> None:
    """Let the alias name the new collection, if the gate is open. Exits with 1 if it is not.

    The gate: the last verification was clean, both collections hold the same points now, and the
    new side is not worse. With --data the lower
    end of the interval of the difference in nDCG@10 decides; without, the latest comparison of
    `migrate shadow`.
    """
    from unified_embeddings.migration.cutover import GateClosedError, cut_over
    from unified_embeddings.migration.gate import GateOptions

    options = GateOptions(
        tolerance=tolerance,
        min_judged=min_judged,
        min_overlap=min_overlap,
        max_slowdown=max_slowdown,
    )
    with open_collections(alias, journal, api_key) as (opened, client):
        report = _ask_gate(opened, client, data, options, old_model, old_sparse_model)
        try:
            done = cut_over(opened, client, report, force=force)
        except GateClosedError as error:
            report = error.report
            if as_json:
                typer.echo(json.dumps(_gate_values(report, None), ensure_ascii=False))
            else:
                _print_gate(report)
            raise UnifiedEmbeddingsError(
                "nothing was switched. Mend what failed, or override it with --force, which the "
                "journal records"
            ) from error
    report = done.gate or report
    if as_json:
        typer.echo(json.dumps(_gate_values(report, done), ensure_ascii=False))
        return
    _print_gate(report)
    _print_switch(done, opened.record)


def rollback(
    alias: Alias,
    accept_lacking: Annotated[
        bool,
        typer.Option("--accept-lacking", help="Go back though the old collection lacks writes."),
    ] = False,
    journal: JournalDir = DEFAULT_JOURNAL,
    api_key: ApiKey = None,
    as_json: shared.AsJson = False,
) -> None:
    """Let the alias name the old collection again. Needs no model."""
    from unified_embeddings.migration.cutover import roll_back

    with open_collections(alias, journal, api_key) as (opened, client):
        done = roll_back(opened, client, accept_lacking=accept_lacking)
    if as_json:
        typer.echo(json.dumps(_switch_values(done)))
        return
    _print_switch(done, opened.record)


def retire(
    alias: Alias,
    yes: Annotated[bool, typer.Option("--yes", help="Delete the old collection.")] = False,
    discard_source_writes: Annotated[
        bool,
        typer.Option(
            "--discard-source-writes", help="Delete it though writes reached the old side only."
        ),
    ] = False,
    journal: JournalDir = DEFAULT_JOURNAL,
    api_key: ApiKey = None,
    as_json: shared.AsJson = False,
) -> None:
    """Delete the old collection, once nobody wants to go back. Needs --yes."""
    from unified_embeddings.migration.cutover import retire as retire_source

    with open_collections(alias, journal, api_key) as (opened, client):
        deleted = retire_source(
            opened, client, confirmed=yes, discard_source_writes=discard_source_writes
        )
        source = opened.record.source
    if as_json:
        typer.echo(json.dumps({"state": "retired", "collection": source, "deleted": deleted}))
        return
    shared.print_line(f"{source}: {'deleted' if deleted else 'was gone already'}")
    print_next(opened.record)


def read_questions(path: Path) -> list[str]:
    """Return the questions in a file, without blank lines and repetitions.

    Args:
        path: One question a line; in a `.jsonl` file each line is an object with a "text", as in
            BEIR's `queries.jsonl`.

    Raises:
        InputError: If it cannot be read, a line is malformed, or there is no question.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from error
    questions: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        text: object = line.strip()
        if path.suffix == ".jsonl":
            text = _read_text(line)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f'{path}, line {number} should be an object with a "text"')
        questions.append(text)
    if not questions:
        raise InputError(f"{path} holds no question; write one a line")
    return list(dict.fromkeys(questions))


def _read_text(line: str) -> object:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row.get("text") if isinstance(row, dict) else None


def _open_sides(
    record: MigrationRecord, client: Client, old_model: str | None, old_sparse_model: str | None
) -> SidesToAsk:
    """Open both collections, the old one with the model given, or else with the one it records."""
    from unified_embeddings.migration.comparison import DEPTH
    from unified_embeddings.migration.opening import open_model
    from unified_embeddings.migration.traffic import open_sides, prove_source

    model = old_model or record.source_model or _model_recorded_since(record, client)
    if model is None:
        raise InputError(
            f"the old collection {record.source!r} does not record which model made it; name it "
            "with --old-model, or prove and record it with `unified-embeddings adopt`"
        )
    old = shared.open_config(model, old_sparse_model)
    prove_source(record, client, old.embedder)
    new = open_model(record)
    return open_sides(record, client, old.embedder, new.embedder, similarity_top_k=DEPTH)


def _model_recorded_since(record: MigrationRecord, client: Client) -> str | None:
    """Return the model that the old collection records now: `adopt` may follow the plan."""
    from unified_embeddings.stores.errors import store_errors
    from unified_embeddings.stores.schema import recorded_model

    with store_errors(record.source, "reading its model"):
        model = recorded_model(client.get_collection(record.source))
    return None if model is None else model.name


def _ask_gate(
    journal: Journal,
    client: Client,
    data: Path | None,
    options: GateOptions,
    old_model: str | None,
    old_sparse_model: str | None,
) -> GateReport:
    """Gather the evidence, and return what the gate says of it.

    Where the alias was switched already, nothing is left to decide, and the report is empty.
    """
    from unified_embeddings.evaluation.corpora import read_beir
    from unified_embeddings.migration.comparison import measure_quality
    from unified_embeddings.migration.cutover import is_switched
    from unified_embeddings.migration.gate import GateReport, judge
    from unified_embeddings.migration.journal import read_unrepaired
    from unified_embeddings.migration.states import require_transition
    from unified_embeddings.migration.traffic import latest_report
    from unified_embeddings.system.progress import progress_bar

    record = journal.record
    require_transition(record.state, "cut_over")
    if is_switched(client, record):
        return GateReport(checks=())
    unrepaired = read_unrepaired(journal.folder)
    if data is None:
        traffic = latest_report(journal.folder)
        return judge(record, traffic=traffic, unrepaired=unrepaired, options=options)
    corpus = read_beir(data)
    sides = _open_sides(record, client, old_model, old_sparse_model)
    count = 2 * len(corpus.queries)
    with progress_bar("Asking both sides", count, shown=shared.is_terminal()) as advance:
        quality = measure_quality(sides.old, sides.new, corpus, on_query=advance)
    return judge(record, quality=quality, unrepaired=unrepaired, options=options)


def _print_traffic(report: TransitionReport) -> None:
    from unified_embeddings.migration.gate import GateOptions

    if report.mean_overlap is None or report.mean_rank_biased_overlap is None:
        shared.print_error(f"nothing could be compared; the last error: {report.last_error}")
        return
    shared.print_line(
        f"{report.compared} questions: {report.mean_overlap:.0%} of the first {report.depth} nodes "
        f"are common, rank-biased overlap {report.mean_rank_biased_overlap:.2f}, "
        f"{report.same_first or 0:.0%} have the same first node"
    )
    for name, latency in (("old", report.old_latency), ("new", report.new_latency)):
        shared.print_line(f"{name}: {_describe_latency(latency)}")
    failures = report.failed.get("new", 0)
    if failures:
        shared.print_error(
            f"the new side failed at {failures}; the last error: {report.last_error}"
        )
    for example in report.worst[:_SHOWN_EXAMPLES]:
        query = shared.one_line(example.query, _QUERY_WIDTH)
        shared.print_line(f"least in common ({example.overlap:.0%}): {query}")
    wanted = GateOptions().min_compared
    if report.compared < wanted:
        shared.print_note(f"cutover without --data wants {wanted} questions compared")


def _describe_latency(latency: Latency | None) -> str:
    if latency is None:
        return "no answer"
    return f"half of the answers within {latency.p50:.3f} s, 95% within {latency.p95:.3f} s"


def _print_gate(report: GateReport) -> None:
    """Print what the gate says, unless it had nothing to decide."""
    if report.checks:
        for line in report.describe().splitlines():
            shared.print_line(shared.printable(line))


def _print_switch(done: Switch, record: MigrationRecord) -> None:
    words = {
        "switched": "names",
        "completed": "was switched by an interrupted run, and names",
        "unchanged": "already names",
    }
    shared.print_line(shared.printable(f"{done.alias} {words[done.outcome]} {done.collection}"))
    if done.overridden:
        shared.print_note(f"overridden, and recorded: {', '.join(done.overridden)}")
    if done.lacking:
        shared.print_note(
            f"{done.lacking} writes have failed on this side, which lacks them; the events "
            '"dirty" in the journal name the points'
        )
    print_next(record)


def _switch_values(done: Switch) -> dict[str, object]:
    return {
        "alias": done.alias,
        "collection": done.collection,
        "outcome": done.outcome,
        "overridden": list(done.overridden),
        "lacking": done.lacking,
    }


def _gate_values(report: GateReport, done: Switch | None) -> dict[str, object]:
    outcome: dict[str, object] = {"outcome": "closed"}
    if done is not None:
        outcome = _switch_values(done)
    gate = report.to_dict() if report.checks else None
    return {"gate": gate} | outcome
