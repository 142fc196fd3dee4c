"""A full-size BGE-M3 and a full-size CLIP with random weights, made on the spot.

For speed, memory and exactness only: the architectures and the sizes are the published ones (568M
and 151M parameters), the weights are noise, so their vectors mean nothing.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
)

VOCABULARY = 250_002
WIDTH = 1024


def make(folder: Path) -> Path:
    """Write the checkpoint into `folder`, unless a whole one is there; 2.3 GB in fp32."""
    done = folder / "done"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=8194,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        architectures=["XLMRobertaModel"],
    )
    config.save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device("meta"):
        model = XLMRobertaModel(config, add_pooling_layer=False)
    state = {
        name: torch.ones(tensor.shape)
        if name.endswith("LayerNorm.weight")
        else torch.empty(tensor.shape).normal_(std=0.02)
        for name, tensor in model.named_parameters()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for name, rows in (("sparse_linear.pt", 1), ("colbert_linear.pt", WIDTH)):
        torch.save(torch.nn.Linear(WIDTH, rows).state_dict(), folder / name)
    _tokenizer().save(str(folder / "tokenizer.json"))
    specials = {
        "bos": "<s>",
        "eos": "</s>",
        "sep": "</s>",
        "cls": "<s>",
        "unk": "<unk>",
        "pad": "<pad>",
    }
    settings: dict[str, object] = {f"{name}_token": token for name, token in specials.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    done.touch()
    return folder


def make_clip(folder: Path) -> Path:
    """Write ViT-B/32 into `folder`, unless a whole one is there; 0.6 GB in fp32."""
    done = folder / "done"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    specials = ["<|startoftext|>", "<|endoftext|>"]
    filler = [f"filler{i}" for i in range(49_408 - len(tokens) - len(specials))]
    vocabulary = {token: i for i, token in enumerate([*tokens, *filler, *specials])}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig()).save_pretrained(folder)
    done.touch()
    return folder


def _tokenizer() -> Tokenizer:
    """A Unigram tokenizer of XLM-RoBERTa's size: common letters, then filler pieces."""
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        *string.ascii_letters,
        *string.digits,
        *".,;:!?'-",
    ]
    pieces += [f"▁{a}{b}{c}" for a in string.ascii_lowercase for b in string.ascii_lowercase
               for c in string.ascii_lowercase]  # fmt: skip
    pieces += [f"\U000f0000{i}" for i in range(VOCABULARY - 1 - len(pieces))]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer
