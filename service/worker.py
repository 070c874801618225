"""`fewstep worker`: runs jobs and serves nothing."""

from __future__ import annotations

import logging
import signal
import threading

from . import logs
from .errors import ServiceError
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

log = logging.getLogger(__name__)


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
    server = _server(settings)
    workers = make_workers(settings, JobStore(database, announcement), find_file, server)
    workers.start()
    print(f"fewstep runs jobs and publishes on {settings.jobs_server}", flush=True)
    ending.wait()
    workers.stop()
    database.close()
    return 0


def _server(settings: Settings) -> Remote:
    """
    Raises:
        ServiceError: it is there and wants another key.
    """
    key = settings.jobs_server_key
    server = Remote(settings.jobs_server, key.get_secret_value() if key else None)
    try:
        server.check()
    except ServiceError as error:
        if error.status in (401, 403) and (key is not None or error.status == 401):
            wanted = "an administrator's key as jobs_server_key (FEWSTEP_JOBS_SERVER_KEY)"
            raise ServiceError(f"{error} A worker needs {wanted}.", param="jobs_server_key") from error
        # A server without keys that lies on another machine still has jobs that publish nothing.
        log.warning("%s Jobs run, but nothing can be published as long as that is so.", error)
    return server
