"""Words: where they begin and end in any script, and identifiers beside their parts."""

from __future__ import annotations

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embeddings.embedders.term_ids import NUMBERS, term_id
from unified_embeddings.embedders.words import find_words, normal_form


def texts_of(text: str) -> list[str]:
    return [word.text for word in find_words(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("getUserById", ["getuserbyid", "get", "user", "by", "id"]),
        ("parseHTMLPage2", ["parsehtmlpage2", "parse", "html", "page"]),
        ("ISO-8601", ["iso-8601", "iso", "8601"]),
        ("foo_bar", ["foo_bar", "foo", "bar"]),
        ("__init__", ["init"]),
        ("--max-length=5", ["max-length", "max", "length", "5"]),
        ("x86_64", ["x86_64", "x86", "86", "64"]),
        ("AB-1234C/7", ["ab-1234c/7", "ab-1234c", "ab", "1234c", "1234", "7"]),
        ("src/io.py", ["src/io.py", "src", "io.py", "io", "py"]),
        ("std::vector<int>", ["std::vector", "std", "vector", "int"]),
        ("me@example.com", ["me@example.com", "me", "example.com", "example", "com"]),
        ("C++ and C#", ["c++", "c", "and", "c#", "c"]),
        ("AT&T, TCP/IP", ["at&t", "at", "t", "tcp/ip", "tcp", "ip"]),
        ("IDs", ["ids"]),
        ("iPhone pH", ["iphone", "phone", "ph"]),
        ("3.14", ["3.14", "3", "14"]),
    ],
)
def test_identifiers_are_kept_beside_their_parts(text: str, words: list[str]) -> None:
    assert texts_of(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Foxes jump; dogs don't.", ["foxes", "jump", "dogs", "don"]),
        ("l\u2019amour, dog's", ["amour", "dog"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("İstanbul", ["istanbul"]),
        ("ＦＵＬＬ ﬁne", ["full", "fine"]),
        ("state\u2011owned co\u00adop", ["state-owned", "state", "owned", "coop"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("水", ["水"]),
        ("机器学习。水", ["机器", "器学", "学习", "机", "器", "学", "习", "水"]),
        ("使用iPhone手机", ["使用", "使", "用", "iphone", "phone", "手机", "手", "机"]),
        ("カタカナ", ["カタ", "タカ", "カナ"]),
        ("ｶﾞｷﾞ", ["ガギ"]),
        ("배우다", ["배우", "우다"]),
        ("ที่นี่", ["ที่นี่"]),
        ("ภาษา", ["ภา", "าษ", "ษา"]),
        ("", []),
        (" ?! \u0301 😀", []),
    ],
)
def test_words_of_many_scripts(text: str, words: list[str]) -> None:
    assert texts_of(text) == words


def test_a_whole_with_parts_does_not_make_a_text_longer() -> None:
    assert sum(word.counted for word in find_words("getUserById")) == 4
    assert sum(word.counted for word in find_words("pH x86_64")) == 3
    assert sum(word.counted for word in find_words("机器学习")) == 3


@given(st.text())
def test_no_letter_and_no_digit_is_lost(text: str) -> None:
    """Every run of letters and digits is in some word, but for one letter beside an apostrophe."""
    plain = normal_form(text).replace("'", " ")
    found = "".join(texts_of(plain))
    for character in plain:
        if character.isalnum():
            folded = unicodedata.normalize("NFKC", character.casefold()).replace("i\u0307", "i")
            # A letter may compose with the mark after it once it is folded.
            assert all(unicodedata.normalize("NFD", part)[0] in unicodedata.normalize("NFD", found)
                       for part in folded)  # fmt: skip


@given(st.text())
def test_case_and_form_do_not_matter_to_one_word(text: str) -> None:
    for word in find_words(text):
        assert word.text
        assert word.text == word.text.casefold() or not word.text.isascii()


@given(st.text(alphabet="aB1_-./:@&+# 中水ก'\u0301", max_size=300))
def test_joints_in_any_order_do_no_harm(text: str) -> None:
    for word in find_words(text):
        assert word.text.strip()


def test_a_megabyte_in_one_word_takes_no_time() -> None:
    for text in ("a" * 10**6, "aB" * 10**5, "a-" * 10**5, "中" * 10**5, "::" * 10**5, "_" * 10**6):
        assert sum(1 for _ in find_words(text)) < 10**6


def test_numbers_are_the_same_in_every_process() -> None:
    code = "from unified_embeddings.embedders.term_ids import term_id; print(term_id('fox'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # printf fox | b2sum -l 64, modulo 2**31 - 1
    assert int(done.stdout) == term_id("fox") == 1_075_085_791


@given(st.text())
def test_numbers_fit_a_sparse_vector(term: str) -> None:
    assert 0 <= term_id(term) < NUMBERS
