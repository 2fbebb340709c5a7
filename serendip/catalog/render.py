"""Pictures of the synthetic world: a scene of one facet with an object in it, or nothing clear.

Knows no item and no topic: it draws what it is told.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SIDE = 64  # pixels; even, as video codecs ask

Frame = npt.NDArray[np.uint8]  # [SIDE, SIDE, 3], RGB

OBJECTS = ("ball", "box", "cone", "cross")
COLOURS = {
    "red": (225, 30, 30),
    "green": (60, 200, 70),
    "yellow": (250, 225, 50),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
}
_BACKGROUND = ((228, 240, 255), (45, 10, 75), (40, 115, 50), (230, 190, 110))
_ACCENT = ((150, 190, 235), (255, 40, 200), (15, 60, 20), (190, 130, 50))


class Scene(NamedTuple):
    """What a picture shows.

    Attributes:
        facet: index into the lexicon's FACETS; None draws a picture that shows none.
        thing: index into OBJECTS.
        colour: index into COLOURS.
    """

    facet: int | None
    thing: int
    colour: int


def random_scene(facet: int | None, rng: np.random.Generator) -> Scene:
    """A scene of a facet with any object."""
    return Scene(facet, int(rng.integers(len(OBJECTS))), int(rng.integers(len(COLOURS))))


def draw(scene: Scene, rng: np.random.Generator) -> Frame:
    """Draws a scene, jittered in place, shade and noise: uint8[SIDE, SIDE, 3]."""
    image = Image.new("RGB", (SIDE, SIDE))
    pen = ImageDraw.Draw(image)
    if scene.facet is None:
        _draw_nothing(pen, image, rng)
    else:
        shade = rng.integers(-14, 15, 3)
        pen.rectangle((0, 0, SIDE, SIDE), fill=_shift(_BACKGROUND[scene.facet], shade))
        _draw_facet(pen, scene.facet, rng)
        _draw_thing(pen, scene, rng)
    noise = rng.integers(-8, 9, (SIDE, SIDE, 3))
    picture: Frame = np.clip(np.asarray(image, np.int16) + noise, 0, 255).astype(np.uint8)
    return picture


def _shift(colour: tuple[int, int, int], by: npt.NDArray[np.int64]) -> tuple[int, int, int]:
    r, g, b = (int(np.clip(c + d, 0, 255)) for c, d in zip(colour, by, strict=True))
    return r, g, b


def _draw_facet(pen: ImageDraw.ImageDraw, facet: int, rng: np.random.Generator) -> None:
    accent = _ACCENT[facet]
    offset = int(rng.integers(0, 13))
    if facet == 0:  # winter: snow
        for x, y in rng.integers(0, SIDE, (18, 2)):
            pen.ellipse((x, y, x + 4, y + 4), fill=accent)
    elif facet == 1:  # neon: tubes
        for x in range(-offset, SIDE, 14):
            pen.line((x, 0, x, SIDE), fill=accent, width=3)
    elif facet == 2:  # forest: firs
        for x in range(-offset, SIDE, 16):
            pen.polygon(((x, SIDE), (x + 8, int(SIDE * 0.3)), (x + 16, SIDE)), fill=accent)
    else:  # desert: a dune
        pen.ellipse((-offset, int(SIDE * 0.6), SIDE, int(SIDE * 1.5)), fill=accent)


def _draw_thing(pen: ImageDraw.ImageDraw, scene: Scene, rng: np.random.Generator) -> None:
    fill = list(COLOURS.values())[scene.colour]
    x, y = rng.uniform(0.3 * SIDE, 0.7 * SIDE, 2)
    r = rng.uniform(0.13 * SIDE, 0.2 * SIDE)
    if scene.thing == 0:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=(0, 0, 0))
    elif scene.thing == 1:
        pen.rectangle((x - r, y - r, x + r, y + r), fill=fill, outline=(0, 0, 0))
    elif scene.thing == 2:
        pen.polygon(((x - r, y + r), (x, y - r), (x + r, y + r)), fill=fill)
    else:
        pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=fill)
        pen.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=fill)


def _draw_nothing(pen: ImageDraw.ImageDraw, image: Image.Image, rng: np.random.Generator) -> None:
    kind = int(rng.integers(3))
    if kind == 0:  # a dark shot
        r, g, b = (int(v) for v in rng.integers(0, 60, 3))
        pen.rectangle((0, 0, SIDE, SIDE), fill=(r, g, b))
    elif kind == 1:  # static
        image.paste(Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)))
    else:  # somebody talking
        pen.rectangle((0, 0, SIDE, SIDE), fill=(128, 128, 128))
        pen.ellipse((0.3 * SIDE, 0.17 * SIDE, 0.7 * SIDE, 0.58 * SIDE), fill=(224, 172, 130))
        pen.rectangle((0.2 * SIDE, 0.58 * SIDE, 0.8 * SIDE, SIDE), fill=(60, 60, 90))
