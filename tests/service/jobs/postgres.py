"""A PostgreSQL server of the tests' own: on a socket in a folder, without a port, gone with the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = ("-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB")


def missing() -> str | None:
    """Why there can be none here."""
    if _program("initdb") is None:
        return "PostgreSQL is not installed"
    if os.getuid() == 0 and not _has_user("postgres"):
        return "PostgreSQL does not run as root, and there is no user postgres"
    return None


class Postgres:
    """Attributes: url: of its one database."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.url = f"postgresql://postgres@/postgres?host={folder}"

    def start(self) -> None:
        options = " ".join([*SERVER, "-k", str(self.folder)])
        log = str(self.folder / "log")
        _run("pg_ctl", "-D", str(self.data), "-l", log, "-w", "-t", "60", "-o", options, "start")

    def stop(self) -> None:
        """At once, as a crash would."""
        _run("pg_ctl", "-D", str(self.data), "-w", "-m", "immediate", "stop")

    @property
    def running(self) -> bool:
        return (self.data / "postmaster.pid").exists()


@contextmanager
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="fewstep-pg-"))  # short: a socket's path has at most 107 bytes
    try:
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
        server = Postgres(folder)
        _run("initdb", "-D", str(server.data), "-U", "postgres", "-A", "trust", "--no-sync")
        server.start()
        try:
            yield server
        finally:
            if server.running:
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(name: str, *arguments: str) -> None:
    program = _program(name)
    assert program is not None
    as_user = ("runuser", "-u", "postgres", "--") if os.getuid() == 0 else ()
    subprocess.run(
        [*as_user, str(program), *arguments],
        check=True,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=120,
    )


def _program(name: str) -> Path | None:
    """Debian keeps a server's programs off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    on_path = shutil.which(name)
    return found[-1] if found else Path(on_path) if on_path else None


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
