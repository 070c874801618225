"""Which versions are in memory: loaded when they are wanted, the longest unused give way."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from engines.bundle import Bundle
from engines.errors import EngineError

from .bundles import Bundles, size_of
from .errors import ServiceError
from .generator import Generator
from .memory import give_back, resident_bytes
from .metrics import Metrics
from .settings import Settings
from .traffic import Traffic
from .versions import Version

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02


@dataclass(eq=False)
class Hosted:
    """A version in memory.

    Attributes:
        bytes: What it takes: its files or, if that is more, what the process grew by while it was
            loaded and warmed. Memory of a GPU counts as far as its files do.
        users: Requests that have been given it and have not finished yet.
    """

    version: Version
    generator: Generator
    bytes: int
    users: int = 0
    used: float = field(default_factory=time.monotonic)

    @property
    def idle(self) -> bool:
        return self.users == 0 and self.generator.idle

    @contextmanager
    def lease(self) -> Iterator[Hosted]:
        """Stays in memory within the block, and afterwards for as long as images are inside."""
        self.users += 1
        try:
            yield self
        finally:
            self.users -= 1
            self.used = time.monotonic()


class Host:
    """Loads and unloads, one version at a time, within `models_memory_mb`.

    Attributes:
        hosted: By the id of the version.
    """

    def __init__(self, settings: Settings, metrics: Metrics, bundles: Bundles) -> None:
        self._settings, self._metrics, self._bundles = settings, metrics, bundles
        self._budget = settings.models_memory_mb << 20
        self._traffic = Traffic()
        self.hosted: dict[str, Hosted] = {}
        self._leaving: set[Hosted] = set()
        self._loading: dict[str, asyncio.Task[Hosted]] = {}
        self._measured: dict[str, int] = {}
        self._one_at_a_time = asyncio.Lock()
        self._closed = False

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in (*self.hosted.values(), *self._leaving))

    def is_loading(self, id: str) -> bool:
        return id in self._loading

    async def get(self, version: Version, evict: bool = True) -> Hosted:
        """The version in memory; whoever asks while it is being loaded waits for the same load.

        Args:
            evict: Whether others that are idle may have to leave for it.

        Raises:
            ServiceError: 507, it is larger than the budget; 503, what is in memory is busy; or
                it cannot be loaded.
        """
        if version.id in self.hosted:
            return self.hosted[version.id]
        if version.id not in self._loading:
            task = asyncio.create_task(self._load(version, evict))
            self._loading[version.id] = task
            task.add_done_callback(partial(self._loaded, version.id))
        # A client that goes away must not take the load with it.
        return await asyncio.shield(self._loading[version.id])

    async def unload(self, id: str, seconds: float) -> None:
        """Takes a version out of memory when its images are finished, after `seconds` in any case."""
        hosted = self.hosted.pop(id, None)
        if hosted is None:
            return
        self._leaving.add(hosted)
        deadline = time.monotonic() + seconds
        while not hosted.idle and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        await self._end(hosted)

    def close_doors(self) -> None:
        """Nothing more is loaded, and no image taken on."""
        self._closed = True
        for hosted in self.hosted.values():
            hosted.generator.close_door()

    async def close(self) -> None:
        """Fails what is still inside and ends all workers; a load under way is waited for."""
        self._closed = True
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        for hosted in list(self.hosted.values()):
            await asyncio.to_thread(hosted.generator.close)

    def _loaded(self, id: str, task: asyncio.Task[Hosted]) -> None:
        self._loading.pop(id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("model=%s cannot be loaded: %s", id, error)

    async def _load(self, version: Version, evict: bool) -> Hosted:
        async with self._one_at_a_time:
            if self._closed:
                raise ServiceError("The server is shutting down.", status=503, code="shutting_down")
            bundle = await asyncio.to_thread(self._found, version)
            await self._make_room(version, self._measured.get(version.digest, size_of(bundle)), evict)
            await asyncio.to_thread(_clear_out)
            started, before = time.perf_counter(), resident_bytes()
            generator = await asyncio.to_thread(self._warm, version)
            give_back()
            taken = max(size_of(bundle), resident_bytes() - before)
            self._measured[version.digest] = taken
            hosted = self.hosted[version.id] = Hosted(version, generator, taken)
            if self._budget and self.bytes > self._budget:
                await self._shrink_for(version)
        seconds, mib = time.perf_counter() - started, taken / 2**20
        log.info("model=%s ready seconds=%.2f mib=%.0f", version.id, seconds, mib)
        self._metrics.hosted(version, taken)
        return hosted

    def _found(self, version: Version) -> Bundle:
        try:
            return self._bundles.of(version)
        except EngineError as error:
            raise ServiceError(f"model {_name(version)}: {error}", code="bundle_unusable") from error

    def _warm(self, version: Version) -> Generator:
        name = _name(version)
        try:
            load = partial(self._bundles.load, version)
            generator = Generator(name, load, self._settings, self._metrics, self._traffic)
        except EngineError as error:
            raise ServiceError(f"model {name}: {error}", code="bundle_unusable") from error
        try:
            generator.warm_up()
        except Exception as error:  # whatever a backend raises
            raise ServiceError(f"model {name} was loaded and cannot draw: {error}", status=500) from error
        return generator

    async def _make_room(self, version: Version, needed: int, evict: bool) -> None:
        if not self._budget:
            return
        if needed > self._budget:
            message = (
                f"'{version.id}' needs {needed >> 20} MiB; this server gives its models"
                f" {self._budget >> 20} MiB (models_memory_mb)."
            )
            raise ServiceError(
                message, status=507, code="model_too_large", headers={"x-should-retry": "false"}
            )
        while self.bytes + needed > self._budget:
            if self._leaving:
                await asyncio.sleep(POLL_SECONDS)
            elif not (evict and await self._evict_one(version)):
                message = f"There is no room for '{version.id}' now: the models in memory are busy."
                raise ServiceError(message, status=503, code="memory_full", headers={"Retry-After": "1"})

    async def _shrink_for(self, version: Version) -> None:
        """After a model turned out larger than its files."""
        while self.bytes > self._budget and await self._evict_one(version):
            pass
        if self.bytes > self._budget:
            log.warning("models take %d MiB, more than models_memory_mb", self.bytes >> 20)

    async def _evict_one(self, version: Version) -> bool:
        idle = [one for one in self.hosted.values() if one.idle and one.version.id != version.id]
        if not idle:
            return False
        oldest = min(idle, key=lambda one: one.used)
        del self.hosted[oldest.version.id]
        self._leaving.add(oldest)
        log.info("model=%s makes room for model=%s", oldest.version.id, version.id)
        self._metrics.evictions.labels(_name(oldest.version)).inc()
        await self._end(oldest)
        return True

    async def _end(self, hosted: Hosted) -> None:
        try:
            await asyncio.to_thread(hosted.generator.close)
        finally:
            self._leaving.discard(hosted)
            self._metrics.unhosted(hosted.version)
        log.info("model=%s unloaded", hosted.version.id)


def _clear_out() -> None:
    gc.collect()  # what has left is a ring of generator, phases and engine
    give_back()


def _name(version: Version) -> str:
    return version.id.rpartition("@")[0]
