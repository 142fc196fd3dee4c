"""A checkpoint in bge-m3-lite's layout: the files that it would download, made from any BGE-M3.

Fusing and quantising are done by its own functions. Made here is only what comes before them: the
ONNX file whose output is the token states, and a SentencePiece file with the pieces of
tokenizer.json.
"""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

_SIZE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_SAMPLE = "the quick brown fox jumps over the lazy dog"
_HEADS = ("sparse_linear.pt", "colbert_linear.pt")
_SPM = "sentencepiece.bpe.model"
_UNCHUNKED = "model_unchunked"
_UNKNOWN, _CONTROL = 2, 3
"""Types of pieces in SentencePiece's format (sentencepiece_model.proto)."""
_UNIGRAM = 1
"""Type of model in the same format."""


def prepare(source: Path, target: Path) -> None:
    """Write the fp32 files into `target`, atomically.

    Raises:
        ValueError: If bge-m3-lite cannot run the checkpoint.
    """
    config = json.loads((source / "config.json").read_text("utf-8"))
    if any(config.get(key) != value for key, value in _SIZE.items()):
        raise ValueError("bge-m3-lite runs BGE-M3's own size alone (24 layers, 1,024 wide)")
    from bge_m3_lite.fuse import fuse

    unfinished = _make_unfinished(source, target)
    _write_tokenizer(source, unfinished / _SPM)
    _export(source, unfinished)
    fuse(unfinished / "model.onnx")
    # It leaves 11 GB in reference cycles, which only the collector frees.
    gc.collect()
    fuse(unfinished / "model.onnx", attention_chunk=0, basename=_UNCHUNKED)
    unfinished.replace(target)


def quantise(source: Path, target: Path) -> None:
    """Write the int8 files into `target` from the fp32 files, atomically.

    Its quantiser is given the graph that it would otherwise make first, in the same process and
    with another copy of all weights in memory.
    """
    from bge_m3_lite.quantize import quantize

    unfinished = _make_unfinished(source, target)
    shutil.copyfile(source / _SPM, unfinished / _SPM)
    quantize(
        source / f"{_UNCHUNKED}.onnx",
        unfinished / "model_int8.onnx",
        # Its recipe with few samples. They change values, but neither speed nor memory.
        calibration_texts=[_SAMPLE] * 8,
        tokenizer_path=unfinished / _SPM,
    )
    unfinished.replace(target)


def _make_unfinished(source: Path, target: Path) -> Path:
    """Make a folder next to the target, with the files of the heads in it."""
    folder = target.with_name(f"{target.name}.part")
    folder.mkdir(parents=True)
    for name in _HEADS:
        shutil.copyfile(source / name, folder / name)
    return folder


def _export(source: Path, target: Path) -> None:
    """Write `model.onnx` and its weights as on the hub: ids and mask in, token states out."""
    import onnx
    import torch
    from transformers import XLMRobertaModel

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone: Any = XLMRobertaModel.from_pretrained(
                source,
                add_pooling_layer=False,
                attn_implementation="eager",  # the only one that its fusions recognise
                dtype=torch.float32,
            )

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            output = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
            states: torch.Tensor = output.last_hidden_state
            return states

    ids = torch.full((2, 6), 5, dtype=torch.long)
    names = ["input_ids", "attention_mask", "token_embeddings"]
    with tempfile.TemporaryDirectory(dir=target) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about itself
        traced = Path(scratch) / "traced.onnx"
        with torch.inference_mode():
            torch.onnx.export(
                States().eval(),
                (ids, torch.ones_like(ids)),
                str(traced),
                input_names=names[:2],
                output_names=names[2:],
                dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names},
                opset_version=17,
                dynamo=False,
            )
        onnx.save_model(
            onnx.load(traced),
            target / "model.onnx",
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location="model.onnx_data",
        )


def _write_tokenizer(source: Path, target: Path) -> None:
    """Copy the checkpoint's SentencePiece file, or write one with the same pieces and scores.

    Raises:
        ValueError: If the tokenizer is not Unigram, or splits a sample differently afterwards.
    """
    if (source / _SPM).is_file():
        shutil.copyfile(source / _SPM, target)
        return
    from bge_m3_lite.tokenizer import XLMRobertaTokenizer
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Tokenizer

    model = json.loads((source / "tokenizer.json").read_text("utf-8"))["model"]
    if model.get("type") != "Unigram":
        raise ValueError("bge-m3-lite reads Unigram tokenizers only")
    spm: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for piece, kind in (("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)):
        spm.pieces.add(piece=piece, score=0.0, type=kind)
    for piece, score in model["vocab"][4:]:  # after <s>, <pad>, </s> and <unk>
        spm.pieces.add(piece=piece, score=score)
    spm.trainer_spec.model_type = _UNIGRAM
    target.write_bytes(spm.SerializeToString())
    expected = Tokenizer.from_file(str(source / "tokenizer.json")).encode(_SAMPLE).ids
    if XLMRobertaTokenizer.from_file(target).encode(_SAMPLE) != expected:
        raise ValueError("bge-m3-lite splits a text into other tokens than the checkpoint does")
