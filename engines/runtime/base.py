"""The interface of a runtime: three functions over NumPy arrays, whatever executes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

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
        """Name for logs, metrics and `/v1/models`: `onnxruntime-cpu`, `tensorrt`, `torch`."""
