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
many more batches to see shapes. Pictures of shapes and colours without a name, which have no
captions, do the same: they are there for the number of shapes (`shape_practice`).

    python tools/train_mini_clip.py --validate     # to choose settings; writes nothing
    python tools/train_mini_clip.py

Takes about nine minutes of one core that computes in bfloat16. The second command prints, once and
at its end, how well combinations are found that no training picture showed, and writes the model,
in half precision, into the package.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CLIPModel, CLIPTokenizer

from mini_clip_batches import Batch, draw_batches
from mini_clip_network import (
    DIMENSION,
    embed_pictures,
    embed_texts,
    make_model,
    make_tokenizer,
    save,
    to_pixels,
)
from shape_captions import truth
from shape_drawers import SHAPES
from shape_practice import Practice
from shapes import (
    COLOURS,
    COUNTS,
    POSITIONS,
    Combination,
    all_combinations,
    draw,
    held_out_combinations,
    training_combinations,
    validation_combinations,
)

OUTPUT = Path(__file__).resolve().parents[1] / "src/unified_embeddings/models/data/mini-clip"
_NAMELESS = -100
"""Stands for an attribute without a name."""
_CHECK_STEPS = 100
"""Steps between two reports."""


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        steps: Batches.
        combinations: Of one batch; each has two pictures and a caption.
        practice: Of one batch, things without captions; each has two pictures.
        learning_rate: The highest; it rises for `warmup` steps and falls to 0 along a cosine.
        warmup: Steps.
        weight_decay: Of matrices.
        pictures_weight: Weight of pictures that find pictures in the loss.
        attributes_weight: Weight of attributes that are told from a vector in the loss.
        seed: Of everything random.
    """

    steps: int = 2000
    combinations: int = 48
    practice: int = 32
    learning_rate: float = 4e-3
    warmup: int = 60
    weight_decay: float = 0.05
    pictures_weight: float = 1.0
    attributes_weight: float = 1.0
    seed: int = 0


# --- losses ------------------------------------------------------------------------------------


class AttributeHeads(torch.nn.Module):
    """Linear maps from a picture's vector to its attributes; used in training only."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (len(COLOURS), len(SHAPES), len(COUNTS), len(POSITIONS))
        self.maps = torch.nn.ModuleList(torch.nn.Linear(DIMENSION, size) for size in sizes)

    def loss(self, images: Tensor, shown: Sequence[Combination | Practice]) -> Tensor:
        """Return the sum of the attributes' cross-entropies.

        Args:
            images: Vectors of pictures, (n, DIMENSION).
            shown: What each shows. What has no name there is left out.
        """
        numbers = [
            (
                _number([*COLOURS], item.colour),
                _number(SHAPES, item.shape),
                item.count - 1,
                _number([*POSITIONS], item.position),
            )
            for item in shown
        ]
        right = torch.tensor(numbers)
        losses = [
            cross_entropy(attribute_map(20 * images), right[:, column], ignore_index=_NAMELESS)
            for column, attribute_map in enumerate(self.maps)
        ]
        return torch.stack(losses).sum()


def _number(names: Sequence[str], name: str | None) -> int:
    return _NAMELESS if name is None else names.index(name)


# --- training ----------------------------------------------------------------------------------


def train(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    settings: Settings,
    pool: Sequence[Combination],
    checked: Sequence[Combination],
) -> None:
    """Train a model in place.

    A copy in bfloat16 computes, which takes half the time; the sums of many small steps need the
    model's own float32.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        settings: How to train.
        pool: What training shows.
        checked: What is looked for every now and then; empty for nothing.
    """
    heads = AttributeHeads()
    optimisers = _make_optimisers(model, heads, settings)
    half = copy.deepcopy(model).bfloat16()
    half.set_attn_implementation("eager")  # Twice as fast as the fused one at this size.
    start = time.process_time()
    batches = draw_batches(
        pool,
        steps=settings.steps,
        combinations=settings.combinations,
        practice=settings.practice,
        seed=settings.seed,
    )
    for step, batch in enumerate(batches):
        images = embed_pictures(half, batch.pictures)
        texts = embed_texts(half, tokenizer, [caption.text for caption in batch.captions])
        loss = _loss(model.logit_scale.exp(), images, texts, batch, settings)
        loss = loss + settings.attributes_weight * heads.loss(images, batch.shown * 2)
        for optimiser in optimisers:
            optimiser.zero_grad()
        half.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        _copy_gradients(half, model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * _schedule(step, settings)
            optimiser.step()
        model.logit_scale.data.clamp_(max=math.log(50))
        half.load_state_dict(model.state_dict())
        if step % _CHECK_STEPS == _CHECK_STEPS - 1:
            seconds = time.process_time() - start
            told = f"  step {step + 1}, {seconds:.0f} s: loss {loss.item():.2f}"
            if checked:
                told += f", {evaluate(model, tokenizer, checked, checked, settings.seed + 1)}"
            print(told, flush=True)


def _copy_gradients(source: CLIPModel, target: CLIPModel) -> None:
    """Copy the gradients of a model's copy in another precision to the model."""
    for name, value in target.named_parameters():
        gradient = source.get_parameter(name).grad
        if gradient is not None:
            value.grad = gradient.to(value.dtype)


def _make_optimisers(
    model: CLIPModel, heads: AttributeHeads, settings: Settings
) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers, and AdamW for everything else.

    Biases, scales and what is thrown away do not decay.
    """
    layered = {
        name: value
        for name, value in model.named_parameters()
        if value.ndim == 2 and "embedding" not in name
    }
    others = [value for name, value in model.named_parameters() if name not in layered]
    groups = [
        {
            "params": [value for value in others if value.ndim > 1],
            "weight_decay": settings.weight_decay,
        },
        {
            "params": [*(value for value in others if value.ndim <= 1), *heads.parameters()],
            "weight_decay": 0.0,
        },
    ]
    adam = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
    muon = torch.optim.Muon(
        layered.values(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",  # So that both take the same learning rate.
    )
    return [adam, muon]


def _schedule(step: int, settings: Settings) -> float:
    """Return the share of the highest learning rate that a step has."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    share = (step - settings.warmup) / (settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * share))


def _loss(scale: Tensor, images: Tensor, texts: Tensor, batch: Batch, settings: Settings) -> Tensor:
    """Return the loss of texts and pictures that find each other, and pictures that find pictures.

    Args:
        scale: Of the cosines.
        images: Vectors of the batch's pictures.
        texts: Vectors of its captions.
        batch: The batch.
        settings: The weights.
    """
    number, half = len(batch.combinations), len(batch.shown)
    named = torch.cat([images[:number], images[half : half + number]])
    true = torch.from_numpy(truth(batch.captions, batch.combinations * 2)).float()
    scores = scale * texts @ named.T
    loss = (_soft_cross_entropy(scores, true) + _soft_cross_entropy(scores.T, true.T)) / 2
    alike = scale * images @ images.T
    alike = alike.masked_fill(torch.eye(2 * half, dtype=torch.bool), -1e4)  # Not itself.
    other = (torch.arange(2 * half) + half) % (2 * half)
    return loss + settings.pictures_weight * cross_entropy(alike, other)


def _soft_cross_entropy(scores: Tensor, true: Tensor) -> Tensor:
    """Return the cross-entropy of rows of scores and what is true in them, all equally."""
    return cross_entropy(scores, true / true.sum(1, keepdim=True))


# --- evaluation and output ---------------------------------------------------------------------


@torch.inference_mode()
def evaluate(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    questions: Sequence[Combination],
    gallery: Sequence[Combination],
    seed: int,
) -> str:
    """Return in words how often combinations are found first among pictures of a gallery.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        questions: What is looked for, by its caption and by another picture.
        gallery: What the pictures that are searched show, one picture each.
        seed: Of the pictures.
    """
    random = Random(seed)
    searched = embed_pictures(model, to_pixels([draw(item, random) for item in gallery]))
    others = embed_pictures(model, to_pixels([draw(item, random) for item in questions]))
    texts = embed_texts(model, tokenizer, [item.caption for item in questions])
    rows = {item: row for row, item in enumerate(gallery)}
    right = torch.tensor([rows[item] for item in questions])
    by_text = (texts @ searched.T).argmax(1) == right
    by_picture = (others @ searched.T).argmax(1) == right
    return (
        f"recall@1 among {len(gallery):,}: text → picture {by_text.float().mean():.3f}, "
        f"picture → picture {by_picture.float().mean():.3f}"
    )


def main() -> None:
    """Train, evaluate and save."""
    parser = argparse.ArgumentParser(description="Train mini-clip.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the model")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument(
        "--validate",
        action="store_true",
        help="keep the validation combinations from the training, report on them and save nothing",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = Settings()
    torch.manual_seed(settings.seed)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    parameters = sum(value.numel() for value in model.parameters())
    print(f"{parameters:,} parameters, {len(tokenizer):,} tokens, {settings.steps:,} steps")
    if arguments.validate:
        checked = validation_combinations()
        kept = frozenset(checked)
        pool = [item for item in training_combinations() if item not in kept]
        train(model, tokenizer, settings, pool, checked)
        return
    train(model, tokenizer, settings, training_combinations(), ())
    save(model, tokenizer, arguments.output)
    held_out = held_out_combinations()
    model.float()  # type: ignore[no-untyped-call]
    print(evaluate(model, tokenizer, held_out, held_out, seed=100))
    print(evaluate(model, tokenizer, held_out, all_combinations(), seed=100))


if __name__ == "__main__":
    main()
