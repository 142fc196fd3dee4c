"""`unified-embeddings export-onnx`: a model as one ONNX file with all its heads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from unified_embeddings.cli.shared import is_terminal


def export_onnx(
    model: Annotated[
        str, typer.Argument(help="A choice (see models), hub id, folder or TOML file.")
    ],
    folder: Annotated[Path, typer.Argument(help="Where to: a new or empty folder.")],
    precision: Annotated[
        Literal["fp32", "int8"], typer.Option(help="int8 takes a quarter of the memory.")
    ] = "fp32",
) -> None:
    """Write a model for the engine 'onnx', which needs neither torch nor transformers.

    The folder is then a model of its own: --model FOLDER. Its vectors compare with the source's.
    """
    from unified_embeddings.export.folder import export_onnx as export

    started = time.perf_counter()
    made = export(
        model,
        folder,
        precision=precision,
        show_progress=is_terminal(),
    )
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    typer.echo(f"{made}: {size / 1e6:,.0f} MB in {time.perf_counter() - started:.0f} s")
