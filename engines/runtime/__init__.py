"""Runs bundles."""

from __future__ import annotations

from collections.abc import Callable

from ..bundle import Bundle
from ..errors import EngineError
from .base import Conditioning, Floats, Images, Networks, Runtime
from .onnx import OnnxRuntime
from .sampler import generate

BACKENDS: dict[str, Callable[[Bundle, int | None], Runtime]] = {"onnxruntime": OnnxRuntime}
DEFAULT_BACKEND = "onnxruntime"

__all__ = ["BACKENDS", "Conditioning", "Floats", "Images", "Networks", "Runtime", "generate", "load_runtime"]


def load_runtime(bundle: Bundle, backend: str = "auto", threads: int | None = None) -> Runtime:
    """The runtime that executes `bundle`.

    Args:
        bundle: Which bundle.
        backend: `auto` or one of `BACKENDS`.
        threads: CPU threads one call may use; by default the usable cores, at most eight.

    Raises:
        EngineError: there is no such backend, or it cannot load the bundle.
    """
    name = DEFAULT_BACKEND if backend == "auto" else backend
    if name not in BACKENDS:
        raise EngineError(f"backend {backend!r}: expected auto or one of {', '.join(BACKENDS)}")
    if threads is not None and threads < 1:
        raise EngineError(f"{threads} threads: expected at least 1")
    return BACKENDS[name](bundle, threads)
