"""The BERT family's encoder over packed batches, in PyTorch.

What lives here: the forward pass from token ids to hidden states. What does not: reading files
(`models.weights`), pooling and heads (`torch`).

On a CPU a forward pass is as fast as its matrix products, so these run on oneDNN. The weights are
kept in oneDNN's own layout, into which they are reordered once, when the model is loaded. Queries,
keys and values are one product. Bias, activation and residual are added while a result is still in
the processor's cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias, cast

import torch
from torch.nn.functional import (
    embedding,
    gelu,
    layer_norm,
    linear,
    relu,
    scaled_dot_product_attention,
)

from unified_embeddings.models.weights import POSITION_TABLE, TYPE_TABLE, VOCABULARY_TABLE, Backbone

_QUERY_ROWS = 1024
"""Rows of attention scores computed at once: a text of 8,192 tokens would need 4 GiB of them."""
_VARLEN_DTYPES = (torch.float16, torch.bfloat16)
_VARLEN_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs that flash attention runs on, Ampere."""
_VARLEN_HEAD = 256
"""The widest attention head of flash attention."""

Attention: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From queries, keys and values to the context, all (T, heads, head_dim)."""


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


class _Activation(NamedTuple):
    """An activation: PyTorch's function, and oneDNN's name and algorithm for it."""

    function: Callable[[torch.Tensor], torch.Tensor]
    onednn_name: str
    onednn_algorithm: str


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return gelu(x, approximate="tanh")


_ACTIVATIONS = {
    "gelu": _Activation(gelu, "gelu", "none"),
    "gelu_tanh": _Activation(_gelu_tanh, "gelu", "tanh"),
    "relu": _Activation(relu, "relu", ""),
}
"""A value of `architecture.ACTIVATIONS` → the activation."""


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
        for number in range(backbone.layers):
            prefix = f"encoder.layer.{number}."
            self._layers.append(_Layer(backbone, prefix, dtype, device))
            backbone.release_pages(prefix)
        head_dim = backbone.width // backbone.heads
        self.varlen_kernel = _find_varlen_kernel(dtype, device, head_dim)

    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, attend: Attention
    ) -> torch.Tensor:
        """Run one forward pass.

        Args:
            token_ids: Token ids of all texts, one text after another, int64 (T,).
            positions: Their position ids, int64 (T,).
            attend: Attention within each text, from `attention_by_length` or `attention_between`.

        Returns:
            Hidden states (T, d) in the encoder's dtype.
        """
        token_rows = embedding(token_ids, self._token_table).float()
        position_rows = embedding(positions, self._position_table).float()
        hidden = self._norm(token_rows + position_rows + self._type_table[0].float())
        hidden = hidden.to(self._dtype)
        for layer in self._layers:
            inputs = layer.attention_inputs(hidden).view(len(token_ids), 3, self._heads, -1)
            query, key, value = inputs.unbind(1)
            context = attend(query, key, value).flatten(1)
            hidden = layer.attention_norm(layer.attention_output(context, residual=hidden))
            hidden = layer.output_norm(layer.narrow(layer.wide(hidden), residual=hidden))
        return hidden

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
    """

    def __init__(
        self, backbone: Backbone, prefix: str, dtype: torch.dtype, device: torch.device
    ) -> None:
        def product(*names: str, activation: str | None = None) -> _Product:
            weight, bias = backbone.linear(*[f"{prefix}{name}" for name in names])
            weight, bias = weight.to(device, dtype), bias.to(device, dtype)
            if device.type == "cpu" and _has_onednn(dtype):
                return OneDnnProduct(weight, bias, activation)
            return Product(weight, bias, activation)

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


class _Product(Protocol):
    """Computes x W' + b, then an activation or a residual."""

    tensors: tuple[torch.Tensor, torch.Tensor]

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor: ...


class Product:
    """A product as PyTorch computes it.

    Args:
        weight: (rows, columns).
        bias: (rows,).
        activation: A value of `architecture.ACTIVATIONS`, or None.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, activation: str | None = None
    ) -> None:
        self.tensors = (weight, bias)
        self._activation = _ACTIVATIONS[activation].function if activation else None

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return x (T, columns) times the weight, plus a residual (T, rows): (T, rows)."""
        weight, bias = self.tensors
        result = linear(x, weight, bias)
        if residual is not None:
            result += residual
        if self._activation is not None:
            result = self._activation(result)
        return result


class OneDnnProduct:
    """The same product on oneDNN, for a CPU, with the weights in oneDNN's own layout.

    See `Product`. The operators are those that torch.compile uses for the same purpose; they have
    no public names.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, activation: str | None = None
    ) -> None:
        self.tensors = (torch.ops.mkldnn._reorder_linear_weight(weight), bias)
        self._activation_name, self._algorithm = "none", ""
        if activation:
            self._activation_name = _ACTIVATIONS[activation].onednn_name
            self._algorithm = _ACTIVATIONS[activation].onednn_algorithm

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return x (T, columns) times the weight, plus a residual (T, rows): (T, rows)."""
        weight, bias = self.tensors
        result: torch.Tensor
        if residual is not None:
            result = torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
        else:
            result = torch.ops.mkldnn._linear_pointwise(
                x, weight, bias, self._activation_name, [], self._algorithm
            )
        return result


def _has_onednn(dtype: torch.dtype) -> bool:
    """Tell whether this build and this processor have the products of `OneDnnProduct`."""
    is_built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not is_built or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


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


def attention_by_length(lengths: Sequence[int]) -> Attention:
    """Return attention within each text, with neighbours of one length computed together.

    The queries of a long text are computed in chunks, so that their scores fit into memory.

    Args:
        lengths: Tokens of each text, in order; they sum to T.

    Returns:
        A function from query, key and value, each (T, heads, head_dim), to
        softmax(q k' / sqrt(head_dim)) v, (T, heads, head_dim).
    """
    groups = [(length, len(list(texts))) for length, texts in itertools.groupby(lengths)]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        context = torch.empty_like(query, memory_format=torch.contiguous_format)
        start = 0
        for length, texts in groups:
            rows = slice(start, start + texts * length)
            start = rows.stop
            # Each (texts, heads, length, head_dim); the last one is a view into the result.
            q, k, v, out = (
                tensor[rows].view(texts, length, *tensor.shape[1:]).transpose(1, 2)
                for tensor in (query, key, value, context)
            )
            for first in range(0, length, _QUERY_ROWS):
                chunk = slice(first, first + _QUERY_ROWS)
                out[:, :, chunk] = scaled_dot_product_attention(q[:, :, chunk], k, v)
        return context

    return attend
