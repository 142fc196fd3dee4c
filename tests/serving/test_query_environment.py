"""`requirements/query.txt` is enough: the light endpoint installs and answers without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from command import environment
from query_process import Endpoint
from unified_embeddings import ModelEmbedder

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "query.txt"
NO_INDEX = "no package index answers, so nothing can be installed"
ABSENT = (
    "torch", "transformers", "llama_index", "huggingface_hub", "qdrant_client", "safetensors",
    "FlagEmbedding", "PIL", "httpx",
)  # fmt: skip


def pip(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    python = folder / "bin" / "python"
    options = ("--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "10")
    return subprocess.run(
        [python, "-m", "pip", *map(str, arguments), *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment made as the lock file's first lines say."""
    folder = tmp_path_factory.mktemp("light") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    if pip(folder, "download", "--no-deps", "--dest", folder / "probe", "idna").returncode:
        pytest.skip(NO_INDEX)
    for what in (("-r", LOCK), (ROOT,)):
        done = pip(folder, "install", "--no-deps", *what)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the lock file is for 3.11 and newer")
@pytest.mark.skipif(sys.platform == "win32", reason="the folders of an environment are POSIX's")
def test_it_installs_without_torch_and_answers(light: Path, xlmr: Path, tmp_path: Path) -> None:
    from unified_embeddings.export.folder import export_onnx

    folder = export_onnx(xlmr, tmp_path / "exported", precision="int8")
    for name in ABSENT:
        code = (
            f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
        )
        assert subprocess.run([light / "bin" / "python", "-c", code], check=False).returncode == 0
    command = light / "bin" / "unified-embeddings"
    process = subprocess.Popen(
        [command, "serve-query", "--model", folder, "--port", "0"],
        cwd=tmp_path, env=environment(PYTHONPATH=""), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("listening on"), line + process.stderr.read()
        running = Endpoint(int(line.split(":")[2].split(";")[0]), None)  # type: ignore[arg-type]
        reply = running.query("red fox", heads=["dense", "sparse", "colbert"])
        assert reply.status == 200
        ours = ModelEmbedder(str(folder)).encode_query("red fox", colbert=True)
        assert ours.dense is not None
        assert ours.sparse is not None
        assert ours.colbert is not None
        assert reply.json["embedding"] == ours.dense[0].tolist()
        assert reply.json["sparse"] == ours.sparse[0].to_qdrant()
        assert reply.json["colbert"] == ours.colbert[0].tolist()
        assert reply.headers["x-model-fingerprint"] == ModelEmbedder(str(xlmr)).fingerprint
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the lock file is for 3.11 and newer")
def test_other_commands_say_what_is_missing(light: Path) -> None:
    ended = subprocess.run(
        [light / "bin" / "unified-embeddings", "doctor"],
        capture_output=True, text=True, check=False, env=environment(PYTHONPATH=""),
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: only `unified-embeddings serve-query` runs here")


def test_the_lock_file_has_the_versions_that_are_tested() -> None:
    tested = (ROOT / "constraints.txt").read_text("utf-8").lower().splitlines()
    locked = [line for line in LOCK.read_text("utf-8").lower().splitlines() if line[:1] != "#"]
    assert locked
    assert not [line for line in locked if line not in tested]
