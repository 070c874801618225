"""Networks of which one is in memory at a time: what does not fit as a whole can still be compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bundle import SamplerSpec
from ..runtime.base import Conditioning
from ..runtime.onnx import Graph, OnnxGraph, OnnxNetworks
from ..runtime.torch import TorchPrograms
from .reference import TorchNetworks


class OneAtATime(OnnxNetworks):
    """The graphs in `folder`; each is loaded when it is called and stays until another is."""

    def __init__(self, folder: Path, spec: SamplerSpec) -> None:
        self._held: dict[Path, OnnxGraph] = {}
        super().__init__(folder, spec)

    def _graph(self, file: Path, threads: int, provider: str) -> Graph:
        def call(arrays: Conditioning) -> dict[str, Any]:
            if file not in self._held:
                self._held.clear()
                self._held[file] = OnnxGraph(file, threads, provider)
            return self._held[file](arrays)

        return call


class Remembering:
    """Networks that encode the same prompts once, so that the text encoder is not called for again."""

    def __init__(self, networks: TorchNetworks | OnnxNetworks | TorchPrograms) -> None:
        self._networks = networks
        self._encoded: dict[tuple[str, ...], Conditioning] = {}
        self.velocity, self.decode = networks.velocity, networks.decode
        self.decode_floats = networks.decode_floats

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        key = tuple(prompts)
        if key not in self._encoded:
            self._encoded[key] = self._networks.encode(prompts)
        return self._encoded[key]
