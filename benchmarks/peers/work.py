"""What every peer is given: the bundle, and from a list of requests their pictures in one batch.

The request and the answer are the ones of `POST /v1/images/generations` as far as the benchmark uses them. Noise,
steps, decoder and PNG settings are the server's own functions, so that only what is around them differs.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from typing import Any

from engines.bundle import Bundle
from engines.runtime import generate, load_runtime
from engines.store import find_bundle
from service.pictures import to_file
from service.provenance import Provenance

STEPS = 4
BATCH = int(os.environ.get("PEER_BATCH", "16"))
WAIT_SECONDS = float(os.environ.get("PEER_WAIT_MS", "5")) / 1000
PORT = int(os.environ.get("PEER_PORT", "0"))
BUNDLE = os.environ.get("PEER_BUNDLE", "shapes-sana-sid")
THREADS = int(os.environ.get("PEER_THREADS", "1"))


class Work:
    """One engine, warm at every batch size."""

    def __init__(self) -> None:
        self.runtime = load_runtime(Bundle.load(find_bundle(BUNDLE)), "onnxruntime-cpu", THREADS)
        self.sizes = sorted(self.runtime.bundle.manifest.batch_sizes)
        for size in self.sizes:
            self([{"prompt": "warm-up", "seed": seed} for seed in range(size)])

    def __call__(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Pads to the next batch size of the bundle, as the server does."""
        size = next(size for size in self.sizes if size >= len(requests))
        padded = [*requests, *[requests[-1]] * (size - len(requests))]
        prompts, seeds = [one["prompt"] for one in padded], [one["seed"] for one in padded]
        pictures = generate(self.runtime, prompts, seeds, STEPS)
        return [self._answer(request, pixels) for request, pixels in zip(requests, pictures)]

    def _answer(self, request: dict[str, Any], pixels: Any) -> dict[str, Any]:
        size = self.runtime.bundle.spec.default_size
        made_from = Provenance(
            prompt=request["prompt"],
            seed=request["seed"],
            steps=STEPS,
            size=size,
            model="peer",
            bundle=self.runtime.bundle.digest,
        )
        content = base64.b64encode(to_file(pixels, "png", 100, made_from)).decode()
        return {"data": [{"b64_json": content, "seed": request["seed"]}], "num_inference_steps": STEPS}
