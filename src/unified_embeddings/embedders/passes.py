"""The forward passes of one call, in order, each with its time.

What lives here: starting the next pass while the last one's outputs are finished, on devices that
compute by themselves. What does not: forming batches (`batching`), the pass (`engines`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from unified_embeddings.engines.base import Engine, PipelinedEngine, RawHeads
from unified_embeddings.types import HeadName, IntArray, Role, Text


class Batch(NamedTuple):
    """The texts of one forward pass.

    Attributes:
        texts: n texts.
        token_ids: Their token ids, n arrays (t_i,).
    """

    texts: Sequence[Text]
    token_ids: Sequence[IntArray]


class Pass(NamedTuple):
    """One forward pass.

    Attributes:
        batch: Its texts.
        raw: Its outputs.
        seconds: Seconds that this thread spent on it: starting it, and waiting for it.
    """

    batch: Batch
    raw: RawHeads
    seconds: float


def run_passes(
    engine: Engine, batches: Iterable[Batch], heads: frozenset[HeadName], role: Role
) -> Iterator[Pass]:
    """Yield the pass of each batch, in order.

    On a GPU the next pass is started before this one's outputs are waited for, so that the GPU
    computes while the caller works on them. At most two passes are under way.

    Args:
        engine: What runs them.
        batches: The batches.
        heads: What to compute.
        role: The role of the texts.
    """
    if not isinstance(engine, PipelinedEngine):
        for batch in batches:
            begun = time.perf_counter()
            raw = engine.run(batch.token_ids, heads, role)
            yield Pass(batch, raw, time.perf_counter() - begun)
        return
    # A pass on a CPU is done once it was started: there is nothing to get ahead of.
    starts_ahead = engine.runtime.device != "cpu"
    waiting: _StartedPass | None = None
    for batch in batches:
        begun = time.perf_counter()
        wait = engine.start(batch.token_ids, heads, role)
        started = _StartedPass(batch, wait, time.perf_counter() - begun)
        if not starts_ahead:
            yield started.finish()
            continue
        if waiting is not None:
            yield waiting.finish()
        waiting = started
    if waiting is not None:
        yield waiting.finish()


class _StartedPass(NamedTuple):
    """A pass under way, what waits for it, and how many seconds it took to start."""

    batch: Batch
    wait: Callable[[], RawHeads]
    seconds: float

    def finish(self) -> Pass:
        begun = time.perf_counter()
        raw = self.wait()
        return Pass(self.batch, raw, self.seconds + time.perf_counter() - begun)
