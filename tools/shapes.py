"""Pictures of coloured shapes, and captions that say what is in them.

What lives here: the attributes of a picture, which combinations of them are held out of training,
and drawing a picture with Pillow. What does not: drawing a shape (`shape_drawers`), other wordings
of a caption (`shape_captions`), the model (`mini_clip_network`).

    python tools/shapes.py FOLDER     # one picture of each of 40 combinations, to look at

A picture shows 1 to 4 shapes of one kind and one colour, in one part of the picture. What a caption
never says is drawn at random: the size of the picture and of the shapes, their arrangement, a
slight turn, the shade of the colour, and the background.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image, ImageColor, ImageDraw

from shape_drawers import SHAPES, Colour, Drawer, Point, shape_drawer

COLOURS = {
    "red": (214, 30, 36),
    "orange": (245, 134, 20),
    "yellow": (246, 214, 30),
    "green": (38, 150, 60),
    "blue": (36, 84, 208),
    "purple": (126, 48, 164),
    "pink": (246, 130, 184),
    "brown": (122, 74, 40),
    "black": (22, 22, 24),
    "white": (250, 250, 250),
}
"""Name of a colour → RGB, which a picture shifts slightly."""

COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}

POSITIONS = {
    "top": (0.05, 0.02, 0.95, 0.42),
    "bottom": (0.05, 0.58, 0.95, 0.98),
    "left": (0.02, 0.05, 0.42, 0.95),
    "right": (0.58, 0.05, 0.98, 0.95),
    "middle": (0.24, 0.24, 0.76, 0.76),
}
"""Where the shapes are → left, top, right and bottom of that part, in shares of the picture."""

_BACKGROUNDS = ("#ffffff", "#f4f1ea", "#e3e6ea", "#c9d3dc", "#d9e8d4", "#efe0d0", "#9aa3ab",
                "#5b6670", "#2e3a44", "#dfd3ea", "#b8c9b0")  # fmt: skip
_LEAST_CONTRAST = 110
"""Least distance of background and shape in RGB."""
_OVERSAMPLING = 2
"""Pictures are drawn this many times larger than they get, so that edges are smooth."""
_HELD_OUT_SHARE = 6
"""One combination in this many is held out, besides the pairs of colour and shape that are."""
_VALIDATION_SHARE = 12
"""Likewise for the choice of settings."""


@dataclass(frozen=True, order=True)
class Combination:
    """What a picture shows.

    Attributes:
        colour: One of `COLOURS`.
        shape: One of `SHAPES`.
        count: How many shapes: one of `COUNTS`.
        position: One of `POSITIONS`.
    """

    colour: str
    shape: str
    count: int
    position: str

    @property
    def caption(self) -> str:
        """Return the plainest caption: "three red circles at the top"."""
        noun = plural(self.shape) if self.count > 1 else self.shape
        return f"{COUNTS[self.count]} {self.colour} {noun} {_PLACES[self.position]}"


_PLACES = {
    "top": "at the top",
    "bottom": "at the bottom",
    "left": "on the left",
    "right": "on the right",
    "middle": "in the middle",
}


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


# --- which combinations there are --------------------------------------------------------------


def all_combinations() -> list[Combination]:
    """Return all combinations of attributes, 1,600, in a fixed order."""
    return [
        Combination(*values) for values in itertools.product(COLOURS, SHAPES, COUNTS, POSITIONS)
    ]


def held_out_pairs() -> frozenset[tuple[str, str]]:
    """Return the pairs of a colour and a shape that no training picture shows, one per colour."""
    shapes = list(SHAPES)
    return frozenset(
        (colour, shapes[(3 * number + 1) % len(shapes)]) for number, colour in enumerate(COLOURS)
    )


def held_out_combinations() -> list[Combination]:
    """Return the combinations that no training picture shows.

    They are all that have a held-out pair of colour and shape, and about a sixth of the others,
    chosen by a digest of their captions.
    """
    return [item for item in all_combinations() if is_held_out(item)]


def training_combinations() -> list[Combination]:
    """Return the combinations that training may show."""
    return [item for item in all_combinations() if not is_held_out(item)]


def validation_combinations() -> list[Combination]:
    """Return the combinations by which settings are chosen; none of them is held out.

    They are apart from the others in the same two ways as the held-out ones: ten pairs of colour
    and shape, and one in twelve of the rest. A training that chooses settings shows none of them.
    """
    return [item for item in training_combinations() if _is_for_validation(item)]


def _is_for_validation(combination: Combination) -> bool:
    number = [*COLOURS].index(combination.colour)
    if combination.shape == SHAPES[(3 * number + 4) % len(SHAPES)]:
        return True
    return _digest(combination) % _VALIDATION_SHARE == 1


@functools.cache
def is_held_out(combination: Combination) -> bool:
    """Tell whether a combination is never shown in training."""
    if (combination.colour, combination.shape) in held_out_pairs():
        return True
    return _digest(combination) % _HELD_OUT_SHARE == 0


def _digest(combination: Combination) -> int:
    digest = hashlib.blake2b(combination.caption.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


# --- drawing -----------------------------------------------------------------------------------


def draw(combination: Combination, random: Random, *, size: int | None = None) -> Image.Image:
    """Draw a picture of a combination.

    Args:
        combination: What it shows.
        random: Decides everything that a caption does not say.
        size: Pixels of its longer side; None takes 64 to 200 at random.
    """
    return draw_shapes(
        shape_drawer(combination.shape),
        COLOURS[combination.colour],
        combination.count,
        combination.position,
        random,
        size=size,
    )


def draw_shapes(
    drawer: Drawer,
    colour: Colour,
    count: int,
    position: str,
    random: Random,
    *,
    size: int | None = None,
) -> Image.Image:
    """Draw a picture of shapes, which may be other ones than combinations have.

    Args:
        drawer: Draws one shape.
        colour: Their RGB, which is shifted slightly.
        count: How many.
        position: One of `POSITIONS`.
        random: Decides everything else.
        size: Pixels of its longer side; None takes 64 to 200 at random.
    """
    longer = size or random.randint(64, 200)
    width, height = longer, longer
    if random.random() < 0.4:
        shorter = round(longer * random.uniform(0.75, 1))
        width, height = random.choice([(longer, shorter), (shorter, longer)])
    colour = _shade(colour, random)
    background = _pick_background(colour, random)
    canvas = Image.new("RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING), background)
    pencil = ImageDraw.Draw(canvas)
    radius = random.uniform(*_RADII[count]) * min(canvas.size)
    for centre in _arrange(count, position, radius, canvas.size, random):
        own_radius = radius * random.uniform(0.9, 1)
        drawer(pencil, centre, own_radius, colour, background, random)
    return canvas.resize((width, height), Image.Resampling.BOX)


_RADII = {1: (0.12, 0.17), 2: (0.105, 0.14), 3: (0.095, 0.125), 4: (0.09, 0.11)}
"""How many shapes there are → least and largest radius, in shares of the shorter side."""


def _shade(colour: tuple[int, int, int], random: Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, part + random.randint(-12, 12))) for part in colour)
    return red, green, blue


def _pick_background(colour: tuple[int, int, int], random: Random) -> tuple[int, int, int]:
    """Return a background that the colour stands out from."""
    while True:
        hex_colour = random.choice(_BACKGROUNDS)
        red, green, blue = ImageColor.getrgb(hex_colour)[:3]
        background = _shade((red, green, blue), random)
        if math.dist(background, colour) >= _LEAST_CONTRAST:
            return background


def _arrange(
    count: int, position: str, radius: float, size: tuple[int, int], random: Random
) -> list[Point]:
    """Return centres of the shapes within their part of the picture, without overlap."""
    left, top, right, bottom = POSITIONS[position]
    width, height = size
    xs = left * width + radius, right * width - radius
    ys = top * height + radius, bottom * height - radius
    gap = 2.25 * radius
    while True:
        centres: list[Point] = []
        for _ in range(60):
            centre = random.uniform(*xs), random.uniform(*ys)
            if all(math.dist(centre, other) >= gap for other in centres):
                centres.append(centre)
            if len(centres) == count:
                break
        if len(centres) == count and _is_clear(position, centres, size):
            return centres
        gap *= 0.98  # A crowded part: the shapes may come a little closer.


def _is_clear(position: str, centres: list[Point], size: tuple[int, int]) -> bool:
    """Tell whether the shapes are in one part of the picture only, and not in a corner."""
    middle_x = sum(x for x, _ in centres) / len(centres) / size[0]
    middle_y = sum(y for _, y in centres) / len(centres) / size[1]
    off_x, off_y = abs(middle_x - 0.5), abs(middle_y - 0.5)
    if position == "middle":
        return max(off_x, off_y) <= 0.1
    across = off_x if position in ("top", "bottom") else off_y
    return across <= 0.12


def main() -> None:
    """Draw a few pictures into a folder, with their captions as names."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(0)
    for combination in random.sample(all_combinations(), 40):
        draw(combination, random).save(folder / f"{combination.caption}.png")


if __name__ == "__main__":
    main()
