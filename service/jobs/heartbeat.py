"""Keeps a job's lease alive while it is worked on, and hears what is wished of it."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import TracebackType

from .database import StoreGoneError
from .desk import Claim, Desk
from .leases import LeaseLostError
from .local import renew
from .tables import Wish
from .tail import Progress

log = logging.getLogger(__name__)


class Heartbeat:
    """A thread beside the work on one job.

    Each beat renews the claim in the store and then the lease of the command. While the store does not answer
    neither is renewed: the command, whose lease is the shorter one, has stopped by the time that another
    runner may take the job.

    Attributes:
        wish: The last one heard other than `run`.
        lost: Whether the job is another's.
    """

    def __init__(self, desk: Desk, claim: Claim, progress: Progress, seconds: float) -> None:
        self.wish: Wish = "run"
        self.lost = False
        self._desk, self._claim, self._progress, self._seconds = desk, claim, progress, seconds
        self._folder: Path = claim.plan.folder
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{claim.job}", daemon=True)

    def __enter__(self) -> Heartbeat:
        self.beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def beat(self) -> None:
        try:
            wish = self._desk.heartbeat(self._claim, self._progress)
        except LeaseLostError:
            self.lost = True
            return
        except StoreGoneError as error:
            log.warning("job=%s the store does not answer: %s", self._claim.job, error)
            return
        renew(self._folder)
        if wish != "run":
            self.wish = wish

    def _run(self) -> None:
        while not self.lost and not self._done.wait(self._seconds):
            try:
                self.beat()
            except Exception:
                log.exception("job=%s heartbeat failed", self._claim.job)
