"""What would help where a plan does not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .gpus import GIB, Gpu
from .plan import RESERVE, UPDATES, Mode, Plan, bytes_at_rest

AGAIN = "activation checkpointing"
MORE_GPUS = (2, 4, 8, 16, 32, 64)


def remedies(plan: Plan, gpu: Gpu) -> list[str]:
    """What would make a plan fit `gpu`, the mildest first; empty if it fits as it is.

    Activations are taken as proportional to the images at a time, and of adapters as without them.
    """
    if plan.plain.fits(gpu):
        return []
    found = [*_ways(plan), *_on_more_gpus(plan, gpu)]
    fitting = [(way.words, total) for way in found if (total := _about(plan, way)) <= gpu.memory]
    return [f"{words}: about {total / GIB:.0f} GiB" for words, total in fitting]


@dataclass(frozen=True)
class Way:
    """Another way of running a plan.

    Attributes:
        images: At a time on each GPU.
        cached: Whether embeddings of the prompts are, so that the text encoders leave.
    """

    words: str
    mode: Mode
    images: int
    cached: bool


def _ways(plan: Plan) -> list[Way]:
    cached = bool(plan.recipe.embedding_cache)
    plain = Way("", plan.plain.mode, plan.images, cached)
    again = replace(plain, words=AGAIN, mode=replace(plain.mode, checkpointing=True))
    ways = [again]
    if not cached:
        ways += [replace(plain, words="embedding cache", cached=True)]
        ways += [replace(again, words=f"{AGAIN} and embedding cache", cached=True)]
    if plan.images > 1:
        one = f"accumulation {plan.recipe.batch} (one image at a time)"
        ways += [replace(plain, words=one, images=1), replace(again, words=f"{AGAIN} and {one}", images=1)]
    if plain.mode.adapter is None:
        for way, words in ((plain, "adapter lora"), (again, f"adapter lora, {AGAIN}")):
            ways.append(replace(way, words=words, mode=replace(way.mode, adapter="lora")))
    return ways


def _on_more_gpus(plan: Plan, gpu: Gpu) -> list[Way]:
    """The fewest that do, if any."""
    mode, cached = plan.plain.mode, bool(plan.recipe.embedding_cache)
    more = [n for n in MORE_GPUS if n > mode.gpus and plan.recipe.batch % n == 0]
    sharded = [
        Way(f"{n} GPUs, {AGAIN}", replace(mode, gpus=n, checkpointing=True), plan.images, cached)
        for n in more
    ]
    return [way for way in sharded if _about(plan, way) <= gpu.memory][:1]


def _about(plan: Plan, way: Way) -> float:
    """Bytes that another way of running would take, with the reserve."""
    known = plan.checkpointed if way.mode.checkpointing else plan.plain
    activations = float(known.memory.activations)
    if known.stage in UPDATES:
        activations *= way.images / plan.images
    recipe = plan.recipe.model_copy(update={"embedding_cache": way.cached})
    return bytes_at_rest(recipe, plan.sizes, way.mode) + activations + RESERVE
