"""The models of this server by name: their versions, who gets which, and what may be done to them.

Whoever makes new bundles in this process publishes them here, on the server's event loop:

    version = await models.publish("shapes", folder, share=0.1, reason="job 7", gate={"passed": True})
    await models.promote("shapes")      # or
    await models.rollback("shapes")

`publish` returns when the bundle has been checked, kept, loaded and warmed, and has its share of the
requests; when it raises `ServiceError` nothing has changed. Publishing what serves already changes nothing, and
publishing the canary's bundle again changes its share, so that a step that was cut off can be repeated.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

from engines.bundle import Bundle
from engines.errors import EngineError
from engines.runtime.base import Runtime

from .bundles import Bundles
from .catalogue import Catalogue, still_loading
from .errors import ServiceError, invalid
from .generator import Generator
from .hosting import POLL_SECONDS, Host, Hosted
from .metrics import Metrics
from .settings import Settings
from .versions import Ledger, Line, Version

log = logging.getLogger(__name__)

ModelState = Literal["ready", "loading", "stalled", "unloaded"]


class Models:
    """Models by name; a name is served once its model has produced pictures.

    Attributes:
        catalogue: Which models there are, under which names.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, runtimes: Mapping[str, Runtime] | None = None
    ) -> None:
        """
        Args:
            runtimes: Served in place of the bundles that the settings name.
        """
        self._settings = settings
        configured = dict(settings.models) if runtimes is None else {name: name for name in runtimes}
        self.catalogue = Catalogue(configured, Ledger(settings.data_dir / "models.json"), metrics)
        self._bundles = Bundles(settings, runtimes)
        self._host = Host(settings, metrics, self._bundles)
        self._draining = self._hurried = False
        self._loading: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._unloading: set[asyncio.Task[None]] = set()

    def start(self) -> asyncio.Task[None]:
        """Loads and warms the models in the background; asked again, returns the same task.

        The task raises `ServiceError` when one of them cannot be served.
        """
        if self._loading is None:
            self._loading = asyncio.create_task(self._start())
        return self._loading

    @property
    def started(self) -> bool:
        return self._loading is not None

    @property
    def generators(self) -> dict[str, Generator]:
        """What serves, of the models that are in memory."""
        found = {name: self.hosted(line.serving) for name, line in self.catalogue.lines.items()}
        return {name: hosted.generator for name, hosted in found.items() if hosted}

    @property
    def status(self) -> Literal["ready", "starting", "draining", "failed", "stalled"]:
        if self._draining:
            return "draining"
        if self._loading is None or not self._loading.done():
            return "starting"
        if self._loading.cancelled() or self._loading.exception() is not None:
            return "failed"
        if not all(hosted.generator.watchdog.healthy for hosted in self._host.hosted.values()):
            return "stalled"
        return "ready"

    def state(self, name: str) -> ModelState:
        """Of the version that serves."""
        line = self.catalogue.lines.get(name)
        return "loading" if line is None else self.state_of(line.serving)

    def state_of(self, version: Version) -> ModelState:
        hosted = self.hosted(version)
        if hosted is not None:
            return "ready" if hosted.generator.watchdog.healthy else "stalled"
        starting = self._loading is None or not self._loading.done()
        return "loading" if starting or self._host.is_loading(version.id) else "unloaded"

    def hosted(self, version: Version) -> Hosted | None:
        return self._host.hosted.get(version.id)

    @asynccontextmanager
    async def use(self, name: str | None, key: str) -> AsyncIterator[Hosted]:
        """The version for a request with this key, kept in memory within the block.

        Raises:
            ServiceError: as `Catalogue.find` and `Host.get`; 503, it is being loaded while the server starts.
        """
        line, pinned = self.catalogue.find(name)
        version = pinned or line.route(key)
        hosted = self.hosted(version)
        if hosted is None:
            hosted = await self._summon(version)
        with hosted.lease():
            yield hosted

    async def spare(self, name: str | None, key: str) -> Generator:
        """As `use`, for work that nobody waits for: no model leaves memory for it, and it keeps none there.

        Raises:
            ServiceError: as `use`.
        """
        line, pinned = self.catalogue.find(name)
        version = pinned or line.route(key)
        return (self.hosted(version) or await self._summon(version, evict=False)).generator

    async def publish(
        self,
        name: str,
        bundle: str,
        share: float = 1.0,
        reason: str = "",
        gate: dict[str, Any] | None = None,
    ) -> Version:
        """Serves `bundle` under `name`, which may be new, to a share of the requests or to all.

        Args:
            bundle: A folder, a shipped name, or a name or digest of the store.
            share: 0 < share <= 1. Below 1 it is a canary, in place of an earlier one; at 1 the version
                that served is the one that `rollback` brings back. The first version of a model gets all.
            gate: What is known of its quality, told to whoever asks for the versions.

        Raises:
            ServiceError: the bundle is not whole, cannot draw, or does not fit.
        """
        if not 0 < share <= 1:
            raise invalid("share", "Invalid 'share': more than 0 and at most 1 is accepted.")
        async with self._changing:
            self._check_open()
            line = self.catalogue.line_or_new(name)
            digest = (await self._bundle(name, bundle)).digest
            known = next((one for one in line.versions if one.digest == digest and one.share > 0), None)
            if known is not None:
                line = _shared_anew(line, known, share)
            else:
                known = line.new(digest, bundle, reason, gate)
                line = await self._kept(line, known, share)
            await self._commit(line)
        return next(one for one in line.versions if one.id == known.id)

    async def promote(self, name: str) -> Line:
        """The canary serves all requests.

        Raises:
            ServiceError: 404, no such model; 409, it has no canary.
        """
        return await self._turned(name, Line.promoted)

    async def rollback(self, name: str) -> Line:
        """Withdraws the canary; without one, the version before serves again.

        Raises:
            ServiceError: 404, no such model; 409, there is nothing to go back to.
        """
        return await self._turned(name, Line.rolled_back)

    async def load(self, name: str, bundle: str | None = None) -> Version:
        """Has a model, or a version of it, in memory; with a bundle, publishes that.

        Raises:
            ServiceError: as `publish` and `find`.
        """
        if bundle is not None:
            return await self.publish(name, bundle, reason="loaded")
        self._check_open()
        line, pinned = self.catalogue.find(name)
        await self._host.get(pinned or line.serving)
        return pinned or line.serving

    async def unload(self, name: str) -> Version:
        """Takes a model, or a version of it, out of memory once its images are finished.

        Raises:
            ServiceError: 404, no such model.
        """
        line, pinned = self.catalogue.find(name)
        leaving = [pinned] if pinned else line.versions
        seconds = self._settings.drain_seconds
        await asyncio.gather(*(self._host.unload(version.id, seconds) for version in leaving))
        return pinned or line.serving

    async def alias(self, name: str, model: str | None) -> None:
        """Another name for a model or for a version of it; none takes the alias away.

        Raises:
            ServiceError: 404, no such model or alias; 409, a model has that name.
        """
        async with self._changing:
            if model is None:
                await self.catalogue.forget_alias(name)
            else:
                await self.catalogue.alias(name, model)

    async def drain(self, seconds: float) -> None:
        """Refuses new images, gives those inside `seconds` to finish, and ends the workers."""
        self._draining = True
        if self._loading is not None:
            self._loading.cancel()
        self._host.close_doors()
        deadline = time.monotonic() + seconds
        while self._inflight and time.monotonic() < deadline and not self._hurried:
            await asyncio.sleep(POLL_SECONDS)
        if self._inflight:
            log.warning("%d images did not finish within %g s", self._inflight, seconds)
        await self._host.close()
        await asyncio.gather(*self._unloading, return_exceptions=True)

    def hurry(self) -> None:
        """Ends a drain early."""
        self._hurried = True

    def bundle_of(self, version: Version) -> Bundle:
        """
        Raises:
            ServiceError: 409, it is gone from disk.
        """
        try:
            return self._bundles.of(version)
        except EngineError as error:
            raise ServiceError(f"model {version.id}: {error}", status=409, code="bundle_unusable") from error

    @property
    def _inflight(self) -> int:
        return sum(hosted.generator.inflight for hosted in self._host.hosted.values())

    async def _start(self) -> None:
        await self.catalogue.read()
        for name, reference in self.catalogue.configured.items():
            self.catalogue.configure(name, (await self._bundle(name, reference)).digest, reference)
        self.catalogue.tell_shares()
        for line in list(self.catalogue.lines.values()):
            await self._start_line(line)

    async def _start_line(self, line: Line) -> None:
        """Loads what has a share, as long as there is room; the rest when it is asked for."""
        for version in line.active:
            if version.share > 0:
                try:
                    await self._host.get(version, evict=False)
                except ServiceError as error:
                    await self._bear(line, version, error)

    async def _bear(self, line: Line, version: Version, error: ServiceError) -> None:
        """A version that cannot be loaded does not keep the server down if another one can do its work."""
        if error.code == "memory_full":
            log.info("model=%s is loaded when it is asked for", version.id)
        elif version.state == "canary" or line.one("previous") is not None:
            log.error("model=%s is withdrawn", version.id)
            while version.id in [one.id for one in line.versions if one.share > 0]:
                line = line.rolled_back()
            await self._commit(line)
            await self._start_line(line)
        elif line.name in self.catalogue.configured:
            raise error

    async def _summon(self, version: Version, evict: bool = True) -> Hosted:
        if self._loading is None or not self._loading.done():
            raise still_loading(version.id.rpartition("@")[0])
        if version.state == "retired":
            message = f"'{version.id}' is retired; an administrator can load it again."
            raise ServiceError(message, status=404, param="model", code="model_not_found")
        self._check_open()
        return await self._host.get(version, evict)

    async def _bundle(self, name: str, reference: str) -> Bundle:
        try:
            return await asyncio.to_thread(self._bundles.find, reference)
        except EngineError as error:
            raise ServiceError(f"model {name}: {error}", param="bundle", code="bundle_unusable") from error

    async def _kept(self, line: Line, version: Version, share: float) -> Line:
        """The next line, whose versions all come back after a restart; `version` is in memory."""
        try:
            kept = await asyncio.to_thread(self._bundles.keep, version)
            version = version.model_copy(update={"bundle": kept})
            await self._proven(version)
            for one in line.active:
                line = line.moved(one.number, await asyncio.to_thread(self._bundles.keep, one))
        except EngineError as error:
            message = f"model {line.name}: {error}"
            raise ServiceError(message, param="bundle", code="bundle_unusable") from error
        return line.published(version, share)

    async def _proven(self, version: Version) -> None:
        try:
            await self._host.get(version)
        except ServiceError:
            await asyncio.to_thread(self._bundles.release, version)
            raise

    async def _turned(self, name: str, turn: Callable[[Line], Line]) -> Line:
        """What serves after the turn is in memory before it."""
        async with self._changing:
            self._check_open()
            line = turn(self.catalogue.line(name))
            await self._host.get(line.serving)
            await self._commit(line)
        return line

    async def _commit(self, line: Line) -> None:
        """On disk first; then requests follow it, and what is retired leaves memory in its time."""
        before = self.catalogue.lines.get(line.name, line)
        await self.catalogue.put(line)
        reached = {version.id for version in line.active}
        for version in before.active:
            if version.id not in reached:
                self._later(self._retire(version))

    async def _retire(self, version: Version) -> None:
        await self._host.unload(version.id, self._settings.drain_seconds)
        await asyncio.to_thread(self._bundles.release, version)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)

    def _check_open(self) -> None:
        if self._draining:
            raise ServiceError("The server is shutting down.", status=503, code="shutting_down")
        if self._loading is None or not self._loading.done():
            raise still_loading(self.catalogue.names[0])


def _shared_anew(line: Line, known: Version, share: float) -> Line:
    """What serves stays; a canary gets the share, and takes over at 1."""
    if known.state == "serving":
        return line
    if share == 1:
        return line.promoted()
    return line.with_share(share)
