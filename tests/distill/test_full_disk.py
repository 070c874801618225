"""A disk that fills up while weights are written: a real one, of 256 kB."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from distill.checkpoint import Checkpoints
from distill.distillation import distill
from distill.files import atomic_file
from distill.pipeline import load_pipeline
from distill.recipe import Recipe
from distill.student import new_spec, save_student


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_it_is_an_os_error_also_when_torch_writes(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"), atomic_file(small_disk / "a.pt") as temporary:
        torch.save({"a": torch.zeros(1_000_000)}, temporary)
    assert list(small_disk.iterdir()) == []


def test_while_a_checkpoint_is_saved(small_disk: Path, recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(OSError, match="No space left"):
        distill(recipe(iterations=1), small_disk / "s")
    assert list((small_disk / "s" / "run" / "checkpoints").iterdir()) == []


def test_while_a_student_is_saved(small_disk: Path, recipe: Callable[..., Recipe]) -> None:
    wanted = recipe()
    teacher = load_pipeline(wanted.teacher)
    weights = teacher.transformer.state_dict()
    with pytest.raises(OSError, match="No space left"):
        save_student(teacher, weights, new_spec(teacher, wanted), small_disk / "s")
    assert list(small_disk.iterdir()) == []


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    for iteration in (999_999, 1_000_000):
        (tmp_path / f"{iteration:06d}").mkdir()
    assert Checkpoints(tmp_path, recipe()).latest() == tmp_path / "1000000"
