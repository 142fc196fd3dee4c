"""Attention within each text of a packed batch, in PyTorch.

What lives here: blocks of texts that go through a layer together, and the choice of how attention
is computed for them. What does not: the layers (`encoder`), timing which way is faster
(`timed_choice`), ONNX Runtime's attention (`onnx_attention`).

On a CPU, PyTorch's attention multiplies with MKL. Where ONNX Runtime is installed and its attention
is faster, long texts take that.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch.nn.functional import scaled_dot_product_attention

from unified_embeddings.engines.timed_choice import NEVER, Trial, first_faster_size
from unified_embeddings.errors import MissingExtraError

_LOG = logging.getLogger(__name__)

BLOCK_TOKENS = 1024
"""Tokens of a block, at most: states of more do not stay in a processor's cache."""
_QUERY_ROWS = 1024
"""Rows of attention scores computed at once: a text of 8,192 tokens would need 4 GiB of them."""
_TRIED_LENGTHS = (128, 256)
"""Tokens of a text at which both ways are timed. Shorter texts always take PyTorch's: with ONNX
Runtime's, a pass over them took as long (ADR 44)."""
_WORTH_MEASURING = 512
"""Width of a model below which nothing is measured: its attention takes no time that matters."""

Attention: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From queries, keys and values to softmax(q k' / sqrt(head_dim)) v, all (T, heads, head_dim)."""
AttentionWithinText: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None
]
"""Fills the last tensor, the context, from one text's queries, keys and values. All are (length,
heads, head_dim)."""


class LongTextAttention(NamedTuple):
    """How attention of long texts is computed.

    Attributes:
        least_tokens: Tokens from which on a text counts as long.
        attend: Attention within one of them.
    """

    least_tokens: int
    attend: AttentionWithinText


class Block(NamedTuple):
    """Neighbouring texts that go through a layer together.

    Attributes:
        tokens: Tokens of all its texts.
        attend: Attention within each of them.
    """

    tokens: int
    attend: Attention


class VarlenKernel(Protocol):
    """Attention over texts of different lengths in one call, like PyTorch's `varlen_attn`."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        query_ends: torch.Tensor,
        key_ends: torch.Tensor,
        longest_query: int,
        longest_key: int,
        /,
    ) -> torch.Tensor:
        """Return the context, (T, heads, head_dim)."""
        ...


def blocks_for_cache(
    lengths: Sequence[int], long_text_attention: LongTextAttention | None = None
) -> list[Block]:
    """Divide texts into blocks whose states stay in a processor's cache.

    A longer text makes a block of its own.

    Args:
        lengths: Tokens of each text, in order.
        long_text_attention: See `attention_by_length`.

    Example:
        >>> [block.tokens for block in blocks_for_cache([1200, 600, 300, 200])]
        [1200, 900, 200]
    """
    blocks: list[Block] = []
    texts: list[int] = []
    for length in lengths:
        if texts and sum(texts) + length > BLOCK_TOKENS:
            blocks.append(_make_block(texts, long_text_attention))
            texts = []
        texts.append(length)
    blocks.append(_make_block(texts, long_text_attention))
    return blocks


def whole_block(lengths: Sequence[int]) -> list[Block]:
    """Return one block of all texts, for a device that has no cache to mind."""
    return [_make_block(lengths, None)]


def _make_block(lengths: Sequence[int], long_text_attention: LongTextAttention | None) -> Block:
    return Block(sum(lengths), attention_by_length(lengths, long_text_attention))


def attention_between(kernel: VarlenKernel, ends: torch.Tensor, longest: int) -> Attention:
    """Return attention within each text, with all texts in one call of a kernel.

    Args:
        kernel: PyTorch's `varlen_attn`, or one like it.
        ends: 0 and the end of each text, int32 (n + 1,), on the batch's device.
        longest: Tokens of the longest text, at least.
    """

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return kernel(query, key, value, ends, ends, longest, longest)

    return attend


def attention_by_length(
    lengths: Sequence[int], long_text_attention: LongTextAttention | None = None
) -> Attention:
    """Return attention within each text, with neighbours of one length computed together.

    Args:
        lengths: Tokens of each text, in order; they sum to T.
        long_text_attention: How long texts are computed, each for itself; None for like all others.
    """
    groups = [(length, len(list(texts))) for length, texts in itertools.groupby(lengths)]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        context = torch.empty_like(query, memory_format=torch.contiguous_format)
        start = 0
        for length, texts in groups:
            rows = slice(start, start + texts * length)
            start = rows.stop
            # Each (texts, length, heads, head_dim); the last one is a view into the result.
            q, k, v, out = (
                tensor[rows].view(texts, length, *tensor.shape[1:])
                for tensor in (query, key, value, context)
            )
            if long_text_attention is None or length < long_text_attention.least_tokens:
                _attend_by_pytorch(q, k, v, out)
            else:
                for text in range(texts):
                    long_text_attention.attend(q[text], k[text], v[text], out[text])
        return context

    return attend


def find_long_text_attention(
    width: int, heads: int, dtype: torch.dtype, device: torch.device
) -> LongTextAttention | None:
    """Return from how many tokens on ONNX Runtime's attention is faster; None if it is not.

    Args:
        width: Columns of a model's states.
        heads: Its attention heads.
        dtype: The dtype that it is computed in.
        device: Where it is computed.
    """
    if device.type != "cpu" or dtype != torch.float32 or width < _WORTH_MEASURING:
        return None
    try:
        return _time_onnx_attention(width, heads)
    except MissingExtraError:
        _LOG.info("Long texts take PyTorch's attention: the extra 'onnx' is not installed")
    except Exception as error:  # what only makes texts faster keeps no model from being loaded
        _LOG.warning("Long texts take PyTorch's attention: ONNX Runtime's failed: %s", error)
    return None


def _time_onnx_attention(width: int, heads: int) -> LongTextAttention | None:
    """Return from how many tokens on ONNX Runtime's attention is faster; None if it is not."""
    from unified_embeddings.engines.onnx_attention import RUNTIME_VERSION, OnnxAttention

    onnx_attention = OnnxAttention(heads)

    def make_inputs(length: int) -> torch.Tensor:
        return torch.ones(length, 3, heads, width // heads)

    def attend(inputs: torch.Tensor, long_text_attention: LongTextAttention | None) -> torch.Tensor:
        return attention_by_length([len(inputs)], long_text_attention)(*inputs.unbind(1))

    least_tokens = first_faster_size(
        Trial(
            name=f"attention {heads}x{width // heads} onnxruntime {RUNTIME_VERSION}",
            sizes=_TRIED_LENGTHS,
            make_input=make_inputs,
            usual=lambda inputs: attend(inputs, None),
            other=lambda inputs: attend(inputs, LongTextAttention(1, onnx_attention)),
        )
    )
    if least_tokens == NEVER:
        return None
    # The answer may have been remembered, so only now it shows whether the session can be opened.
    onnx_attention.open()
    return LongTextAttention(least_tokens, onnx_attention)


def _attend_by_pytorch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, context: torch.Tensor
) -> None:
    """Fill the context of texts of one length, each (texts, length, heads, head_dim).

    The queries of a long text are computed in chunks, so that their scores fit into memory.
    """
    query, key, value, context = (tensor.transpose(1, 2) for tensor in (query, key, value, context))
    for first in range(0, query.shape[2], _QUERY_ROWS):
        chunk = slice(first, first + _QUERY_ROWS)
        context[:, :, chunk] = scaled_dot_product_attention(query[:, :, chunk], key, value)
