"""The runtime on a fake GPU: the pictures of ONNX Runtime, and where its data are meanwhile."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle import Bundle
from engines.errors import EngineError
from engines.runtime import generate
from engines.runtime.base import Stepping
from engines.runtime.device import DeviceArray
from engines.runtime.onnx import OnnxRuntime
from engines.runtime.sampler import Pending, advance, noise, sample
from engines.runtime.tensorrt import TensorRTRuntime
from engines.tensorrt.build import build_plans
from engines.tensorrt.cuda import Stream, find_gpu
from engines.tensorrt.kit import Kit, new_kit
from engines.tensorrt.plans import PlanFolder
from service.generator import Generator
from service.image import Image
from service.metrics import Metrics
from service.settings import Settings

from .fake_gpu import FakeCuda, FakeTensorRT

PROMPTS = ["a red circle on a white background", "", "a blue star above a green square"]
SEEDS = [3, 2**63 - 1, 4]
SIZE = (64, 64)


@pytest.fixture(scope="session")
def runtime(shipped: Bundle, plans: PlanFolder, kit: Kit, cuda: FakeCuda) -> TensorRTRuntime:
    return TensorRTRuntime(shipped, plans, kit, Stream(cuda))


@pytest.fixture(scope="session")
def expected(shipped: Bundle) -> OnnxRuntime:
    return OnnxRuntime(shipped, threads=1)


def since(cuda: FakeCuda, call: Any) -> list[str]:
    """The work that a call puts on the stream."""
    done = len(cuda.done)
    call()
    return [name for name in cuda.done[done:] if name != "free"]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_pictures_are_those_of_onnx_runtime(runtime: Any, expected: OnnxRuntime, steps: int) -> None:
    for _ in range(2):  # the second time CUDA graphs run
        found = generate(runtime, PROMPTS, SEEDS, steps)
        difference = np.abs(found.astype(int) - generate(expected, PROMPTS, SEEDS, steps)).max()
        assert difference <= 1


def test_each_network_is_that_of_onnx_runtime(runtime: TensorRTRuntime, expected: OnnxRuntime) -> None:
    assert isinstance(runtime, Stepping)
    assert not isinstance(expected, Stepping)
    conditioning = expected.encode(PROMPTS)
    for name, value in runtime.encode(PROMPTS).items():
        assert isinstance(value, DeviceArray)
        np.testing.assert_allclose(np.asarray(value), conditioning[name], atol=1e-5)
    x, t = noise(1, 0, (3, 8, 8, 8)), np.float32([1, 0.5, 0.25])
    found, wanted = (one.velocity(x, t, conditioning) for one in (runtime, expected))
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-4)
    np.testing.assert_allclose(runtime.decode_floats(x), expected.decode_floats(x), atol=1e-4)


@pytest.mark.parametrize("renoise", ["fresh", "fixed", "ddim"])
def test_images_at_different_steps_share_a_batch(
    runtime: TensorRTRuntime, expected: OnnxRuntime, shipped: Bundle, renoise: str
) -> None:
    spec = shipped.spec.model_copy(update={"renoise": renoise})
    shape = spec.latent_shape(SIZE)
    alone = sample(expected, spec, PROMPTS[:1], SEEDS[:1], 4, SIZE)
    text = runtime.encode(PROMPTS)
    first = Pending(SEEDS[0], 4, 0, None, None)
    for index in range(4):
        others = [Pending(seed, 2, 0, None, None) for seed in SEEDS[1:]]
        x, D = advance(runtime, spec, [first, *others], shape, text)
        first = Pending(SEEDS[0], 4, index + 1, x[0], D[0])
    assert isinstance(first.D_prev, DeviceArray)
    np.testing.assert_allclose(np.asarray(first.D_prev), alone[0], atol=1e-3)


def test_nothing_but_tokens_and_noise_goes_up_and_only_the_picture_comes_down(
    runtime: TensorRTRuntime, cuda: FakeCuda
) -> None:
    generate(runtime, PROMPTS, SEEDS, 2)
    done = since(cuda, lambda: generate(runtime, PROMPTS, SEEDS, 2))
    assert done.count("down") == 1
    assert done[-1] == "down"
    # Two token arrays; for each image's two steps its noise and, at the first, zeros; twice two levels.
    assert done.count("up") == 2 + (3 + 3) + 3 + 4
    assert done.count("graph") == 4, "text encoder, two steps, decoder"
    assert "run" not in done


def test_a_set_of_shapes_is_captured_once(runtime: TensorRTRuntime, cuda: FakeCuda) -> None:
    four = ["a red star"] * 4
    first = since(cuda, lambda: runtime.encode(four))
    captured = len(cuda.graphs)
    assert "run" in first
    assert "graph" in since(cuda, lambda: runtime.encode(four))
    assert len(cuda.graphs) == captured


def test_what_came_out_stays_when_the_next_call_runs(runtime: TensorRTRuntime) -> None:
    first = runtime.encode(["a red circle on a white background"])["prompt_embeds"]
    before = np.asarray(first).copy()
    second = runtime.encode(["something else"])["prompt_embeds"]
    assert np.array_equal(np.asarray(first), before)
    assert not np.array_equal(np.asarray(second), before)


@pytest.mark.slow
def test_memory_is_given_back(runtime: TensorRTRuntime, cuda: FakeCuda) -> None:
    def one() -> int:
        generate(runtime, PROMPTS[:1], SEEDS[:1], 1)
        gc.collect()
        runtime.encode([""])  # what waits to be freed is, when the stream is next waited for
        return len(cuda.blocks)

    one()
    assert one() == one()


def test_the_engines_share_one_block_of_scratch(shipped: Bundle, plans: PlanFolder) -> None:
    fresh = FakeCuda()
    kit = new_kit("tensorrt", FakeTensorRT(fresh))
    TensorRTRuntime(shipped, plans, kit, Stream(fresh))
    (only,) = fresh.blocks.values()
    engines = [
        kit.trt.Runtime(kit.logger).deserialize_cuda_engine(plans.read(part)) for part in plans.manifest.plans
    ]
    assert len(only) == max(engine.device_memory_size_v2 for engine in engines)


def test_shapes_that_were_not_built_are_refused(runtime: TensorRTRuntime) -> None:
    with pytest.raises(EngineError, match=r"decoder\.plan was not built for \{'latents': \(1, 8, 4, 8\)\}"):
        runtime.decode(np.zeros((1, 8, 4, 8), np.float32))
    with pytest.raises(EngineError, match="was not built for"):
        runtime.encode([""] * 17)
    assert runtime.decode(np.zeros((1, 8, 8, 8), np.float32)).shape == (1, 64, 64, 3)


def test_a_failed_run_says_what_the_library_said(shipped: Bundle, plans: PlanFolder) -> None:
    fresh = FakeCuda()
    runtime = TensorRTRuntime(shipped, plans, new_kit("tensorrt", FakeTensorRT(fresh)), Stream(fresh))
    fresh.blocks.clear()
    with pytest.raises(EngineError, match=r"CUDA: cudaMemcpyAsync failed|not enough device memory"):
        runtime.encode([""])


def test_rtx_makes_its_graphs_itself_and_keeps_its_kernels(shipped: Bundle, tmp_path: Path) -> None:
    fresh = FakeCuda(capability=(8, 9))
    kit = new_kit("tensorrt-rtx", FakeTensorRT(fresh, rtx=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        shutil.copytree(shipped.path, tmp_path / "bundle")
        bundle = Bundle.load(tmp_path / "bundle")
        folder = build_plans(bundle, kit, find_gpu(fresh), say=lambda line: None)
        runtime = TensorRTRuntime(bundle, folder, kit, Stream(fresh))
        for _ in range(2):
            runtime.encode([""])
        kept = list((tmp_path / "fewstep" / "tensorrt").iterdir())
    assert [file.read_bytes() for file in kept] == [b"kernels"]
    assert fresh.graphs == []
    assert runtime.backend == "tensorrt-rtx"


def test_the_server_keeps_conditioning_and_latents_on_the_device(
    shipped: Bundle, plans: PlanFolder, kit: Kit, cuda: FakeCuda
) -> None:
    manifest = shipped.manifest.model_copy(update={"batch_sizes": (1, 4)})
    bundle, pictures = Bundle(shipped.path, manifest, shipped.digest), []
    runtime = TensorRTRuntime(bundle, plans, kit, Stream(cuda))
    for one in (runtime, OnnxRuntime(bundle, threads=1)):
        generator = Generator("model", one, Settings(), Metrics())
        generator.warm_up()
        done = len(cuda.done)
        images = [
            Image(prompt, seed, steps, SIZE)
            for prompt, seed, steps in zip(PROMPTS, SEEDS, (1, 2, 4), strict=True)
        ]
        generator.submit(images)
        pictures.append([image.file.result(timeout=60) for image in images])
        generator.close()
        if one is runtime:
            batches = cuda.done[done:].count("down")
            assert batches <= len(images), "one for each batch that was decoded"
    sizes = [[len(file) for file in files] for files in pictures]
    assert np.allclose(*sizes, rtol=0.05)
