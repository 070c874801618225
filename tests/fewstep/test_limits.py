"""Values at and beyond the edge of what a flag may be: exit code 2, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fewstep.cli import main


def code(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize(
    "flags",
    [
        ("--images", "1"),  # one picture has no spread
        ("--steps", "0"),
        ("--seeds", str(10**20)),
        ("--guidance", "nan"),
        ("--guidance", "inf"),
    ],
)
def test_evaluate(flags: tuple[str, str]) -> None:
    assert code("evaluate", "shapes-sana-sid", "--images", "2", "--seeds", "0", "--steps", "1", *flags) == 2


@pytest.mark.parametrize("device", ["nonsense", "cuda"])
def test_a_device_that_is_not_there(device: str, tmp_path: Path) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("it is there")
    out = tmp_path / "x.png"
    assert code("sample", "shapes-sana-sid", "x", "--steps", "1", "--device", device, "--out", str(out)) == 2
    assert not out.exists()


def test_guidance_that_is_no_number(tmp_path: Path) -> None:
    out = str(tmp_path / "x.png")
    assert code("sample", "shapes-sana", "x", "--steps", "1", "--guidance", "nan", "--out", out) == 2
