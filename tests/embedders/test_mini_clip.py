"""mini-clip as it ships: held-out combinations of attributes are found by words and by pictures."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from image_files import no_network, noise
from mini_clip_batches import pick_combinations
from shape_practice import draw_practice, pick_practice
from shapes import (
    COLOURS,
    Combination,
    all_combinations,
    draw,
    held_out_combinations,
    held_out_pairs,
    training_combinations,
    validation_combinations,
)
from unified_embeddings import ClipEmbedder, UnifiedEmbeddingConfig
from unified_embeddings.models.catalogue import CLIP, MODELS
from unified_embeddings.models.mini_clip import mini_clip_folder
from unified_embeddings.types import FloatArray

SEED = 2026


@pytest.fixture(scope="module")
def mini() -> ClipEmbedder:
    return ClipEmbedder("mini-clip", precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def held_out() -> list[Combination]:
    return held_out_combinations()


@pytest.fixture(scope="module")
def pictures(mini: ClipEmbedder, held_out: list[Combination]) -> FloatArray:
    """One picture of each held-out combination, (n, d)."""
    random = Random(SEED)
    return mini.encode_images([draw(item, random) for item in held_out]).dense


@pytest.fixture(scope="module")
def others(mini: ClipEmbedder, held_out: list[Combination]) -> FloatArray:
    """Another rendering of each, with another size, arrangement, shade and background."""
    random = Random(SEED + 1)
    return mini.encode_images([draw(item, random) for item in held_out]).dense


@pytest.fixture(scope="module")
def captions(mini: ClipEmbedder, held_out: list[Combination]) -> FloatArray:
    return mini.encode_texts([item.caption for item in held_out])


@pytest.fixture(scope="module")
def hundred(held_out: list[Combination]) -> list[int]:
    """The rows of a hundred of them."""
    return Random(SEED).sample(range(len(held_out)), 100)


def recall(questions: FloatArray, answers: FloatArray) -> float:
    """Return the share of questions whose own answer, in the same row, is the nearest."""
    nearest = (questions @ answers.T).argmax(1)
    return float(np.mean(nearest == np.arange(len(questions))))


def test_nothing_held_out_is_trained_on(held_out: list[Combination]) -> None:
    trained = training_combinations()
    assert len(trained) + len(held_out) == len(all_combinations()) == 1600
    assert not {*trained} & {*held_out}
    assert len(held_out) > 400
    # Ten pairs of a colour and a shape are in no training picture at all.
    assert len(held_out_pairs()) == 10
    assert not held_out_pairs() & {(item.colour, item.shape) for item in trained}


def test_settings_are_chosen_by_other_combinations(held_out: list[Combination]) -> None:
    chosen_by = validation_combinations()
    assert not {*chosen_by} & {*held_out}
    assert len(chosen_by) > 200
    # Ten pairs of a colour and a shape are whole: no training that chooses settings shows any.
    others = {*training_combinations()} - {*chosen_by}
    pairs = {(item.colour, item.shape) for item in chosen_by}
    assert len(pairs - {(item.colour, item.shape) for item in others}) == 10


def test_batches_show_nothing_held_out(held_out: list[Combination]) -> None:
    trained, random = training_combinations(), Random(SEED)
    shown: set[Combination] = set()
    for _ in range(100):
        shown.update(pick_combinations(trained, frozenset(trained), 48, random))
    assert len(shown) > 1000
    assert not shown & {*held_out}


def test_practice_shows_nothing_held_out() -> None:
    """A shape with a name is in no colour that could pass for one with which it is held out."""
    allowed = frozenset(training_combinations())
    practice = pick_practice(allowed, 2000, Random(SEED))
    named = [item for item in practice if item.shape is not None]
    assert 500 < len(named) < 2000
    for item in named:
        assert item.shape is not None
        by_distance = sorted(COLOURS, key=lambda name: math.dist(COLOURS[name], item.rgb))
        for rank, colour in enumerate(by_distance):
            taken_for_it = rank == 0 or math.dist(COLOURS[colour], item.rgb) < 60
            if taken_for_it:
                assert Combination(colour, item.shape, item.count, item.position) in allowed


def test_practice_pictures_show_what_they_should() -> None:
    """The middle of what is not background is where the shapes should be."""
    for item in pick_practice(frozenset(training_combinations()), 40, Random(SEED)):
        picture = np.asarray(draw_practice(item, Random(SEED)).convert("RGB")).astype(int)
        distance = np.abs(picture - picture[0, 0]).sum(axis=2)
        rows, columns = np.nonzero(distance > 60)
        middle = rows.mean() / picture.shape[0], columns.mean() / picture.shape[1]
        assert _place(middle) == item.position


def _place(middle: tuple[float, float]) -> str:
    """Return the name of the place of a point, in shares of the height and the width."""
    row, column = middle
    off_row, off_column = row - 0.5, column - 0.5
    if max(abs(off_row), abs(off_column)) <= 0.13:
        return "middle"
    if abs(off_row) > abs(off_column):
        return "top" if off_row < 0 else "bottom"
    return "left" if off_column < 0 else "right"


def test_words_find_the_picture(
    captions: FloatArray, pictures: FloatArray, hundred: list[int]
) -> None:
    assert recall(captions[hundred], pictures[hundred]) >= 0.9
    # Among all, where most have neighbours that differ in one attribute only.
    assert recall(captions, pictures) >= 0.9


def test_a_picture_finds_another_rendering(
    others: FloatArray, pictures: FloatArray, hundred: list[int]
) -> None:
    assert recall(others[hundred], pictures[hundred]) >= 0.9
    assert recall(others, pictures) >= 0.9


def test_a_picture_by_another_hand_is_known(mini: ClipEmbedder) -> None:
    """Drawn here, without `shapes`: a red circle on white, and its three neighbours."""
    images = []
    for colour, shape in (("red", "circle"), ("blue", "circle"), ("red", "square")):
        image = Image.new("RGB", (300, 300), "white")
        pencil = ImageDraw.Draw(image)
        if shape == "circle":
            pencil.ellipse((105, 105, 195, 195), fill=colour)
        else:
            pencil.rectangle((110, 110, 190, 190), fill=colour)
        images.append(image)
    vectors = mini.encode_images(images).dense
    texts = mini.encode_texts(["a red circle", "a blue circle", "a red square"])
    assert (texts @ vectors.T).argmax(1).tolist() == [0, 1, 2]


def test_its_facts_are_those_of_its_files(mini: ClipEmbedder) -> None:
    spec = MODELS["mini-clip"]
    assert (mini.dimension, mini.max_length) == (spec.dimension, spec.max_length)
    mini.encode_texts(["a red circle"])
    network = mini._load().network
    assert sum(value.numel() for value in network.parameters()) == spec.parameters
    assert sum(file.stat().st_size for file in mini_clip_folder().iterdir()) < 5_000_000


def test_the_weights_are_those_that_were_measured() -> None:
    """The page beside the weights names their digest."""
    page = (mini_clip_folder() / "README.md").read_text("utf-8")
    (digest,) = re.findall(r"\b[0-9a-f]{64}\b", page)
    weights = (mini_clip_folder() / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == digest


def test_words_that_it_knows_are_one_token(mini: ClipEmbedder) -> None:
    assert len(mini.tokenise("three red circles at the top")) == 6
    assert len(mini.tokenise("saxophone")) > 1
    assert mini.tokenise("Red CIRCLE") == mini.tokenise("red circle")


def test_whoever_loads_it_is_told_what_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network(monkeypatch)
    clip = ClipEmbedder("mini-clip")
    with caplog.at_level(logging.WARNING):
        clip.encode_images([noise(20, 20), noise(30, 30)])
        clip.encode_texts(["a red circle"])
    (told,) = [record.message for record in caplog.records if "mini-clip" in record.message]
    assert "nothing else" in told
    assert CLIP in told


def test_it_stands_in_for_nothing() -> None:
    assert UnifiedEmbeddingConfig().clip.model_name == CLIP
    assert ClipEmbedder().model_name == CLIP
    assert ClipEmbedder("mini-clip").fingerprint != ""


def test_a_folder_of_its_files_is_the_same_model(mini: ClipEmbedder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in mini_clip_folder().iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert ClipEmbedder(str(copy)).fingerprint == mini.fingerprint
