"""The layers against transformers' own, and each piece against a plainer one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel

from alone_and_together import assert_same_alone_and_together
from unified_embeddings import BGE_M3_Embedder, ModelLoadError
from unified_embeddings.engines import attention, encoder, products
from unified_embeddings.system.hardware import passive_wait_policy

TEXTS = ["The quick brown fox", "", "ranking orders them " * 20, "fox <pad> fox"]


def with_settings(folder: Path, target: Path, **settings: Any) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | settings))
    return target


@pytest.mark.parametrize("engine", ["torch", "onnx"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_every_activation_is_transformers(
    activation: str, engine: str, xlmr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)
    folder = with_settings(xlmr, tmp_path / "model", hidden_act=activation, layer_norm_eps=1e-3)
    ours = BGE_M3_Embedder(folder, engine=engine, precision="fp32", device="cpu")
    theirs = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    for text in TEXTS:
        ids = torch.tensor([[0, *ours.tokenise(text), 2]])
        with torch.inference_mode():
            first = theirs(ids).last_hidden_state[0, 0]
        expected = (first / first.norm()).numpy()
        np.testing.assert_allclose(ours.encode_query(text).dense[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_act": "silu"}, "no activation 'silu'"),
        ({"position_embedding_type": "relative_key"}, "relative positions"),
        ({"is_decoder": True}, "a decoder"),
    ],
)
def test_what_the_layers_do_not_compute_is_refused(
    settings: dict[str, Any], message: str, xlmr: Path, tmp_path: Path
) -> None:
    folder = with_settings(xlmr, tmp_path / "model", **settings)
    with pytest.raises(ModelLoadError, match=message):
        BGE_M3_Embedder(folder, engine="torch").encode_query("fox")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_norm_eps": "small"}, "layer_norm_eps = 'small'"),
        ({"layer_norm_eps": 0}, "layer_norm_eps = 0"),
        ({"num_attention_heads": 5}, "5 attention heads over 32 dimensions"),
        ({"num_attention_heads": 0}, "0 attention heads"),
    ],
)
def test_an_impossible_configuration_is_named(
    settings: dict[str, Any], message: str, xlmr: Path, tmp_path: Path
) -> None:
    folder = with_settings(xlmr, tmp_path / "model", **settings)
    with pytest.raises(ModelLoadError, match=message):
        BGE_M3_Embedder(folder, engine="torch").encode_query("fox")


def each_alone(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, *more: Any
) -> torch.Tensor:
    """What PyTorch's `varlen_attn` computes, on any device: every text by the formula."""
    ends_too, longest, longest_too = more
    assert ends.dtype == torch.int32
    assert ends.tolist() == ends_too.tolist()
    assert longest == longest_too == max(ends.diff().tolist())
    parts = []
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        q, k, v = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        parts.append((torch.softmax(scores, dim=-1) @ v).transpose(0, 1))
    return torch.cat(parts)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_both_ways_of_attention_are_the_formula(lengths: list[int], seed: int) -> None:
    packed = torch.randn(
        (sum(lengths), 3, 2, 4), generator=torch.Generator().manual_seed(seed)
    )  # queries, keys and values are parts of one product, like in the encoder
    parts = packed.unbind(1)
    ends = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32)
    expected = each_alone(*parts, ends, ends, max(lengths), max(lengths))
    for context in (
        attention.attention_by_length(lengths)(*parts),
        attention.attention_between(each_alone, ends, max(lengths))(*parts),
    ):
        torch.testing.assert_close(context, expected, atol=1e-5, rtol=0)


@given(st.lists(st.integers(1, 900), min_size=1, max_size=12))
def test_blocks_are_whole_texts_in_order(lengths: list[int]) -> None:
    tokens = [block.tokens for block in attention.blocks_for_cache(lengths)]
    assert sum(tokens) == sum(lengths)
    assert set(np.cumsum(tokens)) <= set(np.cumsum(lengths))  # no text is divided
    assert all(size <= 1024 or size in lengths for size in tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_onednns_products_are_pytorchs(
    activation: str | None, rows: int, dtype: torch.dtype
) -> None:
    if not products.has_onednn(dtype):
        pytest.skip(f"this PyTorch on this processor has no oneDNN products in {dtype}")
    weight, bias = torch.randn(24, 40), torch.randn(24)
    x, residual = torch.randn(rows, 40), torch.randn(rows, 24)
    plain = products.Product(weight, bias, activation)
    packed = products.OneDnnProduct(weight.to(dtype), bias.to(dtype), activation)
    near = {"atol": 1e-4, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.2, "rtol": 0.05}
    x, residual = x.to(dtype), residual.to(dtype)
    torch.testing.assert_close(packed(x).float(), plain(x.float()), **near)
    if activation is None:
        before = residual.clone()
        expected = plain(x.float(), residual=residual.float())
        torch.testing.assert_close(packed(x, residual=residual).float(), expected, **near)
        torch.testing.assert_close(residual, before)  # the residual is read, not written


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_product_in_parts_is_the_whole_product(parts: int, activation: str | None) -> None:
    weight, bias = torch.randn(24, 40), torch.randn(24)
    x, residual = torch.randn(7, 40), torch.randn(7, 24)
    whole = products.Product(weight, bias, activation)
    divided = products.PartsProduct(weight.chunk(parts), bias, activation)
    torch.testing.assert_close(divided(x), whole(x), atol=1e-5, rtol=0)
    before = residual.clone()
    torch.testing.assert_close(divided(x, residual), whole(x, residual), atol=1e-5, rtol=0)
    torch.testing.assert_close(residual, before)


def test_the_number_of_rows_chooses_the_product() -> None:
    weight, bias = torch.eye(3), torch.zeros(3)
    few = products.Product(weight, bias)
    many = products.Product(2 * weight, bias)
    both = products.ByRowsProduct(few, many, 4)
    torch.testing.assert_close(both(torch.ones(3, 3)), torch.ones(3, 3))
    torch.testing.assert_close(both(torch.ones(4, 3)), torch.full((4, 3), 2.0))
    torch.testing.assert_close(both(torch.ones(4, 3), torch.ones(4, 3)), torch.full((4, 3), 3.0))


@pytest.mark.parametrize("first_rows", [1, 8, 40])
def test_vectors_are_the_same_on_either_side_of_the_change_of_products(
    first_rows: int, xlmr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone a text is computed by one product, and among others by the other."""
    usual = BGE_M3_Embedder(xlmr, engine="torch", precision="fp32", device="cpu")
    expected = usual.encode_documents(TEXTS, colbert=True)
    if not products.has_onednn(torch.float32):
        pytest.skip("this PyTorch has one product only")
    monkeypatch.setattr(encoder, "rows_for_plain", lambda *_: first_rows)
    monkeypatch.setattr(encoder, "BLOCK_TOKENS", 30)
    monkeypatch.setattr(attention, "BLOCK_TOKENS", 50)
    calls = count_calls(monkeypatch)
    mixed = BGE_M3_Embedder(xlmr, engine="torch", precision="fp32", device="cpu", cache=None)
    assert_same_alone_and_together(mixed, TEXTS, expected)
    assert calls["PartsProduct"] > 0
    if first_rows > 1:
        assert calls["OneDnnProduct"] > 0


def count_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of each kind of product."""
    calls: Counter[str] = Counter()
    for kind in (products.PartsProduct, products.OneDnnProduct):

        def count(self: Any, *arguments: Any, compute: Any = kind.__call__, **more: Any) -> Any:
            calls[type(self).__name__] += 1
            return compute(self, *arguments, **more)

        monkeypatch.setattr(kind, "__call__", count)
    return calls


def test_weights_in_the_file_are_told_where_they_are_used(
    xlmr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not products.has_onednn(torch.float32):
        pytest.skip("this PyTorch has one product only")

    def told() -> int:
        embedder = BGE_M3_Embedder(xlmr, engine="torch", precision="fp32", device="cpu")
        embedder.encode_query("fox")
        return sum(size for _, size in embedder._engine.weights())

    before = told()
    monkeypatch.setattr(encoder, "rows_for_plain", lambda *_: 100)
    assert told() > before


class TestPassiveWaitPolicy:
    def test_the_environment_is_left_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        with passive_wait_policy():
            assert os.environ["OMP_WAIT_POLICY"] == "passive"
            assert os.environ["GOMP_SPINCOUNT"] == "1000"
        assert "OMP_WAIT_POLICY" not in os.environ
        assert "GOMP_SPINCOUNT" not in os.environ

    def test_what_the_user_has_set_stands(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_WAIT_POLICY", "active")
        with passive_wait_policy():
            assert os.environ["OMP_WAIT_POLICY"] == "active"
            assert "GOMP_SPINCOUNT" not in os.environ
        assert os.environ["OMP_WAIT_POLICY"] == "active"

    def test_loading_an_engine_is_inside(self, xlmr: Path) -> None:
        code = (
            "import builtins, os, sys\n"
            "plain, seen = builtins.__import__, []\n"
            "def watched(name, *rest, **more):\n"
            "    if name == 'torch' and 'torch' not in sys.modules:\n"
            "        seen.append(os.environ.get('OMP_WAIT_POLICY'))\n"
            "    return plain(name, *rest, **more)\n"
            "builtins.__import__ = watched\n"
            "from unified_embeddings import BGE_M3_Embedder\n"
            f"BGE_M3_Embedder({str(xlmr)!r}).encode_query('fox')\n"
            "assert seen[:1] == ['passive'], seen\n"
            "assert 'OMP_WAIT_POLICY' not in os.environ\n"
            "assert 'transformers' not in sys.modules\n"
            "from unified_embeddings.system.hardware import wait_settings\n"
            "assert wait_settings() == ('imported to sleep',), wait_settings()\n"
        )
        environ = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY",)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environ
        )
        assert done.returncode == 0, done.stderr
