"""The memory of embedders' models.

What lives here: which models are loaded, measured. What does not: asking the system
(`system.memory`).
"""

from __future__ import annotations

from collections.abc import Iterable

from unified_embeddings.embedders.lazy import LocalModel
from unified_embeddings.system.memory import ModelMemory, measure_model


def measure_models(models: Iterable[LocalModel]) -> tuple[ModelMemory, ...]:
    """Measure those of some models that are loaded."""
    measured = []
    for model in models:
        regions = list(model.weights())
        hidden_bytes = getattr(model, "hidden_bytes", 0)
        if regions or hidden_bytes:
            runtime = model.runtime
            runs_on = f"{runtime.engine}, {runtime.precision}, {runtime.device}"
            measured.append(
                measure_model(model.model_name, runs_on, regions, hidden_bytes=hidden_bytes)
            )
    return tuple(measured)
