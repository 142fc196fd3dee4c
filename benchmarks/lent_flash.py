"""Flash attention for transformers where the package `flash-attn` is not installed.

PyTorch brings FlashAttention-2's kernels along. This lends them to transformers under the name of
that package's functions, so that `attn_implementation="flash_attention_2"` works, and with it the
unpadded batches of sentence-transformers.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import modeling_flash_attention_utils as flash_utils

Tensor = torch.Tensor


def lend() -> str:
    """Let transformers use flash attention; return whose kernels these are, in words."""
    if importlib.util.find_spec("flash_attn") is not None:
        return "the package flash-attn"
    functions: Any = flash_utils
    functions.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]["general_availability_check"] = lambda: True
    padding = (functions._pad_input, functions._unpad_input)
    functions._lazy_imports = lambda *_, **__: (attend_equal, attend_varlen, None, *padding)
    return "FlashAttention-2 as PyTorch brings it along, lent to transformers"


def attend_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """Return attention within each of many texts, (T, heads, head_dim)."""
    context: Tensor
    context, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k),
        dropout_p, causal, False, scale=softmax_scale,
    )  # fmt: skip
    return context


def attend_equal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """Return attention within texts of one length, (texts, length, heads, head_dim)."""
    context: Tensor
    context, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, None, None, q.shape[1], k.shape[1],
        dropout_p, causal, False, scale=softmax_scale,
    )  # fmt: skip
    return context
