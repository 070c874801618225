"""ONNX Runtime on the CPU or on a GPU: needs `onnxruntime` and `tokenizers`, nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..bundle import Bundle, SamplerSpec
from ..errors import EngineError
from .base import Conditioning
from .graphs import Graph, GraphNetworks

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
BACKENDS = {CPU: "onnxruntime-cpu", CUDA: "onnxruntime-cuda"}
PROVIDER_OPTIONS: Mapping[str, Mapping[str, str]] = {
    CPU: {},
    # Algorithms are chosen without timing them, so that a picture is the same from run to run; float32
    # means float32; and memory grows by what is asked for instead of doubling.
    CUDA: {
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
    },
}
NOT_ON_CPU = ("bf16",)
"""Precisions for which there are no kernels on a CPU."""
MAX_DEFAULT_THREADS = 8
Opener = Callable[[Path, int, str], Graph]
"""(file, threads, provider) -> what runs it."""
BATCH_DEPENDENT = ["TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider"]
"""Rewrites that move a mean to another axis, where one image is summed in another order than several:
without them a picture is the same, bit for bit, in every batch. AutoencoderDC's decoder would be 6 % faster
with them, nothing else (docs/performance.md)."""
SPINNING = {
    "session.intra_op.allow_spinning": "1",
    "session.intra_op.spin_duration_us": "200",
    "session.force_spinning_stop": "1",
}
"""The threads of a call wait for its next operation awake, as those take microseconds, but no longer than
that; between calls they sleep and leave their cores to others."""


class OnnxNetworks(GraphNetworks):
    """The three graphs in `folder`, and the tokenizers beside them.

    Args:
        folder: Where `text_encoder.onnx`, `denoiser.onnx`, `decoder.onnx` and the tokenizers lie.
        spec: The sampler's settings.
        threads: Threads one call may use; by default the usable cores, at most eight.
        provider: `CPUExecutionProvider` or `CUDAExecutionProvider`.
        opened: Loads a graph; by default as it is.

    Raises:
        EngineError: ONNX Runtime or the tokenizer library cannot read a file, or the provider is missing.
    """

    def __init__(
        self,
        folder: Path,
        spec: SamplerSpec,
        threads: int | None = None,
        provider: str = CPU,
        opened: Opener | None = None,
    ) -> None:
        check_provider(provider)
        load, threads = opened or OnnxGraph, threads or default_threads()
        super().__init__(folder, spec, lambda part: load(folder / f"{part}.onnx", threads, provider))


class OnnxRuntime(OnnxNetworks):
    """`Runtime` of one bundle on a provider of ONNX Runtime.

    Raises:
        EngineError: as `check_bundle` and `OnnxNetworks`.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, provider: str = CPU) -> None:
        check_bundle(bundle, provider)
        super().__init__(bundle.path, bundle.spec, threads, provider)
        self.bundle, self.backend = bundle, BACKENDS[provider]


def check_bundle(bundle: Bundle, provider: str) -> None:
    """
    Raises:
        EngineError: the installed ONNX Runtime has no such provider, or the provider cannot run the bundle.
    """
    check_provider(provider)
    precision = bundle.manifest.precision
    if provider == CPU and precision in NOT_ON_CPU:
        raise EngineError(
            f"ONNX Runtime does not run {precision} on a CPU: take a GPU, or export the student with --torch for"
            " --backend torch, or in another precision"
        )


def check_provider(provider: str) -> None:
    """
    Raises:
        EngineError: the installed ONNX Runtime has no such provider.
    """
    available = ort.get_available_providers()
    if provider not in available:
        raise EngineError(
            f"this ONNX Runtime has no {provider}, only {', '.join(available)}: pip install onnxruntime-gpu"
            " in place of onnxruntime"
        )


def default_threads() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MAX_DEFAULT_THREADS)


class OnnxGraph:
    """One ONNX file, called with named arrays; names it does not know are left out."""

    def __init__(self, file: Path, threads: int, provider: str = CPU) -> None:
        try:
            self._session = ort.InferenceSession(
                file,
                _options(threads),
                [(provider, PROVIDER_OPTIONS[provider])],
                disabled_optimizers=BATCH_DEPENDENT,
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this one
            raise EngineError(
                f"ONNX Runtime cannot load {file}: {error}; export the student again"
            ) from error
        if provider not in self._session.get_providers():  # it falls back to the CPU and says so in a log
            raise EngineError(f"ONNX Runtime cannot start {provider}: no GPU, or no CUDA and cuDNN for it")
        self._inputs = {entry.name for entry in self._session.get_inputs()}
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def __call__(self, arrays: Conditioning) -> dict[str, Any]:
        feed = {name: array for name, array in arrays.items() if name in self._inputs}
        return dict(zip(self._outputs, self._session.run(self._outputs, feed)))


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    for name, value in SPINNING.items():
        options.add_session_config_entry(name, value)
    options.log_severity_level = 3
    return options
