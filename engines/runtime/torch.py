"""PyTorch, as it is or compiled: runs the exported programs of a bundle, with none of the code that made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from ..bundle import PARTS, Bundle, SamplerSpec
from ..errors import EngineError
from .graphs import Graph, GraphNetworks

Names = tuple[Sequence[str], Sequence[str]]
"""Inputs and outputs of a program, in its order."""


class TorchPrograms(GraphNetworks):
    """The programs `<part>.pt2` in `folder`, on the GPU if PyTorch has one.

    Args:
        folder: Where programs and tokenizers lie.
        spec: The sampler's settings.
        names: Of each part its inputs and its outputs, in the order of the program.
        compiled: Whether the first call of each part compiles it, which takes minutes.

    Raises:
        EngineError: PyTorch cannot load one.
    """

    def __init__(
        self, folder: Path, spec: SamplerSpec, names: Mapping[str, Names], compiled: bool = False
    ) -> None:
        super().__init__(folder, spec, lambda part: _program(folder / f"{part}.pt2", *names[part], compiled))


class TorchRuntime(TorchPrograms):
    """`Runtime` of one bundle in PyTorch. `threads` are those of the whole process."""

    def __init__(self, bundle: Bundle, threads: int | None = None, compiled: bool = False) -> None:
        check_programs(bundle)
        if threads:
            torch.set_num_threads(threads)
        names = {part: program_names(bundle, part) for part in PARTS}
        super().__init__(bundle.path, bundle.spec, names, compiled)
        self.bundle, self.backend = bundle, "torch-compile" if compiled else "torch"


def check_programs(bundle: Bundle) -> None:
    """
    Raises:
        EngineError: the bundle has no programs.
    """
    if any(f"{part}.pt2" not in bundle.manifest.files for part in PARTS):
        raise EngineError(f"{bundle.path} has no programs for PyTorch: export the student with --torch")


def program_names(bundle: Bundle, part: str) -> Names:
    return tuple(bundle.manifest.programs[part]), [one.name for one in bundle.manifest.graphs[part].outputs]


def _program(file: Path, inputs: Sequence[str], outputs: Sequence[str], compiled: bool) -> Graph:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        program = torch.export.load(file)
        if device.type != "cpu":
            program = move_to_device_pass(program, device)
    except Exception as error:  # a damaged archive shows as any of several errors
        raise EngineError(f"PyTorch cannot load {file}: {error}; export the student again") from error
    module: Callable[..., Any] = program.module()
    module = torch.compile(module, dynamic=True) if compiled else module

    @torch.inference_mode()
    def call(arrays: Mapping[str, Any]) -> dict[str, Any]:
        found = module(*(torch.from_numpy(np.ascontiguousarray(arrays[name])).to(device) for name in inputs))
        tensors = (found,) if isinstance(found, Tensor) else found
        return {name: tensor.cpu().numpy() for name, tensor in zip(outputs, tensors, strict=True)}

    return call
