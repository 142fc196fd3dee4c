"""The engines that are measured on a GPU: ours, FlagEmbedding and sentence-transformers.

What lives here: how each loads its model, and embeds texts in batches of a size. What does not:
measuring (`gpu`). Each library is imported where its model is loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unified_embeddings.types import FloatArray

_LIMIT = 8192
"""Tokens at which every engine cuts a text."""


class Vectors(NamedTuple):
    """What an engine gave: dense vectors (n, d), and the weight of each token if it gives these."""

    dense: FloatArray
    sparse: list[dict[int, float]] | None = None


@dataclass(frozen=True)
class GpuPeer:
    """One engine, which is one row of every table.

    Attributes:
        name: Its name for `--engines`.
        label: Its name in tables.
        module: The module that must be importable.
        gives: What it returns, in words.
        unit: What its batch size counts, "texts" or "tokens".
        default: The batch size that it has by default.
        sizes: The batch sizes that are tried.
        load: Load the model of a folder onto a device, in a precision.
        documents: Embed documents with a loaded model, at a batch size.
        queries: Embed queries.
        vectors: Turn what `documents` returned into vectors.
        needs_gpu: Whether it does not run on a CPU.
    """

    name: str
    label: str
    module: str
    gives: str
    unit: str
    default: int
    sizes: tuple[int, ...]
    load: Callable[[Path, str], Any]
    documents: Callable[[Any, Sequence[str], int], Any]
    queries: Callable[[Any, Sequence[str]], Any]
    vectors: Callable[[Any], Vectors]
    needs_gpu: bool = False

    def missing(self, device: str) -> str | None:
        """Return the reason why it cannot run here; None if no reason is known."""
        if importlib.util.find_spec(self.module) is None:
            return f"no module {self.module} is installed"
        if self.needs_gpu and device == "cpu":
            return "it needs a GPU"
        return None


_FLAG_DEFAULT = 256
_TOKENS = (4096, 16_384, 65_536)
_TEXTS = (32, 128, 256, 512)


def _ours(precision: str, *, colbert: bool = False) -> GpuPeer:
    def load(folder: Path, device: str) -> Any:
        from unified_embeddings import BGE_M3_Embedder

        embedders = {}
        for batch_tokens in _TOKENS:
            embedders[batch_tokens] = BGE_M3_Embedder(
                folder,
                engine="torch",
                precision="fp32" if device == "cpu" else precision,
                device=device,
                batch_tokens=batch_tokens,
                cache=None,
                local_files_only=True,
            )
        return embedders

    def documents(model: Any, texts: Sequence[str], size: int) -> Any:
        return model[size].encode_documents(texts, colbert=colbert)

    def queries(model: Any, texts: Sequence[str]) -> Any:
        return model[_TOKENS[0]].encode_queries(texts, colbert=colbert)

    def vectors(result: Any) -> Vectors:
        return Vectors(result.dense, [dict(vector) for vector in result.sparse])

    return GpuPeer(
        name=f"ours-{precision}" + ("-colbert" if colbert else ""),
        label=f"ours, {precision}" + (", with ColBERT" if colbert else ""),
        module="torch",
        gives="dense, sparse, ColBERT" if colbert else "dense, sparse",
        unit="tokens",
        default=_TOKENS[0],
        sizes=_TOKENS,
        load=load,
        documents=documents,
        queries=queries,
        vectors=vectors,
    )


def _flag_embedding() -> GpuPeer:
    def load(folder: Path, device: str) -> Any:
        from FlagEmbedding import BGEM3FlagModel

        return BGEM3FlagModel(str(folder), use_fp16=device != "cpu", devices=device)

    def documents(model: Any, texts: Sequence[str], size: int) -> Any:
        return model.encode(
            list(texts), batch_size=size, max_length=_LIMIT, return_dense=True, return_sparse=True
        )

    def queries(model: Any, texts: Sequence[str]) -> Any:
        return documents(model, texts, _FLAG_DEFAULT)

    def vectors(result: Any) -> Vectors:
        sparse = []
        for weights in result["lexical_weights"]:
            sparse.append({int(token): float(weight) for token, weight in weights.items()})
        return Vectors(np.asarray(result["dense_vecs"], dtype=np.float32), sparse)

    return GpuPeer(
        name="FlagEmbedding-fp16",
        label="FlagEmbedding, fp16",
        module="FlagEmbedding",
        gives="dense, sparse",
        unit="texts",
        default=_FLAG_DEFAULT,
        sizes=_TEXTS,
        load=load,
        documents=documents,
        queries=queries,
        vectors=vectors,
    )


def _sentence_transformers(precision: str, attention: str) -> GpuPeer:
    def load(folder: Path, device: str) -> Any:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        if attention == "flash_attention_2":
            import lent_flash

            lent_flash.lend()
        dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
        dtype = torch.float32 if device == "cpu" else dtypes[precision]
        backbone = Transformer(
            str(folder), model_kwargs={"dtype": dtype, "attn_implementation": attention}
        )
        backbone.max_seq_length = _LIMIT
        pooling = Pooling(backbone.get_embedding_dimension(), "cls")
        return SentenceTransformer(modules=[backbone, pooling], device=device)

    def documents(model: Any, texts: Sequence[str], size: int) -> Any:
        return model.encode(
            list(texts), batch_size=size, normalize_embeddings=True, show_progress_bar=False
        )

    def queries(model: Any, texts: Sequence[str]) -> Any:
        return documents(model, texts, len(texts))

    def vectors(result: Any) -> Vectors:
        return Vectors(np.asarray(result, dtype=np.float32))

    is_flash = attention == "flash_attention_2"
    words = "flash attention" if is_flash else "SDPA"
    return GpuPeer(
        name=f"sentence-transformers-{precision}-{'flash' if is_flash else attention}",
        label=f"sentence-transformers, {precision}, {words}",
        module="sentence_transformers",
        gives="dense",
        unit="texts",
        default=32,
        sizes=_TEXTS,
        load=load,
        documents=documents,
        queries=queries,
        vectors=vectors,
        needs_gpu=is_flash,
    )


_ALL = (
    _ours("fp16"),
    _ours("bf16"),
    _ours("fp16", colbert=True),
    _flag_embedding(),
    _sentence_transformers("fp16", "sdpa"),
    _sentence_transformers("fp16", "flash_attention_2"),
    _sentence_transformers("bf16", "flash_attention_2"),
)
GPU_PEERS = {peer.name: peer for peer in _ALL}


def choose(words: Sequence[str]) -> dict[str, GpuPeer]:
    """Return the engines whose names contain one of the words; without words, all.

    Raises:
        ValueError: If no name contains one of the words.
    """
    for word in words:
        if not any(word.lower() in name.lower() for name in GPU_PEERS):
            raise ValueError(
                f"no engine's name contains {word!r}; there are: {', '.join(GPU_PEERS)}"
            )
    chosen = {}
    for name, peer in GPU_PEERS.items():
        if not words or any(word.lower() in name.lower() for word in words):
            chosen[name] = peer
    return chosen


def reference_vectors(folder: Path, texts: Sequence[str]) -> Vectors:
    """Return the vectors that the others are compared with: in fp32 on the CPU."""
    from unified_embeddings import BGE_M3_Embedder

    with BGE_M3_Embedder(
        folder, engine="torch", precision="fp32", device="cpu", cache=None, local_files_only=True
    ) as embedder:
        result = embedder.encode_documents(texts)
    assert result.dense is not None
    return Vectors(result.dense, [dict(vector) for vector in result.sparse or ()])
