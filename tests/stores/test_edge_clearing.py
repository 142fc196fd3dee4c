"""Clearing a collection of the embedded store: all its points go or none, and nothing else does.

pytest -s -m endurance tests/stores/test_edge_clearing.py    # 200 kills
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import models as qm

from command import environment
from unified_embeddings import EdgeQdrantClient, InputError, StoreError
from unified_embeddings.stores.edge import shard as shards

CHILD = Path(__file__).parents[1] / "clearing_child.py"
POINTS = 50
METADATA = {"model": "some model", "fingerprint": "0123"}
INDEXES: dict[str, Any] = {
    "word": qm.PayloadSchemaType.KEYWORD,
    "year": qm.IntegerIndexParams(
        type=qm.IntegerIndexType.INTEGER, lookup=True, range=False, on_disk=True
    ),
    "price": qm.PayloadSchemaType.FLOAT,
    "place": qm.PayloadSchemaType.GEO,
    "is_new": qm.PayloadSchemaType.BOOL,
    "day": qm.PayloadSchemaType.DATETIME,
    "key": qm.UuidIndexParams(type=qm.UuidIndexType.UUID, is_tenant=True),
    "text": qm.TextIndexParams(
        type=qm.TextIndexType.TEXT,
        tokenizer=qm.TokenizerType.PREFIX,
        min_token_len=2,
        max_token_len=9,
        lowercase=False,
        phrase_matching=True,
        stopwords=qm.StopwordsSet(languages=[qm.Language.GERMAN], custom=["fox"]),
        stemmer=qm.SnowballParams(type=qm.Snowball.SNOWBALL, language=qm.SnowballLanguage.GERMAN),
    ),
}


def make(client: EdgeQdrantClient) -> None:
    client.create_collection(
        "docs",
        vectors_config={"d": qm.VectorParams(size=4, distance=qm.Distance.DOT)},
        sparse_vectors_config={"s": qm.SparseVectorParams()},
        hnsw_config=qm.HnswConfigDiff(m=5),
        optimizers_config=qm.OptimizersConfigDiff(indexing_threshold=10),
        on_disk_payload=True,
        metadata=METADATA,
    )
    for field, schema in INDEXES.items():
        client.create_payload_index("docs", field, schema)
    alias = qm.CreateAlias(collection_name="docs", alias_name="live")
    client.update_collection_aliases([qm.CreateAliasOperation(create_alias=alias)])


def fill(client: EdgeQdrantClient, *, first: int = 0) -> None:
    client.upsert(
        "docs",
        [
            qm.PointStruct(id=number, vector={"d": [1.0] * 4}, payload={"year": number})
            for number in range(first, first + POINTS)
        ],
    )


def described(client: EdgeQdrantClient) -> tuple[Any, ...]:
    """Return all of a collection that is not points."""
    info = client.get_collection("docs")
    indexes = {
        field: (index.data_type, index.params) for field, index in info.payload_schema.items()
    }
    aliases = [(alias.alias_name, alias.collection_name) for alias in client.get_aliases().aliases]
    return info.config, indexes, aliases, len(client.get_collections().collections)


@pytest.mark.parametrize("name", ["docs", "live"])
def test_all_but_the_points_stays(tmp_path: Path, name: str) -> None:
    with EdgeQdrantClient(tmp_path / "store") as client:
        make(client)
        fill(client)
        before = described(client)
        assert before[1].keys() == INDEXES.keys()
        client.clear(name)
        assert client.count("docs").count == 0
        assert described(client) == before
        fill(client, first=7)
    with EdgeQdrantClient(tmp_path / "store") as client:
        assert described(client) == before
        assert client.count("docs").count == POINTS
        condition = qm.FieldCondition(key="year", match=qm.MatchValue(value=8))
        found, _ = client.scroll("docs", qm.Filter(must=[condition]))
        assert [record.id for record in found] == [8]
        assert len(list((tmp_path / "store" / "shards").iterdir())) == 1


def test_what_is_not_there_cannot_be_cleared(tmp_path: Path) -> None:
    with EdgeQdrantClient(tmp_path / "store") as client:
        with pytest.raises(InputError, match="'docs' not found"):
            client.clear("docs")
        with pytest.raises(InputError):
            client.clear(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", ["create", "write", "sync"])
def test_a_failure_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with EdgeQdrantClient(tmp_path / "store") as client:
        make(client)
        fill(client)
        before = described(client)
        with monkeypatch.context() as patched:
            if step == "create":
                patched.setattr(shards, "make_folder", no_space)
            elif step == "sync":
                patched.setattr(shards, "sync_tree", no_space)
            else:
                patched.setattr("unified_embeddings.stores.edge.catalog.replace_file", no_space)
            with pytest.raises(StoreError, match="No space left"):
                client.clear("docs")
        assert described(client) == before
        fill(client, first=POINTS)
        assert client.count("docs").count == 2 * POINTS
        assert len(list((tmp_path / "store" / "shards").iterdir())) == 1


def test_it_is_one_step_for_other_threads(tmp_path: Path) -> None:
    """Nobody sees a collection that is gone or half empty, and no later write is lost."""
    with EdgeQdrantClient(tmp_path / "store") as client:
        make(client)
        fill(client)
        counts: Counter[int] = Counter()
        is_over = threading.Event()

        def read() -> None:
            while not is_over.is_set():
                counts[client.count("live").count % POINTS] += 1

        def write() -> None:
            while not is_over.is_set():
                fill(client)

        failures: list[BaseException] = []

        def reported(work: Any) -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=reported, args=[work]) for work in (read, write, read)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            client.clear("docs")
        is_over.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert set(counts) == {0}
        client.clear("docs")
        fill(client, first=1000)
        assert client.count("docs").count == POINTS


def test_a_running_optimisation_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EdgeQdrantClient(tmp_path / "store") as client:
        make(client)
        fill(client)
        has_begun = threading.Event()
        start = shards.ChildProcess

        def start_sleeping(*_: object, **options: Any) -> Any:
            has_begun.set()
            return start(time.sleep, [600], **options)

        monkeypatch.setattr(shards, "ChildProcess", start_sleeping)
        failures: list[StoreError] = []

        def optimize() -> None:
            try:
                client.optimize("docs")
            except StoreError as error:
                failures.append(error)

        thread = threading.Thread(target=optimize)
        thread.start()
        assert has_begun.wait(60)
        client.clear("docs")
        thread.join()
        assert ["emptied meanwhile" in str(error) for error in failures] == [True]
        assert client.count("docs").count == 0
        monkeypatch.undo()
        fill(client)
        client.optimize("docs")
        assert client.count("docs").count == POINTS


class Killed:
    """Clearings that are killed, in processes forked from one that has the libraries loaded."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, CHILD, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(PYTHONPATH=os.pathsep.join([str(CHILD.parent), *sys.path])),
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


@pytest.mark.skipif(os.name != "posix", reason="forks, and sends SIGKILL")
@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.endurance)])
def test_after_any_kill_it_is_full_or_empty(tmp_path: Path, kills: int) -> None:
    folder = tmp_path / "store"
    chance = random.Random(kills)
    with EdgeQdrantClient(folder) as client:
        make(client)
        fill(client)
        before = described(client)
    runs = Killed(folder)
    outcomes: Counter[str] = Counter()
    try:
        while outcomes["killed"] < kills:
            # Clearing makes about 30,000 calls, and replaces the catalogue in the 20,000th.
            order = f"calls {chance.randrange(chance.choice([1, 20_000]), 30_000)}"
            if chance.random() < 0.3:
                order = f"seconds {chance.uniform(0, 0.1)}"
            outcome = runs.run(order)
            assert outcome in ("killed", "ended")
            outcomes[outcome] += 1
            with EdgeQdrantClient(folder) as client:
                assert described(client) == before
                count = client.count("docs").count
                assert count in ((0, POINTS) if outcome == "killed" else (0,))
                outcomes[f"{outcome}, {count} points left"] += 1
                assert len(list((folder / "shards").iterdir())) == 1
                fill(client)
                assert client.count("docs").count == POINTS
    finally:
        runs.close()
    print(f"\n{dict(outcomes)}")
