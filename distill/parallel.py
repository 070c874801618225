"""Several processes on one distillation: what each computes, and what they have to agree on.

Every rank runs the same loop. It draws the random numbers of the whole batch and computes its slice
of it, so that a run has the same losses on any number of ranks. Parameters are whole on each rank
(`ddp`: gradients are averaged once per update, after its last part) or sharded by FSDP2 (`fsdp`:
gradients are averaged and sharded in every part, for whole ones would not fit).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from .errors import DistillError
from .recipe import Recipe

PATIENCE = timedelta(hours=1)  # with rank 0, while it measures or writes; a rank that dies ends all at once

T = TypeVar("T")


@contextmanager
def on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` when this process is asked to stop, by Ctrl-C or SIGTERM."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        stop()

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handler) for number in signals]
    try:
        yield
    finally:
        for number, old in zip(signals, before, strict=True):
            signal.signal(number, old)


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them; alone by default.

    Attributes:
        rank: Which one this is; 0 writes.
        size: How many there are.
        listening: While it is open, this one hears if it is asked to stop, and calls the function given.
    """

    rank: int = 0
    size: int = 1
    listening: Callable[[Callable[[], None]], AbstractContextManager[None]] = on_signals

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, recipe: Recipe) -> slice:
        """This rank's images of one part of a batch.

        Raises:
            DistillError: the batch cannot be divided so.
        """
        part = recipe.batch // recipe.accumulation
        if part % self.size:
            fewer = [n for n in range(1, recipe.accumulation) if recipe.batch % (n * self.size) == 0]
            advice = f"accumulation {fewer[-1]}" if fewer else f"a batch divisible by {self.size}"
            raise DistillError(
                f"recipe: batch {recipe.batch} in {recipe.accumulation} part(s) is {part} images, which "
                f"{self.size} ranks cannot share evenly; choose {advice}"
            )
        own = part // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def place(self, module: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
        """`module` where it is to run: whole, as loaded, or this rank's shard of it."""
        if recipe.parallel != "fsdp":
            return module
        if not dist.is_initialized():
            return module.to(device)
        mesh = init_device_mesh(device.type, (self.size,))
        for name, blocks in module.named_children():
            for block in blocks if name.endswith("blocks") and isinstance(blocks, nn.ModuleList) else ():
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
        # By default the outermost group stays gathered after a forward pass without a backward pass, and
        # would then neither see its shards change nor hear whether they are to be trained.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        return module

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replaces whole gradients by their mean over ranks; those of shards are averaged already."""
        if self.size == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
                parameter.grad = parameter.grad.contiguous()
                gradients.append(parameter.grad)
        waiting = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
        for work, gradient in zip(waiting, gradients, strict=True):
            work.wait()
            gradient.div_(self.size)

    def sum(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same with shards put together, on rank 0's CPU; other ranks help and get nothing."""
        found = {}
        for name, value in tensors.items():
            gathered = value.full_tensor() if isinstance(value, DTensor) else value
            if self.first:
                found[name] = gathered.cpu() if isinstance(value, DTensor) else gathered
        return found

    def wait(self) -> None:
        """Until every rank has come here."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether it is set on any rank."""
        return any(self.gather(flag))

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in their order."""
        if self.size == 1:
            return [value]
        found = [value] * self.size
        dist.all_gather_object(found, value)
        return found

    def agree(self, value: T) -> T:
        """Rank 0's value, everywhere."""
        if self.size == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def once(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises on rank 0, the only one to do it, on every rank."""
        if self.size == 1:
            return work()
        result, failure = self.agree(_attempt(work) if self.first else None) or (None, None)
        if failure is not None:
            raise failure
        return result  # type: ignore[return-value]


ALONE = Ranks()


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, str]]:
    """This process as a rank, if torchrun or `fewstep distill --nproc` started it, and its own device."""
    if not dist.is_torchelastic_launched():
        yield ALONE, device
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
