"""TensorRT and TensorRT-RTX: plans on one stream of one GPU.

From the prompt's tokens to the picture nothing but noise goes to the device and nothing comes back:
conditioning and latents are arrays in device memory. All engines share one block of scratch memory,
since on one stream no two of them ever run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from ..bundle import PARTS, Bundle, Tensor
from ..errors import EngineError
from ..tensorrt.api import (
    CachingConfig,
    ICudaEngine,
    IExecutionContext,
    IRuntime,
    IRuntimeCache,
    IRuntimeConfig,
)
from ..tensorrt.caches import runtime_cache
from ..tensorrt.cuda import Array, Memory, Stream, find_gpu, nbytes
from ..tensorrt.kit import Kit, load_kit
from ..tensorrt.plans import Plan, PlanFolder, build_command, find_plans, has_plans
from .base import Conditioning, Floats, Images
from .device import Block, DeviceArray
from .graphs import to_images
from .text import Tokenizers

Shapes = tuple[tuple[int, ...], ...]
Value = Array | DeviceArray | list[Any]
"""An input: an array, or its rows, wherever they are."""


def find_runtime(bundle: Bundle, backend: str) -> tuple[Kit, PlanFolder]:
    """What is needed to run a bundle, without loading it.

    Raises:
        EngineError: no plans for this machine, no package or no GPU; says what to do.
    """
    if not has_plans(bundle, backend):
        raise EngineError(f"the bundle has no plans; make them with `{build_command(bundle, backend)}`")
    kit = load_kit(backend)
    return kit, find_plans(bundle, backend, kit.version, find_gpu())


class TensorRTRuntime:
    """`Runtime` and `Stepping` of one bundle.

    Args:
        bundle: Which bundle.
        folder: Its plans.
        kit: The package that runs them.
        stream: Where; a new stream of the first GPU by default.

    Raises:
        EngineError: a plan cannot be loaded, or there is no GPU.
    """

    def __init__(self, bundle: Bundle, folder: PlanFolder, kit: Kit, stream: Stream | None = None) -> None:
        self.bundle, self.backend = bundle, kit.backend
        self.tokenize = Tokenizers(bundle.path, bundle.spec)
        self._stream = stream = stream or Stream()
        self._loader = kit.trt.Runtime(kit.logger)  # outlives its engines
        engines = {part: _load(self._loader, kit, folder, part) for part in PARTS}
        scratch = stream.allocate(max(engine.device_memory_size_v2 for engine in engines.values()))
        plans = folder.manifest.plans
        self._engines = {
            part: _Engine(engine, plans[part], kit, stream, scratch) for part, engine in engines.items()
        }

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self._run("text_encoder", self.tokenize(prompts))

    def velocity(self, x_BCHW: Floats, t_B: Floats, conditioning: Conditioning) -> Floats:
        # Between an input and itself there is only itself.
        inputs = {"source": x_BCHW, "source_timestep": np.ones_like(t_B), "clean": x_BCHW, "timestep": t_B}
        velocity: Floats = self._run("denoiser", {**inputs, **conditioning}, "velocity")["velocity"]
        return velocity

    def step(
        self,
        sources: list[Floats],
        source_t_B: Floats,
        cleans: list[Floats],
        t_B: Floats,
        conditioning: Conditioning,
    ) -> tuple[Floats, Floats]:
        """As in `Stepping`; the sampler's arithmetic is part of the plan."""
        inputs: dict[str, Value] = {"source": sources, "source_timestep": source_t_B}
        inputs |= {"clean": cleans, "timestep": t_B}
        found = self._run("denoiser", {**inputs, **conditioning}, "latents", "estimate")
        return found["latents"], found["estimate"]

    def decode(self, x0_BCHW: Floats) -> Images:
        return to_images(self.decode_floats(x0_BCHW))

    def decode_floats(self, x0_BCHW: Floats) -> Floats:
        """Clean latents -> pictures [B, 3, H, W] in -1 ... 1, not clipped, in host memory."""
        return np.asarray(self._run("decoder", {"latents": x0_BCHW})["pictures"])

    def _run(self, part: str, inputs: Mapping[str, Value], *outputs: str) -> dict[str, Any]:
        with self._stream.lock:
            return self._engines[part](inputs, outputs)


def _load(loader: IRuntime, kit: Kit, folder: PlanFolder, part: str) -> ICudaEngine:
    engine = loader.deserialize_cuda_engine(folder.read(part))
    if engine is None:
        raise EngineError(f"{kit.backend} cannot load the plan of {part} in {folder.path}: {kit.failure()}")
    return engine


class _Engine:
    """A plan on the device; a context, buffers and a CUDA graph for each set of shapes that it is run at."""

    def __init__(self, engine: ICudaEngine, plan: Plan, kit: Kit, stream: Stream, scratch: Memory) -> None:
        self._engine, self._plan, self._kit = engine, plan, kit
        self._stream, self._scratch = stream, scratch
        self._config, self._kernels = _configured(engine, kit, plan)
        self._calls: dict[Shapes, _Call] = {}

    def __call__(self, inputs: Mapping[str, Value], outputs: Sequence[str]) -> dict[str, Any]:
        """Runs once; of the outputs, those named or all are returned, in device memory."""
        values = [(tensor, inputs[tensor.name]) for tensor in self._plan.inputs]
        shapes = tuple(_shape(value) for _, value in values)
        call = self._calls.get(shapes) or self._prepare(shapes)
        held = [part for tensor, value in values for part in call.write(tensor, value)]
        call.run()
        found = {tensor.name: call.read(tensor) for tensor in self._plan.outputs if _wanted(tensor, outputs)}
        self._stream.synchronize()
        del held  # what was on its way to the device has arrived
        if shapes not in self._calls:
            self._calls[shapes] = call
            self._keep(call)
        return found

    def _prepare(self, shapes: Shapes) -> _Call:
        named = dict(zip((tensor.name for tensor in self._plan.inputs), shapes))
        fits = [all(span.holds(named[name]) for name, span in one.items()) for one in self._plan.profiles]
        if not any(fits):
            raise EngineError(f"{self._plan.file} was not built for {named}")
        context = self._engine.create_execution_context(self._config)
        _succeed(context.set_optimization_profile_async(fits.index(True), self._stream.handle), self._kit)
        context.set_device_memory(self._scratch.pointer, self._scratch.nbytes)
        for name, shape in named.items():
            _succeed(context.set_input_shape(name, shape), self._kit)
        return _Call(context, (*self._plan.inputs, *self._plan.outputs), self._stream, self._kit)

    def _keep(self, call: _Call) -> None:
        """TensorRT-RTX makes a CUDA graph itself and has compiled kernels; TensorRT is asked for a graph."""
        if self._kernels is None:
            call.capture()
        else:
            content = bytes(self._kernels.serialize())
            runtime_cache(self._plan.identity).write(content)


class _Call:
    """One set of shapes: a context with its buffers, which never move."""

    def __init__(
        self, context: IExecutionContext, tensors: Sequence[Tensor], stream: Stream, kit: Kit
    ) -> None:
        self._context, self._stream, self._kit = context, stream, kit
        self._shapes = {one.name: tuple(context.get_tensor_shape(one.name)) for one in tensors}
        self._buffers = {
            one.name: stream.allocate(nbytes(self._shapes[one.name], one.dtype)) for one in tensors
        }
        for name, memory in self._buffers.items():
            _succeed(context.set_tensor_address(name, memory.pointer), kit)
        self.run: Callable[[], None] = self._enqueue

    def capture(self) -> None:
        """From now on the call is one launch. It has run before, which a capture needs."""
        self.run = self._stream.capture(self._enqueue)

    def write(self, tensor: Tensor, value: Value) -> list[Array]:
        """Copies an input to its buffer; the arrays returned have to live until it has arrived."""
        pointer, held = self._buffers[tensor.name].pointer, []
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, DeviceArray):
                part.copy_to(pointer)
            else:
                held.append(np.ascontiguousarray(part, tensor.dtype))
                self._stream.upload(pointer, held[-1])
            pointer += nbytes(part.shape, tensor.dtype)
        return held

    def read(self, tensor: Tensor) -> DeviceArray:
        """A copy of an output: the next run overwrites the buffer."""
        memory = self._stream.allocate(self._buffers[tensor.name].nbytes)
        self._stream.copy(memory.pointer, self._buffers[tensor.name].pointer, memory.nbytes)
        block = Block(memory, 0, memory.nbytes)
        return DeviceArray(self._stream, [block], self._shapes[tensor.name], tensor.dtype)

    def _enqueue(self) -> None:
        _succeed(self._context.execute_async_v3(self._stream.handle), self._kit)


def _configured(engine: ICudaEngine, kit: Kit, plan: Plan) -> tuple[IRuntimeConfig, IRuntimeCache | None]:
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(kit.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if kit.rtx is None:
        return config, None
    caching = cast(CachingConfig, config)
    caching.cuda_graph_strategy = kit.rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    # Shapes are few and come again, so kernels are compiled for them at once and kept.
    caching.dynamic_shapes_kernel_specialization_strategy = (
        kit.rtx.DynamicShapesKernelSpecializationStrategy.EAGER
    )
    kernels = caching.create_runtime_cache()
    if known := runtime_cache(plan.identity).read():
        kernels.deserialize(known)
    caching.set_runtime_cache(kernels)
    return caching, kernels


def _succeed(done: bool, kit: Kit) -> None:
    if not done:
        raise EngineError(f"{kit.backend}: {kit.failure()}")


def _shape(value: Value) -> tuple[int, ...]:
    return (len(value), *value[0].shape) if isinstance(value, list) else value.shape


def _wanted(tensor: Tensor, outputs: Sequence[str]) -> bool:
    return not outputs or tensor.name in outputs
