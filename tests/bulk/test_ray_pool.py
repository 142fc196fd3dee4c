"""Parts through a Ray cluster: the bytes of a local run, whatever happens to Ray's processes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import poisoned
import pytest

from unified_embeddings.bulk.options import BulkOptions
from unified_embeddings.bulk.planning import plan_parts
from unified_embeddings.bulk.rows import Row
from unified_embeddings.bulk.run import embed_rows
from unified_embeddings.bulk.worker import WorkerSettings
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError

HAS_RAY = importlib.util.find_spec("ray") is not None
pytestmark = pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install '.[ray]'")
CHILD = Path(__file__).with_name("bulk_child.py")


@pytest.fixture(autouse=True)
def tasks_import_these_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def make_rows(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "text": f"row {number} of words"} for number in range(count)]


def run(rows: Any, folder: Path, runner: Any = "ray", **changes: Any) -> Any:
    values: dict[str, Any] = {
        "models": ["fake"],
        "heads": ("dense", "sparse", "colbert"),
        "checkpoint_interval": 10,
        "runner": runner,
        "max_workers": 2,
        **changes,
    }
    make = values.pop("make", poisoned.make_poisoned)
    (report,) = embed_rows(rows, folder, BulkOptions(**values), make=make)
    return report


def digests(folder: Path) -> dict[str, str]:
    names = ("fake.npy", "fake.sparse.npz", "fake.colbert.npy", "fake.jsonl")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_bad_rows_fail_alone_and_the_bytes_are_those_of_a_local_run(tmp_path: Path) -> None:
    rows = make_rows(60)
    for number, text in {3: "KILL", 14: "FAIL", 15: "FAIL too", 37: "HANG"}.items():
        rows[number]["text"] = text
    rows[25]["text"] = 7
    report = run(rows, tmp_path / "ray", hang_seconds=2.0)
    assert report.failed == 5
    run(rows, tmp_path / "local", "local", hang_seconds=2.0)
    # The two say in different words how a process ended, so `fake.jsonl` is left out.
    for name, digest in digests(tmp_path / "local").items():
        assert name == "fake.jsonl" or digests(tmp_path / "ray")[name] == digest
    lines = (tmp_path / "ray" / "failed.jsonl").read_text().splitlines()
    problems = {line["row"]: line["problem"] for line in map(json.loads, lines)}
    assert sorted(problems) == [3, 14, 15, 25, 37]
    assert "ends the worker" in problems[3]
    assert "no answer" in problems[37]
    metadata = json.loads((tmp_path / "ray" / "fake.metadata.json").read_text())
    assert metadata["dead_workers"] >= 4


def test_a_model_that_cannot_be_made_ends_the_job(tmp_path: Path) -> None:
    def make(**options: Any) -> Any:
        if os.environ.get("RAY_JOB_ID") or "default_worker" in " ".join(sys.argv):
            raise RuntimeError("no such model")
        return poisoned.make_poisoned(**options)

    with pytest.raises(UnifiedEmbeddingsError, match="no such model"):
        run(make_rows(3), tmp_path, make=make)


def test_an_address_without_a_cluster_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ray start --head"):
        run(make_rows(3), tmp_path, ray_address="127.0.0.1:1")


def child(source: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(source), str(output), "20", *more],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_parts(process: subprocess.Popen[str], output: Path, parts: int) -> None:
    manifest = output / "parts" / "fake" / "manifest.jsonl"
    deadline = time.monotonic() + 120
    while not manifest.exists() or manifest.read_text().count("\n") < parts:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def find_tasks(session: int) -> list[int]:
    """Return Ray's processes that compute parts, of the job with this session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
            pid = int(folder.name)
            if title.startswith("ray::compute_part") and os.getsid(pid) == session:
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds Ray's processes in /proc")
def test_a_killed_ray_worker_changes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in make_rows(3000)))
    run(source, tmp_path / "local", "local", checkpoint_interval=20, make=poisoned.make_slow)
    process = child(source, tmp_path / "ray", "ray")
    killed = 0
    for parts in (5, 40, 80):
        wait_for_parts(process, tmp_path / "ray", parts)
        tasks = find_tasks(process.pid)
        assert len(tasks) <= 2  # One model for each worker, never more.
        for pid in tasks[:1]:
            os.kill(pid, signal.SIGKILL)
            killed += 1
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0
    assert killed
    assert output.split()[:3] == ["3000", "3000", "0"]
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
    metadata = json.loads((tmp_path / "ray" / "fake.metadata.json").read_text())
    assert metadata["dead_workers"] == killed
    assert metadata["failed"] == 0


def test_a_pool_that_waits_asks_whether_to_stop(tmp_path: Path) -> None:
    """The text hangs for an hour; nothing but the check ends this."""
    from unified_embeddings.bulk.ray_pool import RayPool

    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked > 20:
            raise KeyboardInterrupt

    settings = WorkerSettings(
        make_embedder=poisoned.make_poisoned,
        options={"model": "fake"},
        heads=("dense",),
        role="document",
        dtype="float32",
        folder=tmp_path,
        slice_rows=4,
    )
    tasks = plan_parts([Row(0, "HANG", None, {})], 10, None)
    with RayPool([settings]) as pool, pytest.raises(KeyboardInterrupt):
        list(pool.compute(tasks, check))


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_in_the_terminal_keeps_the_parts_in_hand(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in make_rows(3000)))
    process = child(source, tmp_path / "out", "ray")
    wait_for_parts(process, tmp_path / "out", 3)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "run the same command again" in output
    manifest = tmp_path / "out" / "parts" / "fake" / "manifest.jsonl"
    finished = sum(json.loads(line)["rows"] for line in manifest.read_text().splitlines())
    again = child(source, tmp_path / "out", "ray")
    output, _ = again.communicate(timeout=180)
    rows, computed, resumed, _ = output.split()
    assert (rows, computed) == ("3000", "3000")
    assert int(resumed) == finished >= 60
