"""An application that writes, asks and migrates in one process, to be killed; see `migration.py`.

Started as a program it loads the libraries once. For each line on standard input it forks a process
that runs the application over the folder, and answers with "killed" or "ended":

    seconds 1.5     kill it so long after it has begun to write, ask and migrate
    end             let it come to its end: all points moved and verified

What the application does is logged in the folder, line by line: `writes.jsonl` has each operation
before and after it, `answers.jsonl` each answered question.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.factory import make_embedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.migration.backfill import migrate_points
from unified_embeddings.migration.dual_store import DualWritingStore
from unified_embeddings.migration.journal import Journal
from unified_embeddings.migration.verify import verify_migration
from unified_embeddings.stores.opening import Client, async_view, open_folder

ALIAS, SOURCE = "docs", "docs-old"
_READY = "ready"
_WRITE_PAUSE, _ASK_PAUSE = 0.01, 0.02
_WRITER_JOIN_SECONDS = 60.0
_HITS = 5


@dataclass(frozen=True)
class Models:
    """The old model, of which only dense vectors are used, and the new one."""

    old: TextEmbedder
    new: TextEmbedder


def make_models(name: str) -> Models:
    """Return both models; "fake" stands for any, and loads nothing."""
    if name == "fake":
        return Models(
            old=FakeEmbedder(dimension=16, model_name="old", cache=None),
            new=FakeEmbedder(model_name="new", cache=None),
        )
    return Models(old=make_embedder(name, cache=None), new=make_embedder(name, cache=None))


def old_vectors(models: Models, texts: Sequence[str]) -> list[list[float]]:
    """Return the old model's dense vectors."""
    dense = models.old.encode(texts, role="document", heads=("dense",)).dense
    assert dense is not None
    vectors: list[list[float]] = dense.tolist()
    return vectors


def node_id(number: int) -> str:
    """Return the id of a note."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def make_nodes(models: Models, texts: dict[int, str]) -> list[TextNode]:
    """Return nodes as an application adds them: with metadata, a document and the old vector."""
    nodes = []
    for (number, text), vector in zip(
        texts.items(), old_vectors(models, list(texts.values())), strict=True
    ):
        node = TextNode(id_=node_id(number), text=text, metadata={"number": number})
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"d{number % 97}")
        node.embedding = vector
        nodes.append(node)
    return nodes


def open_old_store(client: Client, name: str) -> QdrantVectorStore:
    """Return LlamaIndex's own store over the old collection."""
    return QdrantVectorStore(name, client=client, aclient=async_view(client))  # type: ignore[arg-type]


class LineLog:
    """A file of JSON lines that a kill cannot take back: each is one write."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()

    def write(self, **values: object) -> None:
        """Append a line."""
        line = json.dumps(values).encode() + b"\n"
        with self._lock:
            self._file.write(line)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log; half a line is none."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue


class Application:
    """Writes to both sides and asks, each in a thread of its own, until it is stopped."""

    def __init__(self, folder: Path, models: Models, seed: int) -> None:
        self._client = open_folder(folder / "store")
        self._models = models
        self._chance = random.Random(seed)
        self._writes = LineLog(folder / "writes.jsonl")
        self._answers = LineLog(folder / "answers.jsonl")
        self._folder = folder
        # Opened by the alias, as an application does.
        old = open_old_store(self._client, ALIAS)
        self.store = DualWritingStore(old, folder / "journal", embedder=models.new)
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._logged, args=(self._write,), name="writer"),
            threading.Thread(target=self._logged, args=(self._ask,), name="asker"),
        ]
        self._is_first_answer = True

    def start(self) -> None:
        """Begin to write and to ask."""
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def stop(self) -> None:
        """Finish the write and the question in hand."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(_WRITER_JOIN_SECONDS)

    def _logged(self, work: Callable[[], None]) -> None:
        """Work, and log the error that ends it."""
        try:
            work()
        except Exception as error:
            self._answers.write(error=repr(error))

    def _write(self) -> None:
        numbers = [line["number"] for line in read_log(self._folder / "notes.jsonl")]
        highest = max(numbers)
        while not self._stopped.wait(_WRITE_PAUSE):
            kind = self._chance.choice(["add", "change", "change", "delete"])
            if kind == "add":
                number = highest + 1 + self._chance.randrange(10**9)
            else:
                number = self._chance.choice(numbers)
            operation = uuid.uuid4().hex
            if kind == "delete":
                self._writes.write(operation=operation, ids=[node_id(number)], text=None)
                self.store.delete_nodes([node_id(number)])
            else:
                text = f"Note {number}, version {operation[:8]}: {self._chance.random()} foxes."
                self._writes.write(operation=operation, ids=[node_id(number)], text=text)
                self.store.add(make_nodes(self._models, {number: text}))
            self._writes.write(operation=operation, is_done=True)

    def _ask(self) -> None:
        while not self._stopped.wait(_ASK_PAUSE):
            question = f"How many foxes are in note {self._chance.randrange(1000)}?"
            begun = time.time()
            result = self.store.query(
                VectorStoreQuery(
                    query_embedding=old_vectors(self._models, [question])[0],
                    query_str=question,
                    similarity_top_k=_HITS,
                )
            )
            self._answers.write(
                begun=begun,
                ended=time.time(),
                hits=len(result.nodes or ()),
                process=os.getpid(),
                first=self._is_first_answer,
            )
            self._is_first_answer = False


def run_application(folder: Path, name: str, *, runs_to_end: bool) -> None:
    """Write, ask and migrate; to the end, or until this process is killed."""
    models = make_models(name)
    client = open_folder(folder / "store")
    application = Application(folder, models, seed=os.getpid())
    old_vectors(models, ["load"])
    models.new.encode(["load"], role="document", heads=("dense", "sparse"))
    application.start()
    (folder / _READY).touch()
    batch = 16 if name == "fake" else 64
    while True:
        with Journal.open(folder / "journal") as journal:
            migrate_points(journal, client, models.new, batch=batch)
            report = verify_migration(journal, client, models.new, sample=16)
            if not report.is_clean:
                raise SystemExit(f"verify: {report.problems}")
        if runs_to_end:
            break
    application.stop()
    with Journal.open(folder / "journal") as journal:
        migrate_points(journal, client, models.new, batch=batch)
        before = journal.record.counters.repaired
        report = verify_migration(journal, client, models.new)
    (folder / "failures").write_text(f"{application.store.failures} {before}")
    if not report.is_clean:
        raise SystemExit(f"verify: {report.problems}")
    client.close()


def run_in_child(folder: Path, name: str, seconds: float | None) -> str:
    """Run the application in a process of its own; return how it ended."""
    (folder / _READY).unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            run_application(folder, name, runs_to_end=seconds is None)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        while not (folder / _READY).exists():
            time.sleep(0.005)
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return f"failed with {status}"
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    return "ended" if os.WEXITSTATUS(status) == 0 else "failed"


if __name__ == "__main__":
    for line in sys.stdin:
        order, _, amount = line.strip().partition(" ")
        wanted = float(amount) if order == "seconds" else None
        print(run_in_child(Path(sys.argv[1]), sys.argv[2], wanted), flush=True)
