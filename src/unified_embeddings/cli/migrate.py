"""`unified-embeddings migrate`: move a collection to another model, step by step.

What lives here: `plan`, `start`, `status` and `verify`, and what all steps share. What does not:
what they print (`migrate_report`), and the steps that move traffic (`migrate_traffic`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.cli.migrate_report import (
    next_step,
    plan_values,
    print_next,
    print_plan,
    print_started,
    print_status,
    print_verified,
    started_values,
)
from unified_embeddings.errors import InputError, StoreError, hide_passwords

if TYPE_CHECKING:
    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
    from unified_embeddings.llama.layouts import LayoutName
    from unified_embeddings.migration.embedding import OpenEmbedding
    from unified_embeddings.migration.journal import Journal
    from unified_embeddings.migration.record import MigrationRecord
    from unified_embeddings.stores.opening import Client

app = typer.Typer(
    help="Move a collection to another model: plan, start, verify, then switch.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Alias = Annotated[str, typer.Argument(help="The alias that applications open.")]
JournalDir = Annotated[
    Path,
    typer.Option(
        "--journal", help="Folder of the journals; each migration has one under its alias' name."
    ),
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="QDRANT_API_KEY", help="API key of the Qdrant server.")
]
AcceptFailed = Annotated[
    bool,
    typer.Option("--accept-failed", help="Go on without the points that cannot be embedded."),
]

DEFAULT_JOURNAL = Path("migrations")


@app.command("plan")
def plan(
    source: Annotated[str, typer.Argument(help="The collection to move, or its alias.")],
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    api_key: ApiKey = None,
    model: shared.Model = None,
    sparse_model: shared.SparseModel = None,
    model_url: shared.ModelUrl = None,
    target: Annotated[
        str | None,
        typer.Option(help="Name of the new collection.", show_default="ALIAS-MODEL-FINGERPRINT"),
    ] = None,
    alias: Annotated[
        str | None,
        typer.Option(help="The alias that applications open; made if there is none of that name."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="How payloads hold texts: llama_index, langchain, haystack, plain or mixed.",
            show_default="found out",
        ),
    ] = None,
    text_key: Annotated[
        str | None, typer.Option(help="Key of the text, in payloads of another layout.")
    ] = None,
    metadata_key: Annotated[str | None, typer.Option(help="Key of the metadata, likewise.")] = None,
    journal: JournalDir = DEFAULT_JOURNAL,
    as_json: shared.AsJson = False,
) -> None:
    """Plan a move: estimate time, tokens and storage, and refuse what cannot work.

    Nothing is written but the journal, and the alias if it is new.
    """
    from unified_embeddings.migration.opening import choose_names, open_place
    from unified_embeddings.migration.plan import plan_migration

    place = {"url": url} if url else {"path": str(path.expanduser().resolve())}
    client = open_place(place, api_key=api_key)
    config = shared.open_config(model, sparse_model, model_url)
    names = choose_names(client, source, alias)
    planned = plan_migration(
        client,
        source,
        config.embedder,
        journal_folder(journal, names.alias),
        place=place,
        model=_model_options(config, sparse_model),
        alias=alias,
        target=target,
        layout=_check_layout(layout),
        text_key=text_key,
        metadata_key=metadata_key,
    )
    if as_json:
        typer.echo(json.dumps(plan_values(planned), ensure_ascii=False))
        return
    print_plan(planned)


@app.command("start")
def start(
    alias: Alias,
    journal: JournalDir = DEFAULT_JOURNAL,
    api_key: ApiKey = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Points that are read, embedded and recorded together.")
    ] = 128,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that embed; 0 embeds in this one.")
    ] = 0,
    accept_failed: AcceptFailed = False,
    discard_target_writes: Annotated[
        bool,
        typer.Option(
            "--discard-target-writes",
            help="After a rollback: go on though writes reached the new side only.",
        ),
    ] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Copy all points, embedded by the new model, then what has changed meanwhile.

    Run it again to resume after any interruption, and at any time before the switch to catch up.
    Writers write to both collections from before the start (see docs/migrating.md).
    """
    from unified_embeddings.migration.backfill import Watching, migrate_points
    from unified_embeddings.system.progress import open_ended_progress_bar
    from unified_embeddings.system.signals import hold_interrupts

    with open_migration(alias, journal, api_key) as migration:
        open_embedding = _embedding_of(migration, workers)
        shown = shared.is_terminal() and not as_json
        try:
            with (
                open_ended_progress_bar("Migrating", shown=shown) as (set_total, advance),
                hold_interrupts() as interrupts,
            ):
                migrate_points(
                    migration.journal,
                    migration.client,
                    migration.config.embedder,
                    batch=batch,
                    open_embedding=open_embedding,
                    accept_failed=accept_failed,
                    discard_target_writes=discard_target_writes,
                    watching=Watching(
                        on_total=set_total,
                        on_points=advance,
                        on_sweep=_print_sweep,
                        check=interrupts.check,
                    ),
                )
        except KeyboardInterrupt:
            shared.print_error(
                "interrupted after the batch in hand; what was copied is kept. Run the same "
                "command again to resume"
            )
            raise typer.Exit(130) from None
        record = migration.journal.record
        failed = dict(migration.journal.failed)
    if as_json:
        typer.echo(json.dumps(started_values(record, failed), ensure_ascii=False))
        return
    print_started(record, failed)


@app.command("status")
def status(
    alias: Alias,
    journal: JournalDir = DEFAULT_JOURNAL,
    as_json: shared.AsJson = False,
) -> None:
    """Tell how far a migration is, and what to do next. Opens the journal only."""
    from unified_embeddings.migration.journal import read_failed, read_record, read_unrepaired

    folder = journal_folder(journal, alias)
    record = read_record(folder)
    failed = read_failed(folder)
    unrepaired = read_unrepaired(folder)
    if as_json:
        values = dataclasses.asdict(record) | {
            "place": {kind: hide_passwords(where) for kind, where in record.place.items()},
            "serving": record.serving_collection,
            "failed": len(failed),
            "unrepaired_writes": unrepaired,
            "next": next_step(record),
        }
        typer.echo(json.dumps(values, ensure_ascii=False))
        return
    print_status(record, failed=len(failed), unrepaired=unrepaired)


@app.command("verify")
def verify(
    alias: Alias,
    journal: JournalDir = DEFAULT_JOURNAL,
    api_key: ApiKey = None,
    sample: Annotated[int, typer.Option(min=1, help="Points whose texts are embedded again.")] = 64,
    accept_failed: AcceptFailed = False,
    as_json: shared.AsJson = False,
) -> None:
    """Check that the new collection holds exactly what it should. Exits with 1 if it does not."""
    from unified_embeddings.migration.verify import verify_migration
    from unified_embeddings.system.progress import open_ended_progress_bar

    with (
        open_migration(alias, journal, api_key) as migration,
        open_ended_progress_bar("Verifying", shown=shared.is_terminal() and not as_json) as (
            set_total,
            advance,
        ),
    ):
        report = verify_migration(
            migration.journal,
            migration.client,
            migration.config.embedder,
            accept_failed=accept_failed,
            sample=sample,
            on_total=set_total,
            on_points=advance,
        )
        record = migration.journal.record
    if as_json:
        values = dataclasses.asdict(report) | {
            "is_clean": report.is_clean,
            "problems": list(report.problems),
            "state": record.state,
        }
        typer.echo(json.dumps(values, ensure_ascii=False))
    else:
        print_verified(report)
        print_next(record, is_clean=report.is_clean)
    if not report.is_clean:
        raise typer.Exit(1)


# --- what all steps share -----------------------------------------------------------------------


@dataclass(frozen=True)
class OpenMigration:
    """A migration with all that its steps need.

    Attributes:
        journal: Open, hence locked.
        client: Of the place of both collections.
        config: Of the new model.
    """

    journal: Journal
    client: Client
    config: UnifiedEmbeddingConfig


def journal_folder(journals: Path, alias: str) -> Path:
    """Return the folder of one migration's journal.

    Raises:
        InputError: If the alias is no name of a folder.
    """
    if not alias.strip() or alias in (".", "..") or "/" in alias or "\\" in alias:
        raise InputError(f"{alias!r} cannot be a folder's name; give another --alias")
    return journals.expanduser() / alias


@contextlib.contextmanager
def open_migration(alias: str, journals: Path, api_key: str | None) -> Iterator[OpenMigration]:
    """Open a migration's journal, place and model, and release the journal at the end.

    Raises:
        JournalError: If there is no such migration, or somebody works on it.
        StoreError: If the place cannot be opened.
        FingerprintMismatchError: If the model there now is not the one that was planned.
    """
    from unified_embeddings.migration.opening import open_model

    with open_collections(alias, journals, api_key) as (journal, client):
        yield OpenMigration(journal, client, open_model(journal.record))


@contextlib.contextmanager
def open_collections(
    alias: str, journals: Path, api_key: str | None
) -> Iterator[tuple[Journal, Client]]:
    """Open a migration's journal and place, for a step that needs no model.

    Raises:
        JournalError: If there is no such migration, or somebody works on it.
        StoreError: If the place cannot be opened.
    """
    from unified_embeddings.migration.journal import Journal
    from unified_embeddings.migration.opening import open_place

    with Journal.open(journal_folder(journals, alias)) as journal:
        try:
            client = open_place(journal.record.place, api_key=api_key)
        except StoreError as error:
            raise _explained(error, journal.record) from error
        yield journal, client


def _print_sweep(number: int, mended: int) -> None:
    """Tell of a comparison that found something; the last one finds nothing."""
    if mended:
        shared.print_note(f"comparison {number} of both sides: {mended:,} points mended")


def _embedding_of(migration: OpenMigration, workers: int) -> OpenEmbedding | None:
    """Return what opens worker processes; None embeds in this one."""
    if workers == 0:
        return None
    from unified_embeddings.migration.worker_embedding import in_workers

    record = migration.journal.record
    return partial(in_workers, migration.config.embedder, record.model, workers)


def _explained(error: StoreError, record: MigrationRecord) -> StoreError:
    """Say what to do where the application has the folder open."""
    if "path" not in record.place:
        return error
    return StoreError.of_place(
        record.place["path"],
        "opening",
        f"{error}. A folder belongs to one process: stop the application that has it open for the "
        "time of this step, or call the step from it (see docs/migrating.md)",
    )


def _check_layout(layout: str | None) -> LayoutName | None:
    from unified_embeddings.llama.layouts import LAYOUT_NAMES

    for name in LAYOUT_NAMES:
        if layout == name:
            return name
    if layout is None:
        return None
    raise InputError(f"--layout must be one of {', '.join(LAYOUT_NAMES)}, not {layout!r}")


def _model_options(config: UnifiedEmbeddingConfig, sparse_model: str | None) -> dict[str, object]:
    """Return the options that make the same model again, in whatever folder."""
    if config.url is not None:
        return {"url": config.url}
    options: dict[str, object] = {"model_choice": _absolute(config.model_choice)}
    if sparse_model is not None:
        options["sparse_model"] = _absolute(sparse_model)
    return options


def _absolute(choice: str) -> str:
    path = Path(choice).expanduser()
    return str(path.resolve()) if path.exists() else choice
