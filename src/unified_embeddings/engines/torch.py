"""The default engine: PyTorch, packed.

What lives here: one forward pass over a packed batch, with pooling and the two heads. What does
not: the layers (`encoder`), reading files (`models.weights`), device and precision
(`torch_device`).

Packed means without padding. The token ids of all texts form one row (T,), positions restart with
each text, and attention stays within each text. A batch therefore costs what its tokens cost, and a
text's vectors do not depend on the other texts in its batch, up to rounding: on some processors a
pass of many tokens takes another product (`products`), which differs in the seventh digit.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from unified_embeddings.engines.base import RawHeads, Runtime
from unified_embeddings.engines.encoder import Encoder
from unified_embeddings.engines.gpu_passes import GpuPasses, Hidden
from unified_embeddings.engines.torch_device import DTYPES, HostCopies, host_weights, plan_torch
from unified_embeddings.models.architecture import packing_problem, position_ids
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.files import COLBERT_HEAD, SPARSE_HEAD
from unified_embeddings.models.weights import load_head, read_backbone
from unified_embeddings.types import HeadName, IntArray, Role

_LEAST_NORM = 1e-12
"""The smallest norm divided by, as in `heads.normalise`."""


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
        self._gpu_passes: GpuPasses | None = None
        if self._encoder.varlen_kernel is not None:
            self._gpu_passes = GpuPasses(
                self._encoder, self._encoder.varlen_kernel, self._device, checkpoint.pad_id
            )
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
        self, batch: Sequence[IntArray], heads: frozenset[HeadName], role: Role = "document"
    ) -> RawHeads:
        """Run one forward pass over the packed batch; see `Engine.run`."""
        return self.start(batch, heads, role)()

    def start(
        self,
        batch: Sequence[IntArray],
        heads: frozenset[HeadName],
        role: Role = "document",  # noqa: ARG002 — one set of weights for both
    ) -> Callable[[], RawHeads]:
        """Start one forward pass; see `PipelinedEngine.start`. On a CPU it is done on return."""
        lengths = [len(token_ids) for token_ids in batch]
        token_ids = np.concatenate(batch)
        positions = np.concatenate([position_ids(ids, self._checkpoint) for ids in batch])
        with self._lock, torch.inference_mode():
            if self._gpu_passes is not None:
                hidden = self._gpu_passes.run(token_ids, positions, lengths)
            else:
                states = self._encoder(
                    torch.from_numpy(token_ids.astype(np.int64)).to(self._device),
                    torch.from_numpy(positions).to(self._device),
                    self._encoder.divide(lengths),
                )
                starts = torch.tensor([0, *itertools.accumulate(lengths[:-1])])
                # Pooling and heads are computed in fp32, whatever the encoder's precision. In fp32
                # this is not a copy.
                hidden = Hidden(states.float(), starts.to(self._device))
            copies = HostCopies(self._compute_heads(hidden, lengths, heads))
        return functools.partial(_split_texts, copies, lengths)

    def weights(self) -> Iterator[tuple[int, int]]:
        """Yield the regions of weights in this process's memory; see `Engine.weights`."""
        yield from self._encoder.weights()
        yield from host_weights(self._sparse_head, self._colbert_head)

    def _compute_heads(
        self, hidden: Hidden, lengths: list[int], heads: frozenset[HeadName]
    ) -> dict[str, torch.Tensor]:
        """Pool, and apply the requested heads.

        Returns:
            "dense" (n, d), "sparse" (T,) and "colbert" (T, d) as requested, and "norms" (T,) if the
            rows of "colbert" are scaled to unit length. All float32.
        """
        results = {}
        if "dense" in heads:
            results["dense"] = self._pool(hidden, lengths)
        if "sparse" in heads and self._sparse_head is not None:
            results["sparse"] = torch.relu(self._sparse_head(hidden.states)).squeeze(-1)
        if "colbert" in heads and self._colbert_head is not None:
            results["colbert"] = self._colbert_head(hidden.states)
            if self._gpu_passes is not None:
                # On the GPU this takes no time; on the CPU it would take longer than the pass.
                norms = torch.linalg.vector_norm(results["colbert"], dim=-1, keepdim=True)
                results["colbert"] /= norms.clamp_min(_LEAST_NORM)
                results["norms"] = norms.squeeze(-1)
        return results

    def _pool(self, hidden: Hidden, lengths: list[int]) -> torch.Tensor:
        """Return one vector for each text, float32 (n, d)."""
        if self._pooling == "cls":
            return hidden.states.index_select(0, hidden.starts)
        means = [rows.mean(dim=0) for rows in torch.split(hidden.states, lengths)]
        return torch.stack(means)


def _split_texts(copies: HostCopies, lengths: list[int]) -> RawHeads:
    """Wait for the outputs of a pass, and return them text by text."""
    arrays = copies.wait()
    starts = np.cumsum(lengths)[:-1]
    pooled = token_weights = token_vectors = None
    if "dense" in arrays:
        # A copy, because a vector may be kept for long, and pinned memory is dear.
        pooled = arrays["dense"].copy()
    if "sparse" in arrays:
        token_weights = np.split(arrays["sparse"], starts)
    if "colbert" in arrays:
        token_vectors = [rows[1:] for rows in np.split(arrays["colbert"], starts)]
    return RawHeads(
        pooled=pooled,
        token_weights=token_weights,
        token_vectors=token_vectors,
        token_norms=arrays.get("norms"),
    )
