"""Feature networks: what a Fréchet distance between sets of pictures is measured in."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..errors import DistillError
from ..pictures import square
from .encoders import check_device, load_encoder

COCO_SIDE = 256  # as in the code published with SiD-DiT, and customary for COCO


@dataclass(frozen=True)
class FeatureNetwork:
    """Pictures -> features.

    Attributes:
        name: For people.
        digest: SHA-256 of the network and `side`: features of another one cannot be compared.
        side: Pictures are cropped and resized to `side` x `side` first, the generated as the real.
        encode: Square pictures -> features [N, D].
    """

    name: str
    digest: str
    side: int
    encode: Callable[[Sequence[Image.Image]], Tensor]

    def __call__(self, pictures: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
        """Features [N, D] of pictures of any size."""
        features = self.encode([square(picture, self.side) for picture in pictures])
        return features.float().cpu().numpy()


def load_features(source: str, side: int = COCO_SIDE, device: str = "cpu") -> FeatureNetwork:
    """The feature network of a TorchScript file (`.pt`), of a `transformers` folder, or of an id on the hub.

    A TorchScript file takes uint8 pictures [N, 3, H, W] and gives features [N, D], resizing and scaling
    inside, as the exports of Inception do; if it has an argument `return_features`, that is set.

    Raises:
        DistillError: there is none, it cannot be loaded, or it gives no features.
    """
    check_device(device)
    if Path(source).suffix in (".pt", ".pth", ".ts"):
        name, content, encode = _torchscript(Path(source), device)
    else:
        encoder = load_encoder(source, device)
        name, content, encode = encoder.name, encoder.digest(), encoder.pictures
    digest = hashlib.sha256(f"{content} {side}".encode()).hexdigest()
    return FeatureNetwork(name, f"sha256:{digest}", side, encode)


def _torchscript(path: Path, device: str) -> tuple[str, str, Callable[[Sequence[Image.Image]], Tensor]]:
    if not path.is_file():
        raise DistillError(f"no feature network {path}; expected a TorchScript file or a transformers folder")
    module = _load_script(path, device)
    named = {argument.name for argument in module.forward.schema.arguments}
    settings = {"return_features": True} if "return_features" in named else {}

    @torch.no_grad()
    def encode(pictures: Sequence[Image.Image]) -> Tensor:
        pixels = torch.from_numpy(np.stack([np.array(picture) for picture in pictures]))
        try:
            features = module(pixels.permute(0, 3, 1, 2).contiguous().to(device), **settings)
        except RuntimeError as error:
            raise DistillError(f"{path} takes no uint8 pictures [N, 3, H, W]: {_last_line(error)}") from error
        if not isinstance(features, Tensor) or len(features) != len(pictures):
            raise DistillError(f"{path} gives no features; expected one tensor [N, D] for N pictures")
        return features.flatten(1)

    return path.stem, hashlib.sha256(path.read_bytes()).hexdigest(), encode


def _load_script(path: Path, device: str) -> Any:
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated, but Inception is only published in it
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise DistillError(
            f"{path} is not a TorchScript file; weights alone do not say how to compute ({str(error)[:80]})"
        ) from error


def _last_line(error: Exception) -> str:
    """TorchScript puts its own traceback before it."""
    return str(error).strip().splitlines()[-1]
