"""An exported model on ONNX Runtime: no torch, no transformers.

What lives here: loading what `export.py` wrote, and one forward pass over a padded batch. What does
not: making the file (`export`). Imports onnxruntime and NumPy alone, so that a small machine starts
in a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.checkpoints import Checkpoint
from unified_embeddings.engines import RawHeads, Runtime, position_ids
from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.hardware import cpu
from unified_embeddings.types import HeadName, IntArray, Role

try:
    import onnxruntime
except ImportError as error:
    raise MissingExtraError(
        "ONNX Runtime, which the engine 'onnx' runs on,", extra="onnx"
    ) from error

INPUTS = ("input_ids", "attention_mask", "position_ids")
OUTPUTS: dict[HeadName, str] = {
    "dense": "pooled",
    "sparse": "token_weights",
    "colbert": "token_vectors",
}
"""Head → the output of the exported graph that it is made of."""


def graph_inputs(batch: Sequence[IntArray], checkpoint: Checkpoint) -> dict[str, NDArray[np.int64]]:
    """The inputs of an exported graph for n texts, each int64 (n, longest text)."""
    pad_id = int(checkpoint.config.get("pad_token_id") or 0)
    shape = (len(batch), max(map(len, batch)))
    inputs = dict(zip(INPUTS, np.zeros((3, *shape), dtype=np.int64), strict=True))
    inputs["input_ids"][:] = pad_id
    inputs["position_ids"][:] = pad_id
    for row, ids in enumerate(batch):
        inputs["input_ids"][row, : len(ids)] = ids
        inputs["attention_mask"][row, : len(ids)] = 1
        inputs["position_ids"][row, : len(ids)] = position_ids(ids, checkpoint)
    return inputs


class OnnxEngine:
    """An exported model on the CPU; see `engines.Engine`.

    Raises:
        ModelLoadError: If ONNX Runtime cannot read the file, or it lacks an input or output.
    """

    padded = True

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        self.runtime = runtime
        self._checkpoint = checkpoint
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cpu().cores
        options.enable_cpu_mem_arena = False  # the arena keeps the memory of the longest batch
        options.log_severity_level = 3
        # Spinning threads burn the cores of whatever else runs between two queries.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = checkpoint.require(checkpoint.exported["file"])
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own errors derive from nothing narrower
            raise checkpoint.problem(f"ONNX Runtime cannot load {path.name}: {error}") from error
        wanted = {OUTPUTS[head] for head in checkpoint.spec.heads}
        found = {one.name for one in self._session.get_outputs()}
        inputs = {one.name for one in self._session.get_inputs()}
        if not wanted <= found or inputs != {*INPUTS}:
            raise checkpoint.problem(
                f"{path.name} has inputs {sorted(inputs)} and outputs {sorted(found)}, where "
                f"{sorted(INPUTS)} and {sorted(wanted)} are needed; export the model again with "
                "unified-embeddings export-onnx"
            )
        self._lock = threading.Lock()

    @staticmethod
    def plan(precision: str, device: str, checkpoint: Callable[[], Checkpoint]) -> Runtime:
        """Take the precision the file was exported in; see `engines.plan`.

        Raises:
            InputError: If another precision, or a device other than the CPU, is asked for.
            ModelLoadError: If the model was not exported.
        """
        if device not in ("auto", "cpu"):
            raise InputError(f"the engine 'onnx' runs on the CPU, not on {device!r}; leave it out")
        found = checkpoint()
        made = str(found.exported["precision"])
        if precision not in ("auto", made):
            raise InputError(
                f"precision {precision} is asked for, but {found.name} was exported in {made}; "
                "leave precision out, or export the model again"
            )
        return Runtime("onnx", "cpu", made, "the file was exported in it")

    def weights(self) -> Iterator[tuple[int, int]]:
        """None: ONNX Runtime does not say where it keeps them."""
        return iter(())

    def run(
        self,
        batch: Sequence[IntArray],
        heads: frozenset[HeadName],
        role: Role = "document",  # noqa: ARG002 — one set of weights for both
    ) -> RawHeads:
        """One forward pass over the padded batch; see `engines.Engine.run`."""
        lengths = [len(ids) for ids in batch]
        inputs = graph_inputs(batch, self._checkpoint)
        names = [OUTPUTS[head] for head in heads]
        with self._lock:
            found: dict[str, Any] = dict(zip(names, self._session.run(names, inputs), strict=True))
        weights, vectors = found.get("token_weights"), found.get("token_vectors")
        return RawHeads(
            found.get("pooled"),
            None if weights is None else [w[:n] for w, n in zip(weights, lengths, strict=True)],
            None
            if vectors is None
            else [v[: n - 1] for v, n in zip(vectors, lengths, strict=True)],
        )
