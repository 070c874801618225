"""Large students are exported part by part, their weights in files beside the graphs.

Here a small one is, with the limits set to nothing: it has to become the same generator.
"""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import uses_external_data

from distill.spec import GeneratorSpec
from engines.bundle import PARTS, Bundle
from engines.errors import EngineError
from engines.export import export_student, student, trace
from engines.export.external import array_of, halved, in_memory, is_external
from engines.export.graphs import parts_of
from engines.export.quantize import with_dynamic_scales
from engines.export.scan import foreign_constants
from engines.export.student import Parts, load_student
from engines.export.trace import trace_part
from engines.runtime import generate
from engines.runtime.onnx import OnnxRuntime

pytestmark = pytest.mark.slow  # an export of its own

PROMPTS = ["a red circle", ""]


@pytest.fixture(scope="module")
def small_limits(bundle: Bundle) -> Any:
    """For all that is exported from here on: the other bundle was made before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "PROTOBUF_LIMIT", 0)
        patch.setattr(student, "LARGE", 0)
        yield


@pytest.fixture(scope="module")
def streamed(small_limits: None, student: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("streamed") / "bundle"
    return export_student(student, out, batch_sizes=(1, 2), fuse=True, say=lambda line: None)


def test_weights_lie_beside_the_graphs_and_have_digests(streamed: Bundle) -> None:
    for part in PARTS:
        graph = onnx.load(streamed.path / f"{part}.onnx", load_external_data=False)
        assert is_external(graph)
        assert f"{part}.onnx.data" in streamed.manifest.files
        assert (streamed.path / f"{part}.onnx").stat().st_size < 1_000_000
    assert not [file for file in streamed.path.iterdir() if file.name.startswith(".")]


def test_it_is_the_generator_that_it_is_in_one_piece(streamed: Bundle, bundle: Bundle) -> None:
    assert streamed.manifest.certificate.failures() == []
    pictures = [generate(OnnxRuntime(one, threads=1), PROMPTS, [1, 2], 4) for one in (streamed, bundle)]
    assert np.array_equal(*pictures)
    whole = {(one.part, one.batch_size): one for one in bundle.manifest.certificate.measurements}
    for one in streamed.manifest.certificate.measurements:
        if one.part in PARTS:
            assert one.relative == pytest.approx(whole[one.part, one.batch_size].relative, rel=0.5)


def test_weights_that_are_exact_in_half_precision_are_stored_so(streamed: Bundle, bundle: Bundle) -> None:
    for part in PARTS:
        sizes = [
            sum(file.stat().st_size for file in one.path.glob(f"{part}.onnx*")) for one in (streamed, bundle)
        ]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_fused_graphs_point_at_the_same_bytes(streamed: Bundle) -> None:
    graph = onnx.load(streamed.path / "generator-4.onnx", load_external_data=False)
    outside = [tensor for tensor in graph.graph.initializer if uses_external_data(tensor)]
    places = {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}
    assert places == {"denoiser.onnx.data", "decoder.onnx.data"}


@pytest.mark.slow
def test_the_same_student_gives_the_same_bundle(
    small_limits: None, streamed: Bundle, student: Path, tmp_path: Path
) -> None:
    again = export_student(student, tmp_path / "b", batch_sizes=(1, 2), fuse=True, say=lambda line: None)
    assert again.digest == streamed.digest


def test_one_part_is_in_memory_at_a_time(student: Path) -> None:
    loaded = load_student(student)
    parts = Parts(student, loaded.family, apart=True)
    assert parts.tokenizer is parts.tokenizer
    encoder = weakref.ref(parts.text_encoder)
    assert parts.text_encoder is encoder()
    denoiser = weakref.ref(parts.transformer)
    assert encoder() is None
    assert parts.vae is not None
    assert denoiser() is None
    assert parts.text_encoder is not None


def test_a_part_that_was_traced_goes_before_the_next_is_loaded(student: Path) -> None:
    loaded = load_student(student)
    parts = Parts(student, loaded.family, apart=True)
    weights = []
    for part in parts_of(loaded.family, loaded.spec, parts):
        assert all(weight() is None for weight in weights)
        weights = [weakref.ref(weight) for weight in part.module.parameters()]
        assert weights
        del part


def test_weight_bytes_are_those_of_the_loaded_networks(student: Path) -> None:
    loaded = load_student(student)
    modules = (loaded.pipeline.text_encoder, loaded.pipeline.transformer, loaded.pipeline.vae)
    held = sum(weight.nbytes for module in modules for weight in module.state_dict().values())
    assert loaded.weight_bytes == held
    assert loaded.patch == loaded.pipeline.transformer.config.patch_size


def test_a_damaged_file_of_weights_is_named(student: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(student, tmp_path / "spoilt"))
    file = next((spoilt / "transformer").glob("*.safetensors"))
    file.write_bytes(b"\xff" * 64)
    with pytest.raises(EngineError, match=f"cannot read {file}"):
        load_student(spoilt)


def test_a_transformer_without_configuration_is_named(student: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(student, tmp_path / "spoilt"))
    (spoilt / "transformer" / "config.json").unlink()
    with pytest.raises(EngineError, match=r"config\.json"):
        load_student(spoilt)


class Line(torch.nn.Module):
    """[B, 64] -> [B, 64]; one weight is exact in half precision, one is not."""

    def __init__(self) -> None:
        super().__init__()
        self.exact, self.other = torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False)
        with torch.no_grad():
            self.exact.weight.copy_(self.exact.weight.half())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(self.other(self.exact(x)))


@pytest.fixture
def line(small_limits: None, tmp_path: Path) -> tuple[Line, onnx.ModelProto]:
    from engines.export.graphs import Part

    torch.manual_seed(0)
    module = Line()
    part = Part("line", module, {"x": torch.randn(2, 64)}, {"x": {0: "batch"}}, ("y",))
    return module, trace_part(part, tmp_path)


def test_outside_weights_are_mapped_and_can_be_taken_in(
    line: tuple[Line, onnx.ModelProto], tmp_path: Path
) -> None:
    module, model = line
    assert is_external(model)
    assert model.ByteSize() < 4096
    mapped = [array_of(tensor, tmp_path) for tensor in model.graph.initializer if uses_external_data(tensor)]
    assert all(isinstance(array, np.memmap) for array in mapped)
    assert list(foreign_constants(model, module, tmp_path)) == []
    inside = in_memory(model, tmp_path)
    assert not is_external(inside)
    assert not list(tmp_path.glob("*.data"))
    assert with_dynamic_scales(inside).graph.node


def test_only_exact_weights_are_halved(line: tuple[Line, onnx.ModelProto], tmp_path: Path) -> None:
    module, model = line
    before = (tmp_path / "line.onnx.data").stat().st_size
    names = halved(model, tmp_path, "line.onnx.data", trace.exactly_half)
    assert len(names) == 1
    assert (tmp_path / "line.onnx.data").stat().st_size == before * 3 // 4
    half = next(tensor for tensor in model.graph.initializer if tensor.name == f"{names[0]}.half")
    stored = array_of(half, tmp_path).astype(np.float32)
    weight = module.exact.weight.detach().numpy()
    assert np.array_equal(stored, weight) or np.array_equal(stored, weight.T)


def test_a_foreign_constant_is_found_outside_too(line: tuple[Line, onnx.ModelProto], tmp_path: Path) -> None:
    module, model = line
    file = tmp_path / "line.onnx.data"
    content = np.fromfile(file, np.float32)
    content[0] += 1
    content.tofile(file)
    assert any("is no weight of the network" in found for found in foreign_constants(model, module, tmp_path))


def test_the_disk_is_looked_at_before_a_network_is_loaded(
    small_limits: None, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(Parts, "_hold", lambda *_: pytest.fail("a network was loaded"))
    with pytest.raises(EngineError, match="not enough disk: the export needs"):
        export_student(student, tmp_path / "out", say=lambda line: None)


def test_the_specification_is_kept_whole(streamed: Bundle, student: Path) -> None:
    assert GeneratorSpec.model_validate(streamed.manifest.spec) == GeneratorSpec.load(student)
    assert json.loads((streamed.path / "bundle.json").read_text())["quality"] == {"prompt_accuracy": 0.5}


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_weights_beside_a_graph_are_vouched_for_like_it(
    streamed: Bundle, tmp_path: Path, damage: str
) -> None:
    copy = Path(shutil.copytree(streamed.path, tmp_path / "copy"))
    file = copy / "denoiser.onnx.data"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content if damage == "changed" else content[:-100])
    said = "is missing" if damage == "missing" else "does not match its digest"
    with pytest.raises(EngineError, match=rf"denoiser\.onnx\.data {said}; fetch or export it again"):
        Bundle.load(copy)
