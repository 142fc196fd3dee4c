"""Queries made from passages: what is made, what is left out, the same every time."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation import near_duplicates
from unified_embeddings.evaluation.corpora import read_beir
from unified_embeddings.evaluation.generated_folder import is_generated, write_generated
from unified_embeddings.evaluation.generated_queries import (
    QUERY_KINDS,
    GeneratedQuery,
    Passage,
    generate_queries,
)
from unified_embeddings.evaluation.near_duplicates import group_near_duplicates, split_words
from unified_embeddings.evaluation.rank_correlation import kendall_tau

_ANIMALS = ["fox", "heron", "otter", "badger", "lynx", "stoat", "marten", "hare", "vole", "shrew"]
_PLACES = ["meadow", "estuary", "river", "forest", "mountain", "hedge", "gorge", "field", "dune"]


def report(number: int) -> str:
    """Four sentences that no other number gives."""
    animal, place = _ANIMALS[number % 10], _PLACES[number % 9]
    return (
        f"The {animal} number {number} was seen at the {place} in spring. "
        f"It stayed for {number + 2} days near station {number * 7}. "
        f"Observers of group {number} recorded its {animal} calls every evening. "
        f"Nothing else happened at the {place} until winter {1900 + number} came."
    )


PASSAGES = [
    Passage(f"p{number:02}", report(number), f"d{number:02}", titles=(f"Report {number}",))
    for number in range(40)
]


class TestKinds:
    def test_each_kind_has_its_share_and_its_words_are_the_passages(self) -> None:
        queries = generate_queries(PASSAGES, 40)
        kinds = Counter(query.kind for query in queries)
        assert len(queries) == 40
        assert set(kinds) == set(QUERY_KINDS)
        assert min(kinds.values()) >= 5
        for query in queries:
            (document,) = query.documents
            passage = PASSAGES[int(document[1:])]
            where = passage.titles[0] if query.kind == "title" else passage.text
            assert query.text in where

    def test_first_and_later_sentences(self) -> None:
        for query in generate_queries(PASSAGES, 160):
            sentences = PASSAGES[int(query.documents[0][1:])].text.split(". ")
            place = [query.text.rstrip(".") in sentence for sentence in sentences]
            if query.kind == "first-sentence":
                assert place.index(True) == 0
            if query.kind == "inverse-cloze":
                assert place.index(True) > 0

    def test_the_phrase_of_rare_words(self) -> None:
        """Only the last four words are in one passage alone."""
        common = "the cat sat on the mat near a warm stove"
        texts = [
            f"{common}",
            f"a warm stove near the cat; {common}",
            f"{common} zinc yew xenon quartz",
        ]
        passages = [Passage(str(i), text, str(i)) for i, text in enumerate(texts)]
        phrases = {
            query.documents[0]: query.text
            for query in generate_queries(passages, 12)
            if query.kind == "rare-phrase"
        }
        assert phrases["2"] == "zinc yew xenon quartz"

    def test_headings_are_titles(self) -> None:
        passage = Passage("1", "# Setting up the pump ##\nTurn it on. Wait a while.", "1")
        titles = [query for query in generate_queries([passage], 9) if query.kind == "title"]
        assert [query.text for query in titles] == ["Setting up the pump"]

    def test_a_first_line_that_does_not_end_like_a_sentence_is_a_title(self) -> None:
        titled = Passage("1", "Setting up the pump\nTurn the switch until it clicks twice.", "1")
        plain = Passage("2", "Wait for the light.\nThen pull the lever slowly back.", "2")
        queries = generate_queries([titled, plain], 9)
        assert [query.text for query in queries if query.kind == "title"] == ["Setting up the pump"]

    def test_a_sentence_of_half_the_passage_or_more_is_no_query(self) -> None:
        whole = Passage("1", "Foxes jump over dogs in the morning.", "1")
        (query,) = generate_queries([whole], 9)
        assert query.kind == "rare-phrase"

    def test_scripts_without_spaces(self) -> None:
        text = "桥梁立于泰恩河畔。它连接纽卡斯尔和盖茨黑德。每年都有很多人来看它。"
        queries = generate_queries([Passage("1", text, "1")], 9)
        sentences = {query.text for query in queries if query.kind != "rare-phrase"}
        assert sentences <= {
            "桥梁立于泰恩河畔。",
            "它连接纽卡斯尔和盖茨黑德。",
            "每年都有很多人来看它。",
        }
        assert len(sentences) == 2
        assert all(" " not in query.text for query in queries)


class TestWhatIsLeftOut:
    def test_a_title_of_several_documents(self) -> None:
        passages = [
            Passage(str(i), report(i), f"d{i}", titles=("Introduction to it",)) for i in range(4)
        ]
        assert not [query for query in generate_queries(passages, 30) if query.kind == "title"]

    def test_near_duplicates_give_queries_once_and_all_their_documents_are_relevant(self) -> None:
        text = " ".join(report(number) for number in range(4))
        twin = text.replace("spring", "SPRING").replace("every evening", "every morning", 1)
        passages = [Passage("1", text, "a"), Passage("2", twin, "b"), Passage("3", report(9), "c")]
        relevant = {query.documents for query in generate_queries(passages, 20)}
        assert relevant == {("a", "b"), ("c",)}

    def test_near_duplicate_queries(self) -> None:
        first = "The same words come first. But number one goes on in its own way, long enough."
        second = "the SAME words, come first! Quite another text follows here with other content."
        queries = generate_queries([Passage("1", first, "1"), Passage("2", second, "2")], 20)
        texts = [" ".join(split_words(query.text)) for query in queries]
        assert texts.count("the same words come first") <= 1

    def test_nothing_usable_is_an_error_that_says_what_it_takes(self) -> None:
        with pytest.raises(InputError, match=r"none of 2 passages.*title"):
            generate_queries([Passage("1", "Yes.", "1"), Passage("2", "No no", "2")], 5)


class TestDeterminism:
    def test_the_order_of_the_passages_does_not_matter_and_the_seed_does(self) -> None:
        shuffled = random.Random(1).sample(PASSAGES, len(PASSAGES))
        assert generate_queries(shuffled, 20) == generate_queries(PASSAGES, 20)
        assert generate_queries(PASSAGES, 20, seed=1) != generate_queries(PASSAGES, 20)

    def test_as_many_as_asked_for_and_more_only_add(self) -> None:
        for count in (1, 7, 40):
            assert len(generate_queries(PASSAGES, count)) == count
        few, many = generate_queries(PASSAGES, 7), generate_queries(PASSAGES, 40)
        assert many[:7] == few

    @pytest.mark.parametrize("count", [0, -1, True, 1.5])
    def test_a_bad_count(self, count: object) -> None:
        with pytest.raises(InputError, match="number of queries"):
            generate_queries(PASSAGES, count)  # type: ignore[arg-type]


class TestNearDuplicates:
    def test_by_the_share_of_common_runs(self) -> None:
        """20 words have 17 runs of four; another last word changes one: 16 of 18 are common."""
        words = [f"w{number}" for number in range(20)]
        text = " ".join(words)
        one_off = " ".join([*words[:-1], "other"])
        reordered = " ".join(reversed(words))
        assert group_near_duplicates([text, one_off, reordered, text.upper()]) == [0, 0, 2, 0]

    def test_blank_texts_are_like_nothing(self) -> None:
        assert group_near_duplicates(["", "", "fox"]) == [0, 1, 2]

    @given(st.lists(st.text("ab c", max_size=12), max_size=12))
    def test_the_same_words_are_the_same_and_groups_point_to_their_first(
        self, texts: list[str]
    ) -> None:
        groups = group_near_duplicates(texts)
        for position, group in enumerate(groups):
            assert group <= position
            assert groups[group] == group
        for a, b in itertools.combinations(range(len(texts)), 2):
            if split_words(texts[a]) and split_words(texts[a]) == split_words(texts[b]):
                assert groups[a] == groups[b]


class TestKendall:
    @pytest.mark.parametrize(
        ("first", "second", "tau"),
        [
            ([1, 2, 3, 4], [10, 20, 30, 40], 1),
            ([1, 2, 3, 4], [4, 3, 2, 1], -1),
            ([1, 2, 3, 4], [1, 2, 4, 3], 4 / 6),  # five pairs alike, one not
            ([1, 1, 2], [1, 2, 3], 2 / math.sqrt(2 * 3)),  # one pair ties
        ],
    )
    def test_by_hand(self, first: list[float], second: list[float], tau: float) -> None:
        assert kendall_tau(first, second) == pytest.approx(tau)

    @given(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30),
    )
    def test_is_scipys(self, pairs: list[tuple[int, int]]) -> None:
        stats = pytest.importorskip("scipy.stats")
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        expected = stats.kendalltau(first, second).statistic
        assert kendall_tau(first, second) == pytest.approx(expected, nan_ok=True)

    @pytest.mark.parametrize(
        ("first", "second"), [([1], [1]), ([1, 2], [1]), ([1, math.nan], [1, 2])]
    )
    def test_bad_input(self, first: list[float], second: list[float]) -> None:
        with pytest.raises(InputError, match="scores"):
            kendall_tau(first, second)


class TestFolder:
    def test_read_beir_reads_it(self, tmp_path: Path) -> None:
        queries = generate_queries(PASSAGES, 20)
        summary = write_generated(tmp_path / "made", PASSAGES, queries, {"collection": "docs"})
        corpus = read_beir(tmp_path / "made")
        assert corpus.documents == {passage.document: passage.text for passage in PASSAGES}
        assert list(corpus.queries.values()) == [query.text for query in queries]
        assert corpus.qrels is not None
        for (query_id, grades), query in zip(corpus.qrels.items(), queries, strict=True):
            assert grades == dict.fromkeys(query.documents, 1)
            assert query_id.startswith(query.kind)
        assert is_generated(tmp_path / "made")
        stored = json.loads((tmp_path / "made" / "generated.json").read_text())
        assert stored == summary
        assert (stored["collection"], stored["queries"]) == ("docs", 20)
        assert "lexical" in stored["warning"]
        assert stored["warning"] in (tmp_path / "made" / "README.md").read_text()

    def test_the_texts_of_a_document_are_joined(self, tmp_path: Path) -> None:
        passages = [Passage("2", "Second part.", "d"), Passage("1", "First part.", "d")]
        query = GeneratedQuery("First part", "title", ("d",))
        write_generated(tmp_path / "made", passages, [query], {})
        assert read_beir(tmp_path / "made").documents == {"d": "First part.\nSecond part."}

    def test_an_existing_folder_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match="not an empty folder"):
            write_generated(tmp_path, PASSAGES, generate_queries(PASSAGES, 5), {})
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
        assert not is_generated(tmp_path)

    @pytest.mark.parametrize("document", ["a\tb", "a\nb", " "])
    def test_a_name_that_would_break_the_table_is_refused(
        self, document: str, tmp_path: Path
    ) -> None:
        query = GeneratedQuery("First part", "title", (document,))
        with pytest.raises(InputError, match="--document-field"):
            write_generated(tmp_path / "made", [Passage("1", "x", document)], [query], {})
        assert not (tmp_path / "made").exists()


def test_a_common_header_neither_hides_duplicates_nor_makes_all_pairs_be_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = random.Random(3)
    header = "This page is the property of nobody in particular and may be copied by all of us. "
    words = [f"word{number}" for number in range(500)]
    texts = [header + " ".join(draw.choices(words, k=40)) for _ in range(300)]
    comparisons = 0
    estimate = near_duplicates._estimate_share

    def count(*sketches: list[int]) -> float:
        nonlocal comparisons
        comparisons += 1
        return estimate(*sketches)

    monkeypatch.setattr(near_duplicates, "_estimate_share", count)
    monkeypatch.setattr(near_duplicates, "_CROWD", 10)
    assert group_near_duplicates([*texts, *texts]) == [*range(300)] * 2
    # Comparing all that share one of their four smallest hashes would be 82,797.
    assert comparisons < 600 * 20
