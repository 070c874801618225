"""The end of a job whose commands have done their work: kept, judged, and published or not.

Every step can be done again after a crash: what is there already is found there.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engines.bundle import Bundle
from engines.errors import EngineError

from ..errors import ServiceError
from .artifacts import Artifacts
from .desk import Claim, Ending
from .gate import Figures, Publish, Verdict, judge, read_figures
from .local import outcome
from .stages import COMPARE, EVALUATE, Plan

log = logging.getLogger(__name__)

NOT_ASKED = "the job did not ask for it"


@dataclass(frozen=True)
class Retention:
    """What is kept.

    Attributes:
        students: Of how many jobs of one name, the newest; None: of all.
        checkpoints: Whether the states of a run are kept after it has succeeded.
    """

    students: int | None = None
    checkpoints: bool = False


class Publisher(Protocol):
    """Where students are served."""

    def publish(
        self, claim: Claim, publish: Publish, bundle: Bundle, verdict: Verdict, rest: Callable[[], None]
    ) -> dict[str, Any]:
        """Serves `bundle`: a share first, then all. Returns what there is to know of the version.

        Raises:
            ServiceError: it is not served, and what was served before still is.
        """


class Conclusion:
    """Called with a claim once its commands are done; says how the job ended."""

    def __init__(self, artifacts: Artifacts, publisher: Publisher, retention: Retention) -> None:
        self.artifacts, self.publisher, self.retention = artifacts, publisher, retention

    def __call__(self, claim: Claim, rest: Callable[[], None]) -> Ending:
        """
        Raises:
            ServiceError: the artifacts cannot be kept; the job's folder still has all of it.
        """
        plan = claim.plan
        bundle = _bundle(plan)
        result: dict[str, Any] = {"student": self._keep(claim, "student", plan.student, ("run",))}
        result["bundle"] = {**self._keep(claim, "bundle", plan.bundle), "bundle_digest": bundle.digest}
        if (plan.student / "run/samples").is_dir():
            result["samples"] = self._keep(claim, "samples", plan.student / "run/samples")
        self.artifacts.sign(claim.job, {"name": plan.name, "bundle": bundle.digest})
        verdict = _verdict(plan, bundle)
        result["verdict"] = verdict.model_dump(mode="json") if verdict else None
        result |= self._publish(claim, bundle, verdict, rest)
        self._tidy(plan)
        served = (
            f"served as {claim.publish.model}" if result["published"] and claim.publish else "not published"
        )
        reasons = "; ".join(result["reasons"])
        return Ending(
            "succeeded", f"The student is {served}" + (f": {reasons}." if reasons else "."), result=result
        )

    def _keep(self, claim: Claim, part: str, folder: Path, skip: tuple[str, ...] = ()) -> dict[str, Any]:
        digest = self.artifacts.put(folder, claim.job, part, skip)
        return {"url": self.artifacts.where(claim.job, part), "digest": digest}

    def _publish(
        self, claim: Claim, bundle: Bundle, verdict: Verdict | None, rest: Callable[[], None]
    ) -> dict[str, Any]:
        """Whether it is served now, and why not."""
        if claim.publish is None or verdict is None:
            return {"published": False, "reasons": [NOT_ASKED]}
        if not verdict.passed:
            return {"published": False, "reasons": verdict.reasons}
        while True:
            try:
                version = self.publisher.publish(claim, claim.publish, bundle, verdict, rest)
                return {"published": True, "reasons": [], "version": version}
            except ServiceError as error:
                if error.status == 503 and error.code != "memory_full":
                    log.warning("job=%s the server cannot take it now: %s", claim.job, error)
                    rest()
                    continue
                log.warning("job=%s not published: %s", claim.job, error)
                return {"published": False, "reasons": [str(error)]}

    def _tidy(self, plan: Plan) -> None:
        """What retention does not want; that it cannot be removed does not undo the job."""
        if not self.retention.checkpoints:
            shutil.rmtree(plan.student / "run" / "checkpoints", ignore_errors=True)
        if self.retention.students is not None:
            try:
                self._forget_old(plan.name, self.retention.students)
            except ServiceError as error:
                log.warning("old artifacts of %s stay: %s", plan.name, error)

    def _forget_old(self, name: str, kept: int) -> None:
        for job in self.artifacts.signed(name)[kept:]:
            for part in ("student", "bundle", "samples"):
                self.artifacts.remove(job, part)
            self.artifacts.unsign(job)
            log.info("job=%s its artifacts are no longer kept", job)


def _bundle(plan: Plan) -> Bundle:
    try:
        return Bundle.load(plan.bundle)
    except EngineError as error:
        raise ServiceError(str(error), status=500) from error


def _verdict(plan: Plan, bundle: Bundle) -> Verdict | None:
    if plan.gate is None:
        return None
    serving: Figures | None = None
    if outcome(plan.folder, COMPARE) is not None:
        serving = read_figures(plan.printed(COMPARE))
    return judge(plan.gate, read_figures(plan.printed(EVALUATE)), serving, psnr_of(bundle))


def psnr_of(bundle: Bundle) -> float | None:
    """The lowest of its pictures against PyTorch, in dB."""
    measured = [one.psnr_db for one in bundle.manifest.certificate.measurements if one.part == "picture"]
    known = [psnr for psnr in measured if psnr is not None]
    return min(known) if known else None
