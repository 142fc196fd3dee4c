"""The engines by name: deciding on one, and loading it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol, cast

from unified_embeddings.engines.base import Engine, Runtime
from unified_embeddings.errors import InputError
from unified_embeddings.models.architecture import unpackable
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.system.hardware import passive_wait_policy

ENGINES = {
    "torch": "unified_embeddings.engines.torch:TorchEngine",
    "sentence": "unified_embeddings.engines.sentence:SentenceEngine",
    "onnx": "unified_embeddings.engines.onnx:OnnxEngine",
    "flag": "unified_embeddings.engines.flag:FlagEngine",
}


class _EngineClass(Protocol):
    @staticmethod
    def plan(precision: str, device: str, checkpoint: Callable[[], Checkpoint]) -> Runtime: ...

    def __call__(self, checkpoint: Checkpoint, runtime: Runtime) -> Engine: ...


def plan(engine: str, precision: str, device: str, checkpoint: Callable[[], Checkpoint]) -> Runtime:
    """Decide device and precision for an engine; "auto" leaves the choice to the hardware.

    Args:
        engine: A key of `ENGINES`.
        precision: "auto", or what is wanted.
        device: "auto", or as torch writes it.
        checkpoint: Gives the model's files, for an engine whose choice depends on them.

    Raises:
        InputError: If a name is unknown, or the hardware cannot do what is asked.
        MissingExtraError: If the engine's library is not installed.
    """
    return _engine_class(engine).plan(precision, device, checkpoint)


def best_for(checkpoint: Checkpoint) -> str:
    """The engine for a model whose spec names none: by its files and architecture.

    Raises:
        ModelLoadError: If its files cannot be read.
    """
    if checkpoint.is_exported:
        return "onnx"
    return "torch" if unpackable(checkpoint) is None else "sentence"


def load(checkpoint: Checkpoint, runtime: Runtime) -> Engine:
    """Load the weights.

    Raises:
        ModelLoadError: If the checkpoint is broken or of an architecture the engine does not run.
    """
    return _engine_class(runtime.engine)(checkpoint, runtime)


def _engine_class(name: str) -> _EngineClass:
    if name not in ENGINES:
        raise InputError(f"engine must be auto, {', '.join(ENGINES)}, not {name!r}")
    module, _, attribute = ENGINES[name].partition(":")
    with passive_wait_policy():
        engine = getattr(importlib.import_module(module), attribute)
    return cast("_EngineClass", engine)
