"""`kill -9` at any moment of indexing, files changing meanwhile: the next run puts it right.

pytest -s -m endurance tests/llama/test_index_killed.py    # 50 kills
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from command import environment
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.indexing import index_paths
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.stores.opening import open_folder

CHILD = Path(__file__).parents[1] / "indexing_child.py"


class Killed:
    """Runs that are killed, in processes forked from one that has the libraries loaded."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, CHILD, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
        )

    def run(self, order: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def text_of(chance: random.Random) -> str:
    """Return a text of up to six chunks, or an empty one."""
    notes = [chance.random() for _ in range(chance.choice([0, 1, 3, 10, 20]))]
    return " ".join(f"Note {note} says that the fox jumps over it." for note in notes)


def change_files(docs: Path, chance: random.Random) -> None:
    """Write, change, rename and delete some files."""
    for _ in range(6):
        name = f"{chance.choice('abc')}/{chance.randrange(12)}.txt"
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text(text_of(chance))
    files = sorted(docs.rglob("*.txt"))
    for path in chance.sample(files, 3):
        path.unlink()
    for path in chance.sample(sorted(docs.rglob("*.txt")), 1):
        path.rename(path.with_name(f"renamed {chance.randrange(100)}.txt"))


def points_of(client: Any) -> Counter[tuple[str, ...]]:
    """Count the points by id, path, version and text."""
    points, _ = client.scroll("notes", limit=100_000)
    found: Counter[tuple[str, ...]] = Counter()
    for point in points:
        payload = point.payload or {}
        text = json.loads(payload["_node_content"])["text"]
        found[str(point.id), payload["file_path"], payload["file_version"], text] += 1
    return found


def from_scratch(docs: Path) -> Counter[tuple[str, ...]]:
    client, embedder = QdrantClient(":memory:"), FakeEmbedder()
    store = build_vector_store(embedder, "notes", client=client)
    index_paths([docs], store, embedder, chunk_tokens=32)
    return points_of(client)


@pytest.mark.skipif(os.name != "posix", reason="forks, and sends SIGKILL")
@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.endurance)])
def test_after_any_kill_the_next_run_leaves_exactly_the_right_chunks(
    tmp_path: Path, kills: int
) -> None:
    docs = tmp_path.resolve() / "docs"
    docs.mkdir()
    chance = random.Random(kills)
    runs = Killed(tmp_path.resolve())
    outcomes: Counter[str] = Counter()
    try:
        while outcomes["killed"] < kills:
            change_files(docs, chance)
            if chance.random() < 0.5:
                order = f"calls {int(10 ** chance.uniform(2, 5.5))}"
            else:
                order = f"seconds {chance.uniform(0, 1)}"
            outcome = runs.run(order)
            assert outcome in ("killed", "ended")
            outcomes[outcome] += 1
            if outcome == "killed" and outcomes["killed"] % 2:
                continue
            assert runs.run("end") == "ended"
            client = open_folder(tmp_path.resolve() / "store")
            stored = points_of(client)
            client.close()
            assert stored == from_scratch(docs)
            outcomes["checked"] += 1
    finally:
        runs.close()
    print(f"\n{dict(outcomes)}")
