"""The runners of one process: one for each device that its settings give to jobs."""

from __future__ import annotations

import hashlib
import logging
import socket
from functools import partial
from pathlib import Path

from ..errors import ServiceError
from ..folders import make_folder
from ..settings import Settings
from .artifacts import Artifacts
from .conclude import Conclusion, Publisher, Retention
from .desk import StoreDesk
from .local import Backend, Local
from .plans import Commander, FindFile, Planner
from .publish import ModelServer, Publication, serving_bundle
from .ray_jobs import RayJobs
from .runner import Limits, Runner
from .store import JobStore

log = logging.getLogger(__name__)


class Workers:
    """Starts and ends the runners of this process."""

    def __init__(
        self, settings: Settings, store: JobStore, planner: Planner, publisher: Publisher, **limits: float
    ) -> None:
        """
        Args:
            limits: Other intervals than usual, for tests.

        Raises:
            ServiceError: the settings name something that is not there.
        """
        self.settings = settings
        make_folder(settings.jobs_folder, "jobs")
        retention = Retention(settings.jobs_keep_students, settings.jobs_keep_checkpoints)
        self._conclude = Conclusion(Artifacts(settings.artifacts), publisher, retention)
        self._store, self._planner = store, planner
        self._backend = make_backend(settings)
        self._limits = Limits(
            **{"beat_seconds": min(5.0, settings.jobs_lease_seconds / 8), **limits},
            retries=settings.jobs_retries,
        )
        self.runners = [self._runner(device) for device in settings.jobs_devices or ("",)]

    def _runner(self, device: str) -> Runner:
        settings = self.settings
        owner = f"{socket.gethostname()}:{_short(settings.data_dir)}:{device or 'default'}"
        desk = StoreDesk(self._store, owner, settings.jobs_lease_seconds, self._planner)
        commander = Commander(settings, (device,) if device and settings.jobs_backend == "local" else ())
        slot = settings.jobs_folder / f".runner-{device or 'default'}"
        return Runner(desk, self._backend, commander, self._conclude, self._limits, slot)

    def start(self) -> None:
        for runner in self.runners:
            runner.start()

    def wind_down(self) -> None:
        for runner in self.runners:
            runner.stop()

    def stop(self) -> None:
        """Waits until all jobs of this process have saved their state and been given back."""
        self.wind_down()
        for runner in self.runners:
            runner.join()


def make_workers(settings: Settings, store: JobStore, find_file: FindFile, server: ModelServer) -> Workers:
    """
    Raises:
        ServiceError: the settings name something that is not there.
    """
    planner = Planner(settings, find_file, partial(serving_bundle, server, settings.store))
    return Workers(settings, store, planner, Publication(server))


def make_backend(settings: Settings) -> Backend:
    """
    Raises:
        ServiceError: Ray has no address.
    """
    if settings.jobs_backend == "local":
        return Local()
    if settings.jobs_ray_address is None:
        raise ServiceError(
            "jobs_backend ray needs jobs_ray_address (FEWSTEP_JOBS_RAY_ADDRESS), e.g. http://10.0.0.1:8265",
            param="jobs_ray_address",
        )
    return RayJobs(settings.jobs_ray_address, settings.jobs_ray_gpus)


def _short(path: Path) -> str:
    return hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:8]
