"""`migrate-vectors`, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import checkpoints
from command import finish, start


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TOML file of a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("model")
    checkpoints.sentence_model(folder / "e5", "bert")
    file = folder / "tiny.toml"
    file.write_text(f'like = "e5-small-v2"\nmodel_id = "{folder / "e5"}"\ndimension = 32\n')
    return str(file)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [{"id": number, "text": f"Foxes jump {number}."} for number in range(5)]
    (tmp_path / "texts.json").write_text(json.dumps(rows))
    return tmp_path


def test_the_command_of_document_001(texts: Path, model: str) -> None:
    np.save(texts / "old.npy", np.zeros((5, 384), np.float32))
    ended = finish(
        start(
            *("migrate-vectors", "--input", "your_texts.json", "--output", "embeddings_new.npy"),
            cwd=texts,
        )
    )
    assert (ended.code, ended.out) == (1, "")
    assert "there is no file or folder 'your_texts.json'" in ended.err
    (texts / "texts.json").rename(texts / "your_texts.json")
    ended = finish(
        start(
            *("migrate-vectors", "--input", "your_texts.json", "--output", "embeddings_new.npy"),
            *("--model", model, "--old", "old.npy"),
            cwd=texts,
        )
    )
    assert ended.code == 0, ended.err
    assert np.load(texts / "embeddings_new.npy").shape == (5, 32)
    assert "32 numbers for each vector; ids: field 'id'" in ended.out
    assert "old.npy: 5 vectors with 384 numbers; now 5 with 32" in ended.out
    for name in ("chroma", "pinecone"):
        ended = finish(
            start(
                *("migrate-vectors", "--input", "your_texts.json", "--format", name),
                *("--model", model, "--json"),
                cwd=texts,
            )
        )
        assert ended.code == 0, ended.err
        events = [json.loads(line) for line in ended.out.splitlines()]
        assert events[-1]["event"] == "finished"
        assert events[-1]["files"][0] == f"your_texts.{name}.jsonl"
        assert (texts / f"your_texts.{name}.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "a.npy"], "name an input"),
        (["texts.json", "--input", "texts.json"], "INPUT and --input are the same"),
        (["texts.json", "--format", "faiss"], "--format 'faiss': expected npy, jsonl, parquet"),
        (["texts.json", "--format", "chroma", "-o", "a.npy"], "end in .chroma.jsonl"),
        (["texts.json", "-o", "s3://bucket/a.npy"], "`unified-embeddings embed` writes to object"),
        (["-"], "name the file of the vectors with --output"),
        (["texts.json", "-o", "old.npy", "--old", "old.npy"], "cannot go into it"),
        (["texts.json", "-o", "old.npy"], "exists, and is neither added to nor replaced"),
        (["texts.json", "--id-field", "name"], "have no field 'name' for the id"),
    ],
)
def test_wrong_usage_is_told(texts: Path, model: str, arguments: list[str], message: str) -> None:
    np.save(texts / "old.npy", np.zeros((5, 384), np.float32))
    before = {path.name for path in texts.iterdir()} | {"cache"}
    ended = finish(start("migrate-vectors", *arguments, "--model", model, cwd=texts))
    assert ended.code == 1
    assert message in ended.err
    assert {path.name for path in texts.iterdir()} <= before
