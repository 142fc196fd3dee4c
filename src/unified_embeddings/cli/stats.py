"""`unified-embeddings stats`: what a service has done, or what is in a collection."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.cli.collection_facts import overview_facts, print_facts, print_overviews
from unified_embeddings.errors import InputError


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

    A service is asked for its metrics. Collections are told as by `list`. An embedded store
    (--path) must not be open elsewhere.
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

        print_facts(ask_service(service, api_key, timeout), as_json=as_json)
        return
    from unified_embeddings.stores.listing import list_collections, look_at_collection

    if collection is None:
        client = shared.open_place(path, url)
        print_overviews(list_collections(client, url or str(path)), as_json=as_json)
        return
    client, collection = shared.require_collection(collection, path, url)
    overview = look_at_collection(client, collection)
    if as_json:
        print_overviews([overview], as_json=True)
    else:
        print_facts(overview_facts(overview), as_json=False)
