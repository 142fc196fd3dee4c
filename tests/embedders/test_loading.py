"""A checkpoint that is not whole is refused by name, by every engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unified_embeddings import BGE_M3_Embedder, ModelLoadError


@pytest.fixture
def folder(xlmr: Path, tmp_path: Path) -> Path:
    return shutil.copytree(xlmr, tmp_path / "model")


def refusal(folder: Path, engine: str = "torch") -> str:
    with pytest.raises(ModelLoadError) as caught:
        BGE_M3_Embedder(folder, engine=engine).encode_query("fox")
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("engine", ["flag", "torch"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "model.safetensors", "sparse_linear.pt", "colbert_linear.pt"],
)
def test_a_missing_file_is_named(folder: Path, name: str, engine: str) -> None:
    (folder / name).unlink()
    assert name in refusal(folder, engine)


@pytest.mark.parametrize("engine", ["flag", "torch"])
@pytest.mark.parametrize("name", ["model.safetensors", "sparse_linear.pt", "colbert_linear.pt"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(folder: Path, name: str, engine: str, share: float) -> None:
    file = folder / name
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    assert name in refusal(folder, engine)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_truncated_pickle_is_named(folder: Path, share: float) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(state, file)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    assert "pytorch_model.bin" in refusal(folder)


def test_a_pickle_that_would_run_code_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("the pickle ran code",)

    torch.save({"embeddings": Trap()}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal(folder)


@pytest.mark.parametrize("engine", ["flag", "torch"])
def test_a_missing_tensor_is_named(folder: Path, engine: str) -> None:
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if "layer.1.attention.self.query.weight" in name)
    del state[name]
    save_file(state, folder / "model.safetensors")
    assert name in refusal(folder, engine)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 48
    (folder / "config.json").write_text(json.dumps(config))
    assert "intermediate.dense" in refusal(folder)


@pytest.mark.parametrize("engine", ["flag", "torch"])
@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("sparse_linear.pt", torch.nn.Linear(16, 1).state_dict()),
        ("sparse_linear.pt", torch.nn.Linear(32, 2).state_dict()),
        ("sparse_linear.pt", {"weight": torch.zeros(1, 32)}),
        ("colbert_linear.pt", torch.nn.Linear(16, 16).state_dict()),
        ("colbert_linear.pt", {"bias": torch.zeros(32)}),
    ],
)
def test_a_head_of_a_wrong_shape_is_named(
    folder: Path, name: str, state: dict[str, torch.Tensor], engine: str
) -> None:
    torch.save(state, folder / name)
    assert name in refusal(folder, engine)


def test_a_narrower_colbert_head_is_taken_as_it_is(folder: Path) -> None:
    torch.save(torch.nn.Linear(32, 8).state_dict(), folder / "colbert_linear.pt")
    rows = BGE_M3_Embedder(folder).encode_query("fox", colbert=True).colbert
    assert rows[0].shape[1] == 8


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = 50
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="different models"):
        BGE_M3_Embedder(folder).tokenise("fox")
    assert "word_embeddings" in refusal(folder)  # which is what loading comes upon first


def test_a_broken_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in refusal(folder)


def test_an_architecture_that_is_not_run_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "gpt2"
    (folder / "config.json").write_text(json.dumps(config))
    assert "gpt2" in refusal(folder)


def test_weights_saved_under_a_prefix_are_found(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    expected = BGE_M3_Embedder(folder).encode_query("fox").dense
    save_file({f"roberta.{name}": t for name, t in state.items()}, folder / "model.safetensors")
    assert BGE_M3_Embedder(folder).encode_query("fox").dense.tolist() == expected.tolist()


def test_weights_with_more_layers_than_the_configuration_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    assert "encoder.layer.1" in refusal(folder)


@pytest.mark.parametrize("key", ["hidden_size", "max_position_embeddings", "pad_token_id"])
def test_a_setting_that_is_no_number_is_named(folder: Path, key: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[key] = None
    (folder / "config.json").write_text(json.dumps(config))
    assert key in refusal(folder)
