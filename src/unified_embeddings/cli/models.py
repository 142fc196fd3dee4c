"""`unified-embeddings models`: every choice, what it gives, and whether it is on this machine."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from unified_embeddings.checkpoints import resolve
from unified_embeddings.cli import shared
from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.models import MODELS, ModelSpec, spec_for

Name = Annotated[
    str | None,
    typer.Argument(help="One choice, hub id, folder or TOML file, with all of its facts."),
]


def models(name: Name = None, as_json: shared.AsJson = False) -> None:
    """List the models that can be chosen: vectors, limits, licence, and what is on disk."""
    specs = list(MODELS.values()) if name is None else [spec_for(name)]
    rows = [_facts(spec) for spec in specs]
    if as_json:
        typer.echo(json.dumps(rows if name is None else rows[0]))
        return
    if name is not None:
        for field, value in rows[0].items():
            shown = ", ".join(value) if isinstance(value, list) else value
            shared.out.print(
                f"{field:<18}{'-' if shown in (None, '') else shown!s}",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
        return
    table = Table("model", "gives", "dim.", "tokens", "params", "licence", "on disk", box=None)
    for row in rows:
        params = f"{row['parameters'] / 1e6:.0f}M" if row["parameters"] else "-"
        on_disk = "yes" if row["on_disk"] else "no"
        table.add_row(
            row["choice"], "+".join(row["gives"]), str(row["dimension"] or "-"),
            str(row["max_length"]), params, row["licence"], on_disk,
        )  # fmt: skip
    shared.out.print(table)
    shared.out.print(
        "\nCC-BY-NC-4.0 forbids commercial use. Prefixes, pooling and folder of one: "
        "unified-embeddings models NAME",
        highlight=False,
    )


def _facts(spec: ModelSpec) -> dict[str, Any]:
    gives = [*spec.heads, *(["sparse"] if spec.sparse_model else [])]
    gives += ["images"] if spec.images else []
    facts = {"choice": spec.choice, "gives": gives}
    facts |= {name: value for name, value in spec.to_dict().items() if name not in facts}
    del facts["heads"], facts["images"]
    places, problem = [], None
    try:
        for part in (spec, *([spec_for(spec.sparse_model)] if spec.sparse_model else [])):
            places.append(str(resolve(part, local_files_only=True).folder))
    except UnifiedEmbeddingsError as error:
        problem = str(error)
    return facts | {
        "on_disk": problem is None,
        "folder": places if problem is None else [],
        "missing": problem,
    }
