"""The default engine: PyTorch, packed.

What lives here: precision and device by hardware, and one forward pass over a packed batch with
pooling and the two heads. What does not: the layers (`encoder`), reading files (`weights`).

Packed means without padding: the token ids of all texts stand in one row (T,), positions restart
with each text, and attention runs text by text, so that a batch costs what its tokens cost and a
text's vectors do not depend on its batch-mates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from unified_embeddings.engines.base import RawHeads, Runtime
from unified_embeddings.engines.encoder import Encoder
from unified_embeddings.engines.torch_device import DTYPES, host_weights, plan_torch
from unified_embeddings.models.architecture import position_ids, unpackable
from unified_embeddings.models.checkpoint import COLBERT_HEAD, SPARSE_HEAD, Checkpoint
from unified_embeddings.models.weights import load_head, read_backbone
from unified_embeddings.types import FloatArray, HeadName, IntArray, Role


class TorchEngine:
    """A backbone with BGE-M3's heads on one device; see `engines.Engine`.

    Args:
        checkpoint: Where the files lie.
        runtime: What `plan` gave.

    Raises:
        ModelLoadError: If a file is truncated, a tensor or head is missing or of a wrong shape, or
            the model is one that cannot be packed (`engines.unpackable`).
    """

    padded = False

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        self.runtime = runtime
        self._checkpoint = checkpoint
        self._device = torch.device(runtime.device)
        self._pooling = checkpoint.pooling
        if problem := unpackable(checkpoint):
            raise checkpoint.problem(f"the engine 'torch' cannot run it: {problem}")
        if checkpoint.dimension != checkpoint.hidden_size:
            raise checkpoint.problem(
                f"its vectors have {checkpoint.hidden_size} dimensions, but its spec says "
                f"{checkpoint.dimension}"
            )
        backbone = read_backbone(checkpoint)
        self._encoder = Encoder(backbone, DTYPES[runtime.precision], self._device)
        self._sparse = self._colbert = None
        if "sparse" in checkpoint.spec.heads:
            self._sparse = load_head(checkpoint, SPARSE_HEAD, rows=1).to(self._device)
        if "colbert" in checkpoint.spec.heads:
            self._colbert = load_head(checkpoint, COLBERT_HEAD).to(self._device)
        # One pass at a time: a second would only compete for the same cores and memory.
        self._lock = threading.Lock()

    @staticmethod
    def plan(
        precision: str,
        device: str,
        checkpoint: Callable[[], Checkpoint],  # noqa: ARG004 — the hardware decides
    ) -> Runtime:
        """Read the hardware; see `engines.plan`."""
        return plan_torch("torch", precision, device)

    def run(
        self,
        batch: Sequence[IntArray],
        heads: frozenset[HeadName],
        role: Role = "document",  # noqa: ARG002 — one set of weights for both
    ) -> RawHeads:
        """One forward pass over the packed batch; see `engines.Engine.run`."""
        with self._lock, torch.inference_mode():
            return self._run(batch, heads)

    def weights(self) -> Iterator[tuple[int, int]]:
        """Where the weights lie; see `engines.Engine.weights`."""
        yield from self._encoder.weights()
        yield from host_weights(self._sparse, self._colbert)

    def _run(self, batch: Sequence[IntArray], heads: frozenset[HeadName]) -> RawHeads:
        lengths = [len(ids) for ids in batch]
        ids = np.concatenate(batch).astype(np.int64)
        positions = np.concatenate([position_ids(text, self._checkpoint) for text in batch])
        hidden = self._encoder(
            torch.from_numpy(ids).to(self._device),
            torch.from_numpy(positions).to(self._device),
            lengths,
        ).float()  # (T, d); heads run in fp32 whatever the encoder's dtype
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        pooled = token_weights = token_vectors = None
        if "dense" in heads:
            pooled = self._pool(hidden, lengths, starts)
        if "sparse" in heads and self._sparse is not None:
            weights = torch.relu(self._sparse(hidden)).squeeze(-1).cpu().numpy()
            token_weights = np.split(weights, starts[1:])
        if "colbert" in heads and self._colbert is not None:
            vectors = self._colbert(hidden).cpu().numpy()
            token_vectors = [text[1:] for text in np.split(vectors, starts[1:])]
        return RawHeads(pooled, token_weights, token_vectors)

    def _pool(
        self, hidden: torch.Tensor, lengths: list[int], starts: np.ndarray[Any, Any]
    ) -> FloatArray:
        if self._pooling == "cls":
            return hidden[torch.from_numpy(starts).to(hidden.device)].cpu().numpy()
        means = [part.mean(dim=0) for part in torch.split(hidden, lengths)]
        return torch.stack(means).cpu().numpy()
