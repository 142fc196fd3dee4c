"""BGE-M3 on OpenVINO: converted from transformers' model, in int8 with NNCF, and running it.

The model's output is the token states, as of an export for feature extraction; the heads are in
`hidden_states`.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hidden_states import HiddenStates, read_tokenizer, write_heads
from texts import Words
from unified_embeddings.types import FloatArray

Ids = dict[str, NDArray[np.int64]]
"""The inputs of the model: token ids and their mask, (texts, longest)."""

_FILE = "openvino_model.xml"
_SAMPLES = 48
"""Texts that its ranges are calibrated with."""
_SAMPLE_TOKENS = 96


def convert(source: Path, target: Path) -> None:
    """Write the fp32 model and the heads into `target`, atomically."""
    import openvino
    import torch
    from transformers import AutoModel

    from unified_embeddings.models.resolve import resolve

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone: Any = AutoModel.from_pretrained(
                source, add_pooling_layer=False, attn_implementation="sdpa", dtype=torch.float32
            )

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            output = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
            states: torch.Tensor = output.last_hidden_state
            return states

    ids = torch.full((2, 6), 5, dtype=torch.long)
    shape = openvino.PartialShape([-1, -1])
    with torch.inference_mode():
        model = openvino.convert_model(
            States().eval(),
            example_input={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            input={"input_ids": shape, "attention_mask": shape},
        )
    unfinished = target.with_name(f"{target.name}.part")
    unfinished.mkdir(parents=True)
    openvino.save_model(model, unfinished / _FILE, compress_to_fp16=False)
    write_heads(resolve(source, local_files_only=True), unfinished)
    unfinished.replace(target)


def quantise(source: Path, target: Path) -> None:
    """Write the int8 model into `target` from the fp32 model's folder, atomically.

    Weights and activations are quantised after training, as NNCF does it for a transformer:
    activations of a product are smoothed, then have one range each, found over sample texts.
    """
    import nncf
    import openvino

    tokenizer = read_tokenizer(source)
    words, rng = Words(source, _SAMPLE_TOKENS), random.Random(0)

    def inputs(text: str) -> Ids:
        return _pad([tokenizer.encode(text).ids])

    texts = [words.text(rng, _SAMPLE_TOKENS) for _ in range(_SAMPLES)]
    model = nncf.quantize(
        openvino.Core().read_model(source / _FILE),
        nncf.Dataset(texts, inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=_SAMPLES,
    )
    unfinished = target.with_name(f"{target.name}.part")
    shutil.copytree(source, unfinished, ignore=shutil.ignore_patterns("openvino_model.*"))
    openvino.save_model(model, unfinished / _FILE, compress_to_fp16=False)
    unfinished.replace(target)


def load(folder: Path) -> HiddenStates:
    """Load the model for one request at a time, on as many threads as `OMP_NUM_THREADS` says.

    Without the hint on precision, it would compute in bf16 where the processor has it.
    """
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": int(os.environ["OMP_NUM_THREADS"]),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(folder / _FILE, "CPU", options).create_infer_request()

    def states(ids: list[list[int]]) -> FloatArray:
        request.infer(_pad(ids))
        found: FloatArray = request.get_output_tensor(0).data
        return found

    return HiddenStates(folder, states)


def _pad(ids: list[list[int]]) -> Ids:
    """Return the token ids of some texts and their mask, (texts, longest)."""
    longest = max(map(len, ids))
    padded = np.zeros((len(ids), longest), np.int64)
    mask = np.zeros_like(padded)
    for row, text in enumerate(ids):
        padded[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {"input_ids": padded, "attention_mask": mask}
