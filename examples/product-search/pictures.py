"""The pictures of the products, drawn with Pillow: shapes on a light ground."""

from __future__ import annotations

import math
from typing import TypedDict

from PIL import Image, ImageDraw

SIZE = 256
_COLOURS = {
    "red": "#d2232a",
    "blue": "#2255cc",
    "yellow": "#f2d21f",
    "pink": "#f27fb4",
    "green": "#2a9340",
    "orange": "#f28518",
    "black": "#1b1b1d",
    "purple": "#7b33a0",
    "brown": "#774829",
}
_CENTRES = {
    "top": [(0.5, 0.22)],
    "bottom": [(0.5, 0.78)],
    "left": [(0.22, 0.5)],
    "right": [(0.78, 0.5)],
    "middle": [(0.5, 0.5)],
}
_RADIUS = {1: 0.15, 2: 0.12, 3: 0.11, 4: 0.1}


class Motif(TypedDict):
    """What a picture shows."""

    colour: str
    shape: str
    count: int
    place: str


def draw(motif: Motif) -> Image.Image:
    """Draw a picture."""
    image = Image.new("RGB", (SIZE, SIZE), "#f6f4ee")
    pencil = ImageDraw.Draw(image)
    radius = _RADIUS[motif["count"]] * SIZE
    for x, y in _centres(motif):
        _draw_shape(pencil, motif["shape"], x * SIZE, y * SIZE, radius, _COLOURS[motif["colour"]])
    return image


def _centres(motif: Motif) -> list[tuple[float, float]]:
    """Return where the shapes are, in shares of the picture: in a row, or around the middle."""
    ((x, y),) = _CENTRES[motif["place"]]
    count = motif["count"]
    if motif["place"] == "middle" and count > 2:
        angles = [2 * math.pi * number / count for number in range(count)]
        return [(x + 0.16 * math.sin(angle), y - 0.16 * math.cos(angle)) for angle in angles]
    offsets = [0.24 * (number - (count - 1) / 2) for number in range(count)]
    if motif["place"] in ("left", "right"):
        return [(x, y + offset) for offset in offsets]
    return [(x + offset, y) for offset in offsets]


def _draw_shape(
    pencil: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, colour: str
) -> None:
    if shape == "circle":
        pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif shape == "square":
        half = 0.82 * radius
        pencil.rectangle((x - half, y - half, x + half, y + half), fill=colour)
    elif shape == "triangle":
        pencil.polygon(_corners(x, y, [radius] * 3), fill=colour)
    elif shape == "star":
        pencil.polygon(_corners(x, y, [1.1 * radius, 0.45 * radius] * 5), fill=colour)
    elif shape == "cross":
        arm = 0.33 * radius
        pencil.rectangle((x - radius, y - arm, x + radius, y + arm), fill=colour)
        pencil.rectangle((x - arm, y - radius, x + arm, y + radius), fill=colour)
    elif shape == "heart":
        _draw_heart(pencil, x, y, radius, colour)
    else:
        raise ValueError(f"expected a shape that can be drawn, got {shape!r}")


def _draw_heart(
    pencil: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: str
) -> None:
    half, top = 0.55 * radius, y - radius
    for middle in (x - 0.48 * radius, x + 0.48 * radius):
        pencil.ellipse((middle - half, top, middle + half, top + 2 * half), fill=colour)
    # The tip's two edges touch the round parts without a bend.
    side, shoulder = 0.9 * radius, y - 0.1 * radius
    corners = [(x - side, shoulder), (x, y - half), (x + side, shoulder), (x, y + radius)]
    pencil.polygon(corners, fill=colour)


def _corners(x: float, y: float, radii: list[float]) -> list[tuple[float, float]]:
    """Return corners around a point, the first one straight up."""
    step = 2 * math.pi / len(radii)
    return [
        (x + radius * math.sin(number * step), y - radius * math.cos(number * step))
        for number, radius in enumerate(radii)
    ]
