"""Starts the ranks of a distillation on this machine, with torchrun's launcher, and waits for them."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from uuid import uuid4

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from .checkpoint import Checkpoints
from .distillation import distill
from .errors import DistillError, Interrupted, RunFailed
from .parallel import Ranks, joined
from .recipe import Recipe

SAVING = 3600  # seconds that ranks have to finish their iteration and save it when asked to stop
INTERRUPTED = 130
ERRORS = {kind.__name__: kind for kind in (DistillError, RunFailed)}


def distill_on_ranks(recipe: Recipe, out: Path, resume: bool, device: str, nproc: int) -> Path:
    """`distill` on `nproc` processes, one for each GPU.

    Raises:
        DistillError: the request is wrong, or the batch cannot be divided among the ranks.
        RunFailed: as in `distill`, or a rank died; says which.
        Interrupted: asked to stop; the state is saved.
    """
    Ranks(0, nproc).share(recipe)
    if torch.device(device).type == "cuda" and nproc > torch.cuda.device_count():
        raise DistillError(
            f"--nproc {nproc}: this machine has {torch.cuda.device_count()} GPU(s), one a process"
        )
    for name in ("agent.server.api", "multiprocessing.api"):  # what they log is said again below
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    try:
        outcomes = elastic_launch(_config(nproc), _rank)(recipe.model_dump_json(), out, resume, device)
    except SignalException as error:
        raise Interrupted(_stopped(recipe, out)) from error
    except ChildFailedError as error:
        if any(failure.exitcode == INTERRUPTED for failure in error.failures.values()):
            raise Interrupted(_stopped(recipe, out)) from error
        raise RunFailed(_died(error)) from error
    kind, message = outcomes[0]
    if kind in ERRORS:
        raise ERRORS[kind](message)
    return out


def _rank(recipe: str, out: Path, resume: bool, device: str) -> tuple[str, str]:
    """What each process does. The room's errors are the same on all ranks and go back as values; but
    when asked to stop a rank must not wait for its value to be read, for so was the launcher."""
    with joined(device) as (ranks, own):
        try:
            distill(Recipe.model_validate_json(recipe), out, resume, own, ranks)
        except (DistillError, RunFailed) as error:
            return type(error).__name__, str(error)
        except Interrupted:
            sys.exit(INTERRUPTED)
    return "done", ""


def _config(nproc: int) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=SAVING,
    )


def _stopped(recipe: Recipe, out: Path) -> str:
    latest = Checkpoints(out / "run" / "checkpoints", recipe).latest()
    if latest is None:
        return "stopped before anything was saved"
    return f"stopped at iteration {int(latest.name)}; go on with --resume"


def _died(error: ChildFailedError) -> str:
    """The rank that a signal ended, if there is one: the others fail because of it."""
    failures = sorted(error.failures.items(), key=lambda failure: failure[1].exitcode >= 0)
    rank, failure = failures[0]
    cause = failure.signal_name() if failure.exitcode < 0 else failure.message
    return f"rank {rank} died ({' '.join(str(cause).split())[:200]}); go on with --resume"
