"""`unified-embeddings demo`: the whole path on documents every Python has, offline."""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from unified_embeddings.cli import shared
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.models.catalogue import MINI_M3

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore
    from llama_index.vector_stores.qdrant import QdrantVectorStore

_QUESTIONS = (
    "How do I catch several exceptions at once?",
    "What is the difference between is and ==?",
    "How can a class customise attribute access with __getattr__?",
)
_CHUNK_TOKENS = 200
_DEPTH = 20
"""How deep a passage is looked for in the dense and in the sparse ranking."""


def demo(
    query: Annotated[
        list[str] | None, typer.Option("--query", "-q", help="Ask this instead; repeatable.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Passages a question.")] = 5,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A choice (see models), hub id, folder or TOML file."),
    ] = MINI_M3,
) -> None:
    """Index the Python language reference and ask it questions, by meaning and by words.

    The reference is the one that ships with Python (pydoc_data.topics); the default model ships
    with the extra "demo".
    """
    questions = [shared.require_text(text) for text in query or _QUESTIONS]
    config = UnifiedEmbeddingConfig.from_env(model_choice=model)
    config.configure_settings()
    with tempfile.TemporaryDirectory(
        prefix="unified-embeddings-", ignore_cleanup_errors=True
    ) as folder:
        store = _index_reference(config, folder)
        for question in questions:
            _ask(question, config, store, top_k)
        _through_query_engine(questions[0], config, store, top_k)
        store.client.close()
    stats = config.embedder.stats()
    shared.out.print(
        f"[dim]{stats.texts} texts asked for, {stats.tokenised} tokenised, {stats.forwards} "
        f"forward passes over {stats.tokens} tokens, {stats.cache.hits} vectors from the cache "
        f"({stats.cache.bytes / 2**20:.1f} MiB)[/dim]"
    )


def _index_reference(config: UnifiedEmbeddingConfig, folder: str) -> QdrantVectorStore:
    from pydoc_data.topics import topics

    from llama_index.core import Document, VectorStoreIndex
    from llama_index.core.node_parser import SentenceSplitter

    from unified_embeddings.system.progress import progress_bar

    embedder = config.embedder
    splitter = SentenceSplitter(
        chunk_size=min(_CHUNK_TOKENS, embedder.document_length),
        chunk_overlap=20,
        tokenizer=embedder.tokenise,
    )
    documents = [
        Document(
            text=text,
            metadata={"topic": topic},
            excluded_embed_metadata_keys=["topic"],
            excluded_llm_metadata_keys=["topic"],
        )
        for topic, text in sorted(topics.items())
    ]
    nodes = splitter.get_nodes_from_documents(documents)
    store = config.vector_store("python-reference", path=folder)
    index = VectorStoreIndex.from_vector_store(store)
    shared.out.print(
        f"Indexing {len(documents)} topics of the Python reference, {len(nodes)} passages; about a "
        "minute on two free cores"
    )
    started = time.perf_counter()
    with progress_bar("Indexing", len(nodes), shown=shared.is_terminal()) as advance:
        for start in range(0, len(nodes), 64):
            part = nodes[start : start + 64]
            index.insert_nodes(part)
            advance(len(part))
    seconds = time.perf_counter() - started
    tokens, runtime = embedder.stats().tokens, embedder.models[0].runtime
    shared.out.print(
        f"Embedded by {embedder.model_name} ({runtime.engine}, "
        f"{runtime.precision}, {runtime.device}) and stored in {seconds:.1f} s: "
        f"{tokens / seconds:,.0f} tokens/s"
    )
    return store


def _ask(
    question: str, config: UnifiedEmbeddingConfig, store: QdrantVectorStore, top_k: int
) -> None:
    """The fused ranking, and where each passage stands in the two it is made of."""
    forwards = config.embedder.stats().forwards
    started = time.perf_counter()
    config.embedder.encode_query(question)
    embedded = time.perf_counter()
    fused = config.retriever(store, similarity_top_k=top_k).retrieve(question)
    searched = time.perf_counter()
    modes: tuple[Literal["dense", "sparse"], ...] = ("dense", "sparse")
    places = {
        mode: _ranks(question, config, store, mode)
        for mode in modes
        if mode in config.embedder.heads
    }
    table = Table(title=question, title_justify="left", expand=True)
    for heading in ("fused", "score", *places):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("passage", ratio=1)
    for rank, scored in enumerate(fused, 1):
        node = scored.node
        place = {mode: str(ranks.get(node.node_id, "-")) for mode, ranks in places.items()}
        text = shared.one_line(f"{node.metadata['topic']}: {node.get_content()}", 220)
        table.add_row(str(rank), f"{scored.score:.4f}", *place.values(), text)
    shared.out.print()
    shared.out.print(table, markup=False)
    forwards = config.embedder.stats().forwards - forwards
    shared.out.print(
        f"embedded in {(embedded - started) * 1000:.0f} ms, searched and fused in "
        f"{(searched - embedded) * 1000:.0f} ms; {forwards} forward "
        f"pass{'' if forwards == 1 else 'es'} for {len(places) + 1} searches"
    )


def _ranks(
    question: str,
    config: UnifiedEmbeddingConfig,
    store: QdrantVectorStore,
    mode: Literal["dense", "sparse"],
) -> dict[str, int]:
    """Node id → rank from 1 in one of the two rankings."""
    found: list[NodeWithScore] = config.retriever(
        store, similarity_top_k=_DEPTH, mode=mode
    ).retrieve(question)
    return {scored.node.node_id: rank for rank, scored in enumerate(found, 1)}


def _through_query_engine(
    question: str, config: UnifiedEmbeddingConfig, store: QdrantVectorStore, top_k: int
) -> None:
    """The same question as a LlamaIndex application asks it, from the cache by now."""
    from llama_index.core import Settings
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.response_synthesizers import ResponseMode

    Settings.llm = MockLLM()  # no language model here: the passages themselves are the answer
    engine = RetrieverQueryEngine.from_args(
        config.retriever(store, similarity_top_k=top_k), response_mode=ResponseMode.CONTEXT_ONLY
    )
    hits = config.embedder.cache.hits
    started = time.perf_counter()
    response = engine.query(question)
    milliseconds = (time.perf_counter() - started) * 1000
    shared.out.print()
    shared.out.print(
        f"The first question again, through RetrieverQueryEngine: {len(response.source_nodes)} "
        f"source nodes in {milliseconds:.0f} ms, {config.embedder.cache.hits - hits} vectors from "
        "the cache"
    )
    shared.out.print(
        "  " + shared.one_line(str(response), 400), markup=False, highlight=False, soft_wrap=True
    )
