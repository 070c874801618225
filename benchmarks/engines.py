"""What precisions and the fused graph cost: `python -m benchmarks.engines [STUDENT]`.

Exports a student in every precision, fused and as programs for PyTorch, and measures each phase at batch sizes
1 ... 16 in ONNX Runtime and PyTorch, eager and compiled, side by side. Times are CPU milliseconds of a call on one
thread, medians of rounds in which all variants take turns, so that they can be compared with each other also on a
busy machine. Prints Markdown. With `--bundles` the exports are kept, and a second call measures at once.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import torch

from distill.evaluation import evaluate
from distill.metrics.tables import markdown
from distill.pipeline import find_pipeline
from distill.prompts import load_prompts
from engines.bundle import MANIFEST, Bundle
from engines.errors import EngineError
from engines.export import PRECISIONS
from engines.export.choice import medians
from engines.export.make import Wish, make_bundle
from engines.export.student import load_student
from engines.folder import whole_folder
from engines.runtime import Runtime, generate, load_runtime
from engines.runtime.base import Conditioning
from engines.runtime.fused import FusedGenerator
from engines.runtime.onnx import OnnxRuntime

BATCH_SIZES = (1, 2, 4, 8, 16)
BACKENDS = ("onnxruntime-cpu", "torch", "torch-compile")
Variant = tuple[str, str]
"""Backend and precision."""
Runtimes = dict[Variant, Runtime]


def main() -> None:
    options = _options()
    with TemporaryDirectory(prefix="fewstep-") as folder:
        print(_heading(options.student))
        bundles = _exported(options, options.bundles or Path(folder))
        print(_sizes(bundles), end="\n\n")
        if options.only == "export":
            return
        runtimes = dict(_runtimes(bundles, options.backends))
        if options.judge:
            print(_judged(runtimes, options.judge), end="\n\n")
        if options.only in (None, "phases"):
            print(_phases(runtimes, options.rounds), end="\n\n")
        if options.only in (None, "whole"):
            print(_whole(runtimes, options.rounds))


def _options() -> argparse.Namespace:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    command.add_argument("student", nargs="?", default="shapes-sana-sid")
    command.add_argument("--prompts", default="shapes:train", help="to calibrate int8-qdq on")
    command.add_argument("--rounds", type=int, default=9)
    command.add_argument("--bundles", type=Path, metavar="FOLDER", help="where the exports are kept")
    command.add_argument("--only", choices=["export", "judge", "phases", "whole"], help="do only this")
    command.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    command.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    command.add_argument("--judge", type=int, metavar="IMAGES", help="also judge this many shapes pictures")
    return command.parse_args()


def _exported(options: argparse.Namespace, folder: Path) -> dict[str, Bundle]:
    """A bundle for each precision, whatever it draws: those that would be refused are measured too."""
    traced: dict[Any, Any] = {}
    return {
        name: _bundle(options, folder / f"{options.student}-{name}", traced) for name in options.precisions
    }


def _bundle(options: argparse.Namespace, folder: Path, traced: dict[Any, Any]) -> Bundle:
    if (folder / MANIFEST).is_file():
        return Bundle.load(folder)
    student = load_student(find_pipeline(options.student))
    precision = PRECISIONS[folder.name.removeprefix(f"{options.student}-")]
    wish = Wish(
        (min(BATCH_SIZES), max(BATCH_SIZES)),
        (student.spec.default_size,),
        tuple(load_prompts(options.prompts)[:64]),
        fuse=True,
        torch=not precision.quantised,
        traced=traced,
    )
    anything = {**dict.fromkeys(precision.tolerance, 1e9), "picture": -1e9}
    with whole_folder(folder) as fresh:
        make_bundle(student, fresh, wish, replace(precision, tolerance=anything), lambda line: None)
    return Bundle.load(folder)


def _runtimes(bundles: dict[str, Bundle], backends: Sequence[str]) -> Iterator[tuple[Variant, Runtime]]:
    """Every backend that runs a bundle on this CPU."""
    for name, bundle in bundles.items():
        for backend in backends:
            try:
                yield (backend, name), load_runtime(bundle, backend, threads=1)
            except EngineError as error:
                print(f"{name}: no {backend}: {error}\n", file=sys.stderr)


def _heading(student: str) -> str:
    machine = f"{platform.machine()}, {os.cpu_count()} shared cores"
    versions = f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}"
    return f"{student}, {date.today()}, {machine}, {versions}, one thread\n"


def _sizes(bundles: dict[str, Bundle]) -> str:
    head = ["precision", "MB", "least PSNR, dB", "a batch changes", "one graph changes"]
    return markdown(head, list(map(_size, bundles.values())))


def _size(bundle: Bundle) -> list[str]:
    found = bundle.manifest.certificate.measurements
    parts = [
        file for file in bundle.manifest.files if not file.startswith("generator") and ".pt2" not in file
    ]
    megabytes = sum((bundle.path / file).stat().st_size for file in parts) / 1e6
    psnr = min(one.psnr_db for one in found if one.psnr_db is not None)
    batch = max(one.relative for one in found if one.part == "batch")
    fused = max(one.relative for one in found if one.part == "fused")
    return [bundle.manifest.precision, f"{megabytes:.1f}", f"{psnr:.1f}", f"{batch:.2g}", f"{fused:.2g}"]


def _judged(runtimes: Runtimes, images: int) -> str:
    """What the pictures are worth: prompts that are right in every attribute, and Fréchet distance."""
    rows = []
    for variant, runtime in runtimes.items():
        found = evaluate(partial(generate, runtime, steps=4), count=images)
        rows.append([*variant, f"{100 * found['accuracy']:.1f} %", f"{found['frechet_distance']:.1f}"])
    return markdown(["4 steps", "precision", "right in every attribute", "Fréchet distance"], rows)


def _phases(runtimes: Runtimes, rounds: int) -> str:
    """One row a phase, runtime and precision, one column a batch size."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for count in BATCH_SIZES:
        for phase, call in phase_calls(count).items():
            calls = {variant: partial(call, runtime) for variant, runtime in runtimes.items()}
            for variant, seconds in medians(calls, rounds).items():
                columns.setdefault((phase, *variant), []).append(f"{1000 * seconds:.2f}")
    rows = [[*key, *times] for key, times in columns.items()]
    return markdown(["ms of a call", "runtime", "precision", *(f"batch {n}" for n in BATCH_SIZES)], rows)


def phase_calls(count: int) -> dict[str, Callable[[Runtime], object]]:
    """Each phase with `count` images."""
    prompts = ["a red circle left of a blue star on a white background"] * count
    time_B = np.full(count, 0.75, np.float32)
    rng = np.random.default_rng(0)

    def latents(runtime: Runtime) -> np.ndarray:
        spec = runtime.bundle.spec
        return rng.standard_normal((count, *spec.latent_shape(spec.default_size)), np.float32)

    @cache
    def conditioning(runtime: Runtime) -> Conditioning:
        return runtime.encode(prompts)

    def denoise(runtime: Runtime) -> object:
        return runtime.velocity(latents(runtime), time_B, conditioning(runtime))

    return {
        "encode": lambda runtime: runtime.encode(prompts),
        "denoise, one step": denoise,
        "decode": lambda runtime: runtime.decode(latents(runtime)),
    }


def _whole(runtimes: Runtimes, rounds: int) -> str:
    """Four steps from prompt to picture: step calls and one graph."""
    ways: dict[tuple[str, ...], Any] = {}
    for (backend, name), runtime in runtimes.items():
        ways[backend, name, "step calls"] = partial(generate, runtime)
        if isinstance(runtime, OnnxRuntime):
            ways[backend, name, "one graph"] = FusedGenerator(runtime, threads=1).generate
    rows: dict[tuple[str, ...], list[str]] = {key: [] for key in ways}
    for count in BATCH_SIZES:
        order = (["a red circle on a white background"] * count, range(count), 4)
        for key, seconds in medians(
            {key: partial(make, *order) for key, make in ways.items()}, rounds
        ).items():
            rows[key].append(f"{1000 * seconds / count:.2f}")
    head = ["ms a picture, 4 steps", "precision", "way", *(f"batch {count}" for count in BATCH_SIZES)]
    return markdown(head, [[*key, *times] for key, times in rows.items()])


if __name__ == "__main__":
    main()
