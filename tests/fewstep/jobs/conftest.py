"""`fewstep jobs` in this process, and the server that it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fewstep.cli import main
from service.settings import Settings
from tests.service.fake_runtime import FakeRuntime
from tests.service.jobs.office import Office
from tests.service.running import run_server


def settings_in(folder: Path) -> Settings:
    return Settings(data_dir=folder / "data", log_level="warning", jobs_queue_limit=3, max_file_bytes=4096)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


@pytest.fixture(scope="module")
def empty_office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """Shared by tests that leave nothing in it."""
    with run_server(settings_in(tmp_path_factory.mktemp("empty")), {"fake": FakeRuntime()}) as running:
        yield Office(running)


@pytest.fixture
def empty(empty_office: Office, monkeypatch: pytest.MonkeyPatch) -> Office:
    monkeypatch.setenv("FEWSTEP_URL", empty_office.running.url)
    return empty_office


@pytest.fixture
def office(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        monkeypatch.setenv("FEWSTEP_URL", running.url)
        yield Office(running)


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Jobs = Callable[..., Said]


@pytest.fixture
def jobs(capsys: pytest.CaptureFixture[str]) -> Jobs:
    """`fewstep jobs …`."""

    def run(*words: object) -> Said:
        try:
            code = main(["jobs", *map(str, words)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run
