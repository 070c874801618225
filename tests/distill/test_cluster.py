"""`fewstep distill --ray`: a real cluster of two nodes, a worker really killed, a run really stopped."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from distill.cluster import _cause, _workers, check_shared
from distill.distillation import distill
from distill.errors import DistillError, RunFailed
from distill.parallel import ALONE, Ranks
from distill.pipeline import load_pipeline
from distill.recipe import Recipe
from fewstep.cli import main

from .conftest import TINY, events
from .test_parallel import TOLERANCE, figures

pytestmark = pytest.mark.timeout(1800)  # Ray starts ten processes a run; a busy machine takes minutes to

NODES = ("127.0.0.2", "127.0.0.3")  # Ray takes 127.0.0.1 for the machine's outer address
STEPS = 12  # iterations, enough to be killed and stopped between


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two nodes with a CPU each."""
    pytest.importorskip("ray.train.torch", reason="needs the extra `ray`")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # or whatever else is running comes first
        nodes = Cluster()
        try:
            for address in NODES:
                nodes.add_node(
                    num_cpus=1, node_ip_address=address, include_dashboard=False, object_store_memory=10**8
                )
            yield nodes.address
        finally:
            nodes.shutdown()


@pytest.fixture
def recipe_file(tiny_teacher: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    often = {
        "iterations": STEPS,
        "samples_every": STEPS,
        "checkpoint_every": 2,
        "batch": 8,
        "accumulation": 2,
    }
    path.write_text(yaml.safe_dump({"teacher": str(tiny_teacher), **TINY, **often}))
    return path


def at_iteration(number: int, out: Path, act: Callable[[], None]) -> None:
    """Does so from a thread, once that iteration is in the record."""

    def watch() -> None:
        end = time.monotonic() + 900
        while time.monotonic() < end:
            if (out / "run/events.jsonl").exists() and len(events(out)) >= number:
                return act()
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()


def kill_a_worker() -> None:
    ours = psutil.Process().children(recursive=True)
    next(each for each in ours if "RayTrainWorker" in " ".join(each.cmdline())).kill()


@pytest.mark.slow
def test_two_nodes_give_the_losses_of_one_process_though_killed_and_stopped_between(
    cluster: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    command = ["distill", str(recipe_file), "--out", str(out), "--ray", cluster, "--nproc", "2"]

    at_iteration(3, out, kill_a_worker)
    assert main(command) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"fewstep distill: rank [01] died \(.+\); go on with --resume", said)
    assert not (out / "generator.json").exists()

    at_iteration(len(events(out)) + 3, out, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert main([*command, "--resume"]) == 130
    done = len(events(out))
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"fewstep distill: stopped at iteration {done}; go on with --resume"
    assert (out / f"run/checkpoints/{done:06d}").is_dir()
    assert done < STEPS

    assert main([*command, "--resume"]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == [str(out)]
    assert f"distilling {STEPS}/{STEPS}" in told.err, "rank 0's progress, from another process"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "s"]

    alone = tmp_path / "alone"
    distill(Recipe.model_validate(yaml.safe_load(recipe_file.read_text())), alone)
    assert [event["iteration"] for event in events(out)] == list(range(1, STEPS + 1))
    torch.testing.assert_close(figures(out), figures(alone), rtol=TOLERANCE, atol=0)
    assert load_pipeline(str(out)).spec == load_pipeline(str(alone)).spec


@pytest.mark.slow
def test_wrong_requests_on_a_cluster(
    cluster: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["distill", str(recipe_file), "--out", str(tmp_path / "s"), "--ray", cluster]
    assert main([*command, "--nproc", "4"]) == 2
    assert "--nproc 4: the cluster has 2 CPU(s), one a worker" in capsys.readouterr().err
    assert main([*command, "--device", "cuda"]) == 2
    assert "--nproc 1: the cluster has 0 GPU(s), one a worker" in capsys.readouterr().err
    assert main([*command, "--nproc", "2", "--resume"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"fewstep distill: nothing to resume: no checkpoint in {tmp_path / 's/run/checkpoints'}"
    ], "what all ranks find wrong is said once, without a traceback"


class Seen(Ranks):
    """Two ranks, of which the other one is on a node that lacks the second path."""

    def gather(self, value: Any) -> list[Any]:
        return [value, ("node-b", Path("/shared/teacher"))]


def test_what_one_node_does_not_see_is_an_error_on_all(tmp_path: Path) -> None:
    check_shared([tmp_path], ALONE)
    with pytest.raises(DistillError, match=f"does not see {tmp_path}/no: the working folder"):
        check_shared([tmp_path, tmp_path / "no"], ALONE)
    with pytest.raises(DistillError, match="node-b does not see /shared/teacher"):
        check_shared([tmp_path], Seen(0, 2))


def failed(failures: dict[int, Exception]) -> Exception:
    """As Ray Train tells it: what a worker raised is wrapped, what Ray found is not."""
    pytest.importorskip("ray.train.torch", reason="needs the extra `ray`")
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    def wrapped(error: Exception) -> Exception:
        return error if isinstance(error, OSError) else UserExceptionWithTraceback(error, "Traceback ...")

    return WorkerGroupError("", {rank: wrapped(error) for rank, error in failures.items()})


def test_the_worker_that_died_is_named_and_not_those_that_missed_it() -> None:
    missed, dead = RuntimeError("Connection closed by peer"), OSError("The actor died")
    cause = _cause(failed({0: missed, 1: dead}))
    assert isinstance(cause, RunFailed)
    assert str(cause) == "rank 1 died (The actor died); go on with --resume"
    assert str(_cause(failed({1: missed}))) == "rank 1 died (Connection closed by peer); go on with --resume"
    assert str(_cause(RuntimeError("no room"))) == "Ray Train ended the run (no room); go on with --resume"


def test_a_request_that_is_wrong_on_one_node_alone_is_told_as_such() -> None:
    wrong = DistillError("no model 'here'")
    assert _cause(failed({0: OSError("The actor died"), 1: wrong})) is wrong


@pytest.mark.parametrize(
    ("cluster", "asked", "got"),
    [
        ({"CPU": 4.0}, (None, None), (False, 1)),
        ({"CPU": 4.0}, (4, None), (False, 4)),
        ({"CPU": 4.0, "GPU": 8.0}, (None, None), (True, 8)),
        ({"CPU": 4.0, "GPU": 8.0}, (2, "cuda"), (True, 2)),
        ({"CPU": 4.0, "GPU": 8.0}, (None, "cpu"), (False, 1)),
    ],
)
def test_workers_by_what_a_cluster_has(cluster: dict[str, float], asked: Any, got: tuple[bool, int]) -> None:
    assert _workers(cluster, *asked) == got


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "http://head:6379"])
def test_addresses_that_are_none(address: str, recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray.train.torch", reason="needs the extra `ray`")
    assert main(["distill", str(recipe_file), "--ray", address]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fewstep distill: --ray {address}: expected auto")
    assert said.count("\n") == 1


def test_an_address_where_nobody_is(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray.train.torch", reason="needs the extra `ray`")
    with socket.socket() as held:  # bound, and taking no connections
        held.bind(("127.0.0.2", 0))
        address = f"127.0.0.2:{held.getsockname()[1]}"
        assert main(["distill", str(recipe_file), "--ray", address]) == 2
    assert f"--ray {address}: nothing answers there" in capsys.readouterr().err


def test_without_ray(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ray", "ray.train", "ray.train.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["distill", str(recipe_file), "--out", str(tmp_path / "s"), "--ray", "auto"]) == 2
    assert capsys.readouterr().err == (
        "fewstep distill: --ray auto needs Ray Train: pip install 'fewstep[ray]'\n"
    )
    assert not (tmp_path / "s").exists()
