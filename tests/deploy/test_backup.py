"""backup.sh and restore.sh with real databases; `docker compose` runs what it is given on this machine instead."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from service.jobs.database import Database, sqlite_url
from service.jobs.store import JobStore, NewJob

from ..service.jobs.postgres import missing, postgres
from .files import DEPLOY, ROOT, run

DOCKER = """#!/usr/bin/env bash
# docker compose --profile '*' VERB ...; /data is a folder of the test's
set -euo pipefail
echo "${*:4}" >>"$HERE/calls"
words=("${@//\\/data/$HERE/data}")
case $4 in
ps) cat "$HERE/running" ;;
exec) [ "$6" = postgres ] || export FEWSTEP_DATABASE_URL_FILE=$WHERE; exec "${words[@]:6}" ;;
run) exec sh "${words[@]:10}" ;;
esac
"""


@dataclass
class Installation:
    """Attributes: folder: its deploy folder's parent; url: of its jobs; environment: in which the scripts run."""

    folder: Path
    url: str
    environment: dict[str, str]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def script(self, name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return run(self.folder / "deploy" / name, *words, env=self.environment, cwd=self.folder)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def submit(self) -> str:
        database = Database(self.url)
        database.migrate()
        job = JobStore(database).create(
            NewJob(model="shapes-sana", training_file="f", recipe={"batch": 8}), 100
        )
        database.close()
        return job.id

    def jobs(self) -> list[str]:
        database = Database(self.url)
        database.migrate()
        found = [job.id for job in JobStore(database).page(limit=100)[0]]
        database.close()
        return found


@pytest.fixture(params=["sqlite", "postgresql"])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    if request.param == "sqlite":
        yield prepare(tmp_path, sqlite_url(tmp_path / "data" / "jobs.db"), "", {})
        return
    if (why := missing()) is not None:
        pytest.skip(why)
    with postgres() as server:
        programs = {"PGHOST": str(server.folder)}
        as_superuser = {**os.environ, **programs, "PGUSER": "postgres"}
        for command in ("CREATE ROLE fewstep LOGIN SUPERUSER", "CREATE DATABASE fewstep OWNER fewstep"):
            done = run(program("psql"), "-c", command, env=as_superuser)
            assert done.returncode == 0, done.stderr
        url = f"postgresql://fewstep@/fewstep?host={server.folder}"
        yield prepare(tmp_path, url, "/run/secrets/database_url", programs)


def program(name: str) -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return found[-1] if found else Path(str(shutil.which(name)))


def prepare(folder: Path, url: str, where: str, more: dict[str, str]) -> Installation:
    for name in ("deploy", "bin", "data/files", "data/pictures", "data/bundles/objects"):
        (folder / name).mkdir(parents=True)
    for name in ("backup.sh", "restore.sh"):
        shutil.copy(DEPLOY / name, folder / "deploy" / name)
    (folder / "bin" / "docker").write_text(DOCKER)
    (folder / "bin" / "docker").chmod(0o755)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "running").write_text("api\nprometheus\n" + ("postgres\nworker-cpu\n" if where else ""))
    (folder / "calls").touch()
    (folder / "data" / "files" / "prompts").write_text("a red circle")
    (folder / "data" / "pictures" / "old.png").write_text("picture")
    (folder / "data" / "models.json").write_text("{}")
    programs = f"{program('pg_dump').parent}:" if where else ""
    path = f"{folder / 'bin'}:{programs}{os.environ['PATH']}"
    environment = {**os.environ, **more, "PATH": path, "HERE": str(folder), "WHERE": where}
    return Installation(folder, url, environment)


def test_what_was_backed_up_comes_back(installation: Installation) -> None:
    jobs = {installation.submit(), installation.submit()}
    done = installation.script("backup.sh", "backups/monday")
    assert done.returncode == 0, done.stderr
    later = installation.submit()
    assert set(installation.jobs()) == jobs | {later}
    (installation.data / "files" / "prompts").unlink()
    (installation.data / "models.json").write_text("broken")
    done = installation.script("restore.sh", "backups/monday")
    assert done.returncode == 0, done.stderr
    assert set(installation.jobs()) == jobs, "those of the backup, and only they"
    assert (installation.data / "files" / "prompts").read_text() == "a red circle"
    assert (installation.data / "models.json").read_text() == "{}"


def test_a_lost_database_comes_back(installation: Installation) -> None:
    job = installation.submit()
    assert installation.script("backup.sh", "saved").returncode == 0
    if installation.url.startswith("sqlite"):
        for file in installation.data.glob("jobs.db*"):
            file.write_bytes(b"no database")
    else:
        wipe = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
        assert run(program("psql"), "-U", "fewstep", "-c", wipe, env=installation.environment).returncode == 0
    assert installation.script("restore.sh", "saved").returncode == 0
    assert installation.jobs() == [job]


def test_tables_of_a_later_version_are_taken_away_so_that_an_upgrade_finds_none(
    installation: Installation,
) -> None:
    """A roll back to the backup from before the upgrade, twice; the second backup is of what the first one brought."""
    job = installation.submit()
    for name in ("before", "again"):
        assert installation.script("backup.sh", name).returncode == 0
        database = Database(installation.url)
        with database.engine.begin() as connection:
            connection.execute(text("CREATE TABLE later (id integer)"))
            connection.execute(text("UPDATE alembic_version SET version_num = 'later'"))
        database.close()
        done = installation.script("restore.sh", name)
        assert done.returncode == 0, done.stderr
        assert installation.jobs() == [job]
        database = Database(installation.url)
        assert "later" not in inspect(database.engine).get_table_names()
        database.close()


def test_a_dump_that_cannot_be_read_leaves_the_database_as_it_is(installation: Installation) -> None:
    if installation.url.startswith("sqlite"):
        pytest.skip("SQLite's copy is put in place whole")
    job = installation.submit()
    assert installation.script("backup.sh", "saved").returncode == 0
    (installation.folder / "saved" / "jobs.dump").write_bytes(b"PGDMP of another kind")
    sums = "cd saved && sha256sum data.tar jobs.dump >SHA256SUMS"
    assert run("sh", "-c", sums, cwd=installation.folder).returncode == 0
    assert installation.script("restore.sh", "saved").returncode != 0
    assert installation.jobs() == [job]


def test_pictures_and_caches_are_not_kept_and_nobody_else_may_read(installation: Installation) -> None:
    installation.submit()
    assert installation.script("backup.sh", "saved").returncode == 0
    with tarfile.open(installation.folder / "saved" / "data.tar") as archive:
        names = archive.getnames()
    assert "./files/prompts" in names
    assert "./bundles/objects" in names
    assert not [name for name in names if "pictures" in name or "jobs.db" in name]
    kept = {"data.tar", "SHA256SUMS", "jobs.db" if installation.url.startswith("sqlite") else "jobs.dump"}
    assert {path.name for path in (installation.folder / "saved").iterdir()} == kept
    assert not [path for path in (installation.folder / "saved").iterdir() if path.stat().st_mode & 0o077]
    assert not list(installation.data.glob("jobs.db.copy*"))


def test_who_writes_is_stopped_meanwhile_and_started_again(installation: Installation) -> None:
    installation.submit()
    assert installation.script("backup.sh", "saved").returncode == 0
    assert not [call for call in installation.calls() if call.startswith(("stop", "up"))]
    assert installation.script("restore.sh", "saved").returncode == 0
    writers = "api worker-cpu" if "postgres" in installation.url else "api"
    calls = [call for call in installation.calls() if call.startswith(("stop", "up", "run"))]
    assert calls[0] == f"stop {writers}"
    assert calls[-1] == f"up --detach --no-deps --wait {writers}"


def test_a_backup_that_was_changed_is_not_restored(installation: Installation) -> None:
    installation.submit()
    assert installation.script("backup.sh", "saved").returncode == 0
    with (installation.folder / "saved" / "data.tar").open("ab") as archive:
        archive.write(b"x")
    before = installation.calls()
    done = installation.script("restore.sh", "saved")
    assert (done.returncode, "is not as it was written" in done.stderr) == (1, True)
    assert installation.calls() == before, "nothing was touched"


def test_a_folder_that_is_there_is_not_written_to(installation: Installation) -> None:
    (installation.folder / "saved").mkdir()
    done = installation.script("backup.sh", "saved")
    assert (done.returncode, "is there already" in done.stderr) == (2, True)
    assert not list((installation.folder / "saved").iterdir())


def test_the_commands_of_the_document_save_and_bring_back(installation: Installation) -> None:
    """Without compose."""
    text = (ROOT / "docs" / "operations.md").read_text().split("by hand:\n\n```sh\n")[1].split("```")[0]
    dump, restore, copy = text.splitlines()
    job = installation.submit()
    environment = installation.environment | {
        "FEWSTEP_DATABASE_URL": installation.url,
        "FEWSTEP_DATA_DIR": str(installation.data),
    }

    def by_hand(command: str) -> None:
        done = run("sh", "-c", command, env=environment, cwd=installation.folder)
        assert done.returncode == 0, done.stderr

    sqlite = installation.url.startswith("sqlite")
    by_hand(copy if sqlite else dump)
    installation.submit()
    if sqlite:
        (installation.folder / "jobs.db").replace(installation.data / "jobs.db")
    else:
        by_hand(restore)
    assert installation.jobs() == [job]


def test_a_failing_backup_leaves_no_folder(installation: Installation) -> None:
    """The database of jobs cannot be read."""
    (installation.data / "jobs.db").write_bytes(b"no database at all")
    environment = installation.environment | {"PGHOST": "/nowhere"}
    done = run(
        installation.folder / "deploy" / "backup.sh", "saved", env=environment, cwd=installation.folder
    )
    assert done.returncode != 0
    assert not list(installation.folder.glob("saved*"))


def test_what_is_no_backup_and_what_does_not_run_are_named(tmp_path: Path) -> None:
    made = prepare(tmp_path, "sqlite://", "", {})
    done = made.script("restore.sh", "deploy")
    assert (done.returncode, "'deploy' holds no backup" in done.stderr) == (2, True)
    (tmp_path / "running").write_text("prometheus\n")
    done = made.script("backup.sh", "saved")
    assert (done.returncode, "the server (api) does not run" in done.stderr) == (2, True)
    for name in ("backup.sh", "restore.sh"):
        assert made.script(name).returncode == 2


def test_a_database_of_ones_own_is_said_to_be_missing(tmp_path: Path) -> None:
    made = prepare(tmp_path, "sqlite://", "postgresql://elsewhere/jobs", {})
    done = made.script("backup.sh", "saved")
    assert done.returncode == 0, done.stderr
    assert "in a database of your own" in done.stderr
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"data.tar", "SHA256SUMS"}
    assert made.script("restore.sh", "saved").returncode == 0
