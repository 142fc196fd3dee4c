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
    folder: Annotated[Path, typer.Argument(help="Destination: a new or empty folder.")],
    precision: Annotated[
        Literal["fp32", "int8"], typer.Option(help="int8 needs a quarter of the memory.")
    ] = "fp32",
) -> None:
    """Export a model for the engine 'onnx', which needs neither torch nor transformers.

    The folder can then be used as a model: --model FOLDER. Its vectors are comparable with the
    source model's.
    """
    # The exporter loads torch and onnx, so it is imported only when it is needed.
    from unified_embeddings.export.folder import export_onnx as write_export

    started = time.perf_counter()
    export_folder = write_export(model, folder, precision=precision, show_progress=is_terminal())
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in export_folder.rglob("*") if path.is_file())
    typer.echo(f"{export_folder}: {size / 1e6:,.0f} MB in {seconds:.0f} s")
