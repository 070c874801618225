"""Distillations on two real ranks (gloo), several in one launch because processes are slow to start."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.launcher.api import elastic_launch

from distill.distillation import distill
from distill.errors import Interrupted
from distill.launch import _config
from distill.parallel import joined
from distill.recipe import Recipe
from distill.run import Run

Job = tuple[dict[str, Any], Path, bool, int | None]
"""Recipe, student folder, whether to resume, and after which iteration to stop by a signal to one rank."""


def on_two_ranks(jobs: list[Job]) -> list[list[str]]:
    """Does the jobs one after another; returns what became of each, for each rank."""
    outcomes = elastic_launch(_config(2), _all)(jobs)
    return [outcomes[rank] for rank in (0, 1)]


def _all(jobs: list[Job]) -> list[str]:
    with joined("cpu") as (ranks, device):
        return [_one(job, device, ranks) for job in jobs]


def _one(job: Job, device: str, ranks: Any) -> str:
    content, out, resume, stop_after = job
    record = Run.after_iteration

    def interrupting(self: Run, trainer: Any, iteration: Any) -> None:
        if trainer.state.iteration == stop_after and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        record(self, trainer, iteration)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "after_iteration", interrupting)
        try:
            distill(Recipe.model_validate(content), out, resume, device, ranks)
        except Interrupted as error:
            return str(error)
    return "done"
