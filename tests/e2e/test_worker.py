"""A server that wants keys and runs no jobs, a worker beside it, and `fewstep jobs` before it: all real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from engines.bundle import SHIPPED, Bundle
from service.keys import add_key

from .conftest import start_server, stop_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAME = "shapes-sana-sid"
SET = ("iterations=2", "batch=4", "quality=null", "samples_every=1", "checkpoint_every=1")


def fewstep(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fewstep", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_a_worker_publishes_on_a_server_with_keys(tmp_path: Path) -> None:
    keys, data = tmp_path / "keys.jsonl", tmp_path / "data"
    admin, alice = add_key(keys, "worker", admin=True), add_key(keys, "alice", jobs=True)
    server = start_server(data, "--model", NAME, "--api-keys", str(keys), "--jobs-workers", "false")
    command = [sys.executable, "-m", "fewstep", "worker", "--data-dir", str(data), "--jobs-nice", "0"]
    own = {**os.environ, "FEWSTEP_JOBS_SERVER_KEY": admin, "FEWSTEP_JOBS_THREADS": "1"}
    worker = subprocess.Popen([*command, "--jobs-server", server.url], env=own)
    prompts, grids = tmp_path / "prompts.txt", tmp_path / "grids"
    prompts.write_text("a red circle on a white background\na blue star on a black background\n")
    wanted = ("--prompts", str(prompts), "--set", *SET, "--gate-images", "2", "--gate-steps", "1")
    published = ("--at-least", "psnr_db=40", "--publish", NAME, "--canary", "0.5", "--canary-seconds", "1")
    try:
        done = fewstep(
            *("jobs", "submit", "shapes-sana", *wanted, *published, "--watch", "--samples", str(grids)),
            FEWSTEP_URL=server.url,
            FEWSTEP_KEY=alice,
        )
        assert done.returncode == 0, done
        assert f"served as {NAME}@2" in done.stdout
        assert (grids / "000002.png").is_file()
        address, headers = f"{server.url}/v1/models/{NAME}/versions", {"Authorization": f"Bearer {alice}"}
        newest, before = httpx.get(address, headers=headers).json()["data"]
        assert (newest["state"], before["state"]) == ("serving", "previous")
        assert before["digest"] == Bundle.load(SHIPPED / NAME).digest != newest["digest"]
        assert newest["reason"].startswith("job ftjob-")
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        assert stop_server(server) == 0
