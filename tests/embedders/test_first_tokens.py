"""The first tokens of very long texts are those of the whole text, whatever follows.

The oracle is the tokenizer itself on the whole text. Small sizes make short texts go the way of
very long ones.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from unified_embeddings.embedders import first_tokens, long_runs
from unified_embeddings.embedders.first_tokens import FirstTokens

PIECES = [
    "▁",
    "a",
    "aa",
    "aaa",
    "ab",
    "ba",
    "aab",
    "b",
    "▁a",
    "bbbbb",
    "é",
    ".",
    "...",
    "世",
    "世界",
    "▁ba",
]


def unigram() -> Tokenizer:
    """Overlapping pieces: what follows often changes how the letters before are split."""
    scores = [-2.0 - (number * 7 % 5) / 3 for number in range(len(PIECES))]
    vocabulary = [("<unk>", 0.0), *zip(PIECES, scores, strict=True)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def word_piece() -> Tokenizer:
    vocabulary = ["[UNK]", "a", "b", "##a", "##b", "##ab", "ab", ".", "世", "e", "##e", "[SEP]"]
    model = models.WordPiece(
        {token: number for number, token in enumerate(vocabulary)},
        unk_token="[UNK]",
        max_input_chars_per_word=8,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[SEP]"])
    return tokenizer


def byte_pairs() -> Tokenizer:
    """Merges whose result depends on where a run of one letter ends, without words."""
    vocabulary = {token: number for number, token in enumerate(["a", "b", " ", "aa", "aab", "é"])}
    return Tokenizer(models.BPE(vocabulary, [("a", "a"), ("aa", "b")]))


def words_of_byte_pairs() -> Tokenizer:
    """CLIP's steps, with merges whose results depend on each other, and an end of word."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "a"), ("b", "a"), ("aa", "b"), ("a", "b"), ("aa", "aa"), ("ba", "ba")]
    merges += [("ba", "b</w>"), ("a", "a</w>"), ("aaaa", "aab"), ("b", "b"), ("ab", "aa</w>")]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    model = models.BPE(
        {token: number for number, token in enumerate(tokens)}, merges, end_of_word_suffix="</w>"
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    specials = "|".join(re.escape(special) for special in CLIP_SPECIALS)
    pattern = rf"{specials}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens(CLIP_SPECIALS)
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "unigram": unigram,
    "word piece": word_piece,
    "byte pairs": byte_pairs,
    "words of byte pairs": words_of_byte_pairs,
}
ALPHABET = st.sampled_from(
    [*"aaabb. \n\tXéÉ世界\0", "e\u0301", "\u0301", "\u200b", "\u3000", "\ufdfa", "ｱ", "ﬁ", "각",
     "\u1100", "\u1161", "ส", "ั", "😀", "👩\u200d👧", "İ", "</s>", "[SEP]", "\U000f0000", "9",
     "<|endoftext|>", "<|START", "'ll", "|>"]
)  # fmt: skip
CLIP_SPECIALS = ["<|startoftext|>", "<|endoftext|>"]
PART = st.one_of(
    st.lists(ALPHABET, max_size=12).map("".join),
    st.builds(lambda character, count: character * count, ALPHABET, st.integers(1, 60)),
)
TEXTS = st.lists(PART, max_size=8).map("".join)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=TEXTS, wanted=st.integers(1, 12), size=st.integers(1, 3))
@settings(max_examples=300)
def test_they_are_those_of_the_whole_text(kind: str, text: str, wanted: int, size: int) -> None:
    tokenizer = TOKENIZERS[kind]()
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    ids = FirstTokens(tokenizer, characters_per_token=size, shortest_run=20).of(text, wanted)
    assert len(ids) >= min(wanted, len(whole))
    assert ids[:wanted] == whole[:wanted]
    beginning = FirstTokens(tokenizer, characters_per_token=size, shortest_run=20)
    start = tokenizer.encode(beginning.beginning_of(text, wanted), add_special_tokens=False).ids
    assert start[:wanted] == whole[:wanted]


@given(
    word=st.text("ab", max_size=400), repeated=st.text("ab", max_size=5), count=st.integers(0, 99),
    wanted=st.integers(1, 12), prefix=st.sampled_from(["", "</s>", "a ", "<|endoftext|>"]),
)  # fmt: skip
@settings(max_examples=300)
def test_those_of_one_long_word(
    word: str, repeated: str, count: int, wanted: int, prefix: str
) -> None:
    """The letters that the merges are about, so that what follows the cut matters."""
    text = prefix + repeated * count + word
    for tokenizer in (words_of_byte_pairs(), unigram(), byte_pairs()):
        whole = tokenizer.encode(text, add_special_tokens=False).ids
        assert (
            FirstTokens(tokenizer, characters_per_token=9).of(text, wanted)[:wanted]
            == (whole[:wanted])
        )


def test_a_word_cut_after_few_letters_may_be_one_piece_with_what_follows() -> None:
    tokenizer = unigram()
    whole = tokenizer.encode("ba", add_special_tokens=False)
    assert whole.tokens == ["▁ba"]
    assert FirstTokens(tokenizer, characters_per_token=1).of("ba", 1) == whole.ids


@pytest.mark.parametrize("kind", ["unigram", "word piece", "words of byte pairs"])
@pytest.mark.parametrize(
    "text",
    [
        "ab" * 150_000,
        "世界" * 150_000,
        "a.b" * 100_000,
        " " * 300_000 + "ab",
        " \n" * 150_000 + "ab",
        "</s>" * 75_000,
        "</s><|endoftext|>[SEP] " + "世界" * 150_000,
    ],
    ids=["two letters", "ideographs", "marks", "spaces", "white space", "special", "after special"],
)  # fmt: skip
def test_they_come_from_few_characters(
    kind: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert longest_encoded(TOKENIZERS[kind](), text, monkeypatch) <= LIMIT


@pytest.mark.parametrize(
    "text",
    [
        "\U00013000" * 300_000,
        "ab" + "\U00013000\U00013001" * 150_000 + " ba",
        "X" * 300_000 + "\nab",
    ],
)
def test_of_unknown_characters_that_end_a_word_few_are_read(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unigram makes one token of them."""
    assert longest_encoded(unigram(), text, monkeypatch) <= LIMIT


@given(
    before=st.text("ab .X", max_size=9), run=st.text("XY\U00013000", min_size=1, max_size=60),
    after=st.text("ab. X\n\u0301", max_size=9), wanted=st.integers(1, 9),
)  # fmt: skip
@settings(max_examples=300)
def test_unknown_characters_in_a_row(before: str, run: str, after: str, wanted: int) -> None:
    tokenizer = unigram()
    text = before + run + after
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    ids = FirstTokens(tokenizer, characters_per_token=2, shortest_run=6).of(text, wanted)
    assert ids[:wanted] == whole[:wanted]


@pytest.mark.parametrize(
    "text",
    [
        "a" * 300_000,
        "a" * 300_000 + " ab",
        "สวัสดี" * 50_000 + " ab",
        "\0" * 300_000 + "ab",
        "😀" * 300_000 + " ab",
        "a👍🏽" * 100_000,
    ],
)
def test_a_word_beyond_word_pieces_limit_is_shortened(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert longest_encoded(word_piece(), text, monkeypatch) <= LIMIT


def test_where_the_end_of_a_word_decides_its_beginning_all_of_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether a million letters are split into threes depends on the remainder."""
    for length in (3_000, 3_001, 3_002):
        longest_encoded(unigram(), "a" * length, monkeypatch, wanted=3)


LIMIT = 100 * first_tokens.CHARACTERS_PER_TOKEN


def longest_encoded(
    tokenizer: Tokenizer, text: str, monkeypatch: pytest.MonkeyPatch, *, wanted: int = 100
) -> int:
    """Check the first ids, and return the most characters that were tokenised in one go."""
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    asked: list[int] = []
    encode = FirstTokens._encode

    def count(self: FirstTokens, part: str) -> list[int]:
        asked.append(len(part))
        return encode(self, part)

    monkeypatch.setattr(FirstTokens, "_encode", count)
    assert FirstTokens(tokenizer).of(text, wanted)[:wanted] == whole[:wanted]
    monkeypatch.undo()
    return max(asked, default=0)


def test_letters_neither_split_a_word_nor_are_one() -> None:
    """Shortening a long word is right only if BERT makes one word of these characters."""
    tokenizer = word_piece()
    letters = re.compile(long_runs._letters())
    assert tokenizer.normalizer is not None
    assert tokenizer.pre_tokenizer is not None
    checked = 0
    for code in (*range(0x10000), *long_runs._PICTOGRAPHS):
        character = chr(code)
        if letters.fullmatch(character) is None:
            continue
        checked += 1
        normal = tokenizer.normalizer.normalize_str(f"a{character}a")
        words = tokenizer.pre_tokenizer.pre_tokenize_str(normal)
        assert len(words) == 1, f"U+{code:04X} {unicodedata.name(character, '')}"
    assert checked > 20_000


def test_a_text_of_one_long_word_is_cut_at_the_models_length(xlmr: Path, bert: Path) -> None:
    from unified_embeddings import BGE_M3_Embedder

    for folder in (xlmr, bert):
        tokenizer = BGE_M3_Embedder(folder, max_length=32)._load_tokenizer()
        text = "quickbrownfox" * 5_000
        whole = tokenizer._rust.encode(text).ids
        (cut,) = tokenizer([text])
        assert cut.truncated == (len(whole) > 32)
        assert cut.ids.tolist() == (whole if len(whole) <= 32 else [*whole[:31], whole[-1]])
