"""Export a model to a folder that the engine 'onnx' runs.

What lives here: the folder, its small files and its notes. What does not: the graph in it
(`graph`), running it (`engines.onnx`), publishing it atomically (`system.files`).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Literal

import numpy as np

from unified_embeddings._version import __version__
from unified_embeddings.errors import InputError, ModelLoadError
from unified_embeddings.export.graph import Model, write_graph
from unified_embeddings.export.reading import Linear
from unified_embeddings.models.architecture import packing_problem
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.digests import content_digest
from unified_embeddings.models.exported import EXPORT, EXPORT_FORMAT, EXPORTED_IN, INT8_SCHEME
from unified_embeddings.models.files import COLBERT_HEAD, SPARSE_HEAD
from unified_embeddings.models.resolve import resolve
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.models.weights import load_head, read_backbone
from unified_embeddings.system.files import publish_folder, scratch_folder

_GRAPH_FILE = "model.onnx"
_COPIED_FILES = (
    "config.json",
    "tokenizer.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
)


def export_onnx(
    model: str | os.PathLike[str] | ModelSpec,
    folder: str | os.PathLike[str],
    *,
    precision: Literal["fp32", "int8"] = "fp32",
    revision: str | None = None,
    local_files_only: bool = False,
    show_progress: bool = False,
) -> Path:
    """Export a model to a folder that the engine 'onnx' runs; atomic.

    The folder is a model of its own (`UnifiedEmbeddingConfig(folder)`). It has the source's
    fingerprint, so a collection made with one of them can be searched with the other.

    Args:
        model: A model that the engine 'torch' runs.
        folder: The folder to create. It must not exist, or be empty.
        precision: "fp32", or "int8", which takes a quarter of the memory; see `graph`.
        revision: Branch, tag or commit on the hub.
        local_files_only: Whether to use only files that are on this machine.
        show_progress: Whether to draw a progress bar on standard error.

    Returns:
        The folder's absolute path.

    Raises:
        InputError: If the folder is in use or cannot be written, or the precision is unknown.
        ModelLoadError: If the model cannot be loaded, or its architecture cannot be exported.
    """
    if precision not in EXPORTED_IN:
        raise InputError(f"precision must be {' or '.join(EXPORTED_IN)}, got {precision!r}")
    target = Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not an empty folder; name another")
    checkpoint = resolve(model, revision=revision, local_files_only=local_files_only)
    try:
        with scratch_folder(target.parent) as scratch:
            new_folder = scratch / target.name
            write_export(checkpoint, new_folder, precision, show_progress=show_progress)
            publish_folder(new_folder, target)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: {error}. Make room or name another"
        ) from error
    return target


def replace_export(checkpoint: Checkpoint, folder: Path, precision: str) -> None:
    """Export a model to a folder, replacing a damaged export; atomic.

    Two processes may do this at once. The export of the first one is kept.

    Args:
        checkpoint: The model.
        folder: The folder to create or to replace.
        precision: "fp32" or "int8".

    Raises:
        ModelLoadError: If the model cannot be exported, or the folder cannot be written.
    """
    try:
        with scratch_folder(folder.parent) as scratch:
            new_folder = scratch / folder.name
            write_export(checkpoint, new_folder, precision)
            publish_folder(new_folder, folder, is_complete=_is_complete_export)
    except OSError as error:
        raise checkpoint.problem(
            f"its export {folder} cannot be written ({error}). Make room, or set XDG_CACHE_HOME to "
            "a folder that can be written"
        ) from error


def _is_complete_export(folder: Path) -> bool:
    """Tell whether a folder holds an export that can be loaded."""
    try:
        return resolve(folder, local_files_only=True).is_exported
    except ModelLoadError:
        return False


def write_export(
    checkpoint: Checkpoint, folder: Path, precision: str, *, show_progress: bool = False
) -> None:
    """Write an export to a new folder, not atomically.

    Args:
        checkpoint: The model.
        folder: The folder to create.
        precision: "fp32" or "int8".
        show_progress: Whether to draw a progress bar on standard error.

    Raises:
        OSError: If it cannot be written. What was written so far stays.
        ModelLoadError: If the model's files are damaged, or its architecture cannot be exported.
    """
    if problem := packing_problem(checkpoint):
        raise checkpoint.problem(f"it cannot be exported: {problem}")
    heads = checkpoint.spec.heads
    model = Model(
        backbone=read_backbone(checkpoint),
        pooling=checkpoint.pooling,
        padding=None if checkpoint.positions_start_at_zero else checkpoint.pad_id,
        sparse=_read_head(checkpoint, SPARSE_HEAD, rows=1) if "sparse" in heads else None,
        colbert=_read_head(checkpoint, COLBERT_HEAD) if "colbert" in heads else None,
    )
    folder.mkdir()
    write_graph(
        model, folder / _GRAPH_FILE, quantised=precision == "int8", show_progress=show_progress
    )
    _copy_small_files(checkpoint.folder, folder)
    _write_notes(checkpoint, folder, precision)


def _read_head(checkpoint: Checkpoint, name: str, rows: int | None = None) -> Linear:
    """Return a head's weight (rows, d) and bias (rows,), float32."""
    head = load_head(checkpoint, name, rows=rows)
    return np.asarray(head.weight.numpy()), np.asarray(head.bias.numpy())


def _copy_small_files(source: Path, folder: Path) -> None:
    for name in _COPIED_FILES:
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def _write_notes(checkpoint: Checkpoint, folder: Path, precision: str) -> None:
    """Write what the engine must know about the export and the model it was made from."""
    spec = checkpoint.spec.to_dict()
    notes: dict[str, object] = {
        "format": EXPORT_FORMAT,
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "digest": checkpoint.digest,
        "sampled_digest": checkpoint.sampled_digest,
        "precision": precision,
        "scheme": INT8_SCHEME if precision == "int8" else "",
        "ragged": True,
        "file": _GRAPH_FILE,
        "content": content_digest([folder / _GRAPH_FILE, folder / f"{_GRAPH_FILE}.data"]),
        "spec": {**spec, "model_id": ".", "engine": "onnx", "revision": None},
        "made_with": {"unified-embeddings": __version__},
    }
    (folder / EXPORT).write_text(json.dumps(notes, indent=1), "utf-8")
