"""A job of the store -> what is to be done for it on this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ServiceError
from ..settings import Settings
from .gate import BY_NETWORKS, Gate, Publish
from .local import Command, environment
from .stages import FEWSTEP, Plan, Yardsticks
from .tables import JobRow

FindFile = Callable[[str], str]
"""The id of a file, or the name of a set -> what a recipe calls it: a path, or that name."""
Serving = Callable[[str], Path | None]
"""The bundle that is served under a name now."""


class Options(BaseModel):
    """What a job asks for besides a student.

    Attributes:
        gate: What is measured at the end; with `publish` and without it, the pictures' figures only.
        precision: Of the bundle.
        prompts: What published networks are measured on: a file, or a named set; by default what the
            student was distilled on.
        webhook: Is told of the end.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    gate: Gate | None = None
    publish: Publish | None = None
    precision: str = "fp32"
    prompts: str | None = None


@dataclass(frozen=True)
class Planner:
    """Makes plans with the settings of one server."""

    settings: Settings
    find_file: FindFile
    serving: Serving
    fewstep: tuple[str, ...] = FEWSTEP

    def __call__(self, job: JobRow) -> tuple[Plan, Publish | None]:
        """
        Raises:
            ServiceError: the job asks for something that is not here.
        """
        options = self._options(job)
        gate = options.gate or (Gate() if options.publish else None)
        prompts = self.find_file(job.training_file)
        own = {"teacher": job.model, **job.recipe, "prompts": prompts, "seed": job.seed}
        settings, name = self.settings, student_name(job, options.publish)
        yardsticks = Yardsticks(settings.jobs_clip, settings.jobs_fid_features, settings.jobs_fid_statistics)
        if gate is not None and gate.measures & set(BY_NETWORKS) and not yardsticks.flags:
            raise ServiceError(
                "gate: CLIP and FID need networks; the server has none (FEWSTEP_JOBS_CLIP, FEWSTEP_JOBS_FID_FEATURES)",
                param="gate",
            )
        plan = Plan(
            folder=settings.jobs_folder / job.id,
            name=name,
            recipe=own,
            gate=gate,
            serving=partial(self.serving, options.publish.model) if options.publish else _nothing,
            prompts=self.find_file(options.prompts) if options.prompts else prompts,
            yardsticks=yardsticks,
            precision=options.precision,
            fewstep=self.fewstep,
        )
        return plan, options.publish

    def _options(self, job: JobRow) -> Options:
        try:
            return Options.model_validate(job.options)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ServiceError(f"{where}: {first['msg']}", param=where) from error


def _nothing() -> None:
    """Is served under no name."""


def student_name(job: JobRow, publish: Publish | None) -> str:
    """What the student's folder is called, and what its card and its bundle say that they are."""
    if publish is not None:
        return publish.model
    teacher = Path(job.model).name
    return re.sub(r"[^\w.-]+", "-", f"{teacher}-{job.suffix or job.id[-8:]}").strip("-.")[:64]


@dataclass(frozen=True)
class Commander:
    """Makes a plan's stage a command that keeps to its share of the machine."""

    settings: Settings
    devices: tuple[str, ...] = ()

    def __call__(self, plan: Plan, stage: str) -> Command:
        settings = self.settings
        options = {
            "--lease-seconds": settings.jobs_lease_seconds / 2,
            "--grace-seconds": settings.jobs_stop_seconds,
            "--nice": settings.jobs_nice,
        }
        flags = tuple(str(word) for pair in options.items() for word in pair)
        own = environment(settings.jobs_threads, self.devices)
        return Command(plan.folder, stage, plan.command(stage), own, flags)
