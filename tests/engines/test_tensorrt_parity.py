"""The measurement that decides whether plans are kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle import SHIPPED, Bundle
from engines.errors import EngineError
from engines.runtime.base import Floats
from engines.runtime.onnx import OnnxRuntime
from engines.runtime.tensorrt import TensorRTRuntime
from engines.tensorrt import add
from engines.tensorrt.add import add_plans
from engines.tensorrt.cuda import Gpu, Stream
from engines.tensorrt.kit import Kit
from engines.tensorrt.parity import check_parity
from engines.tensorrt.plans import PlanFolder

from .fake_gpu import FakeCuda


@pytest.fixture(scope="module")
def few(shipped: Bundle) -> Bundle:
    manifest = shipped.manifest.model_copy(update={"batch_sizes": (1, 4)})
    return Bundle(shipped.path, manifest, shipped.digest)


@pytest.fixture(scope="module")
def expected(few: Bundle) -> OnnxRuntime:
    return OnnxRuntime(few, threads=1)


def test_every_part_is_measured_at_every_batch_size(
    few: Bundle, expected: OnnxRuntime, plans: PlanFolder, kit: Kit, cuda: FakeCuda
) -> None:
    measured = check_parity(few, expected, TensorRTRuntime(few, plans, kit, Stream(cuda)))
    parts = ["text_encoder", "denoiser", "decoder", "picture"]
    assert [(one.part, one.batch_size) for one in measured] == [(part, n) for n in (1, 4) for part in parts]
    assert all(one.psnr_db is None or one.psnr_db >= 60 for one in measured)
    assert all(one.relative < 1e-4 for one in measured if one.part != "picture")


class Off:
    """ONNX Runtime with a mistake in one network, for the last image of a batch alone."""

    def __init__(self, real: OnnxRuntime, part: str, mistake: float) -> None:
        self.real, self.part, self.mistake = real, part, mistake

    def _off(self, part: str, value: Any) -> Any:
        if part != self.part:
            return value
        value = value.copy()
        value[-1] += self.mistake
        return value

    def encode(self, prompts: Any) -> Any:
        found = self.real.encode(prompts)
        return {**found, "prompt_embeds": self._off("text_encoder", found["prompt_embeds"])}

    def velocity(self, x: Floats, t: Floats, conditioning: Any) -> Any:
        return self._off("denoiser", self.real.velocity(x, t, conditioning))

    def decode_floats(self, x: Floats) -> Any:
        return self._off("decoder", self.real.decode_floats(x))

    def decode(self, x: Floats) -> Any:
        return self.real.decode(x)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("part", ["text_encoder", "denoiser", "decoder"])
@pytest.mark.parametrize("mistake", [0.1, np.nan])
def test_plans_that_are_off_are_refused(
    few: Bundle, expected: OnnxRuntime, part: str, mistake: float
) -> None:
    one = Bundle(few.path, few.manifest.model_copy(update={"batch_sizes": (1,)}), few.digest)
    with pytest.raises(EngineError, match=f"do not match ONNX Runtime: .*{part} at batch size 1 is off by"):
        check_parity(one, expected, Off(expected, part, mistake))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, kit: Kit, cuda: FakeCuda, tmp_path: Path) -> None:
    """One with the fake GPU and the fake TensorRT."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(add, "load_kit", lambda backend: kit)
    monkeypatch.setattr(add, "find_gpu", lambda: Gpu("Fake GPU", "9.0"))
    monkeypatch.setattr("engines.tensorrt.cuda.load_cudart", lambda: cuda)
    monkeypatch.setattr(add, "check_parity", lambda bundle, expected, found: found.encode([""]) and ())


def test_plans_are_run_before_they_are_kept(
    machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = SHIPPED / "shapes-sana-sid", tmp_path / "out"

    def wrong(*_: object) -> None:
        raise EngineError("the plans do not match ONNX Runtime")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(add, "check_parity", wrong)
        with pytest.raises(EngineError, match="do not match"):
            add_plans(source, "tensorrt", out=out, say=lambda line: None)
    assert not out.exists()
    said: list[str] = []
    folder = add_plans(source, "tensorrt", out=out, refittable=True, say=said.append)
    assert folder.path.parent == out / "tensorrt"
    assert said[-1] == "comparing with ONNX Runtime"
    again = tmp_path / "again"
    refitted = add_plans(source, "tensorrt", out=again, refit_from=out, say=said.append)
    assert said[-4:-1] == [f"refitting {part}" for part in ("text_encoder", "denoiser", "decoder")]
    assert refitted.manifest.target == folder.manifest.target


def test_a_folder_that_is_no_bundle_is_not_written_over(machine: None, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(EngineError, match="exists and is not a bundle"):
        add_plans(SHIPPED / "shapes-sana-sid", "tensorrt", out=tmp_path, say=lambda line: None)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_copy_that_does_not_fit_is_not_begun(
    machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(EngineError, match=r"out: not enough disk: the copy needs 8 MB and 1 MB are free"):
        add_plans(SHIPPED / "shapes-sana-sid", "tensorrt", out=tmp_path / "out", say=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_while_copying_is_said_in_one_line(
    machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: str, target: str, **_: Any) -> None:
        raise shutil.Error([(source, target, "No space left on device"), (source, target, "again")])

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(EngineError, match=r"^cannot write .*/out: No space left on device$"):
        add_plans(SHIPPED / "shapes-sana-sid", "tensorrt", out=tmp_path / "out", say=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_refit_needs_the_gpu(machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add, "_runs", lambda *_: False)
    shutil.copytree(SHIPPED / "shapes-sana-sid", tmp_path / "bundle")
    with pytest.raises(EngineError, match="a refit needs the GPU"):
        add_plans(tmp_path / "bundle", "tensorrt", refit_from=SHIPPED / "shapes-sana-sid")
