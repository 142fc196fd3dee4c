"""The inspector's pages show what the retriever finds, and nothing that they show can act."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient
from starlette.testclient import TestClient

from inspected_pages import (
    QUESTION,
    TEXTS,
    Element,
    browse,
    fill,
    library_over,
    read_list,
    read_page,
    uuid_of,
)
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.inspector import views
from unified_embeddings.inspector.library import Library, Place
from unified_embeddings.inspector.pages import format_score
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client

HOSTILE = [
    "<script>document.title = 'taken'</script> travel",
    "</p></li><img src=x onerror=alert(1)> travel",
    '" onmouseover="alert(1)" travel \' {{ 7 * 7 }} {% raw %}',
    "\u202egnihtemos si sihT\u202c \u2066travel\u2069 \x00\x1b[31m\x07 \u05e9\u05dc\u05d5\u05dd",
    "travel " + "x" * 100_000,
    "travel \U0001f680 " + "\u0300" * 500,
]


@pytest.fixture(scope="module")
def config() -> UnifiedEmbeddingConfig:
    return UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu")


@pytest.fixture
def shelf(config: UnifiedEmbeddingConfig, any_client: Client) -> Iterator[TestClient]:
    fill(config, any_client)
    with browse(library_over(config, any_client)) as client:
        yield client


@pytest.fixture(scope="module")
def handbook(config: UnifiedEmbeddingConfig) -> TestClient:
    client = QdrantClient(":memory:")
    fill(config, client)
    return browse(library_over(config, client))


def get(browser: TestClient, path: str, status: int = 200, **parameters: Any) -> Element:
    answer = browser.get(path, params=parameters)
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text
    return read_page(answer.text)


# --- searching ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        ({}, {}),
        ({"rerank": "1"}, {"rerank": "colbert"}),
        ({"weights": "1,0.25", "k": "3"}, {"weights": (1.0, 0.25), "similarity_top_k": 3}),
        ({"candidates": "2"}, {"candidates": 2}),
        ({"mode": "sparse"}, {"mode": "sparse"}),
        ({"mode": "dense", "rerank": "1"}, {"mode": "dense", "rerank": "colbert"}),
    ],
    ids=str,
)
def test_the_last_list_is_what_the_retriever_returns(
    config: UnifiedEmbeddingConfig,
    any_client: Client,
    parameters: dict[str, str],
    options: dict[str, Any],
) -> None:
    fill(config, any_client)
    store = config.vector_store("handbook", client=any_client)
    nodes = config.retriever(store, **{"similarity_top_k": 10, **options}).retrieve(QUESTION)
    page = get(browse(library_over(config, any_client)), "/search", q=QUESTION, **parameters)
    names = [section.attributes["id"] for section in page.find("section", cls="list")
             if "id" in section.attributes]  # fmt: skip
    found = read_list(page, names[-1].removeprefix("list-"))
    assert found == [(node.node.node_id, format_score(node.score or 0.0)) for node in nodes]


def test_each_list_is_the_retrievers_of_that_mode(
    config: UnifiedEmbeddingConfig, shelf: TestClient, any_client: Client
) -> None:
    page = get(shelf, "/search", q=QUESTION)
    store = config.vector_store("handbook", client=any_client)
    for mode in ("dense", "sparse"):
        nodes = config.retriever(store, mode=mode).retrieve(QUESTION)
        expected = [(node.node.node_id, format_score(node.score or 0.0)) for node in nodes]
        assert read_list(page, mode) == expected


def test_the_arithmetic_of_a_passage_that_is_first_in_both_lists(handbook: TestClient) -> None:
    page = get(handbook, "/search", q=QUESTION, weights="1,1")
    first = page.one("section", id="list-fused").find(cls="hit")[0]
    link = first.one("p", cls="head").one("a")
    total = first.one(role="tooltip")
    assert link.attributes["aria-describedby"] == total.attributes["id"]
    assert [cell.text for cell in total.find("td", cls="formula")] == ["1 · 1 / (60 + 1)"] * 2
    # 1/61 from each list
    assert [cell.text for cell in total.find("td", cls="number")] == ["0.0164", "0.0164", "0.0328"]


def test_a_passage_that_one_list_lacks_says_so(handbook: TestClient) -> None:
    page = get(handbook, "/search", q=QUESTION, candidates="1", weights="1,1", k="5")
    for hit in page.one("section", id="list-fused").find(cls="hit"):
        formulas = [cell.text for cell in hit.find("td", cls="formula")]
        places = hit.one(cls="places").text
        assert ("not among its first 1" in formulas) == ("dense" not in places or
                                                          "sparse" not in places)  # fmt: skip


def test_lines_join_the_same_passage_in_all_lists(handbook: TestClient) -> None:
    page = get(handbook, "/search", q=QUESTION, rerank="1")
    appearances: dict[str, int] = {}
    for hit in page.find("li", cls="hit"):
        key = hit.attributes["data-key"]
        appearances[key] = appearances.get(key, 0) + 1
    lines = [path.attributes["data-key"] for path in page.one("svg", cls="joins").find("path")]
    assert {key: lines.count(key) + 1 for key in appearances} == appearances


def test_words_are_marked_with_what_they_add(
    config: UnifiedEmbeddingConfig, shelf: TestClient, any_client: Client
) -> None:
    page = get(shelf, "/search", q=QUESTION)
    retriever = config.retriever(config.vector_store("handbook", client=any_client))
    for hit in page.one("section", id="list-sparse").find(cls="hit"):
        why = retriever.explain(QUESTION, hit.attributes["data-key"], colbert=False)
        assert why.sparse is not None
        shares = {
            word.text.lower(): format_score(word.contribution)
            for word in why.sparse.tokens
            if word.contribution > 0
        }
        marks = {mark.text.lower(): mark.attributes["title"] for mark in hit.find("mark")}
        for text, share in shares.items():
            if text in marks:  # another word may hold the same piece, as "reimbursements" does
                assert marks[text] == f"adds {share}"
        assert bool(marks) == bool(shares)


def test_filters_reach_every_list(handbook: TestClient) -> None:
    page = get(handbook, "/search", q=QUESTION, filter="page=1")
    odd = {uuid_of(number) for number in (2, 4, 6)}  # the first page is 0
    for name in ("dense", "sparse", "fused"):
        assert {point_id for point_id, _ in read_list(page, name)} <= odd
    assert page.one("input", id="search-filter-1").attributes["value"] == "page=1"


def test_the_address_of_a_search_opens_the_same_search(handbook: TestClient) -> None:
    parameters = {"q": QUESTION, "weights": "1,0.5", "k": "3", "filter": "page=0", "rerank": "1"}
    page = get(handbook, "/search", **parameters)
    passage = page.find("p", cls="head")[0].one("a").attributes["href"]
    back = read_page(handbook.get(passage).text).one("p", cls="back").one("a").attributes["href"]
    again = read_page(handbook.get(back).text)
    for name in ("dense", "sparse", "fused", "reranked"):
        assert read_list(again, name) == read_list(page, name)


def test_stages_are_told_on_the_page_and_in_a_header(handbook: TestClient) -> None:
    answer = handbook.get("/search", params={"q": QUESTION, "rerank": "1"})
    items = read_page(answer.text).one("section", cls="timings").find("li")
    shown = [item.text.split()[0] for item in items]
    assert shown == ["prepare", "embed", "search", "fuse", "rerank", "words"]
    header = answer.headers["server-timing"]
    assert re.findall(r"([a-z]+);dur=[0-9.]+", header) == shown


def test_a_model_without_colbert_and_sparse_offers_neither(tmp_path: Path) -> None:
    from conftest import fake_config

    config = fake_config(heads=("dense",))
    with EdgeQdrantClient(tmp_path / "store") as client:
        fill(config, client)
        browser = browse(library_over(config, client))
        page = get(browser, "/search", q="travel")
        assert [one.attributes["id"] for one in page.find("section", cls="list")] == ["list-dense"]
        assert not page.find("input", name="rerank")
        assert "gives dense vectors, no colbert" in get(
            browser, "/search", 400, q="travel", rerank="1"
        ).text  # fmt: skip


# --- one passage --------------------------------------------------------------------------------


def test_a_passages_words_and_tokens_are_the_explanations(
    config: UnifiedEmbeddingConfig, shelf: TestClient, any_client: Client
) -> None:
    page = get(shelf, "/passage", q=QUESTION, id=uuid_of(1))
    retriever = config.retriever(config.vector_store("handbook", client=any_client))
    why = retriever.explain(QUESTION, uuid_of(1))
    assert why.sparse is not None
    assert why.colbert is not None
    rows = page.one("table", cls="words").one("tbody").find("tr")
    assert [(row.one("th").text.strip(), row.find("td")[2].text) for row in rows] == [
        (word.text, format_score(word.contribution)) for word in why.sparse.tokens
    ]
    cells = page.one("svg", data_heat="")
    assert len(cells.find("rect", cls="best")) == len(why.colbert.matches)
    drawn = "".join(path.attributes["d"] for path in cells.find("path"))
    assert drawn.count("M") == why.colbert.similarities.size
    assert page.one("div", cls="passage").text == TEXTS[0]


def test_a_passage_can_be_read_without_a_question(handbook: TestClient) -> None:
    page = get(handbook, "/passage", id=uuid_of(2))
    assert page.one("div", cls="passage").text == TEXTS[1]
    assert "Page 1" in page.text
    assert not page.find("table", cls="words")


def test_a_passage_that_no_list_has_is_explained(handbook: TestClient) -> None:
    page = get(handbook, "/passage", q=QUESTION, id=uuid_of(6), candidates="1", filter="page=0")
    assert "does not meet the filters" in page.text
    assert "no rank" in page.text


# --- hostile passages ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(config: UnifiedEmbeddingConfig) -> TestClient:
    client = QdrantClient(":memory:")
    metadata = [
        {"title": f"<b>{number}</b>\u202e", "<i>key</i>": "<u>value</u>" * 50}
        for number in range(len(HOSTILE))
    ]
    fill(config, client, HOSTILE, metadata=metadata)
    return browse(library_over(config, client))


@pytest.mark.parametrize("number", range(1, len(HOSTILE) + 1))
def test_hostile_passages_are_text(hostile: TestClient, number: int) -> None:
    from unified_embeddings.inspector.visible import visible

    page = get(hostile, "/passage", q="travel <script>", id=uuid_of(number))
    assert page.one("div", cls="passage").text == visible(HOSTILE[number - 1])
    require_harmless(page)
    assert page.one("h1").text.startswith(f"<b>{number - 1}</b>[U+202E]")


@pytest.mark.parametrize(
    "path",
    [
        "/search?q=travel%3Cscript%3Ealert(1)%3C/script%3E&rerank=1",
        "/collection?colour=%3Ci%3Ekey%3C/i%3E",
        "/compare?q=travel",
        "/search?collection=%22%3E%3Cscript%3Ealert(1)%3C/script%3E",
    ],
)
def test_no_page_with_hostile_texts_has_an_element_of_theirs(
    hostile: TestClient, path: str
) -> None:
    page = read_page(hostile.get(path).text)
    require_harmless(page)
    for tag in ("b", "i", "u", "img"):
        for element in page.find(tag):
            assert "<" not in element.text
            assert element.text not in ("key", "value", "0", "1", "2", "3", "4", "5")


def require_harmless(page: Element) -> None:
    """Only scripts of ours, and nothing in the page that acts or is loaded from elsewhere."""
    for script in page.find("script"):
        assert re.fullmatch(r"/static/(theme|inspector)\.js\?v=[0-9a-f]+",
                            script.attributes["src"])  # fmt: skip
        assert not script.text
    for element in page.find():
        assert element.tag not in ("img", "iframe", "object", "embed", "style", "base")
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            assert name != "style"
            if name in ("src", "href", "action", "data-href"):
                assert value.startswith(("/", "#")), value
                assert not value.startswith("//")


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/search?collection=nothing", 404, "there are: 'handbook'"),
        ("/search?q=x&k=0", 400, "k must be a whole number from 1 to 50, got '0'"),
        ("/search?q=x&k=²", 400, "k must be"),
        ("/search?q=x&mode=all", 400, "mode must be one of hybrid, dense, sparse, got 'all'"),
        ("/search?q=x&weights=1", 400, "weights"),
        ("/search?q=x&weights=a,b", 400, "should be DENSE,SPARSE"),
        ("/search?q=x&filter=page", 400, "the filter 'page' should be KEY=VALUE"),
        ("/search?q=x&filter=pag=1", 400, "nearest are 'page'"),
        ("/search?q=" + "x" * 10_001, 400, "10,000 are the most"),
        ("/passage?id=nowhere", 400, "a passage's id is a UUID or a whole number"),
        (f"/passage?id={uuid_of(99)}", 400, "has no passage"),
        ("/compare?set=1", 400, "--queries"),
        ("/compare?b.collection=other", 404, "there is no collection 'other'"),
        ("/nothing", 404, "There is no such page here."),
    ],
)
def test_what_cannot_be_shown_is_told(
    handbook: TestClient, path: str, status: int, words: str
) -> None:
    answer = handbook.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert words in read_page(answer.text).text


def test_an_error_of_another_kind_does_not_quote_it(
    config: UnifiedEmbeddingConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = QdrantClient(":memory:")
    fill(config, client)

    def fail(*_: object) -> None:
        raise RuntimeError("secret passage")

    monkeypatch.setattr(views, "run_search", fail)
    page = get(browse(library_over(config, client)), "/search", 500, q="x")
    assert "RuntimeError" in page.text
    assert "secret" not in page.text + caplog.text
    assert "RuntimeError at test_inspector_pages.py:" in caplog.text


def test_a_store_without_collections_says_what_to_do(config: UnifiedEmbeddingConfig) -> None:
    page = get(browse(library_over(config, QdrantClient(":memory:"))), "/search", 404)
    assert "unified-embeddings index PATH" in page.text


def test_a_collection_of_an_unknown_model_is_not_guessed() -> None:
    from qdrant_client import models as qm

    client = QdrantClient(":memory:")
    client.create_collection(
        "foreign",
        vectors_config={"text-dense": qm.VectorParams(size=4, distance=qm.Distance.COSINE)},
    )
    page = get(browse(Library(client, Place())), "/search", 400)
    assert "does not record which model made it" in page.text


# --- a page's Python ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/search?q=Who+reimburses+travel%3F&weights=1,0.5&k=3&filter=page=0",
        "/search?q=it%27s+%22%22%22+%5C&rerank=1",
        f"/passage?q=Who+reimburses+travel%3F&id={uuid_of(1)}",
        f"/passage?id={uuid_of(1)}",
        "/collection",
        "/compare?q=travel&b.mode=sparse",
    ],
)
def test_the_python_of_a_page_gives_what_it_shows(handbook: TestClient, path: str) -> None:
    page = read_page(handbook.get(path).text)
    code = page.one("details", cls="python").one("code").text
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        # The place is a store in memory, which the code takes from whoever has it.
        exec(compile(code, "page", "exec"), {"client": _client_of(handbook)})
    printed = out.getvalue()
    if path.startswith("/search"):
        names = ("reranked",) if "rerank=1" in path else ("fused",)
        expected = [f"{score} {point_id}" for name in names
                    for point_id, score in read_list(page, name)]  # fmt: skip
        assert [line[: len(expected[0])] for line in printed.splitlines()] == expected
    elif path.startswith("/compare"):
        expected = [hit.attributes["data-key"] for hit in page.find("li", cls="hit")]
        assert [line.split()[1] for line in printed.splitlines()] == expected
    elif path.startswith("/collection"):
        assert "points=6" in printed
        assert "(6, 384)" in printed
    else:
        assert printed


def _client_of(browser: TestClient) -> Any:
    return browser.app.state.library.client  # type: ignore[attr-defined]
