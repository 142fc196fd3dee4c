"""What every engine on torch needs: device, precision, padded batches, weights in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from unified_embeddings.engines.base import Runtime
from unified_embeddings.errors import InputError
from unified_embeddings.system.hardware import cpu
from unified_embeddings.types import IntArray

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
