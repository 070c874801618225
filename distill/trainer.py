"""The training loop of Score identity Distillation (`sid.md` 2 and 6.1; arXiv 2509.25127, section 4).

Three roles of one network: the frozen teacher, the fake score network and the generator. Each
iteration updates the fake network and then the generator; both use the same random step index k.
With real images the fake network is a discriminator as well (`sid.md` 2.9 and 6.2).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import adversarial, flow, sid
from .adversarial import Critic
from .compiling import compile_blocks
from .data import Latents
from .errors import RunFailed
from .families import Conditioning, repeat
from .parallel import ALONE, Ranks
from .pictures import Images, to_images
from .pipeline import Pipeline
from .recipe import Recipe, Stage
from .report import Iteration, Report
from .roles import require_grad, trained
from .run import Run
from .sampler import Network, guided_network, rollout, seeded_noise
from .spec import uniform_levels
from .state import State, follow, new_state, set_rates

FAKE, GENERATOR = 1, 2  # phases of an iteration, each with its own random stream
SPREAD_LIMITS = (0.05, 20.0)  # of generated latents relative to the start; outside, pictures have collapsed
PATIENCE = 3  # iterations in a row without one finite image


@dataclass(frozen=True)
class Real:
    """Real images: clean latents and what their own captions say."""

    x0: Tensor
    conditioning: Conditioning


@dataclass(frozen=True)
class Draw:
    """The fresh random inputs of one part of a batch; real images for a discriminator only."""

    conditioning: Conditioning
    unconditional: Conditioning
    noise: Callable[[int], Tensor]
    eps: Tensor
    t_B: Tensor
    real: Real | None = None


@dataclass
class Trainer:
    """A distillation in progress.

    Attributes:
        recipe: What to do.
        teacher: The frozen pipeline; its transformer is the starting point of both trained networks.
        prompts: Texts to draw from.
        run: Where events, pictures and checkpoints go, and what says when to stop.
        data: Real images, of a data-aided run.
        start: The transformer that the generator starts from, if not the teacher's.
        device: Where it is to run, if not where the teacher is: shards are cut from copies on the CPU.
        ranks: The processes that share it.
    """

    recipe: Recipe
    teacher: Pipeline
    prompts: Sequence[str]
    run: Run
    data: Latents | None = None
    start: nn.Module | None = None
    device: torch.device | None = None
    ranks: Ranks = ALONE
    state: State = field(init=False)

    def __post_init__(self) -> None:
        recipe, teacher = self.recipe, self.teacher
        self.share = self.ranks.share(recipe)
        if recipe.activation_checkpointing:
            copied: list[Any] = [teacher.transformer, *([self.start] if self.start is not None else [])]
            for network in copied:
                network.enable_gradient_checkpointing()
        place = partial(self.ranks.place, recipe=recipe, device=self.device or teacher.device)
        self.state = new_state(recipe, teacher.transformer, self.start, teacher.family.adapted, place)
        place(teacher.transformer)
        if recipe.compile:
            for network in (teacher.transformer, self.state.fake, self.state.generator):
                compile_blocks(network)
        if self.device is not None:
            teacher.join_transformer()
        self.embeddings = self.run.embeddings(teacher) if recipe.embedding_cache else None
        self.embed = teacher.embed if self.embeddings is None else self.embeddings.embed
        self.unconditional = teacher.unconditional()
        self.levels = uniform_levels(self.recipe.steps)
        self.shape = self.teacher.latent_shape(self.recipe.size)

    @property
    def student(self) -> nn.Module:
        """The weights to be kept: the moving average if there is one, unless the recipe says `live`."""
        live = self.recipe.keep == "live" or self.state.ema is None
        return self.state.generator if live else self.state.ema  # type: ignore[return-value]

    @property
    def stage(self) -> Stage:
        """What is trained now; without real images always the generator, with SiD's loss alone."""
        seen = self.state.iteration * self.recipe.batch
        return "sid" if self.data is None else self.recipe.adversarial.stage(seen)

    def train(self) -> None:
        """Runs from the state's iteration to the recipe's last.

        Raises:
            RunFailed: nothing but NaN, or the pictures have collapsed; the best student is kept.
            Interrupted: asked to stop; the state is saved.
        """
        with _attention(self.teacher.device):
            if self.embeddings is not None:
                captions = () if self.data is None else self.data.captions
                self.embeddings.fill([*self.prompts, *captions], until=lambda: self.run.stopping)
                self.run.stop_if_asked(self)
            self._train()

    def _train(self) -> None:
        state, recipe = self.state, self.recipe
        while state.iteration < recipe.iterations and not self.run.out_of_time:
            began = time.perf_counter()
            set_rates(state, recipe)
            k = self.draw_step()

            # Fake score network, with real images also as discriminator.
            select(update=state.fake, freeze=state.generator)
            for update in range(recipe.fake_updates):
                fake = self.accumulate(self.fake_part, k, FAKE + 2 * update)
                fake_norm = self.step(state.fake, state.fake_optimizer)

            # Generator, unless it rests while the discriminator takes the lead.
            generator, generator_norm = Report(), None
            if self.stage != "fake":
                select(update=state.generator, freeze=state.fake)
                generator = self.accumulate(self.generator_part, k, GENERATOR)
                generator_norm = self.step(state.generator, state.generator_optimizer)

            # Bookkeeping.
            follow(state.ema, state.generator, recipe.ema)
            state.iteration += 1
            seconds = time.perf_counter() - began
            iteration = Iteration(k, fake, generator, fake_norm, generator_norm, seconds)
            self.check(iteration.last)
            self.run.after_iteration(self, iteration)

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], seeds: Sequence[int], steps: int) -> Images:
        """Pictures of the student as it is now, uint8 [N, H, W, 3]."""
        family = self.teacher.family
        conditioning, embed = self.embed(prompts), self.recipe.guidance.student_embed
        network = guided_network(self.student, family, self.teacher.time_scale, conditioning, embed=embed)
        noise = seeded_noise(seeds, self.shape, self.teacher.device)
        x0 = rollout(network, self.recipe.levels[steps], noise, self.recipe.renoise)
        return to_images(self.teacher.decode(x0))

    def draw_step(self) -> int:
        """k ~ Uniform{1 ... N}; one for the whole batch and both updates."""
        return int(torch.randint(1, self.recipe.steps + 1, (), generator=self.stream(0)))

    def stream(self, phase: int, part: int = 0) -> torch.Generator:
        """Random numbers that depend on the seed and the place in the run only, so a resumed run
        draws what an uninterrupted one would have drawn."""
        return torch.Generator().manual_seed(_seed(self.recipe.seed, self.state.iteration, phase, part))

    def draw(self, phase: int, part: int) -> Draw:
        """Prompts, noise and noise levels, drawn anew for each update: the whole part, of which this
        rank keeps its share."""
        recipe, source, mine = self.recipe, self.stream(phase, part), self.share
        count, device = recipe.batch // recipe.accumulation, self.teacher.device
        index = torch.randint(len(self.prompts), (count,), generator=source)[mine].tolist()

        def normal(_: int = 0) -> Tensor:
            return torch.randn(count, *self.shape, generator=source)[mine].to(device)

        law = recipe.noise_levels
        t_B = flow.logit_normal(count, source, law.mean, law.std)[mine].to(device)
        conditioning = self.embed([self.prompts[i] for i in index])
        plain = Draw(conditioning, repeat(self.unconditional, len(index)), normal, normal(), t_B)
        return plain if self.data is None or phase == GENERATOR else self.with_real(plain, count, source)

    def with_real(self, draw: Draw, count: int, source: torch.Generator) -> Draw:
        """As many real images as there are generated ones."""
        assert self.data is not None
        index = torch.randint(len(self.data), (count,), generator=source)[self.share].tolist()
        conditioning = self.embed([self.data.captions[i] for i in index])
        return replace(draw, real=Real(self.data[index].to(draw.eps), conditioning))

    def network(
        self, module: nn.Module, draw: Draw, scale: float = 1.0, embed: float = 1.0, with_text: bool = False
    ) -> Network:
        """`module` under guidance: `scale` of two branches, `embed` for a network with a guidance input."""
        family, time_scale = self.teacher.family, self.teacher.time_scale
        both = (draw.conditioning, draw.unconditional)
        return guided_network(module, family, time_scale, *both, scale, embed, with_text)

    def fake(self, draw: Draw, scale: float, heard: bool) -> Critic:
        """The fake score network under guidance; `heard` if its logits count, which read the text."""
        module = self.state.fake
        network = self.network(module, draw, scale, self.recipe.guidance.fake_embed, with_text=heard)
        return Critic(network, self.teacher.family, module)

    def generate(self, draw: Draw, k: int, grad: bool) -> Tensor:
        """x_g: the clean estimate of step k, with gradient through that step only."""
        network = self.network(self.state.generator, draw, embed=self.recipe.guidance.student_embed)
        return rollout(network, self.levels, draw.noise, self.recipe.renoise, k, grad)

    def fake_part(self, draw: Draw, k: int) -> tuple[sid.Loss, Tensor]:
        recipe, real = self.recipe, draw.real
        x_g = self.generate(draw, k, grad=False)
        fake = self.fake(draw, recipe.guidance.fake_train, heard=real is not None)
        loss = sid.fake_loss(fake, x_g, draw.eps, draw.t_B).scaled(recipe.fake_scale)
        if real is not None:
            critic = self.fake(replace(draw, conditioning=real.conditioning), 1, heard=True)
            critic(flow.add_noise(real.x0, draw.eps, draw.t_B), draw.t_B)
            told = adversarial.discriminator_loss(critic.logits_BC, fake.logits_BC, x_g[0].numel())
            loss = loss.with_adversarial(told.scaled(recipe.adversarial.discriminator_weight))
        return loss, x_g

    def generator_part(self, draw: Draw, k: int) -> tuple[sid.Loss, Tensor]:
        recipe, kappa, heard = self.recipe, self.recipe.guidance, self.stage == "combined"
        x_g = self.generate(draw, k, grad=True)
        teacher = self.network(self.teacher.transformer, draw, kappa.teacher, kappa.teacher_embed)
        fake = self.fake(draw, kappa.fake_outer, heard)
        same = kappa.fake_inner == kappa.fake_outer
        inner = None if same else self.network(self.state.fake, draw, kappa.fake_inner, kappa.fake_embed)
        noised = (x_g, draw.eps, draw.t_B)
        loss = sid.generator_loss(teacher, fake, *noised, recipe.alpha, recipe.weighting, inner)
        loss = loss.scaled(recipe.generator_scale)
        if heard:
            taken = adversarial.generator_loss(fake.logits_BC, draw.t_B, x_g[0].numel(), recipe.weighting)
            loss = adversarial.combined(loss, taken, recipe.adversarial.weight)
        return loss, x_g.detach()

    def accumulate(self, part: Callable[[Draw, int], tuple[sid.Loss, Tensor]], k: int, phase: int) -> Report:
        """Back-propagates a batch in the recipe's number of parts; the report is on all ranks' shares."""
        report = Report()
        for number in range(self.recipe.accumulation):
            with self.precision():
                loss, x_g = part(self.draw(phase, number), k)
            (loss.total / self.recipe.accumulation).backward()
            report.add(loss, x_g)
        return report.over(self.ranks)

    def precision(self) -> Any:
        bfloat16 = self.recipe.precision == "bfloat16"
        return torch.autocast(self.teacher.device.type, torch.bfloat16, enabled=bfloat16)

    def step(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        parameters = list(trained(module).values())
        self.ranks.average(parameters)
        norm = sid.clean_gradients(parameters)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def check(self, generated: Report) -> None:
        """Stops a run that has nothing left to learn from."""
        state = self.state
        state.lost = state.lost + 1 if generated.dropped == self.recipe.batch else 0
        if state.lost >= PATIENCE:
            raise RunFailed(f"iteration {state.iteration}: the loss has been NaN for {PATIENCE} iterations")
        state.spread_at_start = state.spread_at_start or generated.spread
        low, high = SPREAD_LIMITS
        known = state.lost == 0 and state.spread_at_start > 0  # one image has no spread
        if known and not low < generated.spread / state.spread_at_start < high:
            raise RunFailed(
                f"iteration {state.iteration}: pictures have collapsed (spread of latents "
                f"{generated.spread:.3g}, at the start {state.spread_at_start:.3g}); lower the learning rate"
            )


def _seed(*place: int) -> int:
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])


def select(update: nn.Module, freeze: nn.Module) -> None:
    require_grad(update, True)
    require_grad(freeze, False)


def _attention(device: torch.device) -> AbstractContextManager[Any]:
    """On CPU the fused attention's backward is several times slower at small sizes."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
