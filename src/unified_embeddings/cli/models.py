"""`unified-embeddings models`: every choice, what it gives, and whether it is on this machine."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Mapping
from typing import Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.embedders.bm25 import rules_for
from unified_embeddings.errors import MissingExtraError, ModelLoadError
from unified_embeddings.models.bm25 import FASTEMBED_BM25, LANGUAGES, NATIVE_BM25, NO_STEMMING
from unified_embeddings.models.catalogue import MODELS, guess_spec, spec_for
from unified_embeddings.models.fusion import DEFAULT_FUSION
from unified_embeddings.models.resolve import resolve
from unified_embeddings.models.spec import ModelSpec

Name = Annotated[
    str | None,
    typer.Argument(
        help="A name, hub id, folder or TOML file, to show everything about that model."
    ),
]
_ROW = "{:<21}{:<21}{:>5}{:>7}{:>7}  {:<13}{}"
_NAME_WIDTH = 20


def models(name: Name = None, as_json: shared.AsJson = False) -> None:
    """List the models to choose from: vectors, limits, licence, and whether they are on disk."""
    if name is not None:
        facts = _model_facts(spec_for(name))
        if facts["missing"] and "/" not in name and name not in MODELS:
            raise ModelLoadError(name, str(facts["missing"]))
        _show_model(facts, as_json)
        return
    if as_json:
        typer.echo(json.dumps([_model_facts(spec) for spec in MODELS.values()]))
        return
    typer.echo(_ROW.format("model", "gives", "dim.", "tokens", "params", "licence", "here"))
    for spec in MODELS.values():
        typer.echo(_table_row(spec))
    typer.echo(
        "\nhere: whether it is on this machine. CC-BY-NC-4.0 forbids commercial use.\n"
        "Prefixes, pooling, code and folder of a model: unified-embeddings models NAME"
    )
    languages = ", ".join((*LANGUAGES, NO_STEMMING))
    typer.echo(textwrap.fill(f"bm25 counts words, in English or as bm25:LANGUAGE: {languages}", 79))
    typer.echo(
        f"{FASTEMBED_BM25} and {NATIVE_BM25} do the same for collections that FastEmbed\n"
        "or Qdrant itself filled"
    )


def _table_row(spec: ModelSpec) -> str:
    """Return a model's line; a name that is too long for its column has a line of its own."""
    _, problem = _find_folders(spec)
    name, first_line = spec.choice, ""
    if len(name) > _NAME_WIDTH:
        name, first_line = "", f"{spec.choice}\n"
    return first_line + _ROW.format(
        name,
        "+".join(_outputs(spec)),
        spec.dimension or "-",
        spec.max_length or "any",
        "-" if spec.parameters is None else f"{spec.parameters / 1e6:.0f}M",
        spec.licence,
        "no" if problem else "yes",
    )


def _show_model(facts: Mapping[str, object], as_json: bool) -> None:
    """Print one model's facts, one per line."""
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for field, value in facts.items():
        typer.echo(f"{field:<18}{shared.printable(_format_fact(value))}")


def _format_fact(value: object) -> str:
    """Return a fact in words: yes and no, lists with commas, a dash for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        value = [f"{field} {_format_fact(part)}" for field, part in value.items()]
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    if value is None or value == "":
        return "-"
    return str(value)


def _model_facts(spec: ModelSpec) -> dict[str, object]:
    """Return a spec's fields, the outputs of all its parts, and where its files are."""
    outputs = _outputs(spec)
    fields = spec.to_dict()
    del fields["heads"], fields["images"]  # both are among the outputs
    fields["fusion"] = None
    if spec.fusion is not None or {"dense", "sparse"} <= set(outputs):
        fields["fusion"] = dataclasses.asdict(spec.fusion or DEFAULT_FUSION)
    folders, problem = _find_folders(spec)
    # A name that nothing is known of is taken for a model in BGE-M3's layout. Without its files
    # that is a guess, and nothing is claimed about its outputs.
    is_guess = spec == guess_spec(spec.choice)
    if is_guess and problem:
        outputs = []
    return {
        "choice": spec.choice,
        "gives": outputs,
        **fields,
        "on_disk": problem is None,
        "folder": folders,
        "missing": problem,
    }


def _outputs(spec: ModelSpec) -> list[str]:
    """Return what a model gives, together with the sparse model beside it."""
    outputs: list[str] = list(spec.heads)
    if spec.sparse_model:
        outputs.append("sparse")
    if spec.images:
        outputs.append("images")
    return outputs


def _find_folders(spec: ModelSpec) -> tuple[list[str], str | None]:
    """Return the folders of a model's parts, or why they cannot be used from here.

    Returns:
        The folders and None, or no folders and the problem. BM25 has none of either, where its
        library is installed.
    """
    parts = [spec]
    if spec.sparse_model:
        parts.append(spec_for(spec.sparse_model))
    folders: list[str] = []
    try:
        for part in parts:
            if part.pooling == "bm25":
                rules_for(part.model_id)
            else:
                folders.append(str(resolve(part, local_files_only=True).folder))
    except ModelLoadError as error:
        return [], error.problem
    except MissingExtraError as error:
        return [], str(error)
    return folders, None
