"""What every engine on torch needs: device and precision, padded batches, weights in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from unified_embeddings.engines.base import Runtime
from unified_embeddings.engines.processors import processor_kind
from unified_embeddings.errors import InputError
from unified_embeddings.system.hardware import cpu
from unified_embeddings.types import FloatArray, IntArray

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision → torch's dtype."""


def plan_torch(engine: str, precision: str, device: str) -> Runtime:
    """Decide device and precision for an engine on torch.

    What a CPU takes is in `processors`: without instructions for it, bf16 can be 100 times slower
    than fp32. fp16 on a
    CPU is 6 to 9 times slower and rounds, so it is refused. On a GPU fp16 is the default: BGE-M3 is
    published in it, and it keeps three bits more than bf16.

    Raises:
        InputError: If the precision is unknown, the device does not exist, or fp16 is requested on
            a CPU.
    """
    if precision not in ("auto", *DTYPES):
        raise InputError(
            f"precision must be auto, {', '.join(DTYPES)}, not {precision!r}; int8 runs on the "
            "engine 'onnx'"
        )
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    device_type = _require_device(device)
    if precision == "fp16" and device_type == "cpu":
        raise InputError(
            "precision fp16 does not run well on a CPU (6 to 9 times slower than fp32, and "
            "rounded); use auto, fp32 or bf16"
        )
    if precision != "auto":
        return Runtime(engine=engine, device=device, precision=precision, reason="as asked")
    if device_type != "cpu":
        precision, reason = "fp16", f"{device_type} computes in half precision"
    else:
        kind = processor_kind(cpu())
        precision, reason = kind.precision, kind.precision_reason
    return Runtime(engine=engine, device=device, precision=precision, reason=reason)


def _require_device(device: str) -> str:
    """Return the type of a device: "cpu", "cuda", "mps", ...

    Raises:
        InputError: If this machine does not have the device.
    """
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"torch does not know the device {device!r}: {error}") from error
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} was requested, but torch sees no CUDA GPU; use 'cpu'")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device!r} was requested, but torch sees {torch.cuda.device_count()} GPUs"
        )
    if parsed.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device {device!r} was requested, but this machine has none; use 'cpu'")
    return str(parsed.type)


def pad_batch(
    batch: Sequence[IntArray], pad_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return n texts as `input_ids` and `attention_mask`, both int64 (n, longest text)."""
    longest = max(len(token_ids) for token_ids in batch)
    input_ids = np.full((len(batch), longest), pad_id, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, token_ids in enumerate(batch):
        input_ids[row, : len(token_ids)] = token_ids
        attention_mask[row, : len(token_ids)] = 1
    return {
        "input_ids": torch.from_numpy(input_ids).to(device),
        "attention_mask": torch.from_numpy(attention_mask).to(device),
    }


class HostCopies:
    """Tensors on their way into this process's memory.

    A GPU copies into pinned memory by itself, and several times as fast as into other memory. It
    belongs to the arrays, and is used again once they are gone.

    Args:
        tensors: The tensors, by any names, all on one device.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        self._copies: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            if tensor.device.type != "cuda":
                self._copies[name] = tensor.cpu()
                continue
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copies[name] = copy.copy_(tensor, non_blocking=True)
            if self._event is None:
                self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> dict[str, FloatArray]:
        """Return them once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return {name: copy.numpy() for name, copy in self._copies.items()}


def host_weights(*modules: torch.nn.Module | None) -> Iterator[tuple[int, int]]:
    """Yield the address and bytes of the modules' parameters and buffers in this process's memory.

    Tensors that share their storage count once. A view of a larger tensor keeps the whole of it in
    memory, and counts as the whole of it.
    """
    seen_addresses = set()
    for module in modules:
        if module is None:
            continue
        for tensor in [*module.parameters(), *module.buffers()]:
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if tensor.device.type == "cpu" and address not in seen_addresses:
                seen_addresses.add(address)
                yield address, storage.nbytes()
