"""A full-size BGE-M3 and a full-size CLIP with random weights.

For speed, memory and exactness only: architectures and sizes are the published ones (568M and 151M
parameters), but the weights are noise, so the vectors mean nothing.
"""

from __future__ import annotations

import itertools
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
_TOKENIZER_CONFIG = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 8192,
}


def make(folder: Path) -> Path:
    """Write BGE-M3's checkpoint into `folder`, unless it is complete there; 2.3 GB in fp32.

    Returns:
        The folder.
    """
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
    save_file(_random_weights(config), folder / "model.safetensors", metadata={"format": "pt"})
    for name, rows in (("sparse_linear.pt", 1), ("colbert_linear.pt", WIDTH)):
        torch.save(torch.nn.Linear(WIDTH, rows).state_dict(), folder / name)
    _make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG), "utf-8")
    done.touch()
    return folder


def _random_weights(config: XLMRobertaConfig) -> dict[str, torch.Tensor]:
    """Return noise for every tensor of the model, and ones for the scales of its layer norms."""
    # On the meta device the model has names and shapes but takes no memory.
    with torch.device("meta"):
        model = XLMRobertaModel(config, add_pooling_layer=False)
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in model.named_parameters():
        if name.endswith("LayerNorm.weight"):
            weights[name] = torch.ones(tensor.shape)
        else:
            weights[name] = torch.empty(tensor.shape).normal_(std=0.02)
    return weights


def make_clip(folder: Path) -> Path:
    """Write CLIP ViT-B/32 into `folder`, unless it is complete there; 0.6 GB in fp32.

    Returns:
        The folder.
    """
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


def _make_tokenizer() -> Tokenizer:
    """Return a Unigram tokenizer of XLM-RoBERTa's size: letters, short words, filler pieces."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = ["▁", *string.ascii_letters, *string.digits, *".,;:!?'-"]
    words = [f"▁{''.join(word)}" for word in itertools.product(string.ascii_lowercase, repeat=3)]
    pieces = [*special, *letters, *words]
    # The private use area: no text has these characters. One id is left for <mask>.
    pieces += [f"\U000f0000{i}" for i in range(VOCABULARY - 1 - len(pieces))]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer
