"""Student folder -> bundle: graphs, tokenizers, and the proof that they do what the student does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..bundle import Bundle, Size
from ..errors import EngineError
from ..folder import check_disk, check_target, whole_folder
from .choice import choose
from .make import Draw, Judge, Wish, make_bundle
from .precision import AUTO, PRECISIONS, Precision, precision_named
from .student import load_student

BATCH_SIZES = (1, 2, 4, 8, 16)

__all__ = ["AUTO", "BATCH_SIZES", "PRECISIONS", "Draw", "Judge", "export_student"]


def export_student(
    student: Path,
    out: Path,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    sizes: Sequence[Size] | None = None,
    precision: str = "fp32",
    min_psnr: float | None = None,
    prompts: Sequence[str] = (),
    fuse: bool = False,
    torch: bool = False,
    judge: Judge | None = None,
    say: Callable[[str], None] = print,
) -> Bundle:
    """Writes the bundle of a student to `out`; the same student always gives the same graphs and, on one machine with
    one number of PyTorch's threads, the same bundle: the manifest holds what the certificate measured.

    Args:
        student: A diffusers pipeline folder with `generator.json`.
        out: The bundle's folder; a bundle that was there before is replaced.
        batch_sizes: Batch sizes to certify.
        sizes: Picture sizes (width, height) to certify; by default the student's own.
        precision: Arithmetic of the graphs, one of `PRECISIONS`; `auto` exports all of them and takes
            the fastest on this machine whose certificate holds, which `say` is told with the reasons.
        min_psnr: Least PSNR of pictures against PyTorch in dB; by default that of the precision, with
            `auto` 40.
        prompts: What to calibrate `int8-qdq` and `fp8-qdq` on.
        fuse: Also write the whole generator as one graph for each step count.
        torch: Also write each part as a program for PyTorch, `<part>.pt2`.
        judge: Measures pictures that the graphs have drawn; its figures become `engine` in the quality card.
        say: Is told what is being done, one line at a time.

    Raises:
        EngineError: not a student, an impossible precision, size or target, too little disk, a graph
            that breaks a rule, or a certificate whose bounds do not hold. Nothing is left behind then.
    """
    wanted = _precisions(precision, min_psnr)
    if precision != AUTO and wanted[0].calibrated and not prompts:
        raise EngineError(f"precision {precision}: needs prompts to calibrate on (--prompts FILE)")
    if not batch_sizes or min(batch_sizes) < 1:
        raise EngineError(f"batch sizes {list(batch_sizes)}: expected at least one, all positive")
    check_target(out)
    say(f"loading {student}")
    loaded = load_student(student)
    checked = loaded.check_sizes(tuple(sizes) if sizes else None)
    _check_memory(checked, max(batch_sizes))
    check_disk(out, loaded.weight_bytes * (len(wanted) * (1 + torch) + 1), "the export")
    wish = Wish(tuple(sorted(set(batch_sizes))), checked, tuple(prompts), fuse, torch, judge)
    with whole_folder(out) as folder:
        if precision == AUTO:
            choose(loaded, folder, wish, wanted, say)
        else:
            make_bundle(loaded, folder, wish, wanted[0], say)
    return Bundle.load(out)


def _check_memory(sizes: Sequence[Size], count: int) -> None:
    """Without its pictures no batch can be drawn, whatever the networks take.

    Raises:
        EngineError: a batch of `count` pictures in float32 is larger than this machine's memory.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for width, height in sizes:
        if (needed := 12 * width * height * count) > memory:
            raise EngineError(
                f"size {width}x{height}: {count} pictures, the largest batch to certify, take"
                f" {needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB"
            )


def _precisions(name: str, min_psnr: float | None) -> list[Precision]:
    """What to export, with the bound on pictures that was asked for."""
    if name != AUTO:
        return [_bounded(precision_named(name), min_psnr)]
    strict = PRECISIONS["fp32"].tolerance["picture"] if min_psnr is None else min_psnr
    return [_bounded(one, strict) for one in PRECISIONS.values()]


def _bounded(precision: Precision, min_psnr: float | None) -> Precision:
    if min_psnr is None:
        return precision
    return replace(precision, tolerance={**precision.tolerance, "picture": min_psnr})
