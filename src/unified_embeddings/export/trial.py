"""Random tokens on their way through a model, in fp32.

What lives here: what a layer's products are multiplied with, in the distribution that the model
itself gives it. What does not: what is made of it (`quantisation`), and the graph (`graph`).

Rounding a weight well takes knowledge of which of its inputs go together. That is a property of the
model far more than of the texts: random tokens show most of it, in no language more than in any
other. So an export needs no sample texts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from unified_embeddings.export.reading import read_array, read_linear
from unified_embeddings.models.weights import (
    POSITION_TABLE,
    TYPE_TABLE,
    VOCABULARY_TABLE,
    Backbone,
)
from unified_embeddings.types import FloatArray

_TEXTS = 64
_TOKENS = 32
"""Tokens of a text. Their number in all should be larger than a model's width."""


class LayerInputs(NamedTuple):
    """What a layer's products are multiplied with, for each token.

    Attributes:
        states: For queries, keys and values: the states without their shift, (n, d).
        context: For attention's output: the context without the values' bias, (n, d).
        normalised: For the wide product: the states after attention without their shift, (n, d).
        activated: For the narrow product: what the activation gives, (n, width of the activation).
    """

    states: FloatArray
    context: FloatArray
    normalised: FloatArray
    activated: FloatArray


class Trial:
    """Random tokens, run through a model layer by layer.

    Args:
        backbone: The model's weights.
        first_position: Position of a text's first token.
    """

    def __init__(self, backbone: Backbone, first_position: int) -> None:
        self._backbone = backbone
        words = read_array(backbone, VOCABULARY_TABLE)
        positions = read_array(backbone, POSITION_TABLE)[first_position:][:_TOKENS]
        token_ids = np.random.default_rng(0).integers(len(words), size=(_TEXTS, len(positions)))
        self._shape = token_ids.shape
        states = words[token_ids] + positions + read_array(backbone, TYPE_TABLE)[0]
        self._states = states.reshape(-1, backbone.width)
        self._shift = np.zeros(backbone.width, dtype=np.float32)
        self._normalise("embeddings.LayerNorm")

    def run_layer(self, number: int) -> LayerInputs:
        """Run the next layer, and return what its products are multiplied with."""
        prefix = f"encoder.layer.{number}"
        states = self._states
        context, value_bias = self._attend(f"{prefix}.attention.self")
        weight, bias = read_linear(self._backbone, f"{prefix}.attention.output.dense")
        self._states = context @ weight.T + (states + (bias + weight @ value_bias + self._shift))
        self._normalise(f"{prefix}.attention.output.LayerNorm")
        normalised = self._states
        weight, bias = read_linear(self._backbone, f"{prefix}.intermediate.dense")
        activated = self._activate(normalised @ weight.T + (bias + weight @ self._shift))
        weight, bias = read_linear(self._backbone, f"{prefix}.output.dense")
        self._states = activated @ weight.T + (normalised + (bias + self._shift))
        self._normalise(f"{prefix}.output.LayerNorm")
        return LayerInputs(states, context, normalised, activated)

    def _normalise(self, tensor: str) -> None:
        """Normalise the states, and keep their shift apart, as the graph does."""
        states = self._states - self._states.mean(axis=1, keepdims=True)
        variance = np.square(states).mean(axis=1, keepdims=True)
        scale = read_array(self._backbone, f"{tensor}.weight")
        self._states = states / np.sqrt(variance + self._backbone.epsilon) * scale
        self._shift = read_array(self._backbone, f"{tensor}.bias")

    def _attend(self, prefix: str) -> tuple[FloatArray, FloatArray]:
        """Return the context without the values' bias (n, d), and that bias (d,)."""
        heads = []
        for kind in ("query", "key", "value"):
            weight, bias = read_linear(self._backbone, f"{prefix}.{kind}")
            bias = bias + weight @ self._shift
            product = self._states @ weight.T
            if kind != "value":
                product += bias
            shape = (*self._shape, self._backbone.heads, -1)
            heads.append(product.reshape(shape).transpose(0, 2, 1, 3))
        query, key, value = heads
        scores = query @ key.swapaxes(2, 3) / np.float32(math.sqrt(query.shape[-1]))
        scores = np.exp(scores - scores.max(axis=3, keepdims=True))
        context = (scores / scores.sum(axis=3, keepdims=True)) @ value
        return context.transpose(0, 2, 1, 3).reshape(self._states.shape), bias

    def _activate(self, x: FloatArray) -> FloatArray:
        if self._backbone.activation == "relu":
            return np.maximum(x, 0)
        # GELU by its usual approximation, which is close enough to round by.
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
        return np.asarray(x / 2 * (1 + np.tanh(inner)), dtype=np.float32)
