"""Two ranks do what one does: the same losses, the same weights, one record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader

from distill.distillation import distill
from distill.errors import DistillError
from distill.parallel import ALONE, Ranks
from distill.pipeline import load_pipeline
from distill.recipe import Recipe

from .conftest import TINY, events
from .ranks import on_two_ranks
from .states import part_of, tensors
from .test_trainer import stop_after

FIGURES = (
    "loss_discriminator",
    "loss_adversarial",
    "loss_fake",
    "loss_generator",
    "grad_norm_fake",
    "grad_norm_generator",
    "spread",
)
STAGES = {"generator_from": 8, "combined_from": 16}  # batches of 8: one iteration, one, and two
WHOLE: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp"},
    "lora": {"adapter": {"rank": 4}},
    "data-aided": {"data": {"source": "shapes", "count": 16}, "adversarial": STAGES},
    "data-aided-fsdp": {
        "data": {"source": "shapes", "count": 16},
        "adversarial": STAGES,
        "parallel": "fsdp",
    },
}
TOLERANCE = 1e-4  # relative, of losses, norms and weights of the first iterations; seen: 7e-6


def recipe_of(teacher: Path, **changes: Any) -> dict[str, Any]:
    """Eight images an update: on two ranks two parts of two images each, on one rank of four."""
    own = {"batch": 8, "accumulation": 2, "ema": 0.9, "save_dtype": "float32"}
    rates = {"optimizer": {"lr_generator": 1e-3, "lr_fake": 1e-3}}
    return {"teacher": str(teacher), **TINY, **own, **rates, **changes}


@pytest.fixture(scope="module")
def runs(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank's runs under `one/`, those of two under `two/`; stopped ones went on with the other number."""
    folder = tmp_path_factory.mktemp("runs")
    recipes = {kind: recipe_of(tiny_teacher, **changes) for kind, changes in WHOLE.items()}
    for kind in ("data-aided", "data-aided-fsdp"):
        recipes[kind]["data"] = {**recipes[kind]["data"], "cache": str(folder / "cache")}
    for kind, content in recipes.items():
        distill(Recipe.model_validate(content), folder / "one" / kind)
    for kind in ("ddp", "fsdp"):
        stop_after(folder / "1-2" / kind, Recipe.model_validate(recipes[kind]), iterations=3)
    jobs = [(content, folder / "two" / kind, False, None) for kind, content in recipes.items()]
    jobs += [(recipes[kind], folder / "1-2" / kind, True, None) for kind in ("ddp", "fsdp")]
    jobs += [(recipes[kind], folder / "2-1" / kind, False, 3) for kind in ("ddp", "fsdp")]
    for outcome in on_two_ranks(jobs):
        assert outcome == ["done"] * 7 + ["stopped at iteration 3; go on with --resume"] * 2
    for kind in ("ddp", "fsdp"):
        distill(Recipe.model_validate(recipes[kind]), folder / "2-1" / kind, resume=True)
    return folder


def figures(out: Path) -> torch.Tensor:
    return torch.tensor([[event.get(name, 0.0) for name in FIGURES] for event in events(out)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", WHOLE)
def test_two_ranks_give_the_losses_of_one_with_twice_the_images(runs: Path, kind: str) -> None:
    one, two = runs / "one" / kind, runs / "two" / kind
    assert [event["k"] for event in events(one)] == [event["k"] for event in events(two)]
    assert figures(one).shape == (4, len(FIGURES))
    torch.testing.assert_close(figures(two), figures(one), rtol=TOLERANCE, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WHOLE)
def test_two_ranks_give_the_weights_of_one(runs: Path, kind: str) -> None:
    """But for the bias of keys, to which softmax is blind: its gradient is rounding, of which Adam makes steps."""
    for name in ("generator", "fake", "ema"):
        one, two = (part_of(runs / number / kind, 4, name) for number in ("one", "two"))
        assert one.keys() == two.keys()
        seen = [key for key in one if "attn2.to_k.bias" not in key]
        gap = torch.cat([(one[key] - two[key]).flatten() for key in seen])
        assert gap.norm() < TOLERANCE * torch.cat([one[key].flatten() for key in seen]).norm(), name
    students = [
        load_pipeline(str(runs / number / kind)).transformer.state_dict() for number in ("one", "two")
    ]
    assert students[0].keys() == students[1].keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("way", ["1-2", "2-1"])
def test_a_run_goes_on_with_another_number_of_ranks(runs: Path, kind: str, way: str) -> None:
    torch.testing.assert_close(
        figures(runs / way / kind), figures(runs / "one" / kind), rtol=TOLERANCE, atol=0
    )
    assert [event["iteration"] for event in events(runs / way / kind)] == [1, 2, 3, 4]
    whole, resumed = tensors(runs / "one" / kind, 4), tensors(runs / way / kind, 4)
    assert {name: value.shape for name, value in whole.items()} == {n: v.shape for n, v in resumed.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WHOLE)
def test_one_rank_writes_the_record(runs: Path, kind: str) -> None:
    def files(out: Path) -> set[str]:
        found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
        return {name for name in found if "tensorboard" not in name and "distcp" not in name}

    assert files(runs / "one" / kind) == files(runs / "two" / kind)
    assert len(list((runs / "two" / kind / "run" / "tensorboard").iterdir())) == 1
    written = len(list((runs / "two" / kind / "run/checkpoints/000004").glob("*.distcp")))
    assert written == (2 if kind.endswith("fsdp") else written)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pieces"), [("ddp", 1), ("fsdp", 2)])
def test_networks_average_and_moments_are_sharded_or_whole(runs: Path, kind: str, pieces: int) -> None:
    about = (
        FileSystemReader(runs / "two" / kind / "run/checkpoints/000004").read_metadata().state_dict_metadata
    )
    parts = {name.split("/")[0] for name in about}
    assert parts == {"generator", "fake", "ema", "generator_optimizer", "fake_optimizer"}
    for name, tensor in about.items():
        if len(tensor.size) and tensor.size[0] > 1:
            assert len(tensor.chunks) == pieces, name


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 6))
def test_shares_are_a_partition_of_a_part(size: int, accumulation: int, own: int) -> None:
    recipe = Recipe(teacher="t", batch=size * accumulation * own, accumulation=accumulation)
    taken = [
        image for rank in range(size) for image in list(range(size * own))[Ranks(rank, size).share(recipe)]
    ]
    assert taken == list(range(size * own))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    recipe = Recipe(teacher="t", batch=12, accumulation=2)
    with pytest.raises(
        DistillError, match="is 6 images, which 4 ranks cannot share evenly; choose accumulation 1"
    ):
        Ranks(0, 4).share(recipe)


def test_adapters_are_not_sharded() -> None:
    with pytest.raises(ValueError, match="fsdp cannot shard weights that roles share; with adapter use ddp"):
        Recipe.model_validate({"teacher": "t", "adapter": "lora", "parallel": "fsdp"})


def test_alone_there_is_nobody_to_ask() -> None:
    def fail() -> None:
        raise DistillError("no")

    tensor = torch.ones(2)
    assert ALONE.first
    assert ALONE.any(True)
    assert not ALONE.any(False)
    assert ALONE.agree("a") == "a"
    assert ALONE.once(lambda: 3) == 3
    assert ALONE.sum(tensor) is tensor
    assert ALONE.whole({"a": tensor}) == {"a": tensor}
    with pytest.raises(DistillError, match="no"):
        ALONE.once(fail)
