"""Pictures for practice: shapes without a name, and colours without a name.

What lives here: pictures that no caption names, from which the network learns that a number is the
same number whatever the shape and the colour. What does not: pictures with captions (`shapes`).

Three circles and three crosses have little in common but their number, so that a network that saw
each pair of colour and shape often enough would learn their numbers apart. Nothing makes it do so
where each picture has another colour, or a shape that it never saw before.

No practice picture shows what is kept from the training: a shape with a name is not drawn in a
colour that has, or is near one that has, a pair with it that is kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from PIL import Image

from shape_drawers import SHAPES, Colour, polygon_drawer, shape_drawer
from shapes import COLOURS, COUNTS, POSITIONS, Combination, draw_shapes

_NEAR = 60
"""Distance in RGB up to which a colour may be taken for one that has a name. The two that are
nearest to each other, red and orange, are 110 apart."""


@dataclass(frozen=True)
class Practice:
    """What a practice picture shows.

    Attributes:
        colour: Its name, or None.
        rgb: The colour.
        shape: Its name, or None.
        radii: The corners' distances from the centre, for a shape without a name.
        count: How many shapes.
        position: One of `POSITIONS`.
    """

    colour: str | None
    rgb: Colour
    shape: str | None
    radii: tuple[float, ...]
    count: int
    position: str


def pick_practice(allowed: Collection[Combination], number: int, random: Random) -> list[Practice]:
    """Return what practice pictures show: groups of four that differ in one attribute each.

    Args:
        allowed: What training may show.
        number: Of them.
        random: Decides.
    """
    chosen: list[Practice] = []
    while len(chosen) < number:
        group = [_invent(random)]
        group += [_vary(group[0], random) for _ in range(3)]
        distinct = dict.fromkeys(item for item in group if _may_be_shown(item, allowed))
        chosen += distinct
    return chosen[:number]


def draw_practice(practice: Practice, random: Random) -> Image.Image:
    """Draw a picture."""
    if practice.shape is None:
        drawer = polygon_drawer(practice.radii)
    else:
        drawer = shape_drawer(practice.shape)
    return draw_shapes(drawer, practice.rgb, practice.count, practice.position, random)


def _invent(random: Random) -> Practice:
    """Return a shape with a name in any colour, or a shape without one."""
    count, position = random.choice([*COUNTS]), random.choice([*POSITIONS])
    if random.random() < 0.6:
        return Practice(None, _any_colour(random), random.choice(SHAPES), (), count, position)
    colour = random.choice([*COLOURS])
    return Practice(colour, COLOURS[colour], None, _any_shape(random), count, position)


def _vary(practice: Practice, random: Random) -> Practice:
    """Return it with one other attribute, mostly with another number."""
    which = random.choice(("count", "count", "count", "position", "shape", "colour"))
    if which == "count":
        return dataclasses.replace(practice, count=random.choice([*COUNTS]))
    if which == "position":
        return dataclasses.replace(practice, position=random.choice([*POSITIONS]))
    if which == "colour":
        if practice.colour is None:
            return dataclasses.replace(practice, rgb=_any_colour(random))
        colour = random.choice([*COLOURS])
        return dataclasses.replace(practice, colour=colour, rgb=COLOURS[colour])
    if practice.shape is None:
        return dataclasses.replace(practice, radii=_any_shape(random))
    return dataclasses.replace(practice, shape=random.choice(SHAPES))


def _any_colour(random: Random) -> Colour:
    return random.randrange(256), random.randrange(256), random.randrange(256)


def _any_shape(random: Random) -> tuple[float, ...]:
    """Return radii of five to nine corners; few of them look like a shape with a name."""
    return tuple(random.uniform(0.4, 1.1) for _ in range(random.randint(5, 9)))


def _may_be_shown(practice: Practice, allowed: Collection[Combination]) -> bool:
    """Tell whether nobody could take it for a combination that training may not show."""
    if practice.shape is None:
        return True
    nearest = min(COLOURS, key=lambda name: math.dist(COLOURS[name], practice.rgb))
    near = [name for name in COLOURS if math.dist(COLOURS[name], practice.rgb) < _NEAR]
    return all(
        Combination(name, practice.shape, practice.count, practice.position) in allowed
        for name in (nearest, *near)
    )
