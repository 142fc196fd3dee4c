"""Attention within each text of a packed batch, in PyTorch.

What lives here: blocks of texts that go through a layer together, and ways to compute attention for
them. What does not: the layers (`encoder`), timing which way is faster (`timed_choice`).

On a CPU, PyTorch's attention multiplies with MKL. Where oneDNN is faster, long texts take it: the
only product of oneDNN in fp32 that PyTorch offers for many heads at once is a convolution with one
group for each head.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch.nn.functional import scaled_dot_product_attention

from unified_embeddings.engines.timed_choice import NEVER, Trial, first_faster_size

BLOCK_TOKENS = 1024
"""Tokens of a block, at most: states of more do not stay in a processor's cache."""
_QUERY_ROWS = 1024
"""Rows of attention scores computed at once: a text of 8,192 tokens would need 4 GiB of them."""
_CONVOLVED_SCORES = 2**21
"""Scores computed at once by convolutions, at most: 8 MiB, which stay in a cache."""
_TRIED_LENGTHS = (128, 256)
"""Tokens of a text at which both ways are timed. Shorter texts never take convolutions."""
_WORTH_MEASURING = 512
"""Width of a model below which nothing is measured: its attention takes no time that matters."""
_CONVOLUTION_OPERATORS = (
    "_reorder_convolution_weight",
    "_convolution_pointwise",
    "_reorder_convolution_transpose_weight",
    "_convolution_transpose_pointwise",
)
"""What torch.compile uses for convolutions on oneDNN. They have no public names."""
_PADDING, _STRIDE, _DILATION = [0, 0], [1, 1], [1, 1]
"""The settings of a convolution with kernels of one pixel."""
_NO_ACTIVATION: tuple[str, list[float], str] = ("none", [], "")

Attention: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From queries, keys and values to softmax(q k' / sqrt(head_dim)) v, all (T, heads, head_dim)."""


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


def blocks_for_cache(lengths: Sequence[int], convolved_from: int = NEVER) -> list[Block]:
    """Divide texts into blocks whose states stay in a processor's cache.

    A longer text makes a block of its own.

    Args:
        lengths: Tokens of each text, in order.
        convolved_from: See `attention_by_length`.

    Example:
        >>> [block.tokens for block in blocks_for_cache([1200, 600, 300, 200])]
        [1200, 900, 200]
    """
    blocks: list[Block] = []
    texts: list[int] = []
    for length in lengths:
        if texts and sum(texts) + length > BLOCK_TOKENS:
            blocks.append(_make_block(texts, convolved_from))
            texts = []
        texts.append(length)
    blocks.append(_make_block(texts, convolved_from))
    return blocks


def whole_block(lengths: Sequence[int]) -> list[Block]:
    """Return one block of all texts, for a device that has no cache to mind."""
    return [_make_block(lengths, NEVER)]


def _make_block(lengths: Sequence[int], convolved_from: int) -> Block:
    return Block(sum(lengths), attention_by_length(lengths, convolved_from))


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


def attention_by_length(lengths: Sequence[int], convolved_from: int = NEVER) -> Attention:
    """Return attention within each text, with neighbours of one length computed together.

    Args:
        lengths: Tokens of each text, in order; they sum to T.
        convolved_from: Tokens from which on a text is computed by convolutions; `NEVER` for none.
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
            if convolved_from == NEVER or length < convolved_from:
                _attend_by_pytorch(q, k, v, out)
            else:
                for text in range(texts):
                    _attend_by_convolutions(q[text], k[text], v[text], out[text])
        return context

    return attend


def find_convolved_from(width: int, heads: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return from how many tokens on convolutions are faster; `NEVER` if they are not.

    Args:
        width: Columns of a model's states.
        heads: Its attention heads.
        dtype: The dtype that it is computed in.
        device: Where it is computed.
    """
    is_offered = device.type == "cpu" and dtype == torch.float32 and _has_convolutions()
    if not is_offered or width < _WORTH_MEASURING:
        return NEVER

    def make_inputs(length: int) -> torch.Tensor:
        return torch.ones(length, 3, heads, width // heads)

    def attend(inputs: torch.Tensor, convolved_from: int) -> torch.Tensor:
        return attention_by_length([len(inputs)], convolved_from)(*inputs.unbind(1))

    return first_faster_size(
        Trial(
            name=f"attention {heads}x{width // heads}",
            sizes=_TRIED_LENGTHS,
            make_input=make_inputs,
            usual=lambda inputs: attend(inputs, NEVER),
            other=lambda inputs: attend(inputs, 1),
        )
    )


def _has_convolutions() -> bool:
    """Tell whether this build has the operators of `_convolve_heads`."""
    is_built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_built and all(hasattr(torch.ops.mkldnn, name) for name in _CONVOLUTION_OPERATORS)


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


def _attend_by_convolutions(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, context: torch.Tensor
) -> None:
    """Fill the context of one text, each (length, heads, head_dim)."""
    length, heads, _ = query.shape
    # A few large products are faster than many small ones, so all rows of a few heads are computed
    # at once, or of a long text some rows of one head. Parts are nearly equal, since oneDNN
    # arranges the keys and values for a number of rows.
    rows = _part_size(length, _CONVOLVED_SCORES // length)
    heads_at_once = _part_size(heads, _CONVOLVED_SCORES // (rows * length))
    for first in range(0, heads, heads_at_once):
        part = (slice(None), slice(first, first + heads_at_once))
        _convolve_heads(query[part], key[part], value[part], context[part], rows)


def _part_size(count: int, most: int) -> int:
    """Return the size of the fewest nearly equal parts of at most `most`, and at least 1."""
    parts = -(-count // max(1, most))
    return -(-count // parts)


def _convolve_heads(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    context: torch.Tensor,
    chunk_rows: int,
) -> None:
    """Fill the context of some heads of one text, so many rows at a time."""
    length, heads, head_dim = query.shape
    arranged_keys = _arrange_keys(key, chunk_rows)
    arranged_values = _arrange_values(value, chunk_rows)
    for first in range(0, length, chunk_rows):
        chunk = slice(first, first + chunk_rows)
        scores = _score(query[chunk] * head_dim**-0.5, arranged_keys, heads)
        torch.softmax(scores, dim=-1, out=scores)
        context[chunk] = _weigh(scores, arranged_values, heads)


# A convolution with kernels of one pixel multiplies each head's rows by a matrix of that head. A
# row is a pixel, its columns are the channels, and each head is a group of channels. Keys are the
# kernels of a convolution, which multiplies by their transpose. Values are the kernels of a
# transposed convolution, which multiplies by them as they are: to transpose them first would take
# as long as the product.


def _arrange_keys(key: torch.Tensor, rows: int) -> torch.Tensor:
    """Return keys (length, heads, head_dim) in oneDNN's layout for `_score` with so many rows."""
    length, heads, head_dim = key.shape
    kernels = key.transpose(0, 1).reshape(heads * length, head_dim, 1, 1)
    shape = [1, heads * head_dim, rows, 1]
    arranged: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        kernels, _PADDING, _STRIDE, _DILATION, heads, shape
    )
    return arranged


def _score(query: torch.Tensor, arranged_keys: torch.Tensor, heads: int) -> torch.Tensor:
    """Return each head's products q k', (rows, heads, length)."""
    result = torch.ops.mkldnn._convolution_pointwise(
        _as_pixels(query), arranged_keys, None, _PADDING, _STRIDE, _DILATION, heads, *_NO_ACTIVATION
    )
    return _as_rows(result, heads)


def _arrange_values(value: torch.Tensor, rows: int) -> torch.Tensor:
    """Return values (length, heads, head_dim) in oneDNN's layout for `_weigh` with so many rows."""
    length, heads, head_dim = value.shape
    kernels = value.transpose(0, 1).reshape(heads * length, head_dim, 1, 1)
    shape = [1, heads * length, rows, 1]
    arranged: torch.Tensor = torch.ops.mkldnn._reorder_convolution_transpose_weight(
        kernels, _PADDING, _PADDING, _STRIDE, _DILATION, heads, shape
    )
    return arranged


def _weigh(weights: torch.Tensor, arranged_values: torch.Tensor, heads: int) -> torch.Tensor:
    """Return sums of each head's values, weighted by (rows, heads, length): (rows, heads, d)."""
    result = torch.ops.mkldnn._convolution_transpose_pointwise(
        _as_pixels(weights),
        arranged_values,
        None,
        _PADDING,
        _PADDING,
        _STRIDE,
        _DILATION,
        heads,
        *_NO_ACTIVATION,
    )
    return _as_rows(result, heads)


def _as_pixels(x: torch.Tensor) -> torch.Tensor:
    """Return rows (rows, heads, m) as an image, channels last in memory: (1, heads m, rows, 1)."""
    return x.reshape(1, len(x), 1, -1).permute(0, 3, 1, 2)


def _as_rows(image: torch.Tensor, heads: int) -> torch.Tensor:
    """Return an image's pixels as rows of each head, (rows, heads, n)."""
    return image.permute(0, 2, 3, 1).reshape(image.shape[2], heads, -1)
