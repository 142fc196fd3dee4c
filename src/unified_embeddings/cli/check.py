"""`unified-embeddings check`: tell whether a store can be read, all of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import StoreError

if TYPE_CHECKING:
    from unified_embeddings.stores.edge.checking import CollectionReport

CheckedPath = Annotated[
    Path,
    typer.Argument(parser=shared.require_path, help="Folder of the embedded Qdrant store."),
]


def check(
    path: CheckedPath = shared.DEFAULT_PATH,
    as_json: shared.AsJson = False,
) -> None:
    """Compare an embedded store's files with their checksums and read every point.

    Exit code 1 if anything is damaged. A damaged collection is left as it is. Nothing else may have
    the store open meanwhile.
    """
    from unified_embeddings.stores.edge.checking import check_store

    if not path.is_dir():
        raise StoreError.of_place(str(path), "checking", "there is no such folder")
    reports = []
    for report in check_store(path):
        reports.append(report)
        if not as_json:
            _print_report(report)
    if as_json:
        typer.echo(json.dumps([asdict(report) for report in reports]))
    elif not reports:
        shared.print_line("the store has no collections")
    if any(report.problems for report in reports):
        raise typer.Exit(1)


def _print_report(report: CollectionReport) -> None:
    name = shared.printable(report.collection)
    if not report.problems:
        note = "" if report.was_closed else "; it was not closed, so there was nothing to compare"
        shared.print_line(f"{name}: {report.points} points, all readable{note}")
        return
    readable = "no point can be read"
    if report.points is not None:
        readable = f"{report.points} points can be read"
    shared.print_line(f"{name}: DAMAGED; {readable}")
    for problem in report.problems:
        shared.print_line(f"  {shared.printable(problem)}")
