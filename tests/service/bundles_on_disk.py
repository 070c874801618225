"""Whole bundles on disk whose files mean nothing, and a runtime that draws each one differently."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engines.bundle import PARTS, Bundle, Certificate, Graph, Parity
from engines.runtime.base import Floats, Images

from .fake_runtime import FakeRuntime, make_bundle

PICTURE = Parity(part="picture", batch_size=1, max_abs=0.0, relative=0.0, psnr_db=100.0)


def write_bundle(folder: Path, seed: int = 0, mib: float = 0.0) -> str:
    """A bundle that differs with `seed`, of `mib` MiB that take no room on the disk; its digest."""
    folder.mkdir(parents=True)
    for part in PARTS:
        (folder / f"{part}.onnx").write_text(f"{part} {seed}")
    with (folder / "denoiser.onnx").open("ab") as stream:
        stream.truncate(max(10, int(mib * 2**20)))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    measured = [Parity(part=part, batch_size=1, max_abs=0.0, relative=0.0) for part in PARTS]
    manifest = make_bundle((1, 2, 4)).manifest.model_copy(
        update={
            "name": folder.name,
            "graphs": {part: Graph(file=f"{part}.onnx", inputs=(), outputs=()) for part in PARTS},
            "files": files,
            "certificate": Certificate(
                reference="none",
                runtime="fake",
                tolerance=dict.fromkeys(PARTS, 1e-3) | {"picture": 40.0},
                measurements=(*measured, PICTURE),
            ),
        }
    )
    (folder / "bundle.json").write_text(json.dumps(manifest.model_dump(mode="json"), default=str))
    return Bundle.load(folder).digest


class Tinted(FakeRuntime):
    """Draws in a tint that follows from the digest of its bundle."""

    def decode(self, x0_BCHW: Floats) -> Images:
        tint = int(self.bundle.digest.removeprefix("sha256:")[:2], 16)
        pixels: Images = super().decode(x0_BCHW)
        return np.roll(pixels, tint % 7, axis=1) ^ np.uint8(tint)


class Loader:
    """In place of `load_runtime`; remembers what was loaded, and cannot load what is `broken`."""

    def __init__(self) -> None:
        self.loaded: list[Tinted] = []
        self.broken: set[str] = set()

    def __call__(self, bundle: Bundle, backend: str, threads: int | None) -> Tinted:
        runtime = Broken(bundle) if bundle.digest in self.broken else Tinted(bundle)
        self.loaded.append(runtime)
        return runtime

    def count(self, digest: str) -> int:
        return sum(runtime.bundle.digest == digest for runtime in self.loaded)


class Broken(Tinted):
    """Loads and cannot draw."""

    def encode(self, prompts: Sequence[str]) -> dict[str, Floats]:
        raise RuntimeError("no kernel for this device")
