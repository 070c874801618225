"""The floor of a phase is that of exactly its products."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from benchmarks import floor
from benchmarks.engines import phase_calls
from benchmarks.floor import one_thread, products_of, rows
from engines.bundle import SHIPPED, Bundle
from engines.runtime import load_runtime


def test_products_and_convolutions_are_noted_and_nothing_else() -> None:
    x = torch.randn(2, 6, 8, 8)
    conv, linear = torch.nn.Conv2d(6, 4, 3, padding=1), torch.nn.Linear(8, 5)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        y = torch.relu(linear(conv(x)))  # composite operations are seen through
        return (y @ y.transpose(-1, -2)).softmax(-1)

    found = products_of(call)
    convolution, line, square = 2 * 2 * 4 * 8 * 8 * 6 * 9, 2 * 2 * 4 * 8 * 8 * 5, 2 * 2 * 4 * 8 * 8 * 5
    assert found.flops == convolution + line + square
    assert len(found.calls) == 3
    found.repeat()


def test_stand_ins_have_the_shapes_and_not_the_values() -> None:
    weight = torch.zeros(4, 3)
    found = products_of(lambda: torch.mm(torch.zeros(2, 4), weight))
    (product,) = found.calls
    result = product()
    assert isinstance(result, torch.Tensor)
    assert result.shape == (2, 3)
    assert result.any()
    assert not weight.any()


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_phases_run_on_the_shipped_bundle() -> None:
    """Its floor needs programs, which are not shipped: the calls are the same."""
    runtime = load_runtime(Bundle.load(SHIPPED / "shapes-sana-sid"), "onnxruntime-cpu", threads=1)
    shapes = {name: _shape(call(runtime)) for name, call in phase_calls(3).items()}
    assert shapes["denoise, one step"][0] == shapes["decode"][0] == 3
    assert shapes["decode"] == (3, 64, 64, 3)


def test_a_bundle_without_programs_says_how_to_get_them() -> None:
    with pytest.raises(Exception, match="--torch"):
        next(rows(Bundle.load(SHIPPED / "shapes-sana-sid"), 1e9, 1))


def _shape(result: object) -> Sequence[int]:
    return getattr(result, "shape", ())


def test_rows_are_in_the_order_of_their_batch_sizes() -> None:
    found = [["denoise", "16", "a"], ["decode", "2", "b"], ["denoise", "2", "c"]]
    assert floor._in_order(found) == [["decode", "2", "b"], ["denoise", "2", "c"], ["denoise", "16", "a"]]
