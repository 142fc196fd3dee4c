"""Captions of the pictures in `shapes`, in many wordings, and which pictures each is true of.

What lives here: words, wordings, and the arithmetic of truth. What does not: the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shape_drawers import SHAPES
from shapes import COLOURS, COUNTS, POSITIONS, Combination, plural

IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

_COLOUR_WORDS = {"purple": ("purple", "violet")}
_SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc", "dot"),
    "square": ("square", "square", "box"),
    "cross": ("cross", "cross", "plus"),
    "ring": ("ring", "ring", "hoop"),
    "diamond": ("diamond", "diamond", "rhombus"),
}
_COUNT_WORDS = {
    1: ("a", "a", "one", "1", "a single"),
    2: ("two", "two", "2", "a pair of"),
    3: ("three", "three", "3"),
    4: ("four", "four", "4"),
}
_PLACE_WORDS = {
    "top": ("at the top", "at the top", "at top", "on top", "in the upper part"),
    "bottom": ("at the bottom", "at the bottom", "at bottom", "in the lower part"),
    "left": ("on the left", "on the left", "at the left", "on the left side", "left"),
    "right": ("on the right", "on the right", "at the right", "on the right side", "right"),
    "middle": ("in the middle", "in the middle", "in the centre", "in the center"),
}
_OPENINGS = ("", "", "", "", "a picture of", "a photo of", "an image of", "a drawing of",
             "show me", "find", "with", "i want", "there is", "there are")  # fmt: skip
FILLERS = (
    "the", "this", "that", "of", "for", "and", "or", "my", "your", "our", "some", "any", "please",
    "have", "has", "you", "we", "it", "is", "are", "which", "what", "where", "who", "do", "does",
    "show", "shows", "showing", "look", "looking", "buy", "need", "like", "product", "products",
    "picture", "pictures", "image", "photo", "shop", "mug", "cup", "shirt", "card", "poster",
    "sticker", "bag", "plate", "cushion", "print", "printed", "pattern", "design", "sign", "badge",
    "small", "large", "big", "little", "bright", "dark", "light", "new", "old", "nice", "plain",
    "simple", "background", "paper", "page", "shape", "shapes", "thing", "things", "something",
    "colour", "color", "coloured", "colored", "only", "just", "all", "can", "see", "from", "to",
)  # fmt: skip
"""Words that say nothing about a picture; captions have some, so that the model ignores them."""


@dataclass(frozen=True)
class Caption:
    """A text, and what has to be true of a picture for it to fit.

    Attributes:
        text: The words.
        colours: The colours that fit; likewise the others.
        shapes: The shapes that fit.
        counts: The numbers of shapes that fit.
        positions: The positions that fit.
    """

    text: str
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    counts: tuple[int, ...]
    positions: tuple[str, ...]


def word(combination: Combination, random: Random) -> Caption:
    """Return a caption that is true of a combination, in one of many wordings.

    It may leave out the place, the number, the colour or the shape.
    """
    leaves_colour = random.random() < 0.06
    leaves_shape = not leaves_colour and random.random() < 0.06
    leaves_place = random.random() < 0.3
    counts: tuple[int, ...] = (combination.count,)
    number = random.choice(_COUNT_WORDS[combination.count])
    if combination.count > 1 and random.random() < 0.2:
        number, counts = random.choice(("", "some", "several")), (2, 3, 4)
    if combination.count == 1 and random.random() < 0.1:
        number = ""
    noun = random.choice(_SHAPE_WORDS.get(combination.shape, (combination.shape,)))
    if leaves_shape:
        noun = random.choice(("shape", "thing"))
    if combination.count > 1:
        noun = _plural(noun)
    colour = ""
    if not leaves_colour:
        colour = random.choice(_COLOUR_WORDS.get(combination.colour, (combination.colour,)))
    place = "" if leaves_place else random.choice(_PLACE_WORDS[combination.position])
    return Caption(
        text=_join(number, colour, noun, place, random),
        colours=tuple(COLOURS) if leaves_colour else (combination.colour,),
        shapes=SHAPES if leaves_shape else (combination.shape,),
        counts=counts,
        positions=tuple(POSITIONS) if leaves_place else (combination.position,),
    )


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("x") else plural(noun)


def _join(number: str, colour: str, noun: str, place: str, random: Random) -> str:
    """Return the parts of a caption in one of several orders, maybe with words that say nothing."""
    if number == "a" and (colour or noun)[0] in "aeiou":
        number = "an"
    things = f"{number} {colour} {noun}"
    if colour and random.random() < 0.1:
        things = f"{number} {noun} in {colour}"
    text = f"{things} {place}"
    if place and random.random() < 0.15:
        text = f"{place} {things}"
    words = f"{random.choice(_OPENINGS)} {text}".split()
    if random.random() < 0.3:
        for _ in range(random.randint(1, 4)):
            filler = random.choice(FILLERS)
            if random.random() < 0.3:
                filler = "".join(
                    random.choices("etaoinshrdlucmfwypvbgkjqxz", k=random.randint(2, 8))
                )
            # In front or at the end: in the middle it could come between "four" and "red".
            words.insert(random.choice((0, len(words))), filler)
    return " ".join(words)


def all_words() -> list[str]:
    """Return all words of the captions, each once, sorted."""
    texts: list[str] = [*COLOURS, *COUNTS.values(), *_OPENINGS, *FILLERS, "an", "some", "several"]
    for wordings in (_COLOUR_WORDS, _COUNT_WORDS, _PLACE_WORDS):
        for texts_of_one in wordings.values():
            texts += texts_of_one
    for shape in (*SHAPES, "shape", "thing"):
        for noun in _SHAPE_WORDS.get(shape, (shape,)):
            texts += [noun, _plural(noun)]
    return sorted({part for text in texts for part in text.split()})


def truth(captions: Sequence[Caption], combinations: Sequence[Combination]) -> BoolArray:
    """Return which captions are true of which pictures, (captions, pictures)."""
    fits = np.ones((len(captions), len(combinations)), dtype=bool)
    columns: list[tuple[Sequence[Sequence[object]], list[object]]] = [
        ([caption.colours for caption in captions], [item.colour for item in combinations]),
        ([caption.shapes for caption in captions], [item.shape for item in combinations]),
        ([caption.counts for caption in captions], [item.count for item in combinations]),
        ([caption.positions for caption in captions], [item.position for item in combinations]),
    ]
    for allowed_values, values in columns:
        distinct = sorted(set(values), key=str)
        numbers = {value: number for number, value in enumerate(distinct)}
        allowed = np.zeros((len(captions), len(distinct)), dtype=bool)
        for row, allowed_of_one in enumerate(allowed_values):
            for value in allowed_of_one:
                if value in numbers:
                    allowed[row, numbers[value]] = True
        fits &= allowed[:, [numbers[value] for value in values]]
    return fits
