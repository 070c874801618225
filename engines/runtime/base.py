"""The interface of a runtime: three functions over NumPy arrays, whatever executes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle

Floats = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]
Conditioning = Mapping[str, npt.NDArray[Any]]
"""What the text encoders made of B prompts: named arrays whose first axis is B."""


class Networks(Protocol):
    """The networks of one generator. Calls are thread-safe and release the interpreter lock.

    Every image of a batch is computed on its own: what else is in the batch does not change it
    beyond the tolerance stated in the bundle's certificate.
    """

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts -> conditioning of the denoiser."""

    def velocity(self, x_BCHW: Floats, t_B: Floats, conditioning: Conditioning) -> Floats:
        """Velocity at noise levels `t_B` in (0, 1], one level per image."""

    def decode(self, x0_BCHW: Floats) -> Images:
        """Clean latents -> pictures, uint8 [B, H, W, 3]."""


class Runtime(Networks, Protocol):
    """Executes the graphs of one bundle."""

    bundle: Bundle

    @property
    def backend(self) -> str:
        """Name for logs, metrics and `/v1/models`: `onnxruntime-cpu`, `tensorrt`."""


@runtime_checkable
class Stepping(Protocol):
    """Networks that do the sampler's arithmetic, too, and keep latents where they are computed.

    What they return are arrays to NumPy, but in the memory of a device.
    """

    def step(
        self,
        sources: list[Floats],
        source_t_B: Floats,
        cleans: list[Floats],
        t_B: Floats,
        conditioning: Conditioning,
    ) -> tuple[Floats, Floats]:
        """One step: x = (1 - t) D' + t e, and D = x - t v, with e = (source - (1 - t') D') / t'.

        Args:
            sources: Of each image [C, H, W], its noise with `t'` = 1, or the network's input of the step
                before, which implies the noise.
            source_t_B: The `t'` of each.
            cleans: D' of each, the clean estimate of the step before; zero at the first step.
            t_B: Level of each image's step.
            conditioning: Of each.

        Returns:
            (x, D), both [B, C, H, W].
        """
