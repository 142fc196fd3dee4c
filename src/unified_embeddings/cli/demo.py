"""`unified-embeddings demo`: the whole path, offline, on documents that every Python has."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from unified_embeddings.cli import shared
from unified_embeddings.models.catalogue import MINI_M3

if TYPE_CHECKING:
    from llama_index.core import Document
    from llama_index.core.schema import BaseNode, NodeWithScore
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig

_QUESTIONS = (
    "How do I catch several exceptions at once?",
    "What is the difference between is and ==?",
    "How can a class customise attribute access with __getattr__?",
)
_COLLECTION = "python-reference-demo"
"""Name of the collection; each demo starts it anew."""
_CHUNK_TOKENS = 200
_CHUNK_OVERLAP = 20
_INSERT_BATCH = 64
_PROGRESS_LINES = 10
"""Number of lines that tell the progress where no bar can be drawn."""
_RANKING_DEPTH = 20
"""Number of passages of the dense and of the sparse ranking among which a passage is looked up."""

_Mode = Literal["dense", "sparse"]
_MODES: tuple[_Mode, ...] = ("dense", "sparse")


def demo(
    query: Annotated[
        list[str] | None,
        typer.Option(
            "--query", "-q", help="Question to ask instead of the built-in ones; repeatable."
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", min=1, help="Number of passages per question.")
    ] = 5,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="A name from `models`, a hub id, a folder or a TOML file."
        ),
    ] = MINI_M3,
    path: shared.StorePath = shared.DEFAULT_PATH,
) -> None:
    """Index the Python language reference and ask it questions, by meaning and by words.

    The reference ships with Python (pydoc_data.topics). The default model ships with the extra
    "demo". The collection stays, for `search`; delete the folder when you are done.
    """
    questions = [shared.require_text(text) for text in query or _QUESTIONS]
    config = shared.open_config(model)
    config.configure_settings()
    collection = _collection_name(config)
    store = _index_reference(config, collection, path)
    for question in questions:
        _show_rankings(question, config, store, top_k)
    _show_query_engine(questions[0], config, store, top_k)
    store.client.close()
    stats = config.embedder.stats()
    shared.out.print(
        f"[dim]{stats.texts} texts requested, {stats.tokenised} tokenised, {stats.forwards} "
        f"forward passes over {stats.tokens} tokens, {stats.cache.hits} vectors from the cache "
        f"({stats.cache.bytes / 2**20:.1f} MiB)[/dim]"
    )
    _show_next_steps(config, collection, path)


def _collection_name(config: UnifiedEmbeddingConfig) -> str:
    """Return the collection's name: another model's passages go into a collection of their own."""
    if config.model_choice == MINI_M3:
        return _COLLECTION
    return f"{_COLLECTION}-{re.sub('[^A-Za-z0-9._-]+', '-', config.model_choice).strip('-')}"


def _index_reference(
    config: UnifiedEmbeddingConfig, collection: str, path: Path
) -> QdrantVectorStore:
    """Split the Python reference into passages, embed and store them, and print the speed."""
    from unified_embeddings.llama.splitter import UnifiedSentenceSplitter
    from unified_embeddings.stores.opening import open_folder

    embedder = config.embedder
    splitter = UnifiedSentenceSplitter(
        embedder, chunk_size=_CHUNK_TOKENS, chunk_overlap=_CHUNK_OVERLAP
    )
    documents = _reference_documents()
    nodes = splitter.get_nodes_from_documents(documents)
    client = open_folder(path)
    if client.collection_exists(collection):  # an earlier demo's, maybe interrupted
        client.delete_collection(collection)
    store = config.vector_store(collection, path=path)
    shared.out.print(
        f"Indexing {len(documents)} topics of the Python reference, {len(nodes)} passages; about a "
        "minute on two idle cores"
    )
    seconds = _insert(nodes, store)
    tokens = embedder.stats().tokens
    runs_on = str(config.url)
    if config.url is None:
        runtime = embedder.models[0].runtime
        runs_on = f"{runtime.engine}, {runtime.precision}, {runtime.device}"
    shared.out.print(
        f"Embedded by {embedder.model_name} ({runs_on}) and stored in {seconds:.1f} s: "
        f"{tokens / seconds:,.0f} tokens/s"
    )
    return store


def _reference_documents() -> list[Document]:
    """Return the topics of the Python reference; their names go into neither vector nor prompt."""
    from pydoc_data.topics import topics

    from llama_index.core import Document

    return [
        Document(
            text=text,
            metadata={"topic": topic},
            excluded_embed_metadata_keys=["topic"],
            excluded_llm_metadata_keys=["topic"],
        )
        for topic, text in sorted(topics.items())
    ]


def _insert(nodes: list[BaseNode], store: QdrantVectorStore) -> float:
    """Embed and store the nodes, showing progress; return the seconds it took."""
    from llama_index.core import VectorStoreIndex

    index = VectorStoreIndex.from_vector_store(store)
    started = time.perf_counter()
    with _progress(len(nodes)) as advance:
        for start in range(0, len(nodes), _INSERT_BATCH):
            batch = nodes[start : start + _INSERT_BATCH]
            index.insert_nodes(batch)
            advance(len(batch))
    return time.perf_counter() - started


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Draw a progress bar on a terminal; elsewhere print a line for every tenth of the work."""
    from unified_embeddings.system.progress import progress_bar

    if shared.is_terminal():
        with progress_bar("Indexing", total) as advance:
            yield advance
        return
    done = 0

    def print_tenths(steps: int) -> None:
        nonlocal done
        tenths_before = done * _PROGRESS_LINES // total
        done += steps
        if done * _PROGRESS_LINES // total > tenths_before:
            shared.print_line(f"  {done:,} of {total:,} passages ({done / total:.0%})")

    yield print_tenths


def _show_next_steps(config: UnifiedEmbeddingConfig, collection: str, path: Path) -> None:
    """Print commands that go on from here, each ready to be pasted."""
    place = "" if path == shared.DEFAULT_PATH else f" --path {shlex.quote(str(path))}"
    model = f" -m {shlex.quote(config.model_choice)}"
    shared.print_line(
        f"\nThe collection {collection!r} stays in the folder {path}. Try next:\n"
        f'  unified-embeddings search "How do I open a file?" -c {collection}{model}{place}\n'
        f"  unified-embeddings inspect -c {collection}{place}      # the same in the browser\n"
        f"  unified-embeddings index YOUR_FOLDER{model}{place}\n"
        f'  unified-embeddings search "your question"{model}{place}\n'
        "  unified-embeddings models      # other models, among them bge-m3 for 100 languages"
    )


def _show_rankings(
    question: str, config: UnifiedEmbeddingConfig, store: QdrantVectorStore, top_k: int
) -> None:
    """Print the fused ranking, with each passage's place in the dense and the sparse ranking."""
    embedder = config.embedder
    forwards_before = embedder.stats().forwards
    started = time.perf_counter()
    embedder.encode_query(question)
    embedded = time.perf_counter()
    fused = config.retriever(store, similarity_top_k=top_k).retrieve(question)
    searched = time.perf_counter()
    rankings: dict[str, dict[str, int]] = {}
    for mode in _MODES:
        if mode in embedder.heads:
            rankings[mode] = _ranks(question, config, store, mode)
    forwards = embedder.stats().forwards - forwards_before
    shared.out.print()
    shared.out.print(_ranking_table(question, fused, rankings), markup=False)
    plural = "" if forwards == 1 else "es"
    shared.out.print(
        f"embedded in {(embedded - started) * 1000:.0f} ms, searched and fused in "
        f"{(searched - embedded) * 1000:.0f} ms; {forwards} forward pass{plural} for "
        f"{len(rankings) + 1} searches"
    )


def _ranks(
    question: str, config: UnifiedEmbeddingConfig, store: QdrantVectorStore, mode: _Mode
) -> dict[str, int]:
    """Return the ids of the nodes that one kind of vector finds, with their ranks from 1."""
    retriever = config.retriever(store, similarity_top_k=_RANKING_DEPTH, mode=mode)
    nodes = retriever.retrieve(question)
    return {node.node.node_id: rank for rank, node in enumerate(nodes, 1)}


def _ranking_table(
    question: str, fused: list[NodeWithScore], rankings: dict[str, dict[str, int]]
) -> Table:
    """Return the fused passages as a table; a dash means that a ranking lacks the passage."""
    table = Table(title=question, title_justify="left", expand=True)
    for heading in ("fused", "score", *rankings):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("passage", ratio=1)
    for rank, scored in enumerate(fused, 1):
        node = scored.node
        places = [str(ranks.get(node.node_id, "-")) for ranks in rankings.values()]
        text = shared.one_line(f"{node.metadata['topic']}: {node.get_content()}", 220)
        table.add_row(str(rank), f"{scored.score:.4f}", *places, text)
    return table


def _show_query_engine(
    question: str, config: UnifiedEmbeddingConfig, store: QdrantVectorStore, top_k: int
) -> None:
    """Ask once more in the way of a LlamaIndex application; the cache knows the question by now."""
    from llama_index.core import Settings
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.response_synthesizers import ResponseMode

    Settings.llm = MockLLM()  # there is no language model here: the passages are the answer
    engine = RetrieverQueryEngine.from_args(
        config.retriever(store, similarity_top_k=top_k), response_mode=ResponseMode.CONTEXT_ONLY
    )
    hits_before = config.embedder.cache.hits
    started = time.perf_counter()
    response = engine.query(question)
    milliseconds = (time.perf_counter() - started) * 1000
    hits = config.embedder.cache.hits - hits_before
    shared.out.print()
    shared.out.print(
        f"The first question again, through RetrieverQueryEngine: {len(response.source_nodes)} "
        f"source nodes in {milliseconds:.0f} ms, {hits} vectors from the cache"
    )
    shared.print_line("  " + shared.one_line(str(response), 400))
