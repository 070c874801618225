"""Starts the ranks of a distillation on the machines of a Ray cluster, with Ray Train, and waits for them."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, redirect_stderr
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .distillation import distill
from .errors import DistillError, Interrupted, RunFailed
from .files import staging_folder
from .parallel import PATIENCE, Ranks, on_signals
from .recipe import Recipe

REACHABLE = 10  # seconds that the head of a cluster has to answer
TOGETHER = timedelta(minutes=1)  # between ranks that end for the same reason
ADDRESSES = "auto (the cluster of this machine), HOST:PORT of its head, or local (a new one, here)"

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # of a new cluster
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it has workers say all things twice
}
TRIALS = ("RAY_gcs_server_port_wait_time_s", "2")  # to connect, of 40 seconds each, where no cluster answers

Outcome = DistillError | RunFailed | Interrupted | None


class Wire:
    """An actor between the user's terminal and the ranks: takes the wish to stop there, and words back.

    It runs on the node of the terminal, so that no other node's death cuts it.
    """

    def __init__(self) -> None:
        self.stopping, self.listeners = asyncio.Event(), 0
        self.words: asyncio.Queue[str | None] = asyncio.Queue()

    async def stop(self) -> int:
        """How many ranks hear it."""
        self.stopping.set()
        return self.listeners

    async def stopped(self) -> None:
        """Returns when they are to stop."""
        self.listeners += 1
        await self.stopping.wait()

    async def say(self, words: str | None) -> None:
        """`None`: there is no more to be said."""
        await self.words.put(words)

    async def heard(self) -> str | None:
        return await self.words.get()


class Voice(io.TextIOBase):
    """What is written to it appears on the user's terminal."""

    def __init__(self, wire: Any) -> None:
        self.wire = wire

    def write(self, words: str) -> int:
        import ray

        ray.get(self.wire.say.remote(words))
        return len(words)


def distill_on_cluster(
    recipe: Recipe,
    out: Path,
    resume: bool,
    address: str,
    nproc: int | None = None,
    device: str | None = None,
) -> Path:
    """`distill` on workers of a Ray cluster; this machine is one of its nodes.

    The working folder, the student folder and what the recipe reads have to be where all nodes see them.

    Args:
        address: `auto`, `HOST:PORT` of the cluster's head, or `local`.
        nproc: Workers; by default one for each GPU of the cluster, or one.
        device: `cuda`: a GPU for each worker; `cpu`: a CPU. Default: as the cluster has them.

    Raises:
        DistillError: the request is wrong, the cluster cannot be reached or is too small, or its nodes do
            not see the same files.
        RunFailed: as in `distill`, or a worker died; says which.
        Interrupted: asked to stop; the state is saved, if there was one yet.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray.train.torch
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError as error:
        raise DistillError(f"--ray {address} needs Ray Train: pip install 'fewstep[ray]'") from error
    with _connected(address):
        gpu, size = _workers(ray.cluster_resources(), nproc, device)
        Ranks(0, size).share(recipe)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        wire = ray.remote(num_cpus=0, scheduling_strategy=here)(Wire).remote()
        with staging_folder(out.absolute()) as notes:
            shared = [Path.cwd(), notes, *_read_by(recipe)]
            work = partial(_rank, recipe.model_dump_json(), out.absolute(), resume, gpu, wire, shared)
            outcome = _fit(work, size, gpu, wire, notes)
    if outcome is not None:
        raise outcome
    return out


@contextmanager
def _connected(address: str) -> Iterator[None]:
    import ray

    if address != "local":
        _check_reachable(address)
        os.environ.setdefault(*TRIALS)
    try:
        # What workers write would come with what Ray's own actors write, each second. It is all in Ray's logs.
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of many kinds
        raise DistillError(
            f"--ray {address}: no cluster there ({_brief(error)}); expected {ADDRESSES}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise DistillError(f"--ray {address}: expected {ADDRESSES}")
    try:
        socket.create_connection((host, int(port)), timeout=REACHABLE).close()
    except (OSError, OverflowError) as error:
        raise DistillError(f"--ray {address}: nothing answers there ({error})") from error


def _workers(cluster: dict[str, float], nproc: int | None, device: str | None) -> tuple[bool, int]:
    """Whether each has a GPU, and how many there are."""
    gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 0))
    gpu = gpus > 0 if device is None else torch.device(device).type == "cuda"
    size = nproc or (max(1, gpus) if gpu else 1)
    there, kind = (gpus, "GPU") if gpu else (cpus, "CPU")
    if size > there:
        raise DistillError(f"--nproc {size}: the cluster has {there} {kind}(s), one a worker")
    return gpu, size


def _read_by(recipe: Recipe) -> list[Path]:
    """The files and folders of this machine that it names."""
    named = [recipe.teacher, recipe.init, recipe.prompts, recipe.data and recipe.data.source]
    return [Path(name).absolute() for name in named if name and Path(name).exists()]


def _fit(work: Callable[[], Outcome], size: int, gpu: bool, wire: Any, notes: Path) -> Outcome:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    never = FailureConfig(max_failures=0, max_preemption_failures=0)
    trainer = TorchTrainer(
        work,
        scaling_config=ScalingConfig(num_workers=size, use_gpu=gpu),
        torch_config=TorchConfig(backend, timeout_s=int(PATIENCE.total_seconds())),
        run_config=RunConfig(storage_path=str(notes), failure_config=never),
    )
    try:
        return _interruptible(trainer.fit, wire).return_value  # type: ignore[no-any-return]
    except TrainingFailedError as error:
        raise _cause(error) from error


def _interruptible(fit: Callable[[], Any], wire: Any) -> Any:
    """`fit()` in a thread of its own: in the main one Ray would take Ctrl-C and end the ranks unsaved."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(fit())
        except BaseException as error:
            done.set_exception(error)

    with _echoed(wire), on_signals(lambda: _ask_to_stop(wire)):
        threading.Thread(target=run, daemon=True).start()
        return done.result()


@contextmanager
def _echoed(wire: Any) -> Iterator[None]:
    import ray

    def echo() -> None:
        while (words := ray.get(wire.heard.remote())) is not None:
            print(words, end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ray.get(wire.say.remote(None))
        thread.join()


def _ask_to_stop(wire: Any) -> None:
    import ray

    if not ray.get(wire.stop.remote()):
        raise Interrupted("stopped before the training began")


def _cause(error: Exception) -> Exception:
    """What befell one rank: a request that is wrong there alone, or its death, for which the others fail."""
    failures = dict(sorted(getattr(error, "worker_failures", {}).items()))
    raised = {rank: each._base_exc for rank, each in failures.items() if hasattr(each, "_base_exc")}
    for own in raised.values():
        if isinstance(own, DistillError | RunFailed):
            return own
    died = [rank for rank in failures if rank not in raised] or list(failures)
    if not died:
        return RunFailed(f"Ray Train ended the run ({_brief(error)}); go on with --resume")
    cause = _brief({**failures, **raised}[died[0]])
    return RunFailed(f"rank {died[0]} died ({cause}); go on with --resume")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _rank(recipe: str, out: Path, resume: bool, gpu: bool, wire: Any, shared: Sequence[Path]) -> Outcome:
    """What each worker does. What ends all ranks goes back as a value; what ends this one alone is raised,
    and Ray ends the others."""
    from ray.train.torch import get_device

    ranks = Ranks(dist.get_rank(), dist.get_world_size(), partial(_listening, wire))
    ending = dist.new_group(backend="gloo", timeout=TOGETHER)
    device = str(get_device()) if gpu else "cpu"
    try:
        check_shared(shared, ranks)
        os.chdir(shared[0])
        with redirect_stderr(Voice(wire)) if ranks.first else nullcontext():
            distill(Recipe.model_validate_json(recipe), out, resume, device, ranks)
    except (DistillError, RunFailed, Interrupted) as error:
        try:
            dist.barrier(ending)
        except RuntimeError:
            raise error from None
        return error
    return None


def check_shared(paths: Sequence[Path], ranks: Ranks) -> None:
    """Raises:
    DistillError: on all ranks, if one of them does not see one of the paths.
    """
    unseen = next((path for path in paths if not path.exists()), None)
    for host, path in ranks.gather((socket.gethostname(), unseen)):
        if path is not None:
            raise DistillError(
                f"{host} does not see {path}: the working folder, the student folder and what the recipe reads "
                "have to be on a file system that all nodes of the cluster share"
            )


@contextmanager
def _listening(wire: Any, stop: Callable[[], None]) -> Iterator[None]:
    threading.Thread(target=_hear, args=(wire, stop), daemon=True).start()
    yield


def _hear(wire: Any, stop: Callable[[], None]) -> None:
    import ray

    ray.get(wire.stopped.remote())
    stop()
