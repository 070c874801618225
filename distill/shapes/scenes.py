"""Scenes of the shapes world: what a picture holds, its caption, and the train / held-out split.

A scene is discrete (shapes, colours, relation, background), so prompt-following can be judged
exactly. Where the shapes sit inside the picture is drawn by the renderer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
BACKGROUNDS = ("white", "black", "gray", "pink")
RELATIONS = ("left of", "above")

HELD_OUT_SHARE = 0.15
SINGLE_SHARE = 0.25  # single-shape scenes are few; this share of the draws keeps them from being rare

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "first_shape": SHAPES,
    "first_colour": COLOURS,
    "second_shape": (*SHAPES, "none"),
    "second_colour": (*COLOURS, "none"),
    "relation": (*RELATIONS, "none"),
    "background": BACKGROUNDS,
}


@dataclass(frozen=True, order=True)
class Shape:
    """One coloured shape."""

    shape: str
    colour: str

    def __str__(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One shape, or two in a relation (the first is the left or the upper one), on a background."""

    first: Shape
    background: str
    relation: str | None = None
    second: Shape | None = None

    @property
    def caption(self) -> str:
        where = f"{self.first} {self.relation} {self.second}" if self.second else str(self.first)
        return f"{where} on a {self.background} background"

    @property
    def attributes(self) -> dict[str, str]:
        """Attribute name -> value; the keys are those of `ATTRIBUTES`."""
        return {
            "first_shape": self.first.shape,
            "first_colour": self.first.colour,
            "second_shape": self.second.shape if self.second else "none",
            "second_colour": self.second.colour if self.second else "none",
            "relation": self.relation or "none",
            "background": self.background,
        }

    @property
    def labels(self) -> list[int]:
        """Class index of each attribute, in the order of `ATTRIBUTES`."""
        return [ATTRIBUTES[name].index(value) for name, value in self.attributes.items()]

    @property
    def held_out(self) -> bool:
        """Whether this combination is kept from training (a fixed hash of the caption decides)."""
        digest = hashlib.sha256(self.caption.encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def all_scenes() -> tuple[list[Scene], list[Scene]]:
    """Every scene there is: (one shape, two different shapes)."""
    things = [Shape(shape, colour) for shape, colour in product(SHAPES, COLOURS)]
    singles = [Scene(thing, background) for thing, background in product(things, BACKGROUNDS)]
    pairs = [
        Scene(first, background, relation, second)
        for first, second, relation, background in product(things, things, RELATIONS, BACKGROUNDS)
        if first != second
    ]
    return singles, pairs


class SceneSet:
    """The scenes of one split, to be drawn from at random.

    >>> SceneSet("train").draw(np.random.default_rng(0), 2)  # two scenes
    """

    def __init__(self, split: str) -> None:
        if split not in ("train", "held-out"):
            raise ValueError(f"split {split!r}: expected 'train' or 'held-out'")
        held_out = split == "held-out"
        self.singles, self.pairs = ([s for s in scenes if s.held_out == held_out] for scenes in all_scenes())

    def __len__(self) -> int:
        return len(self.singles) + len(self.pairs)

    def draw(self, rng: np.random.Generator, count: int) -> list[Scene]:
        """`count` scenes, with replacement; single shapes make up `SINGLE_SHARE` of them."""
        return [self._draw_one(rng) for _ in range(count)]

    def _draw_one(self, rng: np.random.Generator) -> Scene:
        scenes = self.singles if rng.random() < SINGLE_SHARE else self.pairs
        return scenes[rng.integers(len(scenes))]


_CAPTION = re.compile(
    rf"an? (?P<c1>{'|'.join(COLOURS)}) (?P<s1>{'|'.join(SHAPES)})"
    rf"(?: (?P<rel>{'|'.join(RELATIONS)}) an? (?P<c2>{'|'.join(COLOURS)}) (?P<s2>{'|'.join(SHAPES)}))?"
    rf" on a (?P<bg>{'|'.join(BACKGROUNDS)}) background"
)


def parse_caption(caption: str) -> Scene:
    """The scene that a caption names; the inverse of `Scene.caption`.

    Raises:
        ValueError: the text is not a caption of this world.
    """
    match = _CAPTION.fullmatch(caption.strip().lower())
    if match is None:
        example = "a red circle left of a blue star on a white background"
        raise ValueError(f"not a shapes caption: {caption!r}; expected the form {example!r}")
    found = match.groupdict()
    second = Shape(found["s2"], found["c2"]) if found["rel"] else None
    return Scene(Shape(found["s1"], found["c1"]), found["bg"], found["rel"], second)


def captions(scenes: Sequence[Scene]) -> list[str]:
    return [scene.caption for scene in scenes]
