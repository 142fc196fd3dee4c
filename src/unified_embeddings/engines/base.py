"""The engines: each turns token ids into a model's raw outputs.

What lives here: the protocol, and the table of engines by name. What does not: tokenising, batching
and the caller's order (`embedder`), normalising and collapsing (`heads`). Each heavy library has
its own module, imported when the engine is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from unified_embeddings.types import FloatArray, HeadName, IntArray, Role, SparseVector


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
