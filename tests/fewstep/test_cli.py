"""The command line: exit codes, one-line errors, and that every promised command is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fewstep.cli import main


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    try:
        code = main(list(arguments))
    except SystemExit as stop:
        code = int(stop.code or 0)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return code, lines[0]


def write(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_wrong_requests_exit_with_2_and_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    steps, key = write(tmp_path, "teacher: t\nsteps: 5\n"), tmp_path / "key.yaml"
    key.write_text("teacher: t\nbach: 1\n")
    cases = {
        ("distill", "nowhere"): "no recipe 'nowhere'",
        ("distill", steps): "less than or equal to 4 (got 5)",
        ("distill", str(key)): "unknown key 'bach'",
        ("distill", steps, "--set", "steps=4"): "no model 't'",
        ("sample", "nowhere", "a cat"): "no model 'nowhere'",
        ("sample", "shapes-sana", "a cat", " "): "prompt 2: the prompt is empty",
        ("sample", "shapes-sana", "x" * 100_000): "prompt of 100000 characters; at most 4000",
        ("sample", "shapes-sana", "\udcff"): "the prompt is not text",
        ("sample", "shapes-sana", "x", "--seed", "-1"): "expected a whole number from 0",
        ("evaluate", "shapes-sana", "--steps", "many"): "expected whole numbers with commas",
        ("export", str(tmp_path), "--out", str(tmp_path / "b")): "model_index.json",
        ("export", "shapes-sana", "--out", str(tmp_path / "b"), "--size", "64"): "expected WxH",
        ("import", "shapes-sana", "--out", str(tmp_path / "b")): "none of the few-step models known here",
        ("import", "shapes-sana"): "required: --out",
        ("import", "a/b", "--out", str(tmp_path)): "exists and is not an empty folder",
        ("import", "shapes-sana", "--out", "x", "--sampler", "heun"): "invalid choice: 'heun'",
        ("import", "shapes-sana", "--out", "x", "--sampler", "sid", "--steps", "8"): "counts from 1 to 4",
        ("serve", "--port", "99999"): "port",
        ("serve", "--model", "x="): "is not NAME=BUNDLE",
        ("serve", "--model", "x=nowhere"): "nowhere",
        ("shapes", "train-teacher", "--autoencoder", str(tmp_path), "--out", "x"): "no autoencoder",
        ("paint",): "invalid choice: 'paint'",
        ("distill",): "required: recipe",
    }
    for arguments, message in cases.items():
        code, line = fails(capsys, *arguments)
        assert code == 2, arguments
        assert message in line
        assert line.startswith("fewstep")


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("distill", "evaluate", "sample", "export", "serve", "shapes"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"fewstep {command}" in capsys.readouterr().out


def test_serve_help_has_a_line_for_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    from service.settings import Settings

    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    for name in set(Settings.model_fields) - {"models"}:
        assert f"--{name.replace('_', '-')}" in text
        assert f"FEWSTEP_{name.upper()}" in text.replace("\n", "").replace(" ", "")


def test_work_that_fails_exits_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path, tmp_path: Path
) -> None:
    from distill import distillation
    from distill.errors import Interrupted, RunFailed

    recipe = write(tmp_path, f"teacher: {tiny_teacher}\n")
    full = OSError(28, "No space left on device")
    for error, code in (
        (RunFailed("NaN"), 1),
        (full, 1),
        (Interrupted("saved"), 130),
        (KeyboardInterrupt(), 130),
    ):

        def broken(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(distillation, "distill", broken)
        assert fails(capsys, "distill", recipe)[0] == code


def test_renders_are_captioned_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shapes", "render", "--count", "3", "--out", str(tmp_path / "r")]) == 0
    assert len(list((tmp_path / "r").glob("*.png"))) == len(list((tmp_path / "r").glob("*.txt"))) == 3
    assert Image.open(tmp_path / "r" / "00000.png").size == (64, 64)


def test_a_tiny_line_from_the_command_line(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """distill -> sample -> evaluate, each on the folder that the one before left."""
    recipe = write(tmp_path, f"teacher: {tiny_teacher}\nprompts: shapes:train\niterations: 2\nbatch: 2\n")
    student = str(tmp_path / "student")
    assert main(["distill", recipe, "--out", student]) == 0
    assert main(["sample", student, "a red circle", "a blue star", "--out", str(tmp_path / "s.png")]) == 0
    assert Image.open(tmp_path / "s.png").size == (2 * 66 + 2, 68)
    capsys.readouterr()
    measure = ["--images", "4", "--seeds", "0,1", "--steps", "1", "--json", "--card", "--floor"]
    assert main(["evaluate", student, *measure]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(rows) == ["fresh renders", "student, 1 step"]
    assert rows["fresh renders"]["accuracy"]["mean"] == 1
    assert rows["student, 1 step"]["seeds"] == [0, 1]
    assert json.loads((tmp_path / "student" / "quality.json").read_text()) == rows
    assert fails(capsys, "sample", student, "x", "--steps", "3") == (
        2,
        f"fewstep sample: {student}: 3 steps; this student offers [1, 2, 4]",
    )


def test_a_teacher_can_be_measured_as_an_untrained_student(
    tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--few-step", "--images", "2", "--seeds", "0", "--json"]
    assert main(["evaluate", str(tiny_teacher), *few]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(rows) == ["tiny-sana, 1 step", "tiny-sana, 2 steps", "tiny-sana, 4 steps"]


def test_serving_never_loads_torch() -> None:
    code = """
import sys
import fewstep.serve, service.server
from fewstep.cli import parser
parser()
print('torch' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("arguments", [["--version"], ["shapes", "--help"]])
def test_as_a_module(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "fewstep", *arguments], capture_output=True, text=True)
    assert done.returncode == 0
    assert "fewstep" in done.stdout
