"""The BERT family's encoder over packed batches, in PyTorch.

What lives here: the forward pass from token ids to hidden states. What does not: reading files
(`weights`), pooling and heads (`torch`).

On a CPU a forward pass is as fast as its matrix products, so these run on oneDNN: weights lie in
its own layout, arranged once when the model is loaded; queries, keys and values are one product;
bias, activation and residual are added while a result is still in the processor's cache.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.nn.functional import (
    embedding,
    gelu,
    layer_norm,
    linear,
    relu,
    scaled_dot_product_attention,
)

from unified_embeddings.models.weights import PLACES, TABLE, TYPES, Backbone

_QUERY_ROWS = 1024
"""Rows of attention scores computed at once: a text of 8,192 tokens would need 4 GiB of them."""
_VARLEN_DTYPES = (torch.float16, torch.bfloat16)
_VARLEN_CAPABILITY = (8, 0)
_VARLEN_HEAD = 256
"""The oldest GPUs that flash attention runs on, Ampere, and its widest head."""

_ACTIVATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[str, str]]] = {
    "gelu": (gelu, ("gelu", "none")),
    "gelu_tanh": (lambda x: gelu(x, approximate="tanh"), ("gelu", "tanh")),
    "relu": (relu, ("relu", "")),
}
"""Name → the function, and oneDNN's name and algorithm for it."""


class Encoder:
    """A backbone on one device.

    Args:
        backbone: The weights; what is copied from their files is given back to the system.
        dtype: What products and attention are computed in.
        device: Where to.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._heads = dtype, backbone.heads
        self._on_cpu = device.type == "cpu"
        # A text touches a few rows of the tables: on a CPU they stay in their file, as they are.
        self._words, self._places, self._kinds = (
            backbone.tensors[name] if self._on_cpu else backbone.tensors[name].to(device, dtype)
            for name in (TABLE, PLACES, TYPES)
        )
        self._norm = _Norm(backbone, "embeddings.LayerNorm", torch.float32, device)
        self._layers = []
        for number in range(backbone.layers):
            self._layers.append(_Layer(backbone, f"encoder.layer.{number}.", dtype, device))
            backbone.give_back(f"encoder.layer.{number}.")
        self._attention = _attention_for(dtype, device, backbone.width // backbone.heads)

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, lengths: Sequence[int]
    ) -> torch.Tensor:
        """One forward pass.

        Args:
            ids: Token ids of all texts, one text after another, int64 (T,).
            positions: Their position ids, int64 (T,).
            lengths: Tokens of each text, in order; they sum to T.

        Returns:
            Hidden states (T, d) in the encoder's dtype.
        """
        words, places = embedding(ids, self._words), embedding(positions, self._places)
        hidden = self._norm(words.float() + places.float() + self._kinds[0].float())
        hidden = hidden.to(self._dtype)
        attend = self._attention(lengths)
        for layer in self._layers:
            query, key, value = layer.inputs(hidden).view(len(ids), 3, self._heads, -1).unbind(1)
            context = attend(query, key, value).flatten(1)
            hidden = layer.attention_norm(layer.context(context, plus=hidden))
            hidden = layer.norm(layer.narrow(layer.wide(hidden), plus=hidden))
        return hidden

    def weights(self) -> Iterator[tuple[int, int]]:
        """Address and bytes of each stretch of weights in the CPU's memory."""
        tensors = [self._words, self._places, self._kinds, *self._norm.tensors]
        for tensor in itertools.chain(tensors, *(layer.tensors for layer in self._layers)):
            if tensor.is_mkldnn:
                yield torch.ops.mkldnn.data_ptr(tensor), torch.ops.mkldnn._nbytes(tensor)
            elif tensor.device.type == "cpu":
                yield tensor.data_ptr(), tensor.nbytes


class _Layer:
    """The products and normalisations of one layer."""

    def __init__(
        self, backbone: Backbone, stem: str, dtype: torch.dtype, device: torch.device
    ) -> None:
        make = OneDnnProduct if device.type == "cpu" and _has_onednn(dtype) else Product

        def product(*names: str, activation: str | None = None) -> _Product:
            weight, bias = backbone.linear(*(f"{stem}{name}" for name in names))
            return make(weight.to(device, dtype), bias.to(device, dtype), activation)

        def norm(name: str) -> _Norm:
            return _Norm(backbone, f"{stem}{name}", dtype, device)

        self.inputs = product(*(f"attention.self.{name}" for name in ("query", "key", "value")))
        self.context = product("attention.output.dense")
        self.attention_norm = norm("attention.output.LayerNorm")
        self.wide = product("intermediate.dense", activation=backbone.activation)
        self.narrow = product("output.dense")
        self.norm = norm("output.LayerNorm")
        parts = (self.inputs, self.context, self.wide, self.narrow, self.attention_norm, self.norm)
        self.tensors = [tensor for part in parts for tensor in part.tensors]


class _Norm:
    """Layer normalisation."""

    def __init__(
        self, backbone: Backbone, name: str, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.tensors = tuple(
            backbone.tensors[f"{name}.{part}"].to(device, dtype) for part in ("weight", "bias")
        )
        self._epsilon = backbone.epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.tensors
        return layer_norm(x, weight.shape, weight, bias, self._epsilon)


class _Product(Protocol):
    """x W' + b, then an activation or a residual."""

    tensors: tuple[torch.Tensor, torch.Tensor]

    def __call__(self, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor: ...


class Product:
    """A product as PyTorch computes it.

    Args:
        weight: (rows, columns).
        bias: (rows,).
        activation: A value of `engines.ACTIVATIONS`, or None.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, activation: str | None = None
    ) -> None:
        self.tensors = weight, bias
        self._activation = _ACTIVATIONS[activation][0] if activation else None

    def __call__(self, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        """(T, columns) to (T, rows), `plus` (T, rows) added."""
        result = linear(x, *self.tensors)
        if plus is not None:
            result += plus
        return result if self._activation is None else self._activation(result)


class OneDnnProduct:
    """The same on oneDNN, from weights in its own layout; for a CPU. See `Product`."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, activation: str | None = None
    ) -> None:
        self.tensors = torch.ops.mkldnn._reorder_linear_weight(weight), bias
        self._after = _ACTIVATIONS[activation][1] if activation else ("none", "")

    def __call__(self, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        """(T, columns) to (T, rows), `plus` (T, rows) added."""
        weight, bias = self.tensors
        if plus is not None:
            sum_: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                x, plus, weight, bias, "add"
            )
            return sum_
        name, algorithm = self._after
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, weight, bias, name, [], algorithm
        )
        return result


def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether this build and this processor have the products of `OneDnnProduct` in a dtype."""
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not built or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _attention_for(
    dtype: torch.dtype, device: torch.device, head_dim: int
) -> Callable[[Sequence[int]], Attention]:
    """From the lengths of a batch's texts to attention among them: flash where there is such."""

    def by_length(lengths: Sequence[int]) -> Attention:
        return functools.partial(attention_by_length, lengths=lengths)

    if (
        device.type != "cuda"
        or dtype not in _VARLEN_DTYPES
        or head_dim % 8
        or head_dim > _VARLEN_HEAD
        or torch.version.hip is not None
        or torch.cuda.get_device_capability(device) < _VARLEN_CAPABILITY
        or not torch.backends.cuda.is_flash_attention_available()
    ):
        return by_length
    try:  # only here: it takes two seconds to import
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before torch 2.10
        return by_length
    return functools.partial(attention_varlen, varlen_attn, device)


def attention_varlen(
    kernel: Callable[..., Any], device: torch.device, lengths: Sequence[int]
) -> Attention:
    """As `attention_by_length`, all texts in one call of a kernel like PyTorch's `varlen_attn`."""
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(device)
    longest = max(lengths)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = kernel(query, key, value, ends, ends, longest, longest)
        return out

    return attend


def attention_by_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """Attention within each text of a packed batch.

    Neighbouring texts of one length are computed together; the queries of a long text in chunks.

    Args:
        query: (T, heads, head_dim).
        key: As query.
        value: As query.
        lengths: Tokens of each text, in order; they sum to T.

    Returns:
        (T, heads, head_dim): softmax(q k' / sqrt(head_dim)) v.
    """
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    at = 0
    for length, group in itertools.groupby(lengths):
        count = len(list(group))
        span = slice(at, at + count * length)
        at = span.stop
        q, k, v, o = (
            tensor[span].view(count, length, *tensor.shape[1:]).transpose(1, 2)
            for tensor in (query, key, value, out)
        )  # (count, heads, length, head_dim) each, o a view into out
        for start in range(0, length, _QUERY_ROWS):
            rows = slice(start, start + _QUERY_ROWS)
            o[:, :, rows] = scaled_dot_product_attention(q[:, :, rows], k, v)
    return out
