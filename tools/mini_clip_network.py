"""The network of mini-clip: its layers before training, its tokenizer, its files.

What lives here: a CLIPModel of transformers with a vision transformer for pictures of 64 x 64
pixels and a text transformer, and what it takes and gives. What does not: how it is trained
(`train_mini_clip`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from shape_captions import all_words

PIXELS, PATCH = 64, 8
"""Sides of a picture and of its patches."""
TOKENS = 48
"""Most tokens of a text."""
DIMENSION = 96
"""Width of the vectors."""
WIDTH, LAYERS = 96, 3
"""Of the vision transformer."""
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the channels; those of every CLIP's preprocessing."""
_SPECIALS = ["<|startoftext|>", "<|endoftext|>"]


def make_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer in CLIP's layout, to which each word of the captions is one token."""
    merges = _learn_merges(all_words())
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [first + second for first, second in merges]
    tokens = [*dict.fromkeys(tokens), *_SPECIALS]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]  # pairs are taken as well
        model_max_length=TOKENS,
    )


def _learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return byte pair encoding's merges, the most frequent pair first, until words are one token.

    Written out here since the trainer of `tokenizers` breaks ties differently in each process.
    """
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in spelled for pair in itertools.pairwise(parts))
        if not pairs:
            return merges
        first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((first, second))
        spelled = [_merge(parts, first, second) for parts in spelled]


def _merge(parts: list[str], first: str, second: str) -> list[str]:
    """Return a word's parts with each occurrence of a pair as one part."""
    merged: list[str] = []
    for part in parts:
        if part == second and merged and merged[-1] == first:
            merged[-1] = first + second
        else:
            merged.append(part)
    return merged


def make_model(vocabulary_size: int) -> CLIPModel:
    """Return the untrained model."""
    config = CLIPConfig(
        text_config={
            "bos_token_id": vocabulary_size - 2,
            "eos_token_id": vocabulary_size - 1,
            "pad_token_id": vocabulary_size - 1,
            "vocab_size": vocabulary_size,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": TOKENS,
        },
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "image_size": PIXELS,
            "patch_size": PATCH,
        },
        projection_dim=DIMENSION,
    )
    model = CLIPModel(config)
    _place_patches(model.vision_model.embeddings.position_embedding.weight.data)
    return model


def _place_patches(embedding: Tensor) -> None:
    """Start with waves along both axes for the places of patches, as loud as the patches are.

    CLIP's own start is a tenth of that, which takes many steps to become heard.

    Args:
        embedding: Of the class token and the patches, (1 + patches, WIDTH); changed in place.
    """
    side, waves_per_axis = PIXELS // PATCH, WIDTH // 8
    frequencies = torch.pi * torch.arange(1, waves_per_axis + 1) / WIDTH * 4
    places = torch.arange(side) / side * 4
    angles = places[:, None] * frequencies[None, :]
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    both = torch.cat([rows, columns], 2).reshape(side * side, -1)
    embedding[1:, : both.shape[1]] = 0.3 * both


def make_processor() -> CLIPImageProcessorPil:
    """Return the preparation of pictures: scaled as a whole, so that no place is cut off."""
    sides = {"height": PIXELS, "width": PIXELS}
    return CLIPImageProcessorPil(size=sides, crop_size=sides, do_center_crop=False)


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Return pictures as the network takes them, like the processor does, (n, 3, 64, 64)."""
    small = [picture.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC) for picture in pictures]
    values = torch.from_numpy(np.stack([np.asarray(picture) for picture in small]))
    scaled = (values.float() / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    return scaled.permute(0, 3, 1, 2).contiguous()


def embed_pictures(model: CLIPModel, pixels: Tensor) -> Tensor:
    """Return the vectors of pictures, rows of unit length."""
    output = model.get_image_features(pixel_values=pixels.to(model.dtype))
    return normalize(output.pooler_output.float(), dim=1)


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return the vectors of texts, rows of unit length."""
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
    return normalize(model.get_text_features(**inputs).pooler_output.float(), dim=1)


def save(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a model in CLIP's layout, its weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)
    make_processor().save_pretrained(folder)
