"""How far each phase is from the machine's floor: `python -m benchmarks.floor BUNDLE` (of `fewstep export --torch`).

The floor of a phase is the time of its matrix products and convolutions alone: each is run with random values of the
same shapes by PyTorch's kernels, one after the other, on one thread, in turns with the phase in ONNX Runtime. Prints
the rate of a large product, the memory's bandwidth, and a table in Markdown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from distill.metrics.tables import markdown
from engines.bundle import Bundle
from engines.export.choice import medians
from engines.runtime import load_runtime

from .engines import BATCH_SIZES, phase_calls

SIDE = 1024
COPIED = 2**26
"""Elements of float32: far more than any cache holds."""


class Products(TorchDispatchMode):
    """Notes every matrix product and convolution that runs under it: its operation and stand-ins for its inputs.

    Attributes:
        calls: What repeats each.
        flops: Of all of them; an addition and a multiplication are two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], object]] = []
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            with self:
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        self.flops += count(*args, **kwargs, out_val=result)
        stand_ins = tree_map_only(Tensor, _like, args)
        self.calls.append(partial(func, *stand_ins, **kwargs))
        return result

    def repeat(self) -> None:
        with torch.inference_mode():
            for call in self.calls:
                call()


def _like(tensor: Tensor) -> Tensor:
    return torch.randn(tensor.shape, dtype=tensor.dtype).as_strided(
        tensor.shape, tensor.contiguous().stride()
    )


def products_of(call: Callable[[], object]) -> Products:
    noted = Products()
    with noted:
        call()
    return noted


def gemm_rate() -> float:
    """Operations a second of one product of two large square matrices in float32: the best of ten."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return 2 * SIDE**3 / min(_seconds(lambda: a @ b) for _ in range(10))


def bandwidth() -> float:
    """Bytes a second that are read and written when memory is copied: the best of five."""
    source, target = np.ones(COPIED, np.float32), np.zeros(COPIED, np.float32)
    return 2 * source.nbytes / min(_seconds(lambda: np.copyto(target, source)) for _ in range(5))


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows(bundle: Bundle, rate: float, rounds: int) -> Iterator[list[str]]:
    """One a phase and batch size."""
    reference, runtime = (
        load_runtime(bundle, "torch", threads=1),
        load_runtime(bundle, "onnxruntime-cpu", threads=1),
    )
    for count in BATCH_SIZES:
        for phase, call in phase_calls(count).items():
            products = products_of(partial(call, reference))
            found = medians({"phase": partial(call, runtime), "floor": products.repeat}, rounds)
            times = [products.flops / rate, found["floor"], found["phase"]]
            ratio = f"{found['phase'] / found['floor']:.2f}"
            yield [
                phase,
                str(count),
                f"{products.flops / 1e9:.3f}",
                *(f"{1000 * t:.2f}" for t in times),
                ratio,
            ]


def _in_order(found: Iterable[list[str]]) -> list[list[str]]:
    """By phase, then by batch size."""
    return sorted(found, key=lambda row: (row[0], int(row[1])))


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    command.add_argument("bundle", type=Path)
    command.add_argument("--rounds", type=int, default=9)
    options = command.parse_args()
    with one_thread():
        rate, copied = gemm_rate(), bandwidth()
        print(
            f"one thread: {rate / 1e9:.0f} GFLOP/s in a product of {SIDE} x {SIDE}, {copied / 1e9:.1f} GB/s copied\n"
        )
        head = [
            "phase",
            "batch",
            "GFLOP",
            "ms at that rate",
            "products alone, ms",
            "ONNX Runtime, ms",
            "ratio",
        ]
        print(markdown(head, _in_order(rows(Bundle.load(options.bundle), rate, options.rounds))))


if __name__ == "__main__":
    main()
