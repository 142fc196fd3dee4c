"""Attention of long texts on ONNX Runtime: the formula, its memory, and when it is taken."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alone_and_together import assert_same_alone_and_together
from unified_embeddings import BGE_M3_Embedder
from unified_embeddings.engines import attention, encoder, onnx_attention
from unified_embeddings.engines.attention import LongTextAttention, find_long_text_attention
from unified_embeddings.engines.onnx_attention import OnnxAttention
from unified_embeddings.engines.timed_choice import NEVER, Trial
from unified_embeddings.system.memory import peak_bytes

CPU = torch.device("cpu")
TEXTS = ["The quick brown fox", "", "ranking orders them " * 20, "fox <pad> fox"]


def by_formula(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of one text, in double precision."""
    q, k, v = (tensor.double().transpose(0, 1) for tensor in (query, key, value))
    weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
    return (weights @ v).transpose(0, 1).float()


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=3),
    st.integers(1, 4),
    st.sampled_from([4, 8, 12, 64]),
    st.integers(1, 300),
    st.integers(0, 2**32 - 1),
)
def test_each_text_has_the_attention_of_the_formula(
    lengths: list[int], heads: int, head_dim: int, least_tokens: int, seed: int
) -> None:
    parts = torch.randn(
        (sum(lengths), 3, heads, head_dim), generator=torch.Generator().manual_seed(seed)
    ).unbind(1)  # queries, keys and values are parts of one product, like in the encoder
    before = [part.clone() for part in parts]
    texts = zip(*(torch.split(part, lengths) for part in parts), strict=True)
    expected = torch.cat([by_formula(*text) for text in texts])
    long_text_attention = LongTextAttention(least_tokens, OnnxAttention(heads))
    context = attention.attention_by_length(lengths, long_text_attention)(*parts)
    torch.testing.assert_close(context, expected, atol=1e-5, rtol=0)
    for part, copy in zip(parts, before, strict=True):
        torch.testing.assert_close(part, copy, atol=0, rtol=0)  # the inputs are only read


@pytest.mark.parametrize("rows", [1, 100, 299, 300])
def test_queries_are_computed_in_chunks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_attention, "_QUERY_ROWS", rows)
    parts = torch.randn(300, 3, 5, 8).unbind(1)
    context = torch.empty(300, 5, 8)
    OnnxAttention(5)(*parts, context)
    torch.testing.assert_close(context, by_formula(*parts), atol=1e-5, rtol=0)


def test_the_scores_of_a_long_text_are_never_all_in_memory() -> None:
    """Where the kernel holds scores, those of 8,192 tokens and 16 heads would be 4 GiB."""
    if peak_bytes() is None:
        pytest.skip("this system does not tell a process's peak")
    program = """
import os
os.environ["ORT_DISABLE_FLASH_ATTENTION"] = "1"    # the kernel without knowledge of the cache
import torch
from unified_embeddings.engines.onnx_attention import OnnxAttention
from unified_embeddings.system.memory import peak_bytes
parts = torch.randn(8192, 3, 16, 8).unbind(1)
context = torch.ones(8192, 16, 8)
before = peak_bytes()
OnnxAttention(16)(*parts, context)
print((peak_bytes() - before) / 2**30)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # That the scores of a chunk are there shows that it is the kernel in question.
    assert 0.9 < float(done.stdout) < 2


def test_the_number_of_threads_changes_no_bit() -> None:
    parts = torch.randn(300, 3, 4, 16).unbind(1)
    threads_before = torch.get_num_threads()
    contexts = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            contexts.append(torch.empty(300, 4, 16))
            OnnxAttention(4)(*parts, contexts[-1])
    finally:
        torch.set_num_threads(threads_before)
    assert torch.equal(contexts[0], contexts[1])
    assert torch.equal(contexts[0], contexts[2])


def test_vectors_are_the_same_as_with_pytorchs_attention(
    xlmr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = BGE_M3_Embedder(xlmr, engine="torch", precision="fp32", device="cpu")
    expected = usual.encode_documents(TEXTS, colbert=True)
    lengths: list[int] = []

    class Counted(OnnxAttention):
        def __call__(self, query: torch.Tensor, *more: torch.Tensor) -> None:
            lengths.append(len(query))
            super().__call__(query, *more)

    found = LongTextAttention(7, Counted(4))
    monkeypatch.setattr(encoder, "find_long_text_attention", lambda *_: found)
    mixed = BGE_M3_Embedder(xlmr, engine="torch", precision="fp32", device="cpu", cache=None)
    assert_same_alone_and_together(mixed, TEXTS, expected)
    of_texts = [len(usual.tokenise(text)) + 2 for text in TEXTS]
    assert min(of_texts) < 7 < max(of_texts)
    assert set(lengths) == {length for length in of_texts if length >= 7}


def test_it_is_taken_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    trials: list[Trial] = []

    def answer(trial: Trial) -> int:
        trials.append(trial)
        return [NEVER, 128][len(trials) - 1]

    monkeypatch.setattr(attention, "first_faster_size", answer)
    assert find_long_text_attention(1024, 16, torch.float32, CPU) is None
    found = find_long_text_attention(1024, 16, torch.float32, CPU)
    assert found is not None
    assert found.least_tokens == 128
    # The answer is kept for as long as the library that was timed stays the same.
    assert onnxruntime.__version__ in trials[0].name
    assert trials[0].make_input(200).shape == (200, 3, 16, 64)
    x = torch.randn(200, 3, 16, 64)
    expected = by_formula(*x.unbind(1))
    for way in (trials[0].usual, trials[0].other):
        torch.testing.assert_close(way(x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("width", "dtype", "device"),
    [
        (384, torch.float32, "cpu"),  # mini-m3's width
        (1024, torch.bfloat16, "cpu"),
        (1024, torch.float32, "meta"),
    ],
)
def test_nothing_is_timed_where_it_cannot_be_taken(
    width: int, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "first_faster_size", lambda _: pytest.fail("timed"))
    assert find_long_text_attention(width, 12, dtype, torch.device(device)) is None


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_extra_all_texts_take_pytorchs(missing: str) -> None:
    program = f"""
import logging, sys, torch
sys.modules[{missing!r}] = None    # importing it fails, as if it were not installed
logging.basicConfig(level=logging.INFO)
from unified_embeddings.engines import attention
attention.first_faster_size = lambda trial: 128    # as remembered from before
print(attention.find_long_text_attention(1024, 16, torch.float32, torch.device("cpu")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "None\n"
    assert "INFO" in done.stderr
    assert "the extra 'onnx' is not installed" in done.stderr


def test_a_session_that_cannot_be_opened_keeps_no_model_from_being_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(attention, "first_faster_size", lambda _: 128)
    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    with caplog.at_level(logging.WARNING):
        assert find_long_text_attention(1024, 16, torch.float32, CPU) is None
    assert "no such operator" in caplog.text
