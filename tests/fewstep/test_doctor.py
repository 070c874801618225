"""`fewstep doctor`: what it says of this machine and of machines that lack something."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep import doctor
from fewstep.cli import main
from fewstep.doctor import Finding, as_text, can_serve, examine
from service.settings import Settings

from ..service.fake_runtime import FakeRuntime
from ..service.running import run_server


@pytest.fixture(autouse=True)
def free_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEWSTEP_PORT", "0")
    monkeypatch.setenv("FEWSTEP_DATA_DIR", str(tmp_path / "data" / "deep"))


def found() -> dict[str, Finding]:
    return {finding.name: finding for finding in examine()}


def test_this_machine_can_serve(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["can_serve"]
    by_name = {finding["name"]: finding for finding in said["findings"]}
    assert by_name["Python"]["found"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert "CPUExecutionProvider" in by_name["ONNX Runtime providers"]["details"]
    assert by_name["CPUs"]["details"] == len(os.sched_getaffinity(0))
    assert by_name["memory"]["details"] > 2**28
    assert list(tmp_path.iterdir()) == [], "looking makes no folders"


def test_what_is_missing_comes_with_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(finding.ok or finding.advice for finding in examine())
    assert main(["doctor"]) == 0
    assert "This machine can serve." in capsys.readouterr().out


def test_a_port_in_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("FEWSTEP_PORT", str(taken.getsockname()[1]))
        assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "choose another with --port" in said
    assert said.strip().endswith("This machine cannot serve yet: port")


def test_a_server_at_its_own_port_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As when it is run in the server's container."""
    settings = Settings(data_dir=tmp_path, log_level="error")
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        monkeypatch.setenv("FEWSTEP_PORT", running.url.rpartition(":")[2])
        port = found()["port"]
        assert port.ok
        assert "a server of fewstep answers there" in port.found
        assert can_serve(list(found().values()))


def test_too_little_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK", 2**62)
    assert not can_serve(list(found().values()))
    assert "FEWSTEP_DATA_DIR" in found()["data folder"].advice


def test_a_package_that_is_not_there() -> None:
    gone = doctor._package("no-such-package-here", True, "pip install it")
    assert not can_serve([gone])
    assert "MISSING no-such-package-here  not here; pip install it" in as_text([gone])
    assert can_serve([doctor._package("no-such-package-here", False, "")])


def test_gpus_are_asked_of_the_driver_where_torch_sees_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(doctor, "_gpus_of_torch", list)
    assert found()["GPUs"].details == [{"name": "NVIDIA H100 80GB HBM3", "memory": 81559 * 2**20}]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert not found()["GPUs"].ok


def test_a_broken_tensorrt_is_told_from_a_missing_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10 is not there')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "cannot be imported: libnvinfer.so.10" in found()["tensorrt"].advice


def test_a_missing_tensorrt_comes_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "pip install 'fewstep[tensorrt-rtx]'" in found()["tensorrt_rtx"].advice


def test_the_backend_of_each_model_and_why_not_a_faster_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = found()["backend of shapes-sana-sid"]
    assert chosen.found == "onnxruntime-cpu"
    assert "not tensorrt: the bundle has no plans; make them with `fewstep build " in chosen.advice
    assert "not onnxruntime-cuda: this ONNX Runtime has no CUDAExecutionProvider" in chosen.advice
    onnx = ["onnxruntime-cuda", "onnxruntime-cpu"]
    assert list(chosen.details) == ["tensorrt", "tensorrt-rtx", *onnx, "torch-compile", "torch"]
    monkeypatch.setenv("FEWSTEP_MODELS", f"mine={tmp_path / 'nothing'}")
    assert not can_serve(list(found().values()))
    assert "no bundle" in found()["backend of mine"].advice


def test_without_torch() -> None:
    """In an interpreter where torch, diffusers and transformers cannot be imported."""
    code = """
import sys
for name in ("torch", "diffusers", "transformers"):
    sys.modules[name] = None
from importlib import util
real = util.find_spec
util.find_spec = lambda name, *rest: None if name == "torch" else real(name, *rest)
from fewstep.cli import main
raise SystemExit(main(["doctor"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "This machine can serve." in done.stdout
