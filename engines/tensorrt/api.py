"""What is used of TensorRT's Python API, with types: 10.16 ... 11.x and TensorRT-RTX have it alike.

The packages bring no types of their own. Whatever is not named here does not pass the type checker,
and every name and signature here is compared with the real bindings by a test; so together they show
that the code calls nothing that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Buffer = Any
"""What has the buffer protocol: `bytes`, a memory map, an `IHostMemory`."""
Enum = Any


class ILogger(Protocol):
    """Is told what the library does; a class of ours derives from the module's."""

    INTERNAL_ERROR: Enum
    ERROR: Enum

    def log(self, severity: Enum, msg: str) -> None: ...


class ITensor(Protocol):
    name: str
    shape: Sequence[int]


class INetworkDefinition(Protocol):
    num_inputs: int

    def get_input(self, index: int) -> ITensor: ...


class IParserError(Protocol):
    def desc(self) -> str: ...
    def node_operator(self) -> str: ...


class IParser(Protocol):
    num_errors: int

    def parse(self, model: Buffer, path: str) -> bool: ...
    def get_error(self, index: int) -> IParserError: ...


class IOptimizationProfile(Protocol):
    def set_shape(
        self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]
    ) -> None: ...


class IHostMemory(Protocol):
    """Memory of the library that can be read as bytes."""

    def __buffer__(self, flags: int, /) -> memoryview: ...


class ITimingCache(Protocol):
    def serialize(self) -> IHostMemory: ...


class IBuilderConfig(Protocol):
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...
    def set_flag(self, flag: Enum) -> None: ...
    def clear_flag(self, flag: Enum) -> None: ...
    def create_timing_cache(self, serialized_timing_cache: Buffer) -> ITimingCache: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> ITimingCache: ...


class PortableConfig(IBuilderConfig, Protocol):
    """TensorRT-RTX alone: plans for GPUs that are not here."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: Enum, index: int) -> bool: ...


class IBuilder(Protocol):
    def create_network(self, flags: int) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None: ...


class IRuntimeConfig(Protocol):
    def set_execution_context_allocation_strategy(self, strategy: Enum) -> None: ...


class IRuntimeCache(Protocol):
    """TensorRT-RTX alone: kernels that were compiled on this GPU."""

    def serialize(self) -> IHostMemory: ...
    def deserialize(self, blob: Buffer) -> bool: ...


class CachingConfig(IRuntimeConfig, Protocol):
    """TensorRT-RTX alone."""

    cuda_graph_strategy: Enum
    dynamic_shapes_kernel_specialization_strategy: Enum

    def create_runtime_cache(self) -> IRuntimeCache: ...
    def set_runtime_cache(self, cache: IRuntimeCache) -> bool: ...


class IExecutionContext(Protocol):
    def set_device_memory(self, memory: int, size: int) -> None: ...
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class ICudaEngine(Protocol):
    device_memory_size_v2: int
    refittable: bool

    def create_runtime_config(self) -> IRuntimeConfig: ...
    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext: ...
    def serialize(self) -> IHostMemory: ...


class IRuntime(Protocol):
    def deserialize_cuda_engine(self, serialized_engine: Buffer) -> ICudaEngine | None: ...


class Weights(Protocol):
    size: int
    dtype: Enum


class IRefitter(Protocol):
    def get_all_weights(self) -> list[str]: ...
    def get_missing_weights(self) -> list[str]: ...
    def get_weights_prototype(self, weights_name: str) -> Weights: ...
    def set_named_weights(self, name: str, weights: Weights) -> bool: ...
    def refit_cuda_engine(self) -> bool: ...


class BuilderFlag(Protocol):
    REFIT: Enum
    TF32: Enum


class NetworkDefinitionCreationFlag(Protocol):
    STRONGLY_TYPED: Enum


class ExecutionContextAllocationStrategy(Protocol):
    USER_MANAGED: Enum


class CudaGraphStrategy(Protocol):
    """TensorRT-RTX alone."""

    WHOLE_GRAPH_CAPTURE: Enum


class DynamicShapesKernelSpecializationStrategy(Protocol):
    """TensorRT-RTX alone."""

    EAGER: Enum


class Module(Protocol):
    """`tensorrt` or `tensorrt_rtx`."""

    __version__: str
    ILogger: type[Any]
    BuilderFlag: BuilderFlag
    NetworkDefinitionCreationFlag: NetworkDefinitionCreationFlag
    ExecutionContextAllocationStrategy: ExecutionContextAllocationStrategy
    Builder: Callable[[Any], IBuilder]
    OnnxParser: Callable[[INetworkDefinition, Any], IParser]
    Runtime: Callable[[Any], IRuntime]
    Refitter: Callable[[ICudaEngine, Any], IRefitter]
    Weights: Callable[[Any], Any]


class RtxModule(Module, Protocol):
    """`tensorrt_rtx`."""

    ComputeCapability: Any
    CudaGraphStrategy: CudaGraphStrategy
    DynamicShapesKernelSpecializationStrategy: DynamicShapesKernelSpecializationStrategy
