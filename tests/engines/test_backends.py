"""Which backend a bundle runs on, why, and what is said when it is not the one asked for."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnxruntime
import pytest

from engines.bundle import SHIPPED, Bundle
from engines.errors import EngineError
from engines.runtime import BACKENDS, choices, generate, load_runtime
from engines.runtime import tensorrt as tensorrt_runtime
from engines.tensorrt import cuda as cuda_module
from engines.tensorrt.cuda import Stream, find_gpu
from engines.tensorrt.kit import Kit
from engines.tensorrt.plans import PlanFolder

from .fake_gpu import FakeCuda


@pytest.fixture(scope="module")
def bare() -> Bundle:
    """A bundle without plans."""
    return Bundle.load(SHIPPED / "shapes-sana-sid")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, kit: Kit) -> None:
    """A machine with the fake GPU and the fake TensorRT."""
    monkeypatch.setattr(cuda_module, "load_cudart", lambda: cuda)
    monkeypatch.setattr(tensorrt_runtime, "load_kit", lambda backend: kit)


def test_without_a_gpu_it_is_the_cpu_and_the_log_says_why(
    bare: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="engines.runtime"):
        assert load_runtime(bare, threads=1).backend == "onnxruntime-cpu"
    *reasons, chosen = caplog.messages
    assert chosen == "bundle=shapes-sana-sid runs on onnxruntime-cpu"
    assert [line.split(" not on ")[1].split(":")[0] for line in reasons] == list(BACKENDS)[:3]
    assert f"fewstep build {bare.path} --backend tensorrt`" in reasons[0]
    assert "pip install onnxruntime-gpu" in reasons[2]


def test_what_keeps_each_backend_from_running_is_known_without_loading(bare: Bundle) -> None:
    found = choices(bare)
    backends = ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu", "torch-compile", "torch"]
    assert list(found) == backends
    assert found["onnxruntime-cpu"] == ""
    assert all(problem for name, problem in found.items() if name != "onnxruntime-cpu")


def test_with_plans_and_a_gpu_it_is_tensorrt(
    gpu: None, shipped: Bundle, plans: PlanFolder, caplog: pytest.LogCaptureFixture
) -> None:
    assert choices(shipped)["tensorrt"] == ""
    with caplog.at_level(logging.INFO, logger="engines.runtime"):
        runtime = load_runtime(shipped)
    assert runtime.backend == "tensorrt"
    assert caplog.messages == ["bundle=shapes-sana-sid runs on tensorrt"]
    assert generate(runtime, ["a red star"], [1], 1).shape == (1, 64, 64, 3)


def test_a_plan_that_does_not_load_is_passed_over(
    gpu: None,
    shipped: Bundle,
    plans: PlanFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(PlanFolder, "read", lambda self, part: b"\x80\x04altered")
    with caplog.at_level(logging.INFO, logger="engines.runtime"):
        assert load_runtime(shipped, threads=1).backend == "onnxruntime-cpu"
    why = next(line for line in caplog.messages if " not on tensorrt: " in line)
    assert "cannot load the plan of text_encoder" in why
    assert why.endswith("magic tag does not match")
    with pytest.raises(EngineError, match="magic tag does not match"):
        load_runtime(shipped, "tensorrt")


def test_plans_without_the_package_name_the_extra(shipped: Bundle, plans: PlanFolder) -> None:
    with pytest.raises(EngineError, match=r"pip install 'fewstep\[tensorrt\]'"):
        load_runtime(shipped, "tensorrt")


def test_plans_without_a_gpu(
    shipped: Bundle, plans: PlanFolder, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here for real: NVIDIA's bindings are asked, and there is no driver."""
    pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
    if _gpu_here():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(tensorrt_runtime, "load_kit", lambda backend: kit)
    with pytest.raises(EngineError, match="no GPU to be used here: CUDA: cudaGetDeviceProperties failed"):
        load_runtime(shipped, "tensorrt")
    with pytest.raises(EngineError, match="CUDA: cudaStreamCreateWithFlags failed with cudaError"):
        Stream()


def _gpu_here() -> bool:
    try:
        find_gpu()
    except EngineError:
        return False
    return True


def test_onnx_runtime_without_the_provider(bare: Bundle) -> None:
    with pytest.raises(EngineError) as refusal:
        load_runtime(bare, "onnxruntime-cuda")
    assert "has no CUDAExecutionProvider, only" in str(refusal.value)
    assert "CPUExecutionProvider: pip install onnxruntime-gpu" in str(refusal.value)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_not_taken_for_one_that_does(
    bare: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime goes on on the CPU, whether CUDA is missing or cannot be initialised."""
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(EngineError, match="cannot start CUDAExecutionProvider: no GPU, or no CUDA"):
        load_runtime(bare, "onnxruntime-cuda")
    assert load_runtime(bare, threads=1).backend == "onnxruntime-cpu"


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="no CUDA")
def test_onnx_runtime_draws_the_same_on_a_gpu(bare: Bundle) -> None:
    found = load_runtime(bare, "onnxruntime-cuda")
    assert found.backend == "onnxruntime-cuda"
    both = (found, load_runtime(bare, "onnxruntime-cpu"))
    pictures: list[Any] = [generate(one, ["a red star"] * 2, [1, 2], 4) for one in both]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 2
