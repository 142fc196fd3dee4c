"""BGE-M3 on CTranslate2: its model file written from a checkpoint, and running it.

CTranslate2 knows the encoder's layers and no heads; these are in `hidden_states`. Its own converter
takes XLM-RoBERTa with a classifier only, so the file is written from its specification here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hidden_states import HiddenStates, write_heads
from unified_embeddings.types import FloatArray

if TYPE_CHECKING:
    from unified_embeddings.models.checkpoint import Checkpoint
    from unified_embeddings.models.weights import Backbone

Spec = Any
"""A layer of CTranslate2's specification: a record of arrays."""


def convert(source: Path, target: Path, precision: str) -> None:
    """Write the model file and the heads into `target`, atomically.

    Args:
        source: The checkpoint.
        target: The folder to create.
        precision: "fp32" or "int8".
    """
    from tokenizers import Tokenizer

    from unified_embeddings.models.resolve import resolve
    from unified_embeddings.models.weights import read_backbone

    checkpoint = resolve(source, local_files_only=True)
    spec = _specification(checkpoint, read_backbone(checkpoint))
    vocabulary = Tokenizer.from_file(str(source / "tokenizer.json")).get_vocab()
    spec.register_vocabulary(sorted(vocabulary, key=lambda piece: vocabulary[piece]))
    spec.config.layer_norm_epsilon = checkpoint.config["layer_norm_eps"]
    spec.validate()
    spec.optimize(quantization="int8" if precision == "int8" else "float32")
    unfinished = target.with_name(f"{target.name}.part")
    unfinished.mkdir(parents=True)
    spec.save(str(unfinished))
    write_heads(checkpoint, unfinished)
    unfinished.replace(target)


def load(folder: Path, precision: str) -> HiddenStates:
    """Load the model with as many threads as `OMP_NUM_THREADS` says."""
    import ctranslate2

    encoder = ctranslate2.Encoder(
        str(folder),
        device="cpu",
        compute_type="int8" if precision == "int8" else "float32",
        inter_threads=1,
        intra_threads=int(os.environ["OMP_NUM_THREADS"]),
    )

    def states(ids: list[list[int]]) -> FloatArray:
        return np.asarray(encoder.forward_batch(ids).last_hidden_state)

    return HiddenStates(folder, states)


def _specification(checkpoint: Checkpoint, backbone: Backbone) -> Spec:
    """Return the specification of an encoder of the BERT family, with its weights."""
    from ctranslate2.specs import common_spec, transformer_spec

    activations = common_spec.Activation
    encoder = transformer_spec.TransformerEncoderSpec(
        backbone.layers,
        backbone.heads,
        pre_norm=False,
        activation={
            "gelu": activations.GELU,
            "gelu_tanh": activations.GELUTanh,
            "relu": activations.RELU,
        }[backbone.activation],
        layernorm_embedding=True,
        num_source_embeddings=2,
        embeddings_merge=common_spec.EmbeddingsMerge.ADD,
    )
    encoder.scale_embeddings = False
    spec = transformer_spec.TransformerEncoderModelSpec(encoder, pooling_layer=False)
    tables = backbone.tensors
    encoder.embeddings[0].weight = _array(tables["embeddings.word_embeddings.weight"])
    encoder.embeddings[1].weight = _array(tables["embeddings.token_type_embeddings.weight"])
    # RoBERTa's first rows are never used: it counts from the padding's id on.
    first = 0 if checkpoint.positions_start_at_zero else checkpoint.pad_id + 1
    positions = _array(tables["embeddings.position_embeddings.weight"])
    encoder.position_encodings.encodings = positions[first:]
    _set_norm(encoder.layernorm_embedding, backbone, "embeddings.LayerNorm")
    for number, layer in enumerate(encoder.layer):
        _set_layer(layer, backbone, f"encoder.layer.{number}.")
    return spec


def _set_layer(layer: Spec, backbone: Backbone, prefix: str) -> None:
    attention, ffn = layer.self_attention, layer.ffn
    products = [f"{prefix}attention.self.{name}" for name in ("query", "key", "value")]
    _set_linear(attention.linear[0], backbone, *products)
    _set_linear(attention.linear[1], backbone, f"{prefix}attention.output.dense")
    _set_norm(attention.layer_norm, backbone, f"{prefix}attention.output.LayerNorm")
    _set_linear(ffn.linear_0, backbone, f"{prefix}intermediate.dense")
    _set_linear(ffn.linear_1, backbone, f"{prefix}output.dense")
    _set_norm(ffn.layer_norm, backbone, f"{prefix}output.LayerNorm")


def _set_linear(linear: Spec, backbone: Backbone, *names: str) -> None:
    weight, bias = backbone.linear(*names)
    linear.weight, linear.bias = _array(weight), _array(bias)


def _set_norm(norm: Spec, backbone: Backbone, name: str) -> None:
    norm.gamma = _array(backbone.tensors[f"{name}.weight"])
    norm.beta = _array(backbone.tensors[f"{name}.bias"])


def _array(tensor: Any) -> FloatArray:
    """Return a torch tensor's values, float32."""
    return np.asarray(tensor.float().numpy())
