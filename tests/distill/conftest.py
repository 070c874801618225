"""Recipes and runs of the tiny teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.recipe import Recipe

TINY: dict[str, Any] = {
    "iterations": 4,
    "batch": 4,
    "quality_images": 8,
    "quality_every": 2,
    "samples_every": 2,
    "checkpoint_every": 2,
    "optimizer": {"lr_generator": 1e-4, "lr_fake": 1e-4},
}


Recipes = Callable[..., Recipe]


@pytest.fixture
def recipe(tiny_teacher: Path) -> Recipes:
    """A recipe for the tiny teacher, four iterations long, with changes."""
    return lambda **changes: Recipe.model_validate({"teacher": str(tiny_teacher), **TINY, **changes})


def events(student: Path, kind: str = "iteration") -> list[dict[str, Any]]:
    lines = (student / "run" / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["type"] == kind]


def losses(student: Path) -> list[tuple[int, float, float]]:
    return [(event["k"], event["loss_fake"], event["loss_generator"]) for event in events(student)]
