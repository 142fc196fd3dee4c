"""Forward passes on a GPU without waiting: the inputs are copied, and the kernels started, ahead.

What lives here: the buffers of a pass, and which passes are recorded. What does not: the layers
(`encoder`), pooling and heads (`torch`).

A pass is some 300 kernels. Over a query each takes a few microseconds, less than Python takes to
start it. A CUDA graph holds them all with their arguments, and one call starts it. Its shapes are
fixed, so there is a graph for each of a few shapes, and a smaller pass is filled up with padding:
tokens of a text of their own, which no other text attends to.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from unified_embeddings.engines.attention import Block, VarlenKernel, attention_between
from unified_embeddings.engines.encoder import Encoder
from unified_embeddings.types import IntArray

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

_LOG = logging.getLogger(__name__)
_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Tokens of the recorded passes. Beyond, the GPU computes for longer than Python starts kernels."""
_NEARLY_FULL = 0.75
"""The share of a size above `_SHORT` that a pass must fill; otherwise padding would cost more."""
_SHORT = 1024
_LONGEST = (128, 512, 1024)
"""Tokens of the longest text. Flash attention starts a block for each 128 tokens that each text may
have, so passes of short texts are recorded apart from others."""
_TOKENS_PER_TEXT = 16
"""A recorded pass of n tokens has room for n / 16 texts besides the padding, within limits."""
_SHORT_TEXTS = 128
"""The most texts of a recorded pass of short texts."""
_LONG_TEXTS = 32
"""The most texts of any other recorded pass."""

Positions: TypeAlias = NDArray[np.int64] | list[int]
Forward: TypeAlias = Callable[[], torch.Tensor]
Recorded: TypeAlias = tuple[Callable[[], object], torch.Tensor]
"""What repeats a pass, and the buffer of its result."""


class Hidden(NamedTuple):
    """The hidden states of a pass.

    Attributes:
        states: One row for each token, float32 (T, d). The next pass may overwrite them.
        starts: The row of each text's first token, int32 (n,), on the same device.
    """

    states: torch.Tensor
    starts: torch.Tensor


class GpuPasses:
    """The passes of one encoder with flash attention. Not thread-safe.

    A shape is recorded when it comes for the second time: one pass alone is not worth it. A pass
    that is not recorded is filled up all the same, since kernels may round otherwise in other
    shapes: a text's vector must not depend on what this process has computed before.

    Args:
        encoder: The layers.
        kernel: Their attention.
        device: The GPU.
        pad_id: The token that fills a recorded pass up.
        record: Turns a pass into what repeats it.
    """

    def __init__(
        self,
        encoder: Encoder,
        kernel: VarlenKernel,
        device: torch.device,
        pad_id: int,
        record: Callable[[Forward, torch.device], Recorded] | None = None,
    ) -> None:
        self._encoder = encoder
        self._kernel = kernel
        self._device = device
        self._pad_id = pad_id
        self._record = record or GraphRecorder()
        self._recordings: dict[_Shape, _Recording] = {}
        self._seen: set[_Shape] = set()
        self._records = True

    def run(self, token_ids: IntArray, positions: Positions, lengths: Sequence[int]) -> Hidden:
        """Start a pass. Whoever reads the result waits for it.

        Args:
            token_ids: Token ids of all texts, one text after another, (T,).
            positions: Their position ids, (T,).
            lengths: Tokens of each text, in order; they sum to T.
        """
        ends = [0, *itertools.accumulate(lengths)]
        shape = _shape_for(len(token_ids), lengths)
        layout, longest = _Layout(len(token_ids), len(ends)), max(lengths)
        if shape is not None:
            recording = self._find_recording(shape)
            if recording is not None:
                return recording.run(token_ids, positions, ends)
            layout, longest = shape.layout, shape.longest
        inputs = layout.fill(token_ids, positions, ends, self._pad_id, self._device)
        inputs = inputs.to(self._device, non_blocking=True)
        states, starts = self._compute(layout, inputs, longest)
        return Hidden(states[: len(token_ids)], starts[: len(lengths)])

    def _compute(self, layout: _Layout, inputs: torch.Tensor, longest: int) -> Hidden:
        token_ids, positions, ends = layout.split(inputs)
        ends = ends.to(torch.int32)
        attend = attention_between(self._kernel, ends, longest)
        states = self._encoder(token_ids, positions, [Block(len(token_ids), attend)])
        # Pooling and heads are computed in fp32, whatever the encoder's precision.
        return Hidden(states.float(), ends[:-1])

    def _find_recording(self, shape: _Shape) -> _Recording | None:
        """Return the recorded pass of a shape; None if there is none yet, or never."""
        if not self._records:
            return None
        if shape not in self._seen:
            self._seen.add(shape)
            return None
        if shape not in self._recordings:
            try:
                self._recordings[shape] = self._make_recording(shape)
            except RuntimeError as error:
                self._records = False
                _LOG.warning(
                    "Short passes run slower than they could, since PyTorch cannot record one as "
                    "a CUDA graph here (%s). Their vectors are the same.",
                    error,
                )
                return None
        return self._recordings[shape]

    def _make_recording(self, shape: _Shape) -> _Recording:
        layout = shape.layout
        first = layout.fill([self._pad_id], [0], [0, 1], self._pad_id, self._device)
        inputs = first.to(self._device)

        def forward() -> torch.Tensor:
            return self._compute(layout, inputs, shape.longest).states

        replay, states = self._record(forward, self._device)
        return _Recording(
            layout=layout,
            inputs=inputs,
            replay=replay,
            states=states,
            pad_id=self._pad_id,
        )


class GraphRecorder:
    """Records forward passes as CUDA graphs, which share the memory of what they compute.

    One replay may overwrite what another one left there. So only one graph may run at a time, and
    its result must be read, or its copy started, before the next one is.
    """

    def __init__(self) -> None:
        self._pool: _POOL_HANDLE | None = None

    def __call__(self, forward: Forward, device: torch.device) -> Recorded:
        """Record a forward pass.

        Args:
            forward: The pass. It reads tensors that stay where they are.
            device: The GPU.

        Returns:
            What replays it, and the tensor that holds the result after each replay.
        """
        with torch.cuda.device(device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # cuBLAS makes its handle with a thread's first product, which cannot be recorded.
            side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side_stream):
                forward()
            torch.cuda.current_stream().wait_stream(side_stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile, for another model.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=side_stream, capture_error_mode="thread_local"
            ):
                result = forward()
        return graph.replay, result


class _Shape(NamedTuple):
    """What a recorded pass has room for.

    Attributes:
        tokens: Tokens in all.
        texts: Texts.
        longest: Tokens of a text.
    """

    tokens: int
    texts: int
    longest: int

    @property
    def layout(self) -> _Layout:
        """Return the layout of its inputs: the first end is 0, and the last text is padding."""
        return _Layout(self.tokens, self.texts + 2)


def _shape_for(tokens: int, lengths: Sequence[int]) -> _Shape | None:
    """Return the smallest shape with room for a pass; None if none has, or it would be half empty.

    Args:
        tokens: Tokens in all.
        lengths: Tokens of each text.
    """
    longest_text = max(lengths)
    for size in _SIZES:
        longest = next((limit for limit in _LONGEST if longest_text <= limit), size)
        most_texts = _SHORT_TEXTS if longest == _LONGEST[0] else _LONG_TEXTS
        texts = min(size // _TOKENS_PER_TEXT, most_texts)
        if tokens <= size and len(lengths) <= texts:
            if size > _SHORT and tokens < _NEARLY_FULL * size:
                return None
            return _Shape(size, texts, min(longest, size))
    return None


class _Layout(NamedTuple):
    """Where things stand in the inputs of a pass, which are one buffer and copied as one.

    Attributes:
        tokens: Tokens that it has room for.
        ends: Ends of texts that it has room for, the 0 before the first text included.
    """

    tokens: int
    ends: int

    def fill(
        self,
        token_ids: IntArray | list[int],
        positions: Positions,
        ends: Sequence[int],
        pad_id: int,
        device: torch.device,
    ) -> torch.Tensor:
        """Return the inputs of a pass in this process's memory, int64.

        Where there are fewer tokens than there is room for, the last text is padding, and the
        places of texts that are not there are empty texts before it. Rows of padding beyond the
        longest text that attention was told of are not computed, and nobody reads them.
        """
        # A GPU copies from pinned memory by itself. PyTorch leaves the buffer alone until then.
        buffer = torch.empty(
            2 * self.tokens + self.ends, dtype=torch.int64, pin_memory=device.type == "cuda"
        )
        id_part, position_part, end_part = (part.numpy() for part in self.split(buffer))
        count = len(token_ids)
        id_part[:count] = token_ids
        id_part[count:] = pad_id
        position_part[:count] = positions
        position_part[count:] = 0
        end_part[: len(ends)] = ends
        end_part[len(ends) :] = count
        end_part[-1] = self.tokens
        return buffer

    def split(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return token ids (tokens,), positions (tokens,) and ends (ends,)."""
        tokens = self.tokens
        return inputs[:tokens], inputs[tokens : 2 * tokens], inputs[2 * tokens :]


class _Recording(NamedTuple):
    """A recorded pass.

    Attributes:
        layout: The layout of its inputs.
        inputs: Where it reads them.
        replay: Runs it.
        states: Where it leaves the hidden states, float32 (tokens, d).
        pad_id: The token that fills it up.
    """

    layout: _Layout
    inputs: torch.Tensor
    replay: Callable[[], object]
    states: torch.Tensor
    pad_id: int

    def run(self, token_ids: IntArray, positions: Positions, ends: list[int]) -> Hidden:
        """Start it with other inputs; see `GpuPasses.run`."""
        inputs = self.layout.fill(token_ids, positions, ends, self.pad_id, self.inputs.device)
        self.inputs.copy_(inputs, non_blocking=True)
        self.replay()
        starts = self.layout.split(self.inputs)[2][: len(ends) - 1]
        return Hidden(self.states[: len(token_ids)], starts)
