"""A model's weights as NumPy arrays, for what is computed with them when the model is exported."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from unified_embeddings.models.weights import Backbone
from unified_embeddings.types import FloatArray

Linear: TypeAlias = tuple[FloatArray, FloatArray]
"""Weight (rows, columns) and bias (rows,)."""


def read_array(backbone: Backbone, name: str) -> FloatArray:
    """Return a tensor as float32."""
    return np.asarray(backbone.tensors[name].float().numpy())


def read_linear(backbone: Backbone, name: str) -> Linear:
    """Return a linear layer's weight and bias as float32."""
    weight, bias = backbone.linear(name)
    return weight.float().numpy(), bias.float().numpy()
