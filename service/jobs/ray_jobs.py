"""Commands of jobs on an existing Ray cluster, by the Ray Jobs API.

The nodes have to see the data folder under the same path and have fewstep installed in the same place. Asking a
command to stop, its lease and how it ended go by the files of `attend.py`, as on one machine.
"""

from __future__ import annotations

import logging
import shlex
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..errors import ServiceError
from .attend import STOP, TICKET, read_text, write_text
from .local import SETTLING_SECONDS, Command, ask_to_stop, forget_the_one_before

log = logging.getLogger(__name__)

WAITING = "PENDING"
LIVING = (WAITING, "RUNNING")


@dataclass(frozen=True)
class RayJobs:
    """A backend.

    Attributes:
        address: Of the cluster's dashboard, e.g. `http://10.0.0.1:8265`.
        gpus, cpus: Of each command; Ray finds the node that has them.
    """

    address: str
    gpus: float = 1.0
    cpus: float = 1.0

    @cached_property
    def _client(self) -> Any:
        """
        Raises:
            ServiceError: Ray is not installed, or no cluster answers.
        """
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise ServiceError("jobs_backend ray needs Ray: pip install 'fewstep[ray]'") from error
        try:
            return JobSubmissionClient(self.address)
        except Exception as error:  # of many kinds
            reason = " ".join(str(error).split())[:200]
            raise ServiceError(f"jobs_ray_address {self.address}: no cluster there ({reason})") from error

    def start(self, command: Command) -> None:
        if self.alive(command.folder):
            raise ServiceError(f"a process of {command.folder.name} is still alive", status=500)
        submission = f"{command.folder.name}-{command.stage}-{uuid4().hex[:8]}"
        forget_the_one_before(command)
        # Written first: if this process dies now, whoever comes next asks Ray whether it has the job.
        write_text(command.folder / TICKET, submission)
        try:
            self._client.submit_job(
                entrypoint=shlex.join(command.with_ticket(submission).line),
                submission_id=submission,
                runtime_env={"env_vars": dict(command.environment)},
                entrypoint_num_gpus=self.gpus or None,
                entrypoint_num_cpus=self.cpus or None,
            )
        except RuntimeError as error:
            raise ServiceError(f"Ray refused {submission}: {_first_line(error)}", status=500) from error

    def alive(self, folder: Path) -> bool:
        """Also while the cluster does not answer: what may be alive must not get a second process."""
        submission = read_text(folder / TICKET)
        if submission is None:
            return False
        status = self._status(submission)
        if status == WAITING and (folder / STOP).exists():
            # Ray ends what waits for a node only when it has found one; by then the stop or another ticket does.
            self._client.stop_job(submission)
            return False
        return status is None or status in LIVING

    def kill(self, folder: Path) -> None:
        deadline = time.monotonic() + SETTLING_SECONDS + 10  # Ray gives it three seconds itself
        ask_to_stop(folder)
        while self.alive(folder):
            submission = read_text(folder / TICKET)
            try:
                self._client.stop_job(submission)
            except RuntimeError as error:
                log.warning("%s: %s", submission, _first_line(error))
            if time.monotonic() > deadline:
                raise ServiceError(f"the process of {folder.name} cannot be killed", status=500)
            time.sleep(0.2)

    def _status(self, submission: str) -> str | None:
        """None: unknown, for the cluster does not answer."""
        try:
            return str(self._client.get_job_status(submission).value)
        except RuntimeError as error:
            if "404" in str(error) or "does not exist" in str(error):
                return "UNKNOWN"
            log.warning("Ray at %s: %s", self.address, _first_line(error))
        except (OSError, ServiceError) as error:  # requests' errors are OSErrors
            log.warning("Ray at %s does not answer: %s", self.address, _first_line(error))
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
