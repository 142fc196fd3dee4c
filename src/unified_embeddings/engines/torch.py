"""The default engine: PyTorch, packed.

What lives here: one forward pass over a packed batch, with pooling and the two heads. What does
not: the layers (`encoder`), reading files (`models.weights`), device and precision
(`torch_device`).

Packed means without padding. The token ids of all texts form one row (T,), positions restart with
each text, and attention stays within each text. A batch therefore costs what its tokens cost, and a
text's vectors do not depend on the other texts in its batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from unified_embeddings.engines.base import RawHeads, Runtime
from unified_embeddings.engines.encoder import Encoder
from unified_embeddings.engines.torch_device import DTYPES, host_weights, plan_torch
from unified_embeddings.models.architecture import packing_problem, position_ids
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.files import COLBERT_HEAD, SPARSE_HEAD
from unified_embeddings.models.weights import load_head, read_backbone
from unified_embeddings.types import FloatArray, HeadName, IntArray, Role


class TorchEngine:
    """A backbone with BGE-M3's heads on one device; see `Engine`.

    Args:
        checkpoint: The model's files.
        runtime: The result of `plan`.

    Raises:
        ModelLoadError: If a file is truncated, a tensor or head is missing or of the wrong shape,
            or the model cannot be packed (`packing_problem`).
    """

    padded = False

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        self.runtime = runtime
        self._checkpoint = checkpoint
        self._device = torch.device(runtime.device)
        self._pooling = checkpoint.pooling
        if problem := packing_problem(checkpoint):
            raise checkpoint.problem(f"the engine 'torch' cannot run it: {problem}")
        if checkpoint.dimension != checkpoint.hidden_size:
            raise checkpoint.problem(
                f"its vectors have {checkpoint.hidden_size} dimensions, but its spec says "
                f"{checkpoint.dimension}"
            )
        backbone = read_backbone(checkpoint)
        self._encoder = Encoder(backbone, DTYPES[runtime.precision], self._device)
        self._sparse_head: torch.nn.Linear | None = None
        self._colbert_head: torch.nn.Linear | None = None
        if "sparse" in checkpoint.spec.heads:
            self._sparse_head = load_head(checkpoint, SPARSE_HEAD, rows=1).to(self._device)
        if "colbert" in checkpoint.spec.heads:
            self._colbert_head = load_head(checkpoint, COLBERT_HEAD).to(self._device)
        # One pass at a time: a second would only compete for the same cores and memory.
        self._lock = threading.Lock()

    @staticmethod
    def plan(
        precision: str,
        device: str,
        checkpoint: Callable[[], Checkpoint],  # noqa: ARG004 — the hardware decides
    ) -> Runtime:
        """Decide by the hardware; see `registry.plan`."""
        return plan_torch("torch", precision, device)

    def run(
        self,
        batch: Sequence[IntArray],
        heads: frozenset[HeadName],
        role: Role = "document",  # noqa: ARG002 — one set of weights for both
    ) -> RawHeads:
        """Run one forward pass over the packed batch; see `Engine.run`."""
        lengths = [len(token_ids) for token_ids in batch]
        token_ids = np.concatenate(batch).astype(np.int64)
        positions = np.concatenate([position_ids(ids, self._checkpoint) for ids in batch])
        with self._lock, torch.inference_mode():
            hidden = self._encoder(
                torch.from_numpy(token_ids).to(self._device),
                torch.from_numpy(positions).to(self._device),
                lengths,
            )
            # Pooling and heads are computed in fp32, whatever the encoder's precision. In fp32 this
            # is not a copy.
            hidden = hidden.float()
            return self._compute_heads(hidden, lengths, heads)

    def weights(self) -> Iterator[tuple[int, int]]:
        """Yield the regions of weights in this process's memory; see `Engine.weights`."""
        yield from self._encoder.weights()
        yield from host_weights(self._sparse_head, self._colbert_head)

    def _compute_heads(
        self, hidden: torch.Tensor, lengths: list[int], heads: frozenset[HeadName]
    ) -> RawHeads:
        """Pool and apply the requested heads to hidden states, float32 (T, d)."""
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        pooled = token_weights = token_vectors = None
        if "dense" in heads:
            pooled = self._pool(hidden, lengths, starts)
        if "sparse" in heads and self._sparse_head is not None:
            weights = torch.relu(self._sparse_head(hidden)).squeeze(-1).cpu().numpy()
            token_weights = np.split(weights, starts[1:])
        if "colbert" in heads and self._colbert_head is not None:
            vectors = self._colbert_head(hidden).cpu().numpy()
            token_vectors = [rows[1:] for rows in np.split(vectors, starts[1:])]
        return RawHeads(pooled=pooled, token_weights=token_weights, token_vectors=token_vectors)

    def _pool(
        self,
        hidden: torch.Tensor,
        lengths: list[int],
        starts: np.ndarray[tuple[int], np.dtype[np.int64]],
    ) -> FloatArray:
        """Return one vector for each text, float32 (n, d)."""
        if self._pooling == "cls":
            return hidden[torch.from_numpy(starts).to(hidden.device)].cpu().numpy()
        means = [rows.mean(dim=0) for rows in torch.split(hidden, lengths)]
        return torch.stack(means).cpu().numpy()
