"""The engines that are measured: ours in every precision, and the other libraries.

What lives here: a table that says for each engine how its model is loaded, fed with documents and
asked a query. What does not: heavy imports. Each library is imported where its model is loaded, so
that a process pays for one library only.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Model = Any
"""A loaded model: each library has a type of its own, which only its functions below know."""
Answer = Any
"""What a library returns for texts, of a type of its own as well."""


@dataclass(frozen=True)
class Peer:
    """One engine, which is one row of every table.

    Attributes:
        name: Its name for `--engines`.
        label: Its name in tables and plots.
        library: The distribution it belongs to.
        modules: The modules that must be importable.
        install: What pip installs to have them.
        precision: "fp32", "bf16" or "int8".
        load: Load the model from the checkpoint or from the folder that `make` wrote.
        documents: Embed many texts, given a batch size (None for an engine without one).
        query: Embed one text.
        dense: Take the dense vectors, one row per text, from what `documents` returned.
        batch_size: Texts per batch that the library uses by default; None if it has no such
            setting, as ours, which fills batches by tokens.
        make: Write the files that it needs; None if it reads the checkpoint itself.
        made_by: Name of the module here with the code that writes them; "" for ours.
        made_from: Name of the peer from whose files they are made; "" for the checkpoint.
        note: What a reader must know to compare it.
        standard: Whether it is measured unless others are requested.
    """

    name: str
    label: str
    library: str
    modules: tuple[str, ...]
    install: str
    precision: str
    load: Callable[[Path], Model]
    documents: Callable[[Model, list[str], int | None], Answer]
    query: Callable[[Model, str], object]
    dense: Callable[[Answer], Sequence[Sequence[float]]]
    batch_size: int | None = None
    make: Callable[[Path, Path], object] | None = None
    made_by: str = ""
    made_from: str = ""
    note: str = ""
    standard: bool = True

    @property
    def is_ours(self) -> bool:
        """Whether it belongs to this project."""
        return self.library == "unified-embeddings"

    def missing(self, *, has_amx: bool, slow: bool) -> str | None:
        """Return the reason why it cannot run here; None if no reason is known."""
        absent = [name for name in self.modules if importlib.util.find_spec(name) is None]
        if absent:
            return f"no module {', '.join(absent)} here; pip install {self.install}"
        if self.precision == "bf16" and not has_amx and not slow:
            return "this CPU has no amx_bf16, without which bf16 takes minutes; --slow measures it"
        return None


def _ours(engine: str, precision: str, *, standard: bool = True) -> Peer:
    def load(folder: Path) -> Model:
        from unified_embeddings import BGE_M3_Embedder

        # Like all the others: by itself the engine `torch` would take a GPU.
        return BGE_M3_Embedder(
            folder,
            engine=engine,
            precision=precision,
            device="cpu",
            cache=None,
            local_files_only=True,
        )

    def documents(model: Model, texts: list[str], _: int | None) -> Answer:
        return model.encode_documents(texts)

    def query(model: Model, text: str) -> object:
        return model.encode_query(text)

    def export(source: Path, target: Path) -> None:
        from unified_embeddings.export.folder import export_onnx

        export_onnx(source, target, precision=precision)  # type: ignore[arg-type]

    modules = {"onnx": "onnxruntime", "flag": "FlagEmbedding", "sentence": "sentence_transformers"}
    return Peer(
        name=f"ours-{engine}-{precision}",
        label=f"ours, {engine} {precision}",
        library="unified-embeddings",
        modules=(modules.get(engine, "torch"),),
        install="'unified-embeddings[onnx]'" if engine == "onnx" else "unified-embeddings",
        precision=precision,
        load=load,
        documents=documents,
        query=query,
        dense=lambda answer: answer.dense,
        make=export if engine == "onnx" else None,
        standard=standard,
    )


def _flag_embedding() -> Peer:
    def load(folder: Path) -> Model:
        from FlagEmbedding import BGEM3FlagModel

        # use_fp16 would round the weights on a CPU; by default it would take all GPUs.
        return BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu")

    def documents(model: Model, texts: list[str], batch_size: int | None) -> Answer:
        length = model.model.model.config.max_position_embeddings - 2
        return model.encode(
            texts,
            batch_size=batch_size,
            max_length=length,
            return_dense=True,
            return_sparse=True,
        )

    def query(model: Model, text: str) -> object:
        return documents(model, [text], 1)

    return Peer(
        name="FlagEmbedding-fp32",
        label="FlagEmbedding fp32",
        library="FlagEmbedding",
        modules=("FlagEmbedding",),
        install="FlagEmbedding",
        precision="fp32",
        load=load,
        documents=documents,
        query=query,
        dense=lambda answer: answer["dense_vecs"],
        batch_size=12,
        note="default batch size: the 12 of its documentation of BGE-M3; its API's default is 256",
    )


def _sentence_transformers(precision: str) -> Peer:
    def load(folder: Path) -> Model:
        import torch
        from sentence_transformers import SentenceTransformer

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
        transformer: Any = model[0]  # typed as a plain torch module
        model.max_seq_length = transformer.auto_model.config.max_position_embeddings - 2
        return model

    def documents(model: Model, texts: list[str], batch_size: int | None) -> Answer:
        return model.encode(
            texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
        )

    def query(model: Model, text: str) -> object:
        return documents(model, [text], 1)

    return Peer(
        name=f"sentence-transformers-{precision}",
        label=f"sentence-transformers {precision}",
        library="sentence-transformers",
        modules=("sentence_transformers",),
        install="sentence-transformers",
        precision=precision,
        load=load,
        documents=documents,
        query=query,
        dense=lambda answer: answer,
        batch_size=32,
        note="dense vectors only",
    )


def _bge_m3_lite(precision: str) -> Peer:
    def load(folder: Path) -> Model:
        from bge_m3_lite import BGEM3Embedder, hub

        # It accepts files with the published checkpoint's digests only. These are of another
        # checkpoint, so the function that checks them is replaced.
        hub.ensure_files = lambda files, *_, **__: {file.name: folder / file.name for file in files}
        threads = int(os.environ["OMP_NUM_THREADS"])
        return BGEM3Embedder(folder, precision=precision, num_threads=threads)

    def documents(model: Model, texts: list[str], batch_size: int | None) -> Answer:
        return model.encode(texts, batch_size=batch_size, return_sparse=True)

    def query(model: Model, text: str) -> object:
        return documents(model, [text], 1)

    def make(source: Path, target: Path) -> None:
        import lite

        if precision == "fp32":
            lite.prepare(source, target)
        else:
            lite.quantise(source, target)

    return Peer(
        name=f"bge-m3-lite-{precision}",
        label=f"bge-m3-lite {precision}",
        library="bge-m3-lite",
        modules=("bge_m3_lite", "onnx", "sentencepiece"),
        install="'bge-m3-lite[quant]' sentencepiece",
        precision=precision,
        load=load,
        documents=documents,
        query=query,
        dense=lambda answer: answer["dense_vecs"],
        batch_size=12,
        make=make,
        made_by="lite",
        made_from="" if precision == "fp32" else "bge-m3-lite-fp32",
        note="its own tokenizer, fused graph and quantiser, on files made from the checkpoint",
    )


def _ctranslate2(precision: str) -> Peer:
    def load(folder: Path) -> Model:
        import ct2

        return ct2.load(folder, precision)

    def make(source: Path, target: Path) -> None:
        import ct2

        ct2.convert(source, target, precision)

    return Peer(
        name=f"ctranslate2-{precision}",
        label=f"CTranslate2 {precision}",
        library="ctranslate2",
        modules=("ctranslate2",),
        install="ctranslate2",
        precision=precision,
        load=load,
        documents=lambda model, texts, batch_size: model.encode(texts, batch_size),
        query=lambda model, text: model.encode([text], 1),
        dense=lambda answer: answer.dense,
        batch_size=32,
        make=make,
        made_by="ct2",
        note="states from CTranslate2, heads in NumPy, batches of like lengths; it has no default "
        "batch size, so that of sentence-transformers stands in",
    )


def _openvino(precision: str) -> Peer:
    def load(folder: Path) -> Model:
        import vino

        return vino.load(folder)

    def make(source: Path, target: Path) -> None:
        import vino

        if precision == "fp32":
            vino.convert(source, target)
        else:
            vino.quantise(source, target)

    return Peer(
        name=f"openvino-{precision}",
        label=f"OpenVINO {precision}",
        library="openvino",
        modules=("openvino",) if precision == "fp32" else ("openvino", "nncf"),
        install="openvino" if precision == "fp32" else "openvino nncf",
        precision=precision,
        load=load,
        documents=lambda model, texts, batch_size: model.encode(texts, batch_size),
        query=lambda model, text: model.encode([text], 1),
        dense=lambda answer: answer.dense,
        batch_size=32,
        make=make,
        made_by="vino",
        made_from="" if precision == "fp32" else "openvino-fp32",
        note="states from OpenVINO, heads in NumPy, batches of like lengths; it has no default "
        "batch size, so that of sentence-transformers stands in"
        + ("" if precision == "fp32" else "; weights and activations quantised by NNCF"),
    )


def _llama_cpp() -> Peer:
    def load(folder: Path) -> Model:
        import llamacpp

        return llamacpp.load(folder)

    def documents(model: Model, texts: list[str], batch_size: int | None) -> Answer:
        import llamacpp

        return llamacpp.embed(model, texts, batch_size or 1)

    def make(source: Path, target: Path) -> None:
        import llamacpp

        llamacpp.convert(source, target)

    return Peer(
        name="llama.cpp-q8_0",
        label="llama.cpp Q8_0",
        library="llama-cpp-python",
        modules=("llama_cpp", "gguf"),
        install="llama-cpp-python gguf",
        precision="int8",
        load=load,
        documents=documents,
        query=lambda model, text: documents(model, [text], 1),
        dense=lambda answer: answer,
        batch_size=1,
        make=make,
        made_by="llamacpp",
        note="dense vectors only; built for this machine; the default is one text at a time, as a "
        "server with one slot runs them; it does not pad",
    )


_ALL_PEERS = (
    _ours("torch", "bf16"),
    _ours("torch", "fp32"),
    _ours("onnx", "int8"),
    _ours("onnx", "fp32"),
    _ours("flag", "fp32", standard=False),
    _ours("sentence", "fp32", standard=False),
    _ours("sentence", "bf16", standard=False),
    _flag_embedding(),
    _sentence_transformers("fp32"),
    _sentence_transformers("bf16"),
    _bge_m3_lite("fp32"),
    _bge_m3_lite("int8"),
    _ctranslate2("fp32"),
    _ctranslate2("int8"),
    _openvino("fp32"),
    _openvino("int8"),
    _llama_cpp(),
)
PEERS = {peer.name: peer for peer in _ALL_PEERS}
REFERENCE = "FlagEmbedding-fp32"


def choose_peers(words: list[str]) -> list[Peer]:
    """Return the peers whose names contain one of the words; without words, the standard ones.

    Args:
        words: Parts of names; ["all"] means every peer.

    Raises:
        ValueError: If no name contains one of the words.
    """
    if words == ["all"]:
        return list(PEERS.values())
    if not words:
        return [peer for peer in PEERS.values() if peer.standard]
    chosen_names: set[str] = set()
    for word in words:
        matches = [name for name in PEERS if word.lower() in name.lower()]
        if not matches:
            raise ValueError(f"no engine's name contains {word!r}; there are: {', '.join(PEERS)}")
        chosen_names.update(matches)
    return [peer for name, peer in PEERS.items() if name in chosen_names]
