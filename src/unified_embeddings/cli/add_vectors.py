"""`unified-embeddings add-vectors`: give a collection's points the vectors of further heads."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.markup import escape

from unified_embeddings.cli import existing, shared
from unified_embeddings.errors import InputError
from unified_embeddings.types import HeadName

if TYPE_CHECKING:
    from unified_embeddings.migration.added_vectors import AddedVectorsReport
    from unified_embeddings.stores.stored_colbert import ColbertName, Quantisation, StoredColbert


def add_vectors(
    collection: existing.CollectionName,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="Add sparse vectors (text-sparse-new).")
    ] = False,
    colbert: Annotated[
        str | None,
        typer.Option(
            "--colbert", help="Add ColBERT vectors (text-colbert): pooled or full, as in `index`."
        ),
    ] = None,
    pool: Annotated[
        int | None,
        typer.Option(
            "--pool",
            help="How many ColBERT rows become one, 1 to 4.",
            show_default="2 if pooled, 1 if full",
        ),
    ] = None,
    quantisation: Annotated[
        str | None,
        typer.Option(
            "--quantisation",
            help="Of ColBERT vectors: turbo4, turbo8, float16, int8 or binary.",
            show_default="turbo4 if pooled, float32 if full",
        ),
    ] = None,
    keywords: Annotated[
        str | None,
        typer.Option("--keywords", help="Add a keyword list (text-bm25): bm25, bm25:german, ..."),
    ] = None,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    api_key: existing.ApiKey = None,
    model: shared.Model = None,
    sparse_model: shared.SparseModel = None,
    model_url: shared.ModelUrl = None,
    layout: existing.LayoutOption = None,
    text_key: existing.TextKey = None,
    metadata_key: existing.MetadataKey = None,
    copy_to: Annotated[
        str | None,
        typer.Option(
            "--copy-to", help="Fill a second collection of this name; the first stays as it is."
        ),
    ] = None,
    as_json: shared.AsJson = False,
) -> None:
    """Add sparse or ColBERT vectors, or a keyword list, to a collection; what it has stays.

    It must record its model (see `adopt`). Servers before Qdrant 1.18 cannot add vectors: there, a
    second collection gets copies of all points, and an alias that you give as the name is switched
    to it. To resume after an interruption, run the same command again.
    """
    heads: list[HeadName] = []
    if sparse:
        heads.append("sparse")
    if colbert is not None:
        heads.append("colbert")
    if not heads and copy_to is None and keywords is None:
        raise InputError("name the vectors to add: --sparse, --colbert pooled or --keywords bm25")
    stored_colbert = _read_stored_colbert(colbert, pool, quantisation)
    client, name = existing.open_existing(collection, path, url, api_key)
    config = shared.open_config(model, sparse_model, model_url)
    shared.note_other_model(client, name, config)

    from unified_embeddings.migration.added_vectors import add_vectors as add
    from unified_embeddings.migration.heads import Watching
    from unified_embeddings.system.progress import open_ended_progress_bar
    from unified_embeddings.system.signals import hold_interrupts

    title = f"Adding vectors to {escape(shared.printable(name))}"
    try:
        with (
            hold_interrupts() as interrupts,
            open_ended_progress_bar(title, shown=shared.is_terminal()) as (start, advance),
        ):
            report = add(
                client,
                name,
                config.embedder,
                heads,
                colbert=stored_colbert,
                keywords=keywords,
                layout=existing.read_layout(layout, text_key, metadata_key),
                copy_to=copy_to,
                alias="" if collection == name else collection,
                watching=Watching(start, advance, interrupts.check),
            )
    except KeyboardInterrupt:
        shared.print_error("interrupted; run the same command again to resume")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(asdict(report), ensure_ascii=False))
        return
    for line in _describe(report):
        shared.print_line(shared.printable(line))


def _read_stored_colbert(
    colbert: str | None, pool: int | None, quantisation: str | None
) -> StoredColbert | None:
    """Return how ColBERT vectors are stored; None if they are not asked for.

    Raises:
        InputError: If it is said without `--colbert`, or there is no such way.
    """
    if colbert is None:
        if pool is None and quantisation is None:
            return None
        raise InputError("--pool and --quantisation go with --colbert")

    from unified_embeddings.stores.stored_colbert import require_colbert

    stored = require_colbert(cast("ColbertName", colbert))  # checked there, as is what follows
    return replace(
        stored,
        pool=stored.pool if pool is None else pool,
        quantisation=cast("Quantisation | None", quantisation or stored.quantisation),
    )


def _describe(report: AddedVectorsReport) -> list[str]:
    """Return what came of it, line by line."""
    added = []
    if report.heads:
        added.append(f"{' and '.join(report.heads)} vectors")
    if report.keywords:
        added.append(f"a keyword list ({report.keywords})")
    what = f"{' and '.join(added)} added to" if added else "copied"
    lines = [
        f"{report.target}: {what} {report.added} of {report.total} points, {report.seconds:.1f} s"
    ]
    for problem, count in report.problems.items():
        lines.append(f"without them: {count}, as {problem}")
    if report.is_in_place:
        return lines
    if report.alias:
        lines.append(f"the alias {report.alias} names {report.target} now")
    else:
        lines.append(f"open {report.target} from now on")
    lines.append(f"{report.collection} is as it was; delete it once you no longer need it")
    return lines
