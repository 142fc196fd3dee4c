"""The engines: each turns token ids into a model's raw outputs.

What lives here: the protocol, and the table of engines by name. What does not: tokenising, batching
and the caller's order (`embedder`), normalising and collapsing (`heads`). Each heavy library has
its own module, imported when the engine is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.errors import InputError
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.system.hardware import threads_that_sleep
from unified_embeddings.types import FloatArray, HeadName, IntArray, Role, SparseVector

ENGINES = {
    "torch": "unified_embeddings.engines.torch:TorchEngine",
    "sentence": "unified_embeddings.engines.sentence:SentenceEngine",
    "onnx": "unified_embeddings.engines.onnx:OnnxEngine",
    "flag": "unified_embeddings.engines.flag:FlagEngine",
}
PACKED = {"bert": True, "xlm-roberta": False, "roberta": False, "camembert": False}
"""Architectures the torch engine runs → whether positions start at 0 (else at padding_idx + 1)."""
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""What `hidden_act` may be in `config.json` → the activation's name here."""


INPUTS = ("input_ids", "attention_mask")
OUTPUTS: dict[HeadName, str] = {
    "dense": "pooled",
    "sparse": "token_weights",
    "colbert": "token_vectors",
}
"""An exported graph's inputs, and head → the output that it is made of."""
EXPORTED_IN = ("fp32", "int8")
"""The precisions there are of it."""


@dataclass(frozen=True)
class Runtime:
    """What a model will run on, decided before it is loaded.

    Attributes:
        engine: A key of `ENGINES`.
        device: As torch writes it: "cpu", "cuda:0", "mps".
        precision: "fp32", "bf16", "fp16" or "int8".
        reason: Why this precision, in a sentence for people.
    """

    engine: str
    device: str
    precision: str
    reason: str


@dataclass(frozen=True)
class RawHeads:
    """One batch of n texts, straight from the model; what was not asked for is None.

    Attributes:
        pooled: Pooled hidden states, float32 (n, d), of any length.
        sparse: Finished sparse vectors, n of them, from a model that gives no weight per token.
        token_weights: The sparse head after ReLU, n arrays float32 (t_i,).
        token_vectors: The ColBERT head, n arrays float32 (t_i - 1, d), of any length: all tokens
            but the leading special one.
    """

    pooled: FloatArray | None = None
    token_weights: list[FloatArray] | None = None
    token_vectors: list[FloatArray] | None = None
    sparse: list[SparseVector] | None = None


class Engine(Protocol):
    """One loaded model. `run` may be called from several threads at once.

    Attributes:
        runtime: What it runs on.
        padded: Whether a batch costs its longest text times their number, not the sum of lengths.
    """

    runtime: Runtime
    padded: bool

    def run(
        self, batch: Sequence[IntArray], heads: frozenset[HeadName], role: Role = "document"
    ) -> RawHeads:
        """One forward pass.

        Args:
            batch: Token ids of each text with its special tokens, n >= 1 arrays int32 (t_i,),
                t_i >= 2.
            heads: What to compute, at least one.
            role: What the texts are, for models with weights of their own for each role.
        """
        ...

    def weights(self) -> Iterator[tuple[int, int]]:
        """Address and bytes of each stretch of weights in this process's memory."""
        ...


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


def unpackable(checkpoint: Checkpoint) -> str | None:
    """What keeps the torch engine from running a model; None if nothing does."""
    if checkpoint.is_exported:
        return "it is an ONNX file, which the engine 'onnx' runs"
    if checkpoint.model_type not in PACKED:
        return f"architecture {checkpoint.model_type!r} is not one it runs ({', '.join(PACKED)})"
    if checkpoint.pooling == "splade":
        return "it computes no SPLADE vectors"
    if checkpoint.spec.adapters or checkpoint.spec.remote_code:
        return "it runs neither adapters nor remote code"
    config = checkpoint.config
    if str(config.get("hidden_act", "gelu")) not in ACTIVATIONS:
        return f"it knows no activation {config['hidden_act']!r}, only {', '.join(ACTIVATIONS)}"
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        return "config.json asks for relative positions or a decoder"
    more = set(checkpoint.modules or ()) - {"Transformer", "Pooling", "Normalize"}
    return f"modules.json asks for {', '.join(sorted(more))} besides" if more else None


def position_ids(ids: IntArray, checkpoint: Checkpoint) -> NDArray[np.int64]:
    """Position ids of one text, int64 (t,), as its backbone would number them itself.

    RoBERTa's numbering counts tokens that are not padding, so a literal `<pad>` in a text takes the
    padding position and is not counted.
    """
    if PACKED[checkpoint.model_type]:
        return np.arange(len(ids), dtype=np.int64)
    pad_id = int(checkpoint.config.get("pad_token_id") or 0)
    real = (ids != pad_id).astype(np.int64)
    positions: NDArray[np.int64] = np.cumsum(real) * real + pad_id
    return positions


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
    with threads_that_sleep():
        engine = getattr(importlib.import_module(module), attribute)
    return cast("_EngineClass", engine)
