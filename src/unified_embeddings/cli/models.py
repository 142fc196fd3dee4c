"""`unified-embeddings models`: every choice, what it gives, and whether it is on this machine."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import ModelLoadError
from unified_embeddings.models.catalogue import MODELS, spec_for
from unified_embeddings.models.resolve import resolve
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.types import HEAD_NAMES

Name = Annotated[
    str | None, typer.Argument(help="One choice, hub id, folder or TOML file, with all its facts.")
]
_ROW = "{:<39}{:<22}{:>5}{:>7}{:>8}  {:<14}{}"


def models(name: Name = None, as_json: shared.AsJson = False) -> None:
    """List the models that can be chosen: vectors, limits, licence, and what is on disk."""
    if name is not None:
        facts = _facts(spec_for(name))
        if facts["missing"] and "/" not in name and name not in MODELS:
            raise ModelLoadError(name, facts["missing"])
        _show_one(facts, as_json)
        return
    rows = [_facts(spec) for spec in MODELS.values()]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    typer.echo(_ROW.format("model", "gives", "dim.", "tokens", "params", "licence", "on disk"))
    for row in rows:
        typer.echo(
            _ROW.format(
                row["choice"],
                "+".join(row["gives"]),
                row["dimension"] or "-",
                row["max_length"],
                f"{row['parameters'] / 1e6:.0f}M",
                row["licence"],
                "yes" if row["on_disk"] else "no",
            )
        )
    typer.echo(
        "\nCC-BY-NC-4.0 forbids commercial use. Prefixes, pooling, remote code and folder of one "
        "model: unified-embeddings models NAME"
    )


def _show_one(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for field, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        shown = {None: "-", "": "-", True: "yes", False: "no"}.get(shown, shown)
        typer.echo(f"{field:<18}{shared.printable(str(shown))}")


def _facts(spec: ModelSpec) -> dict[str, Any]:
    """A spec's fields, what it gives with all its parts, and where its files are."""
    gives = [*spec.heads, *(["sparse"] if spec.sparse_model else [])]
    facts: dict[str, Any] = {"choice": spec.choice, "gives": gives, **spec.to_dict()}
    gives += ["images"] if facts.pop("images") else []
    is_guess = spec == ModelSpec(spec.choice, spec.choice, heads=HEAD_NAMES)
    del facts["heads"]
    parts = [spec, *([spec_for(spec.sparse_model)] if spec.sparse_model else [])]
    folders: list[str] = []
    problem = None
    try:
        folders = [str(resolve(part, local_files_only=True).folder) for part in parts]
    except ModelLoadError as error:
        problem = error.problem
    if is_guess and problem:  # BGE-M3's layout was taken for granted, and is not there
        gives.clear()
    return {**facts, "on_disk": problem is None, "folder": folders, "missing": problem}
