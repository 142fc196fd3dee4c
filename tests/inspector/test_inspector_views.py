"""What a collection holds, what a comparison tells, and who gets to see either."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient
from starlette.testclient import TestClient

from inspected_pages import QUESTION, TEXTS, browse, fill, library_over, read_page, uuid_of
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.inspector.collection import FieldValue, count_fields, project
from unified_embeddings.inspector.comparing import load_questions
from unified_embeddings.inspector.library import Library, Place
from unified_embeddings.inspector.lines import COLUMN, GAP, ROW, join_lists
from unified_embeddings.inspector.passage import shade
from unified_embeddings.inspector.server import open_port
from unified_embeddings.inspector.visible import one_line, title_of, visible
from unified_embeddings.inspector.words import mark_words
from unified_embeddings.stores.opening import Client


@pytest.fixture(scope="module")
def config() -> UnifiedEmbeddingConfig:
    return UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def handbook(config: UnifiedEmbeddingConfig) -> TestClient:
    client = QdrantClient(":memory:")
    fill(config, client)
    return browse(library_over(config, client))


# --- a collection -------------------------------------------------------------------------------


def test_a_collection_is_counted_and_drawn(
    config: UnifiedEmbeddingConfig, any_client: Client
) -> None:
    repeated = "Everybody who enters the building at night signs the book at the gate."
    texts = [*TEXTS, repeated, f"{repeated} Always."]
    fill(config, any_client, texts)
    page = read_page(browse(library_over(config, any_client)).get("/collection").text)
    facts = {
        one.one("dt").text: " ".join(one.one("dd").text.split())
        for one in page.one("dl", cls="facts").find("div")
    }
    assert facts["Passages"] == "8"
    assert facts["Model"] == "mini-m3"
    assert facts["Fingerprint"] == config.embedder.fingerprint
    assert facts["Vectors"] == "text-dense 384 text-sparse-new sparse"
    rows = {}
    for row in page.one("table", cls="fields").one("tbody").find("tr"):
        rows[row.one("th").one("bdi").text] = row
    values = [" ".join(item.text.split()) for item in rows["page"].find("li")]
    assert values == ["0 4", "1 4"]
    assert rows["title"].one("small", cls="muted").text == "8 values"
    dots = page.one("div", data_map="").find("circle")
    assert len(dots) == 8
    # Coloured by the page number, since every title is another.
    assert {dot.attributes["class"] for dot in dots} == {"c0", "c1"}
    (group,) = page.one("ul", cls="groups").find("li")
    assert sorted(link.text for link in group.find("a")) == ["Page 6", "Page 7"]


def test_the_map_can_be_coloured_by_any_field(handbook: TestClient) -> None:
    page = read_page(handbook.get("/collection", params={"colour": "title"}).text)
    legend = [" ".join(item.text.split()) for item in page.one("ul", cls="legend").find("li")]
    assert legend == [f"Page {number} 1" for number in range(6)]


@pytest.mark.parametrize("shape", [(40, 12), (300, 64), (3, 5), (2, 2)])
def test_the_map_shows_the_principal_components(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(7)
    # Directions of falling strength, so that the first two stand out.
    vectors = random.standard_normal(shape) * np.linspace(3, 0.2, shape[1]) ** 2
    placed, explained = project(vectors.astype(np.float32))
    centred = vectors.astype(np.float32).astype(np.float64)
    centred -= centred.mean(axis=0)
    _, strengths, axes = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ axes[:2].T
    for column in range(2):  # an axis may point either way
        sign = np.sign(placed[:, column] @ expected[:, column]) or 1.0
        # A hundredth of the map, which is less than a dot.
        atol = 0.01 * np.ptp(expected[:, 0])
        np.testing.assert_allclose(placed[:, column], sign * expected[:, column], atol=atol)
    assert explained == pytest.approx((strengths[:2] ** 2).sum() / (strengths**2).sum(), abs=1e-4)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_equal_vectors_have_a_map_too(count: int) -> None:
    placed, explained = project(np.ones((count, 4), dtype=np.float32)) if count else (
        np.zeros((0, 2)), 0.0)  # fmt: skip
    assert placed.shape == (count, 2)
    assert not placed.any()
    assert explained == 0.0


def test_fields_are_counted_with_each_element_of_a_list() -> None:
    tags, year = count_fields([{"tags": ["a", "b"]}, {"tags": "a", "year": 2024}])
    assert (tags.name, tags.count, tags.distinct) == ("tags", 2, 2)
    assert tags.values == (FieldValue("a", 2), FieldValue("b", 1))
    assert (year.name, year.count) == ("year", 1)


# --- comparing ----------------------------------------------------------------------------------


def test_two_modes_share_what_both_find(handbook: TestClient) -> None:
    page = read_page(
        handbook.get("/compare", params={"q": QUESTION, "a.mode": "dense", "b.mode": "sparse"}).text
    )
    first, second = (
        [hit.attributes["data-key"] for hit in section.find("li", cls="hit")]
        for section in page.find("section", cls="list")
    )
    share = len({*first} & {*second}) / max(len(first), len(second))
    assert f"share {100 * share:.0f}% of their passages" in " ".join(page.text.split())
    lines = page.one("svg", cls="joins").find("path")
    assert {line.attributes["data-key"] for line in lines} == {*first} & {*second}


def test_two_collections_are_joined_by_their_texts(config: UnifiedEmbeddingConfig) -> None:
    client = QdrantClient(":memory:")
    fill(config, client)
    fill(config, client, list(reversed(TEXTS)), name="reversed")
    page = read_page(
        browse(library_over(config, client), collection="handbook")
        .get("/compare", params={"q": QUESTION, "b.collection": "reversed"})
        .text
    )
    assert "share 100% of their passages" in " ".join(page.text.split())
    assert len(page.one("svg", cls="joins").find("path")) == len(TEXTS)


def test_two_models_each_search_what_they_made(config: UnifiedEmbeddingConfig) -> None:
    client = QdrantClient(":memory:")
    fill(config, client)
    words = UnifiedEmbeddingConfig("mini-m3", sparse_model="bm25", precision="fp32", device="cpu")
    pytest.importorskip("py_rust_stemmers")
    fill(words, client, name="by-words")
    # No model is given: each collection records its own.
    browser = browse(Library(client, Place()), collection="handbook")
    page = read_page(
        browser.get("/compare", params={"q": QUESTION, "b.collection": "by-words"}).text
    )
    models = [note.text for note in page.one("div", cls="sides").find("p", cls="muted")]
    assert models == ["model mini-m3, hybrid", "model mini-m3 + bm25, hybrid"]
    assert len(page.find("li", cls="hit")) == 2 * len(TEXTS)


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Two questions; the first passage answers the first, no passage answers the second."""
    folder = tmp_path / "judged"
    (folder / "qrels").mkdir(parents=True)
    questions = {"travel": QUESTION, "moon": "How far is the moon?"}
    lines = [json.dumps({"_id": key, "text": text}) for key, text in questions.items()]
    (folder / "queries.jsonl").write_text("\n".join(lines), "utf-8")
    rows = ["query-id\tcorpus-id\tscore", f"travel\t{uuid_of(1)}\t1", "moon\tnowhere\t1"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows), "utf-8")
    return folder


def test_a_judged_set_is_rated(config: UnifiedEmbeddingConfig, judged: Path) -> None:
    client = QdrantClient(":memory:")
    fill(config, client)
    browser = browse(library_over(config, client), questions=load_questions(judged))
    page = read_page(browser.get("/compare", params={"set": "1", "b.filter": "page=1"}).text)
    facts = {
        one.one("dt").text: one.one("dd").text.split()[0]
        for one in page.one("dl", cls="facts").find("div")
    }
    # A finds the one relevant passage first, and nothing for the moon: (1 + 0) / 2. Passage 1 is
    # on page 0, which B leaves out.
    assert facts["nDCG@10 of A"] == "0.5000"
    assert facts["nDCG@10 of B"] == "0.0000"
    rows = page.one("table").one("tbody").find("tr")
    assert [row.one("bdi").text for row in rows] == [QUESTION, "How far is the moon?"]
    assert [cell.text for cell in rows[0].find("td")[:3]] == ["1.0000", "0.0000", "-1.0000"]
    link = rows[0].one("a").attributes["href"]
    again = read_page(browser.get(link).text)
    assert again.one("input", id="q").attributes["value"] == QUESTION
    assert again.find("section", cls="list")


def test_a_set_without_judgements_tells_what_is_shared(
    config: UnifiedEmbeddingConfig, tmp_path: Path
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"_id": "1", "text": QUESTION}), "utf-8")
    client = QdrantClient(":memory:")
    fill(config, client)
    browser = browse(library_over(config, client), questions=load_questions(file))
    page = read_page(browser.get("/compare", params={"set": "1", "b.collection": "handbook"}).text)
    assert "results share 100% on average" in " ".join(page.text.split())
    assert "nDCG" not in page.text


def test_judgements_in_trecs_format_are_read(judged: Path, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("moon 0 d1 2\n", "utf-8")
    questions = load_questions(judged, qrels)
    assert questions.qrels == {"moon": {"d1": 2}}
    assert questions.questions == {"moon": "How far is the moon?"}
    qrels.write_text("sun 0 d1 2\n", "utf-8")
    with pytest.raises(InputError, match="'sun' is not in"):
        load_questions(judged, qrels)


# --- who may look -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8765", 200),
        ("localhost:8765", 200),
        ("LOCALHOST", 200),
        ("[::1]:8765", 200),
        ("127.0.0.1.evil.example", 421),
        ("evil.example", 421),
        ("localhost.evil.example:80", 421),
        ("127.0.0.1@evil.example", 421),
        ("10.0.0.1", 421),
        ("", 421),
    ],
)
def test_only_this_machines_names_are_answered(
    handbook: TestClient, host: str, status: int
) -> None:
    for path in ("/search", "/static/inspector.js"):
        assert handbook.get(path, headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 403),
        ("cross-site", "cors", 403),
        ("same-site", "no-cors", 403),  # another port of this machine
        ("cross-site", "navigate", 200),
        ("same-origin", "no-cors", 200),
        ("none", "navigate", 200),
    ],
)
def test_other_sites_may_link_but_not_load(
    handbook: TestClient, site: str, mode: str, status: int
) -> None:
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode}
    assert handbook.get("/search", headers=headers).status_code == status


def test_nothing_is_taken_but_questions(handbook: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert handbook.request(method, "/search").status_code == 405
    assert handbook.get("/search?q=" + "x" * 40_000).status_code == 414
    assert handbook.head("/search").status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/search", "/search?q=travel", "/nothing", "/search?k=0", "/static/inspector.css"]
)
def test_every_answer_has_a_strict_policy(handbook: TestClient, path: str) -> None:
    headers = handbook.get(path).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"]
)
def test_static_files_are_only_those(handbook: TestClient, path: str) -> None:
    assert handbook.get(path).status_code == 404


def test_a_port_in_use_is_told() -> None:
    with open_port(0) as taken:
        assert taken.getsockname()[0] == "127.0.0.1"
        with pytest.raises(InputError, match="choose another --port"):
            open_port(taken.getsockname()[1])


# --- texts --------------------------------------------------------------------------------------


@given(st.text())
def test_a_visible_text_has_nothing_that_acts(text: str) -> None:
    shown = visible(text)
    shown.encode()
    for character in shown:
        assert character in "\t\n" or not 0 <= ord(character) < 32
        assert character not in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\x7f"
    if text.isprintable() and not set(text) & {"\u061c", "\ufeff"}:
        assert shown == text


@given(st.text(), st.integers(5, 50))
def test_a_line_is_one_and_short(text: str, width: int) -> None:
    line = one_line(text, width)
    assert len(line) <= width
    assert "\n" not in line


def test_a_passage_is_called_what_its_metadata_says() -> None:
    assert title_of({"file_path": "/home/me/docs/leave.md"}, "7") == "docs/leave.md"
    assert title_of({"file_path": "x.md", "title": "Leave"}, "7") == "Leave"
    assert title_of({"title": 3, "year": 2024}, "7") == "7"


@pytest.mark.parametrize("whole", [True, False])
def test_words_are_marked_where_they_stand(config: UnifiedEmbeddingConfig, whole: bool) -> None:
    embedder = config.embedder
    (fox,) = embedder.tokenise("fox")
    text = "A Fox, a foxglove: the FOX.\n\nfox"
    segments = mark_words(embedder, text, {fox: 2.0}, whole=whole)
    assert "".join(segment.text for segment in segments) == text
    marked = [segment.text for segment in segments if segment.level == 5]
    # Each word that the token is all or a part of: the model reads "foxglove" as "fox", "##glove".
    assert marked == ["Fox", "foxglove", "FOX", "fox"]


@given(st.text(), st.floats(0.01, 5), st.booleans())
def test_marking_changes_no_text(text: str, share: float, whole: bool) -> None:
    embedder = FakeEmbedder()
    text = text.encode(errors="replace").decode()
    tokens = embedder.tokenise(text)
    segments = mark_words(embedder, text, dict.fromkeys(tokens[::2], share), whole=whole)
    if whole or len(text) < 200:
        # A carriage return before a newline may stand at the end of one segment.
        shown = "".join(segment.text for segment in segments).replace("␍\n", "\n")
        assert shown == visible(text)
    assert all(segment.level in range(6) for segment in segments)


def test_a_collection_that_grows_is_sampled_again(config: UnifiedEmbeddingConfig) -> None:
    client = QdrantClient(":memory:")
    fill(config, client, TEXTS[:2])
    browser = browse(library_over(config, client))
    for count in (2, 6):
        fill(config, client, TEXTS[:count])
        page = read_page(browser.get("/collection").text)
        assert len(page.one("div", data_map="").find("circle")) == count


def test_an_excerpt_begins_where_the_most_words_met(config: UnifiedEmbeddingConfig) -> None:
    embedder = config.embedder
    (fox,) = embedder.tokenise("fox")
    (dog,) = embedder.tokenise("dog")
    text = "fox " + "nothing here " * 60 + "the fox and the dog " + "and more " * 60
    shown = "".join(part.text for part in mark_words(embedder, text, {fox: 1.0, dog: 1.0}))
    assert shown.startswith("… ")
    assert "the fox and the dog" in shown[:80]
    assert len(shown) < 300


def test_lines_run_between_the_right_edge_and_the_left() -> None:
    drawing = join_lists([["a", "b"], ["c"], ["b", "a"]])
    assert drawing.width == 3 * COLUMN + 2 * GAP
    assert drawing.height == 2 * ROW
    ends = {
        line.key: (line.path.split("C")[0], line.path.split(" ")[-2:]) for line in drawing.lines
    }
    assert ends == {"a": ("M100 5", ["244", "15"]), "b": ("M100 15", ["244", "5"])}


def test_shades_rise_from_nothing_to_equal() -> None:
    similarities = np.array([[-0.3, 0.0, 0.5, 1.0]], dtype=np.float32)
    assert shade(similarities).tolist() == [[0, 0, 2, 9]]  # 0.25 · 9 = 2.25
