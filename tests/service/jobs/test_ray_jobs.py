"""Commands of jobs on a real Ray cluster of one node: run, stopped, killed, found again by another server."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import ServiceError
from service.jobs.attend import PROCESS, TICKET, read_json
from service.jobs.local import Command, ask_to_stop, outcome
from service.jobs.ray_jobs import RayJobs
from service.jobs.runner import Runner

from ..running import wait_until
from .paper_desk import PaperDesk
from .test_local import command, pid_of
from .test_runner import LIMITS, claim, keep, make_command, make_plan, starts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WAIT = 90.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of the Jobs API of a node with two CPUs."""
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        context = ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            object_store_memory=10**8,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        try:
            yield f"http://{context.address_info['webui_url']}"
        finally:
            ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / f"job-{tmp_path.name}"
    folder.mkdir()
    return folder


def on_ray(folder: Path, *words: str) -> Command:
    made = command(folder, *words)
    return Command(folder, made.stage, made.arguments, shared_environment(), made.options)


def shared_environment() -> dict[str, str]:
    return {"PYTHONPATH": os.environ.get("PYTHONPATH", os.getcwd())}


def gone(backend: RayJobs, folder: Path) -> None:
    wait_until(lambda: not backend.alive(folder), WAIT)


def test_a_command_runs_to_its_end_and_another_server_sees_it(cluster: str, folder: Path) -> None:
    backend = RayJobs(cluster, gpus=0, cpus=1)
    assert not backend.alive(folder)
    backend.start(on_ray(folder))
    with pytest.raises(ServiceError, match="still alive"):
        RayJobs(cluster, gpus=0).start(on_ray(folder))
    wait_until(lambda: (folder / "pid").exists(), WAIT)
    assert RayJobs(cluster).alive(folder), "a server that was restarted"
    (folder / "go").write_text("3")
    gone(backend, folder)
    ended = outcome(folder, "distill")
    assert ended is not None
    assert (ended["code"], ended["reason"]) == (3, None)
    assert "said" in (folder / "log.txt").read_text()


def test_asked_to_stop_it_saves_and_killed_it_does_not(cluster: str, folder: Path) -> None:
    backend = RayJobs(cluster, gpus=0, cpus=1)
    backend.start(on_ray(folder))
    wait_until(lambda: (folder / "pid").exists(), WAIT)
    ask_to_stop(folder)
    gone(backend, folder)
    ended = outcome(folder, "distill")
    assert ended is not None
    assert (ended["code"], ended["reason"]) == (130, "stopped")

    (folder / "pid").unlink()
    backend.start(on_ray(folder, "deaf"))
    pid = pid_of(folder)
    record = read_json(folder / PROCESS)
    assert record is not None
    backend.kill(folder)
    wait_until(lambda: not _runs(pid), WAIT)


def test_what_waits_for_a_gpu_that_is_not_there_can_be_stopped(cluster: str, folder: Path) -> None:
    backend = RayJobs(cluster, gpus=1)
    backend.start(on_ray(folder))
    assert backend.alive(folder)
    ask_to_stop(folder)
    gone(backend, folder)
    assert not (folder / "pid").exists()
    late = on_ray(folder).with_ticket(str((folder / TICKET).read_text())).line
    RayJobs(cluster, gpus=0).start(on_ray(folder))
    assert subprocess.run(late, timeout=WAIT).returncode == 0, "should Ray find a node for it yet"
    pid_of(folder)
    assert outcome(folder, "distill") is None
    (folder / "go").write_text("0")
    gone(backend, folder)


def test_a_job_goes_through_its_stages_on_the_cluster(cluster: str, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / f"job-{tmp_path.name}", "crash at 6\n")
    desk = PaperDesk([claim(plan)])

    def make(plan: object, stage: str) -> Command:
        made = make_command(plan, stage)  # type: ignore[arg-type]
        environment = {**made.environment, **shared_environment()}
        return Command(made.folder, made.stage, made.arguments, environment, made.options)

    runner = Runner(desk, RayJobs(cluster, gpus=0, cpus=1), make, keep, LIMITS, tmp_path / "slot")
    runner.start()
    wait_until(lambda: desk.endings, WAIT)
    runner.stop()
    runner.join()
    assert desk.endings["job-1"].status == "succeeded", desk.endings
    assert starts(plan) == 2


def test_a_cluster_that_does_not_answer_leaves_the_question_open(tmp_path: Path) -> None:
    nobody = RayJobs("http://127.0.0.1:9", gpus=0)
    with pytest.raises(ServiceError, match=r"jobs_ray_address http://127.0.0.1:9: no cluster there"):
        nobody.start(on_ray(tmp_path))
    (tmp_path / TICKET).write_text("job-1-distill-1")
    assert nobody.alive(tmp_path), "it may be"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    import psutil

    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
