"""Quality by guidance preset, over training seeds: `python -m benchmarks.presets [ROW …]`.

Each row is a shipped recipe with one thing changed, trained as often as there are seeds and judged on held-out prompts.
All rows of a seed are done before the next begins. What the JSON has is not done again, and a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.distillation import machine
from distill.evaluation import evaluate_seeds
from distill.files import write_json
from distill.metrics.tables import cell, markdown, summary
from fewstep.models import Images, open_model

SHORT = ("iterations=120", "quality=null", "samples_every=120")
NO_INPUT = ("guidance.teacher_embed=1",)  # FLUX's guidance is an input of its network: with 1 it has none
NO_IMAGES = ("adversarial.weight=0", "adversarial.discriminator_weight=0")


def teacher_only(scale: float) -> tuple[str, ...]:
    return "guidance=teacher-only", f"guidance.teacher={scale}"


def all_alike(scale: float) -> tuple[str, ...]:
    """LSG: one scale for the four that there are."""
    return (
        "guidance=lsg",
        *(f"guidance.{which}={scale}" for which in ("fake_train", "fake_outer", "fake_inner", "teacher")),
    )


TEACHER_ONLY, NONE = teacher_only(1.5), teacher_only(1)
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "teacher-only, 1.5": ("shapes-sana", TEACHER_ONLY),
    "lsg, 1.5": ("shapes-sana", all_alike(1.5)),
    "zero-cfg": ("shapes-sana", ("guidance=zero-cfg",)),
    "anti-cfg": ("shapes-sana", ("guidance=anti-cfg",)),
    "no guidance": ("shapes-sana", NONE),
    "LoRA, teacher-only, 1.5": ("shapes-sana-lora", TEACHER_ONLY),
    "data-aided, teacher-only, 1.5": ("shapes-sana-sida", TEACHER_ONLY),
    "its control": ("shapes-sana-sida", (*TEACHER_ONLY, *NO_IMAGES)),
    "data-aided, zero-cfg": ("shapes-sana-sida", ("guidance=zero-cfg",)),
    "data-aided, anti-cfg": ("shapes-sana-sida", ("guidance=anti-cfg",)),
    "SD3, teacher-only, 1.25": ("shapes-sd3", teacher_only(1.25)),
    "SD3, lsg, 1.25": ("shapes-sd3", all_alike(1.25)),
    "SD3, zero-cfg": ("shapes-sd3", ("guidance=zero-cfg",)),
    "SD3, anti-cfg": ("shapes-sd3", ("guidance=anti-cfg",)),
    "SD3, no guidance": ("shapes-sd3", NONE),
    "FLUX, teacher input 1.25": ("shapes-flux", (*NONE, "guidance.teacher_embed=1.25")),
    "FLUX, all inputs 1.25": (
        "shapes-flux",
        (*NONE, "guidance.teacher_embed=1.25", "guidance.fake_embed=1.25"),
    ),
    "FLUX, zero-cfg": ("shapes-flux", ("guidance=zero-cfg", *NO_INPUT)),
    "FLUX, anti-cfg": ("shapes-flux", ("guidance=anti-cfg", *NO_INPUT)),
    "FLUX, no guidance": ("shapes-flux", (*NONE, *NO_INPUT)),
}
"""Name of a row -> recipe and what is changed in it."""

FIGURES = {"accuracy": 3, "frechet_distance": 1}
"""What is reported, and its digits."""

Results = dict[str, Any]


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    results = json.loads(options.out.read_text()) if options.out.is_file() else {"rows": {}}
    for seed in options.seeds:
        for name in options.rows:
            done = results["rows"].setdefault(name, {"command": " ".join(command(name, "SEED")), "seeds": {}})
            if str(seed) in done["seeds"]:
                continue
            folder = options.runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            seconds = train(name, seed, folder)
            done["seeds"][str(seed)] = {"seconds": round(seconds), "steps": judge(folder, options.images)}
            write_json(options.out, results | {"machine": machine(), "images": options.images})
            print(report(results), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", nargs="*", default=list(ROWS), metavar="ROW", help=f"of {'; '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the training")
    parser.add_argument("--images", type=int, default=500, help="to judge, for each of three seeds of noise")
    parser.add_argument("--runs", type=Path, default=Path("runs/presets"), help="where the students go")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/quality-presets.json"))
    options = parser.parse_args()
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"no row {unknown[0]!r}; there are: {'; '.join(ROWS)}")
    return options


def command(name: str, seed: object) -> list[str]:
    recipe, changes = ROWS[name]
    return ["fewstep", "distill", recipe, "--set", *SHORT, *changes, f"seed={seed}"]


def train(name: str, seed: int, folder: Path) -> float:
    """Seconds that the run took, or its last part, if it had been stopped."""
    resume = ["--resume"] if list(folder.glob("run/checkpoints/[0-9]*")) else []
    began = time.perf_counter()
    asked = [sys.executable, "-m", *command(name, seed), "--device", "cpu", "--out", str(folder), *resume]
    subprocess.run(asked, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return time.perf_counter() - began


def judge(folder: Path, images: int) -> dict[str, dict[str, float]]:
    """By steps: accuracy and Fréchet distance, means of three seeds of noise."""
    model, found = open_model(str(folder), "cpu"), {}
    for steps in (1, 2, 4):

        def draw(prompts: Sequence[str], seeds: Sequence[int], steps: int = steps) -> Images:
            return model.draw(prompts, seeds, steps, 1.0)

        row = evaluate_seeds(draw, "held-out", images, (0, 1, 2))
        found[str(steps)] = {figure: row[figure]["mean"] for figure in FIGURES}
    return found


def report(results: Results) -> str:
    """Markdown: means over the training seeds, ± half the spread between them."""
    head = ["", "seeds", "accuracy 1 / 2 / 4 steps", "Fréchet distance 1 / 2 / 4 steps"]
    lines = []
    for name, row in results["rows"].items():
        if runs := [run["steps"] for run in row["seeds"].values()]:
            lines.append([name, str(len(runs)), *(_cell(runs, figure) for figure in FIGURES)])
    return markdown(head, lines)


def _cell(runs: list[dict[str, dict[str, float]]], figure: str) -> str:
    by_steps = [summary([run[steps][figure] for run in runs]) for steps in runs[0]]
    return " / ".join(cell(one, FIGURES[figure]) for one in by_steps)


if __name__ == "__main__":
    main()
