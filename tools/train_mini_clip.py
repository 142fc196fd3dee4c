"""Train mini-clip, the small offline model in CLIP's layout.

mini-clip knows drawn pictures of coloured shapes (`shapes`) and nothing else. It is a CLIPModel of
transformers with a vision transformer for pictures of 64 x 64 pixels and a text transformer, both
trained here from nothing, on pictures that are drawn and captions that are worded during the
training (`shape_captions`).

A batch has combinations that differ in little, two pictures of each and a caption. A caption may be
true of several pictures of a batch, as "a red circle" is of red circles anywhere, so each row of
similarities is compared with all that is true, not with one right answer. The two pictures of a
combination also have to find each other among all pictures. And a linear map from a picture's
vector, which is thrown away afterwards, has to tell its attributes: without it the network takes
many more batches to see shapes.

    python tools/train_mini_clip.py

Takes about eight minutes of one core that computes in bfloat16. Prints how well combinations are
found that no training picture showed, and writes the model, in half precision, into the package.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from shape_captions import Caption, all_words, truth, word
from shapes import (
    COLOURS,
    COUNTS,
    POSITIONS,
    SHAPES,
    Combination,
    all_combinations,
    draw,
    held_out_combinations,
    is_held_out,
    training_combinations,
)

OUTPUT = Path(__file__).resolve().parents[1] / "src/unified_embeddings/models/data/mini-clip"
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
_CHECK_STEPS = 200
"""Steps between two looks at the held-out combinations."""


Batch: TypeAlias = tuple[list[Combination], list[Caption], Tensor]
"""What 2n pictures show, the captions of the first n, and the pictures as `to_pixels` gives them.

The second half shows what the first half shows.
"""


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        steps: Batches.
        combinations: Of one batch; each has two pictures and a caption.
        learning_rate: AdamW's highest; it rises for `warmup` steps and falls to 0 along a cosine.
        warmup: Steps.
        weight_decay: AdamW's.
        pictures_weight: Weight of pictures that find pictures in the loss.
        attributes_weight: Weight of attributes that are told from a vector in the loss.
        seed: Of everything random.
    """

    steps: int = 1200
    combinations: int = 64
    learning_rate: float = 1.5e-3
    warmup: int = 60
    weight_decay: float = 0.05
    pictures_weight: float = 0.5
    attributes_weight: float = 1.0
    seed: int = 0


ROUNDS = (
    Settings(),
    # Again with a rate that rises and falls, with more weight on pictures that find pictures.
    Settings(steps=800, learning_rate=1e-3, pictures_weight=1.0, seed=1),
)


# --- model -------------------------------------------------------------------------------------


def make_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer in CLIP's layout, to which each word of the captions is one token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False, min_frequency=1
    )
    bpe.train_from_iterator(all_words(), trainer)
    learned = json.loads(bpe.to_str())["model"]["merges"]
    merges = [(str(first), str(second)) for first, second in learned]
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


class AttributeHeads(torch.nn.Module):
    """Linear maps from a picture's vector to its attributes; used in training only."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (len(COLOURS), len(SHAPES), len(COUNTS), len(POSITIONS))
        self.maps = torch.nn.ModuleList(torch.nn.Linear(DIMENSION, size) for size in sizes)

    def loss(self, images: Tensor, combinations: Sequence[Combination]) -> Tensor:
        """Return the sum of the attributes' cross-entropies.

        Args:
            images: Vectors of pictures, (n, DIMENSION).
            combinations: What each shows.
        """
        colours, positions = [*COLOURS], [*POSITIONS]
        numbers = [
            (
                colours.index(item.colour),
                SHAPES.index(item.shape),
                item.count - 1,
                positions.index(item.position),
            )
            for item in combinations
        ]
        right = torch.tensor(numbers)
        losses = [
            cross_entropy(attribute_map(20 * images), right[:, column])
            for column, attribute_map in enumerate(self.maps)
        ]
        return torch.stack(losses).sum()


# --- data --------------------------------------------------------------------------------------


def pick_combinations(
    pool: Sequence[Combination], number: int, random: Random
) -> list[Combination]:
    """Return distinct combinations of which most differ from another one in one attribute only."""
    chosen: dict[Combination, None] = {}
    while len(chosen) < number:
        first = random.choice(pool)
        chosen[first] = None
        for _ in range(3):
            if len(chosen) < number:
                other = _vary(first, random)
                if not is_held_out(other):
                    chosen[other] = None
    return list(chosen)


def _vary(combination: Combination, random: Random) -> Combination:
    """Return a combination with one other attribute; more often one that is hard to see."""
    colour, shape = combination.colour, combination.shape
    count, position = combination.count, combination.position
    which = random.choice(("colour", "shape", "shape", "count", "count", "position"))
    if which == "colour":
        colour = random.choice([*COLOURS])
    elif which == "shape":
        shape = random.choice(SHAPES)
    elif which == "count":
        count = random.choice([*COUNTS])
    else:
        position = random.choice([*POSITIONS])
    return Combination(colour, shape, count, position)


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Return pictures as the network takes them, like the processor does, (n, 3, 64, 64)."""
    small = [picture.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC) for picture in pictures]
    values = torch.from_numpy(np.stack([np.asarray(picture) for picture in small]))
    scaled = (values.float() / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    return scaled.permute(0, 3, 1, 2).contiguous()


# --- training ----------------------------------------------------------------------------------


def train(model: CLIPModel, tokenizer: CLIPTokenizer, settings: Settings) -> None:
    """Train a model in place.

    A copy in bfloat16 computes, which takes half the time; the sums of many small steps need the
    model's own float32.
    """
    heads = AttributeHeads()
    optimiser = _make_optimiser(model, heads, settings)
    half = copy.deepcopy(model).bfloat16()
    half.set_attn_implementation("eager")  # Twice as fast as the fused one at this size.
    start = time.process_time()
    for step, (combinations, captions, pictures) in enumerate(_batches(settings)):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        images = embed_pictures(half, pictures)
        texts = embed_texts(half, tokenizer, [caption.text for caption in captions])
        loss = _loss(model.logit_scale.exp(), images, texts, captions, combinations, settings)
        loss = loss + settings.attributes_weight * heads.loss(images, combinations)
        optimiser.zero_grad()
        half.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        _copy_gradients(half, model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        model.logit_scale.data.clamp_(max=math.log(50))
        half.load_state_dict(model.state_dict())
        if step % _CHECK_STEPS == _CHECK_STEPS - 1:
            seconds = time.process_time() - start
            found = evaluate(model, tokenizer, held_out_combinations(), settings.seed + 1)
            print(
                f"  step {step + 1}, {seconds:.0f} s: loss {loss.item():.2f}, {found}", flush=True
            )


def _batches(settings: Settings) -> Iterator[Batch]:
    """Yield the batches. Each is drawn in a thread while the one before it is used."""
    random = Random(settings.seed)
    pool = training_combinations()

    def draw_batch() -> Batch:
        combinations = pick_combinations(pool, settings.combinations, random) * 2
        captions = [word(item, random) for item in combinations[: settings.combinations]]
        pictures = to_pixels([draw(item, random) for item in combinations])
        return combinations, captions, pictures

    with ThreadPoolExecutor(1) as executor:
        following = executor.submit(draw_batch)
        for _ in range(settings.steps):
            batch = following.result()
            following = executor.submit(draw_batch)
            yield batch


def _copy_gradients(source: CLIPModel, target: CLIPModel) -> None:
    """Copy the gradients of a model's copy in another precision to the model."""
    for name, value in target.named_parameters():
        gradient = source.get_parameter(name).grad
        if gradient is not None:
            value.grad = gradient.to(value.dtype)


def _make_optimiser(
    model: CLIPModel, heads: AttributeHeads, settings: Settings
) -> torch.optim.Optimizer:
    """Return AdamW, without decay of biases, scales and what is thrown away."""
    decayed = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": [*others, *heads.parameters()], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def _schedule(step: int, settings: Settings) -> float:
    """Return the share of the highest learning rate that a step has."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    share = (step - settings.warmup) / (settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * share))


def _loss(
    scale: Tensor,
    images: Tensor,
    texts: Tensor,
    captions: Sequence[Caption],
    combinations: Sequence[Combination],
    settings: Settings,
) -> Tensor:
    """Return the loss of texts and pictures that find each other, and pictures that find pictures.

    Args:
        scale: Of the cosines.
        images: Vectors of n pictures; the second half shows what the first half shows.
        texts: Vectors of the captions of the first half.
        captions: The captions.
        combinations: What each picture shows.
        settings: The weights.
    """
    true = torch.from_numpy(truth(captions, combinations)).float()
    scores = scale * texts @ images.T
    loss = (_soft_cross_entropy(scores, true) + _soft_cross_entropy(scores.T, true.T)) / 2
    number = len(combinations)
    alike = scale * images @ images.T
    alike = alike.masked_fill(torch.eye(number, dtype=torch.bool), -1e4)  # Not itself.
    other = (torch.arange(number) + number // 2) % number
    return loss + settings.pictures_weight * cross_entropy(alike, other)


def _soft_cross_entropy(scores: Tensor, true: Tensor) -> Tensor:
    """Return the cross-entropy of rows of scores and what is true in them, all equally."""
    return cross_entropy(scores, true / true.sum(1, keepdim=True))


def embed_pictures(model: CLIPModel, pixels: Tensor) -> Tensor:
    """Return the vectors of pictures, rows of unit length."""
    output = model.get_image_features(pixel_values=pixels.to(model.dtype))
    return normalize(output.pooler_output.float(), dim=1)


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return the vectors of texts, rows of unit length."""
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
    return normalize(model.get_text_features(**inputs).pooler_output.float(), dim=1)


# --- evaluation and output ---------------------------------------------------------------------


@torch.inference_mode()
def evaluate(
    model: CLIPModel, tokenizer: CLIPTokenizer, gallery: Sequence[Combination], seed: int
) -> str:
    """Return in words how often a held-out combination is found first among pictures of a gallery.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        gallery: What the pictures that are searched show, one picture each.
        seed: Of the pictures.
    """
    random = Random(seed)
    searched = embed_pictures(model, to_pixels([draw(item, random) for item in gallery]))
    held_out = [row for row, item in enumerate(gallery) if is_held_out(item)]
    others = embed_pictures(model, to_pixels([draw(gallery[row], random) for row in held_out]))
    texts = embed_texts(model, tokenizer, [gallery[row].caption for row in held_out])
    right = torch.tensor(held_out)
    by_text = (texts @ searched.T).argmax(1) == right
    by_picture = (others @ searched.T).argmax(1) == right
    return (
        f"recall@1 among {len(gallery):,}: text → picture {by_text.float().mean():.3f}, "
        f"picture → picture {by_picture.float().mean():.3f}"
    )


def save(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a model in CLIP's layout, its weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)
    make_processor().save_pretrained(folder)


def main() -> None:
    """Train, evaluate and save."""
    parser = argparse.ArgumentParser(description="Train mini-clip.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the model")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(ROUNDS[0].seed)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    parameters = sum(value.numel() for value in model.parameters())
    print(f"{parameters:,} parameters, {len(tokenizer):,} tokens")
    for number, settings in enumerate(ROUNDS, 1):
        print(f"round {number}, {settings.steps} steps")
        if number > 1:
            torch.manual_seed(settings.seed)
            # A round begins with what would ship.
            model.half().float()  # type: ignore[no-untyped-call]
        train(model, tokenizer, settings)
    print(evaluate(model, tokenizer, held_out_combinations(), seed=100))
    print(evaluate(model, tokenizer, all_combinations(), seed=100))
    save(model, tokenizer, arguments.output)


if __name__ == "__main__":
    main()
