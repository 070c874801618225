"""Real images for data-aided runs: where they come from, and their latents."""

from __future__ import annotations

from .latents import Latents, load_latents

__all__ = ["Latents", "load_latents"]
