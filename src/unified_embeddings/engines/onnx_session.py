"""Sessions of ONNX Runtime over exported graphs.

What lives here: a session's options, and weights that several processes share. What does not: what
is run in a session (`onnx`), whether this process is one of several (`system.hardware`).

ONNX Runtime rearranges the weights of each product for its kernels when a session is made, which
gives each process a copy of its own. It can also store the rearranged weights in a file. A session
over that file maps it: its pages are in memory once, however many processes use it.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from unified_embeddings.engines.graph_check import graph_problem
from unified_embeddings.errors import MissingExtraError
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.system.files import publish_folder, require_space, scratch_folder
from unified_embeddings.system.hardware import cpu, is_shared, no_telemetry, thread_count
from unified_embeddings.system.memory import release_file_pages
from unified_embeddings.system.processes import ChildFailedError, run_in_child

try:
    with no_telemetry():
        import onnxruntime
except ImportError as error:
    raise MissingExtraError(
        "ONNX Runtime, which the engine 'onnx' runs on,", extra="onnx"
    ) from error

_LOG = logging.getLogger(__name__)
_ERRORS_ONLY = 3
"""ONNX Runtime's log level, from 0 (verbose) to 4 (fatal)."""
_PROVIDERS = ("CPUExecutionProvider",)
_GRAPH = "model.onnx"
_WEIGHTS = "model.onnx.data"
_PACKED_RATIO = 2
"""The file holds the weights in the old layout and in the new one."""


def open_session(checkpoint: Checkpoint) -> onnxruntime.InferenceSession:
    """Return a session over an exported model's graph.

    Raises:
        ModelLoadError: If ONNX Runtime cannot read the graph, or it is none of `export`'s.
    """
    notes = checkpoint.export_notes
    graph = checkpoint.require(notes.graph_file)
    weights = checkpoint.require(notes.weights_file).resolve()
    with checkpoint.explain(f"ONNX Runtime cannot load {graph.name}"):
        if problem := graph_problem(graph, notes.weights_file):
            raise checkpoint.problem(f"{graph.name} is not run here: {problem}")
    if is_shared():
        return _open_packed(checkpoint, _find_or_publish_packed(checkpoint, graph))
    with checkpoint.explain(f"ONNX Runtime cannot load {graph.name}"):
        session = onnxruntime.InferenceSession(str(graph), _session_options(), providers=_PROVIDERS)
    # The session keeps its own arrangement of the weights, so the file's pages in memory are a
    # second copy.
    release_file_pages(weights)
    return session


def _open_packed(checkpoint: Checkpoint, graph: Path) -> onnxruntime.InferenceSession:
    """Return a session over a graph with packed weights, which are mapped."""
    options = _session_options()
    # The graph was optimised when it was written; changing it would drop the packed weights.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with checkpoint.explain(f"ONNX Runtime cannot load {graph}; remove its folder, and try again"):
        return onnxruntime.InferenceSession(str(graph), options, providers=_PROVIDERS)


def _find_or_publish_packed(checkpoint: Checkpoint, graph: Path) -> Path:
    """Return a graph with packed weights from the user's cache folder, written if missing.

    Args:
        checkpoint: An exported model.
        graph: Its graph, which has been checked.

    Raises:
        ModelLoadError: If it cannot be written.
    """
    import platformdirs

    parent = platformdirs.user_cache_path("unified-embeddings")
    folder = parent / f"onnx-packed-{_describe_layout(checkpoint)}"
    if _is_complete(folder):
        return folder / _GRAPH
    weights = checkpoint.require(checkpoint.export_notes.weights_file)
    _LOG.warning("Writing %s for several processes into %s, once.", checkpoint.name, folder)
    try:
        with scratch_folder(parent) as scratch:
            require_space(scratch, _PACKED_RATIO * weights.stat().st_size)
            new_folder = scratch / folder.name
            new_folder.mkdir()
            # In a process of its own, which gives back all the memory that this takes.
            run_in_child(write_packed, [str(graph), str(new_folder)])
            publish_folder(new_folder, folder, is_complete=_is_complete)
    except (OSError, ChildFailedError) as error:
        raise checkpoint.problem(
            f"its weights for several processes cannot be written into {folder} ({error}). Make "
            "room, set XDG_CACHE_HOME to a folder that can be written, or serve with one worker"
        ) from error
    return folder / _GRAPH


def write_packed(graph: str, folder: str) -> None:
    """Write a graph and its weights in the kernels' layout.

    Args:
        graph: The ONNX file.
        folder: An empty folder.
    """
    options = _session_options()
    options.optimized_model_filepath = str(Path(folder, _GRAPH))
    entries = {
        "session.optimized_model_external_initializers_file_name": _WEIGHTS,
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        "session.save_external_prepacked_constant_initializers": "1",
    }
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    onnxruntime.InferenceSession(graph, options, providers=_PROVIDERS)


def _session_options() -> onnxruntime.SessionOptions:
    """Return the options of every session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count()
    options.enable_cpu_mem_arena = False  # the arena keeps the memory of the longest batch
    options.log_severity_level = _ERRORS_ONLY
    # Spinning threads burn the cores of whatever else runs between two queries.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _describe_layout(checkpoint: Checkpoint) -> str:
    """Return a name for everything that the layout depends on.

    The kernels are chosen by ONNX Runtime's version and the processor, and each has its own layout.
    """
    processor = cpu()
    facts = (checkpoint.export_notes.content, processor.name, *processor.flags)
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]
    return f"{onnxruntime.__version__}-{digest}"


def _is_complete(folder: Path) -> bool:
    return (folder / _GRAPH).is_file() and (folder / _WEIGHTS).is_file()
