"""The password in a URL reaches no output: no error, hint, note, report or log."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command import Ended, run_here
from qdrant_server import running_server
from unified_embeddings import InputError, ServiceError, StoreError
from unified_embeddings.cli.hints import CompletedHints
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import UnifiedEmbeddingsError, hide_passwords
from unified_embeddings.inspector.library import Place
from unified_embeddings.llama.indexing import index_paths
from unified_embeddings.llama.vector_store import build_vector_store

Command = Callable[..., Ended]
SECRET = "s3cret"


@pytest.fixture
def call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Run the command in this process, in a folder with a file to index."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "note.md").write_text("Foxes jump.")
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "text": "Foxes jump."}\n')
    data = tmp_path / "data"
    (data / "qrels").mkdir(parents=True)
    (data / "corpus.jsonl").write_text('{"_id": "1", "text": "Foxes jump."}\n')
    (data / "queries.jsonl").write_text('{"_id": "q", "text": "foxes"}\n')
    (data / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")

    return lambda *arguments: run_here(arguments, capsys, monkeypatch)


@pytest.fixture(params=["nobody listens", "a server without collections"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield host and port."""
    if request.param == "nobody listens":
        yield "127.0.0.1:9"
        return
    with running_server() as (url, _):
        yield url.removeprefix("http://")


COMMANDS = [
    "index note.md --url URL --model XLMR",
    "search foxes --url URL --model XLMR",
    "search foxes --images --url URL",
    "embed rows.jsonl --output out --model XLMR --to-collection c --url URL",
    "list --url URL",
    "info documents --url URL",
    "drop documents --yes --url URL",
    "adopt documents --url URL --model XLMR",
    "add-vectors documents --sparse --url URL --model XLMR",
    "tune documents --data data --url URL --model XLMR",
    "make-queries documents --output made --url URL",
    "evaluate data --system url=URL,collection=documents,model=XLMR",
    "stats --url URL",
    "copy --from URL --to there",
    "copy --from here --to URL",
    "migrate plan documents --alias a --url URL --model XLMR",
    "inspect documents --no-open --url URL",
    # Services take no user in their addresses at all.
    "search foxes --model-url URL",
    "ping URL",
]


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: " ".join(line.split()[:2]))
def test_no_command_prints_it(call: Command, address: str, line: str, xlmr: Path) -> None:
    line = line.replace("URL", f"http://me:{SECRET}@{address}").replace("XLMR", str(xlmr))
    ended = call(*line.split())
    assert SECRET not in ended.out + ended.err
    assert ended.out + ended.err


def test_a_hint_repeats_the_address_without_it(call: Command) -> None:
    with running_server() as (url, _):
        place = url.replace("http://", f"http://me:{SECRET}@")
        ended = call("search", "foxes", "--url", place, "--model", "mini-m3")
    shown = url.replace("http://", "http://***@")
    assert f"unified-embeddings index PATH --url {shown}" in ended.err.replace("'", "")
    assert f"does not exist in {shown}" in ended.err


def test_a_migrations_status_names_the_place_without_it(
    call: Command, tmp_path: Path, xlmr: Path
) -> None:
    with running_server() as (url, client):
        embedder = FakeEmbedder()
        store = build_vector_store(embedder, "documents", client=client)
        index_paths([tmp_path / "note.md"], store, embedder)
        place = url.replace("http://", f"http://me:{SECRET}@")
        planned = call(
            "migrate", "plan", "documents", "--alias", "a", "--url", place, "--model", str(xlmr)
        )
    assert planned.code == 0, planned.err
    assert SECRET not in planned.out + planned.err
    status = call("migrate", "status", "a", "--json")
    assert SECRET not in status.out
    assert json.loads(status.out)["place"] == {"url": url.replace("http://", "http://***@")}
    assert SECRET not in call("migrate", "status", "a").out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:s3cret@host:6333/a", "http://***@host:6333/a"),
        ("https://s3cret@host", "https://***@host"),
        ("http://me:s3@cret@host", "http://***@host"),
        ("http://me:s3/cret@host", "http://***@host"),
        ("http://me:s3?c#ret@host", "http://***@host"),
        ("url='http://:s3cret@host'", "url='http://***@host'"),
        ("sftp://a:s3cret@one and http://b:s3cret@two", "sftp://***@one and http://***@two"),
        ("http://host:6333/mail/me@host", "http://host:6333/mail/me@host"),
        ("http://host/?to=me@host", "http://host/?to=me@host"),
        ("http://host:6333", "http://host:6333"),
        ("me:s3cret@host is no URL", "me:s3cret@host is no URL"),
    ],
)
def test_what_is_shown_of_a_url(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown


@given(st.text(st.characters(exclude_characters="/?#@", exclude_categories=["Z", "C"]), min_size=1))
def test_any_password_is_hidden(password: str) -> None:
    assert hide_passwords(f"at http://me:{password}@host:1/x") == "at http://***@host:1/x"


@pytest.mark.parametrize(
    "error",
    [
        StoreError("notes", f"connecting to http://me:{SECRET}@host", "refused"),
        StoreError.of_place(f"http://me:{SECRET}@host", "opening", "refused"),
        ServiceError(f"http://me:{SECRET}@host", "GET /info", "refused"),
        InputError(f"expected an address, got 'http://me:{SECRET}@host'", index=3),
    ],
    ids=["store", "place", "service", "input"],
)
def test_no_error_shows_it(error: UnifiedEmbeddingsError) -> None:
    for each in (error, pickle.loads(pickle.dumps(error))):
        for text in (str(each), repr(each), f"{each}"):
            assert SECRET not in text
            assert "http://***@host" in text


def test_neither_a_log_nor_the_inspector_shows_it() -> None:
    record = logging.makeLogRecord({"msg": "no answer from %s", "args": (f"http://a:{SECRET}@b",)})
    assert CompletedHints().filter(record)
    assert record.getMessage() == "no answer from http://***@b"
    assert str(Place(url=f"http://me:{SECRET}@host")) == "http://***@host"
