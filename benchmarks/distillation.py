"""What an iteration of SiD costs: `python -m benchmarks.distillation [RECIPE …]`.

Times the loop of `distill/trainer.py` at every step index k against the network passes that it cannot do
without, each measured alone, and against `benchmarks/straightforward.py`. All take turns within a round and times
are CPU seconds of one thread, so that they can be compared with each other on a busy machine. Peak memory is
PyTorch's allocator's: weights, optimizers' state, gradients and activations. Writes JSON and a plot, prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.straightforward import Straightforward
from distill.metrics.tables import markdown
from distill.pipeline import load_pipeline
from distill.prompts import load_prompts
from distill.recipe import Recipe, load_recipe
from distill.shapes.architectures import new_transformer
from distill.trainer import FAKE, Trainer, _attention

RECIPES = ("shapes-sana", "shapes-sd3", "shapes-flux")
WAYS = ("loop", "straightforward", "compiled", "checkpointing", "accumulation")
IN_PARTS = {"accumulation": 2}
PUBLISHED = {"ema": None, "keep": None}  # the published run keeps no average of the weights
VARIANTS: dict[str, dict[str, Any]] = {
    "loop": {},
    "loop, accumulation: 2": IN_PARTS,
    "loop, activation_checkpointing": {"activation_checkpointing": True},
    "loop, adapter: lora": {"adapter": "lora"},
    "loop, both": {"activation_checkpointing": True, "adapter": "lora"},
}


class NoRecord:
    """Stands in for a run that is recorded."""

    out_of_time = stopping = False

    def after_iteration(self, training: object, iteration: object) -> None: ...


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine(), "batch": options.batch, "rounds": options.rounds}
    results["time"] = {name: times(name, options.batch, options.rounds) for name in options.recipes}
    with TemporaryDirectory(prefix="fewstep-") as folder:
        worlds = {name: (_recipe(name, options.batch)) for name in options.recipes}
        if options.middle:
            worlds["sana, random weights"] = middle_size(Path(folder))
        results["memory"] = {name: memory(recipe) for name, recipe in worlds.items()}
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "distillation.json").write_text(json.dumps(results, indent=1) + "\n")
        _plot(results, options.out / "distillation.png")
    print(_report(results))


def _options() -> argparse.Namespace:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    command.add_argument("recipes", nargs="*", default=RECIPES)
    command.add_argument("--batch", type=int, default=32)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--middle", action="store_true", help="also the memory of a SANA of middle size")
    command.add_argument("--out", type=Path, help="folder for distillation.json and distillation.png")
    return command.parse_args()


def machine() -> dict[str, str]:
    return {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {os.cpu_count()} shared cores, one thread, no GPU",
        **{name: version(name) for name in ("torch", "diffusers")},
    }


def _recipe(name: str, batch: int, **changes: Any) -> Recipe:
    recipe = load_recipe(name)
    return Recipe.model_validate({**recipe.model_dump(), **PUBLISHED, "batch": batch, **changes})


def new_trainer(recipe: Recipe) -> Trainer:
    trainer = Trainer(recipe, load_pipeline(recipe.teacher), load_prompts(recipe.prompts)[:512], NoRecord())  # type: ignore[arg-type]
    trainer.teacher.unconditional()
    return trainer


def iterate(trainer: Trainer, k: int) -> None:
    """One iteration of the loop at step k."""
    trainer.draw_step = lambda: k  # type: ignore[method-assign]
    trainer.recipe = trainer.recipe.model_copy(update={"iterations": trainer.state.iteration + 1})
    trainer.train()


class Passes:
    """The network evaluations that no implementation can leave out, one by one."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.kappa = trainer, trainer.recipe.guidance
        self.draw = trainer.draw(FAKE, 0)
        self.x, self.state = self.draw.noise(0), trainer.state

    def calls(self) -> dict[str, Callable[[], None]]:
        kappa, state = self.kappa, self.state
        teacher = self.trainer.teacher.transformer
        student = (state.generator, 1.0, kappa.student_embed)
        fake = (state.fake, kappa.fake_outer, kappa.fake_embed)
        return {
            "generator forward": partial(self._forward, *student),
            "generator forward and backward": partial(self._train, *student),
            "fake forward and backward": partial(self._train, state.fake, kappa.fake_train, kappa.fake_embed),
            "teacher forward and backward to input": partial(
                self._to_input, teacher, kappa.teacher, kappa.teacher_embed
            ),
            "fake forward and backward to input": partial(self._to_input, *fake),
        }

    @staticmethod
    def count(name: str, k: int) -> int:
        """How often an iteration at step k does it: k steps for the fake network's pictures, then k - 1 and one
        with a graph for the generator's."""
        return 2 * k - 1 if name == "generator forward" else 1

    def _velocity(self, module: nn.Module, scale: float, embed: float, x: Tensor) -> Tensor:
        return self.trainer.network(module, self.draw, scale, embed)(x, self.draw.t_B)

    def _forward(self, module: nn.Module, scale: float, embed: float) -> None:
        module.requires_grad_(False)
        with torch.no_grad(), self.trainer.precision():
            self._velocity(module, scale, embed, self.x)

    def _train(self, module: nn.Module, scale: float, embed: float) -> None:
        module.requires_grad_(True)
        with self.trainer.precision():
            v = self._velocity(module, scale, embed, self.x)
        v.backward(self.x.to(v.dtype))
        module.zero_grad(set_to_none=True)

    def _to_input(self, module: nn.Module, scale: float, embed: float) -> None:
        module.requires_grad_(False)
        x = self.x.clone().requires_grad_(True)
        with self.trainer.precision():
            v = self._velocity(module, scale, embed, x)
        v.backward(self.x.to(v.dtype))


def times(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds of every pass, and of both implementations at every k: all rounds, raw."""
    trainer = new_trainer(_recipe(name, batch))
    frugal = new_trainer(_recipe(name, batch, activation_checkpointing=True))
    parts = new_trainer(_recipe(name, batch, **IN_PARTS))
    compiled = new_trainer(_recipe(name, batch, compile=True))
    plain = Straightforward(new_trainer(_recipe(name, batch)))
    passes = Passes(trainer).calls()
    found: dict[str, list[list[float]]] = {}
    for _ in range(rounds + 1):
        with _attention(torch.device("cpu")):
            for what, call in passes.items():
                found.setdefault(what, []).append(_seconds(call))
        for k in range(1, trainer.recipe.steps + 1):
            ways = {
                "loop": partial(iterate, trainer, k),
                "straightforward": partial(plain.iterate, k),
                "compiled": partial(iterate, compiled, k),
                "checkpointing": partial(iterate, frugal, k),
                "accumulation": partial(iterate, parts, k),
            }
            for way, call in ways.items():
                found.setdefault(f"{way}, k={k}", []).append(_seconds(call))
    return {
        what: {"cpu": [c for c, _ in all_[1:]], "wall": [w for _, w in all_[1:]]}
        for what, all_ in found.items()
    }


def _seconds(call: Callable[[], None]) -> list[float]:
    began = time.process_time(), time.perf_counter()
    call()
    return [round(time.process_time() - began[0], 5), round(time.perf_counter() - began[1], 5)]


def memory(recipe: Recipe) -> dict[str, dict[str, float]]:
    """Megabytes at rest and at the peak of an iteration with k = N."""
    found = {}
    plain = Straightforward(new_trainer(recipe))
    parts = [plain.teacher, plain.fake, plain.generator]
    optimizers = [plain.fake_optimizer, plain.generator_optimizer]
    found["straightforward"] = _peak(partial(plain.iterate, recipe.steps), parts, optimizers)
    del plain, parts, optimizers
    for name, changes in VARIANTS.items():
        trainer = new_trainer(Recipe.model_validate({**recipe.model_dump(), **changes}))
        state = trainer.state
        parts = [trainer.teacher.transformer, state.fake, state.generator]
        optimizers = [state.fake_optimizer, state.generator_optimizer]
        found[name] = _peak(partial(iterate, trainer, recipe.steps), parts, optimizers)
    return found


def _peak(call: Callable[[], None], modules: list[nn.Module], optimizers: list[Any]) -> dict[str, float]:
    call()  # after it the optimizers have their state
    for module in modules:
        module.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    resting = _bytes(modules, optimizers)
    return {"resting": round(resting / 1e6, 1), "peak": round((resting + most) / 1e6, 1)}


def _bytes(modules: list[nn.Module], optimizers: list[Any]) -> int:
    """Weights of the three networks and the optimizers' state, each storage once."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    for optimizer in optimizers:
        states = optimizer.state.values()
        tensors += [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def middle_size(folder: Path) -> Recipe:
    """SANA with 53 M parameters, random: large enough that its weights count, small enough for 4 GB."""
    modules = load_pipeline("shapes-sana").modules
    torch.manual_seed(0)
    transformer = new_transformer(width=576, layers=10)
    modules.register_modules(transformer=type(transformer).from_config(transformer.config, sample_size=32))
    modules.save_pretrained(folder)
    return _recipe("shapes-sana", batch=4, teacher=str(folder))


def ratios(measured: dict[str, Any]) -> dict[int, dict[str, float]]:
    """By k: seconds of the passes, of the loop and of the straightforward implementation (medians)."""
    middle = {what: median(seconds["cpu"]) for what, seconds in measured.items()}
    passes = {what: seconds for what, seconds in middle.items() if "k=" not in what}
    steps = len(middle.keys() - passes.keys()) // len(WAYS)
    return {
        k: {
            "passes": sum(Passes.count(what, k) * seconds for what, seconds in passes.items()),
            **{way: middle[f"{way}, k={k}"] for way in WAYS},
        }
        for k in range(1, steps + 1)
    }


def average(measured: dict[str, Any]) -> dict[str, float]:
    """Over k, which is uniform."""
    by_k = ratios(measured).values()
    return {what: sum(one[what] for one in by_k) / len(by_k) for what in ("passes", *WAYS)}


def _report(results: dict[str, Any]) -> str:
    lines = [f"{results['machine']}, batch {results['batch']}, medians of {results['rounds']} rounds\n"]
    head = ["CPU s of an iteration", "k", "passes", *WAYS, "loop / passes", "iterations/s, ratio", "compiled"]
    rows = []
    for name, measured in results["time"].items():
        for k, one in [*ratios(measured).items(), ("mean", average(measured))]:
            cells = [f"{one[what]:.3f}" for what in ("passes", *WAYS)]
            faster = (f"{one['straightforward'] / one[way]:.2f}" for way in ("loop", "compiled"))
            against = f"{one['loop'] / one['passes']:.3f}", *faster
            rows.append([name, str(k), *cells, *against])
    lines.append(markdown(head, rows) + "\n")
    head, rows = ["MB", "implementation", "at rest", "peak", "peak, of the straightforward"], []
    for name, variants in results["memory"].items():
        for variant, one in variants.items():
            share = one["peak"] / variants["straightforward"]["peak"]
            rows.append([name, variant, f"{one['resting']:.0f}", f"{one['peak']:.0f}", f"{share:.2f}"])
    return "\n".join([*lines, markdown(head, rows)])


def _plot(results: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    names = list(results["time"])
    bars = [average(results["time"][name]) for name in names]
    for number, what in enumerate(("passes", *WAYS)):
        heights = [bar[what] / bar["passes"] for bar in bars]
        left.bar([place + 0.14 * number for place in range(len(names))], heights, 0.13, label=what)
    left.set_xticks([place + 0.35 for place in range(len(names))], names)
    left.set_ylabel("CPU time of an iteration / its passes")
    left.axhline(1.15, color="grey", linewidth=0.8, linestyle="--")
    names = list(results["memory"])
    variants = list(next(iter(results["memory"].values())))
    for number, variant in enumerate(variants):
        peaks = [results["memory"][name] for name in names]
        shares = [one[variant]["peak"] / one["straightforward"]["peak"] for one in peaks]
        right.bar([place + 0.14 * number for place in range(len(names))], shares, 0.13, label=variant)
    right.set_xticks([place + 0.35 for place in range(len(names))], names, fontsize=8)
    right.set_ylabel("peak memory / the straightforward one's")
    right.axhline(0.6, color="grey", linewidth=0.8, linestyle="--")
    for axes in (left, right):
        axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    machine = results["machine"]
    figure.suptitle(f"{machine['date']}: {machine['machine']}, torch {machine['torch']}", fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
