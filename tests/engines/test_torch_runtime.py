"""Bundles with programs for PyTorch: what `--backend torch` draws, and what it says when it cannot."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.bundle import PARTS, Bundle
from engines.errors import EngineError
from engines.export import export_student
from engines.export.graphs import Part
from engines.export.program import write_program
from engines.runtime import choices, generate, load_runtime
from engines.runtime import torch as torch_runtime
from engines.runtime.onnx import OnnxRuntime
from engines.runtime.torch import TorchRuntime

pytestmark = pytest.mark.slow  # PyTorch exports and compiles for half a minute

PROMPTS = ["a red circle", "", "a blue star on a grey background"]
SEEDS = [3, 4, 5]


@pytest.fixture(scope="module")
def programmed(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("programmed") / "bundle"
    return export_student(student, out, batch_sizes=(1, 2), torch=True, say=lambda line: None)


def test_it_draws_what_onnx_runtime_draws(programmed: Bundle) -> None:
    runtime = load_runtime(programmed, "torch", threads=1)
    assert runtime.backend == "torch"
    expected = generate(OnnxRuntime(programmed, threads=1), PROMPTS, SEEDS, 4)
    for count in (1, 2, 3):  # the programs were traced with two
        found = generate(runtime, PROMPTS[:count], SEEDS[:count], 4)
        assert np.abs(found.astype(int) - expected[:count]).max() <= 1


def test_the_certificate_covers_it(programmed: Bundle) -> None:
    certificate = programmed.manifest.certificate
    measured = [one for one in certificate.measurements if one.part == "torch"]
    assert [one.batch_size for one in measured] == [1, 2]
    assert all(one.relative <= certificate.tolerance["torch"] == 1e-4 for one in measured)
    worse = certificate.model_copy(update={"tolerance": {**certificate.tolerance, "torch": -1.0}})
    assert any("torch at batch size 1 is off by" in failure for failure in worse.failures())


def test_programs_have_digests_and_name_no_paths(programmed: Bundle, student: Path) -> None:
    for part in PARTS:
        assert f"{part}.pt2" in programmed.manifest.files
        content = (programmed.path / f"{part}.pt2").read_bytes()
        for secret in (str(student.parent), torch.__path__[0], "site-packages"):
            assert secret.encode() not in content


def test_an_altered_program_is_refused(programmed: Bundle, tmp_path: Path) -> None:
    altered = Path(shutil.copytree(programmed.path, tmp_path / "altered"))
    with (altered / "denoiser.pt2").open("r+b") as stream:
        stream.seek(2000)
        stream.write(b"altered")
    with pytest.raises(EngineError, match=r"denoiser\.pt2 does not match its digest"):
        Bundle.load(altered)
    with pytest.raises(EngineError, match=r"PyTorch cannot load .*denoiser\.pt2"):
        (altered / "denoiser.pt2").write_bytes(b"no program")
        TorchRuntime(Bundle(altered, programmed.manifest, programmed.digest))


def test_a_bundle_without_programs_says_how_to_get_them(bundle: Bundle) -> None:
    for backend in ("torch", "torch-compile"):
        with pytest.raises(
            EngineError, match=r"has no programs for PyTorch: export the student with --torch"
        ):
            load_runtime(bundle, backend)
        assert "--torch" in choices(bundle)[backend]


def test_it_is_not_taken_unless_asked_for(programmed: Bundle) -> None:
    found = choices(programmed)
    assert found["torch"] == found["torch-compile"] == ""
    assert load_runtime(programmed, threads=1).backend == "onnxruntime-cpu"


def test_without_torch_the_package_is_named(programmed: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "engines.runtime.torch")
    with pytest.raises(EngineError, match="PyTorch is not installed: pip install torch"):
        load_runtime(programmed, "torch")


@pytest.mark.parametrize("precision", ["int8"])
def test_quantised_bundles_have_none(student: Path, tmp_path: Path, precision: str) -> None:
    with pytest.raises(EngineError, match="int8: programs for PyTorch are in fp32, fp16, bf16"):
        export_student(student, tmp_path / "out", precision=precision, torch=True, say=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_it_needs_nothing_of_what_made_it(programmed: Bundle) -> None:
    script = f"""
        import sys
        from pathlib import Path
        from engines.bundle import Bundle
        from engines.runtime import generate, load_runtime
        runtime = load_runtime(Bundle.load(Path({str(programmed.path)!r})), "torch", threads=1)
        assert generate(runtime, ["a red circle"], [1], steps=1).shape == (1, 64, 64, 3)
        loaded = {{"diffusers", "transformers", "distill", "onnx"}} & set(sys.modules)
        assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=300)


def test_compiled_programs_are_compiled_once_each(
    programmed: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[bool] = []

    def compile_(module: Callable[..., object], dynamic: bool) -> Callable[..., object]:
        compiled.append(dynamic)
        return module

    monkeypatch.setattr(torch_runtime.torch, "compile", compile_)
    runtime = load_runtime(programmed, "torch-compile")
    assert runtime.backend == "torch-compile"
    assert compiled == [True] * 3
    assert generate(runtime, PROMPTS, SEEDS, 1).shape == (3, 64, 64, 3)


@pytest.mark.slow
def test_compiled_it_draws_the_same(programmed: Bundle) -> None:
    pictures = [
        generate(load_runtime(programmed, name), PROMPTS[:2], SEEDS[:2], 2)
        for name in ("torch-compile", "torch")
    ]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 2


def test_inputs_go_by_the_order_of_the_program(tmp_path: Path) -> None:
    class Less(torch.nn.Module):
        def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return latents - timestep[:, None]

    inputs = {"latents": torch.randn(2, 3), "timestep": torch.rand(2)}
    part = Part("less", Less(), inputs, {"latents": {0: "batch"}, "timestep": {0: "batch"}}, ("out",))
    names: Sequence[str] = write_program(part, tmp_path)
    assert names == ("latents", "timestep")
    call = torch_runtime._program(tmp_path / "less.pt2", names, ["out"], False)
    arrays = {"timestep": np.float32([1]), "latents": np.zeros((1, 3), np.float32), "other": np.zeros(1)}
    assert np.array_equal(call(arrays)["out"], [[-1, -1, -1]])
