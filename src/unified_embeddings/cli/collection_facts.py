"""Facts about collections and services, printed as lines, as a table or as JSON.

What lives here: what `list`, `info`, `drop` and `stats` share. What does not: finding the facts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from unified_embeddings.cli import shared

if TYPE_CHECKING:
    from unified_embeddings.stores.listing import CollectionOverview

_NAME_WIDTH = 28
_PIPED_WIDTH = 1000
"""Columns of a table that is not printed on a terminal; it takes as many as it needs."""


def print_overviews(overviews: Sequence[CollectionOverview], *, as_json: bool) -> None:
    """Print what a store holds: a table with a row for each collection, or JSON."""
    if as_json:
        typer.echo(json.dumps([asdict(overview) for overview in overviews], ensure_ascii=False))
    elif not overviews:
        shared.print_line("the store has no collections")
    else:
        # In a pipe there is no width to keep to, and a name in two lines cannot be searched for.
        out = shared.out
        if not out.is_terminal:
            out = Console(file=out.file, width=_PIPED_WIDTH, highlight=False)
        out.print(_table_of(overviews))


def _table_of(overviews: Sequence[CollectionOverview]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("collection", overflow="fold")
    for heading in ("points", "documents", "indexed", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("vectors", overflow="fold")
    table.add_column("model", overflow="fold")
    with_aliases = any(overview.aliases for overview in overviews)
    if with_aliases:
        table.add_column("aliases", overflow="fold")
    for overview in overviews:
        cells = [
            overview.collection,
            f"{overview.points:,}",
            "-" if overview.documents is None else f"{overview.documents:,}",
            f"{overview.indexed_vectors:,}",
            "-" if overview.bytes is None else shared.format_bytes(overview.bytes),
            _vectors_of(overview),
            overview.model or "not recorded",
        ]
        if with_aliases:
            cells.append(", ".join(overview.aliases))
        table.add_row(*map(shared.escaped, cells))
    return table


def _vectors_of(overview: CollectionOverview) -> str:
    """Return what vectors a collection has, in few words."""
    from unified_embeddings.stores.keyword_list import KEYWORD_VECTOR
    from unified_embeddings.stores.stored_colbert import COLBERT_VECTOR

    dense = [str(width) for name, width in overview.dense.items() if name != COLBERT_VECTOR]
    sparse = ["sparse"] * any(name != KEYWORD_VECTOR for name in overview.sparse)
    keywords = ["bm25"] * (KEYWORD_VECTOR in overview.sparse)
    colbert = ["ColBERT"] * (COLBERT_VECTOR in overview.dense)
    return " + ".join(dense + sparse + keywords + colbert)


def overview_facts(overview: CollectionOverview) -> dict[str, object]:
    """Return an overview as facts to print one by one."""
    facts: dict[str, object] = dict(asdict(overview))
    facts["dense"] = [f"{name or 'unnamed'} ({width})" for name, width in overview.dense.items()]
    return facts


def print_facts(facts: Mapping[str, object], *, as_json: bool) -> None:
    """Print facts, one a line, or as JSON."""
    if as_json:
        typer.echo(json.dumps(dict(facts), ensure_ascii=False))
        return
    for name, value in facts.items():
        print_fact(name.replace("_", " "), format_fact(name, value))


def print_fact(name: str, value: str) -> None:
    """Print a fact in a line: its name, and its value in a column of its own."""
    shared.print_line(f"{shared.printable(name):<{_NAME_WIDTH}}{shared.printable(value)}")


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
