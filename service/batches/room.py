"""All that a server has of batches, made from its settings."""

from __future__ import annotations

from ..jobs.room import Jobs
from ..metrics import Metrics
from ..models import Models
from ..settings import Settings
from .attendance import Workplace
from .intake import Intake
from .lines import Limits
from .runner import Runner
from .store import BatchStore


class Batches:
    """The store of batches, beside that of jobs, and what works on them."""

    def __init__(self, settings: Settings, metrics: Metrics, models: Models, jobs: Jobs) -> None:
        self.limit = settings.batch_queue_limit
        self.store = BatchStore(jobs.database)
        self.intake = Intake(jobs.uploads, Limits(settings.batch_max_lines, settings.max_body_bytes))
        folder = settings.data_dir / "batches"
        place = Workplace(self.store, self.intake, jobs, models, settings, metrics, folder)
        self._runner = Runner(place)

    def start(self) -> None:
        """From the event loop that serves the models."""
        self._runner.start()

    async def stop(self) -> None:
        await self._runner.stop()
