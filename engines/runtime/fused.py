"""Runs the whole-generator graphs of a bundle: one call a batch, no batching by step, no previews."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Graph, SamplerSpec, Size
from ..errors import EngineError
from .base import Conditioning, Floats, Images, Runtime
from .graphs import to_images
from .onnx import CPU, OnnxGraph, Opener, default_threads
from .sampler import in_batches, noise


class FusedGraphs:
    """The graphs of `folder` by step count, each loaded when it is first asked for."""

    def __init__(
        self,
        folder: Path,
        spec: SamplerSpec,
        graphs: Mapping[int, Graph],
        threads: int | None = None,
        opened: Opener | None = None,
    ) -> None:
        self._folder, self._spec, self._graphs = folder, spec, graphs
        self._threads, self._opened = threads or default_threads(), opened or OnnxGraph
        self._loaded: dict[int, Callable[[Conditioning], dict[str, Any]]] = {}

    def pictures(self, conditioning: Conditioning, seeds: Sequence[int], steps: int, size: Size) -> Floats:
        """Pictures [B, 3, H, W] in -1 ... 1, not clipped: those that step calls give.

        Raises:
            EngineError: there is no graph for `steps`; the message lists those there are.
        """
        if steps not in self._graphs:
            known = ", ".join(map(str, sorted(self._graphs))) or "none"
            raise EngineError(f"{steps} steps: this bundle has fused graphs for {known}")
        if steps not in self._loaded:
            file = self._folder / self._graphs[steps].file
            self._loaded[steps] = self._opened(file, self._threads, CPU)
        rows = self._graphs[steps].inputs[0].shape[0]
        shape = self._spec.latent_shape(size)
        noise_KBCHW = np.stack(
            [np.stack([noise(seed, row, shape) for seed in seeds]) for row in range(int(rows))]
        )
        pictures: Floats = self._loaded[steps]({"noise": noise_KBCHW, **conditioning})["pictures"]
        return pictures


class FusedGenerator:
    """Draws with the fused graphs of a bundle; `runtime` encodes its prompts.

    Raises:
        EngineError: the bundle has none.
    """

    def __init__(self, runtime: Runtime, threads: int | None = None) -> None:
        bundle = runtime.bundle
        if not bundle.manifest.fused:
            raise EngineError(f"{bundle.path} has no fused graphs: export the student with --fuse")
        self.bundle, self._runtime = bundle, runtime
        self._graphs = FusedGraphs(bundle.path, bundle.spec, bundle.manifest.fused, threads)

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], steps: int, size: Size | None = None
    ) -> Images:
        """As `engines.runtime.generate`, with the same pictures."""

        def draw(prompts: Sequence[str], seeds: Sequence[int], size: Size) -> Images:
            conditioning = self._runtime.encode(prompts)
            return to_images(self._graphs.pictures(conditioning, seeds, steps, size))

        return in_batches(self.bundle, draw, prompts, seeds, steps, size)
