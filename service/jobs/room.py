"""All that a server has of jobs, made from its settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread

from ..metrics import Metrics
from ..models import Models
from ..settings import Settings
from .database import Database, sqlite_url
from .intake import Intake
from .objects import announcement
from .publish import SameProcess
from .recipes import Recipes
from .store import JobStore
from .upkeep import Upkeep
from .uploads import Uploads
from .webhooks import Webhooks, read_secret
from .workers import make_workers

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 12
"""Calls on the store at once, fewer than its connections; a database that hangs holds up no pictures."""


class Jobs:
    """The store of jobs and files, and what is done about them. Nothing is opened before it is needed."""

    def __init__(self, settings: Settings, metrics: Metrics, models: Models) -> None:
        """
        Args:
            models: Where students are published.

        Raises:
            ServiceError: the database's URL, the webhooks' secret, or a setting of the runners will not do.
        """
        secret = settings.webhook_secret and read_secret(settings.webhook_secret.get_secret_value())
        self.folder: Path = settings.jobs_folder
        self.queue_limit = settings.jobs_queue_limit
        self.database = Database(database_url(settings))
        self.store = JobStore(self.database, announcement)
        self.uploads = Uploads(self.database, settings.data_dir / "files", settings.max_file_bytes)
        self.recipes = Recipes(settings.jobs_teachers, settings.jobs_data)
        self.intake = Intake(self.recipes, self.uploads, settings.webhook_hosts, secret or None)
        webhooks = Webhooks(self.database, secret, settings.webhook_attempts) if secret else None
        self._upkeep = Upkeep(self.store, metrics, webhooks)
        self._server = SameProcess(models)
        self._workers = None
        if settings.jobs_workers:
            self._workers = make_workers(settings, self.store, self.intake.find_file, self._server)
        self._threads = anyio.CapacityLimiter(THREADS)

    def start(self) -> None:
        """From the event loop that serves the models."""
        self._server.bind(asyncio.get_running_loop())
        self._upkeep.start()
        if self._workers is not None:
            self._workers.start()

    def wind_down(self) -> None:
        """Asks the jobs of this process to save their state; `stop` waits until they have."""
        if self._workers is not None:
            self._workers.wind_down()

    def stop(self) -> None:
        if self._workers is not None:
            self._workers.stop()
        self._upkeep.stop()
        self.database.close()

    async def call(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """`call(*arguments)` in a thread, as it may wait for the database."""
        return await anyio.to_thread.run_sync(partial(call, *arguments, **named), limiter=self._threads)


def database_url(settings: Settings) -> str:
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return sqlite_url(settings.data_dir / "jobs.db")
