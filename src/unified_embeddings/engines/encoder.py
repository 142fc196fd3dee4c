"""The BERT family's encoder over packed batches, in PyTorch.

What lives here: the forward pass from token ids to hidden states. What does not: reading files
(`models.weights`), the products (`products`), attention (`attention`), pooling and heads (`torch`).

On a CPU a forward pass is as fast as its matrix products, so these run on the fastest ones that
this processor has (`products`). Queries, keys and values are one product. Bias, activation and
residual are added while a result is still in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch.nn.functional import embedding, layer_norm

from unified_embeddings.engines.attention import (
    BLOCK_TOKENS,
    Block,
    VarlenKernel,
    blocks_for_cache,
    find_long_text_attention,
    whole_block,
)
from unified_embeddings.engines.products import AnyProduct, make_product, rows_for_plain
from unified_embeddings.models.weights import POSITION_TABLE, TYPE_TABLE, VOCABULARY_TABLE, Backbone

_VARLEN_DTYPES = (torch.float16, torch.bfloat16)
_VARLEN_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs that flash attention runs on, Ampere."""
_VARLEN_HEAD = 256
"""The widest attention head of flash attention."""


class Encoder:
    """A backbone on one device.

    Args:
        backbone: The weights. The pages of what is copied from their files are released.
        dtype: The dtype that products and attention are computed in.
        device: Where the encoder runs.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._heads = backbone.heads

        def load_table(name: str) -> torch.Tensor:
            # A text touches a few rows of a table. On a CPU the tables stay mapped from their file,
            # in the file's dtype, so that only those rows are ever read into memory.
            table = backbone.tensors[name]
            if device.type == "cpu":
                return table
            return table.to(device, dtype)

        self._token_table = load_table(VOCABULARY_TABLE)
        self._position_table = load_table(POSITION_TABLE)
        self._type_table = load_table(TYPE_TABLE)
        self._norm = _Norm(backbone, "embeddings.LayerNorm", torch.float32, device)
        self._layers = []
        plain_rows = rows_for_plain(backbone, dtype, device)
        for number in range(backbone.layers):
            prefix = f"encoder.layer.{number}."
            self._layers.append(_Layer(backbone, prefix, dtype, device, plain_rows))
            backbone.release_pages(prefix)
        self._long_text_attention = find_long_text_attention(
            backbone.width, backbone.heads, dtype, device
        )
        head_dim = backbone.width // backbone.heads
        self.varlen_kernel = _find_varlen_kernel(dtype, device, head_dim)

    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, blocks: Sequence[Block]
    ) -> torch.Tensor:
        """Run one forward pass.

        Args:
            token_ids: Token ids of all texts, one text after another, int64 (T,).
            positions: Their position ids, int64 (T,).
            blocks: The texts' blocks, in order: the result of `divide`, or one for a kernel.

        Returns:
            Hidden states (T, d) in the encoder's dtype.
        """
        token_rows = embedding(token_ids, self._token_table).float()
        position_rows = embedding(positions, self._position_table).float()
        hidden = self._norm(token_rows + position_rows + self._type_table[0].float())
        sizes = [block.tokens for block in blocks]
        states = list(torch.split(hidden.to(self._dtype), sizes))
        for layer in self._layers:
            for number, block in enumerate(blocks):
                hidden = states[number]
                inputs = layer.attention_inputs(hidden).view(block.tokens, 3, self._heads, -1)
                query, key, value = inputs.unbind(1)
                context = block.attend(query, key, value).flatten(1)
                states[number] = self._finish(layer, context, hidden)
        return states[0] if len(states) == 1 else torch.cat(states)

    def divide(self, lengths: Sequence[int]) -> list[Block]:
        """Return the blocks that texts of these lengths go through the layers in."""
        if self._token_table.device.type != "cpu":
            return whole_block(lengths)
        return blocks_for_cache(lengths, self._long_text_attention)

    def _finish(self, layer: _Layer, context: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return a layer's states, (T, d), from its attention's context and the states before.

        A long text is a block of its own. Its rows go through the products in parts, since what the
        wide product gives for more does not stay in the cache until the narrow one takes it.
        """
        if hidden.device.type != "cpu" or len(hidden) <= BLOCK_TOKENS:
            return layer.finish(context, hidden)
        blocks = []
        for first in range(0, len(hidden), BLOCK_TOKENS):
            rows = slice(first, first + BLOCK_TOKENS)
            blocks.append(layer.finish(context[rows], hidden[rows]))
        return torch.cat(blocks)

    def weights(self) -> Iterator[tuple[int, int]]:
        """Yield the address and bytes of each region of weights in the CPU's memory."""
        tensors = [self._token_table, self._position_table, self._type_table, *self._norm.tensors]
        for layer in self._layers:
            tensors += layer.tensors
        for tensor in tensors:
            if tensor.is_mkldnn:
                yield torch.ops.mkldnn.data_ptr(tensor), torch.ops.mkldnn._nbytes(tensor)
            elif tensor.device.type == "cpu":
                yield tensor.data_ptr(), tensor.nbytes


class _Layer:
    """The products and normalisations of one layer.

    Args:
        backbone: The weights.
        prefix: Start of the layer's tensor names.
        dtype: The dtype that the layer is computed in.
        device: Where the layer runs.
        plain_rows: The result of `products.rows_for_plain`.
    """

    def __init__(
        self,
        backbone: Backbone,
        prefix: str,
        dtype: torch.dtype,
        device: torch.device,
        plain_rows: int,
    ) -> None:
        def product(*names: str, activation: str | None = None) -> AnyProduct:
            full_names = [f"{prefix}{name}" for name in names]
            return make_product(
                backbone, full_names, activation, dtype, device, plain_rows=plain_rows
            )

        def norm(name: str) -> _Norm:
            return _Norm(backbone, f"{prefix}{name}", dtype, device)

        self.attention_inputs = product(
            "attention.self.query", "attention.self.key", "attention.self.value"
        )
        self.attention_output = product("attention.output.dense")
        self.attention_norm = norm("attention.output.LayerNorm")
        self.wide = product("intermediate.dense", activation=backbone.activation)
        self.narrow = product("output.dense")
        self.output_norm = norm("output.LayerNorm")

    def finish(self, context: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the layer's states, (rows, d), from its context and the states before."""
        hidden = self.attention_norm(self.attention_output(context, residual=hidden))
        return self.output_norm(self.narrow(self.wide(hidden), residual=hidden))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Return all weights of the layer."""
        return [
            *self.attention_inputs.tensors,
            *self.attention_output.tensors,
            *self.wide.tensors,
            *self.narrow.tensors,
            *self.attention_norm.tensors,
            *self.output_norm.tensors,
        ]


class _Norm:
    """Layer normalisation."""

    def __init__(
        self, backbone: Backbone, name: str, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._weight = backbone.tensors[f"{name}.weight"].to(device, dtype)
        self._bias = backbone.tensors[f"{name}.bias"].to(device, dtype)
        self._epsilon = backbone.epsilon
        self.tensors = (self._weight, self._bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self._weight.shape, self._weight, self._bias, self._epsilon)


def _find_varlen_kernel(
    dtype: torch.dtype, device: torch.device, head_dim: int
) -> VarlenKernel | None:
    """Return flash attention if this GPU and this version of PyTorch have it, or else None."""
    if not _has_varlen(dtype, device, head_dim):
        return None
    try:
        # Imported only here, because it takes two seconds.
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before torch 2.10
        return None
    return cast("VarlenKernel", varlen_attn)


def _has_varlen(dtype: torch.dtype, device: torch.device, head_dim: int) -> bool:
    """Tell whether flash attention runs on this device, for this dtype and width of a head."""
    return (
        device.type == "cuda"
        and dtype in _VARLEN_DTYPES
        and head_dim % 8 == 0
        and head_dim <= _VARLEN_HEAD
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= _VARLEN_CAPABILITY
        and torch.backends.cuda.is_flash_attention_available()
    )
