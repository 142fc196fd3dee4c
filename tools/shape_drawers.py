"""The shapes with a name, and how each is drawn.

What lives here: drawing one shape with Pillow. What does not: where shapes are in a picture, and in
which colour (`shapes`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

from PIL import ImageDraw

Point = tuple[float, float]
Colour = tuple[int, int, int]
Drawer = Callable[[ImageDraw.ImageDraw, Point, float, Colour, Colour, Random], None]
"""Draws one shape: canvas, centre, radius, colour, background, randomness."""


def polygon(centre: Point, radii: list[float], turn: float) -> list[Point]:
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


def _box(centre: Point, radius: float) -> tuple[float, float, float, float]:
    return centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius


def tilt(random: Random) -> float:
    """Return a slight turn, too small to make a square a diamond, in radians."""
    return random.uniform(-0.2, 0.2)


def polygon_drawer(parts: Sequence[float], turn: float = 0.0) -> Drawer:
    """Return what draws a polygon, slightly tilted.

    Args:
        parts: Distance of each corner from the centre, as a part of the shape's radius.
        turn: By which the first corner is turned away from straight up, in radians.
    """

    def draw_polygon(
        pencil: ImageDraw.ImageDraw,
        centre: Point,
        radius: float,
        colour: Colour,
        _: Colour,
        random: Random,
    ) -> None:
        corners = polygon(centre, [radius * part for part in parts], turn + tilt(random))
        pencil.polygon(corners, fill=colour)

    return draw_polygon


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


def _diamond(
    pencil: ImageDraw.ImageDraw,
    centre: Point,
    radius: float,
    colour: Colour,
    _: Colour,
    random: Random,
) -> None:
    narrow = radius * random.uniform(0.62, 0.78)
    corners = polygon(centre, [1.1 * radius, narrow, 1.1 * radius, narrow], 0.5 * tilt(random))
    pencil.polygon(corners, fill=colour)


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
    "square": polygon_drawer([1.15] * 4, math.pi / 4),
    "triangle": polygon_drawer([1.1] * 3),
    "star": polygon_drawer([1.15, 0.48] * 5),
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
}
SHAPES = tuple(_SHAPES)


def shape_drawer(shape: str) -> Drawer:
    """Return what draws a shape with a name."""
    return _SHAPES[shape]
