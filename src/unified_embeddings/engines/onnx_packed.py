"""Weights that several processes share, as ONNX Runtime's kernels want them.

What lives here: writing a graph's weights in the kernels' own layout into the user's cache folder,
and a session over that file. What does not: other sessions (`onnx_session`), whether this process
is one of several (`system.hardware`).

ONNX Runtime rearranges the weights of each product for its kernels when a session is made, which
gives each process a copy of its own. It can also store the rearranged weights in a file. A session
over that file maps it: its pages are in memory once, however many processes use it.

The kernels rely on alignment that the file does not promise: it aligns tensors of more than a
megabyte, and where a smaller one comes before rearranged weights, reading them can crash. So a file
is used only if every place in it is aligned and its vectors equal those of the graph to the bit.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from pathlib import Path

import numpy as np

from unified_embeddings.engines.onnx_session import (
    PROVIDERS,
    open_session,
    require_graph,
    session_options,
)
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.exported import INPUTS
from unified_embeddings.system.files import publish_folder, require_space, scratch_folder
from unified_embeddings.system.hardware import cpu, no_telemetry
from unified_embeddings.system.processes import ChildFailedError, run_in_child

with no_telemetry():
    import onnxruntime

_LOG = logging.getLogger(__name__)
_GRAPH = "model.onnx"
_WEIGHTS = "model.onnx.data"
_REFUSAL = "not-shared"
"""Name of a file that stands in the folder instead, and says why."""
_PACKED_RATIO = 2
"""The file holds the weights in the old layout and in the new one."""
_WORTH_SHARING = 200 * 2**20
"""Bytes of weights below which each process keeps its own: a small model's are little."""
_PLACE = re.compile(rb"\+\d+\|(\d+);\d+;\d+")
"""Offset, length and padding of rearranged weights, as ONNX Runtime notes them in the graph."""
_ALIGNMENT = 64
"""Bytes that the kernels' widest instructions want addresses to be a multiple of."""
_TRIAL_SHAPES = ((1, 1), (1, 16), (3, 40), (1, 300))
"""(texts, tokens) of the passes that are compared: kernels differ by the number of rows."""


def open_shared_session(checkpoint: Checkpoint) -> onnxruntime.InferenceSession:
    """Return a session over an exported model's graph, with shared weights if that is possible.

    Where it is not, or not worth it, the session has weights of its own, and the log says so.

    Raises:
        ModelLoadError: If the graph is none of `export`'s, or the weights cannot be written.
    """
    weights = checkpoint.require(checkpoint.export_notes.weights_file)
    if weights.stat().st_size < _WORTH_SHARING:
        return open_session(checkpoint)
    graph = _find_or_publish_packed(checkpoint, require_graph(checkpoint))
    if graph is None:
        return open_session(checkpoint)
    with checkpoint.explain(f"ONNX Runtime cannot load {graph}; remove its folder, and try again"):
        return _open_packed(graph)


def _open_packed(graph: Path) -> onnxruntime.InferenceSession:
    options = session_options()
    # The graph was optimised when it was written; changing it would drop the packed weights.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(graph), options, providers=PROVIDERS)


def _find_or_publish_packed(checkpoint: Checkpoint, graph: Path) -> Path | None:
    """Return a graph with packed weights from the user's cache folder, written if missing.

    Args:
        checkpoint: An exported model.
        graph: Its graph, which has been checked.

    Returns:
        The graph's file; None if this model cannot be shared on this machine.

    Raises:
        ModelLoadError: If it cannot be written.
    """
    import platformdirs

    parent = platformdirs.user_cache_path("unified-embeddings")
    folder = parent / f"onnx-packed-{_describe_layout(checkpoint)}"
    try:
        if not _is_complete(folder):
            _publish_packed(checkpoint, graph, folder)
    except ChildFailedError as error:
        _LOG.warning("Each process keeps its own weights: packing them failed: %s", error)
        return None
    except OSError as error:
        raise checkpoint.problem(
            f"its weights for several processes cannot be written into {folder} ({error}). Make "
            "room, set XDG_CACHE_HOME to a folder that can be written, or serve with one worker"
        ) from error
    if (folder / _REFUSAL).exists():
        reason = (folder / _REFUSAL).read_text("utf-8")
        _LOG.warning("Each process keeps its own weights: %s", reason)
        return None
    return folder / _GRAPH


def _publish_packed(checkpoint: Checkpoint, graph: Path, folder: Path) -> None:
    """Write a graph with packed weights into the user's cache folder, or why there is none.

    Raises:
        OSError: If there is no room, or the folder cannot be written.
        ChildFailedError: If ONNX Runtime crashes on it.
    """
    _LOG.warning("Writing %s for several processes into %s, once.", checkpoint.name, folder)
    weights = checkpoint.require(checkpoint.export_notes.weights_file)
    with scratch_folder(folder.parent) as scratch:
        require_space(scratch, _PACKED_RATIO * weights.stat().st_size)
        new_folder = scratch / folder.name
        new_folder.mkdir()
        # In a process of its own, which gives back all the memory that this takes, and may crash.
        refusal = run_in_child(write_packed, [str(graph), str(new_folder)])
        if refusal is not None:
            shutil.rmtree(new_folder)
            new_folder.mkdir()
            (new_folder / _REFUSAL).write_text(refusal, "utf-8")
        publish_folder(new_folder, folder, is_complete=_is_complete)


def write_packed(graph: str, folder: str) -> str | None:
    """Write a graph and its weights in the kernels' layout, and try it.

    Args:
        graph: The ONNX file.
        folder: An empty folder.

    Returns:
        Why it must not be used, or None.
    """
    packed_graph = Path(folder, _GRAPH)
    options = session_options()
    options.optimized_model_filepath = str(packed_graph)
    entries = {
        "session.optimized_model_external_initializers_file_name": _WEIGHTS,
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        "session.save_external_prepacked_constant_initializers": "1",
    }
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    original = onnxruntime.InferenceSession(graph, options, providers=PROVIDERS)
    places = [int(offset) for offset in _PLACE.findall(packed_graph.read_bytes())]
    if not places:
        return "this version of ONNX Runtime packs no weights"
    if any(place % _ALIGNMENT for place in places):
        return "some are too small to be aligned in a file"
    packed = _open_packed(packed_graph)
    for shape in _TRIAL_SHAPES:
        token_ids = np.arange(np.prod(shape), dtype=np.int64).reshape(shape) % 100 + 5
        inputs = dict(zip(INPUTS, (token_ids, np.ones_like(token_ids)), strict=True))
        pairs = zip(original.run(None, inputs), packed.run(None, inputs), strict=True)
        if not all(np.array_equal(*pair) for pair in pairs):
            return "packed weights give other vectors"
    return None


def _describe_layout(checkpoint: Checkpoint) -> str:
    """Return a name for everything that the layout depends on.

    The kernels are chosen by ONNX Runtime's version and the processor, and each has its own layout.
    """
    processor = cpu()
    facts = (checkpoint.export_notes.content, processor.name, *processor.flags)
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]
    return f"{onnxruntime.__version__}-{digest}"


def _is_complete(folder: Path) -> bool:
    is_packed = (folder / _GRAPH).is_file() and (folder / _WEIGHTS).is_file()
    return is_packed or (folder / _REFUSAL).is_file()
