"""The models of this server: loading, warming, finding, draining."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Literal

from engines.bundle import Bundle, find_bundle
from engines.errors import EngineError
from engines.runtime import load_runtime
from engines.runtime.base import Runtime

from .errors import ServiceError
from .generator import Generator
from .metrics import Metrics
from .settings import Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02


class Models:
    """Generators by name; a name is served once its model has produced pictures."""

    def __init__(
        self, settings: Settings, metrics: Metrics, runtimes: Mapping[str, Runtime] | None = None
    ) -> None:
        """
        Args:
            runtimes: Served in place of the bundles that the settings name.
        """
        self._settings, self._metrics, self._runtimes = settings, metrics, runtimes
        self.names = tuple(settings.models if runtimes is None else runtimes)
        self.generators: dict[str, Generator] = {}
        self._draining = self._hurried = False
        self._loading: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Loads and warms the models in the background; asked again, returns the same task.

        The task raises `ServiceError` when one of them cannot be served.
        """
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_all())
        return self._loading

    @property
    def started(self) -> bool:
        return self._loading is not None

    @property
    def status(self) -> Literal["ready", "starting", "draining", "failed", "stalled"]:
        if self._draining:
            return "draining"
        if self._loading is not None and self._loading.done() and len(self.generators) < len(self.names):
            return "failed"
        if not all(generator.watchdog.healthy for generator in self.generators.values()):
            return "stalled"
        return "ready" if len(self.generators) == len(self.names) else "starting"

    def state(self, name: str) -> Literal["ready", "loading", "stalled"]:
        generator = self.generators.get(name)
        if generator is None:
            return "loading"
        return "ready" if generator.watchdog.healthy else "stalled"

    def get(self, name: str | None) -> Generator:
        """
        Raises:
            ServiceError: 404, no such model; 503, it is still loading.
        """
        wanted = self.names[0] if name is None else name
        if wanted in self.generators:
            return self.generators[wanted]
        if wanted in self.names:
            message = f"The model '{wanted}' is loading."
            raise ServiceError(message, status=503, code="model_loading", headers={"Retry-After": "1"})
        served = ", ".join(self.names)
        message = f"The model '{wanted[:100]}' does not exist; this server has: {served}."
        raise ServiceError(message, status=404, param="model", code="model_not_found")

    async def drain(self, seconds: float) -> None:
        """Refuses new images, gives those inside `seconds` to finish, and ends the workers."""
        self._draining = True
        if self._loading is not None:
            self._loading.cancel()
        for generator in self.generators.values():
            generator.close_door()
        deadline = time.monotonic() + seconds
        while self._inflight and time.monotonic() < deadline and not self._hurried:
            await asyncio.sleep(POLL_SECONDS)
        if self._inflight:
            log.warning("%d images did not finish within %g s", self._inflight, seconds)
        for generator in self.generators.values():
            await asyncio.to_thread(generator.close)

    def hurry(self) -> None:
        """Ends a drain early."""
        self._hurried = True

    @property
    def _inflight(self) -> int:
        return sum(generator.inflight for generator in self.generators.values())

    async def _load_all(self) -> None:
        for name in self.names:
            self.generators[name] = await asyncio.to_thread(self._load, name)

    def _load(self, name: str) -> Generator:
        started = time.perf_counter()
        try:
            generator = Generator(name, partial(self._runtime, name), self._settings, self._metrics)
        except EngineError as error:
            raise ServiceError(f"model {name}: {error}") from error
        try:
            generator.warm_up()
        except Exception as error:  # whatever a backend raises
            raise ServiceError(f"model {name} was loaded and cannot draw: {error}", status=500) from error
        log.info("model=%s ready seconds=%.2f", name, time.perf_counter() - started)
        return generator

    def _runtime(self, name: str) -> Runtime:
        if self._runtimes is not None:
            return self._runtimes[name]
        bundle = Bundle.load(find_bundle(self._settings.models[name], self._settings.store))
        return load_runtime(bundle, self._settings.backend, self._settings.threads)
