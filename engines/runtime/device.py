"""Arrays in GPU memory that NumPy can cut, join and read, so that they pass where its own arrays do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..tensorrt.cuda import Memory, Stream

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Bytes in a row."""

    memory: Memory
    offset: int
    nbytes: int

    @property
    def pointer(self) -> int:
        return self.memory.pointer + self.offset


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array in device memory, as blocks in the order of its elements.

    Cutting along the first axis, and joining with `np.concatenate` or `np.stack` along it, moves nothing.
    Whatever else NumPy does with it, it does with a copy in host memory.
    """

    def __init__(self, stream: Stream, blocks: Sequence[Block], shape: Shape, dtype: npt.DTypeLike) -> None:
        self.stream, self.blocks = stream, tuple(blocks)
        self.shape, self.dtype = shape, np.dtype(dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def copy(self) -> DeviceArray:
        """In memory of its own, which keeps nothing else alive."""
        memory = self.stream.allocate(self.nbytes)
        self.copy_to(memory.pointer)
        return DeviceArray(self.stream, [Block(memory, 0, self.nbytes)], self.shape, self.dtype)

    def copy_to(self, pointer: int) -> None:
        """Within the device."""
        for block in self.blocks:
            self.stream.copy(pointer, block.pointer, block.nbytes)
            pointer += block.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        rows = range(len(self))
        if isinstance(index, int | np.integer):
            row = rows[int(index)]
            return self._rows(row, row + 1, self.shape[1:])
        if isinstance(index, slice) and rows[index].step == 1:
            chosen = rows[index]
            return self._rows(chosen.start, chosen.start + len(chosen), (len(chosen), *self.shape[1:]))
        return np.asarray(self)[index]

    def _rows(self, start: int, stop: int, shape: Shape) -> DeviceArray:
        row = self.nbytes // max(len(self), 1)
        return DeviceArray(self.stream, _cut(self.blocks, start * row, stop * row), shape, self.dtype)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("an array in device memory cannot be seen by the host without a copy")
        host = np.empty(self.shape, self.dtype)
        offset = 0
        with self.stream.lock:
            for block in self.blocks:
                self.stream.download(host, offset, block.pointer, block.nbytes)
                offset += block.nbytes
        return host if dtype is None else host.astype(dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Any:
        return getattr(ufunc, method)(*map(_host, inputs), **settings)

    def __array_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any, settings: dict[str, Any]
    ) -> Any:
        if function in (np.concatenate, np.stack) and len(arguments) == 1 and not settings:
            arrays = list(arguments[0])
            if all(isinstance(one, DeviceArray) for one in arrays):
                return _joined(arrays, new_axis=function is np.stack)
        return function(*map(_host, arguments), **{name: _host(value) for name, value in settings.items()})


def _joined(arrays: Sequence[DeviceArray], new_axis: bool) -> DeviceArray:
    inner = {(one.shape if new_axis else one.shape[1:], one.dtype) for one in arrays}
    if len(inner) != 1:
        raise ValueError(f"arrays of different shapes cannot be joined: {[one.shape for one in arrays]}")
    shape, dtype = inner.pop()
    length = len(arrays) if new_axis else sum(map(len, arrays))
    blocks = _merged(block for one in arrays for block in one.blocks)
    return DeviceArray(arrays[0].stream, blocks, (length, *shape), dtype)


def _cut(blocks: Iterable[Block], start: int, stop: int) -> list[Block]:
    """The bytes from `start` to `stop`."""
    found, at = [], 0
    for block in blocks:
        low, high = max(start - at, 0), min(stop - at, block.nbytes)
        if low < high:
            found.append(Block(block.memory, block.offset + low, high - low))
        at += block.nbytes
    return found


def _merged(blocks: Iterable[Block]) -> list[Block]:
    """Neighbours in one memory become one block, and so one copy."""
    merged: list[Block] = []
    for block in blocks:
        last = merged[-1] if merged else None
        if last and last.memory is block.memory and last.offset + last.nbytes == block.offset:
            merged[-1] = Block(last.memory, last.offset, last.nbytes + block.nbytes)
        else:
            merged.append(block)
    return merged


def _host(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return np.asarray(value)
    return [_host(one) for one in value] if isinstance(value, list | tuple) else value
