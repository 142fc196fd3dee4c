"""The embedded store when it is killed, shared, full, damaged or of another version.

What it answers is compared with qdrant-client's local mode in tests/contract.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client import models as qm

from unified_embeddings import EdgeQdrantClient, InputError, StoreError
from unified_embeddings.stores.edge import catalog as catalogs
from unified_embeddings.stores.edge import shard as shards
from unified_embeddings.stores.opening import open_folder
from unified_embeddings.system import files

DIMENSION = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def client(folder: Path) -> Iterator[EdgeQdrantClient]:
    with EdgeQdrantClient(folder) as client:
        yield client


def make(client: EdgeQdrantClient, name: str = "docs", **options: Any) -> None:
    client.create_collection(
        name,
        vectors_config={"d": qm.VectorParams(size=DIMENSION, distance=qm.Distance.DOT)},
        sparse_vectors_config={"s": qm.SparseVectorParams()},
        **options,
    )


def vector(number: int) -> list[float]:
    """Return a vector that identifies its point: the number's digits in base 4."""
    return [float(number // 4**place % 4) for place in range(DIMENSION)]


def point(number: int) -> qm.PointStruct:
    sparse = qm.SparseVector(indices=[number, number + 1], values=[1.0, 0.5])
    return qm.PointStruct(
        id=number, vector={"d": vector(number), "s": sparse}, payload={"number": number}
    )


def run(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start another Python process, with what the code needs imported."""
    head = """
        import os, signal, sys
        from qdrant_client import models as qm
        from unified_embeddings import EdgeQdrantClient
        from unified_embeddings.errors import UnifiedEmbeddingsError
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


# --- crashes ------------------------------------------------------------------------------------

WRITER = """
    client = EdgeQdrantClient(sys.argv[1])
    first, dimension = int(sys.argv[2]), int(sys.argv[3])
    for number in range(first, first + 100):
        points = [
            qm.PointStruct(
                id=10 * number + one,
                vector={"d": [float(number // 4**place % 4) for place in range(dimension)]},
                payload={"number": number, "text": "x" * 500},
            )
            for one in range(10)
        ]
        client.upsert("docs", points)
        print(number, flush=True)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.endurance)])
def test_acknowledged_writes_survive_kill_9(folder: Path, kills: int) -> None:
    generator = random.Random(0)
    with EdgeQdrantClient(folder) as client:
        make(client)
    acknowledged: list[int] = []
    for attempt in range(kills):
        writer = run(WRITER, folder, 1000 * attempt, DIMENSION)
        assert writer.stdout is not None
        for line in range(generator.randrange(1, 99)):
            text = writer.stdout.readline()
            assert text, (line, writer.stderr and writer.stderr.read())
            acknowledged.append(int(text))
        time.sleep(generator.random() * 0.003)  # somewhere within an upsert
        writer.send_signal(signal.SIGKILL)
        acknowledged += map(int, writer.stdout.read().split())
        writer.wait()
        assert writer.returncode == -signal.SIGKILL
        with EdgeQdrantClient(folder) as client:
            ids = [10 * number + one for number in acknowledged for one in range(10)]
            found = client.retrieve("docs", ids, with_vectors=True)
            assert [record.id for record in found] == ids
            for record in found:
                number = int(record.id) // 10
                assert record.payload == {"number": number, "text": "x" * 500}
                assert record.vector == {"d": vector(number)}
            assert client.count("docs").count - len(ids) in range(11 * (attempt + 1))
    print(f"\n{kills} kills, {10 * len(acknowledged)} points acknowledged, all of them there")


def test_a_collection_whose_creation_was_interrupted_is_gone_after_kill_9(folder: Path) -> None:
    code = """
        from unified_embeddings.stores.edge.catalog import Catalog
        client = EdgeQdrantClient(sys.argv[1])
        plain = qm.VectorParams(size=2, distance="Dot")
        client.create_collection("whole", vectors_config=plain)
        def killed(self, *_): os.kill(os.getpid(), signal.SIGKILL)
        Catalog.save = killed
        client.create_collection("half", vectors_config=plain)
    """
    process = run(code, folder)
    process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(list((folder / "shards").iterdir())) == 2
    with EdgeQdrantClient(folder) as client:
        assert [one.name for one in client.get_collections().collections] == ["whole"]
        assert len(list((folder / "shards").iterdir())) == 1
        make(client, "half")


def test_a_collection_whose_deletion_was_interrupted_stays_deleted(folder: Path) -> None:
    code = """
        import shutil
        client = EdgeQdrantClient(sys.argv[1])
        client.create_collection("docs", vectors_config=qm.VectorParams(size=2, distance="Dot"))
        shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        client.delete_collection("docs")
    """
    process = run(code, folder)
    process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(list((folder / "shards").iterdir())) == 1
    with EdgeQdrantClient(folder) as client:
        assert not client.collection_exists("docs")
        assert not list((folder / "shards").iterdir())


def test_switching_aliases_is_atomic(
    client: EdgeQdrantClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(client, "old")
    make(client, "new")
    point_at = qm.CreateAliasOperation(
        create_alias=qm.CreateAlias(collection_name="old", alias_name="live")
    )
    client.update_collection_aliases([point_at])
    switch: list[Any] = [
        qm.DeleteAliasOperation(delete_alias=qm.DeleteAlias(alias_name="live")),
        qm.CreateAliasOperation(
            create_alias=qm.CreateAlias(collection_name="new", alias_name="live")
        ),
    ]

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(StoreError, match="No space left"):
            client.update_collection_aliases(switch)
    assert [one.collection_name for one in client.get_aliases().aliases] == ["old"]
    client.close()
    with EdgeQdrantClient(folder) as again:
        assert [one.collection_name for one in again.get_aliases().aliases] == ["old"]
        again.update_collection_aliases(switch)
        assert [one.collection_name for one in again.get_aliases().aliases] == ["new"]


# --- threads and processes ----------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.endurance)])
def test_eight_threads_read_while_two_write(folder: Path, seconds: int) -> None:
    done = threading.Event()
    written: list[set[int]] = [set(), set()]
    reads = [0] * 8

    def write(client: EdgeQdrantClient, writer: int) -> None:
        number = writer
        while not done.is_set():
            numbers = range(number, number + 40, 2)
            client.upsert("docs", [point(one) for one in numbers])
            written[writer].update(numbers)
            number += 40
            gone = numbers[0]
            client.delete("docs", [gone])
            written[writer].discard(gone)
            client.set_payload("docs", {"seen": writer}, [numbers[1]])

    def read(client: EdgeQdrantClient, reader: int) -> None:
        generator = random.Random(reader)
        while not done.is_set():
            known = generator.choice(sorted(written[reader % 2]) or [0])
            sparse = qm.SparseVector(indices=[known], values=[1.0])
            fused = client.query_points(
                "docs",
                prefetch=[
                    qm.Prefetch(query=vector(known), using="d"),
                    qm.Prefetch(query=sparse, using="s"),
                ],
                query=qm.RrfQuery(rrf=qm.Rrf(k=61)),
            )
            assert all(found.payload["number"] == found.id for found in fused.points)
            if known in written[reader % 2]:
                (there,) = client.retrieve("docs", [known], with_vectors=True)
                assert there.vector is not None
                assert there.vector["d"] == vector(known)  # type: ignore[call-overload]
            page, _ = client.scroll("docs", limit=20)
            assert [one.id for one in page] == sorted(one.id for one in page)
            client.count("docs")
            reads[reader] += 1

    with EdgeQdrantClient(folder) as client, ThreadPoolExecutor(10) as pool:
        make(client)
        work = [pool.submit(write, client, writer) for writer in range(2)]
        work += [pool.submit(read, client, reader) for reader in range(8)]
        time.sleep(seconds)
        done.set()
        for one in work:
            one.result()
        expected = written[0] | written[1]
        assert_holds(client, expected)
    with EdgeQdrantClient(folder) as again:
        assert_holds(again, expected)
    assert min(reads) > 0
    print(f"\n{seconds} s: {sum(reads)} rounds of four reads, {len(expected)} points, none lost")


def assert_holds(client: EdgeQdrantClient, numbers: set[int]) -> None:
    assert client.count("docs").count == len(numbers)
    found, offset = [], None
    while True:
        page, offset = client.scroll("docs", limit=500, offset=offset)  # type: ignore[arg-type]
        found += page
        if offset is None:
            break
    assert {one.id for one in found} == numbers
    assert all(one.payload and one.payload["number"] == one.id for one in found)


def test_a_second_process_is_refused_at_once(client: EdgeQdrantClient, folder: Path) -> None:
    make(client)
    code = """
        try:
            EdgeQdrantClient(sys.argv[1])
        except UnifiedEmbeddingsError as error:
            print(type(error).__name__, error)
    """
    answer = output(run(code, folder))
    assert answer.startswith("StoreError")
    assert "open already" in answer
    assert "url=" in answer
    client.upsert("docs", [point(1)])
    client.close()
    assert output(run("EdgeQdrantClient(sys.argv[1]); print('open')", folder)) == "open"


def test_a_second_client_in_the_same_process_is_refused(
    client: EdgeQdrantClient, folder: Path
) -> None:
    with pytest.raises(StoreError, match="open already"):
        EdgeQdrantClient(folder)
    with pytest.raises(StoreError, match="open already"):
        QdrantClientOf(folder)


def QdrantClientOf(folder: Path) -> QdrantClient:
    """Open qdrant-client's local mode over a folder of ours; raise its error as ours."""
    try:
        return QdrantClient(path=str(folder))
    except RuntimeError as error:
        raise StoreError(str(folder), "opening", f"open already: {error}") from error


def test_a_forked_child_is_kept_from_damaging_it(client: EdgeQdrantClient) -> None:
    make(client)
    client.upsert("docs", [point(1)])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            client.upsert("docs", [point(2)])
            os.write(writing, b"stored")
        except StoreError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"forked" in os.read(reading, 1000)
    assert client.count("docs").count == 1
    client.upsert("docs", [point(3)])


def test_open_folder_shares_one_client_and_forgets_it_with_its_last_holder(folder: Path) -> None:
    client = open_folder(folder)
    make(client)
    assert open_folder(str(folder)) is client
    del client
    gc.collect()
    with EdgeQdrantClient(folder) as alone:
        assert alone.collection_exists("docs")


def test_a_client_that_was_not_closed_keeps_everything_at_interpreter_exit(folder: Path) -> None:
    code = """
        client = EdgeQdrantClient(sys.argv[1])
        client.create_collection("docs", vectors_config=qm.VectorParams(size=2, distance="Dot"))
        client.upsert("docs", [qm.PointStruct(id=1, vector=[1.0, 2.0])])
        print("done")
    """
    process = run(code, folder)
    assert output(process) == "done"
    with EdgeQdrantClient(folder) as client:
        assert client.count("docs").count == 1


def test_a_closed_client_says_so(client: EdgeQdrantClient) -> None:
    make(client)
    client.close()
    client.close()
    assert client.closed
    for call in (
        lambda: client.count("docs"),
        client.get_collections,
        lambda: client.upsert("docs", [point(1)]),
        lambda: client.collection_exists("docs"),
    ):
        with pytest.raises(StoreError, match="closed"):
            call()


def test_deleting_a_collection_under_its_readers_raises_our_errors_only(
    client: EdgeQdrantClient,
) -> None:
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while client.collection_exists("docs"):
                client.query_points("docs", query=vector(1), using="d")
        except (InputError, StoreError):
            pass
        except BaseException as error:
            failures.append(error)

    for _ in range(5):
        make(client)
        client.upsert("docs", [point(number) for number in range(100)])
        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        client.delete_collection("docs")
        for reader in readers:
            reader.join()
    assert not failures


# --- the async side -----------------------------------------------------------------------------


async def test_every_method_has_an_async_twin(client: EdgeQdrantClient) -> None:
    make(client)
    twin = client.aclient
    await twin.upsert("docs", [point(number) for number in range(10)])
    assert (await twin.count("docs")).count == 10
    response = await twin.query_points("docs", query=vector(3), using="d", limit=1)
    assert response.points[0].payload == {"number": response.points[0].id}
    with pytest.raises(InputError, match="not found"):
        await twin.count("no such collection")
    twin.upload_points("docs", [point(11)])  # a plain method there too
    assert not asyncio.iscoroutinefunction(AsyncQdrantClient.upload_points)
    assert client.count("docs").count == 11


async def test_the_store_does_not_block_the_event_loop(client: EdgeQdrantClient) -> None:
    """The loop turns some twenty times during the work; a blocked one would not turn at all."""
    make(client)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    ticking = asyncio.create_task(turn())
    await asyncio.sleep(0)
    before = turns
    await client.aclient.upsert("docs", [point(number) for number in range(5000)])
    assert turns - before > 20
    before = turns
    await client.aclient.optimize("docs")
    assert turns - before > 20
    ticking.cancel()


# --- disks and files ----------------------------------------------------------------------------


def test_a_full_disk_is_an_error_and_what_was_stored_is_there(
    client: EdgeQdrantClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(client)
    client.upsert("docs", [point(1)])
    usage = SimpleNamespace(free=10 * 2**20)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage)
        for write in (
            lambda: client.upsert("docs", [point(2)]),
            lambda: client.set_payload("docs", {"a": 1}, [1]),
            lambda: make(client, "another"),
            lambda: client.optimize("docs"),
        ):
            with pytest.raises(StoreError, match=r"10\.0 MiB free"):
                write()
        assert client.count("docs").count == 1
        assert not client.collection_exists("another")
        assert len(list((folder / "shards").iterdir())) == 1
    client.upsert("docs", [point(2)])
    assert client.count("docs").count == 2


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        EdgeQdrantClient("/proc/no such folder")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="it is a file"):
        EdgeQdrantClient(tmp_path / "file")


@pytest.mark.parametrize(
    ("number", "has_advice"),
    [(errno.EROFS, True), (errno.EACCES, True), (errno.EPERM, True), (errno.ENOSPC, False)],
)
def test_a_store_that_may_only_be_read_is_named_with_the_way_out(
    client: EdgeQdrantClient,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    has_advice: bool,
) -> None:
    """Opening the lock's file for writing is what fails on a read-only file system."""
    make(client)
    client.close()
    opened = Path.open

    def refuse(path: Path, mode: str = "r", *arguments: object, **options: object) -> object:
        if path.is_relative_to(folder) and mode not in ("r", "rb"):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, mode, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StoreError, match="it cannot be written: ") as raised:
        EdgeQdrantClient(folder)
    assert ("copy the folder to where it can be written" in str(raised.value)) == has_advice
    with pytest.raises(StoreError) as raised:
        EdgeQdrantClient(folder / "new")  # there is nothing to copy
    assert "copy the folder" not in str(raised.value)


@pytest.mark.parametrize("changed", ["format", "core"])
def test_a_store_of_newer_software_is_left_alone(folder: Path, changed: str) -> None:
    with EdgeQdrantClient(folder) as client:
        make(client)
    catalog = folder / "catalog.json"
    content = json.loads(catalog.read_text())
    content[changed] = {"format": 99, "core": "99.0.1"}[changed]
    newer = json.dumps(content)
    catalog.write_text(newer)
    with pytest.raises(StoreError, match="Upgrade unified-embeddings"):
        EdgeQdrantClient(folder)
    assert catalog.read_text() == newer
    assert len(list((folder / "shards").iterdir())) == 1
    content[changed] = {"format": 2, "core": "0.9.7"}[changed]
    content["checksum"] = catalogs._checksum(content)
    catalog.write_text(json.dumps(content))
    with EdgeQdrantClient(folder) as client:
        assert client.collection_exists("docs")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', '{"format": "x"}'])
def test_a_damaged_catalogue_is_an_error_and_the_points_are_left_alone(
    folder: Path, damage: str
) -> None:
    with EdgeQdrantClient(folder) as client:
        make(client)
    (folder / "catalog.json").write_text(damage)
    with pytest.raises(StoreError, match="left alone"):
        EdgeQdrantClient(folder)
    assert len(list((folder / "shards").iterdir())) == 1


def test_a_lost_or_damaged_shard_affects_its_collection_only(folder: Path) -> None:
    with EdgeQdrantClient(folder) as client:
        make(client, "lost")
        make(client, "broken")
        make(client, "whole")
        client.upsert("whole", [point(1)])
        entries = dict(client._store.state().collections)
    shutil.rmtree(folder / "shards" / entries["lost"].shard)
    segments = folder / "shards" / entries["broken"].shard / "segments"
    for file in segments.rglob("segment.json"):
        file.write_text("{")
    with EdgeQdrantClient(folder) as client:
        assert client.count("whole").count == 1
        for name in ("lost", "broken"):
            with pytest.raises(StoreError, match=name):
                client.count(name)
            client.delete_collection(name)
        assert [one.name for one in client.get_collections().collections] == ["whole"]


def test_a_folder_of_local_mode_names_the_command_that_moves_it(folder: Path) -> None:
    theirs = QdrantClient(path=str(folder))
    theirs.create_collection("docs", vectors_config=qm.VectorParams(size=2, distance="Dot"))
    theirs.close()
    with pytest.raises(StoreError, match=r"unified-embeddings copy --from .*store --to"):
        EdgeQdrantClient(folder)


def test_foreign_files_in_the_folder_are_kept(folder: Path) -> None:
    (folder / "shards" / "mine").mkdir(parents=True)
    (folder / "notes.txt").write_text("keep")
    with EdgeQdrantClient(folder) as client:
        make(client)
    assert (folder / "shards" / "mine").is_dir()
    assert (folder / "notes.txt").read_text() == "keep"


# --- optimizing ---------------------------------------------------------------------------------


def fill(client: EdgeQdrantClient, count: int, name: str = "docs") -> np.ndarray:
    """Store enough points for an index; return their random vectors, (count, 64) float32."""
    client.create_collection(
        name,
        vectors_config=qm.VectorParams(size=64, distance=qm.Distance.COSINE),
        optimizers_config=qm.OptimizersConfigDiff(indexing_threshold=100),
    )
    rows = np.random.default_rng(0).standard_normal((count, 64)).astype(np.float32)
    client.upload_points(
        name,
        (
            qm.PointStruct(id=number, vector=row.tolist(), payload={"number": number})
            for number, row in enumerate(rows)
        ),
        batch_size=500,
    )
    return rows


def test_optimizing_indexes_and_changes_no_exact_answer(
    client: EdgeQdrantClient, folder: Path
) -> None:
    rows = fill(client, 3000)
    client.create_payload_index("docs", "number", qm.PayloadSchemaType.INTEGER)
    exact = qm.SearchParams(exact=True)

    def answers(**options: Any) -> list[list[tuple[Any, float]]]:
        found = [client.query_points("docs", query=row.tolist(), **options) for row in rows[:20]]
        return [[(one.id, round(one.score, 5)) for one in each.points] for each in found]

    before = answers()
    assert client.get_collection("docs").indexed_vectors_count == 0
    assert client.optimize("docs") is True
    info = client.get_collection("docs")
    assert info.indexed_vectors_count == 3000
    assert info.points_count == 3000
    assert list(info.payload_schema) == ["number"]
    assert answers(search_params=exact) == before
    near = answers(search_params=qm.SearchParams(hnsw_ef=512))
    hits = sum(
        len({i for i, _ in a} & {i for i, _ in b}) for a, b in zip(near, before, strict=True)
    )
    assert hits >= 0.95 * 200
    assert len(list((folder / "shards").iterdir())) == 1
    client.upsert("docs", [qm.PointStruct(id=9999, vector=[2.0] * 64)])
    assert client.query_points("docs", query=[1.0] * 64, limit=1).points[0].id == 9999
    client.close()
    with EdgeQdrantClient(folder) as again:
        assert again.get_collection("docs").indexed_vectors_count == 3000
        assert again.count("docs").count == 3001
        assert again.optimize("docs") in (True, False)
        assert again.count("docs").count == 3001


def test_optimizing_with_nothing_to_do_changes_nothing(
    client: EdgeQdrantClient, folder: Path
) -> None:
    make(client)
    client.upsert("docs", [point(1)])
    (before,) = (folder / "shards").iterdir()
    assert client.optimize("docs") is False
    assert [*(folder / "shards").iterdir()] == [before]
    assert client.count("docs").count == 1
    with pytest.raises(InputError, match="not found"):
        client.optimize("no such collection")


def test_reads_go_on_and_writes_wait_while_a_collection_is_optimized(
    client: EdgeQdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(client, 2000)
    optimized, going_on, go_on = shards.Shard._optimize_copy, threading.Event(), threading.Event()

    def slow(shard: shards.Shard, folder: Path) -> bool:
        going_on.set()
        assert go_on.wait(30)
        return optimized(shard, folder)

    monkeypatch.setattr(shards.Shard, "_optimize_copy", slow)
    with ThreadPoolExecutor(2) as pool:
        work = pool.submit(client.optimize, "docs")
        assert going_on.wait(30)
        assert client.count("docs").count == 2000
        assert client.query_points("docs", query=[1.0] * 64).points
        written = pool.submit(client.upsert, "docs", [qm.PointStruct(id=5000, vector=[1.0] * 64)])
        make(client, "another")
        assert not written.done()
        go_on.set()
        assert work.result() is True
        written.result()
    assert client.count("docs").count == 2001


@pytest.mark.parametrize("how", ["interrupted", "failed", "deleted", "closed"])
def test_an_interrupted_optimization_changes_nothing(
    client: EdgeQdrantClient, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    fill(client, 500)
    kinds: dict[str, type[BaseException]] = {"interrupted": KeyboardInterrupt}
    deleting = threading.Thread(target=client.delete_collection, args=["docs"])
    closing = threading.Thread(target=client.close)

    def stopped(*_: object) -> bool:
        if how == "deleted":
            deleting.start()
            while client.collection_exists("docs"):
                time.sleep(0.001)
            return True
        if how == "closed":
            closing.start()
            while not client.closed:
                time.sleep(0.001)
            return True
        raise kinds.get(how, RuntimeError)("stopped")

    monkeypatch.setattr(shards.Shard, "_optimize_copy", stopped)
    with pytest.raises(kinds.get(how, StoreError)):
        client.optimize("docs")
    if how == "deleted":
        deleting.join()
    if how == "closed":
        closing.join()
        with EdgeQdrantClient(folder) as again:
            assert again.count("docs").count == 500
        return
    assert client.collection_exists("docs") is (how != "deleted")
    if how != "deleted":
        assert client.count("docs").count == 500
        assert len(list((folder / "shards").iterdir())) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
def test_killed_while_it_optimizes_it_leaves_no_process_and_the_points_as_they_were(
    folder: Path,
) -> None:
    with EdgeQdrantClient(folder) as client:
        fill(client, 20_000)
    code = """
        from unified_embeddings.system.processes import ChildProcess
        result = ChildProcess.result
        def told(self):
            print(self.pid, flush=True)
            return result(self)
        ChildProcess.result = told
        EdgeQdrantClient(sys.argv[1]).optimize("docs")
    """
    process = run(code, folder)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    time.sleep(0.05)
    process.kill()
    process.wait()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in status(child):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the process that optimizes outlived the one that asked for it")
    with EdgeQdrantClient(folder) as client:
        assert client.count("docs").count == 20_000
        assert client.get_collection("docs").indexed_vectors_count == 0
        assert len(list((folder / "shards").iterdir())) == 1


def status(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_the_optimizing_process_reports_what_went_wrong(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="does not exist"):
        shards.Shard("docs", tmp_path)._optimize_copy(tmp_path / "nothing")


# --- what only a server has ---------------------------------------------------------------------


def test_what_only_a_server_has_raises_by_its_name(client: EdgeQdrantClient) -> None:
    make(client)
    calls: dict[str, Any] = {
        r"search_matrix_pairs\(\)": lambda: client.search_matrix_pairs("docs"),
        "read_fan_out_factor": lambda: client.update_collection(
            "docs", collection_params=qm.CollectionParamsDiff(read_fan_out_factor=2)
        ),
        r"create_snapshot\(\)": lambda: client.create_snapshot("docs"),
        "shard_key_selector": lambda: client.upsert("docs", [point(1)], shard_key_selector="a"),
        "shard_number=2": lambda: make(client, "other", shard_number=2),
        "replication_factor=3": lambda: make(client, "other", replication_factor=3),
        "strict_mode_config": lambda: make(
            client, "other", strict_mode_config=qm.StrictModeConfig(enabled=True)
        ),
        "RelevanceFeedbackQuery": lambda: client.query_points(
            "docs",
            query=qm.RelevanceFeedbackQuery(
                relevance_feedback=qm.RelevanceFeedbackInput(
                    target=vector(1),
                    feedback=[],
                    strategy=qm.NaiveFeedbackStrategy(
                        naive=qm.NaiveFeedbackStrategyParams(a=1.0, b=1.0, c=1.0)
                    ),
                )
            ),
            using="d",
        ),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=rf"{name}.*not supported by the embedded store"):
            call()
    assert not client.collection_exists("other")
    with pytest.raises(AttributeError):
        client.no_such_method  # noqa: B018
    with pytest.raises(TypeError):
        client.count("docs", no_such_option=1)  # type: ignore[call-arg]


def test_every_method_of_qdrant_client_exists_or_is_refused(client: EdgeQdrantClient) -> None:
    for name in dir(QdrantClient):
        if name.startswith("_") or not callable(getattr(QdrantClient, name)):
            continue
        if hasattr(client, name):
            assert callable(getattr(client, name)), name
        else:
            with pytest.raises(InputError, match=rf"^{name}\(\) is not supported"):
                getattr(client, name)


def test_its_signatures_are_qdrant_clients() -> None:
    """By name and order, so that both take the same calls."""
    import inspect

    for name, method in inspect.getmembers(EdgeQdrantClient, inspect.isfunction):
        theirs = getattr(QdrantClient, name, None)
        if name.startswith("_") or theirs is None or name == "close":
            continue
        wanted = [p for p in inspect.signature(theirs).parameters if p != "kwargs"]
        given = list(inspect.signature(method).parameters)
        assert given == wanted, name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a:b", "a\0b", "x" * 256, 7, None])
def test_names_that_a_server_refuses_are_refused(client: EdgeQdrantClient, name: Any) -> None:
    with pytest.raises(InputError, match="a name"):
        make(client, name)


@pytest.mark.parametrize("name", ["ünïcödé", "日本", "with space", "x" * 255, "catalog.json", "🦊"])
def test_names_that_a_server_takes_are_taken(client: EdgeQdrantClient, name: str) -> None:
    make(client, name)
    client.upsert(name, [point(1)])
    path = client.path
    client.close()
    with EdgeQdrantClient(path) as again:
        assert again.count(name).count == 1


def test_settings_come_back_as_they_were_given(client: EdgeQdrantClient, folder: Path) -> None:
    vectors = {
        "d": qm.VectorParams(
            size=4,
            distance=qm.Distance.EUCLID,
            datatype=qm.Datatype.FLOAT16,
            hnsw_config=qm.HnswConfigDiff(m=8),
            on_disk=True,
        ),
        "m": qm.VectorParams(
            size=2,
            distance=qm.Distance.COSINE,
            multivector_config=qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM),
        ),
    }
    sparse = {"s": qm.SparseVectorParams(modifier=qm.Modifier.IDF)}
    quantization = qm.ScalarQuantization(
        scalar=qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8, quantile=0.99)
    )
    metadata = {"model": None, "nested": {"when": "now", "list": [1, None]}}
    client.create_collection(
        "docs",
        vectors_config=vectors,
        sparse_vectors_config=sparse,
        quantization_config=quantization,
        hnsw_config=qm.HnswConfigDiff(m=24, ef_construct=200),
        on_disk_payload=False,
        payload=qm.PayloadStorageParams(memory=qm.Memory.CACHED),
        id_tracker=qm.IdTrackerParams(memory=qm.Memory.COLD),
        metadata=metadata,
    )
    client.create_payload_index("docs", "a", qm.KeywordIndexParams(type="keyword", is_tenant=True))
    client.close()
    with EdgeQdrantClient(folder) as again:
        info = again.get_collection("docs")
        assert info.config.params.vectors == vectors
        assert info.config.params.sparse_vectors == sparse
        assert info.config.quantization_config == quantization
        assert info.config.hnsw_config.m == 24
        assert info.config.hnsw_config.ef_construct == 200
        assert info.config.params.on_disk_payload is False
        assert info.config.params.payload == qm.PayloadStorageParams(memory=qm.Memory.CACHED)
        assert info.config.metadata == metadata
        assert info.payload_schema["a"].data_type == qm.PayloadSchemaType.KEYWORD
        again.update_collection("docs", metadata={"model": "bge", "more": 1})
        merged = {**metadata, "model": "bge", "more": 1}
        assert again.get_collection("docs").config.metadata == merged


def test_a_payload_is_stored_as_json(client: EdgeQdrantClient) -> None:
    from datetime import datetime, timezone

    make(client)
    when, name = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc), uuid.uuid4()
    payload = {"when": when, "id": name, "big": 2**63, "text": "a\0é😀", "none": None, "t": (1, 2)}
    client.upsert("docs", [qm.PointStruct(id=1, vector={}, payload=payload)])
    (found,) = client.retrieve("docs", [1])
    assert found.payload == {
        "when": "2026-01-02T03:04:00Z",
        "id": str(name),
        "big": 2**63,
        "text": "a\0é😀",
        "none": None,
        "t": [1, 2],
    }


@pytest.mark.parametrize(
    "payload",
    [
        {"a": 2**64},
        {"a": [-(2**63) - 1]},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": "\ud800"},
        {"a": object()},
    ],
)
def test_a_payload_that_is_not_json_is_refused_with_its_points_index(
    client: EdgeQdrantClient, payload: dict[str, Any]
) -> None:
    make(client)
    bad = qm.PointStruct(id=2, vector={"d": vector(2)}, payload=payload)
    with pytest.raises(InputError, match="item 1") as caught:
        client.upsert("docs", [point(1), bad])
    assert caught.value.index == 1
    assert client.count("docs").count == 0


def test_large_upserts_and_points_are_stored_whole(client: EdgeQdrantClient) -> None:
    """They are split into several pieces; a long text's ColBERT vectors take some megabytes."""
    client.create_collection(
        "docs",
        vectors_config=qm.VectorParams(
            size=128,
            distance=qm.Distance.DOT,
            multivector_config=qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM),
        ),
    )
    rows = np.random.default_rng(0).standard_normal((3, 4000, 128)).astype(np.float32)
    client.upsert(
        "docs",
        [
            qm.PointStruct(id=number, vector=one.tolist(), payload={"text": "x" * 10**6})
            for number, one in enumerate(rows)
        ],
    )
    for record in client.retrieve("docs", [0, 1, 2], with_vectors=True):
        np.testing.assert_array_equal(np.float32(record.vector), rows[int(record.id)])
        assert record.payload == {"text": "x" * 10**6}


# --- interrupted, closed and restored at the wrong moment -----------------------------------------


@pytest.mark.parametrize("where", ["replacing", "syncing"])
@pytest.mark.parametrize("what", ["create", "optimize", "clear"])
def test_ctrl_c_while_the_catalogue_is_replaced_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str, where: str
) -> None:
    """The signal arrives in the main thread right after the file was replaced."""
    with EdgeQdrantClient(folder) as client:
        fill(client, 300)
        changes: dict[str, Callable[[], object]] = {
            "create": lambda: make(client, "another"),
            "optimize": lambda: client.optimize("docs"),
            "clear": lambda: client.clear("docs"),
        }
        replace = Path.replace

        def interrupted(path: Path, target: Path) -> Path:
            done = replace(path, target)
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.05)
            return done

        def interrupted_after(path: Path) -> None:
            if path == folder:
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patched:
            if where == "replacing":
                patched.setattr(Path, "replace", interrupted)
            else:
                patched.setattr(files, "sync_folder", interrupted_after)
            patched.setattr(shards.Shard, "_optimize_copy", lambda *_: True)
            with pytest.raises(KeyboardInterrupt):
                changes[what]()
        left = 0 if what == "clear" else 300
        client.upsert("docs", [qm.PointStruct(id=9000, vector=[1.0] * 64)])
        assert client.count("docs").count == left + 1
    with EdgeQdrantClient(folder) as again:
        assert again.count("docs").count == left + 1
        if again.collection_exists("another"):
            assert again.count("another").count == 0
        assert len(list((folder / "shards").iterdir())) == len(again.get_collections().collections)


def test_a_vector_removed_and_added_again_loses_no_point_after_kill_9(folder: Path) -> None:
    code = """
        client = EdgeQdrantClient(sys.argv[1])
        two = qm.VectorParams(size=2, distance="Dot")
        client.create_collection("docs", vectors_config={"a": two, "b": two})
        point = lambda n, **vector: qm.PointStruct(id=n, vector=vector, payload={"n": n})
        client.upsert("docs", [point(1, a=[1.0, 2.0], b=[3.0, 4.0]), point(3, a=[1.0, 1.0])])
        client.delete_vector_name("docs", "b")
        three = qm.DenseVectorNameConfig(dense=qm.DenseVectorConfig(size=3, distance="Dot"))
        client.create_vector_name("docs", "b", three)
        client.upsert("docs", [point(2, a=[5.0, 6.0], b=[7.0, 8.0, 9.0])])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    process = run(code, folder)
    process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL
    with EdgeQdrantClient(folder) as client:
        found = client.retrieve("docs", [1, 2, 3], with_vectors=True)
    assert [record.vector for record in found] == [
        {"a": [1.0, 2.0]},
        {"a": [5.0, 6.0], "b": [7.0, 8.0, 9.0]},
        {"a": [1.0, 1.0]},
    ]


@pytest.mark.parametrize("change", ["adding", "removing"])
def test_an_interrupted_change_of_vectors_is_completed_or_rolled_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Interrupted between the shard, which is changed first, and the catalogue."""

    def stopped(*_: object) -> None:
        raise StoreError("docs", "saving", "stopped")

    three = qm.DenseVectorNameConfig(dense=qm.DenseVectorConfig(size=3, distance=qm.Distance.DOT))
    with EdgeQdrantClient(folder) as client:
        make(client)
        client.upsert("docs", [point(1)])
        with monkeypatch.context() as patched:
            patched.setattr(catalogs.Catalog, "save", stopped)
            do: dict[str, Any] = {
                "adding": lambda: client.create_vector_name("docs", "new", three),
                "removing": lambda: client.delete_vector_name("docs", "s"),
            }
            with pytest.raises(StoreError, match="stopped"):
                do[change]()
    with EdgeQdrantClient(folder) as client:
        params = client.get_collection("docs").config.params
        assert list(params.vectors or ()) == ["d"]
        assert list(params.sparse_vectors or ()) == (["s"] if change == "adding" else [])
        client.create_vector_name("docs", "new", three)
        client.upsert("docs", [qm.PointStruct(id=2, vector={"new": [1.0, 2.0, 3.0]})])
        assert client.count("docs").count == 2


def test_payloads_count_towards_the_disk_space_needed(
    client: EdgeQdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(client)
    client.upsert("docs", [point(number) for number in range(20)])
    text = "x" * 3_000_000
    free = SimpleNamespace(free=64 * 2**20 + 4 * len(text) - 1)
    everything = qm.Filter(must=[])
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: free)
        for points in (list(range(20)), everything):
            for write in (client.set_payload, client.overwrite_payload):
                with pytest.raises(StoreError, match="MiB are needed"):
                    write("docs", {"text": text}, points)
    sizes: list[int] = []
    update = shards.Shard.write

    def noted(shard: shards.Shard, operation: str, what: Any, *, size: int = 0) -> None:
        sizes.append(size)
        update(shard, operation, what, size=size)

    monkeypatch.setattr(shards.Shard, "write", noted)
    client.set_payload("docs", {"text": text[:1_000_000]}, everything)
    assert len(sizes) == 20
    assert min(sizes) > 1_000_000
    assert client.count("docs", count_filter=qm.Filter(must=[has("text")])).count == 20


def has(key: str) -> qm.Filter:
    empty = qm.IsEmptyCondition(is_empty=qm.PayloadField(key=key))
    return qm.Filter(must_not=[empty])


def test_a_lost_catalogue_is_an_error_and_the_points_are_left_alone(folder: Path) -> None:
    with EdgeQdrantClient(folder) as client:
        make(client)
    catalog = (folder / "catalog.json").read_text()
    (folder / "catalog.json").unlink()
    with pytest.raises(StoreError, match=r"catalog\.json is missing"):
        EdgeQdrantClient(folder)
    (folder / "catalog.json").write_text(catalog)
    with EdgeQdrantClient(folder) as client:
        assert client.count("docs").count == 0


def test_a_catalogue_from_before_an_optimization_loses_no_points(folder: Path) -> None:
    with EdgeQdrantClient(folder) as client:
        fill(client, 500)
        before = (folder / "catalog.json").read_text()
        assert client.optimize("docs")
    after = (folder / "catalog.json").read_text()
    (folder / "catalog.json").write_text(before)
    with EdgeQdrantClient(folder) as client, pytest.raises(StoreError, match="docs"):
        client.count("docs")
    (folder / "catalog.json").write_text(after)
    with EdgeQdrantClient(folder) as client:
        assert client.count("docs").count == 500


def test_a_newer_core_that_opens_a_store_records_its_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EdgeQdrantClient(folder) as client:
        make(client)
    installed = catalogs.version
    with monkeypatch.context() as patched:
        patched.setattr(
            catalogs, "version", lambda name: "0.10.0" if "edge" in name else installed(name)
        )
        EdgeQdrantClient(folder).close()
    with pytest.raises(StoreError, match="Upgrade"):
        EdgeQdrantClient(folder)


def test_closing_waits_for_a_creation_in_progress_and_allows_no_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = EdgeQdrantClient(folder)
    make(client)
    saving, go_on = threading.Event(), threading.Event()
    save = catalogs.Catalog.save

    def slow(catalog: catalogs.Catalog, state: catalogs.State) -> None:
        saving.set()
        assert go_on.wait(30)
        save(catalog, state)

    monkeypatch.setattr(catalogs.Catalog, "save", slow)
    with ThreadPoolExecutor(2) as pool:
        making = pool.submit(make, client, "late")
        assert saving.wait(30)
        closing = pool.submit(client.close)
        while not client.closed:
            time.sleep(0.001)
        with pytest.raises(StoreError, match="open already"):
            EdgeQdrantClient(folder)
        go_on.set()
        making.result()
        closing.result()
    monkeypatch.undo()
    with pytest.raises(StoreError, match="closed"):
        client.upsert("docs", [point(1)])
    with EdgeQdrantClient(folder) as again:
        assert again.count("late").count == 0
        assert again.count("docs").count == 0


def test_a_shard_that_fails_to_close_keeps_no_other_open(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = EdgeQdrantClient(folder)
    for name in ("one", "two", "three"):
        make(client, name)
        client.upsert(name, [point(1)])
    close = shards.Shard.close

    def failing(shard: shards.Shard, **options: Any) -> None:
        close(shard, **options)
        if shard.collection == "one":
            raise StoreError("one", "closing", "it did not")

    monkeypatch.setattr(shards.Shard, "close", failing)
    with pytest.raises(StoreError, match="it did not"):
        client.close()
    monkeypatch.undo()
    with EdgeQdrantClient(folder) as again:
        assert [again.count(name).count for name in ("one", "two", "three")] == [1, 1, 1]


def test_a_store_can_be_closed_and_opened_while_a_forked_child_lives(folder: Path) -> None:
    client = EdgeQdrantClient(folder)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reading, 1)
        os._exit(0)
    try:
        client.close()
        EdgeQdrantClient(folder).close()
    finally:
        os.write(writing, b"x")
        os.waitpid(child, 0)


async def test_writes_that_wait_for_an_optimization_block_no_read(
    client: EdgeQdrantClient,
) -> None:
    make(client)
    shard, _ = client._store.collection("docs")
    release = threading.Event()

    def hold() -> None:
        with shard.writing:
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    writes = [asyncio.create_task(client.aclient.upsert("docs", [point(n)])) for n in range(50)]
    try:
        await asyncio.sleep(0)
        assert (await asyncio.wait_for(client.aclient.count("docs"), 20)).count == 0
    finally:
        release.set()
    await asyncio.gather(*writes)
    holder.join()
    assert client.count("docs").count == 50


def test_switching_an_alias_and_dropping_its_old_collection_fails_no_read(
    client: EdgeQdrantClient,
) -> None:
    def alias(name: str) -> list[Any]:
        made = qm.CreateAlias(collection_name=name, alias_name="live")
        return [qm.CreateAliasOperation(create_alias=made)]

    make(client, "live 0")
    client.upsert("live 0", [point(1)])
    client.update_collection_aliases(alias("live 0"))
    done, failures = threading.Event(), []

    def read() -> None:
        while not done.wait(0.0005):  # a pause, or the readers keep the interpreter to themselves
            try:
                assert client.count("live").count == 1
                assert len(client.query_points("live", query=vector(1), using="d").points) == 1
            except BaseException as error:
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 15):
        make(client, f"live {number}")
        client.upsert(f"live {number}", [point(1)])
        client.update_collection_aliases(alias(f"live {number}"))
        client.delete_collection(f"live {number - 1}")
    done.set()
    for reader in readers:
        reader.join()
    assert not failures


def test_a_waiting_write_follows_a_switched_alias(
    client: EdgeQdrantClient,
) -> None:
    def point_at(name: str) -> None:
        made = qm.CreateAlias(collection_name=name, alias_name="live")
        client.update_collection_aliases([qm.CreateAliasOperation(create_alias=made)])

    dense = qm.DenseVectorConfig(size=2, distance=qm.Distance.DOT)
    added = qm.DenseVectorNameConfig(dense=dense)
    make(client, "old")
    make(client, "new")
    point_at("old")
    shard, _ = client._store.collection("old")
    with ThreadPoolExecutor(2) as pool:
        with shard.writing:
            work = [
                pool.submit(client.upsert, "live", [point(1)]),
                pool.submit(client.create_vector_name, "live", "more", added),
            ]
            time.sleep(0.2)  # both wait for the lock by now
            point_at("new")
        for one in work:
            one.result()
    assert [client.count(name).count for name in ("old", "new")] == [0, 1]
    for name, names in {"old": {"d"}, "new": {"d", "more"}}.items():
        assert set(client.get_collection(name).config.params.vectors or ()) == names


def test_an_unsupported_data_type_of_an_added_vector_is_refused_by_name(
    client: EdgeQdrantClient,
) -> None:
    make(client)
    dense = qm.DenseVectorConfig.model_construct(
        size=2, distance=qm.Distance.DOT, datatype=SimpleNamespace(value="float7")
    )
    config = qm.DenseVectorNameConfig.model_construct(dense=dense)
    with pytest.raises(InputError, match="float7"):
        client.create_vector_name("docs", "more", config)


def test_closing_ends_an_optimization(client: EdgeQdrantClient, folder: Path) -> None:
    fill(client, 5000)
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(client.optimize, "docs")
        shard, _ = client._store.collection("docs")
        while shard._optimizer is None and not work.done():
            time.sleep(0.001)
        client.close()
        if work.exception() is not None:
            assert isinstance(work.exception(), StoreError)
    with EdgeQdrantClient(folder) as again:
        assert again.count("docs").count == 5000
        assert len(list((folder / "shards").iterdir())) == 1


def test_modules_in_the_current_folder_are_not_imported(
    client: EdgeQdrantClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ctypes.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    fill(client, 1000)
    assert client.optimize("docs") is True


def test_a_frozen_program_is_told_that_it_cannot_optimize(
    client: EdgeQdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(client, 300)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(StoreError, match="frozen"):
        client.optimize("docs")
    assert client.count("docs").count == 300


# --- bad arguments ------------------------------------------------------------------------------

BAD_CALLS: dict[str, Any] = {
    "limit that is too big": lambda c: c.query_points("docs", query=vector(1), limit=2**70),
    "scroll limit that is too big": lambda c: c.scroll("docs", limit=2**70),
    "negative hnsw_ef": lambda c: c.query_points(
        "docs", query=vector(1), using="d", search_params=qm.SearchParams(hnsw_ef=-1)
    ),
    "negative m": lambda c: make(c, "x", hnsw_config=qm.HnswConfigDiff.model_construct(m=-1)),
    "threshold that is no number": lambda c: c.query_points(
        "docs", query=vector(1), using="d", score_threshold="x"
    ),
    "threshold that is NaN": lambda c: c.query_points(
        "docs", query=vector(1), using="d", score_threshold=float("nan")
    ),
    "payload path": lambda c: c.scroll("docs", with_payload=["a["]),
    "payload exclusion": lambda c: c.scroll(
        "docs", with_payload=qm.PayloadSelectorExclude(exclude=["a["])
    ),
    "payload selector that is a text": lambda c: c.scroll("docs", with_payload="number"),
    "vector selector that is a text": lambda c: c.scroll("docs", with_vectors="d"),
    "order_by path": lambda c: c.scroll("docs", order_by="a["),
    "keys that are a text": lambda c: c.delete_payload("docs", "number", [1]),
    "vectors that are a text": lambda c: c.delete_vectors("docs", "d", [1]),
    "list for search_params": lambda c: c.query_points(
        "docs", query=vector(1), using="d", search_params=[]
    ),
    "text for prefetch": lambda c: c.query_points(
        "docs", query=qm.RrfQuery(rrf=qm.Rrf()), prefetch=["d"]
    ),
    "request that is a text": lambda c: c.query_batch_points("docs", ["d"]),
    "vectors of nothing": lambda c: c.update_vectors("docs", [1]),
    "weights that are NaN": lambda c: c.query_points(
        "docs",
        query=qm.RrfQuery(rrf=qm.Rrf(weights=[float("nan")])),
        prefetch=[qm.Prefetch(query=vector(1), using="d")],
    ),
    "too many weights": lambda c: c.query_points(
        "docs",
        query=qm.RrfQuery(rrf=qm.Rrf(weights=[1.0, 2.0])),
        prefetch=[qm.Prefetch(query=vector(1), using="d")],
    ),
    "half of a character in a name": lambda c: make(c, "a\ud800"),
    "half of a character in an alias": lambda c: c.update_collection_aliases(
        [
            qm.CreateAliasOperation(
                create_alias=qm.CreateAlias(collection_name="docs", alias_name="\ud800")
            )
        ]
    ),
    "a collection without vectors": lambda c: c.create_collection("x"),
    "an index of nothing": lambda c: c.create_payload_index("docs", "a"),
    "an index path": lambda c: c.create_payload_index("docs", "a[", "keyword"),
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_bad_arguments_are_input_errors_and_change_nothing(
    client: EdgeQdrantClient, call: str
) -> None:
    make(client)
    client.upsert("docs", [point(1)])
    with pytest.raises(InputError):
        BAD_CALLS[call](client)
    assert client.retrieve("docs", [1])[0].payload == {"number": 1}
    assert [one.name for one in client.get_collections().collections] == ["docs"]
    assert not client.get_aliases().aliases


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, None, 7])
def test_an_impossible_path_is_a_store_error(path: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="opening"):
        EdgeQdrantClient(tmp_path / path if isinstance(path, str) else path)


def test_the_index_of_a_bad_point_counts_all_points_of_an_upload(client: EdgeQdrantClient) -> None:
    make(client)
    points = [point(number) for number in range(71)]
    points[70] = qm.PointStruct(id=70, vector={"d": [1.0]})
    with pytest.raises(InputError, match=r"^item 70: ") as caught:
        client.upload_points("docs", points)
    assert caught.value.index == 70


def test_callers_may_change_what_they_gave_and_got(client: EdgeQdrantClient) -> None:
    params = qm.VectorParams(size=2, distance=qm.Distance.DOT)
    metadata = {"nested": {"a": 1}}
    client.create_collection("docs", vectors_config=params, metadata=metadata)
    params.size = 99
    metadata["nested"]["a"] = 99
    info = client.get_collection("docs")
    assert isinstance(info.config.params.vectors, qm.VectorParams)
    info.config.params.vectors.size = 77
    assert info.config.metadata == {"nested": {"a": 1}}
    info.config.metadata["nested"]["a"] = 77
    client.upsert("docs", [qm.PointStruct(id=1, vector=[1.0, 2.0])])
    assert client.get_collection("docs").config.metadata == {"nested": {"a": 1}}


def test_a_text_index_keeps_its_stopwords_and_stemmer(client: EdgeQdrantClient) -> None:
    make(client)
    index = qm.TextIndexParams(
        type=qm.TextIndexType.TEXT,
        tokenizer=qm.TokenizerType.WORD,
        lowercase=True,
        stopwords=qm.StopwordsSet(languages=[qm.Language.ENGLISH], custom=["fox"]),
        stemmer=qm.SnowballParams(type=qm.Snowball.SNOWBALL, language=qm.SnowballLanguage.ENGLISH),
    )
    client.create_payload_index("docs", "text", index)
    payload = {"text": "the foxes were running"}
    client.upsert("docs", [qm.PointStruct(id=1, vector={}, payload=payload)])

    def matching(text: str) -> int:
        match = qm.FieldCondition(key="text", match=qm.MatchText(text=text))
        return client.count("docs", count_filter=qm.Filter(must=[match])).count

    assert matching("runs") == 1
    assert matching("walks") == 0
    assert client.get_collection("docs").payload_schema["text"].params == index
