"""up.sh and secrets.sh, with a docker that only notes how it is called."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from .files import DEPLOY, run


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """A folder for PATH with a `docker` that appends its words to `calls`."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    program.chmod(0o755)
    return program.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A deploy folder of its own, so that nobody's secrets are touched."""
    folder = tmp_path / "deploy"
    folder.mkdir()
    for name in ("up.sh", "secrets.sh"):
        (folder / name).write_bytes((DEPLOY / name).read_bytes())
        (folder / name).chmod(0o755)
    return folder


def environment(docker: Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{docker}:{os.environ['PATH']}"}


def test_one_command_makes_secrets_builds_starts_and_waits(
    checkout: Path, docker: Path, tmp_path: Path
) -> None:
    done = run(checkout / "up.sh", "gpu", env=environment(docker))
    assert done.returncode == 0, done.stderr
    last = (tmp_path / "calls").read_text().splitlines()[-1]
    assert last == "compose --profile gpu up --detach --build --wait --wait-timeout 600"
    assert (checkout / "secrets" / "grafana_admin_password").exists()


def test_jobs_are_kept_in_postgresql(checkout: Path, docker: Path, tmp_path: Path) -> None:
    (docker / "docker").write_text(f'#!/bin/sh\necho "$DATABASE_URL_FILE $*" >> {tmp_path}/calls\n')
    for profile, url in (
        ("jobs", "/run/secrets/database_url"),
        ("jobs-cpu", "/run/secrets/database_url"),
        ("gpu", ""),
        ("ray", ""),
    ):
        assert run(checkout / "up.sh", profile, env=environment(docker)).returncode == 0
        last = (tmp_path / "calls").read_text().splitlines()[-1]
        assert last.startswith(f"{url} compose --profile {profile} up")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), None),
        (("ray",), "COMPOSE_PROFILES=ray\n"),
        (
            ("jobs-cpu", "ray"),
            "COMPOSE_PROFILES=jobs-cpu,ray and DATABASE_URL_FILE=/run/secrets/database_url\n",
        ),
    ],
)
def test_what_the_env_file_wants_is_said(
    checkout: Path, docker: Path, words: tuple[str, ...], wanted: str | None
) -> None:
    """A plain `docker compose up` would otherwise keep jobs elsewhere from then on."""
    done = run(checkout / "up.sh", *words, env=environment(docker))
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(wanted) if wanted else "deploy/.env" not in done.stderr


def test_a_profile_that_is_none_is_refused_before_anything_is_done(checkout: Path, docker: Path) -> None:
    done = run(checkout / "up.sh", "gpus", env=environment(docker))
    assert done.returncode == 2
    assert "'gpus' is not a profile; there are gpu, jobs, jobs-cpu and ray" in done.stderr
    assert not (checkout / "secrets").exists()


@pytest.mark.parametrize(
    ("profiles", "told"), [((), False), (("gpu",), True), (("jobs", "ray"), True), (("jobs-cpu",), False)]
)
def test_what_does_not_come_up_is_told_with_what_gpus_need(
    checkout: Path, docker: Path, profiles: tuple[str, ...], told: bool
) -> None:
    (docker / "docker").write_text('#!/bin/sh\ncase "$*" in *" up "*) exit 7 ;; esac\n')
    done = run(checkout / "up.sh", *profiles, env=environment(docker))
    assert done.returncode == 7, "as compose ended"
    assert "not everything is up" in done.stderr.splitlines()[-1]
    assert ("NVIDIA Container Toolkit; jobs-cpu needs none" in done.stderr) == told


def test_a_machine_without_compose_is_told(checkout: Path, docker: Path) -> None:
    (docker / "docker").write_text("#!/bin/sh\nexit 1\n")
    done = run(checkout / "up.sh", env=environment(docker))
    assert done.returncode == 2
    assert "compose" in done.stderr


def test_secrets_are_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    assert run(DEPLOY / "secrets.sh", folder).returncode == 0
    first = {path.name: path.read_text() for path in folder.iterdir()}
    assert len(first) == 4
    assert run(DEPLOY / "secrets.sh", folder).stderr == ""
    assert {path.name: path.read_text() for path in folder.iterdir()} == first


def test_secrets_are_long_and_differ(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(DEPLOY / "secrets.sh", tmp_path / name)
    passwords = [
        (tmp_path / folder / name).read_text()
        for folder in ("a", "b")
        for name in ("grafana_admin_password", "postgres_password", "ray_token")
    ]
    assert len(set(passwords)) == 6
    assert all(re.fullmatch(r"[\w.]{32}", password, re.ASCII) for password in passwords)


def test_a_secret_of_ones_own_stays(tmp_path: Path) -> None:
    (tmp_path / "postgres_password").write_text("mine")
    run(DEPLOY / "secrets.sh", tmp_path)
    assert (tmp_path / "postgres_password").read_text() == "mine"
    assert (tmp_path / "database_url").read_text() == "postgresql://fewstep:mine@postgres:5432/fewstep"


def test_other_people_of_the_machine_cannot_look_in(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    run(DEPLOY / "secrets.sh", folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(not path.stat().st_mode & 0o222 for path in folder.iterdir())


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(DEPLOY / "secrets.sh", tmp_path / "file" / "secrets")
    assert done.returncode != 0
    assert done.stderr


def test_the_smoke_test_takes_the_volumes_of_every_profile_down(docker: Path, tmp_path: Path) -> None:
    """restore.sh makes them all, in a run of the default profile, too."""
    lines = (DEPLOY / "smoke.sh").read_text()
    functions = re.findall(
        r"^compose\(\) [^\n]*$|^take_down\(\) \{\n.*?^\}$", lines, re.MULTILINE | re.DOTALL
    )
    assert len(functions) == 2
    here = tmp_path / "here"
    here.mkdir()
    (here / "compose.json").write_text("{}")
    given = f"project=fewstep-smoke here={here} profiles=()"
    done = run("bash", "-euc", "\n".join([given, *functions, "take_down"]), env=environment(docker))
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "calls").read_text().split()
    assert words[words.index("--profile") + 1] == "*"
    assert words[-4:] == ["down", "--volumes", "--timeout", "10"]
    assert not here.exists()
