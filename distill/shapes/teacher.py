"""Trains the teachers of the shapes world: flow matching, the text encoders trained jointly.

Texts and latents go through the functions of `families/`, as in a distillation. The result is a stock
diffusers pipeline folder.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import flow
from ..errors import DistillError
from ..families import Conditioning, Family, Tokens, concat, family_named, repeat, with_guidance
from ..files import atomic_folder
from ..pipeline import forget_paths, load_pipeline, quiet
from .architectures import ARCHITECTURES, Architecture
from .corpus import Corpus
from .fit import Schedule, fit
from .scenes import ATTRIBUTES

TRAINING_PICTURES = 50_000
TIME_SPREAD = 1.2  # of the logit-normal law of noise levels
READING_WEIGHT = 0.05  # of the auxiliary loss that has the text encoders name the scene's attributes
GUIDANCE_SCALES = (1.0, 4.0)  # that a guidance input learns


class Trainee(nn.Module):
    """The parts of a pipeline that are trained, and a reading head that exists during training only."""

    def __init__(self, family: Family, pipeline: Any, empty: Tokens) -> None:
        super().__init__()
        self.family, self.transformer = family, pipeline.transformer
        self.text_encoders = nn.ModuleList(family.encoders(pipeline))
        with torch.no_grad():
            width = summary(self.embed(empty)).shape[1]
        self.reader = nn.Linear(width, sum(len(values) for values in ATTRIBUTES.values()))

    def embed(self, tokens: Tokens) -> Conditioning:
        conditioning = self.family.embed(list(self.text_encoders), tokens, self.family.text)
        return with_guidance(conditioning, 1.0 if self.family.guidance else None)

    def velocity(self, x_t: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        return self.family.velocity(self.transformer, x_t, self.family.time_scale * t_B, conditioning).float()


def summary(conditioning: Conditioning) -> Tensor:
    """One vector a caption, in which all of its words can be: the state of the last token where tokens see
    those before them only, else the mean over the tokens beside CLIP's pooled state. [B, D]"""
    states_BLC = conditioning["prompt_embeds"]
    if "pooled_projections" in conditioning:
        return torch.cat([conditioning["pooled_projections"], states_BLC.mean(1)], dim=1)
    return states_BLC[torch.arange(len(states_BLC)), conditioning["prompt_attention_mask"].sum(1) - 1]


def train_teacher(
    family: str,
    autoencoder: Path | None,
    out: Path,
    seed: int = 0,
    schedule: Schedule | None = None,
    init: str | None = None,
) -> None:
    """Trains the teacher of `family` on latents of `autoencoder` and saves the pipeline to `out`.

    Args:
        init: A teacher of the same family, shipped or a folder, whose parts it starts from, its
            autoencoder among them.

    Raises:
        DistillError: autoencoder or teacher is missing, or of another kind than the family's.
    """
    wanted = ARCHITECTURES[family]
    torch.manual_seed(seed)
    quiet()
    pipeline = _started(family, wanted, autoencoder, init)
    corpus = Corpus(family_named(family), pipeline, TRAINING_PICTURES, seed)
    model = Trainee(family_named(family), pipeline, corpus.empty)
    checkpoints = [out.with_suffix(f".{stage}.checkpoint") for stage in ("flow", "guidance")]
    with sdpa_kernel(SDPBackend.MATH):  # the fused CPU kernel's backward is slow at these sizes
        match_flow(model, corpus, wanted, schedule or wanted.schedule, seed, checkpoints[0])
        if wanted.guidance is not None:
            teach_guidance(model, corpus, wanted, seed, checkpoints[1])
    _save(pipeline, model.family, wanted, out)
    for path in checkpoints:
        path.unlink(missing_ok=True)


def _started(family: str, wanted: Architecture, autoencoder: Path | None, init: str | None) -> Any:
    if init is not None:
        started = load_pipeline(init)
        if started.family.name != family:
            raise DistillError(f"--init {init}: a {started.family.name} teacher; --family says {family}")
        for part in (started.modules.transformer, *started.family.encoders(started.modules)):
            part.requires_grad_(True)
        return started.modules
    if autoencoder is None:
        raise DistillError("a new teacher needs an --autoencoder; one that goes on, a teacher to --init from")
    return wanted.build(load_autoencoder(autoencoder, wanted.autoencoder))


def load_autoencoder(folder: Path, kind: str) -> Any:
    config = folder / "config.json"
    if not config.is_file():
        raise DistillError(f"no autoencoder in {folder}; make one with shapes train-autoencoder")
    found = json.loads(config.read_text()).get("_class_name")
    if found != kind:
        raise DistillError(
            f"{folder} holds an {found}, and this family takes an {kind}: train it with --family"
        )
    return getattr(diffusers, kind).from_pretrained(folder).eval()


def match_flow(
    model: Trainee, corpus: Corpus, wanted: Architecture, schedule: Schedule, seed: int, checkpoint: Path
) -> None:
    """|| v(x_t, t, c) - (eps - x0) ||^2, and that the texts can be read."""

    def loss(rng: np.random.Generator, batch: int) -> Tensor:
        x0, tokens, labels, captioned = corpus.draw(rng, batch)
        with wanted.autocast():
            conditioning = model.embed(tokens)
            x_t, t_B, eps = _noised(x0)
            error = model.velocity(x_t, t_B, conditioning) - flow.velocity(x0, eps)
            logits = model.reader(summary(conditioning))
        return error.square().mean() + READING_WEIGHT * _reading_loss(logits.float(), labels, captioned)

    fit("teacher", model, loss, schedule, seed, checkpoint)


def teach_guidance(model: Trainee, corpus: Corpus, wanted: Architecture, seed: int, checkpoint: Path) -> None:
    """Makes the guidance input mean what classifier-free guidance did to the network as it is now:

    || v(x_t, t, c, g) - (u + g (v - u)) ||^2 with u, v its unconditional and conditional velocity, which is
    how FLUX.1-dev is said to have been made (its model card: "guidance distillation").
    """
    assert wanted.guidance is not None
    before = copy.deepcopy(model).requires_grad_(False)

    def loss(rng: np.random.Generator, batch: int) -> Tensor:
        x0, tokens, _, _ = corpus.draw(rng, batch)
        with wanted.autocast():
            x_t, t_B, _ = _noised(x0)
            scale_B = torch.empty(batch).uniform_(*GUIDANCE_SCALES)
            with torch.no_grad():
                conditional = before.embed(tokens)
                both = concat(repeat(before.embed(corpus.empty), batch), conditional)
                u, v = before.velocity(torch.cat([x_t, x_t]), torch.cat([t_B, t_B]), both).chunk(2)
                target = torch.lerp(u, v, flow.per_image(scale_B, u))
            guided = model.velocity(x_t, t_B, {**conditional, "guidance": scale_B})
        return (guided - target).square().mean()

    fit("guidance", model.transformer, loss, wanted.guidance, seed, checkpoint)


def _noised(x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, noise levels and noise."""
    t_B, eps = torch.sigmoid(TIME_SPREAD * torch.randn(len(x0))), torch.randn_like(x0)
    return flow.add_noise(x0, eps, t_B), t_B, eps


def _reading_loss(logits: Tensor, labels: Tensor, captioned: Tensor) -> Tensor:
    heads = logits.split([len(values) for values in ATTRIBUTES.values()], dim=1)
    each = [F.cross_entropy(head, label, reduction="none") for head, label in zip(heads, labels.T)]
    return (torch.stack(each).mean(0) * captioned).mean()


def _save(pipeline: Any, family: Family, wanted: Architecture, out: Path) -> None:
    """Large parts in half precision: it halves the folder, and stock diffusers loads them as float32. Text
    encoders it would leave in half precision, beside a transformer that is not: they are rounded only."""
    pipeline.vae.half()
    pipeline.transformer.to(torch.bfloat16 if wanted.bfloat16 else torch.float16)
    for encoder in family.encoders(pipeline):
        encoder.half().float()
    with atomic_folder(out) as folder:
        pipeline.save_pretrained(folder)
        forget_paths(folder)
