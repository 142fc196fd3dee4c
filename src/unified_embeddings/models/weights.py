"""A checkpoint's weights, read and checked, on the CPU.

What lives here: weight and head files, each tensor held against what `config.json` describes. What
does not: computing with them (`encoder`, `torch`), writing them as a graph (`export`).
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from unified_embeddings.models.architecture import ACTIVATIONS, unpackable
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.system.memory import mapped_spans, release_pages

TABLE = "embeddings.word_embeddings.weight"
"""The token table, 45% of BGE-M3."""
PLACES = "embeddings.position_embeddings.weight"
TYPES = "embeddings.token_type_embeddings.weight"
"""The tables of positions, and of token types, of which the first row is in use."""


@dataclass(frozen=True)
class Backbone:
    """An encoder of the BERT family: its numbers, and its tensors as the files have them.

    Attributes:
        layers: Number of layers.
        heads: Attention heads of a layer.
        width: Hidden size, d.
        epsilon: Added to the variance in each normalisation.
        activation: Between a layer's two wide products, a value of `engines.ACTIVATIONS`.
        tensors: Name, as transformers' BertModel has it → tensor on the CPU, in the file's dtype.
        mapped: Names of those that lie in their file until they are read.
    """

    layers: int
    heads: int
    width: int
    epsilon: float
    activation: str
    tensors: dict[str, torch.Tensor]
    mapped: frozenset[str]

    def linear(self, *names: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight (rows, columns) and bias (rows,) of a product, several below each other as one."""
        weights, biases = (
            [self.tensors[f"{name}.{part}"] for name in names] for part in ("weight", "bias")
        )
        if len(names) == 1:
            return weights[0], biases[0]
        return torch.cat(weights), torch.cat(biases)

    def give_back(self, prefix: str) -> None:
        """Let the system drop the pages of mapped tensors that have been copied."""
        for name in self.mapped:
            if name.startswith(prefix):
                release_pages(self.tensors[name].data_ptr(), self.tensors[name].nbytes)


def read_backbone(checkpoint: Checkpoint) -> Backbone:
    """Open the weight files and hold every tensor against `config.json`; reads hardly anything yet.

    Raises:
        ModelLoadError: If a file is truncated, a tensor is missing, has no place or another shape,
            or the model is one that cannot be packed (`engines.unpackable`).
    """
    if problem := unpackable(checkpoint):
        raise checkpoint.problem(f"this engine cannot run it: {problem}")
    layers, width = checkpoint.integer("num_hidden_layers"), checkpoint.hidden_size
    heads, epsilon = checkpoint.integer("num_attention_heads"), _epsilon(checkpoint)
    if min(layers, width, heads) < 1 or width % heads:
        raise checkpoint.problem(
            f"config.json describes no usable model: {layers} layers, {heads} attention heads over "
            f"{width} dimensions"
        )
    expected = _shapes(checkpoint, layers, width)
    tensors, mapped = {}, set()
    for name, tensor, is_mapped in _tensors(checkpoint):
        if name in expected:
            tensors[name] = tensor
            if is_mapped:
                mapped.add(name)
        elif name.startswith("encoder."):
            raise checkpoint.problem(
                f"tensor {name} has no place in the model that config.json describes; the two "
                "belong to different models"
            )
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        raise checkpoint.problem(
            f"{len(missing)} of {len(expected)} tensors are missing from "
            f"{', '.join(path.name for path in checkpoint.weight_files)}, the first {missing[0]}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name]:
            raise checkpoint.problem(
                f"tensor {name} has shape {tuple(tensor.shape)}, but config.json asks for "
                f"{expected[name]}"
            )
    activation = ACTIVATIONS[checkpoint.config.get("hidden_act", "gelu")]
    return Backbone(layers, heads, width, epsilon, activation, tensors, frozenset(mapped))


def _epsilon(checkpoint: Checkpoint) -> float:
    value = checkpoint.config.get("layer_norm_eps", 1e-12)  # as BERT's configuration has it
    if not isinstance(value, int | float) or value is True or not 0 < value < math.inf:
        raise checkpoint.problem(
            f"config.json has layer_norm_eps = {value!r}, where a number above 0 is needed"
        )
    return float(value)


def _shapes(checkpoint: Checkpoint, layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """Every tensor the model must have."""
    inner = checkpoint.integer("intermediate_size")
    kinds = checkpoint.config.get("type_vocab_size", 2)  # as BERT's configuration has it
    shapes: dict[str, tuple[int, ...]] = {
        TABLE: (checkpoint.integer("vocab_size"), width),
        PLACES: (checkpoint.integer("max_position_embeddings"), width),
        TYPES: (kinds, width),
    }
    parts = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "attention.output.LayerNorm": (width,),
        "intermediate.dense": (inner, width),
        "output.dense": (width, inner),
        "output.LayerNorm": (width,),
    }
    owners = {"embeddings.LayerNorm": (width,)} | {
        f"encoder.layer.{layer}.{part}": shape
        for layer in range(layers)
        for part, shape in parts.items()
    }
    for owner, shape in owners.items():
        shapes[f"{owner}.weight"] = shape
        shapes[f"{owner}.bias"] = shape[:1]
    return shapes


_OWNERS = ("bert.", "roberta.")
"""What stands before the names where a model with a task of its own was saved."""


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Everything in the weight files: today's name, tensor, and whether the file is mapped."""
    for path in checkpoint.weight_files:
        try:
            state = _read(path)
        except _UNREADABLE as error:
            raise checkpoint.problem(
                f"{path.name} is truncated or no weight file ({error}); fetch it again"
            ) from error
        spans = mapped_spans(path.resolve())
        for name, tensor in state.items():
            for owner in _OWNERS:
                name = name.removeprefix(owner)
            if name.endswith(("LayerNorm.gamma", "LayerNorm.beta")):  # BERT's first checkpoints
                name = name.replace("gamma", "weight").replace("beta", "bias")
            yield name, tensor, any(start <= tensor.data_ptr() < end for start, end in spans)


_UNREADABLE = (
    safetensors.SafetensorError,
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    ValueError,
)


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file, mapped from it where its form allows."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(content, dict):
        raise ValueError(f"expected a dict of tensors, got {type(content).__name__}")
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def load_head(checkpoint: Checkpoint, name: str, *, rows: int | None = None) -> torch.nn.Linear:
    """Read a head file, {"weight": (rows, hidden_size), "bias": (rows,)}, in fp32.

    Args:
        checkpoint: Where the file lies.
        name: The file's name.
        rows: Outputs the head must have; any number if None.

    Raises:
        ModelLoadError: If the file is unreadable or a shape is another.
    """
    path = checkpoint.require(name)
    try:
        state = _read(path)
    except _UNREADABLE as error:
        raise checkpoint.problem(f"{name} is truncated or no head file ({error})") from error
    found = {part: tuple(tensor.shape) for part, tensor in state.items()}
    rows = rows or (found.get("weight") or (1,))[0]
    wanted = {"weight": (rows, checkpoint.hidden_size), "bias": (rows,)}
    if found != wanted:
        raise checkpoint.problem(f"{name} should hold {wanted}, but holds {found}")
    head = torch.nn.Linear(checkpoint.hidden_size, rows, device="meta")
    head.load_state_dict({part: t.float() for part, t in state.items()}, assign=True)
    return head.requires_grad_(False)
