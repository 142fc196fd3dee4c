"""The embedder's promises: order, counts, one load, one forward, clear refusals."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import checkpoints
from unified_embeddings import BGE_M3_Embedder, EmbeddingCache, InputError, UnifiedEmbeddingsError
from unified_embeddings.embedders.batching import group_into_batches
from unified_embeddings.embedders.tokenization import Tokenised
from unified_embeddings.engines import registry
from unified_embeddings.engines.base import RawHeads
from unified_embeddings.engines.torch import TorchEngine


@pytest.fixture
def embedder(xlmr: Path) -> BGE_M3_Embedder:
    return BGE_M3_Embedder(xlmr, precision="fp32", device="cpu")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of texts in each forward pass of the backbone, seen at the model itself."""
    from unified_embeddings.engines.encoder import Encoder

    seen: list[int] = []
    forward = Encoder.__call__

    def counted(self: Encoder, ids: Any, positions: torch.Tensor, attend: Any) -> Any:
        # Each text's positions begin with the same one.
        seen.append(int((positions == positions[0]).sum()))
        return forward(self, ids, positions, attend)

    monkeypatch.setattr(Encoder, "__call__", counted)
    return seen


def test_no_texts_is_a_valid_empty_result(embedder: BGE_M3_Embedder) -> None:
    empty = embedder.encode_documents([], colbert=True)
    assert len(empty) == 0
    assert empty.dense.shape == (0, checkpoints.WIDTH)
    assert empty.dense.dtype == np.float32
    assert (empty.sparse, empty.colbert) == ([], [])


def test_one_pass_whichever_heads_and_none_for_a_cached_text(
    embedder: BGE_M3_Embedder, passes: list[int]
) -> None:
    embedder.encode_documents(checkpoints.CORPUS, dense=True, sparse=True, colbert=True)
    assert passes == [len(checkpoints.CORPUS)]
    embedder.encode_documents(checkpoints.CORPUS[::-1], dense=True)
    embedder.encode_documents(checkpoints.CORPUS[:2], dense=False, colbert=True)
    assert passes == [len(checkpoints.CORPUS)]
    stats = embedder.stats()
    assert stats.forwards == stats.batches == 1
    assert stats.tokenised == len(checkpoints.CORPUS)


def test_a_repeated_text_is_tokenised_and_run_once(
    embedder: BGE_M3_Embedder, passes: list[int]
) -> None:
    texts = ["fox", "dog", "fox", "fox", "dog"]
    result = embedder.encode_documents(texts)
    assert passes == [2]
    assert embedder.stats().tokenised == 2
    np.testing.assert_array_equal(result.dense[0], result.dense[2])
    np.testing.assert_array_equal(result.dense[1], result.dense[4])


def test_a_head_not_computed_before_costs_a_pass_for_it_alone(
    embedder: BGE_M3_Embedder, passes: list[int]
) -> None:
    embedder.encode_documents(["fox", "dog"], sparse=False)
    embedder.encode_documents(["fox", "dog", "hen"])
    assert passes == [2, 3]
    assert embedder.cache.misses == 2 + 4  # dense of two, then sparse of three and dense of one


def test_batches_keep_to_the_token_budget_and_restore_order(xlmr: Path, passes: list[int]) -> None:
    small = BGE_M3_Embedder(xlmr, batch_tokens=30, precision="fp32", device="cpu")
    large = BGE_M3_Embedder(xlmr, batch_tokens=10_000, precision="fp32", device="cpu")
    texts = [f"{text} {i}" for i in range(5) for text in checkpoints.CORPUS]
    many, one = small.encode_documents(texts), large.encode_documents(texts)
    assert len(passes) > 5
    assert passes[-1] == len(texts)
    assert small.stats().forwards == small.stats().batches == len(passes) - 1
    assert small.stats().tokens == large.stats().tokens
    np.testing.assert_allclose(many.dense, one.dense, rtol=0, atol=1e-5)


@given(
    lengths=st.lists(st.integers(2, 60), max_size=40),
    budget=st.integers(1, 100),
    padded=st.booleans(),
)
def test_batching_covers_each_text_once_within_the_budget(
    lengths: list[int], budget: int, padded: bool
) -> None:
    texts = [Tokenised(np.zeros(n, dtype=np.int32), False) for n in lengths]
    batches = list(group_into_batches(texts, budget, padded=padded))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[i] for i in batch]
        cost = max(sizes) * len(sizes) if padded else sum(sizes)
        assert cost <= budget or len(batch) == 1


def test_sixteen_threads_asking_for_one_new_text_cost_one_load_and_one_pass(
    xlmr: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda *args: loads.append(1) or load(*args))
    embedder = BGE_M3_Embedder(xlmr, precision="fp32", device="cpu")
    barrier = threading.Barrier(16)

    def ask(_: int) -> np.ndarray:
        barrier.wait()
        return embedder.encode_query("which fox jumps?").dense[0]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    assert loads == [1]
    assert passes == [1]
    assert embedder.stats().tokenised == 1
    for answer in answers:
        np.testing.assert_array_equal(answer, answers[0])


def test_threads_with_overlapping_batches_get_their_own_rows(embedder: BGE_M3_Embedder) -> None:
    texts = [f"{word} {i}" for i in range(8) for word in ("fox", "dog", "мир", "世界")]
    expected = {text: embedder.encode_documents([text]).dense[0] for text in texts}
    fresh = BGE_M3_Embedder(embedder.model_name, batch_tokens=40, precision="fp32", device="cpu")

    def ask(shift: int) -> None:
        mine = texts[shift:] + texts[:shift]
        rows = fresh.encode_documents(mine).dense
        for text, row in zip(mine, rows, strict=True):
            np.testing.assert_allclose(row, expected[text], rtol=0, atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(0, 32, 4)))
    assert fresh.stats().tokenised == len(texts)


def test_over_long_texts_are_cut_counted_and_logged_once(
    xlmr: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = BGE_M3_Embedder(xlmr, max_length=10)
    rows = embedder.encode_documents(["fox " * 50, "dog"], dense=False, sparse=False, colbert=True)
    assert len(rows.colbert[0]) == 9  # ten tokens less the leading special one
    assert embedder.stats().truncated == 1
    assert embedder.max_length == 10
    embedder.encode_documents(["dog " * 50, "cat " * 50])
    assert [message for message in caplog.messages if "takes 10 tokens" in message] == (
        caplog.messages[:1]
    )


def test_the_models_own_limit_holds_where_it_is_smaller(xlmr: Path, bert: Path) -> None:
    assert BGE_M3_Embedder(xlmr).max_length == 512  # 514 positions, two reserved
    assert BGE_M3_Embedder(bert).max_length == 256  # sentence_bert_config.json


@pytest.mark.parametrize(
    ("texts", "index"),
    [
        (["a", None], 1),
        ([b"bytes"], 0),
        (["a", "b", 3], 2),
        (["fine", "lone \ud800 surrogate"], 1),
        ([["nested"]], 0),
    ],
)
def test_a_bad_item_is_named_by_its_index_and_nothing_is_run(
    embedder: BGE_M3_Embedder, passes: list[int], texts: list[Any], index: int
) -> None:
    with pytest.raises(InputError) as caught:
        embedder.encode_documents(texts)
    assert caught.value.index == index
    assert f"item {index}" in str(caught.value)
    assert passes == []
    assert embedder.cache.entries == 0


@pytest.mark.parametrize("texts", ["one text", b"bytes", None, 5])
def test_something_that_is_no_list_of_texts_is_refused(
    embedder: BGE_M3_Embedder, texts: Any
) -> None:
    with pytest.raises(InputError, match="list of texts"):
        embedder.encode_documents(texts)


@pytest.mark.parametrize("query", [None, 5, ["a list"], b"bytes"])
def test_a_query_that_is_no_text_is_refused(embedder: BGE_M3_Embedder, query: Any) -> None:
    with pytest.raises(InputError, match="one str"):
        embedder.encode_query(query)


def test_no_head_at_all_is_refused(embedder: BGE_M3_Embedder) -> None:
    with pytest.raises(InputError, match="at least one"):
        embedder.encode_documents(["a"], dense=False, sparse=False)


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 0},
        {"batch_tokens": 0},
        {"max_length": "long"},
        {"cache": 5},
    ],
)
def test_options_out_of_range_are_refused_at_once(xlmr: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        BGE_M3_Embedder(xlmr, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "tensorflow"}, "engine must be"),
        ({"precision": "int3"}, "precision must be"),
        ({"device": "toaster"}, "toaster"),
        ({"device": "cpu", "precision": "fp16"}, "fp16"),
        ({"max_length": 2}, "special tokens"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(
    xlmr: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        BGE_M3_Embedder(xlmr, **options).encode_query("fox")


def test_an_engine_that_fails_leaves_nothing_behind(
    embedder: BGE_M3_Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder.encode_query("warm up")
    entries = embedder.cache.entries

    def fails(self: TorchEngine, *_: Any) -> RawHeads:
        raise RuntimeError("the machine is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "start", fails)
        with pytest.raises(RuntimeError, match="on fire"):
            embedder.encode_documents(["fox", "dog"])
    assert embedder.cache.entries == entries
    assert len(embedder.encode_documents(["fox", "dog"])) == 2


def test_what_was_done_before_an_interrupt_is_kept(
    xlmr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = BGE_M3_Embedder(xlmr, batch_tokens=1)  # a pass a text
    start, done = TorchEngine.start, []

    def interrupted(self: TorchEngine, *given: Any) -> Callable[[], RawHeads]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return start(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embedder.encode_documents(checkpoints.CORPUS)
    embedder.encode_documents(checkpoints.CORPUS)
    assert embedder.stats().forwards == len(checkpoints.CORPUS)


def test_cached_rows_cannot_be_changed_by_a_caller(embedder: BGE_M3_Embedder) -> None:
    first = embedder.encode_documents(["fox"], colbert=True)
    kept = first.dense.copy()
    first.dense[:] = 0  # the caller's own copy
    with pytest.raises(ValueError, match="read-only"):
        first.colbert[0][:] = 0
    with pytest.raises(ValueError, match="read-only"):
        first.sparse[0].values[:] = 0
    np.testing.assert_array_equal(embedder.encode_documents(["fox"]).dense, kept)


def test_two_models_share_a_cache_without_mixing(xlmr: Path, tmp_path: Path) -> None:
    cache = EmbeddingCache()
    other = BGE_M3_Embedder(checkpoints.xlm_roberta(tmp_path / "other", seed=1), cache=cache)
    one = BGE_M3_Embedder(xlmr, cache=cache)
    assert not np.allclose(one.encode_query("fox").dense, other.encode_query("fox").dense)
    short = BGE_M3_Embedder(xlmr, cache=cache, max_length=4)
    short.encode_query("fox dog fox dog")
    assert short.stats().tokenised == 1


def test_a_disk_cache_serves_the_next_process_without_loading_the_model(
    xlmr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "vectors.db"
    first = BGE_M3_Embedder(xlmr, cache=EmbeddingCache(path=file))
    expected = first.encode_documents(checkpoints.CORPUS, colbert=True)
    first.cache.close()
    monkeypatch.setattr(registry, "load", lambda *_: pytest.fail("the weights were loaded"))
    second = BGE_M3_Embedder(xlmr, cache=EmbeddingCache(path=file))
    found = second.encode_documents(checkpoints.CORPUS, colbert=True)
    np.testing.assert_array_equal(found.dense, expected.dense)
    assert found.sparse == expected.sparse
    for mine, theirs in zip(found.colbert, expected.colbert, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_fingerprint_is_the_contents_not_the_places(xlmr: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(xlmr, tmp_path / "copy")
    print_of = BGE_M3_Embedder(xlmr).fingerprint
    assert BGE_M3_Embedder(copy).fingerprint == print_of
    assert BGE_M3_Embedder(xlmr, precision="bf16", max_length=99).fingerprint == print_of
    other = checkpoints.xlm_roberta(tmp_path / "other", seed=1)
    assert BGE_M3_Embedder(other).fingerprint != print_of


def test_pytorch_bin_gives_the_same_vectors_as_safetensors(xlmr: Path, tmp_path: Path) -> None:
    pickled = checkpoints.xlm_roberta(tmp_path / "bin", weights="bin")
    texts = checkpoints.CORPUS
    ours = BGE_M3_Embedder(pickled).encode_documents(texts)
    np.testing.assert_array_equal(ours.dense, BGE_M3_Embedder(xlmr).encode_documents(texts).dense)


def test_closing_frees_the_model_and_says_so_afterwards(xlmr: Path) -> None:
    with BGE_M3_Embedder(xlmr) as embedder:
        embedder.encode_query("fox")
    embedder.close()
    assert len(embedder.encode_query("fox")) == 1  # still in the cache
    with pytest.raises(UnifiedEmbeddingsError, match="closed"):
        embedder.encode_query("a new text")


def test_a_pickled_embedder_comes_back_equal(embedder: BGE_M3_Embedder) -> None:
    copy = pickle.loads(pickle.dumps(embedder))
    assert copy.options == embedder.options
    np.testing.assert_array_equal(
        copy.encode_query("fox").dense, embedder.encode_query("fox").dense
    )


def test_progress_is_drawn_on_request_only(
    embedder: BGE_M3_Embedder, capfd: pytest.CaptureFixture[str]
) -> None:
    embedder.encode_documents(["fox"])
    assert capfd.readouterr() == ("", "")
    embedder.encode_documents(["dog", "hen"], show_progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "2 of 2" in captured.err


def test_tokenise_is_uncut_and_without_special_tokens(xlmr: Path) -> None:
    embedder = BGE_M3_Embedder(xlmr, max_length=5)
    assert len(embedder.tokenise("fox " * 50)) >= 50
    assert embedder.tokenise("") == []
    assert embedder.stats().forwards == 0


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=6))
def test_any_unicode_gives_unit_vectors_and_positive_weights(
    embedder: BGE_M3_Embedder, texts: list[str]
) -> None:
    result = embedder.encode_documents(texts, colbert=True)
    assert len(result) == len(texts)
    np.testing.assert_allclose(np.linalg.norm(result.dense, axis=1), 1, atol=1e-5)
    for vector, rows in zip(result.sparse, result.colbert, strict=True):
        assert np.all(vector.values > 0)
        assert np.all(np.diff(vector.indices) > 0)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    ["fox dog " * 30_000, "  \n" * 100_000 + "fox", "x" * 100_000, "世界" * 50_000, "é\t" * 50_000],
)
def test_a_huge_text_has_the_tokens_of_its_beginning(xlmr: Path, bert: Path, text: str) -> None:
    for folder in (xlmr, bert):
        embedder = BGE_M3_Embedder(folder)
        special = embedder.max_length - 2
        whole = embedder.tokenise(text)
        (cut,) = embedder._load_tokenizer()([text])
        assert cut.ids[1:-1].tolist() == whole[:special]
        assert cut.truncated == (len(whole) > special)
