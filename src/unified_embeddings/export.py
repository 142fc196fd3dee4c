"""Writing a model as an ONNX file with all its heads, for the engine 'onnx'.

What lives here: the graph (backbone, pooling, sparse and ColBERT head in one), and the folder it is
written into. What does not: running it (`engines.onnx`).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from unified_embeddings import __version__
from unified_embeddings.checkpoints import (
    COLBERT_HEAD,
    SPARSE_HEAD,
    Checkpoint,
    content_digest,
    resolve,
)
from unified_embeddings.embedder import validated
from unified_embeddings.engines import unpackable
from unified_embeddings.engines.onnx import INPUTS, OUTPUTS, graph_inputs
from unified_embeddings.engines.torch import load_backbone, load_head
from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.models import EXPORT, ModelSpec
from unified_embeddings.tokenization import Tokenizer

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("The package onnx, which writes ONNX files,", extra="onnx") from error

_FILE = "model.onnx"
_OPSET = 17
_SAMPLE_TOKENS = 512
_SAMPLE_BATCH = 8
_COPIED = ("config.json", "tokenizer.json", "1_Pooling/config.json", "sentence_bert_config.json")


class _Graph(torch.nn.Module):
    """What is exported: token ids in, the raw outputs of every head out."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        heads = checkpoint.spec.heads
        self._pooling = checkpoint.pooling
        self.backbone = load_backbone(checkpoint, torch.float32, attention="eager")
        self.sparse = load_head(checkpoint, SPARSE_HEAD, rows=1) if "sparse" in heads else None
        self.colbert = load_head(checkpoint, COLBERT_HEAD) if "colbert" in heads else None

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Pooled states (n, d), token weights (n, t), token vectors (n, t - 1, d): what it has."""
        hidden = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            token_type_ids=torch.zeros_like(input_ids),
        ).last_hidden_state
        outputs = [self._pooled(hidden, attention_mask)]
        if self.sparse is not None:
            outputs.append(torch.relu(self.sparse(hidden)).squeeze(-1))
        if self.colbert is not None:
            outputs.append(self.colbert(hidden[:, 1:]))
        return tuple(outputs)

    def _pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._pooling == "cls":
            return hidden[:, 0]
        kept = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * kept).sum(1) / kept.sum(1)


def export_onnx(
    model: str | os.PathLike[str] | ModelSpec,
    folder: str | os.PathLike[str],
    *,
    precision: Literal["fp32", "int8"] = "fp32",
    samples: Iterable[str] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a model into a folder that the engine 'onnx' runs, whole or not at all.

    The folder is a model of its own (`UnifiedEmbeddingConfig(folder)`) with the source's
    fingerprint: collections made with the one are searched with the other.

    Args:
        model: A model that the engine 'torch' runs.
        folder: Where to; must not exist, or be empty.
        precision: "int8" takes a quarter of the memory; see `quantize`.
        samples: For int8, texts like those the model will see, some hundred; None takes passages of
            the Python reference that comes with Python, in English.
        revision: Branch, tag or commit on the hub.
        local_files_only: Never ask the hub.
        on_step: Called with what is being done, as it begins.

    Raises:
        InputError: If the folder is in use, the precision unknown, or there are no samples.
        ModelLoadError: If the model cannot be loaded, or is of a kind that cannot be exported.
    """
    if precision not in ("fp32", "int8"):
        raise InputError(f"precision must be fp32 or int8, got {precision!r}")
    if precision == "fp32" and samples is not None:
        raise InputError("samples are for int8; fp32 measures nothing")
    texts = validated(_passages() if samples is None else samples)
    if not texts:
        raise InputError("int8 needs sample texts to measure, got none")
    target = Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not an empty folder; name another")
    checkpoint = resolve(model, revision=revision, local_files_only=local_files_only)
    if problem := unpackable(checkpoint):
        raise checkpoint.problem(f"it cannot be exported: {problem}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            made = Path(scratch) / "export"
            made.mkdir()
            on_step("loading")
            graph = _Graph(checkpoint).eval()
            on_step("tracing")
            _trace(graph, checkpoint, made if precision == "fp32" else Path(scratch))
            del graph
            if precision == "int8":
                on_step("quantising")
                _quantise(Path(scratch) / _FILE, made / _FILE, checkpoint, texts)
            on_step("writing")
            (made / f"{_FILE}.data").chmod((made / _FILE).stat().st_mode)  # else the owner's alone
            _write_notes(checkpoint, made, precision)
            if target.exists():
                target.rmdir()
            made.replace(target)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: {error}. Make room or name another"
        ) from error
    return target


def _trace(graph: _Graph, checkpoint: Checkpoint, folder: Path) -> None:
    """The graph's file, its weights beside it in one file."""
    names = [OUTPUTS[head] for head in checkpoint.spec.heads]
    axes = {name: {0: "texts", 1: "tokens"} for name in (*INPUTS, *names)}
    axes["pooled"] = {0: "texts"}
    ids = torch.full((2, 6), 5, dtype=torch.long)
    first = 0 if checkpoint.model_type == "bert" else checkpoint.integer("pad_token_id") + 1
    positions = torch.arange(first, first + 6).expand(2, -1)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        traced = Path(scratch) / "traced.onnx"
        with torch.inference_mode():
            torch.onnx.export(
                graph,
                (ids, torch.ones_like(ids), positions),
                str(traced),
                input_names=list(INPUTS),
                output_names=names,
                dynamic_axes=axes,
                opset_version=_OPSET,
                dynamo=False,  # its graphs are the ones ONNX Runtime's fusions know
            )
        onnx.save_model(
            onnx.load(traced),
            folder / _FILE,
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=f"{_FILE}.data",
        )


def _quantise(model: Path, target: Path, checkpoint: Checkpoint, texts: list[str]) -> None:
    """Measure the activations on the texts, and write the graph in int8."""
    from unified_embeddings.quantize import largest_activations, quantise

    tokenizer = Tokenizer(checkpoint, min(checkpoint.max_length, _SAMPLE_TOKENS))
    prefix = checkpoint.spec.document_prefix
    ids = [one.ids for one in tokenizer([prefix + text for text in texts])]
    batches = (
        graph_inputs(ids[start : start + _SAMPLE_BATCH], checkpoint)
        for start in range(0, len(ids), _SAMPLE_BATCH)
    )
    quantise(model, target, largest_activations(model, batches))


def _passages() -> list[str]:
    """Passages of 400 characters from the Python reference, some 150."""
    from pydoc_data.topics import topics

    texts = list(topics.values())[:60]
    return [text[at : at + 400] for text in texts for at in range(0, min(len(text), 1200), 400)]


def _write_notes(checkpoint: Checkpoint, folder: Path, precision: str) -> None:
    """The small files, and what the engine has to know of where this comes from."""
    for name in _COPIED:
        if (checkpoint.folder / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(checkpoint.folder / name, folder / name)
    spec = checkpoint.spec.to_dict()
    notes: dict[str, Any] = {
        "format": 1,
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "digest": checkpoint.digest,
        "precision": precision,
        "file": _FILE,
        "content": content_digest([folder / _FILE, folder / f"{_FILE}.data"]),
        "spec": {**spec, "model_id": ".", "engine": "onnx", "revision": None},
        "made_with": {"unified-embeddings": __version__, "torch": torch.__version__},
    }
    (folder / EXPORT).write_text(json.dumps(notes, indent=1), "utf-8")
