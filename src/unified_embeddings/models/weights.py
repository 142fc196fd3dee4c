"""A checkpoint's weights, read and checked, on the CPU.

What lives here: weight and head files, with each tensor held against what `config.json` describes.
What does not: computing with them (`engines`), writing them as a graph (`export`).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch

from unified_embeddings.models.architecture import ACTIVATIONS, packing_problem
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.system.memory import mapped_spans, release_pages

VOCABULARY_TABLE = "embeddings.word_embeddings.weight"
"""Embeddings of the vocabulary, 45% of BGE-M3."""
POSITION_TABLE = "embeddings.position_embeddings.weight"
TYPE_TABLE = "embeddings.token_type_embeddings.weight"
"""Embeddings of token types; only the first row is in use."""

_TASK_PREFIXES = ("bert.", "roberta.")
"""Prefixes of tensor names in checkpoints that were saved with a task's own layers."""


@dataclass(frozen=True)
class Backbone:
    """An encoder of the BERT family: its sizes, and its tensors as they are in the files.

    Attributes:
        layers: Number of layers.
        heads: Attention heads of a layer.
        width: Hidden size, d.
        epsilon: Added to the variance in each normalisation.
        activation: Activation between a layer's two wide products; a value of `ACTIVATIONS`.
        tensors: Name, in the notation of transformers' BertModel → tensor on the CPU, in the file's
            dtype.
        mapped: Names of the tensors that are mapped from their file, not copied into memory.
    """

    layers: int
    heads: int
    width: int
    epsilon: float
    activation: str
    tensors: dict[str, torch.Tensor]
    mapped: frozenset[str]

    def linear(self, *names: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a linear layer's weight (rows, columns) and bias (rows,).

        Several layers of one input become one, their rows below each other.
        """
        weights = [self.tensors[f"{name}.weight"] for name in names]
        biases = [self.tensors[f"{name}.bias"] for name in names]
        if len(names) == 1:
            return weights[0], biases[0]
        return torch.cat(weights), torch.cat(biases)

    def release_pages(self, prefix: str) -> None:
        """Let the system drop the pages of mapped tensors once they have been copied.

        Args:
            prefix: Start of the tensors' names.
        """
        for name in self.mapped:
            if name.startswith(prefix):
                release_pages(self.tensors[name].data_ptr(), self.tensors[name].nbytes)


class _Tensor(NamedTuple):
    """One tensor of a weight file, and whether it is mapped from that file."""

    name: str
    values: torch.Tensor
    is_mapped: bool


def read_backbone(checkpoint: Checkpoint) -> Backbone:
    """Open the weight files and hold every tensor against `config.json`.

    Hardly anything is read yet: tensors are mapped from their files.

    Raises:
        ModelLoadError: If a file is truncated; a tensor is missing, superfluous or of the wrong
            shape; or the model cannot be packed (`packing_problem`).
    """
    if problem := packing_problem(checkpoint):
        raise checkpoint.problem(f"this engine cannot run it: {problem}")
    layers = checkpoint.integer("num_hidden_layers")
    heads = checkpoint.integer("num_attention_heads")
    width = checkpoint.hidden_size
    epsilon = _read_epsilon(checkpoint)
    sizes = (layers, width, heads, checkpoint.integer("intermediate_size"))
    if min(sizes) < 1 or width % heads:
        raise checkpoint.problem(
            f"config.json describes no usable model: {layers} layers, {heads} attention heads over "
            f"{width} dimensions"
        )
    expected_shapes = _expected_shapes(checkpoint, layers, width)
    tensors = {}
    mapped_names = set()
    for tensor in _read_tensors(checkpoint):
        if tensor.name in expected_shapes:
            tensors[tensor.name] = tensor.values
            if tensor.is_mapped:
                mapped_names.add(tensor.name)
        # Layers beyond those expected mean another model. Other tensors are poolers, heads of the
        # task that the model was trained on, or buffers, and are not used.
        elif tensor.name.startswith("encoder."):
            raise checkpoint.problem(
                f"tensor {tensor.name} is not in the model that config.json describes; the two "
                "belong to different models"
            )
    _check_tensors(checkpoint, tensors, expected_shapes)
    return Backbone(
        layers=layers,
        heads=heads,
        width=width,
        epsilon=epsilon,
        activation=ACTIVATIONS[str(checkpoint.config.get("hidden_act", "gelu"))],
        tensors=tensors,
        mapped=frozenset(mapped_names),
    )


def load_head(checkpoint: Checkpoint, name: str, *, rows: int | None = None) -> torch.nn.Linear:
    """Read a head file, {"weight": (rows, hidden_size), "bias": (rows,)}, in fp32.

    Args:
        checkpoint: The model's files.
        name: The file's name.
        rows: Outputs that the head must have. None allows any number.

    Raises:
        ModelLoadError: If the file is unreadable, or a tensor is missing or of the wrong shape.
    """
    path = checkpoint.require(name)
    with checkpoint.explain(f"{name} is truncated or not a head file"):
        state = _read_file(path)
    for part, tensor in state.items():
        _check_storage(checkpoint, f"{part} in {name}", tensor)
        check_finite(checkpoint, f"{part} in {name}", tensor)
    shapes = {part: tuple(tensor.shape) for part, tensor in state.items()}
    if rows is None:
        rows = (shapes.get("weight") or (1,))[0]
    expected_shapes = {"weight": (rows, checkpoint.hidden_size), "bias": (rows,)}
    if shapes != expected_shapes:
        raise checkpoint.problem(f"{name} should hold {expected_shapes}, but holds {shapes}")
    # On "meta" the layer allocates no weights of its own before it gets the file's.
    head = torch.nn.Linear(checkpoint.hidden_size, rows, device="meta")
    head.load_state_dict({part: t.float() for part, t in state.items()}, assign=True)
    return head.requires_grad_(False)


def _read_epsilon(checkpoint: Checkpoint) -> float:
    epsilon = checkpoint.config.get("layer_norm_eps", 1e-12)  # the default in BERT's configuration
    if not isinstance(epsilon, int | float) or epsilon is True or not 0 < epsilon < math.inf:
        raise checkpoint.problem(
            f"config.json has layer_norm_eps = {epsilon!r}, where a number above 0 is needed"
        )
    return float(epsilon)


def _expected_shapes(checkpoint: Checkpoint, layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that the model must have."""
    inner_width = checkpoint.integer("intermediate_size")
    token_types = checkpoint.integer("type_vocab_size", default=2)  # BERT's default
    if token_types < 1:
        raise checkpoint.problem(f"config.json has type_vocab_size = {token_types}")
    shapes: dict[str, tuple[int, ...]] = {
        VOCABULARY_TABLE: (checkpoint.integer("vocab_size"), width),
        POSITION_TABLE: (checkpoint.integer("max_position_embeddings"), width),
        TYPE_TABLE: (token_types, width),
    }
    weight_shapes: dict[str, tuple[int, ...]] = {"embeddings.LayerNorm": (width,)}
    layer_weight_shapes = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "attention.output.LayerNorm": (width,),
        "intermediate.dense": (inner_width, width),
        "output.dense": (width, inner_width),
        "output.LayerNorm": (width,),
    }
    for layer in range(layers):
        for name, shape in layer_weight_shapes.items():
            weight_shapes[f"encoder.layer.{layer}.{name}"] = shape
    for name, shape in weight_shapes.items():
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _check_tensors(
    checkpoint: Checkpoint,
    tensors: dict[str, torch.Tensor],
    expected_shapes: dict[str, tuple[int, ...]],
) -> None:
    missing_names = sorted(expected_shapes.keys() - tensors.keys())
    if missing_names:
        file_names = ", ".join(path.name for path in checkpoint.weight_files)
        raise checkpoint.problem(
            f"{len(missing_names)} of {len(expected_shapes)} tensors are missing from "
            f"{file_names}, the first {missing_names[0]}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected_shapes[name]:
            raise checkpoint.problem(
                f"tensor {name} has shape {tuple(tensor.shape)}, but config.json asks for "
                f"{expected_shapes[name]}"
            )
        _check_storage(checkpoint, name, tensor)
        # The largest table stays in its file until a text needs a row of it: then the vectors tell.
        if name != VOCABULARY_TABLE:
            check_finite(checkpoint, name, tensor)


def _check_storage(checkpoint: Checkpoint, name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that does not hold a real number for each of its places.

    A pickle can describe a tensor of any shape over a single number, which takes all memory as soon
    as it is copied.
    """
    if not tensor.dtype.is_floating_point or tensor.layout != torch.strided:
        raise checkpoint.problem(f"tensor {name} holds {tensor.dtype}, not real numbers")
    if tensor.is_meta or tensor.untyped_storage().nbytes() < tensor.nbytes:
        raise checkpoint.problem(f"tensor {name} has fewer numbers than its shape has places")


def check_finite(checkpoint: Checkpoint, name: str, tensor: torch.Tensor) -> None:
    """Refuse NaN and infinity, which attention can turn into finite numbers that mean nothing.

    Raises:
        ModelLoadError: If the tensor holds one.
    """
    if not tensor.numel():
        return
    extremes = torch.aminmax(tensor)  # NaN, if there is one
    if not (extremes.min.isfinite() and extremes.max.isfinite()):
        raise checkpoint.problem(f"tensor {name} holds NaN or infinity; fetch the model again")


def _read_tensors(checkpoint: Checkpoint) -> Iterator[_Tensor]:
    """Yield every tensor in the weight files, by the name that transformers gives it today."""
    for path in checkpoint.weight_files:
        with checkpoint.explain(f"{path.name} is truncated or not a weight file; fetch it again"):
            state = _read_file(path)
        # A tensor within a mapped region of its file takes no memory until it is read, and its
        # pages can be released again. Anything else was copied.
        spans = mapped_spans(path.resolve())
        for name, tensor in state.items():
            address = tensor.data_ptr()
            is_mapped = any(start <= address < end for start, end in spans)
            yield _Tensor(_current_name(name), tensor, is_mapped)


def _current_name(name: str) -> str:
    for prefix in _TASK_PREFIXES:
        name = name.removeprefix(prefix)
    if name.endswith(("LayerNorm.gamma", "LayerNorm.beta")):  # in BERT's first checkpoints
        name = name.replace("gamma", "weight").replace("beta", "bias")
    return name


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of one file, mapped from it if its format allows that."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    # Only the zip format, torch's since 1.6, can be mapped. `weights_only` keeps a pickle from
    # running code.
    is_mappable = zipfile.is_zipfile(path)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    if not isinstance(content, dict):
        raise ValueError(f"expected a dict of tensors, got {type(content).__name__}")
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}
