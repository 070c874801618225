"""CUDA through NVIDIA's own bindings: memory, copies and graphs of one stream of the first GPU.

`CUDA_VISIBLE_DEVICES` says which GPU is the first one.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EngineError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Gpu:
    """A GPU by the name that its driver gives it and its compute capability, e.g. `9.0`."""

    name: str
    capability: str


def find_gpu(cudart: Any = None) -> Gpu:
    """The first GPU.

    Raises:
        EngineError: there is none, or its driver or `cuda-bindings` is missing.
    """
    cudart = cudart or load_cudart()
    try:
        properties = _checked(cudart, "cudaGetDeviceProperties", 0)
    except EngineError as error:
        raise EngineError(f"no GPU to be used here: {error}") from error
    return Gpu(properties.name.decode().rstrip("\0"), f"{properties.major}.{properties.minor}")


def load_cudart() -> Any:
    """NVIDIA's bindings of the CUDA runtime.

    Raises:
        EngineError: they are not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError("cuda-bindings is not installed: pip install 'fewstep[tensorrt]'") from error
    return runtime


def _checked(cudart: Any, function: str, *arguments: Any) -> Any:
    """The function's result; its error, by CUDA's own name, becomes an `EngineError`."""
    code, *results = getattr(cudart, function)(*arguments)
    if code != cudart.cudaError_t.cudaSuccess:
        raise EngineError(f"CUDA: {function} failed with {code.name}")
    return results[0] if results else None


class Memory:
    """Device memory that its stream may have again when nothing refers to it any more."""

    def __init__(self, stream: Stream, nbytes: int) -> None:
        self.nbytes = nbytes
        self.pointer = int(stream.call("cudaMallocAsync", max(nbytes, 1), stream.handle))
        weakref.finalize(self, stream.released.append, self.pointer)


class Stream:
    """The one stream on which everything happens, one thing after the other.

    Args:
        cudart: Stands in for NVIDIA's bindings.

    Attributes:
        lock: Held by whoever puts work on the stream: what another thread put there in the middle of a
            capture would become part of the graph.
        released: Memory to be freed: arrays end in any thread and at any time, a capture's included.

    Raises:
        EngineError: no GPU, no driver or no bindings.
    """

    def __init__(self, cudart: Any = None) -> None:
        self._cudart = cudart or load_cudart()
        self.lock = threading.RLock()
        self.released: deque[int] = deque()
        self.handle = int(self.call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking))

    def call(self, function: str, *arguments: Any) -> Any:
        return _checked(self._cudart, function, *arguments)

    def allocate(self, nbytes: int) -> Memory:
        return Memory(self, nbytes)

    def upload(self, pointer: int, array: Array) -> None:
        """Host to device; `array` is contiguous, and has to live and stay as it is until `synchronize`."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", pointer, array.ctypes.data, array.nbytes, kind, self.handle)

    def download(self, array: Array, offset: int, pointer: int, nbytes: int) -> None:
        """Device to host, into the bytes of `array` from `offset` on; there when this returns."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data + offset, pointer, nbytes, kind, self.handle)
        self.synchronize()

    def copy(self, to: int, pointer: int, nbytes: int) -> None:
        """Device to device."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.call("cudaMemcpyAsync", to, pointer, nbytes, kind, self.handle)

    def synchronize(self) -> None:
        while self.released:
            self.call("cudaFreeAsync", self.released.popleft(), self.handle)
        self.call("cudaStreamSynchronize", self.handle)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` puts on the stream, as a CUDA graph: call the result to do it again."""
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.handle, mode)
        try:
            work()
        finally:  # a stream left capturing refuses everything else
            graph = self.call("cudaStreamEndCapture", self.handle)
        launchable = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        return lambda: self.call("cudaGraphLaunch", launchable, self.handle)


def nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize
