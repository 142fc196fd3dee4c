"""What an engine is: it turns token ids into a model's raw outputs.

What lives here: the protocol that every engine follows, and the values that go in and out. What
does not: choosing and loading an engine (`registry`); tokenising, batching and the caller's order
(`embedders`); normalising and collapsing the outputs (`heads`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.types import FloatArray, HeadName, IntArray, Role, SparseVector


@dataclass(frozen=True)
class Runtime:
    """What a model will run on, decided before it is loaded.

    Attributes:
        engine: One of `ENGINE_NAMES`.
        device: The device in torch's notation: "cpu", "cuda:0", "mps".
        precision: "fp32", "bf16", "fp16" or "int8".
        reason: Why this engine and precision were chosen, in words for the user.
        scheme: How int8 is scaled, where there is more than one way; "" for the oldest. Vectors of
            two schemes compare, but are not the same to the digit.
    """

    engine: str
    device: str
    precision: str
    reason: str
    scheme: str = ""


@dataclass(frozen=True)
class RawHeads:
    """The raw outputs of one batch of n texts. Heads that were not requested are None.

    Attributes:
        pooled: Pooled hidden states, float32 (n, d), not normalised.
        token_weights: Outputs of the sparse head after ReLU, n arrays float32 (t_i,).
        token_vectors: Outputs of the ColBERT head, n arrays float32 (t_i - 1, d), not normalised:
            all tokens but the leading special one.
        token_norms: Lengths that all rows of `token_vectors` had, leading tokens included, float32
            (sum of t_i,), where the engine has scaled the rows to unit length; else None.
        sparse: Finished sparse vectors, n of them, from a model without a weight for each token.
    """

    pooled: FloatArray | None = None
    token_weights: list[FloatArray] | None = None
    token_vectors: list[FloatArray] | None = None
    token_norms: FloatArray | None = None
    sparse: list[SparseVector] | None = None


class Engine(Protocol):
    """One loaded model. Its methods may be called from several threads at once.

    Attributes:
        runtime: What the model runs on.
        padded: Whether texts are padded to the longest in their batch. A padded batch costs its
            longest text times the number of texts; any other costs the sum of the lengths.
    """

    runtime: Runtime
    padded: bool

    def run(
        self, batch: Sequence[IntArray], heads: frozenset[HeadName], role: Role = "document"
    ) -> RawHeads:
        """Run one forward pass.

        Args:
            batch: Token ids of each text with its special tokens: n >= 1 arrays int32 (t_i,),
                t_i >= 2.
            heads: What to compute, at least one.
            role: The role of the texts, for models with weights of their own for each role.
        """
        ...

    def weights(self) -> Iterator[tuple[int, int]]:
        """Yield the address and the size in bytes of each region of weights in this process."""
        ...


@runtime_checkable
class PipelinedEngine(Engine, Protocol):
    """An engine on a device that computes by itself, so that passes can be started ahead."""

    def start(
        self, batch: Sequence[IntArray], heads: frozenset[HeadName], role: Role = "document"
    ) -> Callable[[], RawHeads]:
        """Start one forward pass; see `Engine.run`.

        Returns:
            A function that waits for the pass and returns its outputs.
        """
        ...


class EngineClass(Protocol):
    """An engine before a model is loaded."""

    @staticmethod
    def plan(precision: str, device: str, checkpoint: Callable[[], Checkpoint]) -> Runtime:
        """Decide device and precision; see `registry.plan`."""
        ...

    def __call__(self, checkpoint: Checkpoint, runtime: Runtime) -> Engine:
        """Load a model's weights.

        Args:
            checkpoint: The model's files.
            runtime: The result of `plan`.

        Raises:
            ModelLoadError: If the files are broken, or the engine does not run this model.
        """
        ...
