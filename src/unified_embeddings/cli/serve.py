"""`unified-embeddings serve`: the model over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.types import Options

_LIMITS = "Limits"
"""Heading in the help. A table of their own: beside --no-auto-truncate, 80 columns are too few."""


def serve(
    model: shared.Model = None,
    sparse_model: shared.SparseModel = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on.", show_default="8000")
    ] = None,
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="TOML file with any of these settings.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="torch, onnx, sentence or flag.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, fp16 or int8.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0, mps.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=3, metavar="N", help="Most tokens of a text.")
    ] = None,
    served_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Another name that requests may give the model. Repeatable."
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with one API key in each line.")
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Most tokens of a forward pass.", rich_help_panel=_LIMITS
        ),
    ] = None,
    max_waiting_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Tokens that may wait before 429.", rich_help_panel=_LIMITS
        ),
    ] = None,
    request_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Time in which a request is answered or fails.",
            show_default="60",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Time that requests in hand get at the end.",
            show_default="25",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    auto_truncate: Annotated[
        bool | None,
        typer.Option(
            "--auto-truncate/--no-auto-truncate",
            help="Cut texts that are too long, or refuse them.",
            show_default="cut",
        ),
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="Collection that /search reads.")
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(
            parser=shared.require_path,
            metavar="<path>",
            help="Folder of its embedded Qdrant store.",
        ),
    ] = None,
    url: shared.StoreUrl = None,
    images: Annotated[
        bool | None, typer.Option("--images", help="Offer /embed_image, with CLIP.")
    ] = None,
    inspect: Annotated[
        bool | None,
        typer.Option("--inspect", help="Offer the inspector's pages under /inspect."),
    ] = None,
    image_model: Annotated[
        str | None, typer.Option(help="A CLIP or SigLIP in place of the default.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes behind the port.", show_default="1"),
    ] = None,
    runner: Annotated[
        str | None,
        typer.Option(
            help="What runs the workers: processes here, or ray, on which --workers is the most.",
            show_default="processes",
        ),
    ] = None,
) -> None:
    """Serve the model over HTTP: all its vectors, for the clients of TEI, OpenAI and Ollama.

    Settings come from flags, then the environment (UNIFIED_EMBEDDINGS_PORT and so on), then the
    file.
    """
    if engine == "ray":  # Not an engine of models, but what people look for under this name.
        engine, runner = None, "ray"
    flags = {
        "host": host,
        "port": port,
        "served_names": tuple(served_name) if served_name else None,
        "api_key_file": api_key_file,
        "batch_tokens": batch_tokens,
        "max_waiting_tokens": max_waiting_tokens,
        "request_timeout": request_timeout,
        "drain_timeout": drain_timeout,
        "auto_truncate": auto_truncate,
        "collection": collection,
        "store_path": str(path) if path is not None else None,
        "qdrant_url": url,
        "images": images,
        "inspect": inspect,
        "workers": workers,
        "runner": runner,
    }
    model_flags = {
        "model_choice": model,
        "sparse_model": sparse_model,
        "engine": engine,
        "precision": precision,
        "device": device,
        "max_length": max_length,
        "image_model": image_model,
    }
    _start(settings_file, flags, model_flags)


def _start(settings_file: Path | None, flags: Options, model_flags: Options) -> None:
    """Put the settings together from all their places, and serve.

    Raises:
        MissingExtraError: If what `serve` runs on is not installed.
    """
    try:
        from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
        from unified_embeddings.serving.running import run
        from unified_embeddings.serving.settings import LOOPBACK, load_settings
    except ImportError as error:
        if isinstance(error, MissingExtraError):
            raise
        raise MissingExtraError(
            "FastAPI or uvicorn, which `serve` runs on,", extra="serve"
        ) from None

    settings, options = load_settings(settings_file, os.environ, flags, model_flags)
    is_placed = flags["store_path"] is not None or flags["qdrant_url"] is not None
    if settings.collection is None and is_placed:
        raise InputError("--path and --url say where a collection is; name it with --collection")
    UnifiedEmbeddingConfig(**options)  # Says what is wrong with them before anything starts.
    if not settings.api_keys and settings.host not in LOOPBACK:
        shared.print_note("anyone who reaches this address may use it; --api-key-file sets keys")
    run(options, settings, note=shared.print_note)
