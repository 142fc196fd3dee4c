"""Which engine "auto" takes for a model that both 'torch' and 'onnx' run, and why.

What lives here: the rule. What does not: what was measured on which processor (`processors`),
models that only one engine runs (`registry`), and the precision (the engines' `plan`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from unified_embeddings.engines.processors import Processor, processor_kind
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.exported import EXPORT_FORMAT
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.system.files import existing_part, free_space
from unified_embeddings.system.hardware import cpu, may_have_gpu, passive_wait_policy

_LARGE = 300_000_000
"""Parameters from which on a model counts as one of BGE-M3's size."""
_SMALL = 30_000_000
"""Parameters below which starting takes longer than most of what is asked: mini-m3 has 23M."""
_BYTES_PER_PARAMETER = 4


class EngineChoice(NamedTuple):
    """An engine, and why it was chosen, in words for the user."""

    engine: str
    reason: str


def choose_engine(
    spec: ModelSpec, precision: str, device: str, checkpoint: Callable[[], Checkpoint]
) -> EngineChoice:
    """Choose between 'torch' and 'onnx' by the table in `processors`.

    Args:
        spec: The model's spec.
        precision: The precision asked for, or "auto".
        device: The device asked for, or "auto".
        checkpoint: Returns the model's files, whose size tells a model's that no spec does.

    Raises:
        ModelLoadError: If the files are needed and cannot be read.
    """
    if precision not in ("auto", "fp32") or device not in ("auto", "cpu"):
        return EngineChoice("torch", "the engine for this precision and device")
    if device == "auto" and _has_gpu():
        return EngineChoice("torch", "the engine for GPUs")
    if spec.parameters is not None and spec.parameters < _SMALL:
        return _choose_for_small(spec.parameters, checkpoint)
    kind = processor_kind(cpu())
    if kind.engine == "torch":
        return EngineChoice("torch", _describe(kind, precision) + _advise_onnx(spec, kind))
    parameters = spec.parameters or _count_parameters(checkpoint())
    if parameters < _LARGE:
        return EngineChoice("torch", "it was measured to be faster for models of this size")
    described = _describe(kind, precision)
    if reason := _why_export_is_impossible(parameters, checkpoint):
        return EngineChoice("torch", f"'onnx' would be faster here ({described}), but {reason}")
    return EngineChoice("onnx", described)


def _choose_for_small(parameters: int, checkpoint: Callable[[], Checkpoint]) -> EngineChoice:
    """Choose for a model that is loaded and run sooner than torch is imported."""
    if reason := _why_export_is_impossible(parameters, checkpoint):
        return EngineChoice("torch", f"'onnx' would start a second sooner, but {reason}")
    # mini-m3 on AVX-512: from 2% more to 13% less time than torch, from queries to 300 words.
    return EngineChoice("onnx", "it starts a second sooner, and runs small models as fast")


def _describe(kind: Processor, precision: str) -> str:
    """Return in words what a choice rests on."""
    if precision == "auto" or precision == kind.precision:
        return f"{kind.basis} for {kind.name}: {kind.reason}"
    return f"the engine for {kind.name}; {precision} as asked"


def _advise_onnx(spec: ModelSpec, kind: Processor) -> str:
    """Return what would make long texts faster with the engine "torch", or ""."""
    is_large = spec.parameters is None or spec.parameters >= _LARGE
    # The rows of AVX-512 name it, that of AMX does not: ONNX Runtime's attention was measured to be
    # faster with the first and slower with the second (ADR 44).
    if not is_large or "avx512f" not in kind.has:
        return ""
    missing = _missing_libraries()
    return f"; long texts may be faster with {missing}: pip install '.[onnx]'" if missing else ""


def _has_gpu() -> bool:
    # Importing torch takes seconds, which a machine without a GPU need not spend.
    if not may_have_gpu() or importlib.util.find_spec("torch") is None:
        return False
    with passive_wait_policy():
        import torch

    return torch.cuda.is_available()


def _count_parameters(checkpoint: Checkpoint) -> int:
    """Return about how many parameters a model has; half as many if its files are in 16 bits."""
    if checkpoint.is_exported:
        return 0
    size = sum(path.stat().st_size for path in checkpoint.weight_files)
    return size // _BYTES_PER_PARAMETER


def _why_export_is_impossible(parameters: int, checkpoint: Callable[[], Checkpoint]) -> str:
    """Return what keeps a model from being exported into the user's cache folder; "" if nothing."""
    import platformdirs

    if missing := _missing_libraries():
        return f"{missing} are not installed: pip install '.[onnx]'"
    folder = platformdirs.user_cache_path("unified-embeddings")
    problem = _why_folder_takes_none(folder, parameters)
    exports = folder.glob(f"onnx-{EXPORT_FORMAT}-*-fp32")
    # Only now is it worth finding out the model's digest, which may take reading all of it.
    if problem and any(checkpoint().digest in export.name for export in exports):
        return ""
    return problem


def _missing_libraries() -> str:
    """Return the names of those libraries of the extra "onnx" that are not installed, or ""."""
    names = ("onnxruntime", "onnx")
    return " and ".join(name for name in names if importlib.util.find_spec(name) is None)


def _why_folder_takes_none(folder: Path, parameters: int) -> str:
    """Return what keeps an export from being written into a folder; "" if nothing."""
    place = existing_part(folder)
    if not os.access(place, os.W_OK):
        return f"{place} cannot be written, where the model would be exported to"
    needed, free = parameters * _BYTES_PER_PARAMETER, free_space(place)
    if needed > free:
        return f"exporting the model takes {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free"
    return ""
