"""The command `check`: what it prints of whole and of damaged stores, and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from qdrant_client import models as qm

from unified_embeddings import EdgeQdrantClient
from unified_embeddings.cli import app as cli


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with EdgeQdrantClient("qdrant_data") as client:
        for name in ("first", "second"):
            client.create_collection(name, qm.VectorParams(size=2, distance=qm.Distance.DOT))
            client.upsert(name, [qm.PointStruct(id=1, vector=[1.0, 2.0])])
    return tmp_path / "qdrant_data"


def check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["unified-embeddings", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(ended.value.code or 0), out, err


def damage(store: Path) -> str:
    """Damage the first collection; return the path of its folder."""
    catalog = json.loads((store / "catalog.json").read_text())
    folder = store / "shards" / catalog["collections"]["first"]["shard"]
    with next(folder.rglob("mutable_id_tracker.mappings")).open("ab") as file:
        file.write(b"\0")
    return str(folder)


def test_a_whole_store(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = "first: 1 points, all readable\nsecond: 1 points, all readable\n"
    assert check(capsys, monkeypatch) == (0, expected, "")
    assert check(capsys, monkeypatch, store) == (0, expected, "")


def test_a_damaged_collection_ends_with_1_and_names_the_file(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(store)
    code, out, err = check(capsys, monkeypatch, store)
    assert (code, err) == (1, "")
    first, problem, *_, second = out.splitlines()
    assert first.startswith("first: DAMAGED; ")
    assert "mutable_id_tracker.mappings has" in problem
    assert second == "second: 1 points, all readable"
    code, out, _ = check(capsys, monkeypatch, store, "--json")
    assert code == 1
    first, second = json.loads(out)
    assert first["collection"] == "first"
    assert first["problems"]
    assert second == {"collection": "second", "points": 1, "was_closed": True, "problems": []}


def test_what_is_no_store_is_named_and_not_made_one(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = check(capsys, monkeypatch, "nowhere")
    assert (code, out) == (1, "")
    assert "no such folder" in err
    assert not Path("nowhere").exists()
    (store / "catalog.json").write_text("{")
    code, out, err = check(capsys, monkeypatch, store)
    assert (code, out) == (1, "")
    assert "catalog.json cannot be read" in err


def test_a_store_without_collections(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    EdgeQdrantClient("empty").close()
    assert check(capsys, monkeypatch, "empty") == (0, "the store has no collections\n", "")


def test_doctor_names_the_embedded_core(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, xlmr: Path
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["unified-embeddings", "doctor", "--json", "--model", str(xlmr)]
    )
    with pytest.raises(SystemExit):
        cli.main()
    versions = json.loads(capsys.readouterr().out)["Versions"]
    assert versions["qdrant-edge-py"] == "0.9.0"
