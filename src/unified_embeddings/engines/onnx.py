"""An exported model on ONNX Runtime: no torch, no transformers.

What lives here: loading what `export.py` wrote, and the forward passes over a batch. What does
not: making the file (`export`). Imports onnxruntime and NumPy alone, so that a small machine starts
in a second.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from unified_embeddings.engines.base import RawHeads, Runtime
from unified_embeddings.errors import InputError, MissingExtraError, ModelLoadError
from unified_embeddings.models.architecture import unpackable
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.exported import EXPORT, EXPORTED_IN, INPUTS, OUTPUTS
from unified_embeddings.models.resolve import resolve
from unified_embeddings.system.hardware import cpu, passive_wait_policy
from unified_embeddings.system.memory import release_file_pages
from unified_embeddings.types import FloatArray, HeadName, IntArray, Role

try:
    import onnxruntime
except ImportError as error:
    raise MissingExtraError(
        "ONNX Runtime, which the engine 'onnx' runs on,", extra="onnx"
    ) from error

_LOG = logging.getLogger(__name__)


class OnnxEngine:
    """An exported model on the CPU; see `engines.Engine`.

    Raises:
        ModelLoadError: If ONNX Runtime cannot read the file, or it lacks an input or output.
    """

    padded = False

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        self.runtime = runtime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cpu().cores
        options.enable_cpu_mem_arena = False  # the arena keeps the memory of the longest batch
        options.log_severity_level = 3
        # Spinning threads burn the cores of whatever else runs between two queries.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = {OUTPUTS[head] for head in checkpoint.spec.heads}
        if not checkpoint.is_exported:
            checkpoint = _exported(checkpoint, runtime.precision)
        path = checkpoint.require(checkpoint.exported["file"])
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own errors derive from nothing narrower
            raise checkpoint.problem(f"ONNX Runtime cannot load {path.name}: {error}") from error
        # It keeps its own arrangement of the products' weights; their pages only count twice.
        release_file_pages(path.with_name(f"{path.name}.data").resolve())
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
        """Take the precision the file was exported in, or will be; see `engines.plan`.

        Raises:
            InputError: If the file was exported in another precision, or precision, device or
                processor are none that this engine runs on.
            ModelLoadError: If the model's files cannot be read.
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
        found = checkpoint()
        if found.is_exported:
            made, reason = str(found.exported["precision"]), "the file was exported in it"
        else:
            if problem := unpackable(found):
                raise found.problem(f"the engine 'onnx' cannot run it: {problem}")
            made = "fp32" if precision == "auto" else precision
            reason = "as asked" if precision == made else "the precision of the weights"
        if precision not in ("auto", made):
            raise InputError(
                f"precision {precision} is asked for, but {found.name} was exported in {made}; "
                "leave precision out, or export the model again"
            )
        if made == "int8" and cpu().lacks_int8:
            raise InputError(
                f"{cpu().name} has none of the instructions that int8 runs on (AVX2 or newer, or "
                "ARM's asimd); take fp32"
            )
        if made == "int8" and cpu().flags and not cpu().has_int8_products:
            reason += "; a quarter of the memory, but documents take longer than in fp32, since "
            reason += "the CPU has no int8 products (avx512_vnni, avx_vnni, amx_int8)"
        return Runtime("onnx", "cpu", made, reason)

    def weights(self) -> Iterator[tuple[int, int]]:
        """None: ONNX Runtime does not say where it keeps them."""
        return iter(())

    def run(
        self,
        batch: Sequence[IntArray],
        heads: frozenset[HeadName],
        role: Role = "document",  # noqa: ARG002 — one set of weights for both
    ) -> RawHeads:
        """A forward pass for each length in the batch; see `engines.Engine.run`.

        Without padding a text's vectors are the same in any company: in int8 a difference of 1e-7,
        as padding makes, would grow to 5e-3 where it tips a rounding.
        """
        parts = [self._run(list(texts), heads) for _, texts in itertools.groupby(batch, key=len)]
        return RawHeads(
            pooled=np.concatenate([part["dense"] for part in parts]) if "dense" in heads else None,
            token_weights=_rows(parts, "sparse") if "sparse" in heads else None,
            token_vectors=_rows(parts, "colbert") if "colbert" in heads else None,
        )

    def _run(
        self, batch: Sequence[IntArray], heads: frozenset[HeadName]
    ) -> dict[HeadName, FloatArray]:
        """Texts of one length."""
        ids = np.stack(batch).astype(np.int64)
        inputs = dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True))
        with self._lock:
            found = self._session.run([OUTPUTS[head] for head in heads], inputs)
        return dict(zip(heads, found, strict=True))


def _exported(checkpoint: Checkpoint, precision: str) -> Checkpoint:
    """The model's export in the user's cache folder; written if it is not there, or damaged."""
    folder = checkpoint.export_folder(precision)
    if (folder / EXPORT).is_file():
        with contextlib.suppress(ModelLoadError):  # then it is damaged
            return resolve(folder, local_files_only=True)
    _LOG.warning("Writing %s in %s into %s, once.", checkpoint.name, precision, folder)
    with passive_wait_policy():  # what reads weights needs torch, which running them does not
        from unified_embeddings.export.folder import replace_export
    replace_export(checkpoint, folder, precision)
    return resolve(folder, local_files_only=True)


def _rows(parts: list[dict[HeadName, FloatArray]], head: HeadName) -> list[FloatArray]:
    return [row for part in parts for row in part[head]]
