"""BGE-M3 on llama.cpp: its GGUF file written from a checkpoint, and running it.

llama.cpp runs encoders of the BERT family under the architecture "bert", with a tokenizer of its
own: "t5" for Unigram and "bert" for WordPiece. It gives dense vectors only.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_embeddings.types import FloatArray

if TYPE_CHECKING:
    from unified_embeddings.models.checkpoint import Checkpoint
    from unified_embeddings.models.weights import Backbone

_FILE = "model.gguf"
_SAMPLE = "the quick brown fox jumps over the lazy dog"
_TABLES = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
}
_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_MOST_TOKENS = 8192
Writer = Any
"""A `gguf.GGUFWriter`."""


def convert(source: Path, target: Path) -> None:
    """Write the model in Q8_0 into the folder `target`, atomically.

    Raises:
        ValueError: If the tokenizer's kind is unknown, or llama.cpp splits a sample differently.
    """
    import gguf

    from unified_embeddings.models.resolve import resolve
    from unified_embeddings.models.weights import read_backbone

    checkpoint = resolve(source, local_files_only=True)
    unfinished = target.with_name(f"{target.name}.part")
    unfinished.mkdir(parents=True)
    writer = gguf.GGUFWriter(str(unfinished / _FILE), "bert")
    backbone = read_backbone(checkpoint)
    _write_sizes(writer, checkpoint, backbone)
    _write_tokenizer(writer, checkpoint)
    _write_tensors(writer, checkpoint, backbone)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _check_tokenizer(source, unfinished)
    unfinished.replace(target)


def load(folder: Path) -> Any:
    """Load the model with as many threads as `OMP_NUM_THREADS` says.

    A text must fit into one physical batch, since its tokens see each other in both directions.
    """
    import llama_cpp

    threads = int(os.environ["OMP_NUM_THREADS"])
    return llama_cpp.Llama(
        str(folder / _FILE),
        embedding=True,
        n_ctx=0,  # the model's own
        n_batch=_MOST_TOKENS,
        n_ubatch=_MOST_TOKENS,
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=True,
        verbose=False,
    )


def embed(model: Any, texts: list[str], batch_size: int) -> FloatArray:
    """Return dense vectors (n, d), `batch_size` texts in each call."""
    vectors: list[list[float]] = []
    for start in range(0, len(texts), batch_size):
        vectors += model.embed(texts[start : start + batch_size], normalize=True)
    return np.asarray(vectors, np.float32)


def _write_sizes(writer: Writer, checkpoint: Checkpoint, backbone: Backbone) -> None:
    import gguf

    pooling = {"cls": gguf.PoolingType.CLS, "mean": gguf.PoolingType.MEAN}[checkpoint.pooling]
    writer.add_name(checkpoint.folder.name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(len(_positions(checkpoint, backbone)))
    writer.add_embedding_length(backbone.width)
    writer.add_feed_forward_length(checkpoint.integer("intermediate_size"))
    writer.add_block_count(backbone.layers)
    writer.add_head_count(backbone.heads)
    writer.add_layer_norm_eps(backbone.epsilon)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)


def _positions(checkpoint: Checkpoint, backbone: Backbone) -> FloatArray:
    """Return the rows of the position table that texts use, in order.

    RoBERTa counts from the padding's id on, so that its first rows are never used.
    """
    first = 0 if checkpoint.positions_start_at_zero else checkpoint.pad_id + 1
    table = backbone.tensors["embeddings.position_embeddings.weight"]
    rows: FloatArray = table.float().numpy()[first:]
    return rows


def _write_tokenizer(writer: Writer, checkpoint: Checkpoint) -> None:
    """Write the tokenizer.

    Raises:
        ValueError: If llama.cpp has no tokenizer of its kind for this architecture.
    """
    import gguf

    content = json.loads((checkpoint.folder / "tokenizer.json").read_text("utf-8"))
    kind = content["model"]["type"]
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    if kind == "Unigram":
        pieces = dict(enumerate(content["model"]["vocab"]))
        tokens = {number: piece for number, (piece, _) in pieces.items()} | added
        scores = {number: score for number, (_, score) in pieces.items()}
        writer.add_tokenizer_model("t5")
        writer.add_add_space_prefix(True)
        writer.add_remove_extra_whitespaces(True)
        if characters := _character_map(content):
            writer.add_precompiled_charsmap(characters)
    elif kind == "WordPiece":
        pieces = {number: piece for piece, number in content["model"]["vocab"].items()}
        tokens = {number: _phantom_space(piece) for number, piece in pieces.items()} | added
        scores = {}
        writer.add_tokenizer_model("bert")
    else:
        raise ValueError(f"llama.cpp runs Unigram and WordPiece tokenizers; this one is {kind}")
    numbers = range(checkpoint.integer("vocab_size"))
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_pre("default")
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in numbers])
    writer.add_token_scores([scores.get(number, -1000.0) for number in numbers])
    writer.add_token_types([control if number in added else normal for number in numbers])
    writer.add_token_type_count(checkpoint.integer("type_vocab_size", default=2))
    _write_special_tokens(writer, checkpoint, {piece: number for number, piece in tokens.items()})


def _write_special_tokens(writer: Writer, checkpoint: Checkpoint, ids: dict[str, int]) -> None:
    """Write the ids that begin and end a text, and those for what is unknown and for padding."""
    roberta = "<s>" in ids
    first, last, unknown = ("<s>", "</s>", "<unk>") if roberta else ("[CLS]", "[SEP]", "[UNK]")
    writer.add_bos_token_id(ids[first])
    writer.add_eos_token_id(ids[last])
    writer.add_sep_token_id(ids[last])
    writer.add_unk_token_id(ids[unknown])
    writer.add_pad_token_id(checkpoint.pad_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def _character_map(content: dict[str, Any]) -> bytes | None:
    """Return SentencePiece's normalisation, which tokenizer.json holds in base64."""
    normalizer = content.get("normalizer") or {}
    for part in [normalizer, *normalizer.get("normalizers", [])]:
        if part.get("type") == "Precompiled":
            return base64.b64decode(part["precompiled_charsmap"])
    return None


def _phantom_space(piece: str) -> str:
    """Mark where a word begins instead of where one goes on, as llama.cpp wants it."""
    if piece.startswith("##"):
        return piece[2:]
    return f"\u2581{piece}"


def _write_tensors(writer: Writer, checkpoint: Checkpoint, backbone: Backbone) -> None:
    """Write matrices in Q8_0, and in fp32 the two small tables, biases and normalisations."""
    for name, tensor in backbone.tensors.items():
        values = tensor.float().numpy()
        target = _target_name(name)
        if target == "position_embd.weight":
            values = _positions(checkpoint, backbone)
        in_q8 = values.ndim == 2 and target not in ("position_embd.weight", "token_types.weight")
        _add_tensor(writer, target, values, in_q8=in_q8)


def _add_tensor(writer: Writer, name: str, values: FloatArray, *, in_q8: bool) -> None:
    import gguf
    from gguf import quants

    kind = gguf.GGMLQuantizationType.Q8_0
    if in_q8:
        writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))


def _target_name(name: str) -> str:
    """Return llama.cpp's name of a tensor of transformers' BertModel."""
    if name in _TABLES:
        return _TABLES[name]
    stem, _, part = name.rpartition(".")
    if stem in _TABLES:
        return f"{_TABLES[stem]}.{part}"
    number, _, place = stem.removeprefix("encoder.layer.").partition(".")
    return f"blk.{number}.{_LAYER[place]}.{part}"


def _check_tokenizer(source: Path, folder: Path) -> None:
    """Raise ValueError if llama.cpp splits a sample into other tokens than the checkpoint does."""
    import llama_cpp
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    vocabulary = llama_cpp.Llama(str(folder / _FILE), vocab_only=True, verbose=False)
    tokens = vocabulary.tokenize(_SAMPLE.encode("utf-8"))
    expected = tokenizer.encode(_SAMPLE).ids
    if tokens != expected:
        raise ValueError(f"llama.cpp splits a text into {tokens}, the checkpoint into {expected}")
