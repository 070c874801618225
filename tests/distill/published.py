"""Tiny folders that look like published few-step checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distill.pipeline import load_pipeline

Tiny = Callable[[str], Path]

T5_LIMIT = 512


def edit(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def published(tiny: Tiny, architecture: str, folder: Path) -> Path:
    """A copy of a tiny pipeline as `folder`, whose T5 tokenizer allows as much as a real one.

    Its weights are disturbed, so that every input of the network shows in the picture.
    """
    shutil.copytree(tiny(architecture), folder)
    for tokenizer in ("tokenizer_2", "tokenizer_3"):
        config = folder / tokenizer / "tokenizer_config.json"
        if config.is_file() and "T5" in json.loads(config.read_text())["tokenizer_class"]:
            edit(config, model_max_length=T5_LIMIT)
    transformer: Any = load_pipeline(str(folder), few_step=True).transformer
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in transformer.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=source)
    transformer.save_pretrained(folder / "transformer")
    return folder
