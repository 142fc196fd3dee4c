"""`search --filter` against a store of odd metadata: what is found, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import TextNode
from qdrant_client import QdrantClient

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.conditions import check_conditions, parse_conditions, to_filters
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.vector_store import build_vector_store

ROWS: list[dict[str, Any]] = [
    {"page_label": "2", "year": 2019, "author": "Berg, Ute", "tags": ["x", "y"]},
    {"page_label": 2, "year": 2020.0, "author": "a=b", "draft": True, "Order Date": "2020-01-02"},
    {"page_label": 2.5, "year": 2021, "zip": "007", "draft": "true"},
    {"page_label": "ii", "zip": 7, "account": "123456789012345678901234", "nothing": None},
]


class Shelf:
    def __init__(self, store: FingerprintedStore) -> None:
        self.store = store
        self.count = 0
        self.notes: list[str] = []

    def fill(self, rows: list[dict[str, Any]]) -> None:
        self.store.delete_nodes([uuid_of(number) for number in range(self.count)])
        self.count = len(rows)
        self.store.add(
            [
                TextNode(id_=uuid_of(number), text="x", metadata=metadata, embedding=[1.0, 0.0])
                for number, metadata in enumerate(rows)
            ]
        )

    def find(self, *texts: str) -> set[int]:
        conditions = parse_conditions(texts)
        self.notes.clear()
        check_conditions(conditions, self.store, note=self.notes.append)
        return {
            int(node.id_[-12:]) for node in self.store.get_nodes(filters=to_filters(conditions))
        }


def uuid_of(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012}"


@pytest.fixture(scope="module")
def place() -> Shelf:
    client = QdrantClient(":memory:")
    return Shelf(build_vector_store(FakeEmbedder(dimension=2), "docs", client=client))


@pytest.fixture
def shelf(place: Shelf) -> Shelf:
    place.fill(ROWS)
    return place


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["page_label=2"], {0, 1}),
        (["page_label==2"], {0, 1}),
        (["page_label=2.0"], {1}),
        (['page_label="2"'], {0}),
        (["page_label!=2"], {2, 3}),
        (["page_label!='2'"], {1, 2, 3}),
        (["page_label=2.50"], {2}),
        (["author=Berg, Ute"], {0}),
        (["author!=Berg, Ute"], {1, 2, 3}),
        (["author=a=b"], {1}),
        (["tags=x"], {0}),
        (["tags!=x"], {1, 2, 3}),
        (["zip=007"], {2}),
        (["zip=7"], {3}),
        (["draft=true"], {1, 2}),
        (["draft='true'"], {2}),
        (["account=123456789012345678901234"], {3}),
        ([f"zip!={'9' * 5000}"], {0, 1, 2, 3}),
        (["Order Date=2020-01-02"], {1}),
        (["year=2020"], {1}),
        (["year>=2020"], {1, 2}),
        (["year>2019.5", "year<2.021e3"], {1}),
        (["year!=2019", "year!=2021"], {1, 3}),
        (["nothing!=x"], {0, 1, 2, 3}),
        ([], {0, 1, 2, 3}),
    ],
)
def test_what_is_found(shelf: Shelf, conditions: list[str], expected: set[int]) -> None:
    assert shelf.find(*conditions) == expected


@pytest.mark.parametrize("key", ["file_path", "folder"])
def test_a_relative_path_is_that_of_the_file_where_one_stands(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    real, link = tmp_path.resolve() / "real" / "a.txt", tmp_path / "link" / "a.txt"
    shelf.fill([{key: str(real)}, {key: str(link)}, {key: "real/a.txt"}, {key: "other"}])
    monkeypatch.chdir(tmp_path)
    if key == "folder":
        assert shelf.find("folder=real/a.txt") == {2}
        return
    assert shelf.find("file_path=real/a.txt") == {0, 2}
    assert shelf.find("file_path='./real/../real/a.txt'") == {0}
    assert shelf.find("file_path=link/a.txt") == {0, 1}
    assert shelf.find("file_path!=link/a.txt") == {2, 3}
    assert shelf.find("file_path=~nosuchuser/a.txt") == set()
    monkeypatch.setenv("HOME", str(tmp_path.resolve()))
    assert shelf.find("file_path=~/real/a.txt") == {0}


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ("page_lable=2", "no passage has metadata 'page_lable'; nearest are 'page_label'"),
        ("order date=x", "nearest are 'Order Date'"),
        ("quux!=1", "no passage has metadata 'quux'; there are 'Order Date', 'account', 'author'"),
        ("author>5", "'author' holds none but values such as '(Berg, Ute|a=b)'"),
        ("Order Date>=2020", "'Order Date' holds none but values such as '2020-01-02'"),
        ("year>late", "> on 'year' compares numbers, got 'late'"),
        ("Order Date<2020-01-02", "< on 'Order Date' compares numbers, got '2020-01-02'"),
        ('year>"2019"', "compares numbers"),
        ("year>1e999", "compares numbers"),
        (f"year>{'9' * 5000}", "compares numbers"),
        ('say "hi"=1', "cannot be filtered on"),
        ("year", "KEY=VALUE"),
        ("", "KEY=VALUE"),
        ("=2", "KEY=VALUE"),
    ],
)
def test_what_is_refused_by_name(shelf: Shelf, condition: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        shelf.find("year>0", condition)


def test_values_that_have_no_order_are_left_out_with_a_note(
    shelf: Shelf,
) -> None:
    assert shelf.find("page_label>2") == {2}
    (note,) = shelf.notes
    assert note.startswith("--filter 'page_label>2' leaves out")
    assert "'page_label' is not a number" in note
    assert shelf.find("year>2019") == {1, 2}
    assert not shelf.notes


def test_nothing_is_unknown_to_an_empty_collection(shelf: Shelf) -> None:
    shelf.fill([])
    assert shelf.find("page_label=2", "year>3") == set()


WORDS = st.text("ab12-=!<> é,'\"", min_size=1, max_size=4).filter(
    lambda word: word == word.strip() and word[0] not in "'\""
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.lists(st.one_of(WORDS, st.integers(-9, 9), st.booleans()), min_size=1, max_size=4))
def test_what_is_stored_is_found_as_it_is_written_and_nothing_else_is(
    shelf: Shelf, values: list[Any]
) -> None:
    shelf.fill([{"key": value} for value in values])
    for value in values:
        written = str(value)
        if written.startswith("="):
            written = f"'{written}'"  # KEY== is read as one sign
        found = {number for number, other in enumerate(values) if str(other) == str(value)}
        assert shelf.find(f"key={written}") == found
        assert shelf.find(f"key!={written}") == set(range(len(values))) - found
