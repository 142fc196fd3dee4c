"""Writing a model into a folder that the engine 'onnx' runs.

What lives here: the folder, whole or not at all. What does not: the graph in it (`graph`), running
it (`engines.onnx`).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unified_embeddings._version import __version__
from unified_embeddings.errors import InputError, ModelLoadError
from unified_embeddings.export.graph import Linear, Model, write_graph
from unified_embeddings.models.architecture import packing_problem
from unified_embeddings.models.checkpoint import COLBERT_HEAD, SPARSE_HEAD, Checkpoint
from unified_embeddings.models.digests import content_digest
from unified_embeddings.models.exported import EXPORT, EXPORT_FORMAT, EXPORTED_IN
from unified_embeddings.models.resolve import resolve
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.models.weights import load_head, read_backbone
from unified_embeddings.system.files import publish_folder, scratch_folder

_FILE = "model.onnx"
_COPIED = ("config.json", "tokenizer.json", "1_Pooling/config.json", "sentence_bert_config.json")


def export_onnx(
    model: str | os.PathLike[str] | ModelSpec,
    folder: str | os.PathLike[str],
    *,
    precision: Literal["fp32", "int8"] = "fp32",
    revision: str | None = None,
    local_files_only: bool = False,
    show_progress: bool = False,
) -> Path:
    """Write a model into a folder that the engine 'onnx' runs, whole or not at all.

    The folder is a model of its own (`UnifiedEmbeddingConfig(folder)`) with the source's
    fingerprint: collections made with the one are searched with the other.

    Args:
        model: A model that the engine 'torch' runs.
        folder: Where to; must not exist, or be empty.
        precision: "int8" takes a quarter of the memory; see `graph`.
        revision: Branch, tag or commit on the hub.
        local_files_only: Never ask the hub.
        show_progress: Draw a progress bar on standard error.

    Returns:
        The folder's absolute path.

    Raises:
        InputError: If the folder is in use or cannot be written, or the precision is unknown.
        ModelLoadError: If the model cannot be loaded, or is of a kind that cannot be exported.
    """
    if precision not in EXPORTED_IN:
        raise InputError(f"precision must be {' or '.join(EXPORTED_IN)}, got {precision!r}")
    target = Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not an empty folder; name another")
    checkpoint = resolve(model, revision=revision, local_files_only=local_files_only)
    try:
        with scratch_folder(target.parent) as scratch:
            fresh = scratch / target.name
            write_export(checkpoint, fresh, precision, show_progress=show_progress)
            publish_folder(fresh, target)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: {error}. Make room or name another"
        ) from error
    return target


def replace_export(checkpoint: Checkpoint, folder: Path, precision: str) -> None:
    """Write a model's export into a folder, in place of what is there; whole or not at all.

    Two processes may do this at once.

    Raises:
        ModelLoadError: As `export_onnx`, and if the folder cannot be written.
    """
    try:
        with scratch_folder(folder.parent) as scratch:
            fresh = scratch / folder.name
            write_export(checkpoint, fresh, precision)
            publish_folder(fresh, folder, is_complete=_is_complete)
    except OSError as error:
        raise checkpoint.problem(
            f"its export {folder} cannot be written ({error}). Make room, or set XDG_CACHE_HOME to "
            "a folder that can be written"
        ) from error


def _is_complete(folder: Path) -> bool:
    try:
        return resolve(folder, local_files_only=True).is_exported
    except ModelLoadError:
        return False


def write_export(
    checkpoint: Checkpoint, folder: Path, precision: str, *, show_progress: bool = False
) -> None:
    """Write a new folder: the graph, the small files and the notes on where they come from.

    Raises:
        OSError: If it cannot be written; what was written stays.
        ModelLoadError: As `export_onnx`.
    """
    if problem := packing_problem(checkpoint):
        raise checkpoint.problem(f"it cannot be exported: {problem}")
    heads = checkpoint.spec.heads
    model = Model(
        backbone=read_backbone(checkpoint),
        pooling=checkpoint.pooling,
        padding=None if checkpoint.positions_start_at_zero else checkpoint.pad_id,
        sparse=_head(checkpoint, SPARSE_HEAD, rows=1) if "sparse" in heads else None,
        colbert=_head(checkpoint, COLBERT_HEAD) if "colbert" in heads else None,
    )
    folder.mkdir()
    write_graph(model, folder / _FILE, quantised=precision == "int8", show_progress=show_progress)
    _write_notes(checkpoint, folder, precision)


def _head(checkpoint: Checkpoint, name: str, rows: int | None = None) -> Linear:
    head = load_head(checkpoint, name, rows=rows)
    return np.asarray(head.weight.numpy()), np.asarray(head.bias.numpy())


def _write_notes(checkpoint: Checkpoint, folder: Path, precision: str) -> None:
    """The small files, and what the engine has to know of where this comes from."""
    for name in _COPIED:
        if (checkpoint.folder / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(checkpoint.folder / name, folder / name)
    spec = checkpoint.spec.to_dict()
    notes: dict[str, Any] = {
        "format": EXPORT_FORMAT,
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "digest": checkpoint.digest,
        "precision": precision,
        "file": _FILE,
        "content": content_digest([folder / _FILE, folder / f"{_FILE}.data"]),
        "spec": {**spec, "model_id": ".", "engine": "onnx", "revision": None},
        "made_with": {"unified-embeddings": __version__},
    }
    (folder / EXPORT).write_text(json.dumps(notes, indent=1), "utf-8")
