"""`fewstep evaluate`: on shapes by their judge, else by published networks (FID, CLIP score)."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError

from .models import TEACHER_STEPS, Images, Model, default_device, open_model

if TYPE_CHECKING:
    from distill.metrics.fidelity import Yardsticks
    from distill.metrics.gallery import Order

FIDELITY = ("fid_features", "clip", "reference_images", "reference_statistics", "pictures")


@dataclass(frozen=True)
class Setting:
    """One row: a model with a number of steps and, for a teacher, a guidance scale."""

    label: str
    model: Model
    steps: int
    guidance: float

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        return self.model.draw(prompts, seeds, self.steps, self.guidance)


def evaluate(options: argparse.Namespace) -> None:
    from distill.evaluation import markdown_table
    from distill.files import write_json
    from distill.metrics.fidelity import fidelity_table

    _check(options)
    path, card = _card(options.model) if options.card else (None, {})
    rows = _fidelity(options) if options.prompts else _shapes(options)
    if path is not None:
        write_json(path, card | {label: card.get(label, {}) | row for label, row in rows.items()})
    table = fidelity_table if options.prompts else markdown_table
    print(json.dumps(rows, indent=2) if options.json else table(rows))


def _check(options: argparse.Namespace) -> None:
    if options.card and (Path(options.model) / "bundle.json").is_file():
        raise DistillError("--card: a bundle's card is sealed; add to its student's and export that again")
    if not options.prompts:
        given = [f"--{name.replace('_', '-')}" for name in FIDELITY if getattr(options, name) is not None]
        if given:
            raise DistillError(f"{given[0]} needs --prompts FILE; without it the judge of shapes measures")
    elif options.floor or options.split != "held-out":
        raise DistillError("--floor and --split are of the shapes world; leave them out with --prompts")
    elif not (options.fid_features or options.clip):
        raise DistillError("--prompts: nothing to measure; give --fid-features, --clip or both")
    elif bool(options.fid_features) != bool(options.reference_images or options.reference_statistics):
        raise DistillError(
            "FID needs --fid-features and --reference-images or --reference-statistics; one of them is missing"
        )


def _shapes(options: argparse.Namespace) -> dict[str, Any]:
    from distill.evaluation import evaluate_seeds, fresh_renders

    wanted = (options.split, options.images or 500, options.seeds or [0, 1, 2])
    rows = {"fresh renders": evaluate_seeds(fresh_renders, *wanted)} if options.floor else {}
    for setting in _settings(options):
        rows[setting.label] = evaluate_seeds(setting.draw, *wanted, setting.label)
    return rows


def _fidelity(options: argparse.Namespace) -> dict[str, Any]:
    """Whatever may be refused is loaded before the first picture is drawn."""
    from distill.metrics.fidelity import summarise
    from distill.metrics.gallery import draw_gallery
    from distill.prompts import sample_prompts

    seeds = options.seeds or [0]
    prompts = {seed: sample_prompts(options.prompts, options.images, seed) for seed in seeds}
    settings, yardsticks = list(_settings(options)), _yardsticks(options)
    protocol = {
        "prompts": Path(options.prompts).name,
        "images": len(prompts[seeds[0]]),
        "seeds": seeds,
        **yardsticks.describe(),
    }
    rows = {}
    with _folder(options.pictures) as root:
        for setting in settings:
            runs, digest = [], setting.model.digest()
            for seed in seeds:
                order = _order(setting, digest, prompts[seed], seed, options.batch)
                folder = Path(root) / re.sub(r"[^\w.]+", "-", setting.label) / f"seed-{seed}"
                files = draw_gallery(folder, order, setting.draw, setting.label)
                runs.append(yardsticks.measure(files, prompts[seed], setting.label))
            rows[setting.label] = {**summarise(runs), "protocol": protocol}
    return rows


def _yardsticks(options: argparse.Namespace) -> Yardsticks:
    from distill.metrics.clip_score import load_scorer
    from distill.metrics.features import load_features
    from distill.metrics.fidelity import Yardsticks, open_reference

    device, reference = options.device or default_device(), None
    scorer = load_scorer(options.clip, device) if options.clip else None
    if options.fid_features:
        network = load_features(options.fid_features, options.fid_size, device)
        reference = open_reference(network, options.reference_images, options.reference_statistics)
    return Yardsticks(reference, scorer)


def _folder(pictures: Path | None) -> AbstractContextManager[Path | str]:
    """Where the pictures go; without a wish, for as long as they are measured."""
    return nullcontext(pictures) if pictures else TemporaryDirectory(prefix="fewstep-")


def _order(setting: Setting, digest: str, prompts: Sequence[str], seed: int, batch: int) -> Order:
    from distill.evaluation import picture_seeds
    from distill.hub import name_of
    from distill.metrics.gallery import Order

    return Order(
        model=name_of(setting.model.folder),
        digest=digest,
        steps=setting.steps,
        guidance=setting.guidance,
        batch=batch,
        prompts=prompts,
        seeds=picture_seeds(seed, len(prompts)),
    )


def _card(model: str) -> tuple[Path, dict[str, Any]]:
    """Where a student's card lies, and what it says so far."""
    from distill.pipeline import find_pipeline
    from distill.student import QUALITY_CARD

    path = find_pipeline(model) / QUALITY_CARD
    try:
        return path, json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise DistillError(
            f"{path} is not valid JSON ({error}); delete it and the card starts anew"
        ) from error


def _settings(options: argparse.Namespace) -> Iterator[Setting]:
    model = open_model(options.model, options.device, options.few_step)
    if options.reference:
        reference = open_model(options.reference, options.device)
        yield from _rows(options.reference, reference, [TEACHER_STEPS], options.guidance)
    steps = options.steps or list(model.step_counts) or [TEACHER_STEPS]
    yield from _rows(options.model, model, steps, options.guidance)


def _rows(name: str, model: Model, steps: Sequence[int], guidance: Sequence[float]) -> Iterator[Setting]:
    name = Path(name).name
    for count in steps:
        if model.kind != "teacher":
            yield Setting(f"{name}, {count} step{'s' if count > 1 else ''}", model, count, 1.0)
            continue
        for scale in guidance:
            yield Setting(f"{name}, {count} steps, guidance {scale:g}", model, count, scale)
