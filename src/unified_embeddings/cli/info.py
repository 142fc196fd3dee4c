"""`unified-embeddings info`: everything worth knowing about a collection."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from unified_embeddings.cli import existing, shared
from unified_embeddings.cli.collection_facts import format_fact, print_fact

if TYPE_CHECKING:
    from unified_embeddings.stores.describing import CollectionDescription, FieldSummary

_VALUE_WIDTH = 40
_OVERVIEW = (
    "collection",
    "aliases",
    "points",
    "documents",
    "indexed_vectors",
    "segments",
    "bytes",
    "model",
    "fingerprint",
)


def info(
    collection: existing.CollectionName,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    api_key: existing.ApiKey = None,
    as_json: shared.AsJson = False,
) -> None:
    """Tell everything worth knowing about a collection.

    Its model, how each of its vectors is kept, the fusion and the calibration that `tune` found for
    it, and the fields of its passages with their most frequent values (of a sample of 1,000).
    """
    from unified_embeddings.stores.describing import describe_collection

    client, name = shared.require_collection(
        collection, path, url, api_key=api_key, local_mode=True
    )
    description = describe_collection(client, name)
    if as_json:
        facts = asdict(description)
        facts = facts.pop("overview") | facts
        typer.echo(json.dumps(facts, ensure_ascii=False))
    else:
        _print_description(description)


def _print_description(description: CollectionDescription) -> None:
    overview = description.overview
    facts = asdict(overview)
    for name in _OVERVIEW:
        print_fact(name.replace("_", " "), format_fact(name, facts[name]))
    if overview.model is None:
        shared.print_note(
            "it does not record its model; `adopt` proves which one made it, and records it"
        )
    print_fact("status", description.status)
    for name, kept in description.vectors.items():
        print_fact(f"vector {name or '(unnamed)'}", kept)
    print_fact("ColBERT vectors", description.colbert or "none")
    print_fact("keyword list", description.keywords or "none")
    print_fact("fusion", description.fusion or "the model's own")
    calibration = description.calibration or "the model's own, if it has one"
    if not description.judges_relevance:
        calibration = "not used: it holds for the model's own two lists alone"
    print_fact("calibration", calibration)
    indexes = [f"{field} ({kind})" for field, kind in description.payload_indexes.items()]
    print_fact("payload indexes", ", ".join(indexes) or "none")
    if description.newest_file is not None:
        print_fact("files last changed", f"{description.oldest_file} to {description.newest_file}")
    if description.fields:
        shared.print_line(f"\nfields of {description.sample:,} of {overview.points:,} points")
    for field in description.fields:
        print_fact(f"  {field.name}", _describe_field(field))


def _describe_field(field: FieldSummary) -> str:
    """Return a field in words: how many points have it, and its most frequent values."""
    described = f"{field.points:,} points, {field.distinct:,} values"
    values = [
        f"{shared.one_line(value, _VALUE_WIDTH)} ({count:,})" for value, count in field.frequent
    ]
    return f"{described}: {', '.join(values)}" if values else described
