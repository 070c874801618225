"""Stands in for `fewstep` in tests of the runner: a real process that leaves the files that the command leaves.

It does an iteration each `STAND_IN_SECONDS`, saves its state when it is told to stop, goes on from it with `--resume`,
refuses what the command refuses, and notes in `runs.txt` each start and each iteration with its process id. Words in
`recipe.yaml` make it fail: `fail`, `crash at N`, `disk full at N`, `deaf`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

SECONDS = float(os.environ.get("STAND_IN_SECONDS", "0.02"))
stopping = False


def main() -> int:
    command, *arguments = sys.argv[1:]
    return {"distill": distill, "evaluate": evaluate, "export": export}[command](arguments)


def distill(arguments: list[str]) -> int:
    recipe, out = Path(arguments[0]).read_text(), Path(arguments[arguments.index("--out") + 1])
    checkpoints, resume = out / "run/checkpoints", "--resume" in arguments
    saved = max((int(path.name) for path in checkpoints.glob("[0-9]*")), default=None)
    if resume and saved is None:
        return say("nothing to resume", 2)
    if not resume and saved is not None:
        return say("already holds a run", 2)
    total = int(found[1]) if (found := re.search(r'iterations"?: (\d+)', recipe)) else 10
    (out / "run/samples").mkdir(parents=True, exist_ok=True)
    (out / "run/recipe.yaml").write_text(f"iterations: {total}\n")
    note(out, f"start {os.getpid()}")
    if "deaf" in recipe:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, stop)
    return train(recipe, out, saved or 0, total)


def train(recipe: str, out: Path, start: int, total: int) -> int:
    for number in range(start + 1, total + 1):
        time.sleep(SECONDS)
        if f"crash at {number}\n" in recipe and not (out / "run/crashed").exists():
            (out / "run/crashed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if f"disk full at {number}\n" in recipe:
            return say("fewstep distill: [Errno 28] No space left on device", 1)
        if "fail\n" in recipe:
            return say("fewstep distill: the loss turned NaN", 1)
        record(out, number, total)
        if stopping and number < total:
            return say(f"stopped at iteration {number}; go on with --resume", 130)
    (out / "generator.json").write_text("{}")
    (out / "weights.bin").write_bytes(b"student of " + recipe.encode())
    note(out, f"end {os.getpid()}")
    return 0


def record(out: Path, number: int, total: int) -> None:
    note(out, f"iteration {number} {os.getpid()}")
    losses = {"loss_fake": 1 / number, "loss_generator": 2 / number}
    left = {"images_per_second": 8 / SECONDS, "eta_seconds": (total - number) * SECONDS}
    event = {"type": "iteration", "iteration": number, "images": number * 8, **losses, **left}
    with (out / "run/events.jsonl").open("a") as events:
        events.write(json.dumps(event) + "\n")
        if number == total:
            figures = {"score": 0.1, "accuracy_1": 0.9, "frechet_1": 40.0}
            events.write(json.dumps({"type": "quality", "iteration": number, **figures}) + "\n")
    if number == total or number % 5 == 0:
        (out / f"run/samples/{number:06d}.png").write_bytes(b"png")
    if number == total or number % 2 == 0 or stopping:
        (out / f"run/checkpoints/{number:06d}").mkdir(parents=True, exist_ok=True)


def evaluate(arguments: list[str]) -> int:
    """A folder's own `figures.json`, else good ones."""
    folder = Path(arguments[0])
    figures = {"accuracy": {"mean": 0.9, "spread": 0.0}, "frechet_distance": {"mean": 40.0, "spread": 0.0}}
    if (folder / "figures.json").is_file():
        figures = json.loads((folder / "figures.json").read_text())
    print(json.dumps({f"{folder.name}, {n} step{'s' if n > 1 else ''}": figures for n in (1, 2)}))
    return 0


def export(arguments: list[str]) -> int:
    """The bundle that the test has laid ready."""
    import shutil

    out = Path(arguments[arguments.index("--out") + 1])
    shutil.copytree(os.environ["STAND_IN_BUNDLE"], out, dirs_exist_ok=True)
    return 0


def note(out: Path, line: str) -> None:
    with (out / "run/runs.txt").open("a") as notes:
        notes.write(line + "\n")


def say(words: str, code: int) -> int:
    print(words, file=sys.stderr)
    return code


def stop(_number: int, _frame: object) -> None:
    global stopping
    stopping = True


if __name__ == "__main__":
    sys.exit(main())
