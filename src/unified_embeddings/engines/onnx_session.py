"""Sessions of ONNX Runtime over exported graphs.

What lives here: a session and its options. What does not: what is run in it (`onnx`), weights that
several processes share (`onnx_packed`).
"""

from __future__ import annotations

from pathlib import Path

from unified_embeddings.engines.graph_check import graph_problem
from unified_embeddings.errors import MissingExtraError
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.system.hardware import cpu, no_telemetry, thread_count
from unified_embeddings.system.memory import release_file_pages

try:
    with no_telemetry():
        import onnxruntime
except ImportError as error:
    raise MissingExtraError(
        "ONNX Runtime, which the engine 'onnx' runs on,", extra="onnx"
    ) from error

PROVIDERS = ("CPUExecutionProvider",)
PASS_ROWS = 512
"""Rows of a pass over several texts, at most: states of more do not stay in the processor's cache.
A longer text makes a pass of its own."""
_ERRORS_ONLY = 3
"""ONNX Runtime's log level, from 0 (verbose) to 4 (fatal)."""


def open_session(checkpoint: Checkpoint) -> onnxruntime.InferenceSession:
    """Return a session over an exported model's graph, with weights of its own.

    Raises:
        ModelLoadError: If ONNX Runtime cannot read the graph, or it is none of `export`'s.
    """
    graph = require_graph(checkpoint)
    with checkpoint.explain(f"ONNX Runtime cannot load {graph.name}"):
        session = onnxruntime.InferenceSession(str(graph), session_options(), providers=PROVIDERS)
    # The session keeps its own arrangement of the weights, so the file's pages in memory are a
    # second copy.
    release_file_pages(checkpoint.require(checkpoint.export_notes.weights_file).resolve())
    return session


def require_graph(checkpoint: Checkpoint) -> Path:
    """Return an exported model's graph after checking it.

    Raises:
        ModelLoadError: If it is none of `export`'s.
    """
    notes = checkpoint.export_notes
    graph = checkpoint.require(notes.graph_file)
    with checkpoint.explain(f"ONNX Runtime cannot load {graph.name}"):
        if problem := graph_problem(graph, notes.weights_file):
            raise checkpoint.problem(f"{graph.name} is not run here: {problem}")
    return graph


def session_options() -> onnxruntime.SessionOptions:
    """Return the options of every session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count()
    # Passes have many shapes, and a plan of the memory would be kept for each.
    options.enable_mem_pattern = False
    options.log_severity_level = _ERRORS_ONLY
    # Spinning threads burn the cores of whatever else runs between two queries.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not cpu().has_int8_products:
        # Without these instructions the kernels for signed weights saturate. This turns the
        # weights into unsigned ones when they are loaded.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def run_options(rows: int) -> onnxruntime.RunOptions:
    """Return the options of a pass over so many rows.

    The memory of a pass is kept for the next one: asking the system for it anew, for each product,
    takes a tenth of the time. A long text's memory is given back.
    """
    options = onnxruntime.RunOptions()
    if rows > PASS_ROWS:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options
