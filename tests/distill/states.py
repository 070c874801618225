"""Checkpoints read back for comparison."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load


def tensors(out: Path, iteration: int) -> dict[str, torch.Tensor]:
    """All tensors of a run's checkpoint, whole, however many ranks wrote it."""
    folder = out / "run" / "checkpoints" / f"{iteration:06d}"
    saved = FileSystemReader(folder).read_metadata().state_dict_metadata
    into = {name: torch.empty(about.size, dtype=about.properties.dtype) for name, about in saved.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no rank is there
        load(into, checkpoint_id=folder, no_dist=True)
    return into


def part_of(out: Path, iteration: int, name: str) -> dict[str, torch.Tensor]:
    """The tensors of one part of the state, e.g. `generator`."""
    found = {
        key.removeprefix(f"{name}/"): value
        for key, value in tensors(out, iteration).items()
        if key.startswith(f"{name}/")
    }
    assert found
    return found
