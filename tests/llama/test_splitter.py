"""Chunks fit the model, lose nothing, and cost in proportion to the text."""

from __future__ import annotations

import base64
import copy
import itertools
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.schema import Document, ImageDocument, ImageNode

from unified_embeddings import InputError, PairedEmbedder, UnifiedSentenceSplitter
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.chunking import split_table, split_text

HOSTILE = {
    "one mark": "?" * 20_000,
    "mixed marks": "?!" * 10_000,
    "points and quotes": ".'" * 10_000,
    "a word": "a" * 20_000,
    "words": "word " * 4_000,
    "sentences": "The fox jumps. " * 1_500,
    "lines": "a.\n" * 7_000,
    "blanks": "x" + " " * 20_000 + "y",
    "ideographs": "敏捷的棕色狐狸" * 3_000,
    "marks": "e\u0301" * 10_000,
    "emoji": "😀" * 20_000,
    "nul": "\0" * 20_000,
    "cjk marks": "。！？" * 7_000,
}


IMAGE = base64.b64encode(b"the bytes of a picture").decode()


def count_words(text: str) -> int:
    return len(text.split())


def count_characters(text: str) -> int:
    return len(text)


class Counted:
    """Counts tokens, and the characters that were looked at to count them."""

    def __init__(self, count: Any) -> None:
        self._count = count
        self.characters = 0

    def __call__(self, text: str) -> int:
        self.characters += len(text)
        tokens: int = self._count(text)
        return tokens


PROSE = st.lists(
    st.sampled_from(
        ["fox ", "jumps", ". ", "? ", "!", "\n", "\n\n", ", ", " ", "; ", "世界", "。", "e.g. ",
         "a" * 30, "?" * 20, "'", '" ', "\u2028", "\t", "x" * 5, "3.14 ", "A", "\0"]
    ),
    max_size=80,
).map("".join)  # fmt: skip


@given(
    text=PROSE,
    size=st.integers(1, 60),
    share=st.integers(0, 50),
    count=st.sampled_from([count_words, count_characters]),
)
@settings(max_examples=300)
def test_chunks_fit_and_lose_nothing(text: str, size: int, share: int, count: Any) -> None:
    overlap = size * share // 100
    spans = split_text(text, count, size=size, overlap=overlap)
    chunks = [text[start:end] for start, end in spans]
    assert all(chunk == chunk.strip() and chunk for chunk in chunks)
    assert all(count(chunk) <= size for chunk in chunks)
    covered = [False] * len(text)
    for start, end in spans:
        covered[start:end] = [True] * (end - start)
    lost = [character for character, is_in in zip(text, covered, strict=True) if not is_in]
    assert not "".join(lost).strip()
    assert spans == sorted(spans)
    for (_, end), (start, next_end) in itertools.pairwise(spans):
        assert next_end > end, "a chunk adds nothing to the one before"
        assert count(text[start:end]) <= overlap or start >= end


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("count", [count_words, count_characters])
def test_the_cost_is_linear(name: str, count: Any) -> None:
    text = HOSTILE[name]
    looked_at = []
    for part in (text[: len(text) // 4], text):
        counted = Counted(count)
        split_text(part, counted, size=64, overlap=8)
        looked_at.append(counted.characters)
    assert looked_at[1] <= 6 * looked_at[0] + 100_000
    assert looked_at[1] <= 60 * len(text)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_whole_model_splits_them_too(name: str) -> None:
    splitter = UnifiedSentenceSplitter(FakeEmbedder(), chunk_size=64)
    chunks = splitter.split_text(HOSTILE[name])
    assert all(splitter.count_tokens(chunk) <= 64 for chunk in chunks)


def test_sentences_stay_whole_where_they_fit() -> None:
    sentences = [
        "The quick brown fox jumps over the lazy dog, i.e. the one next door.",
        'The dog says: "Why do you always jump over me, quick brown fox?"',
        "最初の文はここで終わります。",
        "The version is 3.14 and not 2.71, which everybody knows by heart!",
    ]
    text = " ".join(sentences)
    spans = split_text(text, count_characters, size=80, overlap=0)
    assert [text[start:end] for start, end in spans] == [
        sentences[0], sentences[1], " ".join(sentences[2:]),
    ]  # fmt: skip


class TestTables:
    @given(
        rows=st.lists(
            st.lists(st.sampled_from(["a", "fox", "7", "00417", "", "long cell of words"]),
                     min_size=1, max_size=5),
            max_size=20,
        ),
        size=st.integers(32, 80),
        title=st.sampled_from(["", "Stock"]),
    )  # fmt: skip
    def test_chunks_fit_and_hold_each_cell(
        self, rows: list[list[str]], size: int, title: str
    ) -> None:
        chunks = split_table(rows, ", ", title, count_characters, size)
        assert all(len(chunk) <= size for chunk in chunks)
        for row in rows:
            for cell in filter(None, row):
                assert any(cell in chunk for chunk in chunks)

    def test_a_row_that_does_not_fit_is_split_between_cells(self) -> None:
        chunks = split_table([["one two", "three four", "five"]], ", ", "", count_words, 4)
        assert chunks == ["one two, three four", "five"]


class TestNodeParser:
    def test_an_image_without_a_caption_stays_a_node(self) -> None:
        splitter = UnifiedSentenceSplitter(FakeEmbedder())
        (node,) = splitter.get_nodes_from_documents([ImageDocument(image=IMAGE)])
        assert isinstance(node, ImageNode)
        assert (node.image, node.text) == (IMAGE, "")

    def test_the_metadata_that_is_embedded_counts(self) -> None:
        splitter = UnifiedSentenceSplitter(FakeEmbedder(), chunk_size=64, chunk_overlap=0)
        document = Document(text="fox " * 200, metadata={"title": "one two three"})
        nodes = splitter.get_nodes_from_documents([document])
        assert len(nodes) > 3
        for node in nodes:
            assert splitter.count_tokens(node.get_content(metadata_mode="embed")) <= 64  # type: ignore[arg-type]
        unseen = Document(
            text="fox " * 64,
            metadata={"path": "a " * 500},
            excluded_embed_metadata_keys=["path"],
        )
        assert len(splitter.get_nodes_from_documents([unseen])) == 1

    def test_metadata_that_leaves_no_room_is_refused_by_name(self) -> None:
        splitter = UnifiedSentenceSplitter(FakeEmbedder(), chunk_size=64)
        document = Document(text="fox", metadata={"summary": "word " * 100})
        with pytest.raises(InputError, match="excluded_embed_metadata_keys"):
            splitter.get_nodes_from_documents([document])

    def test_it_takes_what_fits_the_model(self) -> None:
        assert UnifiedSentenceSplitter(FakeEmbedder(max_length=40)).chunk_size == 38
        assert UnifiedSentenceSplitter(FakeEmbedder(max_length=4000)).chunk_size == 512

    def test_of_two_models_the_one_with_more_tokens_counts(self) -> None:
        class Letters(FakeEmbedder):
            def tokenise(self, text: str) -> list[int]:
                return list(range(len(text)))

        dense, sparse = FakeEmbedder(heads=("dense",)), Letters(heads=("sparse",))
        splitter = UnifiedSentenceSplitter(PairedEmbedder(dense, sparse), chunk_size=32)
        assert splitter.count_tokens("fox jumps") == 9

    @pytest.mark.parametrize(
        "options",
        [
            {"chunk_size": 31},
            {"chunk_size": 64.5},
            {"chunk_size": True},
            {"chunk_size": 64, "chunk_overlap": 64},
            {"chunk_overlap": -1},
            {"embedder": "mini-m3"},
        ],
    )
    def test_what_does_not_fit_is_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            UnifiedSentenceSplitter(options.pop("embedder", FakeEmbedder()), **options)

    def test_settings_can_change_the_sizes(self) -> None:
        splitter = UnifiedSentenceSplitter(FakeEmbedder())
        splitter.chunk_size = 100
        assert (splitter.chunk_size, splitter.chunk_overlap) == (100, 12)
        splitter.chunk_overlap = 7
        assert splitter.chunk_overlap == 7
        with pytest.raises(InputError):
            splitter.chunk_size = 5

    def test_copies_split_alike(self) -> None:
        splitter = UnifiedSentenceSplitter(FakeEmbedder(), chunk_size=40, chunk_overlap=3)
        text = "The fox jumps over it. " * 20
        for copied in (copy.deepcopy(splitter), pickle.loads(pickle.dumps(splitter))):
            assert copied.split_text(text) == splitter.split_text(text)

    def test_copies_keep_their_sizes_over_a_model_that_has_a_name(self) -> None:
        splitter = UnifiedSentenceSplitter(model_name="mini-m3", chunk_size=40, chunk_overlap=3)
        for copied in (copy.deepcopy(splitter), pickle.loads(pickle.dumps(splitter))):
            assert (copied.chunk_size, copied.chunk_overlap) == (40, 3)
            assert copied.include_metadata == splitter.include_metadata
            assert copied.callback_manager is not None

    def test_its_description_makes_it_again(self) -> None:
        splitter = UnifiedSentenceSplitter(model_name="mini-m3", chunk_size=40)
        again = UnifiedSentenceSplitter.from_dict(splitter.to_dict())
        assert again.to_dict() == splitter.to_dict()
        assert again.split_text("fox " * 100) == splitter.split_text("fox " * 100)
