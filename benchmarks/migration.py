"""Move a collection to another model while it is written to, asked, and killed again and again.

    python benchmarks/migration.py --chunks 5000 --kills 20

An old collection, as LlamaIndex's own store makes it of all-MiniLM's dense vectors, is moved to
mini-m3's dense and sparse ones. One process writes (adds, changes, deletes) through the
dual-writing store, asks all the time, and migrates; it is killed with SIGKILL at random moments and
started again. At the end the program checks every point against the log of the writes: every live
text is there once, with the vectors that the new model gives, and no deleted one is; and that every
question was answered. It prints the figures, and exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdrant_client import models as qm

from migrating import (
    ALIAS,
    SOURCE,
    Models,
    make_models,
    make_nodes,
    node_id,
    open_old_store,
    read_log,
)
from unified_embeddings.evaluation.corpora import read_python_reference
from unified_embeddings.llama.layouts import PayloadReader, SourceText
from unified_embeddings.migration.journal import read_events, read_record
from unified_embeddings.migration.plan import plan_migration
from unified_embeddings.migration.stored_vectors import (
    dense_cosine,
    dense_of,
    named_vectors,
    sparse_cosine,
    weights_of,
)
from unified_embeddings.stores.opening import open_folder

_BATCH = 500
_WORDS = 40
_LEAST_COSINE = 0.999


@dataclass
class Figures:
    """What a run has shown.

    Attributes:
        chunks: Points at the beginning.
        kills: Processes that were killed.
        killed_in: State of the migration at each kill → how many.
        writes: Operations that were finished.
        cut_writes: Operations that a kill interrupted.
        questions: Questions that were answered.
        longest_gap: Seconds between two answers of one process, at most.
        live: Points at the end.
        dirty: Writes that reached one side only, as far as the journal knows.
        embedded: Texts that the backfill embedded, and `repaired` those of its sweeps.
        lowest_dense: Cosine of a stored and a new dense vector, over all points.
        lowest_sparse: Likewise of sparse vectors.
        problems: What is wrong.
        seconds: Of all.
    """

    chunks: int
    kills: int
    killed_in: Counter[str] = field(default_factory=Counter)
    writes: int = 0
    cut_writes: int = 0
    questions: int = 0
    longest_gap: float = 0.0
    live: int = 0
    dirty: int = 0
    embedded: int = 0
    repaired: int = 0
    lowest_dense: float = 1.0
    lowest_sparse: float = 1.0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Processes:
    """The application in processes that are killed."""

    def __init__(self, folder: Path, model: str) -> None:
        program = Path(__file__).with_name("migrating.py")
        self._process = subprocess.Popen(
            [sys.executable, program, folder, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"},
        )

    def run(self, order: str) -> str:
        """Give an order, and return what became of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()


def move_under_fire(
    folder: Path, model: str, *, chunks: int, kills: int, longest: float, seed: int = 0
) -> Figures:
    """Make the old collection, move it under fire, and check the result.

    Args:
        folder: An empty folder.
        model: "mini-m3", or "fake".
        chunks: Points of the old collection.
        kills: How often the process is killed.
        longest: Seconds after which it is killed at the latest.
        seed: Of the moments.
    """
    begun = time.monotonic()
    chance = random.Random(seed)
    figures = Figures(chunks=chunks, kills=kills)
    models = make_models(model)
    _make_old_collection(folder, model, models, chunks)
    processes = Processes(folder, model)
    try:
        for _ in range(kills):
            outcome = processes.run(f"seconds {chance.uniform(0, longest)}")
            figures.killed_in[read_record(folder / "journal").state] += 1
            if outcome != "killed":
                figures.problems.append(f"the application {outcome} before it was killed")
        outcome = processes.run("end")
        if outcome != "ended":
            figures.problems.append(f"the last run {outcome}")
    finally:
        processes.close()
    _check_answers(folder, figures)
    _check_points(folder, models, figures)
    figures.seconds = round(time.monotonic() - begun, 1)
    return figures


def _make_old_collection(folder: Path, model: str, models: Models, chunks: int) -> None:
    texts = _make_texts(chunks)
    client = open_folder(folder / "store")
    store = open_old_store(client, SOURCE)
    with (folder / "notes.jsonl").open("w", encoding="utf-8") as notes:
        for start in range(0, chunks, _BATCH):
            batch = {number: texts[number] for number in range(start, min(start + _BATCH, chunks))}
            store.add([*make_nodes(models, batch)])
            for number, text in batch.items():
                notes.write(json.dumps({"number": number, "text": text}) + "\n")
    plan_migration(
        client,
        SOURCE,
        models.new,
        folder / "journal",
        place={"path": str(folder / "store")},
        model={"model_choice": model},
        alias=ALIAS,
    )
    client.close()


def _make_texts(count: int) -> list[str]:
    """Return texts of Python's reference, numbered so that none is there twice."""
    passages = list(read_python_reference().documents.values())
    texts = []
    for number in range(count):
        words = passages[number % len(passages)].split()[:_WORDS]
        texts.append(f"{' '.join(words)} ({number})")
    return texts


def _check_answers(folder: Path, figures: Figures) -> None:
    """Check that every question was answered, in full, at every moment."""
    last_end: dict[int, float] = {}
    for answer in read_log(folder / "answers.jsonl"):
        if "error" in answer:
            figures.problems.append(f"the application failed: {answer['error']}")
            continue
        figures.questions += 1
        if answer["hits"] != 5:
            figures.problems.append(f"a question had {answer['hits']} hits")
        process = answer["process"]
        if process in last_end:
            gap = answer["ended"] - last_end[process]
            figures.longest_gap = max(figures.longest_gap, round(gap, 3))
        last_end[process] = answer["ended"]
    if len(last_end) < figures.kills:
        figures.problems.append(f"only {len(last_end)} processes answered a question")


def _possible_texts(folder: Path, figures: Figures) -> dict[str, set[str | None]]:
    """Return what each point may hold at the end: one text, or two if a kill cut its last write."""
    possible: dict[str, set[str | None]] = {
        node_id(line["number"]): {line["text"]} for line in read_log(folder / "notes.jsonl")
    }
    open_writes: dict[str, tuple[str, str | None]] = {}
    for line in read_log(folder / "writes.jsonl"):
        operation = line["operation"]
        if line.get("is_done"):
            point_id, text = open_writes.pop(operation)
            possible[point_id] = {text}
            figures.writes += 1
            continue
        (point_id,) = line["ids"]
        open_writes[operation] = (point_id, line["text"])
        possible.setdefault(point_id, {None}).add(line["text"])
    figures.cut_writes = len(open_writes)
    return possible


def _check_points(folder: Path, models: Models, figures: Figures) -> None:
    """Check every point of both collections."""
    possible = _possible_texts(folder, figures)
    record = read_record(folder / "journal")
    figures.embedded = record.counters.embedded
    figures.repaired = record.counters.repaired
    figures.dirty = sum(event.event == "dirty" for event in read_events(folder / "journal"))
    client = open_folder(folder / "store")
    source = {str(point.id): point.payload or {} for point in _scroll(client, record.source)}
    target = {str(point.id): point for point in _scroll(client, record.target)}
    figures.live = len(target)
    if record.state != "verified":
        figures.problems.append(f"the migration is {record.state}")
    if source.keys() != target.keys():
        figures.problems.append(f"{len(source.keys() ^ target.keys())} points are on one side only")
    reader = PayloadReader("llama_index")
    contents: list[SourceText] = []
    for point_id, texts in possible.items():
        if point_id not in target:
            if None not in texts:
                figures.problems.append(f"{point_id} is lost")
            continue
        content = reader.read(point_id, target[point_id].payload)
        if not isinstance(content, SourceText) or content.bare_text not in texts:
            figures.problems.append(f"{point_id} has an outdated or deleted text")
            continue
        if content.payload != source.get(point_id):
            figures.problems.append(f"{point_id} differs between the sides")
        contents.append(content)
    if unknown := target.keys() - possible.keys():
        figures.problems.append(f"{len(unknown)} points come from nowhere")
    for start in range(0, len(contents), _BATCH):
        _check_vectors(models, contents[start : start + _BATCH], target, figures)
    client.close()


def _check_vectors(
    models: Models, contents: list[SourceText], target: dict[str, qm.Record], figures: Figures
) -> None:
    texts = [content.text for content in contents]
    embeddings = models.new.encode(texts, role="document", heads=("dense", "sparse"))
    assert embeddings.dense is not None
    assert embeddings.sparse is not None
    for content, dense, sparse in zip(contents, embeddings.dense, embeddings.sparse, strict=True):
        vectors = named_vectors(target[str(content.point_id)])
        dense_likeness = dense_cosine(dense_of(vectors), dense)
        sparse_likeness = sparse_cosine(weights_of(vectors), dict(sparse))
        figures.lowest_dense = min(figures.lowest_dense, dense_likeness)
        figures.lowest_sparse = min(figures.lowest_sparse, sparse_likeness)
        if min(dense_likeness, sparse_likeness) < _LEAST_COSINE:
            figures.problems.append(f"{content.point_id} has vectors of another text")


def _scroll(client: Any, name: str) -> list[qm.Record]:
    points: list[qm.Record] = []
    offset = None
    while True:
        page, offset = client.scroll(name, limit=_BATCH, offset=offset, with_vectors=True)
        points += page
        if offset is None:
            return points


def main() -> int:
    """Run, print the figures, and tell by the exit status whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["mini-m3", "fake"], default="mini-m3")
    parser.add_argument("--chunks", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds until a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = move_under_fire(
            Path(folder),
            options.model,
            chunks=options.chunks,
            kills=options.kills,
            longest=options.longest,
            seed=options.seed,
        )
    for name, value in vars(figures).items():
        if name != "problems":
            print(f"{name}: {dict(value) if isinstance(value, Counter) else value}")
    for problem in figures.problems[:20]:
        print(f"PROBLEM: {problem}")
    print("as it should be" if not figures.problems else f"{len(figures.problems)} problems")
    return 1 if figures.problems else 0


if __name__ == "__main__":
    sys.exit(main())
