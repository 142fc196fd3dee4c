"""Who is measured: ours in every engine and precision, and the others.

A table: name → how a model is loaded, fed documents and asked a query. Nothing heavy is imported
here: each library is, where its model is loaded.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLAG_BATCH = 12
"""What FlagEmbedding's documentation takes for 8,192 tokens; its default is 256."""


@dataclass(frozen=True)
class Peer:
    """One row of every table.

    Attributes:
        name: As `--engines` knows it.
        label: As tables and plots show it.
        library: The distribution it belongs to.
        module: What must be importable.
        precision: "fp32", "bf16" or "int8".
        load: Checkpoint or prepared folder → model.
        documents: Embed many texts.
        query: Embed one.
        make: Writes the files it needs; None if it reads the checkpoint itself.
        made_from: The peer whose files they are made from; "" for the checkpoint.
        process: Peers of one process share a loaded model.
        note: What a reader must know to compare it.
        standard: Whether it is measured unless others are asked for.
    """

    name: str
    label: str
    library: str
    module: str
    precision: str
    load: Callable[[Path], Any]
    documents: Callable[[Any, list[str]], object]
    query: Callable[[Any, str], object]
    make: Callable[[Path, Path], object] | None = None
    made_from: str = ""
    process: str = ""
    note: str = ""
    standard: bool = True

    @property
    def ours(self) -> bool:
        """Whether it is this project's."""
        return self.library == "unified-embeddings"

    def missing(self, *, has_amx: bool, slow: bool) -> str | None:
        """What keeps it from running here; None if nothing is known to."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.library} is not installed here (no module {self.module})"
        if self.precision == "bf16" and not has_amx and not slow:
            return "this CPU has no amx_bf16, without which bf16 takes minutes; --slow measures it"
        return None


def _ours(engine: str, precision: str, *, standard: bool = True) -> Peer:
    def load(folder: Path) -> Any:
        from unified_embeddings import BGE_M3_Embedder

        return BGE_M3_Embedder(
            folder, engine=engine, precision=precision, cache=None, local_files_only=True
        )

    def export(source: Path, target: Path) -> None:
        from unified_embeddings.export.folder import export_onnx

        export_onnx(source, target, precision=precision)  # type: ignore[arg-type]

    modules = {"onnx": "onnxruntime", "flag": "FlagEmbedding", "sentence": "sentence_transformers"}
    return Peer(
        name=f"ours-{engine}-{precision}",
        label=f"ours, {engine} {precision}",
        library="unified-embeddings",
        module=modules.get(engine, "torch"),
        precision=precision,
        load=load,
        documents=lambda model, texts: model.encode_documents(texts),
        query=lambda model, text: model.encode_query(text),
        make=export if engine == "onnx" else None,
        process=f"ours-{engine}-{precision}",
        standard=standard,
    )


def _flag_embedding() -> Peer:
    def load(folder: Path) -> Any:
        from FlagEmbedding import BGEM3FlagModel

        # use_fp16 rounds the weights on a CPU; "cpu", since it takes all GPUs by default.
        return BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu", batch_size=FLAG_BATCH)

    def encode(model: Any, texts: list[str]) -> object:
        length = model.model.model.config.max_position_embeddings - 2
        return model.encode(texts, max_length=length, return_dense=True, return_sparse=True)

    return Peer(
        name="FlagEmbedding-fp32",
        label="FlagEmbedding fp32",
        library="FlagEmbedding",
        module="FlagEmbedding",
        precision="fp32",
        load=load,
        documents=encode,
        query=lambda model, text: encode(model, [text]),
        process="FlagEmbedding-fp32",
        note=f"batches of {FLAG_BATCH}",
    )


def _sentence_transformers(precision: str, batch: int) -> Peer:
    def load(folder: Path) -> Any:
        import torch
        from sentence_transformers import SentenceTransformer

        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": kind})
        transformer: Any = model[0]
        model.max_seq_length = transformer.auto_model.config.max_position_embeddings - 2
        return model

    def encode(model: Any, texts: list[str]) -> object:
        return model.encode(
            texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False
        )

    return Peer(
        name=f"sentence-transformers-{precision}-{batch}",
        label=f"sentence-transformers {precision}, batch {batch}",
        library="sentence-transformers",
        module="sentence_transformers",
        precision=precision,
        load=load,
        documents=encode,
        query=lambda model, text: encode(model, [text]),
        process=f"sentence-transformers-{precision}",
        note="dense vectors only",
    )


def _bge_m3_lite(precision: str) -> Peer:
    def load(folder: Path) -> Any:
        from bge_m3_lite import BGEM3Embedder, hub

        # It takes files of the published checkpoint's digests alone; these are of another.
        hub.ensure_files = lambda files, *_, **__: {one.name: folder / one.name for one in files}
        threads = int(os.environ["OMP_NUM_THREADS"])
        return BGEM3Embedder(folder, precision=precision, num_threads=threads)

    def make(source: Path, target: Path) -> None:
        import lite

        (lite.prepare if precision == "fp32" else lite.quantise)(source, target)

    return Peer(
        name=f"bge-m3-lite-{precision}",
        label=f"bge-m3-lite {precision}",
        library="bge-m3-lite",
        module="bge_m3_lite",
        precision=precision,
        load=load,
        documents=lambda model, texts: model.encode(texts, return_sparse=True),
        query=lambda model, text: model.encode([text], return_sparse=True),
        make=make,
        made_from="" if precision == "fp32" else "bge-m3-lite-fp32",
        process=f"bge-m3-lite-{precision}",
        note="its own tokenizer, fused graph and quantiser, on files made from the checkpoint",
    )


PEERS = {
    peer.name: peer
    for peer in (
        _ours("torch", "bf16"),
        _ours("torch", "fp32"),
        _ours("onnx", "int8"),
        _ours("onnx", "fp32"),
        _ours("flag", "fp32", standard=False),
        _ours("sentence", "fp32", standard=False),
        _ours("sentence", "bf16", standard=False),
        _flag_embedding(),
        _sentence_transformers("fp32", 8),
        _sentence_transformers("fp32", 32),
        _sentence_transformers("bf16", 8),
        _sentence_transformers("bf16", 32),
        _bge_m3_lite("fp32"),
        _bge_m3_lite("int8"),
    )
}
REFERENCE = "FlagEmbedding-fp32"


def chosen(words: list[str]) -> list[Peer]:
    """The peers whose names hold one of the words, "all" of them, or the standard ones.

    Raises:
        ValueError: If a word fits none.
    """
    if words == ["all"]:
        return list(PEERS.values())
    for word in words:
        if not any(word.lower() in name.lower() for name in PEERS):
            raise ValueError(f"no engine's name holds {word!r}; there are: {', '.join(PEERS)}")
    return [
        peer
        for peer in PEERS.values()
        if (any(word.lower() in peer.name.lower() for word in words) if words else peer.standard)
    ]
