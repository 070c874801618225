"""The database of jobs: SQLite in the data folder, or PostgreSQL by its URL; migrated when it is opened."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from ..errors import ServiceError

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30.0
CONNECT_SECONDS = 5
MIGRATING = threading.Lock()
"""Alembic keeps what it works on in its modules."""
DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}


class StoreGoneError(ServiceError):
    """The database does not answer, or not to this version; it may come back, and nothing that it said is lost."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The job store cannot be used ({reason}); jobs and files wait for it, pictures do not.",
            status=503,
            code="store_unavailable",
            headers={"Retry-After": "5"},
        )


class Outage:
    """Of a store that is asked again and again: a line of the log when it goes, and one when it is back."""

    def __init__(self, log: logging.Logger) -> None:
        self._log, self._on = log, False

    @contextmanager
    def outlived(self, failed: str) -> Iterator[None]:
        """One try of many, from which no error gets out.

        Args:
            failed: What the log says of errors that are not the store's.
        """
        try:
            yield
            self.end()
        except StoreGoneError as error:
            if not self._on:
                self._log.warning("%s", error)
            self._on = True
        except Exception:
            self._log.exception(failed)

    def end(self) -> None:
        """The store has answered."""
        if self._on:
            self._log.info("the store of jobs answers again")
        self._on = False


class Database:
    """Transactions on one database."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/NAME`.

        Raises:
            ServiceError: not such a URL, or its driver is missing.
        """
        self.engine = _engine(url)
        self._migrated = False

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction: all of it or nothing; its objects stay readable afterwards.

        Raises:
            StoreGoneError: the database does not answer, or its tables are of a later version.
        """
        try:
            if not self._migrated:
                self.migrate()
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
        except PoolTimeout as error:
            raise StoreGoneError("all connections are in use") from error
        except DBAPIError as error:
            if _is_gone(error):
                raise StoreGoneError(_reason(error)) from error
            raise

    def migrate(self) -> None:
        """Brings the tables to this version; two servers may do so at once, and threads after one another.

        Raises:
            StoreGoneError: they are of a later version, as after a roll back.
        """
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with MIGRATING, self.engine.begin() as connection:
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                reason = f"its tables are those of a later version of fewstep: {error}"
                raise StoreGoneError(reason) from error
        self._migrated = True

    def close(self) -> None:
        self.engine.dispose()


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        parsed = parsed.set(drivername=DRIVERS.get(parsed.drivername, parsed.drivername))
        if parsed.get_backend_name() == "postgresql":
            return create_engine(
                parsed, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_SECONDS}
            )
        if parsed.get_backend_name() != "sqlite":
            raise ArgumentError("expected sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME")
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin_immediate)
        return engine
    except NoSuchModuleError as error:
        raise ServiceError(f"database_url: {error}") from error
    except ModuleNotFoundError as error:
        message = f"database_url needs {error.name}: pip install 'fewstep[postgresql]'"
        raise ServiceError(message) from error
    except (SQLAlchemyError, OSError) as error:
        raise ServiceError(f"database_url: {error}") from error


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # so that the driver begins nothing of its own
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Any) -> None:
    """SQLite has one writer: taken at the start, a transaction that reads and then writes never fails half-way."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _is_gone(error: DBAPIError) -> bool:
    """Rather than a fault of the statement."""
    return error.connection_invalidated or type(error).__name__ in ("OperationalError", "InterfaceError")


def _reason(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
