"""An encoder's matrix products in PyTorch, each in the form that is fastest on this device.

What lives here: x W' + b with an activation or a residual, on oneDNN, as PyTorch computes it, and
either by the number of rows. What does not: timing which is faster (`timed_choice`), the layers
(`encoder`).

oneDNN keeps the weights in a layout of its own, into which they are reordered once, when the model
is loaded. PyTorch's own product, which is MKL's on x86, takes them as they are in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch.nn.functional import gelu, linear, relu

from unified_embeddings.engines.timed_choice import NEVER, Trial, first_faster_size
from unified_embeddings.models.weights import Backbone

_TRIED_LAYER = "encoder.layer.0.attention.output.dense"
"""The smallest product of a layer, so that trying it costs little."""
_TRIED_ROWS = (64, 256)
"""Numbers of rows at which both are timed. Fewer rows are never worth the plain product, which
rearranges all of the weight for them."""
_WORTH_MEASURING = 2**20
"""Numbers of a weight below which nothing is measured: a small model's passes take milliseconds."""


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


class AnyProduct(Protocol):
    """Computes x W' + b, then an activation or a residual.

    Attributes:
        tensors: What it keeps in memory.
    """

    tensors: tuple[torch.Tensor, ...]

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return x (T, columns) times the weight, plus a residual (T, rows): (T, rows)."""
        ...


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
        self.tensors: tuple[torch.Tensor, ...] = (weight, bias)
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


class PartsProduct:
    """The same product with the weight in parts, which lie anywhere.

    In a file the weights of queries, keys and values are tensors of their own. Joining them would
    take memory that the file's pages do not.

    Args:
        weights: Each (rows of the part, columns).
        bias: (rows of all parts,).
        activation: A value of `architecture.ACTIVATIONS`, or None.
    """

    def __init__(
        self, weights: Sequence[torch.Tensor], bias: torch.Tensor, activation: str | None = None
    ) -> None:
        self.tensors: tuple[torch.Tensor, ...] = (*weights, bias)
        self._activation = _ACTIVATIONS[activation].function if activation else None

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return x (T, columns) times the weight, plus a residual (T, rows): (T, rows)."""
        *weights, bias = self.tensors
        result = x.new_empty((len(x), len(bias)))
        first = 0
        for weight in weights:
            part = slice(first, first + len(weight))
            torch.addmm(bias[part], x, weight.t(), out=result[:, part])
            first = part.stop
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
        self.tensors: tuple[torch.Tensor, ...] = (
            torch.ops.mkldnn._reorder_linear_weight(weight),
            bias,
        )
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


class ByRowsProduct:
    """One product for few rows and another for many.

    Args:
        few: Computes fewer rows than `first_rows`.
        many: Computes the others.
        first_rows: Rows from which on `many` is faster.
    """

    def __init__(self, few: AnyProduct, many: AnyProduct, first_rows: int) -> None:
        self.tensors: tuple[torch.Tensor, ...] = (*few.tensors, *many.tensors)
        self._few, self._many, self._first_rows = few, many, first_rows

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return x (T, columns) times the weight, plus a residual (T, rows): (T, rows)."""
        if len(x) < self._first_rows:
            return self._few(x, residual)
        return self._many(x, residual)


def rows_for_plain(backbone: Backbone, dtype: torch.dtype, device: torch.device) -> int:
    """Return from how many rows on PyTorch's own product is faster; `NEVER` if it is not.

    One product of the first layer speaks for all of the model.
    """
    name = _TRIED_LAYER
    if device.type != "cpu" or not _lies_in_file(backbone, [name], dtype) or not has_onednn(dtype):
        return NEVER
    weight, bias = backbone.linear(name)
    if weight.numel() < _WORTH_MEASURING:
        return NEVER
    rows, columns = weight.shape
    return first_faster_size(
        Trial(
            name=f"product {rows}x{columns}",
            sizes=_TRIED_ROWS,
            make_input=lambda count: torch.ones(count, columns),
            usual=OneDnnProduct(weight, bias),
            other=PartsProduct([weight], bias),
        )
    )


def make_product(
    backbone: Backbone,
    names: Sequence[str],
    activation: str | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    plain_rows: int,
) -> AnyProduct:
    """Return the product of several linear layers of one input, in its fastest form.

    Args:
        backbone: The weights.
        names: Names of the layers; their rows lie below each other.
        activation: A value of `architecture.ACTIVATIONS`, or None.
        dtype: The dtype that it is computed in.
        device: Where it is computed.
        plain_rows: The result of `rows_for_plain`.
    """
    weight, bias = backbone.linear(*names)
    weight, bias = weight.to(device, dtype), bias.to(device, dtype)
    if device.type != "cpu" or not has_onednn(dtype):
        return Product(weight, bias, activation)
    packed = OneDnnProduct(weight, bias, activation)
    if plain_rows == NEVER or not _lies_in_file(backbone, names, dtype):
        return packed
    plain_weights = [backbone.tensors[f"{name}.weight"] for name in names]
    return ByRowsProduct(packed, PartsProduct(plain_weights, bias, activation), plain_rows)


def _lies_in_file(backbone: Backbone, names: Sequence[str], dtype: torch.dtype) -> bool:
    """Tell whether weights are mapped in the dtype that they are computed in.

    Only then do they cost no memory of their own beside the reordered ones: the system can drop
    their pages, and processes share them.
    """
    if dtype != torch.float32:
        return False
    weights = [f"{name}.weight" for name in names]
    return all(
        weight in backbone.mapped and backbone.tensors[weight].dtype == dtype for weight in weights
    )


def has_onednn(dtype: torch.dtype) -> bool:
    """Tell whether this build and this processor have the products of `OneDnnProduct`."""
    is_built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not is_built or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
