"""`--precision auto`: exports every precision, measures them side by side, keeps the fastest that holds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

from ..bundle import MANIFEST, Bundle
from ..errors import EngineError
from ..runtime.onnx import OnnxRuntime
from ..runtime.sampler import generate
from .make import Say, Wish, make_bundle
from .precision import Precision
from .student import Student

K = TypeVar("K", bound=Hashable)
ROUNDS = 5
TIE = 1.05
"""A more exact precision is taken if it needs at most this much longer."""
NOT_HERE = "ONNX Runtime does not run it on a CPU, so it cannot be timed here; for a GPU ask for it by name"
PROMPT = "a red circle on a white background"


@dataclass(frozen=True)
class Candidate:
    """One precision as it was found.

    Attributes:
        precision: Its name.
        bundle: What was exported; None if it was rejected.
        rejected: Why; empty if it was not.
        seconds: CPU time per picture at the smallest and at the largest batch size, most steps, one thread.
    """

    precision: str
    bundle: Bundle | None = None
    rejected: str = ""
    seconds: tuple[float, ...] = ()


def choose(student: Student, folder: Path, wish: Wish, precisions: Sequence[Precision], say: Say) -> None:
    """Leaves in `folder` the bundle that needs the least time per picture at the largest batch size.

    `precisions` come in the order of their exactness.

    Raises:
        EngineError: none holds; names the reason of each.
    """
    shared = replace(wish, traced={})
    tried = [_try(student, folder / f".{one.name}", shared, one, say) for one in precisions]
    timed = _timed(tried)
    for line in table(timed):
        say(line)
    held = [one for one in timed if one.bundle is not None]
    if not held:
        raise EngineError(f"{student.name}: no precision holds: {'; '.join(one.rejected for one in timed)}")
    least = min(one.seconds[-1] for one in held)
    best = next(one for one in held if one.seconds[-1] <= least * TIE)
    say(f"{best.precision} is the fastest that holds")
    _keep(folder, f".{best.precision}")


def _try(student: Student, folder: Path, wish: Wish, precision: Precision, say: Say) -> Candidate:
    if not precision.on_cpu:
        return Candidate(precision.name, rejected=NOT_HERE)
    if precision.calibrated and not wish.prompts:
        return Candidate(precision.name, rejected="no prompts to calibrate on (--prompts FILE)")
    folder.mkdir()
    try:
        make_bundle(student, folder, wish, precision, say)
    except EngineError as error:
        return Candidate(precision.name, rejected=str(error).partition(": ")[2])
    return Candidate(precision.name, Bundle.load(folder))


def _timed(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that were not rejected take turns, so that a busy moment hits all of them."""
    runtimes = {
        one.precision: OnnxRuntime(one.bundle, threads=1) for one in candidates if one.bundle is not None
    }
    seconds: dict[str, tuple[float, ...]] = dict.fromkeys(runtimes, ())
    for count in _batch_ends(candidates):
        calls = {name: _call(runtime, count) for name, runtime in runtimes.items()}
        for name, taken in medians(calls).items():
            seconds[name] += (taken / count,)
    return [replace(one, seconds=seconds.get(one.precision, ())) for one in candidates]


def _batch_ends(candidates: Sequence[Candidate]) -> list[int]:
    sizes = {size for one in candidates if one.bundle is not None for size in one.bundle.manifest.batch_sizes}
    return sorted({min(sizes), max(sizes)}) if sizes else []


def _call(runtime: OnnxRuntime, count: int) -> Callable[[], object]:
    steps = max(runtime.bundle.spec.levels)
    size = runtime.bundle.manifest.sizes[0]
    return lambda: generate(runtime, [PROMPT] * count, range(count), steps, size)


def medians(calls: Mapping[K, Callable[[], object]], rounds: int = ROUNDS) -> dict[K, float]:
    """Median CPU seconds of each call over `rounds` rounds, after one that does not count.

    CPU time, since the machine may be busy with other things.
    """
    taken: dict[K, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            taken[name].append(time.process_time() - started)
    return {name: median(times[1:]) for name, times in taken.items()}


def table(candidates: Sequence[Candidate]) -> list[str]:
    """One line a precision: size, time per picture, fidelity, or why it was rejected."""
    return [_line(one) for one in candidates]


def _line(candidate: Candidate) -> str:
    if candidate.bundle is None:
        return f"{candidate.precision:9} rejected: {candidate.rejected}"
    manifest = candidate.bundle.manifest
    megabytes = sum((candidate.bundle.path / file).stat().st_size for file in manifest.files) / 1e6
    found = manifest.certificate.measurements
    psnr = min(one.psnr_db for one in found if one.psnr_db is not None)
    batch = max(one.relative for one in found if one.part == "batch")
    times = " / ".join(f"{1000 * one:.1f}" for one in candidate.seconds)
    sizes = " / ".join(map(str, sorted({min(manifest.batch_sizes), max(manifest.batch_sizes)})))
    return (
        f"{candidate.precision:9} {megabytes:.1f} MB, {times} ms of CPU a picture in batches of {sizes}, "
        f"{psnr:.1f} dB, a batch changes {batch:.1g}"
    )


def _keep(folder: Path, name: str) -> None:
    """Moves the content of `folder/name` up and removes what is beside it."""
    for other in [path for path in folder.iterdir() if path.name != name]:
        shutil.rmtree(other)
    for path in list((folder / name).iterdir()):
        path.rename(folder / path.name)
    (folder / name).rmdir()
    assert (folder / MANIFEST).is_file()
