"""What a distillation will take, before it is begun: memory of each GPU and time of an iteration.

Memory is that of one iteration of the training code on tensors without memory (`rehearsal.py`) plus the
weights and what belongs to them. Time is operations over the GPU's rate times a utilisation, which
is an assumption: an estimate, without communication, sampling and loading.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from ..errors import DistillError
from ..progress import progress
from ..recipe import Adapter, Recipe
from .gpus import GIB, Gpu
from .outline import Outline, Weightless, outline
from .rehearsal import (
    Setting,
    Stage,
    Stages,
    adapt,
    around,
    blocks_of,
    rehearse,
    runs,
    tensors,
    trained_weights,
)

UTILISATION = 0.4  # of the dense rate; large transformers in bfloat16 commonly reach 0.3 ... 0.5
RESERVE = 2 * GIB  # CUDA's context, workspaces of kernels, fragmentation
FLOAT32 = 4
UPDATES = ("fake_forward", "fake_backward", "generator_forward", "generator_backward")


@dataclass(frozen=True)
class Mode:
    """How a distillation is spread over memory.

    Attributes:
        gpus: With more than one, networks, gradients, optimizers and average are sharded (FSDP) and the
            batch is divided.
        checkpointing: Blocks of all three networks run again in the backward pass instead of being kept.
        adapter: `lora` trains adapters of student and fake network on one frozen base, the teacher.
        rank: Of the adapters, which sit on every linear layer of the blocks.
        frozen_bytes: Of each weight that is not trained: teacher, text encoders, autoencoder.
    """

    gpus: int = 1
    checkpointing: bool = False
    adapter: Literal["lora"] | None = None
    rank: int = 64
    frozen_bytes: int = FLOAT32

    @classmethod
    def of(cls, recipe: Recipe, gpus: int = 1, adapter: Literal["lora"] | None = None) -> Mode:
        """As the recipe says, or with an adapter that it does not have."""
        wanted = recipe.adapter or (Adapter(type=adapter) if adapter else None)
        if wanted is None:
            return cls(gpus, recipe.activation_checkpointing)
        return cls(gpus, recipe.activation_checkpointing, wanted.type, wanted.rank)


@dataclass(frozen=True)
class Passes:
    """Network evaluations for one image of one iteration, expected over k ~ Uniform{1 ... N}.

    Attributes:
        no_graph: Forward only: the rollouts.
        weights: Forward, and backward to the weights: the student's k-th step, the fake network in its own loss.
        inputs: Forward, and backward to the inputs: teacher and fake network in the student's loss.
    """

    no_graph: float
    weights: float
    inputs: float


def count_passes(recipe: Recipe) -> Passes:
    """`sid.md` 6.1: a guidance scale that is neither 0 nor 1 evaluates two branches."""
    kappa, steps = recipe.guidance, (recipe.steps + 1) / 2
    inputs = branches(kappa.teacher) + branches(kappa.fake_outer)
    if kappa.fake_inner != kappa.fake_outer:
        inputs += branches(kappa.fake_inner)
    updates = recipe.fake_updates
    return Passes(updates * steps + steps - 1, updates * branches(kappa.fake_train) + 1, inputs)


def branches(scale: float) -> int:
    return 1 if scale in (0, 1) else 2


@dataclass(frozen=True)
class Sizes:
    """Numbers in the weights of the teacher's modules.

    Attributes:
        network: The transformer's parameters.
        buffers: What it has besides them, such as positions.
        adapters: Of one network's adapters.
        block: The transformer's largest block's.
        outside: What the transformer has outside of blocks.
        text_encoders: All of them together.
        autoencoder: With its encoder, which is loaded too.
    """

    network: int
    buffers: int
    adapters: int
    block: int
    outside: int
    text_encoders: int
    autoencoder: int


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU at the moment when most are taken."""

    teacher: int
    student: int
    fake: int
    average: int
    optimizer: int
    gradients: int
    gathered: int
    """Unsharded copies of the blocks that are at work."""
    activations: int
    """Whatever else is alive then: saved tensors, casts of weights, intermediate results."""
    text_encoders: int
    autoencoder: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Estimate:
    """One way of running it.

    Attributes:
        mode: Which.
        memory: On each GPU.
        stage: When the peak is.
        flops: Of an iteration, on each GPU.
    """

    mode: Mode
    memory: Memory
    stage: str
    flops: float

    def fits(self, gpu: Gpu) -> bool:
        return self.memory.total + RESERVE <= gpu.memory


@dataclass(frozen=True)
class Plan:
    """What a recipe will take.

    Attributes:
        recipe: As resolved.
        sizes: Of the teacher.
        images: At a time on each GPU.
        parts: In which each GPU computes its share of a batch.
        passes: For each image of an iteration.
        plain, checkpointed: Without and with activation checkpointing.
        utilisation: Share of the GPU's dense rate that the times assume.
    """

    recipe: Recipe
    sizes: Sizes
    images: int
    parts: int
    passes: Passes
    plain: Estimate
    checkpointed: Estimate
    utilisation: float = UTILISATION

    def seconds(self, estimate: Estimate, gpu: Gpu) -> float:
        """Of an iteration: an estimate."""
        return estimate.flops / (gpu.rate(self.recipe.precision) * self.utilisation)


def make_plan(recipe: Recipe, mode: Mode | None = None, utilisation: float = UTILISATION) -> Plan:
    """Plans `recipe`; touches neither network nor GPU, and reads nothing of a folder but configurations.

    Raises:
        DistillError: the teacher's configuration is not at hand, or the batch cannot be divided.
    """
    mode = mode or Mode.of(recipe)
    images, parts = _share(recipe, mode.gpus)
    part = recipe.model_copy(update={"batch": images, "accumulation": 1})
    with _outline(recipe) as pipeline:
        sizes = _sizes(pipeline, mode.rank)
        settings = [_setting(replace(mode, checkpointing=each), parts) for each in (False, True)]
        with progress("planning", 1 + len(settings) * runs(pipeline.transformer)) as shown:
            others = around(part, pipeline, settings[0])
            shown.update(1)
            stages = [{**others, **rehearse(part, pipeline, setting, shown)} for setting in settings]
    plain, checkpointed = (
        _estimate(recipe, sizes, replace(mode, checkpointing=setting.checkpointing), parts, measured)
        for setting, measured in zip(settings, stages, strict=True)
    )
    return Plan(recipe, sizes, images, parts, count_passes(recipe), plain, checkpointed, utilisation)


def _share(recipe: Recipe, gpus: int) -> tuple[int, int]:
    """Images at a time on each GPU, and parts of its share of a batch; no more at a time than on one."""
    if recipe.batch % gpus:
        raise DistillError(f"batch {recipe.batch} cannot be divided among {gpus} GPUs")
    share, at_a_time = recipe.batch // gpus, recipe.batch // recipe.accumulation
    images = max(n for n in range(1, min(share, at_a_time) + 1) if share % n == 0)
    return images, share // images


def _setting(mode: Mode, parts: int) -> Setting:
    rank = mode.rank if mode.adapter == "lora" else None
    return Setting(mode.checkpointing, rank, accumulating=parts > 1 or mode.gpus > 1)


@contextmanager
def _outline(recipe: Recipe) -> Iterator[Outline]:
    with Weightless(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fake tensors have no addresses, which deep copies ask for
        yield outline(recipe.teacher, recipe.text, recipe.time_scale)


def _sizes(pipeline: Outline, rank: int) -> Sizes:
    transformer = pipeline.transformer
    blocks = [_numel(block) for _, block, _ in blocks_of(transformer)]
    encoders = pipeline.family.encoders(pipeline.modules)
    adapted = copy.deepcopy(transformer)
    adapt(adapted, rank)
    return Sizes(
        network=sum(weight.numel() for weight in transformer.parameters()),
        buffers=sum(buffer.numel() for buffer in transformer.buffers()),
        adapters=sum(weight.numel() for weight in trained_weights(adapted, rank)),
        block=max(blocks, default=0),
        outside=_numel(transformer) - sum(blocks),
        text_encoders=sum(map(_numel, encoders)),
        autoencoder=_numel(pipeline.modules.vae),
    )


def _numel(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in tensors(module))


def _estimate(recipe: Recipe, sizes: Sizes, mode: Mode, parts: int, stages: Stages) -> Estimate:
    encoding = resting_memory(sizes, mode, recipe.ema is not None, _moments(recipe))
    resting = _training(recipe, encoding)
    unsharded = resting.gradients * mode.gpus
    memories = {
        name: _at_work(encoding if name == "text" else resting, name, stage, unsharded)
        for name, stage in stages.items()
    }
    stage = max(memories, key=lambda name: memories[name].total)
    return Estimate(mode, memories[stage], stage, parts * _flops_of_part(recipe, stages))


def _at_work(resting: Memory, name: str, stage: Stage, gradients: int) -> Memory:
    if name in UPDATES:
        return replace(resting, activations=max(0, round(stage.peak) - gradients))
    return replace(resting, activations=round(stage.peak), gradients=0)


def _flops_of_part(recipe: Recipe, stages: Stages) -> float:
    """Operations of one part of a batch in all updates of an iteration, expected over k."""
    flops = {name: stage.flops for name, stage in stages.items()}
    if recipe.embedding_cache:
        flops["text"] = 0  # once for all iterations
    fake = flops["text"] + flops["fake_forward"] + flops["fake_backward"]
    generator = flops["text"] + flops["generator_forward"] + flops["generator_backward"]
    one_step = flops["fake_forward"] / (1 + branches(recipe.guidance.fake_train))
    more_steps = (recipe.fake_updates + 1) * (recipe.steps - 1) / 2
    return recipe.fake_updates * fake + generator + more_steps * one_step


def resting_memory(sizes: Sizes, mode: Mode, average: bool = False, moments: int = 1) -> Memory:
    """What is there whatever the batch is: all but activations, with the gradients of one network.

    `moments` are Adam's, of which there is one when beta1 is 0.
    """
    trained = sizes.adapters if mode.adapter == "lora" else sizes.network
    copied = trained if mode.adapter == "lora" else trained + sizes.buffers

    def shard(numbers: int, size: int = FLOAT32) -> int:
        return numbers * size // mode.gpus

    return Memory(
        teacher=shard(sizes.network + sizes.buffers, mode.frozen_bytes),
        student=shard(copied),
        fake=shard(copied),
        average=shard(trained) if average else 0,
        optimizer=2 * moments * shard(trained),
        gradients=shard(trained),
        # Two blocks, of which one is fetched ahead, the gradients of one, and what is outside of blocks.
        gathered=FLOAT32 * 3 * (sizes.block + sizes.outside) if mode.gpus > 1 else 0,
        activations=0,
        text_encoders=sizes.text_encoders * mode.frozen_bytes,
        autoencoder=sizes.autoencoder * mode.frozen_bytes,
    )


def _training(recipe: Recipe, resting: Memory) -> Memory:
    """Once the prompts are encoded: with a cache of embeddings the text encoders are gone."""
    return replace(resting, text_encoders=0) if recipe.embedding_cache else resting


def bytes_at_rest(recipe: Recipe, sizes: Sizes, mode: Mode) -> int:
    """Of each GPU, before the first image: weights, gradients of one network, optimizers."""
    return _training(recipe, resting_memory(sizes, mode, recipe.ema is not None, _moments(recipe))).total


def _moments(recipe: Recipe) -> int:
    return 2 if recipe.optimizer.beta1 else 1


def refuse_if_too_small(recipe: Recipe, available: int, device: str, mode: Mode | None = None) -> None:
    """Refuses a device that cannot even hold the weights, one network's gradients and the optimizers.

    Args:
        recipe: Its teacher has to be known by its configuration.
        available: Memory of the device in bytes.
        device: What to call it.
        mode: How it will be run; by default as the recipe says, on this one device.

    Raises:
        DistillError: it cannot, whatever the batch is.
    """
    mode = mode or Mode.of(recipe)
    with _outline(recipe) as pipeline:
        sizes = _sizes(pipeline, mode.rank)
    least = bytes_at_rest(recipe, sizes, mode)
    if least > available:
        raise DistillError(
            f"{device} has {available / GIB:.1f} GiB, but weights, gradients and optimizers of {recipe.teacher} "
            f"take {least / GIB:.1f} GiB before the first image; `fewstep plan` says what would do"
        )
