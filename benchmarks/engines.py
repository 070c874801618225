"""What precisions and the fused graph cost: `python -m benchmarks.engines [STUDENT]`.

Exports a student in every precision, fused, and measures each phase at batch sizes 1 ... 16 side by side.
Times are CPU milliseconds of a call on one thread, medians of rounds in which all variants take turns, so
that they can be compared with each other also on a busy machine. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime

from distill.evaluation import evaluate
from distill.metrics.tables import markdown
from distill.pipeline import find_pipeline
from distill.prompts import load_prompts
from engines.bundle import Bundle
from engines.export import PRECISIONS
from engines.export.choice import medians
from engines.export.make import Wish, make_bundle
from engines.export.student import load_student
from engines.runtime import generate
from engines.runtime.base import Conditioning
from engines.runtime.fused import FusedGenerator
from engines.runtime.onnx import OnnxRuntime

BATCH_SIZES = (1, 2, 4, 8, 16)


def main() -> None:
    options = _options()
    with TemporaryDirectory(prefix="fewstep-") as folder:
        print(_heading(options.student))
        bundles = _exported(options, Path(folder))
        runtimes = {name: OnnxRuntime(bundle, threads=1) for name, bundle in bundles.items()}
        print(_sizes(bundles), end="\n\n")
        if options.judge:
            print(_judged(runtimes, options.judge), end="\n\n")
        print(_phases(runtimes, options.rounds), end="\n\n")
        print(_whole(runtimes, options.rounds))


def _options() -> argparse.Namespace:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    command.add_argument("student", nargs="?", default="shapes-sana-sid")
    command.add_argument("--prompts", default="shapes:train", help="to calibrate int8-qdq on")
    command.add_argument("--rounds", type=int, default=9)
    command.add_argument("--judge", type=int, metavar="IMAGES", help="also judge this many shapes pictures")
    return command.parse_args()


def _exported(options: argparse.Namespace, folder: Path) -> dict[str, Bundle]:
    """A bundle for each precision, whatever it draws: those that would be refused are measured too."""
    student = load_student(find_pipeline(options.student))
    prompts = tuple(load_prompts(options.prompts)[:64])
    sizes = (student.spec.default_size,)
    wish = Wish((min(BATCH_SIZES), max(BATCH_SIZES)), sizes, prompts, fuse=True, traced={})
    bundles = {}
    for name, precision in PRECISIONS.items():
        (folder / name).mkdir()
        anything = {**dict.fromkeys(precision.tolerance, 1e9), "picture": -1e9}
        make_bundle(student, folder / name, wish, replace(precision, tolerance=anything), lambda line: None)
        bundles[name] = Bundle.load(folder / name)
    return bundles


def _heading(student: str) -> str:
    machine = f"{platform.machine()}, {os.cpu_count()} shared cores"
    return f"{student}, {date.today()}, {machine}, onnxruntime {onnxruntime.__version__}, one thread\n"


def _sizes(bundles: dict[str, Bundle]) -> str:
    head = ["precision", "MB", "least PSNR, dB", "a batch changes", "one graph changes"]
    return markdown(head, list(map(_size, bundles.values())))


def _size(bundle: Bundle) -> list[str]:
    found = bundle.manifest.certificate.measurements
    parts = [file for file in bundle.manifest.files if not file.startswith("generator")]
    megabytes = sum((bundle.path / file).stat().st_size for file in parts) / 1e6
    psnr = min(one.psnr_db for one in found if one.psnr_db is not None)
    batch = max(one.relative for one in found if one.part == "batch")
    fused = max(one.relative for one in found if one.part == "fused")
    return [bundle.manifest.precision, f"{megabytes:.1f}", f"{psnr:.1f}", f"{batch:.2g}", f"{fused:.2g}"]


def _judged(runtimes: dict[str, OnnxRuntime], images: int) -> str:
    """What the pictures are worth: prompts that are right in every attribute, and Fréchet distance."""
    rows = []
    for name, runtime in runtimes.items():
        found = evaluate(partial(generate, runtime, steps=4), count=images)
        rows.append([name, f"{100 * found['accuracy']:.1f} %", f"{found['frechet_distance']:.1f}"])
    return markdown(["precision, 4 steps", "right in every attribute", "Fréchet distance"], rows)


def _phases(runtimes: dict[str, OnnxRuntime], rounds: int) -> str:
    """One row a phase and precision, one column a batch size."""
    columns: dict[tuple[str, str], list[str]] = {}
    for count in BATCH_SIZES:
        for phase, call in _calls(count).items():
            calls = {name: partial(call, runtime) for name, runtime in runtimes.items()}
            for name, seconds in medians(calls, rounds).items():
                columns.setdefault((phase, name), []).append(f"{1000 * seconds:.2f}")
    rows = [[phase, name, *times] for (phase, name), times in columns.items()]
    return markdown(["ms of a call", "precision", *(f"batch {count}" for count in BATCH_SIZES)], rows)


def _calls(count: int) -> dict[str, Callable[[OnnxRuntime], object]]:
    prompts = ["a red circle left of a blue star on a white background"] * count
    time_B = np.full(count, 0.75, np.float32)
    rng = np.random.default_rng(0)

    def latents(runtime: OnnxRuntime) -> np.ndarray:
        spec = runtime.bundle.spec
        return rng.standard_normal((count, *spec.latent_shape(spec.default_size)), np.float32)

    @cache
    def conditioning(runtime: OnnxRuntime) -> Conditioning:
        return runtime.encode(prompts)

    def denoise(runtime: OnnxRuntime) -> object:
        return runtime.velocity(latents(runtime), time_B, conditioning(runtime))

    return {
        "encode": lambda runtime: runtime.encode(prompts),
        "denoise, one step": denoise,
        "decode": lambda runtime: runtime.decode(latents(runtime)),
    }


def _whole(runtimes: dict[str, OnnxRuntime], rounds: int) -> str:
    """Four steps from prompt to picture: step calls and one graph."""
    rows: dict[tuple[str, str], list[str]] = {}
    fused = {name: FusedGenerator(runtime, threads=1) for name, runtime in runtimes.items()}
    for count in BATCH_SIZES:
        order = (["a red circle on a white background"] * count, range(count), 4)
        for name, runtime in runtimes.items():
            ways = {"step calls": partial(generate, runtime), "one graph": fused[name].generate}
            calls = {way: partial(make, *order) for way, make in ways.items()}
            for way, seconds in medians(calls, rounds).items():
                rows.setdefault((name, way), []).append(f"{1000 * seconds / count:.2f}")
    lines = [[name, way, *times] for (name, way), times in rows.items()]
    return markdown(["ms a picture, 4 steps", "way", *(f"batch {count}" for count in BATCH_SIZES)], lines)


if __name__ == "__main__":
    main()
