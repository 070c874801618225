"""Measures real sizes on one GPU: `python -m benchmarks.gpu --out docs/gpu`.

Weights are random, of the published configurations. First whole iterations of SiD (memory and time, one for each
k after one that is not counted), without text encoders and autoencoder: conditioning is random. Then one pass of
each denoiser in bfloat16. Each measurement is written to `gpu.json` at once, a failed one with its error; after
`--seconds` no new one begins. `--plan` adds, on any machine, what `fewstep plan` says of the same iterations.
`--tiny` keeps two blocks of each kind and small pictures. Prints Markdown.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor

from distill.families import Conditioning, Family, family_named, with_guidance
from distill.metrics.tables import markdown
from distill.pipeline import Pipeline
from distill.planning.gpus import GPUS
from distill.planning.outline import published
from distill.planning.plan import Mode, _flops_of_part, _moments, _outline, _setting, _sizes, resting_memory
from distill.planning.rehearsal import Stage, rehearse
from distill.recipe import Recipe, load_recipe
from distill.trainer import Trainer

Record = dict[str, Any]

ITERATIONS: dict[str, tuple[str, ...]] = {  # shipped recipe and what is changed, the most useful first
    "sana-0.6b-512, batch 8": ("batch=8",),
    "sana-0.6b-512, batch 8, checkpointing": ("batch=8", "activation_checkpointing=true"),
    "sana-1.6b-512, batch 8": ("batch=8",),
    "sana-1.6b-512, batch 8, checkpointing": ("batch=8", "activation_checkpointing=true"),
    "sd3.5-medium, batch 2, lora, checkpointing": (
        *("batch=2", "adapter=lora"),
        "activation_checkpointing=true",
    ),
    "sana-0.6b-512, batch 4": ("batch=4",),
}
DENOISERS = {  # sides in pixels
    "Efficient-Large-Model/Sana_600M_512px_diffusers": (512, 1024),
    "Efficient-Large-Model/Sana_1600M_512px_diffusers": (512, 1024),
    "stabilityai/stable-diffusion-3.5-medium": (1024,),
    "stabilityai/stable-diffusion-3.5-large": (1024,),
    "black-forest-labs/FLUX.1-dev": (1024,),
}
BATCHES = (1, 4, 16)
PASSES, SLOW_PASSES = (2, 5), (1, 2)  # not counted, and counted; fewer where one takes over a second
TINY_SIDE = 128
ABOUT = {
    "iteration": "mean over k = 1 ... N of the last N of N + 1 iterations; random weights and embeddings; no text "
    "encoders, no autoencoder; one part to a batch; peak_gb is torch.cuda.max_memory_allocated of these N / 1e9",
    "denoiser": "median of passes one after another, synchronised before and after; eager unless it says compiled",
    "plan": "the rehearsal's peak and operations for the same, encoders and autoencoder taken off",
}
COMPILING = 40.0  # seconds that have to be left for it


class Random(Pipeline):
    """A transformer by itself, for which every prompt is random."""

    def _embed(self, prompts: Any, text: Any) -> Conditioning:
        return conditioning(self.family, self.transformer, len(prompts))


class EachStep(Trainer):
    """Takes k = 1 ... N in turn, behind a first N, and lets pictures be what they are."""

    def draw_step(self) -> int:
        return (self.state.iteration - 1) % self.recipe.steps + 1

    def check(self, generated: object) -> None: ...


@dataclass
class Clock:
    """Stands in for a run that is recorded; the moments when iterations ended."""

    out_of_time: bool = False
    ends: list[float] = field(default_factory=list)

    def after_iteration(self, training: Trainer, iteration: object) -> None:
        synchronize()
        if not self.ends and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.ends.append(time.perf_counter())


@dataclass
class Bench:
    """The measurements so far, in their file."""

    path: Path
    until: float
    content: dict[str, Any]

    def measure(self, kind: str, name: str, work: Callable[[], Record]) -> None:
        if time.monotonic() > self.until:
            record: Record = {"skipped": "no time left"}
        else:
            began = time.monotonic()
            try:
                record = work()
            except Exception as error:  # whatever it is, the others are measured
                reason = " ".join(str(error).split())[:300]
                record = {"error": f"{type(error).__name__}: {reason}", "peak_gb": peak_gb()}
            record["took_seconds"] = round(time.monotonic() - began, 1)
        self.content[kind][name] = record
        clean()
        print(f"{kind}: {name}: {record}", flush=True)
        save(self.path, self.content)


def save(path: Path, content: dict[str, Any]) -> None:
    written = path.with_suffix(".part")
    written.write_text(json.dumps(content, indent=2) + "\n")
    written.replace(path)


def clean() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gb() -> float | None:
    return round(torch.cuda.max_memory_allocated() / 1e9, 3) if torch.cuda.is_available() else None


def build(teacher: str, device: str, dtype: torch.dtype, tiny: bool) -> Any:
    """The published transformer with random weights, made where it is to run."""
    _, name, config = published()[teacher]["transformer"]
    less = {key: 2 for key in ("num_layers", "num_single_layers") if tiny and key in config}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            made = getattr(diffusers, name).from_config({**config, **less})
    finally:
        torch.set_default_dtype(before)
    return made.to(device, dtype).requires_grad_(False).eval()


def family_and_scale(teacher: str) -> tuple[Family, int]:
    """The family, and pixels per latent position: each level of an autoencoder but the first halves."""
    parts = published()[teacher]
    config = parts["vae"][2]
    channels = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return family_named(parts["family"]), 2 ** (len(channels) - 1)


def conditioning(family: Family, transformer: Any, count: int) -> Conditioning:
    """Random embeddings of the shapes that the family's encoders give."""
    some, config = next(transformer.parameters()), transformer.config
    tokens = family.text[-1].max_length + (family.text[0].max_length if family.name == "sd3" else 0)
    like: dict[str, Any] = {"device": some.device, "dtype": some.dtype}
    if family.name.startswith("sana"):
        mask = torch.ones(count, tokens, dtype=torch.long, device=some.device)
        states = torch.randn(count, tokens, config.caption_channels, **like)
        return {"prompt_embeds": states, "prompt_attention_mask": mask}
    return {
        "prompt_embeds": torch.randn(count, tokens, config.joint_attention_dim, **like),
        "pooled_projections": torch.randn(count, config.pooled_projection_dim, **like),
    }


def recipe_of(name: str, tiny: bool) -> Recipe:
    less = (f"size=[{TINY_SIDE}, {TINY_SIDE}]", "batch=1", "steps=1") if tiny else ()
    return load_recipe(name.split(",")[0], ("accumulation=1", *ITERATIONS[name], *less))


def iteration(name: str, device: str, tiny: bool) -> Record:
    """Mean seconds of an iteration over k, and the peak of memory in them."""
    recipe = recipe_of(name, tiny)
    recipe = recipe.model_copy(update={"iterations": 1 + recipe.steps, "embedding_cache": False})
    family, scale = family_and_scale(recipe.teacher)
    network = build(recipe.teacher, device, torch.float32, tiny)
    modules = SimpleNamespace(
        transformer=network, components={"transformer": network}, vae_scale_factor=scale
    )
    teacher = Random(Path(recipe.teacher), family, family.text, family.time_scale, modules)
    clock = Clock()
    EachStep(recipe, teacher, ["a red circle"], clock).train()  # type: ignore[arg-type]
    seconds = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    each = [round(value, 4) for value in seconds]
    return {"seconds": statistics.mean(seconds), "seconds_by_k": each, "peak_gb": peak_gb()}


def planned(name: str, tiny: bool) -> Record:
    """What the plan says of the same: memory without encoders and autoencoder, operations over all k."""
    recipe = recipe_of(name, tiny)
    mode = Mode.of(recipe)
    with _outline(recipe) as pipeline:
        stages = rehearse(recipe, pipeline, _setting(mode, 1))
        resting = resting_memory(_sizes(pipeline, mode.rank), mode, recipe.ema is not None, _moments(recipe))
    there = resting.total - resting.gradients - resting.text_encoders - resting.autoencoder
    flops = _flops_of_part(recipe, {**stages, "text": Stage()})
    peak = there + max(stage.peak for stage in stages.values())
    return {"peak_gb": round(peak / 1e9, 3), "flops": flops}


def denoise(network: Any, teacher: str, side: int, batch: int, run: Any = None) -> Record:
    """Median milliseconds of one pass."""
    family, scale = family_and_scale(teacher)
    some: Tensor = next(network.parameters())
    channels = network.config.in_channels // family.packing**2
    x = torch.randn(batch, channels, side // scale, side // scale, device=some.device, dtype=some.dtype)
    t = torch.full((batch,), 0.5 * family.time_scale, device=some.device)
    what = with_guidance(conditioning(family, network, batch), 3.5)

    @torch.inference_mode()
    def once() -> float:
        synchronize()
        began = time.perf_counter()
        family.velocity(run or network, x, t, what)
        synchronize()
        return 1000 * (time.perf_counter() - began)

    first = [once(), once()]
    warm, counted = PASSES if first[1] < 1000 else SLOW_PASSES
    times = [*first, *(once() for _ in range(warm + counted - 2))][warm:]
    return {"milliseconds": statistics.median(times), "passes": counted, "peak_gb": peak_gb()}


def denoisers(bench: Bench, device: str, tiny: bool) -> None:
    for teacher, sides in DENOISERS.items():
        networks: list[Any] = []  # built by the first that needs it

        def work(
            side: int, batch: int, name: str = teacher, there: list[Any] = networks, compiled: bool = False
        ) -> Record:
            if not there:
                there.append(build(name, device, torch.bfloat16, tiny))
            network = there[0]
            return denoise(network, name, side, batch, torch.compile(network) if compiled else None)

        for side in sides if not tiny else (TINY_SIDE,):
            for batch in BATCHES if not tiny else BATCHES[:1]:
                bench.measure("denoiser", f"{teacher}, {side}, batch {batch}", lambda: work(side, batch))  # noqa: B023
        networks.clear()
        clean()
    if device == "cuda" and bench.until - time.monotonic() >= COMPILING:
        name, side = next(iter(DENOISERS)), 1024
        bench.measure("denoiser", f"{name}, {side}, batch 1, compiled", lambda: work(side, 1, name, [], True))


def machine(device: str) -> Record:
    driver, name, memory = "", platform.processor() or platform.machine(), None
    if device == "cuda":
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            driver = f"unknown ({error})"
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "diffusers": diffusers.__version__}
    date = datetime.now(UTC).date().isoformat()
    return {"name": name, "memory_bytes": memory, "driver": driver, **versions, "date": date}


def table(content: dict[str, Any]) -> str:
    """Markdown of what is in the file."""
    rate = GPUS["H100"].rate("bfloat16")
    said = ", ".join(f"{key} {value}" for key, value in content["machine"].items())

    def iterations() -> Iterable[list[str]]:
        for name, got in content["iteration"].items():
            plan = content["plan"].get(name, {})
            use = plan["flops"] / got["seconds"] / rate if "flops" in plan and "seconds" in got else None
            numbers = [got.get("peak_gb"), plan.get("peak_gb"), got.get("seconds"), use]
            yield [name, *map(figure, numbers), note(got)]

    def passes() -> Iterable[list[str]]:
        for name, got in content["denoiser"].items():
            yield [name, figure(got.get("milliseconds")), figure(got.get("peak_gb")), note(got)]

    head = ["iteration", "peak GB", "planned GB", "seconds", "share of an H100's 989 TFLOP/s", ""]
    first = markdown(head, list(iterations()))
    second = markdown(["one pass, bfloat16", "ms", "peak GB", ""], list(passes()))
    return f"{said}\n\n{first}\n\n{second}"


def figure(value: float | None) -> str:
    """Three digits."""
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def note(record: Record) -> str:
    return str(record.get("error") or record.get("skipped") or "").replace("|", "/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=160, help="after which nothing new begins")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--plan", action="store_true", help="add the plan to an existing gpu.json")
    chosen = parser.parse_args()
    until = time.monotonic() + chosen.seconds
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "gpu.json"
    if chosen.plan:
        content = json.loads(path.read_text())
        content["plan"] = {name: planned(name, chosen.tiny) for name in content["iteration"]}
        save(path, content)
    else:
        content = {
            "about": ABOUT,
            "machine": machine(chosen.device),
            "iteration": {},
            "denoiser": {},
            "plan": {},
        }
        bench = Bench(path, until, content)
        for name in ITERATIONS:
            bench.measure("iteration", name, lambda name=name: iteration(name, chosen.device, chosen.tiny))  # type: ignore[misc]
        denoisers(bench, chosen.device, chosen.tiny)
    print(table(content))


if __name__ == "__main__":
    main()
