"""The judge: a small CNN that reads every attribute back from a picture, and whose penultimate
features give a Fréchet distance. It reaches 100 % on held-out renders.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files import atomic_file
from .autoencoder import to_tensor
from .fit import Schedule, fit
from .render import Images, render_all
from .scenes import ATTRIBUTES, Scene, SceneSet

WEIGHTS = Path(__file__).parent / "models" / "judge.safetensors"
FEATURES = 64

SCHEDULE = Schedule(steps=1500, batch=64, lr=2e-3, ema=0.99)


class Judge(nn.Module):
    """Six classification heads over one feature vector; takes pictures in -1 ... 1."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        channels = (3, width, 2 * width, 4 * width, 4 * width)
        self.blocks = nn.Sequential(*(_block(a, b) for a, b in itertools.pairwise(channels)))
        self.features = nn.Linear(channels[-1] * 16, FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(v)) for name, v in ATTRIBUTES.items()})

    def forward(self, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """[B, 3, 64, 64] -> features [B, 64], logits of each attribute."""
        features = self.features(self.blocks(pictures).flatten(1))
        return features, {name: head(F.silu(features)) for name, head in self.heads.items()}


def _block(inputs: int, outputs: int) -> nn.Module:
    """Halves the picture."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    return nn.Sequential(convolution, nn.GroupNorm(8, outputs), nn.SiLU())


def train_judge(out: Path = WEIGHTS, seed: int = 0, schedule: Schedule = SCHEDULE) -> Judge:
    """Trains on fresh renders of every scene (it must know the held-out ones too).

    Noise and blur keep it from leaning on pixels that a decoder does not reproduce exactly.
    """
    torch.manual_seed(seed)
    model = Judge()
    splits = [SceneSet("train"), SceneSet("held-out")]

    def loss(rng: np.random.Generator, batch: int) -> Tensor:
        scenes = [scene for split in splits for scene in split.draw(rng, batch // 2)]
        pictures = _disturb(to_tensor(render_all(scenes, rng)))
        labels = torch.tensor([scene.labels for scene in scenes])
        logits = model(pictures)[1]
        return torch.stack([F.cross_entropy(x, y) for x, y in zip(logits.values(), labels.T)]).mean()

    checkpoint = out.with_suffix(".checkpoint")
    fit("judge", model, loss, schedule, seed, checkpoint)
    with atomic_file(out) as temporary:
        save_file({name: value.half() for name, value in model.state_dict().items()}, temporary)
    checkpoint.unlink(missing_ok=True)
    return model


def _disturb(pictures: Tensor) -> Tensor:
    blurred = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    share = torch.rand(len(pictures), 1, 1, 1)
    return torch.lerp(pictures, blurred, share) + 0.05 * torch.randn_like(pictures)


@cache
def load_judge(path: Path = WEIGHTS) -> Judge:
    model = Judge()
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.eval()


@torch.no_grad()
def read(images: Images, judge: Judge | None = None) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """What the judge sees in uint8 [N, 64, 64, 3]: features [N, 64] and class indices [N, 6]."""
    judge = judge or load_judge()
    features, labels = [], []
    for start in range(0, len(images), 256):
        seen, logits = judge(to_tensor(images[start : start + 256]))
        features.append(seen.double().numpy())
        labels.append(torch.stack([x.argmax(1) for x in logits.values()], dim=1).numpy())
    return np.concatenate(features), np.concatenate(labels)


def correct(images: Images, scenes: Sequence[Scene]) -> npt.NDArray[np.bool_]:
    """Which attributes of which picture are as its scene says, bool [N, 6] in the order of `ATTRIBUTES`."""
    right: npt.NDArray[np.bool_] = read(images)[1] == np.array([scene.labels for scene in scenes])
    return right
