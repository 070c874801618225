"""A GPU that is not there: CUDA whose work waits for a synchronisation, and TensorRT on ONNX Runtime.

They are as strict as the real ones: what is wrongly ordered, addressed or freed fails. They show that the
runtime does what it says with what it is given, and nothing about TensorRT.
"""

# ruff: noqa: N802  # names are CUDA's and TensorRT's own

from __future__ import annotations

import ctypes
import enum
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper


class cudaError_t(enum.IntEnum):  # noqa: N801  # CUDA's own name
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorNoDevice = 100


class FakeCuda:
    """The functions of `cuda.bindings.runtime` that are used; device memory is the host's.

    Attributes:
        done: The work that was done, in order, by name.
        blocks: Address -> memory that is allocated.
    """

    cudaError_t = cudaError_t
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down", cudaMemcpyDeviceToDevice="within"
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, name: str = "Fake GPU", capability: tuple[int, int] = (9, 0)) -> None:
        self.properties = SimpleNamespace(name=name.encode(), major=capability[0], minor=capability[1])
        self.blocks: dict[int, Any] = {}
        self.waiting: list[tuple[str, Callable[[], None]]] = []
        self.capturing: list[tuple[str, Callable[[], None]]] | None = None
        self.done: list[str] = []
        self.graphs: list[Any] = []

    def put(self, name: str, work: Callable[[], None]) -> None:
        """On the stream, or into the graph that is being captured."""
        (self.waiting if self.capturing is None else self.capturing).append((name, work))

    def cudaGetDeviceProperties(self, device: int) -> Any:
        return cudaError_t.cudaSuccess, self.properties

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return cudaError_t.cudaSuccess, 77

    def cudaMallocAsync(self, size: int, stream: int) -> Any:
        assert stream == 77
        assert self.capturing is None, "memory cannot be had in the middle of a capture"
        memory = ctypes.create_string_buffer(b"\xee" * size, size)
        self.blocks[ctypes.addressof(memory)] = memory
        return cudaError_t.cudaSuccess, ctypes.addressof(memory)

    def cudaFreeAsync(self, pointer: int, stream: int) -> Any:
        self.put("free", lambda: self.blocks.pop(pointer) and None)
        return (cudaError_t.cudaSuccess,)

    def holds(self, pointer: int, size: int) -> bool:
        return any(at <= pointer and pointer + size <= at + len(memory) for at, memory in self.blocks.items())

    def cudaMemcpyAsync(self, to: int, pointer: int, size: int, kind: str, stream: int) -> Any:
        sides = {"up": [to], "down": [pointer], "within": [to, pointer]}[kind]
        if not all(self.holds(side, size) for side in sides):
            return (cudaError_t.cudaErrorInvalidValue,)

        def work() -> None:
            assert all(self.holds(side, size) for side in sides), "used after it was freed"
            ctypes.memmove(to, pointer, size)

        self.put(kind, work)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        assert self.capturing is None
        waiting, self.waiting = self.waiting, []
        for name, work in waiting:
            work()
            self.done.append(name)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Any:
        assert not self.waiting, "work is captured in the middle of other work"
        self.capturing = []
        return (cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        graph, self.capturing = self.capturing, None
        return cudaError_t.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        self.graphs.append(graph)
        return cudaError_t.cudaSuccess, len(self.graphs) - 1

    def cudaGraphDestroy(self, graph: Any) -> Any:
        return (cudaError_t.cudaSuccess,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> Any:
        self.put("graph", lambda: [work() for _, work in self.graphs[graph]] and None)
        return (cudaError_t.cudaSuccess,)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = range(3)

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = (min, opt, max)


class Config:
    def __init__(self) -> None:
        self.profiles: list[Profile] = []
        self.flags: set[str] = {"TF32"}
        self.num_compute_capabilities = 0

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_compute_capability(self, compute_capability: int, index: int) -> bool:
        return index < self.num_compute_capabilities

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: serialized_timing_cache + b"timed ")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.timing = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.timing


class Builder:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> Any:
        assert flags == 1 << FakeTensorRT.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return SimpleNamespace(model=None, num_inputs=0)

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
        if any(node.op_type == "Unbuildable" for node in network.model.graph.node):
            self.logger.log(ILogger.ERROR, "no implementation\n of this")
            return None
        shapes = [profile.shapes for profile in config.profiles]
        return pickle.dumps((network.model.SerializeToString(), shapes, sorted(config.flags)))


class OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        self.network, self.num_errors = network, 0

    def parse(self, model: bytes, path: str) -> bool:
        self.network.model = onnx.ModelProto.FromString(model)
        inputs = self.network.model.graph.input
        self.network.num_inputs = len(inputs)
        self.network.get_input = lambda index: inputs[index]
        self.num_errors = sum(node.op_type == "MatMulInteger" for node in self.network.model.graph.node)
        return self.num_errors == 0

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: "no such operator", node_operator=lambda: "MatMulInteger")


class Engine:
    """A plan on the fake device; it is run by ONNX Runtime."""

    def __init__(self, cuda: FakeCuda, plan: bytes, logger: Any) -> None:
        model, self.shapes, self.flags = pickle.loads(plan)
        self.cuda, self.logger, self.model = cuda, logger, onnx.ModelProto.FromString(model)
        self.device_memory_size_v2 = 1000 + len(self.model.graph.node)
        self.refittable = "REFIT" in self.flags
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model, options, ["CPUExecutionProvider"])

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(strategy=None, cache=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(
            config, "strategy", strategy
        )
        config.create_runtime_cache = lambda: SimpleNamespace(
            deserialize=lambda blob: True, serialize=lambda: b"kernels"
        )
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config

    def create_execution_context(self, runtime_config: Any) -> Context:
        assert runtime_config.strategy == "user"
        return Context(self)

    def serialize(self) -> bytes:
        return pickle.dumps((self.model.SerializeToString(), self.shapes, self.flags))


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.cuda = engine, engine.cuda
        self.profile, self.scratch = -1, (0, 0)
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = (memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        return 0 <= profile_index < len(self.engine.shapes)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.shapes[self.profile][name]
        self.inputs[name] = shape
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.inputs:
            return self.inputs[name]
        types = {entry.name: entry.type for entry in self.engine.session.get_inputs()}
        feed = {one: np.ones(shape, _numpy(types[one])) for one, shape in self.inputs.items()}
        return self.engine.session.run([name], feed)[0].shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        memory, size = self.scratch
        if size < self.engine.device_memory_size_v2 or not self.cuda.holds(memory, size):
            self.engine.logger.log(ILogger.ERROR, "not enough device memory")
            return False
        self.cuda.put("run", self._run)
        return True

    def _run(self) -> None:
        session = self.engine.session
        feed = {
            entry.name: self._view(entry.name, self.inputs[entry.name], _numpy(entry.type))
            for entry in session.get_inputs()
        }
        for entry, value in zip(session.get_outputs(), session.run(None, feed), strict=True):
            self._view(entry.name, value.shape, value.dtype)[...] = value

    def _view(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert self.cuda.holds(self.addresses[name], size)
        memory = (ctypes.c_byte * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


class Refitter:
    """`keep` holds names of weights that the engine asks for and no graph has."""

    keep: tuple[str, ...] = ()

    def __init__(self, engine: Engine, logger: Any) -> None:
        self.engine, self.values = engine, {}
        self.floats = {one.name: one for one in engine.model.graph.initializer if one.data_type in (1, 10)}

    def get_all_weights(self) -> list[str]:
        return [*self.floats, *self.keep]

    def get_missing_weights(self) -> list[str]:
        return [name for name in self.get_all_weights() if name not in self.values]

    def get_weights_prototype(self, weights_name: str) -> Any:
        return SimpleNamespace(size=int(np.prod(self.floats[weights_name].dims)))

    def set_named_weights(self, name: str, weights: Any) -> bool:
        self.values[name] = weights
        return not name.startswith("step.axes")

    def refit_cuda_engine(self) -> bool:
        for name, value in self.values.items():
            dims = tuple(self.floats[name].dims)
            self.floats[name].CopyFrom(numpy_helper.from_array(value.reshape(dims), name))
        return True


class FakeTensorRT:
    """The module; with `rtx` it has what TensorRT-RTX has more."""

    ILogger, Builder, OnnxParser, Refitter = ILogger, Builder, OnnxParser, Refitter
    BuilderFlag = SimpleNamespace(REFIT="REFIT", TF32="TF32")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    __name__ = "fake_tensorrt"

    def __init__(self, cuda: FakeCuda, version: str = "11.4.0", rtx: bool = False) -> None:
        self.cuda, self.__version__ = cuda, version
        self.Weights = lambda array: array
        if rtx:
            self.ComputeCapability = SimpleNamespace(SM80=1, SM86=2, SM89=3, SM120=4)
            self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def Runtime(self, logger: Any) -> Any:
        def deserialize(serialized_engine: bytes) -> Engine | None:
            try:
                return Engine(self.cuda, serialized_engine, logger)
            except pickle.UnpicklingError:
                logger.log(ILogger.ERROR, "magic tag does not match")
                return None

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


def _numpy(kind: str) -> Any:
    return {"tensor(float)": np.float32, "tensor(int64)": np.int64}[kind]
