"""A runtime without weights: every picture is a function of prompt and noise alone."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engines.bundle import Bundle, Certificate, Graph, Manifest, Parity, Size
from engines.runtime.base import Conditioning, Floats, Images

LEVELS = {1: (1.0,), 2: (1.0, 0.5), 4: (1.0, 0.75, 0.5, 0.25)}


def make_bundle(
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8),
    sizes: tuple[Size, ...] = ((64, 64), (64, 32)),
    **sampler: object,
) -> Bundle:
    """A bundle of no files; `sampler` are settings of its spec."""
    spec = {
        "family": "fake",
        "levels": {str(steps): levels for steps, levels in LEVELS.items()},
        "renoise": "fresh",
        "time_scale": 1.0,
        "text": [],
        "guidance_embedding": None,
        "latent_channels": 4,
        "downsampling": 8,
        "default_size": [64, 64],
        **sampler,
    }
    manifest = Manifest(
        name="fake",
        spec=spec,
        precision="fp32",
        opset=20,
        graphs={"denoiser": Graph(file="denoiser.onnx", inputs=(), outputs=())},
        batch_sizes=batch_sizes,
        sizes=sizes,
        files={"denoiser.onnx": "0" * 64},
        certificate=Certificate(
            reference="none",
            runtime="fake",
            tolerance={"denoiser": 1e-3},
            measurements=(Parity(part="denoiser", batch_size=1, max_abs=0.0, relative=0.0),),
        ),
        quality={"accuracy": 1.0},
        provenance={},
    )
    return Bundle(Path("fake"), manifest, "sha256:" + "1" * 64)


class FakeRuntime:
    """Takes `call_seconds` per call and `image_seconds` per image, and fails on prompts that say so.

    A prompt with `bad-encode` or `bad-denoise` makes the call that it is in raise. While `gate` is
    clear, the denoiser waits.
    """

    backend = "fake"

    def __init__(
        self, bundle: Bundle | None = None, call_seconds: float = 0.0, image_seconds: float = 0.0
    ) -> None:
        self.bundle = bundle or make_bundle()
        self.call_seconds, self.image_seconds = call_seconds, image_seconds
        self.calls: list[tuple[str, int]] = []
        self.levels: list[tuple[float, ...]] = []
        self.gate = threading.Event()
        self.gate.set()

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        self._work("encode", len(prompts))
        if any("bad-encode" in prompt for prompt in prompts):
            raise ValueError("cannot encode this")
        return {
            "text": np.stack([_digest(prompt) for prompt in prompts]),
            "bad": np.array([["bad-denoise" in prompt] for prompt in prompts]),
        }

    def velocity(self, x_BCHW: Floats, t_B: Floats, conditioning: Conditioning) -> Floats:
        self.gate.wait()
        self._work("denoise", len(x_BCHW))
        self.levels.append(tuple(t_B.tolist()))
        if conditioning["bad"].any():
            raise ValueError("cannot denoise this")
        target_BC = conditioning["text"][:, : x_BCHW.shape[1]]
        t_B111 = t_B[:, None, None, None]
        velocity: Floats = (x_BCHW - target_BC[:, :, None, None] - 0.05 * x_BCHW) / t_B111
        return velocity

    def decode(self, x0_BCHW: Floats) -> Images:
        self._work("decode", len(x0_BCHW))
        scaled_BHWC = ((x0_BCHW[:, :3] + 0.5) * 255).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return scaled_BHWC.repeat(8, axis=1).repeat(8, axis=2)

    def batches(self, stage: str) -> list[int]:
        return [size for name, size in self.calls if name == stage]

    def _work(self, stage: str, images: int) -> None:
        assert images in self.bundle.manifest.batch_sizes
        self.calls.append((stage, images))
        time.sleep(self.call_seconds + images * self.image_seconds)


def _digest(prompt: str) -> Floats:
    digest = np.frombuffer(hashlib.sha256(prompt.encode()).digest()[:8], np.uint8)
    return digest.astype(np.float32) / 255 - 0.5
