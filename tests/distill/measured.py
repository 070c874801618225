"""A program: what real iterations of SiD allocate on the CPU, by PyTorch's allocator.

python -m tests.distill.measured RECIPE.yaml  ->  {"resting": bytes, "peak": bytes}
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from distill.pipeline import load_pipeline
from distill.recipe import load_recipe
from distill.trainer import Trainer


class NoRecord:
    """Stands in for a run that is recorded."""

    out_of_time = False

    def after_iteration(self, training: object, iteration: object) -> None: ...


def resting(trainer: Trainer) -> int:
    """Bytes of weights and of the optimizers' state, each storage once."""
    state, seen = trainer.state, {}
    modules = [
        part for part in trainer.teacher.modules.components.values() if isinstance(part, torch.nn.Module)
    ]
    modules += [module for module in (state.generator, state.fake, state.ema) if module is not None]
    found: list[Any] = [each for module in modules for each in (*module.parameters(), *module.buffers())]
    for optimizer in (state.generator_optimizer, state.fake_optimizer):
        found += [value for values in optimizer.state.values() for value in values.values()]
    for tensor in found:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(seen.values())


def peak_of_the_allocator(recorded: profile) -> int:
    """The highest sum of allocations less frees since the profile began."""
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def main(path: str) -> None:
    recipe = load_recipe(path)
    trainer = Trainer(recipe, load_pipeline(recipe.teacher), ["a red circle"], NoRecord())
    trainer.recipe = recipe.model_copy(update={"iterations": 1})
    trainer.train()  # after it the optimizers have their state
    there = resting(trainer)
    trainer.recipe = recipe.model_copy(update={"iterations": 2})
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trainer.train()
    print(json.dumps({"resting": there, "peak": there + peak_of_the_allocator(recorded)}))


if __name__ == "__main__":
    main(sys.argv[1])
