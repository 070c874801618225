"""A server whose jobs nobody but the test works on, and `fewstep jobs` in this process."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fewstep.cli import main
from service.jobs.leases import Lease
from service.jobs.store import JobStore, NewJob
from service.settings import Settings
from tests.service.fake_runtime import FakeRuntime
from tests.service.running import Running, run_server

FOREVER = 1000.0


@dataclass
class Office:
    """The server, and the store behind it."""

    running: Running

    @property
    def jobs(self) -> Any:
        return self.running.server.config.app.state.service.jobs  # type: ignore[union-attr]

    @property
    def store(self) -> JobStore:
        found: JobStore = self.jobs.store
        return found

    def submit(self, **changes: Any) -> str:
        return self.store.create(NewJob("shapes-sana", "shapes:train", {}, **changes), 1000).id

    def take(self) -> Lease:
        claimed = self.store.claim("test", FOREVER)
        assert claimed is not None
        return claimed[1]

    def progress(self, lease: Lease, iteration: int, **more: Any) -> None:
        """What a runner tells at a heartbeat."""
        told = {
            "stage": "distill",
            "percent": float(iteration),
            "iteration": iteration,
            "iterations": 100,
            "images": 48 * iteration,
            "images_per_second": 12.5,
            "eta_seconds": 100.0 - iteration,
            "losses": {"generator": 1.0 / iteration, "fake": 0.5},
            "quality": {},
            "sample": None,
            **more,
        }
        self.store.heartbeat(lease, FOREVER, told)

    def checkpoint(self, lease: Lease, step: int, colour: str) -> bytes:
        """Returns its grid."""
        folder = Path(self.jobs.folder) / lease.job
        folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(content, "PNG")
        (folder / f"{step}.png").write_bytes(content.getvalue())
        self.store.checkpoint(lease, step, {"generator": 0.5}, f"{step}.png")
        return content.getvalue()

    def succeed(self, lease: Lease, **result: Any) -> None:
        told = {"published": False, "reasons": ["nobody asked for it"], **result}
        self.store.finish(lease, "succeeded", "The student is not published.", "shapes-sana-mine", told)

    def fail(self, lease: Lease) -> None:
        error = {"message": "the disk is full", "code": "job_failed", "param": None}
        self.store.finish(lease, "failed", "the disk is full", error=error)


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
