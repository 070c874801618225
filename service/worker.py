"""`fewstep worker`: runs jobs and serves nothing."""

from __future__ import annotations

import signal
import threading

from . import logs
from .jobs.database import Database
from .jobs.intake import Intake
from .jobs.objects import announcement
from .jobs.publish import Remote
from .jobs.recipes import Recipes
from .jobs.room import database_url
from .jobs.store import JobStore
from .jobs.uploads import Uploads
from .jobs.workers import make_workers
from .settings import Settings


def work(settings: Settings) -> int:
    """Runs jobs until SIGTERM or SIGINT; returns 0 when those on hand have saved their state.

    Raises:
        ServiceError: the settings name something that is not there.
    """
    logs.configure(settings.log_level.upper(), settings.log_format)
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    database = Database(database_url(settings))
    uploads = Uploads(database, settings.data_dir / "files", settings.max_file_bytes)
    find_file = Intake(Recipes((), ()), uploads, (), None).find_file
    key = settings.jobs_server_key
    server = Remote(settings.jobs_server, key.get_secret_value() if key else None)
    workers = make_workers(settings, JobStore(database, announcement), find_file, server)
    workers.start()
    print(f"fewstep runs jobs and publishes on {settings.jobs_server}", flush=True)
    ending.wait()
    workers.stop()
    database.close()
    return 0
