"""The training loop on the tiny teacher: routing of gradients, records, resuming, stopping."""

from __future__ import annotations

import copy
import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from distill import checkpoint, sid
from distill.checkpoint import Checkpoints
from distill.distillation import distill
from distill.errors import DistillError, Interrupted, RunFailed
from distill.families import FAMILIES
from distill.pipeline import load_pipeline
from distill.recipe import Recipe
from distill.report import Report
from distill.run import Run
from distill.spec import GeneratorSpec
from distill.state import follow, new_state
from distill.student import new_spec
from distill.trainer import Trainer

from .conftest import Recipes, events, losses
from .states import tensors


def trainer_of(recipe: Recipe, out: Path) -> Trainer:
    teacher = load_pipeline(recipe.teacher)
    return Trainer(
        recipe, teacher, ["a red circle", "a blue star"], Run(out, recipe, new_spec(teacher, recipe))
    )


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_each_update_changes_its_own_network_only(recipe: Recipes, tmp_path: Path) -> None:
    trainer = trainer_of(recipe(iterations=1), tmp_path / "s")
    teacher = snapshot(trainer.teacher.transformer)
    state = trainer.state
    for part, trained, frozen in [
        (trainer.fake_part, state.fake, state.generator),
        (trainer.generator_part, state.generator, state.fake),
    ]:
        before = snapshot(trained), snapshot(frozen)
        trained.requires_grad_(True)
        frozen.requires_grad_(False)
        trainer.accumulate(part, 2, 1)
        assert all(p.grad is None for p in frozen.parameters())
        assert all(p.grad is None for p in trainer.teacher.transformer.parameters())
        optimizer = state.fake_optimizer if trained is state.fake else state.generator_optimizer
        assert trainer.step(trained, optimizer) > 0
        assert not same(before[0], snapshot(trained))
        assert same(before[1], snapshot(frozen))
    assert same(teacher, snapshot(trainer.teacher.transformer))


def test_at_the_start_the_generator_has_nothing_to_follow(recipe: Recipes, tmp_path: Path) -> None:
    """Teacher and fake network are equal, so d = 0 and the loss is exactly zero."""
    trainer = trainer_of(recipe(), tmp_path / "s")
    trainer.state.fake.requires_grad_(False)
    loss, _ = trainer.generator_part(trainer.draw(2, 0), k=1)
    assert loss.total == 0


def test_one_step_index_serves_both_updates(
    recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []
    generate = Trainer.generate

    def spy(self: Trainer, draw: Any, k: int, grad: bool) -> torch.Tensor:
        seen.append((k, grad))
        return generate(self, draw, k, grad)

    monkeypatch.setattr(Trainer, "generate", spy)
    distill(recipe(iterations=6, fake_updates=2), tmp_path / "s")
    iterations = [seen[i : i + 3] for i in range(0, len(seen), 3)]
    assert [[grad for _, grad in three] for three in iterations] == [[False, False, True]] * 6
    assert all(len({k for k, _ in three}) == 1 for three in iterations)
    assert len({three[0][0] for three in iterations}) > 1


def test_draws_are_fresh_for_every_update_and_part(recipe: Recipes, tmp_path: Path) -> None:
    trainer = trainer_of(recipe(), tmp_path / "s")
    eps = [trainer.draw(phase, part).eps for phase in (1, 2, 3) for part in (0, 1)]
    assert len({float(e.sum()) for e in eps}) == 6
    assert torch.equal(eps[0], trainer.draw(1, 0).eps)
    trainer.state.iteration = 1
    assert not torch.equal(eps[0], trainer.draw(1, 0).eps)


def test_step_indices_are_uniform(recipe: Recipes, tmp_path: Path) -> None:
    trainer = trainer_of(recipe(), tmp_path / "s")
    counts = [0, 0, 0, 0]
    for trainer.state.iteration in range(2000):
        counts[trainer.draw_step() - 1] += 1
    assert min(counts) > 430
    assert max(counts) < 570


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5])
def test_guidance_costs_a_doubled_batch_only_when_it_must(
    recipe: Recipes, tmp_path: Path, scale: float
) -> None:
    trainer = trainer_of(recipe(), tmp_path / "s")
    draw, sizes = trainer.draw(1, 0), []
    hook = trainer.state.fake.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    u, v, guided = (trainer.network(trainer.state.fake, draw, s)(draw.eps, draw.t_B) for s in (0, 1, scale))
    hook.remove()
    assert sizes == [4, 4, 8 if scale == 4.5 else 4]
    torch.testing.assert_close(guided, u + scale * (v - u), rtol=1e-4, atol=1e-5)


def test_a_run_leaves_a_student_and_its_record(recipe: Recipes, tmp_path: Path) -> None:
    out = distill(recipe(ema=0.9, quality="shapes", keep="both"), tmp_path / "student")
    spec = GeneratorSpec.load(out)
    assert sorted(spec.levels) == [1, 2, 4]
    assert spec.recipe_digest == recipe(ema=0.9, quality="shapes", keep="both").digest
    assert [event["iteration"] for event in events(out)] == [1, 2, 3, 4]
    assert {"k", "loss_fake", "loss_generator", "grad_norm_fake", "eta_seconds", "images_per_second"} <= set(
        events(out)[0]
    )
    assert [event["images"] for event in events(out)] == [4, 8, 12, 16]
    assert {"score", "accuracy_1", "frechet_4"} <= set(events(out, "quality")[0])
    assert sorted(path.name for path in (out / "run" / "samples").iterdir()) == ["000002.png", "000004.png"]
    assert Image.open(out / "run" / "samples" / "000004.png").height > 3 * 64
    assert sorted(path.name for path in (out / "run" / "checkpoints").iterdir()) == ["000002", "000004"]
    assert list((out / "run" / "tensorboard").iterdir())
    assert (out / "run" / "recipe.yaml").is_file()
    live, averaged = load_pipeline(str(out / "run" / "live")), load_pipeline(str(out))
    assert not same(live.transformer.state_dict(), averaged.transformer.state_dict())


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(recipe: Recipes, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    wanted = recipe(
        iterations=6, ema=0.9, optimizer={"lr_generator": 1e-3, "lr_fake": 1e-3, "schedule": "cosine"}
    )
    distill(wanted, whole)
    stop_after(parts, wanted, iterations=4)
    distill(wanted, parts, resume=True)
    assert losses(parts) == losses(whole)
    assert same(tensors(whole, 6), tensors(parts, 6))
    assert same(
        load_pipeline(str(whole)).transformer.state_dict(), load_pipeline(str(parts)).transformer.state_dict()
    )


def stop_after(out: Path, recipe: Recipe, iterations: int, number: int = signal.SIGTERM) -> None:
    """Runs until the signal, sent to this very process, stops the run."""
    record = Run.after_iteration

    def interrupting(self: Run, trainer: Trainer, iteration: Any) -> None:
        if trainer.state.iteration == iterations:
            os.kill(os.getpid(), number)
        record(self, trainer, iteration)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="go on with --resume"):
        patch.setattr(Run, "after_iteration", interrupting)
        distill(recipe, out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state_between_checkpoints(recipe: Recipes, tmp_path: Path, number: int) -> None:
    out, before = tmp_path / "s", signal.getsignal(number)
    stop_after(out, recipe(), 3, number)
    assert (out / "run/checkpoints/000003").is_dir()
    assert not (out / "generator.json").exists()
    assert signal.getsignal(number) is before


def test_resume_refuses_what_it_cannot_continue(recipe: Recipes, tmp_path: Path) -> None:
    out = tmp_path / "s"
    with pytest.raises(DistillError, match="nothing to resume"):
        distill(recipe(), out, resume=True)
    stop_after(out, recipe(), 2)
    with pytest.raises(DistillError, match="already holds a run"):
        distill(recipe(), out)
    with pytest.raises(DistillError, match="of another recipe"):
        distill(recipe(seed=1), out, resume=True)
    for path in sorted((out / "run/checkpoints/000002").iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DistillError, match="000002 is damaged: .*; delete it to use the one before"):
            distill(recipe(), out, resume=True)
        path.write_bytes(whole)


def test_a_killed_run_leaves_no_event_twice(recipe: Recipes, tmp_path: Path) -> None:
    """Killed after the checkpoint of iteration 2, in the middle of writing a line of iteration 4."""
    out = tmp_path / "s"
    stop_after(out, recipe(), 3)
    shutil.rmtree(out / "run/checkpoints/000003")
    with (out / "run/events.jsonl").open("a") as stream:
        stream.write('{"type": "iteration", "itera')
    distill(recipe(), out, resume=True)
    assert [event["iteration"] for event in events(out)] == [1, 2, 3, 4]


def test_accumulation_gives_the_gradient_of_the_whole_batch(recipe: Recipes, tmp_path: Path) -> None:
    """Two parts are the mean of two batches; the loss is already divided by the images of a part."""
    trainer = trainer_of(recipe(batch=8, accumulation=2), tmp_path / "s")
    report = trainer.accumulate(trainer.fake_part, 1, 1)
    got = [p.grad.clone() for p in trainer.state.fake.parameters() if p.grad is not None]
    trainer.state.fake.zero_grad()
    for part in (0, 1):
        (trainer.fake_part(trainer.draw(1, part), 1)[0].total / 2).backward()
    expected = [p.grad for p in trainer.state.fake.parameters() if p.grad is not None]
    assert report.images == 8
    torch.testing.assert_close(got, expected)


def test_nan_stops_the_run_and_says_so(
    recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network breaks after the first quality check; the best student so far is kept."""
    velocity = FAMILIES["sana"].velocity
    calls = {"n": 0}

    def breaking(*arguments: Any) -> torch.Tensor:
        calls["n"] += 1
        v = velocity(*arguments)
        return v * float("nan") if broken["now"] else v

    broken = {"now": False}
    measure = Run._measure

    def then_break(self: Run, trainer: Trainer) -> None:
        measure(self, trainer)
        broken["now"] = True

    monkeypatch.setattr(Run, "_measure", then_break)
    object.__setattr__(FAMILIES["sana"], "velocity", breaking)
    try:
        with pytest.raises(RunFailed, match="NaN for 3 iterations; the best student so far is in"):
            distill(
                recipe(iterations=20, quality="shapes", quality_every=2, samples_every=50), tmp_path / "s"
            )
    finally:
        object.__setattr__(FAMILIES["sana"], "velocity", velocity)
    assert GeneratorSpec.load(tmp_path / "s")


def test_collapsed_pictures_stop_the_run(recipe: Recipes, tmp_path: Path) -> None:
    trainer = trainer_of(recipe(), tmp_path / "s")
    trainer.check(Report(spread=1.0))
    trainer.check(Report(spread=0.5))
    with pytest.raises(RunFailed, match="collapsed.*lower the learning rate"):
        trainer.check(Report(spread=0.01))


def test_a_full_disk_leaves_the_last_checkpoint_alone(
    recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"
    save, saved = checkpoint.save, []

    def filling(content: Any, checkpoint_id: Path, no_dist: bool) -> None:
        if saved:
            Path(checkpoint_id).mkdir()
            (checkpoint_id / "__0_0.distcp").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(checkpoint_id)
        save(content, checkpoint_id=checkpoint_id, no_dist=no_dist)

    monkeypatch.setattr(checkpoint, "save", filling)
    with pytest.raises(OSError, match="No space left"):
        distill(recipe(), out)
    monkeypatch.undo()
    assert [path.name for path in (out / "run/checkpoints").iterdir()] == ["000002"]
    distill(recipe(), out, resume=True)
    assert [event["iteration"] for event in events(out)][-1] == 4


def test_moving_average_by_hand() -> None:
    live, average = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * average.weight.detach() + 0.1 * live.weight.detach()
    follow(average, live, 0.9)
    torch.testing.assert_close(average.weight.detach(), expected)


def test_state_comes_back_from_a_checkpoint(recipe: Recipes, tmp_path: Path) -> None:
    wanted = recipe(ema=0.5)
    transformer = load_pipeline(wanted.teacher).transformer
    state, fresh = new_state(wanted, transformer), new_state(wanted, transformer)
    with torch.no_grad():
        for parameter in state.generator.parameters():
            parameter.add_(1)
    state.iteration, state.best_score = 7, 0.25
    Checkpoints(tmp_path, wanted).save(state)
    Checkpoints(tmp_path, wanted).load(fresh)
    assert (fresh.iteration, fresh.best_score) == (7, 0.25)
    assert same(state.generator.state_dict(), fresh.generator.state_dict())


def test_scaled_losses_scale_with_the_recipe(recipe: Recipes, tmp_path: Path) -> None:
    trainers = [trainer_of(recipe(fake_scale=s), tmp_path / str(s)) for s in (1.0, 3.0)]
    one, three = (t.fake_part(t.draw(1, 0), 1)[0] for t in trainers)
    assert isinstance(one, sid.Loss)
    torch.testing.assert_close(3 * one.total, three.total)
