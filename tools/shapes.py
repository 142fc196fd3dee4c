"""Pictures of coloured shapes, and captions that say what is in them.

What lives here: the attributes of a picture, which combinations of them are held out of training,
drawing a picture with Pillow, and wording a caption. What does not: the model (`train_mini_clip`).

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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image, ImageColor, ImageDraw

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

Point = tuple[float, float]


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


@functools.cache
def is_held_out(combination: Combination) -> bool:
    """Tell whether a combination is never shown in training."""
    if (combination.colour, combination.shape) in held_out_pairs():
        return True
    digest = hashlib.blake2b(combination.caption.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % _HELD_OUT_SHARE == 0


# --- drawing -----------------------------------------------------------------------------------


def draw(combination: Combination, random: Random, *, size: int | None = None) -> Image.Image:
    """Draw a picture of a combination.

    Args:
        combination: What it shows.
        random: Decides everything that a caption does not say.
        size: Pixels of its longer side; None takes 64 to 200 at random.
    """
    longer = size or random.randint(64, 200)
    width, height = longer, longer
    if random.random() < 0.4:
        shorter = round(longer * random.uniform(0.75, 1))
        width, height = random.choice([(longer, shorter), (shorter, longer)])
    colour = _shade(COLOURS[combination.colour], random)
    background = _pick_background(colour, random)
    canvas = Image.new("RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING), background)
    pencil = ImageDraw.Draw(canvas)
    radius = random.uniform(*_RADII[combination.count]) * min(canvas.size)
    for centre in _arrange(combination, radius, canvas.size, random):
        own_radius = radius * random.uniform(0.9, 1)
        _SHAPES[combination.shape](pencil, centre, own_radius, colour, background, random)
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
    combination: Combination, radius: float, size: tuple[int, int], random: Random
) -> list[Point]:
    """Return centres of the shapes within their part of the picture, without overlap."""
    left, top, right, bottom = POSITIONS[combination.position]
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
            if len(centres) == combination.count:
                break
        if len(centres) == combination.count and _is_clear(combination.position, centres, size):
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


def _polygon(centre: Point, radii: list[float], turn: float) -> list[Point]:
    """Return corners around a centre, the first one straight up before the turn.

    Args:
        centre: The centre.
        radii: Distance of each corner from the centre.
        turn: In radians.
    """
    step = 2 * math.pi / len(radii)
    corners = []
    for number, radius in enumerate(radii):
        angle = turn + number * step
        corners.append((centre[0] + radius * math.sin(angle), centre[1] - radius * math.cos(angle)))
    return corners


Colour = tuple[int, int, int]
Drawer = Callable[[ImageDraw.ImageDraw, Point, float, Colour, Colour, Random], None]


def _box(centre: Point, radius: float) -> tuple[float, float, float, float]:
    return centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius


def _tilt(random: Random) -> float:
    """Return a slight turn, too small to make a square a diamond, in radians."""
    return random.uniform(-0.2, 0.2)


def _circle(
    pencil: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour, _: Colour, __: Random
) -> None:
    pencil.ellipse(_box(centre, 0.95 * radius), fill=colour)


def _ring(
    pencil: ImageDraw.ImageDraw,
    centre: Point,
    radius: float,
    colour: Colour,
    background: Colour,
    random: Random,
) -> None:
    pencil.ellipse(_box(centre, radius), fill=colour)
    pencil.ellipse(_box(centre, radius * random.uniform(0.45, 0.6)), fill=background)


def _square(
    pencil: ImageDraw.ImageDraw,
    centre: Point,
    radius: float,
    colour: Colour,
    _: Colour,
    random: Random,
) -> None:
    corners = _polygon(centre, [1.15 * radius] * 4, math.pi / 4 + _tilt(random))
    pencil.polygon(corners, fill=colour)


def _diamond(
    pencil: ImageDraw.ImageDraw,
    centre: Point,
    radius: float,
    colour: Colour,
    _: Colour,
    random: Random,
) -> None:
    narrow = radius * random.uniform(0.62, 0.78)
    corners = _polygon(centre, [1.1 * radius, narrow, 1.1 * radius, narrow], 0.5 * _tilt(random))
    pencil.polygon(corners, fill=colour)


def _triangle(
    pencil: ImageDraw.ImageDraw,
    centre: Point,
    radius: float,
    colour: Colour,
    _: Colour,
    random: Random,
) -> None:
    pencil.polygon(_polygon(centre, [1.1 * radius] * 3, _tilt(random)), fill=colour)


def _star(
    pencil: ImageDraw.ImageDraw,
    centre: Point,
    radius: float,
    colour: Colour,
    _: Colour,
    random: Random,
) -> None:
    radii = [1.15 * radius, 0.48 * radius] * 5
    pencil.polygon(_polygon(centre, radii, _tilt(random)), fill=colour)


def _cross(
    pencil: ImageDraw.ImageDraw,
    centre: Point,
    radius: float,
    colour: Colour,
    _: Colour,
    __: Random,
) -> None:
    x, y = centre
    arm = 0.32 * radius
    pencil.rectangle((x - radius, y - arm, x + radius, y + arm), fill=colour)
    pencil.rectangle((x - arm, y - radius, x + arm, y + radius), fill=colour)


def _heart(
    pencil: ImageDraw.ImageDraw,
    centre: Point,
    radius: float,
    colour: Colour,
    _: Colour,
    __: Random,
) -> None:
    # The well-known curve x = 16 sin³ t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t.
    corners = []
    for number in range(40):
        angle = number * 2 * math.pi / 40
        x = 16 * math.sin(angle) ** 3
        y = 13 * math.cos(angle) - 5 * math.cos(2 * angle)
        y -= 2 * math.cos(3 * angle) + math.cos(4 * angle)
        corners.append((centre[0] + x * radius / 16, centre[1] - (y + 2) * radius / 15))
    pencil.polygon(corners, fill=colour)


_SHAPES: dict[str, Drawer] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
}
SHAPES = tuple(_SHAPES)


def main() -> None:
    """Draw a few pictures into a folder, with their captions as names."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(0)
    for combination in random.sample(all_combinations(), 40):
        draw(combination, random).save(folder / f"{combination.caption}.png")


if __name__ == "__main__":
    main()
