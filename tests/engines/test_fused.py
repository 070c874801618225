"""The whole generator as one graph draws what step calls draw, and holds no weight of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.bundle import MANIFEST, Bundle, Graph, SamplerSpec
from engines.errors import EngineError
from engines.export import fuse
from engines.export.certificate import _in_one_call, _parity
from engines.export.fuse import write_fused
from engines.runtime import generate
from engines.runtime.fused import FusedGenerator, FusedGraphs
from engines.runtime.onnx import OnnxNetworks, OnnxRuntime
from engines.runtime.sampler import sample
from fewstep.models import open_model

PROMPTS = ["a red circle", "", "a blue star on a grey background"]
STEPS = (1, 2, 4)


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's parts, to be joined."""
    return Path(shutil.copytree(bundle.path, tmp_path_factory.mktemp("fused") / "bundle"))


@pytest.fixture(scope="module")
def joined(folder: Path, bundle: Bundle) -> dict[int, Graph]:
    return {steps: write_fused(folder, bundle.spec, steps) for steps in STEPS}


@pytest.fixture(scope="module")
def fused(folder: Path, bundle: Bundle, joined: dict[int, Graph]) -> Bundle:
    """As `fewstep export --fuse` makes it."""
    files = {file.file: bundle_digest(folder / file.file) for file in joined.values()}
    changes = {"fused": joined, "files": {**bundle.manifest.files, **files}}
    manifest = bundle.manifest.model_copy(update=changes)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2))
    return Bundle.load(folder)


def bundle_digest(file: Path) -> str:
    from engines.bundle import sha256

    return sha256(file)


@pytest.mark.parametrize("renoise", ["fresh", "fixed", "ddim"])
@pytest.mark.parametrize(("steps", "size"), [(1, (64, 64)), (4, (64, 64)), (2, (96, 64))])
def test_one_call_draws_what_step_calls_draw(
    runtime: OnnxRuntime, folder: Path, bundle: Bundle, renoise: str, steps: int, size: tuple[int, int]
) -> None:
    spec = SamplerSpec.model_validate({**bundle.manifest.spec, "renoise": renoise})
    graphs = FusedGraphs(folder, spec, {steps: write_fused(folder, spec, steps)}, threads=1)
    expected = runtime.decode_floats(sample(runtime, spec, PROMPTS, [3, 4, 5], steps, size))
    found = graphs.pictures(runtime.encode(PROMPTS), [3, 4, 5], steps, size)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found) > 0


@pytest.mark.parametrize(("renoise", "rows"), [("fresh", 4), ("fixed", 1), ("ddim", 1)])
def test_there_is_an_input_row_for_each_noise_that_is_drawn(
    folder: Path, bundle: Bundle, renoise: str, rows: int
) -> None:
    spec = SamplerSpec.model_validate({**bundle.manifest.spec, "renoise": renoise})
    graph = write_fused(folder, spec, 4)
    assert graph.inputs[0].name == "noise"
    assert graph.inputs[0].shape == (rows, "batch", 8, "latent_height", "latent_width")
    assert {entry.name for entry in graph.inputs[1:]} == {"prompt_embeds", "prompt_attention_mask"}
    assert [entry.name for entry in graph.outputs] == ["pictures"]


def test_weights_are_stored_once(folder: Path, joined: dict[int, Graph], bundle: Bundle) -> None:
    write_fused(folder, bundle.spec, 4)
    model = onnx.load(folder / joined[4].file, load_external_data=False)
    assert max(len(tensor.raw_data) for tensor in model.graph.initializer) < fuse.SMALL
    parts = [onnx.load(folder / f"{name}.onnx", load_external_data=False) for name in ("denoiser", "decoder")]
    weights = sum(len(part.graph.initializer) for part in parts)
    assert len(model.graph.initializer) == weights + 14  # levels of four steps
    onnx.checker.check_model(str(folder / joined[4].file))


def test_nothing_that_depends_on_weights_alone_is_computed_for_each_step(
    folder: Path, joined: dict[int, Graph]
) -> None:
    model = onnx.load(folder / joined[4].file, load_external_data=False)
    widened = [node for node in model.graph.node if node.name.endswith(".widen")]
    names = {tensor.name for tensor in model.graph.initializer}
    assert len(widened) == sum(name.endswith(".half") for name in names)


def test_the_same_parts_give_the_same_file(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    write_fused(folder, bundle.spec, 2)
    again = Path(shutil.copytree(bundle.path, tmp_path / "again"))
    write_fused(again, bundle.spec, 2)
    assert (again / "generator-2.onnx").read_bytes() == (folder / "generator-2.onnx").read_bytes()


def test_the_certificate_measures_it(runtime: OnnxRuntime, fused: Bundle) -> None:
    graphs = FusedGraphs(fused.path, fused.spec, fused.manifest.fused, threads=1)
    networks: OnnxNetworks = runtime
    parity = _parity("fused", 2, _in_one_call(networks, graphs, fused.spec, 2, [(64, 64)]))
    assert parity.relative <= 1e-6


def test_a_bundle_with_fused_graphs_is_drawn_with_them(
    runtime: OnnxRuntime, fused: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(runtime, PROMPTS, [1, 2, 3], 4)
    model = open_model(str(fused.path))
    monkeypatch.setattr(OnnxRuntime, "velocity", lambda *_: pytest.fail("a step call"))
    assert np.array_equal(model.draw(PROMPTS, [1, 2, 3], 4, 1.0), expected)


def test_a_fused_graph_that_was_altered_is_refused(fused: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(fused.path, tmp_path / "copy"))
    file = copy / fused.manifest.fused[4].file
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(EngineError, match=r"generator-4\.onnx does not match its digest"):
        Bundle.load(copy)


def test_a_bundle_without_fused_graphs_says_how_to_get_them(runtime: OnnxRuntime, fused: Bundle) -> None:
    with pytest.raises(EngineError, match="has no fused graphs: export the student with --fuse"):
        FusedGenerator(runtime)
    one = FusedGraphs(fused.path, fused.spec, {2: fused.manifest.fused[2]}, threads=1)
    with pytest.raises(EngineError, match="4 steps: this bundle has fused graphs for 2"):
        one.pictures({}, [1], 4, (64, 64))
