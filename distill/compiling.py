"""Compiled blocks: `torch.compile` on the parts of a transformer that repeat."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import nn

from .errors import DistillError

VARIANTS = 32
"""Of a block: with gradients of weights, of inputs, or without, by number of images. PyTorch's limit is 8."""


def compile_blocks(network: nn.Module) -> None:
    """Compiles each block of a transformer in place when it is first called.

    Blocks of a kind share what is compiled, so more of them take no longer. Names of weights stay what they are, and
    so does all that is outside the blocks, as the norm that `adversarial.Critic` listens to.
    """
    import torch._dynamo  # takes a second, and few ask for it

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for blocks in network.children():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                block.compile()


def check_compiler(device: str) -> None:
    """
    Raises:
        DistillError: there is nothing to compile with on this device.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if torch.device(device).type == "cuda" and not has_triton():
        raise DistillError(
            "recipe: compile: needs Triton on a GPU, which PyTorch's own builds for CUDA bring"
        )
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise DistillError(
            "recipe: compile: no C++ compiler is there; install g++, or name one in CXX"
        ) from None
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise DistillError("recipe: compile: Python's headers are missing; on Debian they are in python3-dev")
