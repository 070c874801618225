"""The registry of families: one line for each architecture."""

from __future__ import annotations

from ..errors import DistillError
from .base import Conditioning, Family, Text, Tokens, concat, repeat, tokenize, with_guidance
from .flux import FLUX
from .sana import SANA, SANA_SPRINT
from .sd3 import SD3

FAMILIES: dict[str, Family] = {family.name: family for family in (SANA, SANA_SPRINT, SD3, FLUX)}

__all__ = [
    "FAMILIES",
    "Conditioning",
    "Family",
    "Text",
    "Tokens",
    "concat",
    "family_named",
    "repeat",
    "tokenize",
    "with_guidance",
]


def family_named(name: str) -> Family:
    if name not in FAMILIES:
        raise DistillError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]
