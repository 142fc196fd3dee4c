"""`unified-embeddings stats`: what a service has done, or what is in a collection."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError

if TYPE_CHECKING:
    from unified_embeddings.stores.measuring import CollectionSize


def stats(
    service: Annotated[
        str | None,
        typer.Argument(help="A running service's address, as in http://127.0.0.1:8000."),
    ] = None,
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", help="One collection.", show_default="all of them"),
    ] = None,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="UNIFIED_EMBEDDINGS_API_KEY",
            help="The service's key. The environment is safer: other users can read a command.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for each request.")] = 10.0,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Print a Grafana dashboard of the metrics instead.")
    ] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Tell what a running service has done or, without SERVICE, what is in a store's collections.

    A service is asked for its metrics. An embedded store (--path) must not be open elsewhere.
    """
    if dashboard:
        if service is not None or collection is not None or url is not None:
            raise InputError("--dashboard is the same for every service and store; give none")
        from unified_embeddings.monitoring.dashboard import build_dashboard

        typer.echo(json.dumps(build_dashboard(), indent=2))
        return
    if service is not None:
        if collection is not None or url is not None:
            raise InputError(
                "give the address of a service, or --collection and --url of a store, not both"
            )
        from unified_embeddings.cli.service_stats import ask_service

        _print_facts(ask_service(service, api_key, timeout), as_json=as_json)
        return
    sizes = _measure(collection, path, url)
    if as_json:
        typer.echo(json.dumps([asdict(size) for size in sizes]))
    elif collection is not None:
        _print_facts(_facts_of(sizes[0]), as_json=False)
    elif not sizes:
        shared.print_line("the store has no collections")
    else:
        _print_table(sizes)


def _measure(collection: str | None, path: Path, url: str | None) -> list[CollectionSize]:
    from unified_embeddings.stores.errors import store_errors
    from unified_embeddings.stores.measuring import measure_collection

    if collection is not None:
        client, collection = shared.require_collection(collection, path, url)
        return [measure_collection(client, collection)]
    client = shared.open_place(path, url)
    with store_errors(url or str(path), "opening"):
        names = sorted(info.name for info in client.get_collections().collections)
    return [measure_collection(client, name) for name in names]


def _facts_of(size: CollectionSize) -> dict[str, object]:
    facts: dict[str, object] = dict(asdict(size))
    facts["dense"] = [f"{name or 'unnamed'} ({width})" for name, width in size.dense.items()]
    return facts


def _print_table(sizes: list[CollectionSize]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("collection", overflow="fold")
    for heading in ("points", "indexed", "bytes"):
        table.add_column(heading, justify="right")
    table.add_column("vectors", overflow="fold")
    table.add_column("model", overflow="fold")
    for size in sizes:
        vectors = [str(width) for width in size.dense.values()]
        vectors += ["sparse"] * bool(size.sparse)
        cells = (
            size.collection,
            f"{size.points:,}",
            f"{size.indexed_vectors:,}",
            "-" if size.bytes is None else shared.format_bytes(size.bytes),
            " + ".join(vectors),
            size.model or "not recorded",
        )
        table.add_row(*map(shared.escaped, cells))
    shared.out.print(table)


def _print_facts(facts: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(dict(facts)))
        return
    for name, value in facts.items():
        shown = shared.printable(format_fact(name, value))
        shared.print_line(f"{name.replace('_', ' '):<28}{shown}")


def format_fact(name: str, value: object) -> str:
    """Return a fact in words, by the unit that its name tells."""
    if value is None or value == "" or value == ():
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, str):
        return value
    if "seconds" in name and isinstance(value, float):
        return f"{1000 * value:.3g} ms"
    if name.endswith("bytes") and isinstance(value, int):
        return shared.format_bytes(value)
    if isinstance(value, float):
        return f"{100 * value:.3g}%"
    return f"{value:,}"
