"""The default engine: PyTorch, packed.

What lives here: precision and device by hardware, and one forward pass over a packed batch with
pooling and the two heads. What does not: the layers (`encoder`), reading files (`weights`).

Packed means without padding: the token ids of all texts stand in one row (T,), positions restart
with each text, and attention runs text by text, so that a batch costs what its tokens cost and a
text's vectors do not depend on its batch-mates.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from unified_embeddings.engines.base import RawHeads, Runtime, position_ids, unpackable
from unified_embeddings.engines.encoder import Encoder
from unified_embeddings.errors import InputError
from unified_embeddings.models.checkpoint import COLBERT_HEAD, SPARSE_HEAD, Checkpoint
from unified_embeddings.models.weights import load_head, read_backbone
from unified_embeddings.system.hardware import cpu
from unified_embeddings.types import FloatArray, HeadName, IntArray, Role

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def plan_torch(engine: str, precision: str, device: str) -> Runtime:
    """Device and precision for an engine on torch.

    bf16 pays on a CPU only with AMX; without it it can be 100 times slower than fp32. fp16 on a CPU
    is 6 to 9 times slower and rounds: refused. On a GPU fp16 is what BGE-M3 is published in and
    keeps three bits more than bf16.

    Raises:
        InputError: If the device does not exist, or fp16 is asked for on a CPU.
    """
    if precision not in ("auto", *DTYPES):
        more = "; int8 runs on the engine 'onnx'"
        raise InputError(
            f"precision must be auto, {', '.join(DTYPES)}, not {precision!r}"
            f"{more if precision == 'int8' else ''}"
        )
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    kind = _device_type(device)
    if kind == "cpu":
        if precision == "fp16":
            raise InputError(
                "precision fp16 does not run well on a CPU (6 to 9 times slower than fp32, and "
                "rounded); use auto, fp32 or bf16"
            )
        if precision == "auto":
            if cpu().has_amx_bf16:
                return Runtime(engine, device, "bf16", "the CPU has amx_bf16 matrix units")
            return Runtime(
                engine, device, "fp32", "the CPU has no amx_bf16, without which bf16 is slower"
            )
    elif precision == "auto":
        return Runtime(engine, device, "fp16", f"{kind} computes in half precision")
    return Runtime(engine, device, precision, "as asked")


def _device_type(device: str) -> str:
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is not one torch knows: {error}") from error
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} is asked for, but torch sees no CUDA GPU; use 'cpu'")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r} is asked for, of {torch.cuda.device_count()} GPUs")
    if parsed.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device {device!r} is asked for, but this machine has none; use 'cpu'")
    return str(parsed.type)


def padded(batch: Sequence[IntArray], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Token ids of n texts as `input_ids` and `attention_mask`, int64 (n, longest text)."""
    lengths = [len(ids) for ids in batch]
    ids = np.full((len(batch), max(lengths)), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(batch):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {
        "input_ids": torch.from_numpy(ids).to(device),
        "attention_mask": torch.from_numpy(mask).to(device),
    }


def host_weights(*modules: torch.nn.Module | None) -> Iterator[tuple[int, int]]:
    """Address and bytes of the modules' parameters and buffers on the CPU, shared ones once.

    A part of a larger tensor keeps all of that in memory, and counts as all of it.
    """
    seen = set()
    for module in modules:
        for tensor in itertools.chain(module.parameters(), module.buffers()) if module else ():
            storage = tensor.untyped_storage()
            if tensor.device.type == "cpu" and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield storage.data_ptr(), storage.nbytes()
