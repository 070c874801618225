"""Galleries: many pictures drawn into a folder, where a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DistillError
from ..evaluation import Generator
from ..files import write_json
from ..pictures import save_picture
from ..progress import progress

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Order:
    """What is to be drawn, and by what.

    Attributes:
        model: The name of what draws.
        digest: SHA-256 of it.
        steps: Steps of each picture.
        guidance: Guidance scale, of a teacher.
        batch: Pictures drawn at once; rounding depends on it.
        prompts: One for each picture.
        seeds: As many.
    """

    model: str
    digest: str
    steps: int
    guidance: float
    batch: int
    prompts: Sequence[str]
    seeds: Sequence[int]

    def manifest(self) -> dict[str, Any]:
        pictures = [
            {"file": f"{number:06d}.png", "seed": seed, "prompt": prompt}
            for number, (seed, prompt) in enumerate(zip(self.seeds, self.prompts, strict=True))
        ]
        settings = {name: getattr(self, name) for name in ("model", "digest", "steps", "guidance", "batch")}
        return {**settings, "pictures": pictures}


def draw_gallery(folder: Path, order: Order, generator: Generator, label: str) -> list[Path]:
    """Draws into `folder` what of `order` is not there yet; returns the files of all its pictures.

    A batch is drawn whole or not at all, so that the pictures are the same, bit by bit, however often
    the work was stopped. Progress is shown under `label`.

    Raises:
        DistillError: `folder` holds something else; says what differs.
    """
    manifest = order.manifest()
    _claim(folder, manifest)
    files = [folder / picture["file"] for picture in manifest["pictures"]]
    batches = [slice(start, start + order.batch) for start in range(0, len(files), order.batch)]
    missing = [batch for batch in batches if not all(file.is_file() for file in files[batch])]
    there = len(files) - sum(len(files[batch]) for batch in missing)
    with progress(f"drawing {label}", len(files), there) as shown:
        for batch in missing:
            images = generator(order.prompts[batch], order.seeds[batch])
            for file, image in zip(files[batch], images, strict=True):
                save_picture(Image.fromarray(image), file)
            shown.update(shown.done + len(images))
    return files


def _claim(folder: Path, manifest: dict[str, Any]) -> None:
    """Makes `folder` this order's, or sees that it already is."""
    path = folder / MANIFEST
    if path.is_file():
        _compare(path, manifest)
    elif folder.exists() and any(folder.iterdir()):
        raise DistillError(
            f"{folder} holds files but no {MANIFEST}; give an empty or a new folder for pictures"
        )
    else:
        write_json(path, manifest)


def _compare(path: Path, wanted: dict[str, Any]) -> None:
    try:
        found = json.loads(path.read_text())
        different = [name for name in wanted if found.get(name) != wanted[name]]
    except (ValueError, AttributeError) as error:
        raise DistillError(
            f"{path} is damaged ({error}); delete {path.parent} or give another folder"
        ) from error
    for name in different:
        told = (
            "other prompts or seeds"
            if name == "pictures"
            else f"{name} {found.get(name)}, not {wanted[name]}"
        )
        raise DistillError(f"{path.parent} holds pictures of {told}; delete it or give another folder")
