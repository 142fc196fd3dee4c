"""Damaged stores: any changed byte is an error with a name, is repaired, or did not matter.

`tools/damage_store.py` does the same 200 times for each kind of file, with stores that were closed
and stores whose process was killed. Here are one mutation per file, and the cases by hand.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import models as qm

from unified_embeddings import EdgeQdrantClient, StoreError
from unified_embeddings.stores.edge import catalog as catalogs
from unified_embeddings.stores.edge import probe
from unified_embeddings.stores.edge import seal as seals
from unified_embeddings.stores.edge import shard as shards
from unified_embeddings.stores.edge.catalog import Catalog
from unified_embeddings.stores.edge.checking import CollectionReport, check_store

TOOL = Path(__file__).parents[2] / "tools" / "damage_store.py"
FIRST = {"number": 1, "text": "x" * 50}


def make(client: EdgeQdrantClient, name: str = "docs", count: int = 200) -> None:
    client.create_collection(
        name,
        vectors_config={"d": qm.VectorParams(size=16, distance=qm.Distance.DOT)},
        sparse_vectors_config={"s": qm.SparseVectorParams()},
        optimizers_config=qm.OptimizersConfigDiff(indexing_threshold=1),
        metadata={"made": "here"},
    )
    client.create_payload_index(name, "number", "integer")
    client.upload_points(name, [point(number) for number in range(count)])


def point(number: int) -> qm.PointStruct:
    generator = random.Random(number)
    return qm.PointStruct(
        id=number,
        vector={
            "d": [generator.random() for _ in range(16)],
            "s": qm.SparseVector(indices=[number % 7], values=[1.0]),
        },
        payload={"number": number, "text": "x" * 50},
    )


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was closed: one collection with an index and points added after it."""
    folder = tmp_path_factory.mktemp("closed") / "store"
    with EdgeQdrantClient(folder) as client:
        make(client)
        assert client.optimize("docs")
        client.upsert("docs", [point(200)])
    return folder


@pytest.fixture
def folder(closed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(closed, tmp_path / "store", copy_function=shards.copy_with_holes))


def shard_folder(folder: Path, name: str = "docs") -> Path:
    catalog = json.loads((folder / "catalog.json").read_text())
    return folder / "shards" / catalog["collections"][name]["shard"]


def answers(folder: Path) -> Any:
    with EdgeQdrantClient(folder) as client:
        points, _ = client.scroll("docs", limit=1_000, with_vectors=True)
        return points


def is_sealed(folder: Path) -> bool:
    return (shard_folder(folder) / seals.SEAL).exists()


def flip(file: Path, position: int, bit: int = 0) -> None:
    with file.open("r+b") as handle:
        handle.seek(position)
        byte = handle.read(1)[0]
        handle.seek(position)
        handle.write(bytes([byte ^ 1 << bit]))


# --- stores that were closed --------------------------------------------------------------------


def truncate(file: Path, generator: random.Random) -> None:
    os.truncate(file, generator.randrange(file.stat().st_size))


def change_bit(file: Path, generator: random.Random) -> None:
    used = min(file.stat().st_size, 512 * file.stat().st_blocks)
    flip(file, generator.randrange(used or 1), generator.randrange(8))


def append(file: Path, generator: random.Random) -> None:
    with file.open("ab") as handle:
        handle.write(generator.randbytes(5))


def remove(file: Path, generator: random.Random) -> None:
    file.unlink()


@pytest.mark.parametrize("mutate", [truncate, change_bit, append, remove])
def test_a_change_of_any_file_is_told_and_nothing_is_touched(
    folder: Path, tmp_path: Path, mutate: Callable[[Path, random.Random], None]
) -> None:
    backup = str(tmp_path / "backup")
    generator = random.Random(0)
    shard = shard_folder(folder)
    files = [file for file in sorted(shard.rglob("*")) if file.is_file() and file.stat().st_size]
    for file in files:
        if file.name == seals.SEAL:
            continue
        shards.copy_with_holes(str(file), backup)
        mutate(file, generator)
        damaged = file.exists() and seals._checksum(file)
        name = file.relative_to(shard).as_posix()
        with EdgeQdrantClient(folder) as client, pytest.raises(StoreError, match=name):
            client.count("docs")
        assert (file.exists() and seals._checksum(file)) == damaged
        assert is_sealed(folder)
        shards.copy_with_holes(backup, str(file))
    assert len(answers(folder)) == 201


def test_the_error_names_the_command_that_tells_more(folder: Path) -> None:
    flip(next(folder.rglob("segment.json")), 0)
    with EdgeQdrantClient(folder) as client, pytest.raises(StoreError) as caught:
        client.upsert("docs", [point(1)])
    assert f"unified-embeddings check {folder}" in str(caught.value)
    assert "restore" in str(caught.value)


def test_times_that_were_set_back_hide_no_change(folder: Path) -> None:
    file = next(folder.rglob("*id_tracker.mappings"))
    before = file.stat()
    flip(file, 9)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StoreError, match="mappings"):
        answers(folder)


def test_a_file_too_many_is_told(folder: Path) -> None:
    shutil.copytree(
        next((shard_folder(folder) / "segments").iterdir()),
        shard_folder(folder) / "segments" / "01234567-0123-0123-0123-0123456789ab",
    )
    with pytest.raises(StoreError, match="is new"):
        answers(folder)


def test_what_file_managers_leave_does_not_matter(folder: Path) -> None:
    (shard_folder(folder) / ".DS_Store").write_bytes(b"\0")
    (shard_folder(folder) / "segments" / ".hidden").mkdir()
    (shard_folder(folder) / "segments" / ".hidden" / "file").write_bytes(b"\0")
    assert [one.payload for one in answers(folder)][1] == FIRST


def test_a_copy_without_holes_is_no_damage(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)  # new times, new inodes, and zeros in place of the holes
    assert answers(copied) == answers(folder)
    assert list(check_store(copied)) == [CollectionReport("docs", 201, was_closed=True)]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"format": 1, "checksum": 0}'])
def test_without_its_checksums_a_collection_is_read_whole_and_gets_new_ones(
    folder: Path, content: bytes
) -> None:
    expected = answers(folder)
    (shard_folder(folder) / seals.SEAL).write_bytes(content)
    assert answers(folder) == expected
    assert seals.read_seal(shard_folder(folder)) is not None


def test_a_damaged_collection_can_be_deleted(folder: Path) -> None:
    flip(next(folder.rglob("segment.json")), 0)
    with EdgeQdrantClient(folder) as client:
        client.delete_collection("docs")
        make(client, count=1)
        assert client.count("docs").count == 1
    assert len(list((folder / "shards").iterdir())) == 1


def test_without_its_checksums_a_damaged_collection_is_opened_if_it_can_be_read(
    folder: Path,
) -> None:
    flip(next(folder.rglob("matrix.dat")), 100)
    with pytest.raises(StoreError, match=str(shard_folder(folder))):
        answers(folder)
    (shard_folder(folder) / seals.SEAL).unlink()
    assert len(answers(folder)) == 201


def test_checksums_that_were_changed_count_as_missing(folder: Path) -> None:
    file = shard_folder(folder) / seals.SEAL
    content = json.loads(file.read_text())
    content["points"] = 7
    file.write_text(json.dumps(content))
    assert seals.read_seal(shard_folder(folder)) is None


def test_a_store_is_sealed_while_closed_and_not_while_open(folder: Path) -> None:
    for number in (201, 202, 203):
        with EdgeQdrantClient(folder) as client:
            assert is_sealed(folder)  # not asked for anything yet
            assert client.count("docs").count == number
            assert not is_sealed(folder)
            client.upsert("docs", [point(number)])
            if number % 2:
                client.flush()
        assert is_sealed(folder)
        assert not seals.find_damage(
            shard_folder(folder),
            seals.read_seal(shard_folder(folder)),  # type: ignore[arg-type]
            read_all=True,
        )


def test_reading_and_optimizing_leave_checksums_that_hold(folder: Path) -> None:
    expected = answers(folder)
    for _ in range(3):
        assert answers(folder) == expected
    with EdgeQdrantClient(folder) as client:
        client.optimize("docs")
        client.create_vector_name(
            "docs", "t", qm.SparseVectorNameConfig(sparse=qm.SparseVectorConfig())
        )
    assert len(answers(folder)) == 201


def test_files_that_nobody_wrote_to_are_read_again_by_check_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that forgets a bit changes no times; here the times are as if it had."""
    monkeypatch.setattr(seals, "_state", lambda stat: (stat.st_size,))
    monkeypatch.setattr(seals, "_is_settled", lambda *_: True)
    expected = answers(folder)
    assert answers(folder) == expected
    flip(next(folder.rglob("matrix.dat")), 100)
    with EdgeQdrantClient(folder) as client:
        assert client.count("docs").count == 201
    (report,) = check_store(folder)
    assert report.problems
    assert "matrix.dat has another content" in report.problems[0]


def test_closing_reads_no_indexed_segment_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are most of a large store, and are never written to."""
    monkeypatch.setattr(seals, "_is_settled", lambda *_: True)
    answers(folder)
    read_files = []
    checksum = seals._checksum

    def record(file: Path) -> int:
        read_files.append(file.name)
        return checksum(file)

    monkeypatch.setattr(seals, "_checksum", record)
    with EdgeQdrantClient(folder) as client:
        client.upsert("docs", [point(201)])
    assert "chunk_0.mmap" in read_files
    assert not {"matrix.dat", "inverted_index.dat", "id_tracker.mappings"} & {*read_files}
    assert next(folder.rglob("matrix.dat"))
    (report,) = check_store(folder)
    assert not report.problems


@pytest.mark.parametrize("size", [0, 1, 131_071, 131_072, 131_073, 1_000_000])
def test_the_checksum_of_a_hole_is_that_of_zeros(tmp_path: Path, size: int) -> None:
    hole, zeros = tmp_path / "hole", tmp_path / "zeros"
    with hole.open("wb") as handle:
        handle.truncate(size)
    zeros.write_bytes(bytes(size))
    assert seals._checksum(hole) == seals._checksum(zeros)
    for position in {0, size // 2, size - 1} if size else set():
        content = bytearray(size)
        content[position] = 1
        zeros.write_bytes(content)
        with hole.open("r+b") as handle:
            handle.seek(position)
            handle.write(b"\1")
        assert seals._checksum(hole) == seals._checksum(zeros) != 0
        with hole.open("r+b") as handle:
            handle.seek(position)
            handle.write(b"\0")


# --- stores whose process was killed ------------------------------------------------------------


@pytest.fixture
def killed(folder: Path) -> Path:
    """The store after a process that had it open, and wrote to it, was killed."""
    process = os.fork()
    if process == 0:
        client = EdgeQdrantClient(folder)
        client.upsert("docs", [point(201)])
        os.kill(os.getpid(), 9)
    os.waitpid(process, 0)
    assert not is_sealed(folder)
    return folder


def test_a_killed_store_is_read_whole_and_sealed_again(killed: Path) -> None:
    assert len(answers(killed)) == 202
    assert is_sealed(killed)


@pytest.mark.parametrize("part", ["chunk_0.mmap", "wal/first-index", "segment.json", "data.bin"])
def test_a_killed_store_that_lacks_a_file_ends_no_process(killed: Path, part: str) -> None:
    """Whatever the core makes of it, a crash included, happens in another process first."""
    file = next(file for file in sorted(killed.rglob("*")) if file.as_posix().endswith(part))
    os.truncate(file, file.stat().st_size // 3)
    problem = ""
    try:
        assert len(answers(killed)) == 202
    except StoreError as error:
        problem = str(error)
    if problem:
        assert "damaged" in problem
        (report,) = check_store(killed)
        assert report.problems


@pytest.mark.parametrize(
    "name", ["id_tracker.mappings", "matrix.dat", "inverted_index.dat", "data.bin"]
)
def test_a_changed_index_is_told_after_a_kill_too(killed: Path, name: str) -> None:
    """What `optimize` has written is never written to, so that its checksums still hold."""
    (file,) = killed.rglob(name)
    flip(file, 100)
    with pytest.raises(StoreError, match=name):
        answers(killed)
    (report,) = check_store(killed)
    assert f"{name} has another content" in report.problems[0]
    if name in ("matrix.dat", "data.bin"):  # the others cannot be read
        for seal in shard_folder(killed).glob("checksums*.json"):
            seal.unlink()
        assert len(answers(killed)) == 202


def test_what_another_version_of_the_core_has_rewritten_is_no_damage(
    killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new version may bring files into its own form when it loads them, and be killed then."""
    (file,) = killed.rglob("matrix.dat")
    flip(file, 100)
    with pytest.raises(StoreError, match=r"matrix\.dat"):
        answers(killed)
    monkeypatch.setattr(seals, "version", lambda _: "99.0")
    assert len(answers(killed)) == 202


@pytest.mark.parametrize(
    "name", ["version.info", "mutable_id_tracker.mappings", "chunk_0.mmap", "matrix.dat"]
)
def test_a_missing_file_is_told_after_a_kill_too(killed: Path, name: str) -> None:
    next(killed.rglob(name)).unlink()
    with pytest.raises(StoreError, match=f"{name} is missing"):
        answers(killed)


def test_any_writing_before_a_kill_is_no_damage(folder: Path) -> None:
    process = os.fork()
    if process == 0:
        client = EdgeQdrantClient(folder)
        client.upsert("docs", [point(number) for number in range(50, 90)])
        client.delete("docs", list(range(10)))
        client.set_payload("docs", {"new": 1}, qm.Filter())
        client.update_vectors("docs", [qm.PointVectors(id=20, vector={"d": [0.5] * 16})])
        client.delete_vectors("docs", ["s"], [21])
        client.create_payload_index("docs", "text", "text")
        client.delete_payload_index("docs", "number")
        client.delete_vector_name("docs", "s")
        config = qm.SparseVectorNameConfig(sparse=qm.SparseVectorConfig())
        client.create_vector_name("docs", "s", config)
        client.delete_vector_name("docs", "d")
        dense = qm.DenseVectorConfig(size=16, distance=qm.Distance.DOT)
        client.create_vector_name("docs", "d", qm.DenseVectorNameConfig(dense=dense))
        client.upsert("docs", [point(number) for number in range(100, 120)])
        os.kill(os.getpid(), 9)
    os.waitpid(process, 0)
    assert len(answers(folder)) == 191
    assert len(answers(folder)) == 191


FIELDS: dict[str, Any] = {
    "keyword": qm.KeywordIndexParams(type=qm.KeywordIndexType.KEYWORD, on_disk=True),
    "integer": qm.PayloadSchemaType.INTEGER,
    "float": qm.FloatIndexParams(type=qm.FloatIndexType.FLOAT, on_disk=True),
    "bool": qm.PayloadSchemaType.BOOL,
    "datetime": qm.PayloadSchemaType.DATETIME,
    "text": qm.TextIndexParams(type=qm.TextIndexType.TEXT, phrase_matching=True),
    "geo": qm.PayloadSchemaType.GEO,
    "uuid": qm.UuidIndexParams(type=qm.UuidIndexType.UUID, on_disk=True),
}


def rich_point(number: int) -> qm.PointStruct:
    """Return a point with a value for each kind of index, and each kind of vector."""
    generator = random.Random(number)
    payload = {
        "keyword": f"word {number % 5}",
        "integer": number,
        "float": number / 8,
        "bool": number % 2 == 0,
        "datetime": f"2024-01-{1 + number % 28:02d}T00:00:00Z",
        "text": f"number {number % 10} and its text",
        "geo": {"lon": number % 90, "lat": number % 45},
        "uuid": f"00000000-0000-0000-0000-{number:012d}",
    }
    for field in generator.sample([*payload], 2):
        del payload[field]
    vectors: dict[str, Any] = {
        "d": [generator.random() for _ in range(4)],
        "s": qm.SparseVector(indices=[number % 7], values=[1.0]),
        "m": [[generator.random() for _ in range(4)] for _ in range(2)],
    }
    return qm.PointStruct(id=number, vector=vectors, payload=payload)


def write_at_random(client: EdgeQdrantClient, chance: random.Random) -> None:
    """Make one change of any kind to a collection of rich points."""
    points, _ = client.scroll("docs", limit=1000)
    ids = [record.id for record in chance.sample(points, min(len(points), chance.randrange(1, 9)))]
    new = [rich_point(chance.randrange(130)) for _ in range(5)]
    field = chance.choice([*FIELDS])
    changes: list[Callable[[], object]] = [
        lambda: client.upsert("docs", new),
        lambda: client.delete("docs", ids[:2]),
        lambda: client.set_payload("docs", rich_point(chance.randrange(99)).payload or {}, ids),
        lambda: client.overwrite_payload("docs", {"text": "other words"}, ids),
        lambda: client.delete_payload("docs", [field], ids),
        lambda: client.clear_payload("docs", ids),
        lambda: client.delete_vectors("docs", ["s", "m"], ids),
        lambda: client.update_vectors(
            "docs", [qm.PointVectors(id=one, vector={"m": [[1.0] * 4]}) for one in ids]
        ),
        lambda: client.delete_payload_index("docs", field),
        lambda: client.create_payload_index("docs", field, FIELDS[field]),
        client.flush,
    ]
    if ids:
        chance.choice(changes)()
    else:
        client.upsert("docs", new)


def make_rich(folder: Path) -> None:
    multi = qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM)
    dense = qm.VectorParams(size=4, distance=qm.Distance.DOT)
    with EdgeQdrantClient(folder) as client:
        client.create_collection(
            "docs",
            vectors_config={
                "d": dense,
                "m": dense.model_copy(update={"multivector_config": multi}),
            },
            sparse_vectors_config={"s": qm.SparseVectorParams()},
            optimizers_config=qm.OptimizersConfigDiff(indexing_threshold=1),
        )
        for field, schema in FIELDS.items():
            client.create_payload_index("docs", field, schema)
        client.upsert("docs", [rich_point(number) for number in range(100)])
        client.optimize("docs")


def status_of(function: Callable[[], None]) -> int:
    """Run a function in a forked process, and return how that ended."""
    process = os.fork()
    if process == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(process, 0)[1]


@pytest.mark.parametrize(
    "seeds", [range(1), pytest.param(range(1, 60), marks=pytest.mark.endurance)]
)
def test_no_change_before_a_kill_is_taken_for_damage(tmp_path: Path, seeds: range) -> None:
    """What is compared after a crash is never written to, whatever the store is asked to do."""
    for seed in seeds:
        chance = random.Random(seed)
        folder = tmp_path / str(seed)
        assert status_of(partial(make_rich, folder)) == 0
        assert list(folder.rglob("postings.dat"))
        for session in range(4):
            is_killed = chance.random() < 0.8

            def use(
                folder: Path = folder, seed: float = chance.random(), is_killed: bool = is_killed
            ) -> None:
                chance = random.Random(seed)
                with EdgeQdrantClient(folder) as client:
                    for _ in range(chance.randrange(1, 30)):
                        write_at_random(client, chance)
                    if is_killed:
                        os.kill(os.getpid(), 9)

            assert status_of(use) == (9 if is_killed else 0), f"seed {seed}, session {session}"
        (report,) = check_store(folder)
        assert report.problems == (), f"seed {seed}"
        shutil.rmtree(folder)


def test_optimizing_before_a_kill_is_no_damage(folder: Path) -> None:
    """The segments that it merged are gone, whatever the last checksums say of them."""
    process = os.fork()
    if process == 0:
        client = EdgeQdrantClient(folder)
        client.upsert("docs", [point(number) for number in range(201, 300)])
        if client.optimize("docs"):
            os.kill(os.getpid(), 9)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status)
    assert len(answers(folder)) == 300
    assert len(answers(folder)) == 300


def test_a_process_that_never_ends_is_ended(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_READ_SECONDS", 0.0)
    monkeypatch.setattr(shards, "_READ_BYTES_PER_SECOND", 10**12)
    with pytest.raises(StoreError, match="stopped"):
        answers(killed)


def test_the_tool_finds_nothing_bad() -> None:
    ended = subprocess.run(
        [sys.executable, TOOL, "--mutations", "2", "--only", "id_tracker.mappings"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "id_tracker.mappings" in ended.stdout


# --- the catalogue ------------------------------------------------------------------------------


def test_any_changed_bit_of_the_catalogue_is_told_or_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with EdgeQdrantClient(folder) as client:
        make(client, count=1)
        state = client._store.state()
    file = folder / "catalog.json"
    original = file.read_bytes()
    generator = random.Random(0)
    harmless = 0
    for position in range(len(original)):
        content = bytearray(original)
        content[position] ^= 1 << generator.randrange(8)
        file.write_bytes(content)
        try:
            catalog = Catalog(folder)
        except StoreError:
            continue
        assert catalog.state == state
        catalog.close()
        harmless += 1
    assert harmless < len(original) / 3  # changed blanks and the like


def crafted(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a catalogue and give it the checksum of the result."""
    file = folder / "catalog.json"
    content = json.loads(file.read_text())
    change(content)
    content["checksum"] = catalogs._checksum(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "shard",
    ["../../victim", "..", ".", "", "/", "a" * 31, "A" * 32, "a" * 32 + "/", 5, None, ["a"], {}],
)
def test_a_catalogue_names_no_folder_outside_its_store(tmp_path: Path, shard: Any) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious.txt").write_text("keep me")
    folder = tmp_path / "store"
    with EdgeQdrantClient(folder) as client:
        make(client, count=1)
    crafted(folder, lambda content: content["collections"]["docs"].update(shard=shard))
    with pytest.raises(StoreError, match="left alone"):
        EdgeQdrantClient(folder)
    assert (victim / "precious.txt").exists()
    assert len(list((folder / "shards").iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(collections=[]),
        lambda content: content.update(collections={"docs": None}),
        lambda content: content.update(aliases={"a": 5}),
        lambda content: content.update(aliases=[["a"]]),
        lambda content: content.update(core=None),
        lambda content: content.update(format="2"),
        lambda content: content["collections"]["docs"].update(settings=[]),
        lambda content: content["collections"]["docs"]["settings"]["vectors"]["d"].update(size=-1),
        lambda content: content["collections"]["docs"]["settings"]["vectors"]["d"].update(size="x"),
        lambda content: content["collections"].update(other=content["collections"]["docs"]),
    ],
)
def test_values_of_another_type_in_the_catalogue_are_store_errors(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = tmp_path / "store"
    with EdgeQdrantClient(folder) as client:
        make(client, count=1)
    crafted(folder, change)
    with pytest.raises(StoreError, match=r"left alone|Upgrade"):
        EdgeQdrantClient(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000])
def test_a_catalogue_that_python_cannot_parse_is_a_store_error(tmp_path: Path, text: str) -> None:
    with EdgeQdrantClient(tmp_path) as client:
        make(client, count=1)
    (tmp_path / "catalog.json").write_text(text)
    with pytest.raises(StoreError, match=r"catalog\.json cannot be read"):
        EdgeQdrantClient(tmp_path)


def test_a_catalogue_of_the_first_format_is_read_and_gets_a_checksum(folder: Path) -> None:
    file = folder / "catalog.json"
    content = json.loads(file.read_text())
    del content["checksum"]
    content["format"] = 1
    file.write_text(json.dumps(content))
    assert len(answers(folder)) == 201
    assert json.loads(file.read_text())["format"] == 2
    assert "checksum" in json.loads(file.read_text())


# --- check --------------------------------------------------------------------------------------


def test_check_reads_every_point_and_changes_nothing(folder: Path) -> None:
    for _ in range(2):
        assert list(check_store(folder)) == [CollectionReport("docs", 201, was_closed=True)]
    assert len(answers(folder)) == 201


def test_check_finishes_what_a_kill_has_left(killed: Path) -> None:
    assert list(check_store(killed)) == [CollectionReport("docs", 202, was_closed=False)]
    assert list(check_store(killed)) == [CollectionReport("docs", 202, was_closed=True)]


def test_check_tells_what_of_a_damaged_collection_can_be_read(folder: Path) -> None:
    with EdgeQdrantClient(folder) as client:
        make(client, "other", count=1)
    flip(next(shard_folder(folder).rglob("matrix.dat")), 100)
    before = {file: seals._checksum(file) for file in folder.rglob("*") if file.is_file()}
    damaged, other = check_store(folder)
    assert other == CollectionReport("other", 1, was_closed=True)
    assert damaged.points == 201
    assert "matrix.dat has another content" in damaged.problems[0]
    for file in shard_folder(folder).rglob("*"):
        assert not file.is_file() or before[file] == seals._checksum(file)


def test_check_tells_what_cannot_be_read_at_all(folder: Path) -> None:
    for file in shard_folder(folder).rglob("segment.json"):
        file.write_text("{")
    (report,) = check_store(folder)
    assert report.points is None
    assert any("cannot be read" in problem for problem in report.problems)
    shutil.rmtree(shard_folder(folder))
    (report,) = check_store(folder)
    assert report.points is None
    assert "missing" in report.problems[0]


def test_check_tells_that_points_are_missing(folder: Path) -> None:
    """Files that are well-formed, with a seal of their own, but of another number of points."""
    shard = shard_folder(folder)
    seals.write_seal(shard, 300)
    (report,) = check_store(folder)
    assert report.problems == ("201 points can be read; there were 300",)


@pytest.mark.parametrize("content", ["nothing", "a file of another kind"])
def test_check_refuses_what_is_no_store_and_makes_none(tmp_path: Path, content: str) -> None:
    if content != "nothing":
        (tmp_path / "file").write_text("")
    before = list(tmp_path.iterdir())
    with pytest.raises(StoreError, match="not the folder of an embedded store"):
        list(check_store(tmp_path))
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("is_multi", "most"), [(False, 256), (True, 8)])
def test_few_multi_vectors_are_read_at_once(
    tmp_path: Path, is_multi: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of one long text takes 32 MiB: 256 of them would take all memory."""
    params = qm.VectorParams(size=2, distance=qm.Distance.DOT)
    vector: Any = [1.0, 0.0]
    if is_multi:
        params.multivector_config = qm.MultiVectorConfig(comparator="max_sim")
        vector = [vector]
    with EdgeQdrantClient(tmp_path / "store") as client:
        client.create_collection("docs", vectors_config={"d": params})
        points = [qm.PointStruct(id=number, vector={"d": vector}) for number in range(20)]
        client.upsert("docs", points)
    limits = []
    request = probe.core.ScrollRequest

    def record(**options: Any) -> Any:
        limits.append(options["limit"])
        return request(**options)

    monkeypatch.setattr(probe.core, "ScrollRequest", record)
    assert probe.read_shard(str(shard_folder(tmp_path / "store"))).points == 20
    assert max(limits) == most


def test_check_refuses_a_store_that_is_open(folder: Path) -> None:
    with EdgeQdrantClient(folder), pytest.raises(StoreError, match="open already"):
        list(check_store(folder))
