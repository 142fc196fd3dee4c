"""A checkpoint in bge-m3-lite's layout: the files it would download, made from any BGE-M3.

Its own functions fuse and quantise. Made here are only what comes before: the ONNX file with token
states as its output, and a SentencePiece file with the pieces of tokenizer.json.
"""

from __future__ import annotations

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
_UNKNOWN, _CONTROL = 2, 3  # kinds of pieces in SentencePiece's format


def prepare(source: Path, target: Path) -> None:
    """Write the files of fp32 into `target`, whole or not at all.

    Raises:
        ValueError: If bge-m3-lite cannot run the checkpoint.
    """
    config = json.loads((source / "config.json").read_text("utf-8"))
    if any(config.get(key) != value for key, value in _SIZE.items()):
        raise ValueError("bge-m3-lite runs BGE-M3's own size alone (24 layers, 1,024 wide)")
    from bge_m3_lite.fuse import fuse

    made = _begun(source, target)
    _write_tokenizer(source, made / _SPM)
    _export(source, made)
    fuse(made / "model.onnx")
    made.replace(target)


def quantise(source: Path, target: Path) -> None:
    """Write the files of int8 into `target` from those of fp32, whole or not at all."""
    from bge_m3_lite.quantize import quantize

    made = _begun(source, target)
    shutil.copyfile(source / _SPM, made / _SPM)
    quantize(
        source / "model_fused.onnx",
        made / "model_int8.onnx",
        # Its recipe with few samples: they move values, and neither speed nor memory.
        calibration_texts=[_SAMPLE] * 8,
        tokenizer_path=made / _SPM,
    )
    made.replace(target)


def _begun(source: Path, target: Path) -> Path:
    """A folder beside the target with the heads' files."""
    made = target.with_name(f"{target.name}.part")
    made.mkdir(parents=True)
    for name in _HEADS:
        shutil.copyfile(source / name, made / name)
    return made


def _export(source: Path, made: Path) -> None:
    """`model.onnx` and its weights, as the hub has them: ids and mask in, token states out."""
    import onnx
    import torch
    from transformers import XLMRobertaModel

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone: Any = XLMRobertaModel.from_pretrained(
                source,
                add_pooling_layer=False,
                attn_implementation="eager",  # the fusions know no other
                dtype=torch.float32,
            )

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            found = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
            states: torch.Tensor = found.last_hidden_state
            return states

    ids = torch.full((2, 6), 5, dtype=torch.long)
    names = ["input_ids", "attention_mask", "token_embeddings"]
    with tempfile.TemporaryDirectory(dir=made) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
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
            made / "model.onnx",
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location="model.onnx_data",
        )


def _write_tokenizer(source: Path, target: Path) -> None:
    """The checkpoint's own SentencePiece file, or one of the same pieces, ids and scores."""
    if (source / _SPM).is_file():
        shutil.copyfile(source / _SPM, target)
        return
    from bge_m3_lite.tokenizer import XLMRobertaTokenizer
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Tokenizer

    model = json.loads((source / "tokenizer.json").read_text("utf-8"))["model"]
    if model.get("type") != "Unigram":
        raise ValueError("bge-m3-lite reads Unigram tokenizers alone")
    spm: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for piece, kind in (("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)):
        spm.pieces.add(piece=piece, score=0.0, type=kind)
    for piece, score in model["vocab"][4:]:  # after <s>, <pad>, </s> and <unk>
        spm.pieces.add(piece=piece, score=score)
    spm.trainer_spec.model_type = 1  # Unigram
    target.write_bytes(spm.SerializeToString())
    expected = Tokenizer.from_file(str(source / "tokenizer.json")).encode(_SAMPLE).ids
    if XLMRobertaTokenizer.from_file(target).encode(_SAMPLE) != expected:
        raise ValueError("bge-m3-lite splits a text into other tokens than the checkpoint does")
