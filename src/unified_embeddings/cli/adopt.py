"""`unified-embeddings adopt`: prove which model made a collection, and record it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import existing, shared

if TYPE_CHECKING:
    from unified_embeddings.migration.adoption import AdoptionReport


def adopt(
    collection: existing.CollectionName,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    api_key: existing.ApiKey = None,
    model: shared.Model = None,
    sparse_model: shared.SparseModel = None,
    model_url: shared.ModelUrl = None,
    layout: existing.LayoutOption = None,
    text_key: existing.TextKey = None,
    metadata_key: existing.MetadataKey = None,
    dense_vector: Annotated[
        str | None,
        typer.Option(help="Name of the dense vectors.", show_default="text-dense, or the only one"),
    ] = None,
    sparse_vector: Annotated[
        str | None,
        typer.Option(help="Name of the sparse vectors.", show_default="LlamaIndex's"),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Record the model without a proof.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compare the vectors; record nothing.")
    ] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Prove that a model made a collection that other software filled, and record it there.

    Twenty of its texts are embedded again, and compared with the vectors that it holds. If they do
    not match, nothing is changed, and the command fails.
    """
    from unified_embeddings.migration.adoption import adopt_collection

    client, name = existing.open_existing(collection, path, url, api_key)
    config = shared.open_config(model, sparse_model, model_url)
    report = adopt_collection(
        client,
        name,
        config.embedder,
        layout=existing.read_layout(layout, text_key, metadata_key),
        dense_vector=dense_vector,
        sparse_vector=sparse_vector,
        trust=trust,
        record=not dry_run,
    )
    if as_json:
        typer.echo(json.dumps(asdict(report), ensure_ascii=False))
    else:
        for line in _describe(report):
            shared.print_line(shared.printable(line))
        if report.is_accepted:
            reading = existing.describe_reading(report.layout)
            if reading is not None:
                shared.print_line(reading)
    if report.outcome == "refused":
        if not as_json:
            shared.print_error(_refusal(report))
        raise typer.Exit(1)


def _describe(report: AdoptionReport) -> list[str]:
    """Return what was measured and what came of it, line by line."""
    lines = []
    for evidence in (report.dense, report.sparse):
        if evidence is not None:
            lines.append(
                f"{evidence.head} vectors: cosine {evidence.cosine:.3f} for three quarters of "
                f"{evidence.probes} texts, median {evidence.median:.3f}; with other texts "
                f"{evidence.others:.3f}"
            )
    if report.form and report.is_accepted:
        lines.append(f"what was embedded: {report.form}")
    name, model = report.collection, report.model
    outcomes = {
        "recorded": f"{name}: made by {model}, and recorded now ({report.seconds:.1f} s)",
        "recorded before": f"{name}: records {model} already; nothing to do",
        "proved": f"{name}: made by {model}; not recorded (--dry-run)",
        "trusted": f"{name}: {model} recorded without a proof",
    }
    if report.outcome in outcomes:
        lines.append(outcomes[report.outcome])
    return lines


def _refusal(report: AdoptionReport) -> str:
    return (
        f"collection {report.collection!r} is not recorded as made by {report.model!r}: "
        f"{report.reason}. Try the model that made it, or index the documents again. If you know "
        "better, --trust records it without a proof"
    )
