"""Follows a job to its end, over servers that go away and come back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from service.errors import ServiceError

from .client import BusyError, JobServer, UnreachableError
from .display import View

Json = dict[str, Any]
ENDED = ("succeeded", "failed", "cancelled")
SHORTEST_WAIT, LONGEST_WAIT = 0.5, 10.0


class Watch:
    """One job of a server, told to a view as it happens."""

    def __init__(
        self,
        server: JobServer,
        job: Json,
        view: View,
        samples: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """
        Args:
            samples: A folder for the grids of what the student draws.
        """
        self._server, self._job, self._view, self._samples = server, job, view, samples
        self._sleep = sleep
        self._last: str | None = None
        self._shown = ""

    def follow(self) -> Json:
        """Returns the job when it has ended.

        Raises:
            ServiceError: it is not there any more, or the key will not do.
            OSError: a grid cannot be written.
        """
        wait = 0.0
        while True:
            try:
                for id, content in self._server.events(self._job["id"], self._last):
                    wait = self._recovered(wait)
                    self._take(id, content)
                if self._job["status"] in ENDED:
                    return self._job
            except (UnreachableError, BusyError) as error:
                self._view.gone(str(error))
            wait = min(LONGEST_WAIT, 2 * wait or SHORTEST_WAIT)
            self._sleep(wait)

    def _recovered(self, wait: float) -> float:
        if wait:
            self._view.back()
        return 0.0

    def _take(self, id: str | None, content: Json) -> None:
        if id is not None:
            self._last = id
            self._view.event(content)
            return
        self._job = content
        self._view.job(content)
        if content["progress"].get("sample"):
            self._show_newest()

    def _show_newest(self) -> None:
        """A grid comes with its checkpoint, somewhat later than the job knows of it."""
        try:
            found = self._server.get(f"/{self._job['id']}/checkpoints", limit=1)["data"]
            for newest in found:
                if newest["sample_url"] and newest["id"] != self._shown:
                    self._shown = newest["id"]
                    self._view.sample(self._kept(newest))
        except UnreachableError:
            raise
        except ServiceError as error:  # the grid lies on another machine, say
            self._view.sample(str(error))

    def _kept(self, checkpoint: Json) -> str:
        """Where its grid is."""
        if self._samples is None:
            return f"{self._server.url}{checkpoint['sample_url']}"
        file = self._samples / f"{checkpoint['step_number']:06d}.png"
        write(file, self._server.fetch(checkpoint["sample_url"]))
        return str(file)


def write(file: Path, content: bytes) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid4().hex[:8]}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(samples: Path | None) -> None:
    """
    Raises:
        ServiceError: grids cannot be kept there.
    """
    if samples is not None and samples.exists() and not samples.is_dir():
        raise ServiceError(f"--samples {samples}: expected a folder, this is a file")
