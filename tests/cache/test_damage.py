"""A cache file that is damaged, in a byte or as a whole: no wrong vector, and the cache goes on."""

from __future__ import annotations

import logging
import random
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unified_embeddings.cache import disk_file
from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.cache.keys import key_for
from unified_embeddings.errors import InputError
from unified_embeddings.types import SparseVector

NAMES = [f"text {i}" for i in range(120)]
MUTATIONS = 60
"""Of each file. The endurance test makes more."""
USES_UNTIL_COMPLETE = 5
"""A damaged index may take new rows in one use and only show its damage in the next, when they are
read back. The file is a new one then, and holds what was written last. The use after that completes
it, and the last one finds everything; one is to spare."""


def value_of(name: str) -> Any:
    """Return a name's vector: every third one dense, sparse, ColBERT."""
    number = int(name.split()[1])
    rng = np.random.default_rng(number)
    if number % 3 == 0:
        return rng.normal(size=64).astype(np.float32)
    if number % 3 == 1:
        indices = np.arange(20, dtype=np.int32) * 7 + number
        return SparseVector(indices, rng.uniform(0.1, 1, 20).astype(np.float32))
    return rng.normal(size=(5, 16)).astype(np.float32)


def is_equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, SparseVector):
        return isinstance(found, SparseVector) and dict(found) == dict(expected)
    return found.shape == expected.shape and found.tobytes() == expected.tobytes()


def ask(cache: EmbeddingCache, names: list[str]) -> int:
    """Ask for vectors, check each, and return how many were computed."""
    keys = {key_for(name): name for name in names}
    before = cache.misses
    with cache.claim(keys) as claim:
        for missing in claim.rounds():
            for key in missing:
                claim.put(key, value_of(keys[key]))
    for key, name in keys.items():
        assert is_equal(claim[key], value_of(name)), name
    return cache.misses - before


def use_once(path: Path, names: list[str]) -> int:
    """Open a cache, ask for vectors, close it, and return how many were computed."""
    cache = EmbeddingCache(path=path)
    computed = ask(cache, names)
    cache.close()
    return computed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "cache.sqlite"
    cache = EmbeddingCache(path=path)
    ask(cache, NAMES)
    cache.close()
    return path


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return the content with bits flipped, a stretch overwritten or moved, or its end cut off."""
    damaged = bytearray(content)
    kind = rng.choice(["bit", "bit", "bytes", "zeros", "copy", "cut"])
    start = rng.randrange(len(damaged))
    length = rng.choice([1, 4, 16, 512, 4096])
    if kind == "bit":
        damaged[start] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        damaged[start : start + length] = rng.randbytes(len(damaged[start : start + length]))
    elif kind == "zeros":
        damaged[start : start + length] = bytes(len(damaged[start : start + length]))
    elif kind == "copy":
        source = rng.randrange(len(damaged))
        moved = damaged[source : source + length]
        damaged[start : start + len(moved)] = moved
    else:
        del damaged[start:]
    return bytes(damaged)


def check_mutations(path: Path, count: int, seed: int) -> None:
    """Damage the file again and again. Vectors are right, and the cache works afterwards."""
    content, rng = path.read_bytes(), random.Random(seed)
    for _ in range(count):
        for file in path.parent.iterdir():
            file.unlink()
        path.write_bytes(mutate(content, rng))
        cache = EmbeddingCache(path=path)
        ask(cache, NAMES)
        ask(cache, ["text 1000"])
        cache.close()
        computed = [use_once(path, [*NAMES, "text 1000"]) for _ in range(USES_UNTIL_COMPLETE)]
        assert computed[-1] == 0


class TestMutations:
    def test_give_no_wrong_vector(self, path: Path) -> None:
        check_mutations(path, MUTATIONS, seed=1)

    @pytest.mark.endurance
    @pytest.mark.parametrize("seed", range(2, 12))
    def test_give_no_wrong_vector_250_times(self, path: Path, seed: int) -> None:
        check_mutations(path, 250, seed)

    def test_of_the_write_ahead_log_give_no_wrong_vector(self, path: Path) -> None:
        log, rng = path.with_name("cache.sqlite-wal"), random.Random(3)
        content = path.read_bytes()
        writer = EmbeddingCache(path=path)
        ask(writer, ["text 500", "text 501", "text 502"])
        content, log_content = path.read_bytes(), log.read_bytes()
        writer.close()
        for _ in range(MUTATIONS):
            for file in path.parent.iterdir():
                file.unlink()
            path.write_bytes(content)
            log.write_bytes(mutate(log_content, rng))
            cache = EmbeddingCache(path=path)
            ask(cache, [*NAMES, "text 500", "text 501", "text 502"])
            cache.close()

    def test_while_the_file_is_open_give_no_wrong_vector(self, path: Path) -> None:
        rng = random.Random(4)
        for round_ in range(MUTATIONS // 3):
            cache = EmbeddingCache(path=path, max_bytes=0)
            ask(cache, NAMES)
            content = path.read_bytes()
            with path.open("r+b") as file:
                file.write(mutate(content, rng)[: len(content)])
            ask(cache, [*NAMES, f"text {2000 + round_}"])
            cache.close()
        assert ask(EmbeddingCache(path=path), NAMES) in range(len(NAMES) + 1)


class TestSettingAside:
    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda content: content[:50], id="cut within its header"),
            pytest.param(lambda content: content[: len(content) // 2], id="cut in the middle"),
            pytest.param(lambda content: bytes(len(content)), id="nothing but zeros"),
            pytest.param(lambda content: bytes(100) + content[100:], id="without a header"),
            pytest.param(lambda content: content[:60] + b"\0\0\0\x4d" + content[64:], id="version"),
        ],
    )
    def test_a_damaged_file_is_kept_under_another_name_and_a_new_one_is_started(
        self, path: Path, damage: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        damaged = damage(path.read_bytes())
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            cache = EmbeddingCache(path=path)
        assert ask(cache, NAMES) == len(NAMES)
        cache.close()
        assert path.with_name("cache.sqlite.damaged").read_bytes() == damaged
        assert "cache.sqlite.damaged" in caplog.text
        assert "a new one was started" in caplog.text
        assert ask(EmbeddingCache(path=path), NAMES) == 0

    def test_a_schema_that_is_no_text_counts_as_damage(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        # SQLite quotes an index's name in its message about the index, and Python cannot decode it.
        for text in (b"unified_embeddings_by_use", b"CREATE INDEX"):
            start = content.index(text)
            content[start : start + 2] = b"\xc4\xc4"
        path.write_bytes(content)
        with pytest.raises(UnicodeDecodeError):
            sqlite3.connect(path).execute("SELECT * FROM sqlite_master")
        cache = EmbeddingCache(path=path)
        assert ask(cache, NAMES) == len(NAMES)
        assert path.with_name("cache.sqlite.damaged").exists()
        cache.close()

    def test_damage_that_shows_later_does_too(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        content = path.read_bytes()
        page = 4096
        # All pages but the first, which holds the schema.
        path.write_bytes(content[:page] + b"\xff" * (len(content) - page))
        cache = EmbeddingCache(path=path)
        assert ask(cache, NAMES) == len(NAMES)
        assert path.with_name("cache.sqlite.damaged").exists()
        cache.close()
        assert ask(EmbeddingCache(path=path), NAMES) == 0

    def test_a_file_that_another_process_has_replaced_is_not_set_aside(self, path: Path) -> None:
        from unified_embeddings.cache.disk_file import set_aside

        set_aside(path, inode=path.stat().st_ino + 1, state="damaged", reason="is damaged")
        assert path.exists()

    def test_a_stale_log_is_not_applied_to_the_new_file(self, path: Path) -> None:
        writer = EmbeddingCache(path=path)
        ask(writer, ["text 500"])
        log = path.with_name("cache.sqlite-wal")
        log_content = log.read_bytes()
        writer.close()
        path.write_bytes(bytes(4096))
        log.write_bytes(log_content)
        cache = EmbeddingCache(path=path)
        assert ask(cache, [*NAMES, "text 500"]) == len(NAMES) + 1
        cache.close()

    @pytest.mark.parametrize("content", [b"words " * 1000, b"\x89PNG" + bytes(500), b"SQLite 2"])
    def test_other_files_are_refused_and_left_as_they_are(
        self, tmp_path: Path, content: bytes
    ) -> None:
        path = tmp_path / "mine"
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot serve as a cache file"):
            EmbeddingCache(path=path)
        assert path.read_bytes() == content
        assert [file.name for file in tmp_path.iterdir()] == ["mine"]

    def test_another_programs_damaged_database_is_refused_and_left_as_it_is(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "notes.sqlite"
        database = sqlite3.connect(path)
        database.execute("CREATE TABLE vectors (id INTEGER, text)")
        database.commit()
        database.close()
        content = path.read_bytes()[:3000]
        path.write_bytes(content)
        with pytest.raises(InputError):
            EmbeddingCache(path=path)
        assert path.read_bytes() == content


class TestRows:
    def test_a_row_under_another_key_is_a_miss(self, path: Path) -> None:
        database = sqlite3.connect(path)
        first, second = key_for("text 0"), key_for("text 3")
        database.execute("DELETE FROM vectors WHERE key = ?", [second])
        database.execute("UPDATE vectors SET key = ? WHERE key = ?", [second, first])
        database.commit()
        database.close()
        assert ask(EmbeddingCache(path=path), ["text 3"]) == 1

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_vector_that_is_not_finite_is_not_given_again(
        self, tmp_path: Path, bad: float
    ) -> None:
        path, key = tmp_path / "cache.sqlite", key_for("text 0")
        cache = EmbeddingCache(path=path)
        with cache.claim([key]) as claim:
            for _ in claim.rounds():
                claim.put(key, np.array([1, bad], dtype=np.float32))
        cache.close()
        assert ask(EmbeddingCache(path=path), ["text 0"]) == 1


@pytest.mark.parametrize("path", ["~nosuchuser/cache", "a\0b", 5])
def test_a_path_that_cannot_be_is_an_input_error(path: Any) -> None:
    with pytest.raises(InputError, match="cannot serve as a cache file"):
        EmbeddingCache(path=path)


@pytest.mark.parametrize("bounds", [{"max_bytes": "1"}, {"max_entries": 1.5}, {"max_bytes": True}])
def test_bounds_that_are_no_whole_numbers_are_refused(bounds: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be a whole number"):
        EmbeddingCache(**bounds)


def test_a_damaged_file_that_another_process_sets_aside_meanwhile_is_started_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"damaged" * 1000)
    looks_like_ours = disk_file._looks_like_ours

    def come_too_late(damaged: Path) -> bool:
        damaged.rename(damaged.with_name("set-aside"))
        return looks_like_ours(damaged)

    monkeypatch.setattr(disk_file, "_looks_like_ours", come_too_late)
    cache = EmbeddingCache(path=path)
    assert ask(cache, NAMES) == len(NAMES)
    cache.close()
