"""One iteration of a distillation on tensors without memory: its operations and its peak of memory.

The code of training itself runs (`Trainer.draw`, `fake_part` and `generator_part`, `Family.embed`,
`Pipeline.decode`), so what is counted is what will happen. A network of many equal blocks is run with
two and with three of each kind: operations are linear in the number of blocks, and so are the bytes
alive at the beginning and the end of each stage; how far the peak lies above them is a matter of one block.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from ..progress import Progress
from ..recipe import Recipe
from ..run import SAMPLE_PROMPTS
from ..trainer import FAKE, GENERATOR, Draw, Trainer
from .metering import LikeCuda, Meter
from .outline import Outline

SHORT = 2  # blocks of a kind that are run in any case


@dataclass(frozen=True)
class Stage:
    """What one stage of an iteration takes.

    Attributes:
        flops: Floating-point operations; an addition and a multiplication are two.
        start: Bytes alive when it begins, besides the weights and the optimizers' state.
        end: Bytes alive when it ends.
        above: How far the peak lies above the larger of the two.
    """

    flops: float = 0.0
    start: float = 0.0
    end: float = 0.0
    above: float = 0.0

    @property
    def peak(self) -> float:
        return max(self.start, self.end) + self.above

    def plus(self, other: Stage, factor: float) -> Stage:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Stage(*(mine + factor * others for mine, others in pairs))


Stages = dict[str, Stage]


@dataclass(frozen=True)
class Setting:
    """How the networks are run.

    Attributes:
        checkpointing: Blocks are run again in the backward pass instead of being kept.
        rank: Of the low-rank adapters that are trained instead of the weights, if there are any.
        accumulating: A batch has several parts, so that gradients are there from the second on.
        cuda: Whether for a GPU; on a CPU attention keeps the matrix of scores.
    """

    checkpointing: bool = False
    rank: int | None = None
    accumulating: bool = False
    cuda: bool = True


def rehearse(
    recipe: Recipe, pipeline: Outline, setting: Setting, progress: Progress | None = None, short: int = SHORT
) -> Stages:
    """`fake_forward`, `fake_backward`, `generator_forward` and `generator_backward` of one part of a batch.

    Args:
        recipe: Its whole batch is the part; the rollout has one step, which the last always is.
        pipeline: Made under `Weightless`, as this has to be called.
        setting: How the networks are run.
        progress: Is told of each run.
        short: Blocks of each kind that are run; the rest is extrapolated.
    """
    whole = pipeline.transformer
    many = {kind: count for kind, count in block_kinds(whole).items() if count > short}

    def run(longer: Kind | None) -> Stages:
        counts = {kind: short + (kind == longer) for kind in many}
        stages = _updates(recipe, _with_transformer(pipeline, shortened(whole, counts)), setting)
        if progress is not None:
            progress.update(progress.done + 1)
        return stages

    base = run(None)
    result = dict(base)
    for kind, count in many.items():
        longer = run(kind)
        for name, stage in result.items():
            one_block = longer[name].plus(base[name], -1)
            result[name] = stage.plus(one_block, count - short)
    return result


def around(recipe: Recipe, pipeline: Outline, setting: Setting) -> Stages:
    """`text`, the prompts of one part, and `decode`, the pictures of a sample grid."""
    books = Books(tensors(*pipeline.modules.components.values()))
    latents = torch.zeros(SAMPLE_PROMPTS, *pipeline.latent_shape(recipe.size))
    with _operators(setting.cuda), torch.no_grad():
        with books.stage("text"):
            pipeline.read(recipe.batch)
        with books.stage("decode"):
            pipeline.decode(latents)
    return books.stages


def runs(transformer: nn.Module, short: int = SHORT) -> int:
    """How many runs a rehearsal takes."""
    return 1 + sum(count > short for count in block_kinds(transformer).values())


Kind = tuple[str, Any]
"""A module list of the transformer, and what its blocks of one kind have in common."""


def block_kinds(transformer: nn.Module) -> Counter[Kind]:
    """How many equal blocks the transformer has of each kind."""
    return Counter(kind for _, _, kind in blocks_of(transformer))


def shortened(transformer: nn.Module, counts: dict[Kind, int]) -> nn.Module:
    """The same network with only the first `counts` blocks of each kind; shares its weights."""
    kept: dict[str, list[nn.Module]] = {}
    seen: Counter[Kind] = Counter()
    for name, block, kind in blocks_of(transformer):
        seen[kind] += 1
        if seen[kind] <= counts.get(kind, seen[kind]):
            kept.setdefault(name, []).append(block)
    clone = copy.copy(transformer)
    clone._modules = {**transformer._modules, **{name: nn.ModuleList(kept[name]) for name in kept}}
    return clone


def blocks_of(transformer: nn.Module) -> Iterator[tuple[str, nn.Module, Kind]]:
    """The list, the block itself and its kind, for each block in the order of the network."""
    for name, child in transformer.named_children():
        if isinstance(child, nn.ModuleList):
            for block in child:
                shapes = tuple((key, tuple(value.shape)) for key, value in block.named_parameters())
                yield name, block, (name, (type(block).__name__, shapes))


def _with_transformer(pipeline: Outline, transformer: nn.Module) -> Outline:
    modules = copy.copy(pipeline.modules)
    modules.transformer = transformer
    return replace(pipeline, modules=modules)


def _updates(recipe: Recipe, pipeline: Outline, setting: Setting) -> Stages:
    whole = {"adapter": None, "activation_checkpointing": False, "embedding_cache": False}
    recipe = recipe.model_copy(update=whole)  # what of these is wanted, the setting says
    trainer = Trainer(recipe, pipeline, [""], None)  # type: ignore[arg-type]  # nothing is recorded
    trainer.draw(FAKE, 0)  # the prompt is read here, once, and not where the networks are measured
    generator, fake = trainer.state.generator, trainer.state.fake
    if setting.rank is not None:
        for network in (generator, fake):
            adapt(network.requires_grad_(False), setting.rank)
    if setting.checkpointing:
        for network in (pipeline.transformer, generator, fake):
            network.enable_gradient_checkpointing(partial(_checkpoint, setting.cuda))  # type: ignore[operator]
    books = Books(tensors(pipeline.transformer, generator, fake))
    with _operators(setting.cuda):
        update = partial(_update, trainer, setting, books)
        update("fake", fake, generator, trainer.fake_part, FAKE)
        update("generator", generator, fake, trainer.generator_part, GENERATOR)
    return books.stages


def _update(
    trainer: Trainer,
    setting: Setting,
    books: Books,
    name: str,
    trained: nn.Module,
    frozen: nn.Module,
    part: Callable[[Draw, int], tuple[Any, Tensor]],
    phase: int,
) -> None:
    """One part of a batch, as `Trainer.accumulate` does it."""
    frozen.requires_grad_(False)
    for weight in trained_weights(trained, setting.rank):
        weight.requires_grad_(True)
        if setting.accumulating:
            with books.meter:
                weight.grad = torch.zeros_like(weight)
    with books.stage(f"{name}_forward"), trainer.precision():
        loss, x_g = part(trainer.draw(phase, 0), 1)
    with books.stage(f"{name}_backward"):
        loss.total.backward()
    trained.zero_grad(set_to_none=True)


class Books:
    """The stages so far, and the meter that they are measured with."""

    def __init__(self, existing: list[Tensor]) -> None:
        self.stages: Stages = {}
        self.meter = Meter(existing)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        meter, start = self.meter, self.meter.live
        meter.restart()
        with meter:
            yield
        above = meter.peak - max(start, meter.live)
        self.stages[name] = Stage(meter.flops, start, meter.live, above)


def _operators(cuda: bool) -> AbstractContextManager[Any]:
    return LikeCuda() if cuda else sdpa_kernel(SDPBackend.MATH)


def _checkpoint(cuda: bool, function: Callable[..., Any], *inputs: Any) -> Any:
    """As diffusers calls it; the backward pass, where blocks run again, is outside of function modes."""
    contexts = partial(_contexts, cuda)
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(cuda: bool) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _operators(cuda)


class Adapted(nn.Module):
    """A frozen linear layer with a trained low-rank addition."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = nn.functional.linear(x, self.lora_A)
        return self.base(x) + nn.functional.linear(low, self.lora_B)  # type: ignore[no-any-return]


def adapt(transformer: nn.Module, rank: int) -> None:
    """Puts an adapter on every linear layer of the transformer's blocks, in place."""
    for _, block, _ in list(blocks_of(transformer)):
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear) and not isinstance(parent, Adapted):
                    setattr(parent, name, Adapted(child, rank))


def trained_weights(network: nn.Module, rank: int | None) -> list[nn.Parameter]:
    """All weights, or those of the adapters."""
    named = network.named_parameters()
    return [weight for name, weight in named if rank is None or name.endswith(("lora_A", "lora_B"))]


def tensors(*parts: object) -> list[Tensor]:
    """Parameters and buffers of those parts that are modules."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
