from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from distill.families import tokenize
from distill.spec import GeneratorSpec
from engines.bundle import Bundle
from engines.errors import EngineError
from engines.runtime import generate, load_runtime
from engines.runtime.graphs import to_images
from engines.runtime.onnx import SPINNING, OnnxRuntime, default_threads
from engines.runtime.sampler import MAX_SEED, sample

PROMPTS = [
    "a red circle on a white background",
    "",
    "Überraschung 猫 🎨",
    "a blue star " * 40,
    "<bos>",
    "A  B",
]
SEEDS = [0, 1, MAX_SEED, 2**40, 7, 8]


@pytest.fixture(scope="module")
def tokenizer(student: Path):
    return AutoTokenizer.from_pretrained(student / "tokenizer")


def assert_tokenized_alike(runtime: OnnxRuntime, tokenizer, student: Path, prompts: list[str]) -> None:
    expected = tokenize([tokenizer], GeneratorSpec.load(student).text, prompts)
    found = runtime.tokenize(prompts)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == np.int64
        assert np.array_equal(found[name], value.numpy()), prompts


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_are_tokenized_as_by_transformers(runtime, tokenizer, student, prompt):
    assert_tokenized_alike(runtime, tokenizer, student, [prompt])


@given(st.lists(st.text(max_size=60), min_size=1, max_size=3))
@settings(max_examples=60)
def test_any_text_is_tokenized_as_by_transformers(runtime, tokenizer, student, prompts):
    assert_tokenized_alike(runtime, tokenizer, student, prompts)


def test_pictures_have_the_size_asked_for(runtime: OnnxRuntime):
    pictures = generate(runtime, PROMPTS[:2], SEEDS[:2], steps=2, size=(96, 64))
    assert pictures.shape == (2, 64, 96, 3)
    assert pictures.dtype == np.uint8
    assert generate(runtime, [""], [0], steps=1).shape == (1, 64, 64, 3)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_same_seed_gives_the_same_picture_in_any_batch(runtime: OnnxRuntime, steps: int):
    together = generate(runtime, PROMPTS, SEEDS, steps)
    backwards = generate(runtime, PROMPTS[::-1], SEEDS[::-1], steps)[::-1]
    assert np.array_equal(together, backwards)
    for picture, prompt, seed in zip(together, PROMPTS, SEEDS):
        assert np.array_equal(picture, generate(runtime, [prompt], [seed], steps)[0])


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8, 16])
def test_graphs_are_bit_exact_in_any_batch(runtime: OnnxRuntime, batch: int):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 8, 8, 8), np.float32)
    t = rng.choice(np.float32([1, 0.75, 0.5, 0.25]), 16)
    conditioning = runtime.encode([PROMPTS[image % len(PROMPTS)] for image in range(16)])
    part = {name: value[:batch] for name, value in conditioning.items()}
    whole = runtime.velocity(x, t, conditioning)
    assert np.array_equal(runtime.velocity(x[:batch], t[:batch], part), whole[:batch])
    assert np.array_equal(runtime.decode_floats(x[:batch]), runtime.decode_floats(x)[:batch])


def test_batches_over_the_certified_size_are_cut(runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch):
    manifest = runtime.bundle.manifest.model_copy(update={"batch_sizes": (1, 2)})
    expected = generate(runtime, PROMPTS, SEEDS, steps=1)
    monkeypatch.setattr(runtime.bundle, "manifest", manifest)
    decoded = []
    decode = runtime.decode
    monkeypatch.setattr(runtime, "decode", lambda x0: decoded.append(len(x0)) or decode(x0))
    assert np.array_equal(generate(runtime, PROMPTS[:5], SEEDS[:5], steps=1), expected[:5])
    assert decoded == [2, 2, 1]


def test_zero_queries_and_zero_latents_stay_finite(runtime: OnnxRuntime):
    conditioning = runtime.encode(["", "a red star"])
    zeros = np.zeros((2, 8, 8, 8), np.float32)
    assert np.isfinite(runtime.velocity(zeros, np.float32([1, 0.25]), conditioning)).all()
    assert np.isfinite(runtime.decode_floats(zeros)).all()


def test_calls_from_many_threads_agree(runtime: OnnxRuntime):
    expected = generate(runtime, PROMPTS[:2], SEEDS[:2], steps=2)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(generate, runtime, PROMPTS[:2], SEEDS[:2], 2) for _ in range(8)]
    assert all(np.array_equal(job.result(), expected) for job in jobs)


def test_the_number_of_threads_changes_no_picture(bundle: Bundle, runtime: OnnxRuntime):
    two = load_runtime(bundle, threads=2)
    spec = bundle.spec
    latents = [sample(one, spec, PROMPTS, SEEDS, 4, (64, 64)) for one in (runtime, two)]
    assert np.array_equal(*latents)


def test_values_outside_the_range_are_clipped():
    pictures = np.float32([-9, -1, 0, 1, 9]).reshape(1, 1, 1, 5).repeat(3, axis=1)
    assert to_images(pictures)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([""], [0], 3), "3 steps: this model supports 1, 2, 4"),
        (([""], [0], 1, (64, 96)), "size 64x96: this bundle has 64x64, 96x64"),
        (([""], [-1], 1), "seed -1: expected 0"),
        ((["", ""], [0], 1), "2 prompts and 1 seeds"),
        (([], [], 1), "0 prompts and 0 seeds"),
    ],
)
def test_impossible_requests_say_what_is_possible(runtime: OnnxRuntime, arguments, message: str):
    with pytest.raises(EngineError, match=message):
        generate(runtime, *arguments)


def test_backends_go_by_name(bundle: Bundle):
    assert load_runtime(bundle, "onnxruntime", threads=1).backend == "onnxruntime-cpu"
    with pytest.raises(EngineError, match="backend 'magic': expected auto or one of tensorrt, "):
        load_runtime(bundle, "magic")
    with pytest.raises(EngineError, match="0 threads: expected at least 1"):
        load_runtime(bundle, threads=0)
    assert 1 <= default_threads() <= 8


def test_a_file_that_is_no_graph_is_named(bundle: Bundle, tmp_path: Path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(EngineError, match=r"tokenizer\.json"):
        OnnxRuntime(Bundle(tmp_path, bundle.manifest, bundle.digest))
    (tmp_path / "tokenizer/tokenizer.json").write_bytes(
        (bundle.path / "tokenizer/tokenizer.json").read_bytes()
    )
    (tmp_path / "text_encoder.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"cannot load .*text_encoder\.onnx"):
        OnnxRuntime(Bundle(tmp_path, bundle.manifest, bundle.digest))


def test_a_bundle_runs_without_the_frameworks_that_made_it(bundle: Bundle):
    script = f"""
        import sys
        from pathlib import Path
        from engines.bundle import Bundle
        from engines.runtime import generate, load_runtime
        runtime = load_runtime(Bundle.load(Path({str(bundle.path)!r})), threads=1)
        assert generate(runtime, ["a red circle"], [1], steps=1).shape == (1, 64, 64, 3)
        loaded = {{"torch", "diffusers", "transformers", "distill", "onnx"}} & set(sys.modules)
        assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120)


def test_nothing_is_reported_to_the_maker_of_the_runtime(tmp_path: Path) -> None:
    """ONNX Runtime would keep a device id below HOME, to report its use under."""
    script = """
        from engines.bundle import SHIPPED, Bundle
        from engines.runtime import load_runtime
        load_runtime(Bundle.load(SHIPPED / "shapes-sana-sid"), threads=1)
    """
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    own["HOME"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120, env=own)
    assert not list(tmp_path.rglob("*"))


def test_threads_wait_awake_during_a_call_and_sleep_between_calls(bundle: Bundle) -> None:
    """Cores that no call is using belong to others: to HTTP, to other models."""
    runtime = OnnxRuntime(bundle, threads=2)
    awake = []
    for _ in range(5):
        runtime.encode(PROMPTS)
        started = time.process_time()
        time.sleep(0.1)
        awake.append(time.process_time() - started)
    assert min(awake) < 0.005
    set_to = runtime._text_encoder._session.get_session_options().get_session_config_entry
    assert {name: set_to(name) for name in SPINNING} == SPINNING
