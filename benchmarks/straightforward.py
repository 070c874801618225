"""SiD as one would write it first, in the structure of the published code (`sid.md` 2): the yardstick for the loop.

Three whole copies of the network, Adam with both moments, a graph for every step of the rollout in the
generator's update, each FLUX step evaluated twice with the first result thrown away, the attention that PyTorch
chooses. The random inputs are the loop's own, so that both do the same work and their losses can be compared;
written for data-free recipes without an adapter.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from distill import flow
from distill.sampler import guided_network
from distill.trainer import FAKE, GENERATOR, Draw, Trainer


class Straightforward:
    """One recipe's distillation, iteration by iteration.

    Attributes:
        inputs: The loop whose recipe, teacher, prompts and random numbers are used; it is not trained.
        losses: Those of the last iteration, by network: sums over latents, means over images.
    """

    def __init__(self, inputs: Trainer) -> None:
        self.inputs, self.recipe = inputs, inputs.recipe
        self.teacher = inputs.teacher.transformer
        self.fake, self.generator = (copy.deepcopy(self.teacher).train() for _ in range(2))
        wanted = self.recipe.optimizer
        settings = {"betas": (wanted.beta1, wanted.beta2), "eps": wanted.eps}
        self.fake_optimizer = torch.optim.Adam(self.fake.parameters(), wanted.lr_fake, **settings)
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), wanted.lr_generator, **settings
        )
        self.calls = 2 if inputs.teacher.family.name == "flux" else 1
        self.losses: dict[str, float] = {}

    def iterate(self, k: int) -> None:
        """One update of the fake network, one of the generator, at step k."""
        self.fake.requires_grad_(True)
        self.generator.requires_grad_(False)
        self._update("fake", k, FAKE, self.fake, self.fake_optimizer)
        self.fake.requires_grad_(False)
        self.generator.requires_grad_(True)
        self._update("generator", k, GENERATOR, self.generator, self.generator_optimizer)
        self.inputs.state.iteration += 1

    def _update(
        self, name: str, k: int, phase: int, network: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        optimizer.zero_grad()
        self.losses[name] = 0.0
        for part in range(self.recipe.accumulation):
            with self.inputs.precision():
                draw = self.inputs.draw(phase, part)
                loss = self._fake_loss(draw, k) if phase == FAKE else self._generator_loss(draw, k)
            (loss / self.recipe.accumulation).backward()
            self.losses[name] += float(loss.detach()) / self.recipe.accumulation
        for parameter in network.parameters():
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=parameter.grad)
        optimizer.step()

    def _velocity(
        self, network: nn.Module, draw: Draw, x: Tensor, t_B: Tensor, scale: float, embed: float
    ) -> Tensor:
        teacher = self.inputs.teacher
        both = (draw.conditioning, draw.unconditional)
        return guided_network(network, teacher.family, teacher.time_scale, *both, scale, embed)(x, t_B)

    def _generated(self, draw: Draw, k: int) -> Tensor:
        """Every step may build a graph; only the input of the k-th is cut off from what came before."""
        clean = torch.zeros_like(first := draw.noise(0))
        for step, level in enumerate(self.inputs.levels[:k]):
            x = (1 - level) * clean + level * (first if step == 0 else draw.noise(step))
            if step == k - 1:
                x = x.detach()
            t_B = torch.full((len(x),), level)
            for _ in range(self.calls):
                v = self._velocity(self.generator, draw, x, t_B, 1.0, self.recipe.guidance.student_embed)
            clean = flow.x0_from_velocity(x, v, t_B)
        return clean

    def _fake_loss(self, draw: Draw, k: int) -> Tensor:
        kappa = self.recipe.guidance
        with torch.no_grad():
            x_g = self._generated(draw, k)
        x_t = flow.add_noise(x_g, draw.eps, draw.t_B)
        v = self._velocity(self.fake, draw, x_t, draw.t_B, kappa.fake_train, kappa.fake_embed).float()
        return ((v - (draw.eps - x_g)) ** 2).sum() / len(x_g)

    def _generator_loss(self, draw: Draw, k: int) -> Tensor:
        kappa, t_B = self.recipe.guidance, draw.t_B
        x_g = self._generated(draw, k)
        x_t = flow.add_noise(x_g, draw.eps, t_B)
        v_phi = self._velocity(self.teacher, draw, x_t, t_B, kappa.teacher, kappa.teacher_embed)
        v_psi = self._velocity(self.fake, draw, x_t, t_B, kappa.fake_outer, kappa.fake_embed)
        f_phi, f_psi = (flow.x0_from_velocity(x_t, v, t_B).float() for v in (v_phi, v_psi))
        weight = flow.per_image(1 - t_B, x_t)
        return self.recipe.generator_scale * (weight * (f_phi - f_psi) * (f_psi - x_g)).sum() / len(x_g)
