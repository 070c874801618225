"""Draws scenes as 64x64 RGB pictures, anti-aliased, with the places and sizes drawn at random."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .scenes import Scene, Shape

SIZE = 64
SUPERSAMPLING = 4

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 215, 50),
    "purple": (135, 50, 170),
    "orange": (245, 135, 30),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "gray": (135, 135, 135),
    "pink": (250, 190, 205),
}

Images = npt.NDArray[np.uint8]
Point = tuple[float, float]


def render(scene: Scene, rng: np.random.Generator) -> Images:
    """One picture of `scene`, uint8 [64, 64, 3]; two calls differ in places and sizes."""
    scale = SIZE * SUPERSAMPLING
    picture = Image.new("RGB", (scale, scale), PALETTE[scene.background])
    draw = ImageDraw.Draw(picture)
    for shape, (x, y), radius in _place(scene, rng):
        _draw(draw, shape, x * SUPERSAMPLING, y * SUPERSAMPLING, radius * SUPERSAMPLING)
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX))


def render_all(scenes: Sequence[Scene], rng: np.random.Generator) -> Images:
    """Pictures of `scenes`, uint8 [N, 64, 64, 3]."""
    return np.stack([render(scene, rng) for scene in scenes])


def _place(scene: Scene, rng: np.random.Generator) -> list[tuple[Shape, Point, float]]:
    """Centre and radius, in pixels, of each shape. Shapes of a pair never overlap."""
    if scene.second is None:
        radius = rng.uniform(12, 17)
        return [(scene.first, tuple(rng.uniform(20, SIZE - 20, 2)), radius)]
    along = rng.uniform((14, 46), (18, 50))
    across = rng.uniform(24, 40, 2)
    places = np.stack([along, across], axis=1)
    if scene.relation == "above":
        places = places[:, ::-1]
    radii = rng.uniform(10, 13, 2)
    return [(shape, tuple(place), r) for shape, place, r in zip((scene.first, scene.second), places, radii)]


def _draw(draw: ImageDraw.ImageDraw, shape: Shape, x: float, y: float, radius: float) -> None:
    colour = PALETTE[shape.colour]
    if shape.shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    else:
        draw.polygon(_corners(shape.shape, x, y, radius), fill=colour)


def _corners(shape: str, x: float, y: float, radius: float) -> list[Point]:
    """Corners of a square, triangle or five-pointed star, the latter two standing on their feet."""
    if shape == "square":
        half = radius * 0.88
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    spikes, inner = (3, 0.5) if shape == "triangle" else (5, 0.45)
    lengths = [radius * 1.1 if corner % 2 == 0 else radius * 1.1 * inner for corner in range(2 * spikes)]
    angles = [math.pi * corner / spikes - math.pi / 2 for corner in range(2 * spikes)]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(lengths, angles)]
