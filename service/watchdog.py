"""Notices an engine that has stopped, brings it back, and knows whether it draws."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .engine import Engine
from .memory import give_back
from .phases import Phase

log = logging.getLogger(__name__)

TICK = 1.0
GIVE_BACK_SECONDS = 60.0
"""How often memory that requests have freed goes back to the system, which by itself it does not."""


class Watchdog:
    """A thread beside the phases of one model.

    Attributes:
        healthy: Turns false when a batch runs for longer than `stall_seconds` or the canary picture
            fails, and true when the canary is drawn again.
    """

    def __init__(
        self,
        engine: Engine,
        phases: Sequence[Phase[Any, Any]],
        last_picture: Callable[[], float],
        stall_seconds: float,
        canary_seconds: float,
    ) -> None:
        """
        Args:
            last_picture: When the last picture was finished, on the clock of `time.perf_counter`.
            stall_seconds: How long a batch may take.
            canary_seconds: How long no picture is drawn before the canary is.
        """
        self.healthy = True
        self._engine, self._phases, self._last_picture = engine, phases, last_picture
        self._stall_seconds, self._canary_seconds = stall_seconds, canary_seconds
        self._last_canary = self._gave_back = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def tick(self) -> None:
        if any(phase.oldest_batch() > self._stall_seconds for phase in self._phases):
            self._recover()
        elif not self.healthy or self._idle_seconds() > self._canary_seconds:
            self._turn(self._check())
        if time.perf_counter() - self._gave_back > GIVE_BACK_SECONDS:
            give_back()
            self._gave_back = time.perf_counter()

    def _run(self) -> None:
        while not self._stop.wait(min(TICK, self._stall_seconds / 4)):
            try:
                self.tick()
            except Exception:
                log.exception("the watchdog failed")
                self._turn(False)

    def _idle_seconds(self) -> float:
        return time.perf_counter() - max(self._last_picture(), self._last_canary)

    def _recover(self) -> None:
        log.error("a batch has been running for more than %g s", self._stall_seconds)
        self._turn(False)
        self._bounded(self._engine.restart)
        lost = [thread for phase in self._phases for thread in phase.give_up_stalled(self._stall_seconds)]
        for phase in self._phases:
            phase.replace(lost)  # a phase's batch may be in the hands of another one's worker

    def _check(self) -> bool:
        drawn = self._bounded(self._engine.draws)
        if not drawn:
            self._bounded(self._engine.restart)
            drawn = self._bounded(self._engine.draws)
        self._last_canary = time.perf_counter()
        return bool(drawn)

    def _bounded(self, call: Callable[[], Any]) -> Any:
        """The result of a call that may never return or may fail; None then."""
        results: list[Any] = []

        def run() -> None:
            try:
                results.append(call())
            except Exception as error:
                log.error("%r", error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self._stall_seconds)
        return results[0] if results else None

    def _turn(self, healthy: bool) -> None:
        if healthy != self.healthy:
            log.log(
                logging.INFO if healthy else logging.ERROR, "engine %s", "draws" if healthy else "stalled"
            )
        self.healthy = healthy
