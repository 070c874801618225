"""Latents of real images, encoded once and kept on disk.

    CACHE/<key>/00000000.safetensors, 00001024.safetensors, ...

The key is a digest of the VAE, the size and the list of pictures with their versions: whatever changes
them makes another folder, so a cache can be incomplete but never stale. Each piece is complete or absent,
and an encoding that was stopped goes on with the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import DistillError
from ..files import atomic_file
from ..pictures import Images
from ..pipeline import Pipeline
from ..progress import progress
from ..recipe import Data
from .sources import Picture, list_pictures

PIECE = 1024  # images; what a stopped encoding loses at most
BATCH = 16
LAYOUT = 1  # of the cache; another number makes all older ones unknown


class Latents:
    """Captioned clean latents, float16 on disk, memory-mapped: only what is drawn is read.

    Attributes:
        captions: Of each image.
        digest: Of everything that the latents and captions depend on.
    """

    def __init__(self, captions: Sequence[str], digest: str, pieces: Sequence[Tensor]) -> None:
        self.captions, self.digest, self._pieces = captions, digest, pieces

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: Sequence[int]) -> Tensor:
        """float32 [B, C, H, W]."""
        return torch.stack([self._pieces[i // PIECE][i % PIECE].float() for i in index])


def load_latents(data: Data, teacher: Pipeline, size: tuple[int, int] | None, batch: int) -> Latents:
    """Latents of all pictures of a source, encoded by the teacher's VAE where that has not been done yet.

    Args:
        data: The source and the place of the cache.
        teacher: Its VAE encodes.
        size: Width and height in pixels; pictures are resized to cover it and cropped around the centre.
        batch: The number of images that are drawn at a time.

    Raises:
        DistillError: a bad source (`list_pictures`), fewer pictures than a batch, a picture that cannot
            be read (which is named), a damaged piece.
    """
    shape, size = teacher.latent_shape(size), size or teacher.default_size
    pictures = list_pictures(data)
    if len(pictures) < batch:
        raise DistillError(f"data {data.source}: {len(pictures)} pictures, fewer than a batch of {batch}")
    digest = _digest(teacher, size, pictures)
    folder = (data.cache or _default_cache()) / digest[:32]
    _fill(folder, pictures, teacher, size)
    pieces = [_load(path, shape) for path in _paths(folder, len(pictures))]
    return Latents([picture.caption for picture in pictures], digest, pieces)


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewstep" / "latents"


def _digest(teacher: Pipeline, size: tuple[int, int], pictures: Sequence[Picture]) -> str:
    total = hashlib.sha256(json.dumps([LAYOUT, teacher.digest("vae"), size]).encode())
    for picture in pictures:
        total.update(json.dumps([picture.name, picture.version, picture.caption]).encode())
    return total.hexdigest()


def _paths(folder: Path, count: int) -> list[Path]:
    return [folder / f"{start:08d}.safetensors" for start in range(0, count, PIECE)]


def _fill(folder: Path, pictures: Sequence[Picture], teacher: Pipeline, size: tuple[int, int]) -> None:
    """Encodes the pieces that are not there."""
    paths = _paths(folder, len(pictures))
    pieces = [
        (path, pictures[i * PIECE : (i + 1) * PIECE]) for i, path in enumerate(paths) if not path.exists()
    ]
    total = sum(len(piece) for _, piece in pieces)
    with progress("encoding pictures" if total else "", total) as shown:
        for path, piece in pieces:
            encoded = []
            for start in range(0, len(piece), BATCH):
                encoded.append(_encode(piece[start : start + BATCH], teacher, size))
                shown.update(shown.done + len(encoded[-1]))
            with atomic_file(path) as temporary:
                save_file({"latents": torch.cat(encoded)}, temporary)


def _encode(pictures: Sequence[Picture], teacher: Pipeline, size: tuple[int, int]) -> Tensor:
    stacked = np.stack([_pixels(picture, size) for picture in pictures])
    scaled = torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1
    return teacher.encode(scaled.to(teacher.device)).half().cpu().contiguous()


def _pixels(picture: Picture, size: tuple[int, int]) -> Images:
    try:
        with picture.open() as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DistillError(f"{picture.where} cannot be read as a picture: {error}") from error
    return np.asarray(ImageOps.fit(upright, size, Image.Resampling.LANCZOS))


def _load(path: Path, shape: tuple[int, int, int]) -> Tensor:
    try:
        latents = load_file(path)["latents"]
    except (SafetensorError, KeyError) as error:
        raise DistillError(f"{path} is damaged ({error}); delete it to have it encoded again") from error
    if latents.shape[1:] != shape:
        raise DistillError(f"{path} holds latents of {tuple(latents.shape[1:])}, not {shape}; delete it")
    return latents
