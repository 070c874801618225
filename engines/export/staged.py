"""Networks of which one is in memory at a time: what does not fit as a whole can still be compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.base import Conditioning
from ..runtime.graphs import Graph, GraphNetworks
from ..runtime.onnx import OnnxGraph, Opener
from .reference import TorchNetworks


class OneAtATime:
    """Opens graphs when they are called: each stays until another is called.

    Args:
        opened: Loads a graph.
    """

    def __init__(self, opened: Opener = OnnxGraph) -> None:
        self._opened = opened
        self._held: dict[Path, Graph] = {}

    def __call__(self, file: Path, threads: int, provider: str) -> Graph:
        def call(arrays: Conditioning) -> dict[str, Any]:
            if file not in self._held:
                self._held.clear()
                self._held[file] = self._opened(file, threads, provider)
            return self._held[file](arrays)

        return call


class Remembering:
    """Networks that encode the same prompts once, so that the text encoder is not called for again."""

    def __init__(self, networks: TorchNetworks | GraphNetworks) -> None:
        self._networks = networks
        self._encoded: dict[tuple[str, ...], Conditioning] = {}
        self.velocity, self.decode = networks.velocity, networks.decode
        self.decode_floats = networks.decode_floats

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        key = tuple(prompts)
        if key not in self._encoded:
            self._encoded[key] = self._networks.encode(prompts)
        return self._encoded[key]
