"""Blocks are compiled and nothing else, a run of them is the same run, and what is missing is said first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch._dynamo.utils import counters
from torch._inductor import config, cpp_builder

from distill.compiling import check_compiler, compile_blocks
from distill.distillation import distill
from distill.errors import DistillError
from distill.pipeline import load_pipeline

from .conftest import Recipes, losses
from .test_trainer import stop_after


@pytest.mark.parametrize("name", ["shapes-sana", "shapes-sd3", "shapes-flux"])
def test_blocks_are_compiled_and_nothing_else(name: str) -> None:
    network = load_pipeline(name).transformer
    names = list(network.state_dict())
    compile_blocks(network)
    compiled = {name for name, part in network.named_modules() if part._compiled_call_impl is not None}
    kinds = {name.rpartition(".")[0] for name in compiled}
    assert kinds == (
        {"transformer_blocks", "single_transformer_blocks"} if "flux" in name else {"transformer_blocks"}
    )
    assert len(compiled) == sum(len(getattr(network, kind)) for kind in kinds) > 1
    assert list(network.state_dict()) == names


@pytest.fixture
def no_compiler() -> Iterator[None]:
    cpp_builder.cpp_compiler_search.cache_clear()
    with config.patch("cpp.cxx", ("no-such-compiler",)):
        yield
    cpp_builder.cpp_compiler_search.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_nothing_is_begun(recipe: Recipes, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"compile: no C\+\+ compiler is there; install g\+\+"):
        distill(recipe(compile=True), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_it_takes_the_headers_of_python_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(DistillError, match="compile: Python's headers are missing.* python3-dev"):
        check_compiler("cpu")


def missing() -> str:
    """What this machine has not, to compile with."""
    try:
        check_compiler("cpu")
    except DistillError as error:
        return str(error)
    return ""


def test_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(DistillError, match="compile: needs Triton on a GPU"):
        check_compiler("cuda:0")


def test_a_run_may_be_compiled_or_not_as_it_goes_on(recipe: Recipes) -> None:
    assert recipe(compile=True).digest == recipe().digest


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_compiled_blocks_train_as_they_are(recipe: Recipes, tmp_path: Path) -> None:
    """The same losses but for rounding; and a run that was stopped goes on without, from weights of the same names."""
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    counters.clear()
    distill(recipe(), plain)
    assert not counters["stats"]["unique_graphs"]
    stop_after(compiled, recipe(compile=True), iterations=3)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 3
    distill(recipe(), compiled, resume=True)
    assert counters["stats"]["unique_graphs"] == graphs
    assert [k for k, *_ in losses(compiled)] == [k for k, *_ in losses(plain)]
    for ours, theirs in zip(losses(compiled), losses(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
