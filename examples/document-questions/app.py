"""Answer questions from a folder of documents, with the words of the documents.

    python examples/document-questions/app.py "How long do I keep receipts?"
    python examples/document-questions/app.py --documents ~/notes "When is the boiler serviced?"
    python examples/document-questions/app.py --ollama llama3.2 "How long do I keep receipts?"

The answer is quoted: the sentence that fits the question best, with its file. With `--ollama` a
language model on this machine puts it into words. What no document answers is said to be so.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from llama_index.core.llms import LLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore

from unified_embeddings import (
    UnifiedEmbeddingConfig,
    UnifiedEmbeddingsError,
    colbert_score,
)
from unified_embeddings.llama.indexing import index_paths

DOCUMENTS = Path(__file__).with_name("documents")
LEAST_RELEVANCE = 0.3
"""Below it, the best passage is more likely beside the point than not."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class Answer:
    """What the documents say.

    Attributes:
        text: The answer; empty if no document has one.
        source: The file that it comes from.
        relevance: How likely the passage answers the question, from 0 to 1.
    """

    text: str
    source: str = ""
    relevance: float = 0.0


class DocumentQuestions:
    """A folder of documents that can be asked.

    Args:
        documents: The folder. Each has a collection of its own.
        store_folder: Where the collections are kept.
        model: Makes the vectors.
    """

    def __init__(self, documents: Path, store_folder: Path, model: str) -> None:
        self._documents = documents
        self._config = UnifiedEmbeddingConfig(model)
        name = hashlib.sha256(str(documents.resolve()).encode()).hexdigest()[:12]
        self._store = self._config.vector_store(f"documents-{name}", path=store_folder)

    def index(self) -> int:
        """Bring the collection in line with the folder; return the number of files that changed."""
        report = index_paths([self._documents], self._store, self._config.embedder)
        return report.indexed

    def ask(self, question: str, llm: LLM | None = None) -> Answer:
        """Answer a question.

        Args:
            question: In words.
            llm: Puts the answer into words; None quotes the best sentence.
        """
        retriever = self._config.retriever(self._store, similarity_top_k=3, score="relevance")
        hits = retriever.retrieve(question)
        if not hits or hits[0].get_score() < LEAST_RELEVANCE:
            return Answer("")
        best = hits[0]
        if llm is None:
            text = self._best_sentence(question, best)
        else:
            text = str(RetrieverQueryEngine.from_args(retriever, llm=llm).query(question))
        return Answer(text, str(best.node.metadata["file_name"]), best.get_score())

    def _best_sentence(self, question: str, hit: NodeWithScore) -> str:
        """Return the sentence of a passage that fits a question best, token by token."""
        embedder = self._config.embedder
        parts = _SENTENCE_END.split(hit.node.get_content())
        sentences = [part for part in parts if part.strip() and not part.startswith("#")]
        if not sentences:  # a passage of headings alone
            sentences = [hit.node.get_content().strip()]
        asked = embedder.encode_query(question, colbert=True).colbert[0]
        rows = embedder.encode_documents(sentences, colbert=True).colbert
        scores = [colbert_score(asked, of_sentence) for of_sentence in rows]
        return sentences[scores.index(max(scores))]


def load_ollama(name: str) -> LLM:
    """Return a language model that Ollama serves on this machine."""
    try:
        from llama_index.llms.ollama import Ollama
    except ModuleNotFoundError:
        raise SystemExit(
            "error: --ollama needs a package more: pip install llama-index-llms-ollama"
        ) from None
    return Ollama(model=name, request_timeout=120.0)


def main() -> None:
    """Index the documents and answer one question."""
    parser = argparse.ArgumentParser(description="Answer a question from a folder of documents.")
    parser.add_argument("question")
    parser.add_argument("--documents", type=Path, default=DOCUMENTS, help="the folder")
    parser.add_argument("--folder", type=Path, default=Path("document-questions-data"))
    parser.add_argument("--model", default="mini-m3")
    parser.add_argument("--ollama", metavar="NAME", help="a language model that Ollama serves")
    arguments = parser.parse_args()
    llm = load_ollama(arguments.ollama) if arguments.ollama else None
    try:
        questions = DocumentQuestions(arguments.documents, arguments.folder, arguments.model)
        changed = questions.index()
        answer = questions.ask(arguments.question, llm)
    except UnifiedEmbeddingsError as error:
        raise SystemExit(f"error: {error}") from None
    if changed:
        print(f"{changed} files indexed")
    if not answer.text:
        print("The documents do not answer this.")
        return
    print(answer.text)
    print(f"  {answer.source}, relevance {answer.relevance:.2f}")


if __name__ == "__main__":
    main()
