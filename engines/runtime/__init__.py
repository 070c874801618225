"""Runs bundles: the fastest backend that this machine and the bundle allow, or the one asked for."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..bundle import Bundle
from ..errors import EngineError
from .base import Conditioning, Floats, Images, Networks, Runtime, Stepping
from .onnx import CPU, CUDA, OnnxRuntime, check_bundle
from .sampler import generate

log = logging.getLogger(__name__)

__all__ = [
    "BACKENDS",
    "Conditioning",
    "Floats",
    "Images",
    "Networks",
    "Runtime",
    "Stepping",
    "backend_names",
    "choices",
    "generate",
    "load_runtime",
]


@dataclass(frozen=True)
class Backend:
    """One way to run a bundle.

    Attributes:
        check: Raises `EngineError` if it cannot be had here; loads no weights.
        load: (bundle, CPU threads) -> runtime.
    """

    check: Callable[[Bundle], object]
    load: Callable[[Bundle, int | None], Runtime]


def _check_tensorrt(backend: str, bundle: Bundle) -> None:
    from .tensorrt import find_runtime

    find_runtime(bundle, backend)


def _load_tensorrt(backend: str, bundle: Bundle, threads: int | None) -> Runtime:
    from .tensorrt import TensorRTRuntime, find_runtime

    kit, folder = find_runtime(bundle, backend)
    return TensorRTRuntime(bundle, folder, kit)


def _check_torch(bundle: Bundle) -> None:
    _torch().check_programs(bundle)


def _load_torch(compiled: bool, bundle: Bundle, threads: int | None) -> Runtime:
    runtime: Runtime = _torch().TorchRuntime(bundle, threads, compiled)
    return runtime


def _torch() -> Any:
    try:
        return importlib.import_module(".torch", __name__)  # so that nobody needs it who does not ask for it
    except ModuleNotFoundError as error:
        raise EngineError("PyTorch is not installed: pip install torch") from error


def _onnx(provider: str) -> Backend:
    return Backend(partial(check_bundle, provider=provider), partial(OnnxRuntime, provider=provider))


BACKENDS: dict[str, Backend] = {
    **{
        name: Backend(partial(_check_tensorrt, name), partial(_load_tensorrt, name))
        for name in ("tensorrt", "tensorrt-rtx")
    },
    "onnxruntime-cuda": _onnx(CUDA),
    "onnxruntime-cpu": _onnx(CPU),
    "torch-compile": Backend(_check_torch, partial(_load_torch, True)),
    "torch": Backend(_check_torch, partial(_load_torch, False)),
}
"""Best first; what comes after ONNX Runtime on the CPU, which is always there, has to be asked for."""
SYNONYMS = {"onnxruntime": "onnxruntime-cpu"}


def load_runtime(bundle: Bundle, backend: str = "auto", threads: int | None = None) -> Runtime:
    """The runtime that executes `bundle`.

    Args:
        bundle: Which bundle.
        backend: One of `BACKENDS`, or `auto`: the first of them that loads; why not an earlier one is logged.
        threads: CPU threads one call may use; by default the usable cores, at most eight.

    Raises:
        EngineError: there is no such backend, or it cannot load the bundle.
    """
    if threads is not None and threads < 1:
        raise EngineError(f"{threads} threads: expected at least 1")
    if backend != "auto":
        return _named(backend).load(bundle, threads)
    last = "onnxruntime-cpu"
    for name in list(BACKENDS)[: list(BACKENDS).index(last)]:
        try:
            runtime = BACKENDS[name].load(bundle, threads)
        except EngineError as reason:
            log.info("bundle=%s not on %s: %s", bundle.manifest.name, name, reason)
        else:
            log.info("bundle=%s runs on %s", bundle.manifest.name, name)
            return runtime
    log.info("bundle=%s runs on %s", bundle.manifest.name, last)
    return BACKENDS[last].load(bundle, threads)


def backend_names() -> tuple[str, ...]:
    """What `load_runtime` takes as a backend."""
    return ("auto", *BACKENDS, *SYNONYMS)


def choices(bundle: Bundle) -> dict[str, str]:
    """Every backend, best first, with what keeps it from running `bundle` here; empty if nothing does."""
    return {name: _problem(backend, bundle) for name, backend in BACKENDS.items()}


def _problem(backend: Backend, bundle: Bundle) -> str:
    try:
        backend.check(bundle)
    except EngineError as error:
        return str(error)
    return ""


def _named(backend: str) -> Backend:
    name = SYNONYMS.get(backend, backend)
    if name not in BACKENDS:
        raise EngineError(f"backend {backend!r}: expected auto or one of {', '.join(BACKENDS)}")
    return BACKENDS[name]
