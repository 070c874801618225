"""Arrays in device memory behave as NumPy's own do, whatever is cut from and joined to what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import EngineError
from engines.runtime.device import Block, DeviceArray
from engines.tensorrt.cuda import Gpu, Stream, find_gpu

from .fake_gpu import FakeCuda, cudaError_t

CUDA = FakeCuda()
STREAM = Stream(CUDA)


def on_device(array: Any) -> DeviceArray:
    memory = STREAM.allocate(array.nbytes)
    STREAM.upload(memory.pointer, np.ascontiguousarray(array))
    STREAM.synchronize()
    return DeviceArray(STREAM, [Block(memory, 0, array.nbytes)], array.shape, array.dtype)


def numbers(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def test_a_copy_of_a_row_has_memory_of_its_own() -> None:
    whole = numbers(3, 4)
    row = on_device(whole)[1:2]
    copied = row.copy()
    assert np.array_equal(copied, whole[1:2])
    assert copied.blocks[0].memory is not row.blocks[0].memory
    assert copied.blocks[0].memory.nbytes == copied.nbytes


@st.composite
def slices(draw: st.DrawFn) -> slice:
    ends = st.none() | st.integers(-7, 7)
    return slice(draw(ends), draw(ends))


@given(st.lists(slices() | st.integers(-2, 1), min_size=1, max_size=3), slices())
def test_cut_and_joined_as_by_numpy(cuts: list[Any], last: slice) -> None:
    host = numbers(5, 2, 3)
    device = on_device(host)
    rows = [cut if isinstance(cut, slice) else slice(cut, (cut + 1) or None) for cut in cuts]
    joined = np.concatenate([device[cut] for cut in rows])
    assert isinstance(joined, DeviceArray)
    expected = np.concatenate([host[cut] for cut in rows])
    assert joined.shape == expected.shape
    assert np.array_equal(np.asarray(joined), expected)
    assert np.array_equal(np.asarray(joined[last]), expected[last])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_rows_stack_without_moving(order: list[int]) -> None:
    host = numbers(5, 3)
    device, moved = on_device(host), len(CUDA.done)
    stacked = np.stack([device[index] for index in order])
    assert len(CUDA.done) == moved
    assert isinstance(stacked, DeviceArray)
    assert np.array_equal(np.asarray(stacked), host[order])
    assert len(list(stacked)) == len(order) == len(stacked)


def test_neighbours_are_one_copy() -> None:
    device = on_device(numbers(4, 3))
    assert len(np.concatenate([device[1:2], device[2:4]]).blocks) == 1
    assert len(np.concatenate([device[2:4], device[1:2]]).blocks) == 2
    memory = STREAM.allocate(device.nbytes)
    device[2:4].copy_to(memory.pointer)
    STREAM.synchronize()
    copied = DeviceArray(STREAM, [Block(memory, 0, 24)], (2, 3), np.float32)
    assert np.array_equal(np.asarray(copied), np.asarray(device)[2:])


def test_arithmetic_happens_on_the_host() -> None:
    host = numbers(3, 4)
    device = on_device(host)
    t = np.float32([1, 0.5, 0.25])
    assert np.array_equal(host - t[:, None] * device, host - t[:, None] * host)
    assert np.array_equal(0.5 * device + host, 0.5 * host + host)
    assert np.array_equal(np.clip(device, -1, 1), np.clip(host, -1, 1))
    assert np.array_equal(np.concatenate([device, host]), np.concatenate([host, host]))
    assert np.array_equal(np.stack([device, device], axis=1), np.stack([host, host], axis=1))
    assert np.array_equal(device[::2], host[::2])
    assert np.array_equal(device[:, 1], host[:, 1])
    assert np.asarray(device, np.float64).dtype == np.float64
    assert device.ndim == 2


def test_what_cannot_be_is_said() -> None:
    device = on_device(numbers(3, 4))
    with pytest.raises(IndexError):
        device[3]
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(device, copy=False)
    with pytest.raises(ValueError, match="different shapes cannot be joined"):
        np.concatenate([device, on_device(numbers(3, 5))])


def test_errors_of_cuda_have_their_own_names() -> None:
    with pytest.raises(EngineError, match="CUDA: cudaMemcpyAsync failed with cudaErrorInvalidValue"):
        STREAM.copy(1, 2, 3)


def test_gpus_are_named_as_their_driver_does() -> None:
    assert find_gpu(FakeCuda("NVIDIA L4", (8, 9))) == Gpu("NVIDIA L4", "8.9")
    broken = FakeCuda()
    broken.cudaGetDeviceProperties = lambda device: (cudaError_t.cudaErrorNoDevice, None)  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="no GPU to be used here: .* failed with cudaErrorNoDevice"):
        find_gpu(broken)


def test_memory_that_ends_in_a_capture_is_freed_after_it() -> None:
    memory = [STREAM.allocate(8)]
    STREAM.synchronize()
    pointer = memory[0].pointer
    STREAM.capture(memory.clear)
    assert CUDA.graphs[-1] == []
    assert pointer in CUDA.blocks
    STREAM.synchronize()
    assert pointer not in CUDA.blocks


def test_a_failed_capture_does_not_leave_the_stream_capturing() -> None:
    STREAM.synchronize()

    def fail() -> None:
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        STREAM.capture(fail)
    assert CUDA.capturing is None
