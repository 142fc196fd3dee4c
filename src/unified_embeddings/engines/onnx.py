"""An exported model on ONNX Runtime: no torch, no transformers.

What lives here: exporting a model on first use, and the forward passes over a batch. What does not:
how a graph is written (`export`), opening it (`onnx_session`). Only onnxruntime and NumPy are
imported, so that a small machine starts in a second.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from unified_embeddings.engines.base import RawHeads, Runtime
from unified_embeddings.engines.onnx_session import PASS_ROWS, open_session, run_options
from unified_embeddings.errors import InputError, ModelLoadError
from unified_embeddings.models.architecture import packing_problem
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.exported import (
    COLBERT_OPTION,
    EXPORT,
    EXPORT_FORMAT,
    EXPORTED_IN,
    INPUTS,
    INT8_SCHEME,
    OUTPUTS,
    ROW_SCHEMES,
    SHORT_TEXT,
)
from unified_embeddings.models.resolve import resolve
from unified_embeddings.system.hardware import cpu, is_shared, passive_wait_policy
from unified_embeddings.types import FloatArray, HeadName, IntArray, Role

_LOG = logging.getLogger(__name__)


class OnnxEngine:
    """An exported model on the CPU; see `Engine`.

    A model that was not exported is exported into the user's cache folder, once.

    Args:
        checkpoint: The files of the export, or of the model to export.
        runtime: The result of `plan`.

    Raises:
        ModelLoadError: If the model cannot be exported, ONNX Runtime cannot read the file, or the
            graph lacks an input or output.
    """

    padded = False

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        self.runtime = runtime
        needed_outputs = {OUTPUTS[head] for head in checkpoint.spec.heads}
        if not checkpoint.is_exported:
            checkpoint = _find_or_publish_export(checkpoint, runtime.precision)
        self._checkpoint = checkpoint
        notes = checkpoint.export_notes
        if is_shared():
            from unified_embeddings.engines.onnx_packed import open_shared_session

            self._session = open_shared_session(checkpoint)
        else:
            self._session = open_session(checkpoint)
        self.hidden_bytes = checkpoint.require(notes.weights_file).stat().st_size
        inputs = {node.name for node in self._session.get_inputs()}
        outputs = {node.name for node in self._session.get_outputs()}
        if inputs != {*INPUTS} or not needed_outputs <= outputs:
            raise checkpoint.problem(
                f"{notes.graph_file} has inputs {sorted(inputs)} and outputs {sorted(outputs)}, "
                f"but {sorted(INPUTS)} and {sorted(needed_outputs)} are needed; export the model "
                "again with unified-embeddings export-onnx"
            )
        options = {node.name for node in self._session.get_overridable_initializers()}
        self._can_omit_colbert = COLBERT_OPTION in options
        # One pass at a time: a second would only compete for the same cores and memory.
        self._lock = threading.Lock()

    @staticmethod
    def plan(precision: str, device: str, checkpoint: Callable[[], Checkpoint]) -> Runtime:
        """Decide by the precision that the file was, or will be, exported in; see `registry.plan`.

        Raises:
            InputError: If the file was exported in another precision, or the precision, the device
                or the processor is unsupported by this engine.
            ModelLoadError: If the model's files cannot be read, or it cannot be exported.
        """
        if device not in ("auto", "cpu"):
            raise InputError(
                f"int8 and the engine 'onnx' run on the CPU, not on {device!r}; leave the device "
                "out, or take another precision"
            )
        if precision not in ("auto", *EXPORTED_IN):
            raise InputError(
                f"the engine 'onnx' runs {' and '.join(EXPORTED_IN)}, not {precision!r}; take one "
                "of these, or the engine 'torch'"
            )
        precision, reason = _choose_precision(precision, checkpoint())
        scheme = ""
        if precision == "int8":
            is_exported = checkpoint().is_exported
            scheme = checkpoint().export_notes.scheme if is_exported else INT8_SCHEME
            reason += _require_int8(scheme)
        return Runtime(
            engine="onnx", device="cpu", precision=precision, reason=reason, scheme=scheme
        )

    def weights(self) -> Iterator[tuple[int, int]]:
        """Yield nothing: ONNX Runtime does not tell where it keeps the weights; `hidden_bytes`."""
        return iter(())

    def run(
        self,
        batch: Sequence[IntArray],
        heads: frozenset[HeadName],
        role: Role = "document",  # noqa: ARG002 — one set of weights for both
    ) -> RawHeads:
        """Run one or several forward passes; see `Engine.run`.

        A text's vectors are the same whatever else is in the batch. Short texts of several lengths
        share a pass, in which only attention sees padding. Longer texts are run by length, since
        their kernel for attention takes no padding.
        """
        passes = [self._run_pass(texts, heads) for texts in self._divide(batch)]
        pooled = token_weights = token_vectors = None
        if "dense" in heads:
            pooled = np.stack([row for outputs in passes for row in outputs["dense"]])
        if "sparse" in heads:
            token_weights = [row for outputs in passes for row in outputs["sparse"]]
        if "colbert" in heads:
            token_vectors = [rows for outputs in passes for rows in outputs["colbert"]]
        return RawHeads(pooled=pooled, token_weights=token_weights, token_vectors=token_vectors)

    def _divide(self, batch: Sequence[IntArray]) -> Iterator[Sequence[IntArray]]:
        """Yield the texts of each pass, in the batch's order."""
        first = 0
        longest = 0
        for position, text in enumerate(batch):
            shares = position == first or self._may_share_pass(batch[position - 1], text)
            rows = max(longest, len(text)) * (position - first + 1)
            if position > first and (not shares or rows > PASS_ROWS):
                yield batch[first:position]
                first, longest = position, 0
            longest = max(longest, len(text))
        yield batch[first:]

    def _may_share_pass(self, one: IntArray, other: IntArray) -> bool:
        if len(one) == len(other):
            return True
        return self._checkpoint.export_notes.ragged and max(len(one), len(other)) <= SHORT_TEXT

    def _run_pass(
        self, texts: Sequence[IntArray], heads: frozenset[HeadName]
    ) -> dict[HeadName, list[FloatArray]]:
        """Run one forward pass; returns each head's output for each text, without padding."""
        lengths = [len(text) for text in texts]
        shape = (len(texts), max(lengths))
        input_ids = np.zeros(shape, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        for row, text in enumerate(texts):
            input_ids[row, : len(text)] = text
            attention_mask[row, : len(text)] = 1
        inputs = dict(zip(INPUTS, (input_ids, attention_mask), strict=True))
        if self._can_omit_colbert and "colbert" not in heads:
            inputs[COLBERT_OPTION] = np.array(False)
        output_names = [OUTPUTS[head] for head in heads]
        options = run_options(input_ids.size)
        with self._lock, self._checkpoint.explain("ONNX Runtime cannot run its graph"):
            arrays = self._session.run(output_names, inputs, options)
        outputs = dict(zip(heads, arrays, strict=True))
        self._check_shapes(outputs, *shape)
        return {head: _cut(head, output, lengths) for head, output in outputs.items()}

    def _check_shapes(
        self, outputs: Mapping[HeadName, FloatArray], texts: int, tokens: int
    ) -> None:
        """Refuse outputs of other shapes than `config.json`, which is a file of its own, says."""
        expected: dict[HeadName, tuple[int, ...]] = {
            "dense": (texts, self._checkpoint.dimension),
            "sparse": (texts, tokens),
            "colbert": (texts, tokens - 1),
        }
        for head, output in outputs.items():
            shape = output.shape[:2] if head == "colbert" else output.shape
            if shape != expected[head] or output.dtype != np.float32:
                raise self._checkpoint.problem(
                    f"its graph gives {output.dtype} {output.shape} for {texts} texts of {tokens} "
                    f"tokens, where {expected[head]} is expected; export the model again"
                )


def _cut(head: HeadName, output: FloatArray, lengths: list[int]) -> list[FloatArray]:
    """Return a head's output for each text, without what stands for padding."""
    if head == "dense":
        return list(output)
    # ColBERT's rows leave the leading special token out.
    skipped = 1 if head == "colbert" else 0
    pairs = zip(output, lengths, strict=True)
    return [rows[: length - skipped] for rows, length in pairs]


def _choose_precision(requested: str, checkpoint: Checkpoint) -> tuple[str, str]:
    """Return the precision that a model runs in, and the reason.

    Raises:
        InputError: If the model was exported in another precision.
        ModelLoadError: If the model cannot be exported.
    """
    if checkpoint.is_exported:
        exported_in = checkpoint.export_notes.precision
        if requested not in ("auto", exported_in):
            raise InputError(
                f"precision {requested} was requested, but {checkpoint.name} was exported in "
                f"{exported_in}; leave precision out, or export the model again"
            )
        return exported_in, "the file was exported in it"
    if problem := packing_problem(checkpoint):
        raise checkpoint.problem(f"the engine 'onnx' cannot run it: {problem}")
    if requested == "auto":
        return "fp32", "the precision of the weights"
    return requested, "as asked"


def _require_int8(scheme: str) -> str:
    """Refuse a processor without int8; return a warning for one that is slow at it, or "".

    Raises:
        InputError: If the processor is known to lack the instructions.
    """
    if cpu().lacks_int8:
        raise InputError(
            f"{cpu().name} has none of the instructions that int8 runs on (AVX2 or newer, or "
            "ARM's asimd); take fp32"
        )
    if not cpu().flags or cpu().has_int8_products:
        return ""
    lacking = "the CPU has no int8 products (avx512_vnni, avx_vnni, amx_int8)"
    if scheme in ROW_SCHEMES:
        return f"; a quarter of the memory, and half as fast as it could be, since {lacking}"
    return (
        f"; a quarter of the memory, but documents take longer than in fp32, since {lacking}; "
        "exported again, the model will be faster"
    )


def _find_or_publish_export(checkpoint: Checkpoint, precision: str) -> Checkpoint:
    """Return a model's export in the user's cache folder, writing it if missing or damaged.

    Writing it takes as much disk space as the weights: 2 GB for BGE-M3 in fp32.

    Raises:
        ModelLoadError: If the model cannot be exported, or the folder cannot be written.
    """
    folder = _cached_export_folder(checkpoint, precision)
    if (folder / EXPORT).is_file():
        with contextlib.suppress(ModelLoadError):  # then it is damaged, and is replaced below
            return resolve(folder, local_files_only=True)
    _LOG.warning("Writing %s in %s into %s, once.", checkpoint.name, precision, folder)
    # Exporting reads the weights with torch, which running the export does not need.
    with passive_wait_policy():
        from unified_embeddings.export.folder import replace_export
    replace_export(checkpoint, folder, precision)
    return resolve(folder, local_files_only=True)


def _cached_export_folder(checkpoint: Checkpoint, precision: str) -> Path:
    """Return where in the user's cache folder a model's export belongs.

    Everything that decides the content of an export is in the name.
    """
    import platformdirs

    heads = "-".join(checkpoint.spec.heads)
    scheme = f"-{INT8_SCHEME}" if precision == "int8" else ""
    kind = f"{checkpoint.pooling}-{heads}-{precision}{scheme}"
    name = f"onnx-{EXPORT_FORMAT}-{checkpoint.digest}-{kind}"
    return platformdirs.user_cache_path("unified-embeddings") / name
