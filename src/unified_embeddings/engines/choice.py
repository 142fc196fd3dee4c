"""Which engine "auto" takes for a model that both 'torch' and 'onnx' run, and why.

What lives here: the rule, and the measurements that it rests on. What does not: models that only
one engine runs (`registry`), and the precision (the engines' `plan`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.exported import EXPORT_FORMAT
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.system.files import existing_part, free_space
from unified_embeddings.system.hardware import Cpu, cpu, may_have_gpu, passive_wait_policy

_LARGE = 300_000_000
"""Parameters from which on a model counts as one of BGE-M3's size."""
_BYTES_PER_PARAMETER = 4
_MEASURED = (
    "measured with BGE-M3 on AVX2 without AMX: documents 188 tokens/s against 143, one query 112 "
    "ms against 189 (docs/benchmarks)"
)


class EngineChoice(NamedTuple):
    """An engine, and why it was chosen, in words for the user."""

    engine: str
    reason: str


def choose_engine(
    spec: ModelSpec, precision: str, device: str, checkpoint: Callable[[], Checkpoint]
) -> EngineChoice:
    """Choose between 'torch' and 'onnx' by what was measured on this kind of machine.

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
    if reason := _why_torch_is_faster(cpu(), precision):
        return EngineChoice("torch", reason)
    parameters = spec.parameters or _count_parameters(checkpoint())
    if parameters < _LARGE:
        return EngineChoice("torch", "it was measured to be faster for models of this size")
    if reason := _why_export_is_impossible(parameters, checkpoint):
        return EngineChoice("torch", f"'onnx' would be faster here, {_MEASURED}, but {reason}")
    return EngineChoice("onnx", f"the fastest engine on this kind of processor, {_MEASURED}")


def _why_torch_is_faster(processor: Cpu, precision: str) -> str:
    """Return what speaks for 'torch' on a processor; "" if 'onnx' was measured to be faster."""
    if processor.has_amx_bf16 and precision == "auto":
        return "the engine that uses this processor's AMX"
    if "avx2" not in processor.flags or processor.has_amx_bf16:
        return "the default: engines were not compared on this kind of processor"
    return ""


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

    missing = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} are not installed: pip install '.[onnx]'"
    folder = platformdirs.user_cache_path("unified-embeddings")
    problem = _why_folder_takes_none(folder, parameters)
    exports = folder.glob(f"onnx-{EXPORT_FORMAT}-*-fp32")
    # Only now is it worth finding out the model's digest, which may take reading all of it.
    if problem and any(checkpoint().digest in export.name for export in exports):
        return ""
    return problem


def _why_folder_takes_none(folder: Path, parameters: int) -> str:
    """Return what keeps an export from being written into a folder; "" if nothing."""
    place = existing_part(folder)
    if not os.access(place, os.W_OK):
        return f"{place} cannot be written, where the model would be exported to"
    needed, free = parameters * _BYTES_PER_PARAMETER, free_space(place)
    if needed > free:
        return f"exporting the model takes {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free"
    return ""
