"""The engines by name: choosing one, and loading a model with it.

What lives here: the names, and the late import of each engine. Every heavy library has an engine's
module of its own, so that only the engine in use is imported.
"""

from __future__ import annotations

from collections.abc import Callable

from unified_embeddings.engines.base import Engine, EngineClass, Runtime
from unified_embeddings.errors import InputError
from unified_embeddings.models.architecture import packing_problem
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.system.hardware import passive_wait_policy

ENGINE_NAMES = ("torch", "sentence", "onnx", "flag")
"""What users may choose, besides "auto"."""


def plan(engine: str, precision: str, device: str, checkpoint: Callable[[], Checkpoint]) -> Runtime:
    """Decide device and precision for an engine. "auto" leaves the choice to the hardware.

    Args:
        engine: One of `ENGINE_NAMES`.
        precision: "auto", "fp32", "bf16", "fp16" or "int8".
        device: "auto", or a device in torch's notation.
        checkpoint: Returns the model's files, for an engine whose choice depends on them.

    Raises:
        InputError: If a name is unknown, or the hardware cannot do what is requested.
        MissingExtraError: If the engine's library is not installed.
    """
    return _import_engine(engine).plan(precision, device, checkpoint)


def best_for(checkpoint: Checkpoint) -> str:
    """Return the engine for a model whose spec names none, judging by its files.

    Raises:
        ModelLoadError: If its files cannot be read.
    """
    if checkpoint.is_exported:
        return "onnx"
    if packing_problem(checkpoint) is None:
        return "torch"
    return "sentence"


def load(checkpoint: Checkpoint, runtime: Runtime) -> Engine:
    """Load a model's weights into the engine that its runtime names.

    Raises:
        ModelLoadError: If the checkpoint is broken, or the engine does not run its architecture.
    """
    return _import_engine(runtime.engine)(checkpoint, runtime)


def _import_engine(name: str) -> EngineClass:
    """Import one engine, and with it its heavy library.

    Raises:
        InputError: If the name is unknown.
        MissingExtraError: If the library is not installed.
    """
    # The first import of torch, in whichever engine, decides how its worker threads wait.
    with passive_wait_policy():
        if name == "torch":
            from unified_embeddings.engines.torch import TorchEngine

            return TorchEngine
        if name == "sentence":
            from unified_embeddings.engines.sentence import SentenceEngine

            return SentenceEngine
        if name == "onnx":
            from unified_embeddings.engines.onnx import OnnxEngine

            return OnnxEngine
        if name == "flag":
            from unified_embeddings.engines.flag import FlagEngine

            return FlagEngine
    raise InputError(f"engine must be auto, {', '.join(ENGINE_NAMES)}, not {name!r}")
