"""`unified-embeddings make-queries`: judged queries from a collection itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import UnifiedEmbeddingsError

if TYPE_CHECKING:
    from unified_embeddings.evaluation.generated_queries import Passage
    from unified_embeddings.stores.opening import Client

_EXAMPLES = 2
"""Queries of each kind that are printed."""


def make_queries(
    collection: Annotated[str, typer.Argument(help="The collection's name.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write, in BEIR's layout.")
    ],
    count: Annotated[int, typer.Option("--queries", min=1, help="The most queries to make.")] = 200,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    document_field: Annotated[
        str | None,
        typer.Option(
            "--document-field",
            help="Payload field that names a point's document, as in metadata.source.",
            show_default="each point is a document",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another one draws other passages.")] = 0,
    as_json: shared.AsJson = False,
) -> None:
    """Make judged queries from a collection's own texts, without a model.

    Titles, first sentences, phrases of rare words and later sentences are taken as queries; the
    passage that each comes from is judged relevant. They favour lexical matches, so they say
    whether an index finds its own texts, and not which fusion suits people's questions.
    """
    from unified_embeddings.evaluation.documents import POINT_ID
    from unified_embeddings.evaluation.generated_folder import WARNING, write_generated
    from unified_embeddings.evaluation.generated_queries import QUERY_KINDS, generate_queries

    client, collection = shared.require_collection(collection, path, url)
    passages = _read(client, collection, document_field or POINT_ID)
    queries = generate_queries(passages, count, seed=seed)
    facts = {"collection": collection, "seed": seed, "document_field": document_field or POINT_ID}
    try:
        summary = write_generated(output, passages, queries, facts)
    except OSError as error:
        raise UnifiedEmbeddingsError(f"{output} cannot be written: {error}") from error
    if as_json:
        typer.echo(json.dumps(summary))
        return
    shared.print_line(
        f"{shared.printable(str(output))}: {len(queries)} queries from {len(passages)} passages"
    )
    if len(queries) < count:
        shared.print_line(f"Fewer than the {count} asked for: the passages give no more")
    for kind in QUERY_KINDS:
        texts = [query.text for query in queries if query.kind == kind]
        shared.print_line(f"\n{kind}: {len(texts)}")
        for text in texts[:_EXAMPLES]:
            shared.print_line(f"  {shared.one_line(text, 90)}")
    shared.print_line(f"\n{WARNING}")


def _read(client: Client, collection: str, document_field: str) -> list[Passage]:
    from unified_embeddings.llama.passages import count_points, read_passages
    from unified_embeddings.system.progress import progress_bar

    total = count_points(client, collection)
    with progress_bar("Reading", total, shown=shared.is_terminal()) as advance:
        return read_passages(client, collection, document_field=document_field, on_points=advance)
