"""Attention within one text on ONNX Runtime, for models whose products run in PyTorch.

What lives here: a graph of one operator, and running it on PyTorch's tensors. What does not: which
texts take it (`attention`), exported models (`onnx`).
"""

from __future__ import annotations

import torch

from unified_embeddings.engines.onnx_session import PROVIDERS, run_options, session_options
from unified_embeddings.errors import MissingExtraError
from unified_embeddings.system.hardware import no_telemetry
from unified_embeddings.types import FloatArray

with no_telemetry():
    import onnxruntime

RUNTIME_VERSION: str = onnxruntime.__version__
_QUERY_ROWS = 2048
"""Queries computed at once. The kernel holds no scores where it knows the size of the processor's
cache. Elsewhere it holds them all: 4 GiB for a text of 8,192 tokens, with these rows 1 GiB."""
_INPUTS = ("query", "key", "value")
_DOMAIN = "com.microsoft"
"""Of ONNX Runtime's own operators."""
_IR_VERSION = 8
"""Version of the format; ONNX Runtime 1.23 reads it."""


class OnnxAttention:
    """softmax(q k' / sqrt(head_dim)) v for each head of one text, in fp32 on the CPU.

    Args:
        heads: Attention heads.

    Example:
        >>> context = torch.empty(3, 2, 4)
        >>> value = torch.arange(24.0).view(3, 2, 4)
        >>> OnnxAttention(heads=2)(torch.zeros(3, 2, 4), torch.zeros(3, 2, 4), value, context)
        >>> context[0, 0].tolist()    # equal scores: the mean of the head's values
        [8.0, 9.0, 10.0, 11.0]
    """

    def __init__(self, heads: int) -> None:
        self._heads = heads
        self._session: onnxruntime.InferenceSession | None = None

    def open(self) -> onnxruntime.InferenceSession:
        """Open the session with as many threads as PyTorch has, unless it is open.

        Raises:
            MissingExtraError: If the package `onnx`, which writes its graph, is not installed.
        """
        if self._session is None:
            options = session_options()
            options.intra_op_num_threads = torch.get_num_threads()
            self._session = onnxruntime.InferenceSession(
                _make_model(self._heads), options, providers=PROVIDERS
            )
        return self._session

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        context: torch.Tensor,
    ) -> None:
        """Fill the context from queries, keys and values, each (length, heads, head_dim)."""
        session = self.open()
        options = run_options(len(query))
        keys_and_values = {"key": _as_states(key), "value": _as_states(value)}
        for first in range(0, len(query), _QUERY_ROWS):
            chunk = slice(first, first + _QUERY_ROWS)
            inputs = {"query": _as_states(query[chunk]), **keys_and_values}
            (result,) = session.run(None, inputs, options)
            context[chunk] = torch.from_numpy(result).view_as(context[chunk])


def _as_states(part: torch.Tensor) -> FloatArray:
    """Return (rows, heads, head_dim) as a text's states, (1, rows, heads head_dim)."""
    return part.contiguous().view(1, len(part), -1).numpy()


def _make_model(heads: int) -> bytes:
    """Return the file of an ONNX model that is one operator."""
    # Imported only here, because it takes a tenth of a second, and on many machines PyTorch's
    # attention is faster.
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise MissingExtraError("ONNX Runtime's attention", extra="onnx") from error

    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, f"rows of {name}", "width"])
        for name in _INPUTS
    ]
    output = helper.make_tensor_value_info("context", TensorProto.FLOAT, None)
    node = helper.make_node(
        "MultiHeadAttention", _INPUTS, ["context"], domain=_DOMAIN, num_heads=heads
    )
    graph = helper.make_graph([node], "attention", inputs, [output])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    content: bytes = model.SerializeToString()
    return content
