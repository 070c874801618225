"""Exports denoisers of published size from random weights: `python -m benchmarks.real_size [NAME ...]`.

Each is saved as float32 safetensors, loaded as a student's is, traced, scanned, compared with PyTorch in ONNX
Runtime at several shapes and written as a bundle's graph, in a process of its own whose peak memory is
reported. SANA-0.6B is whole; the others have their true widths and fewer blocks. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import diffusers
import onnxruntime
import torch

from distill.families import Conditioning, family_named
from distill.metrics.tables import markdown
from distill.planning.outline import published
from distill.spec import GeneratorSpec
from engines.export.graphs import Axes, Part, denoiser_of
from engines.export.precision import PRECISIONS
from engines.export.probe import probe
from engines.export.trace import trace_part, write_graph

T = TypeVar("T")
LATENT = 16
"""Side of the traced latents; the shapes that are compared are up to a patch larger."""


@dataclass(frozen=True)
class Case:
    """One denoiser.

    Attributes:
        teacher: Whose configuration it has.
        family: By name.
        blocks: What its configuration is changed to; empty for the whole network.
        tokens: Length of the text.
        widths: Of the text's states and of the pooled vector; the latter None where there is a mask instead.
        latent_channels: Of its latents.
        guidance: The value of its guidance input, if it has one.
        downsampling: Pixels a side that one latent position stands for.
    """

    teacher: str
    family: str
    blocks: dict[str, int]
    tokens: int
    widths: tuple[int, int | None]
    latent_channels: int
    guidance: float | None = None
    downsampling: int = 8


CASES = {
    "sana-0.6b": Case(
        "Efficient-Large-Model/Sana_600M_512px_diffusers", "sana", {}, 300, (2304, None), 32, downsampling=32
    ),
    "sd3.5-large": Case(
        "stabilityai/stable-diffusion-3.5-large", "sd3", {"num_layers": 2}, 154, (4096, 2048), 16
    ),
    "flux.1-dev": Case(
        "black-forest-labs/FLUX.1-dev",
        "flux",
        {"num_layers": 1, "num_single_layers": 2},
        128,
        (4096, 768),
        16,
        guidance=3.5,
    ),
}


def main() -> None:
    options = _options()
    if options.make:
        make(CASES[options.names[0]], Path(options.make))
    elif options.measure:
        print(json.dumps(measure(CASES[options.names[0]], Path(options.measure))))
    else:
        machine = f"{platform.machine()}, one thread, torch {torch.__version__}"
        print(f"{date.today()}, {machine}, onnxruntime {onnxruntime.__version__}\n")
        print(table({name: _apart(name) for name in options.names or CASES}))


def _options() -> argparse.Namespace:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    command.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; all by default")
    command.add_argument("--make", metavar="FOLDER", help=argparse.SUPPRESS)
    command.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    options = command.parse_args()
    if unknown := [name for name in options.names if name not in CASES]:
        command.error(f"no {', '.join(unknown)}: expected some of {', '.join(CASES)}")
    return options


def _apart(name: str) -> dict[str, float]:
    """Weights are made in one process and measured in another: peaks of memory never fall."""
    with TemporaryDirectory(prefix="fewstep-") as folder:
        command = [sys.executable, "-m", "benchmarks.real_size", name]
        subprocess.run([*command, "--make", folder], check=True)
        done = subprocess.run([*command, "--measure", folder], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _kind(case: Case) -> tuple[Any, dict[str, Any]]:
    _, name, config = published()[case.teacher]["transformer"]
    return getattr(diffusers, name), {**config, **case.blocks}


def make(case: Case, folder: Path) -> None:
    """Random weights, float32."""
    torch.manual_seed(0)
    kind, config = _kind(case)
    kind.from_config(config).save_pretrained(folder / "transformer")


def part_of(case: Case, network: torch.nn.Module) -> Part:
    """The denoiser's graph to be, traced at small latents."""
    family = family_named(case.family)
    pixels = LATENT * case.downsampling
    spec = GeneratorSpec(
        family=case.family,
        levels={4: (1.0, 0.75, 0.5, 0.25)},
        text=family.text,
        time_scale=family.time_scale,
        guidance_embedding=case.guidance,
        latent_channels=case.latent_channels,
        downsampling=case.downsampling,
        default_size=(pixels, pixels),
        teacher=case.teacher,
        teacher_digest="none",
    )
    conditioning = _conditioning(case)
    axes: dict[str, Axes] = {
        name: {0: "batch", 1: "text_length"} if name.startswith("prompt") else {0: "batch"}
        for name in conditioning
    }
    return denoiser_of(family, spec, network, conditioning, axes)


def _conditioning(case: Case) -> Conditioning:
    width, pooled = case.widths
    text = {"prompt_embeds": torch.randn(2, case.tokens, width)}
    if pooled is None:
        return {**text, "prompt_attention_mask": torch.ones(2, case.tokens, dtype=torch.long)}
    return {**text, "pooled_projections": torch.randn(2, pooled)}


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Bytes, CPU seconds, peaks of resident memory (weights that are mapped from files count)."""
    torch.set_num_threads(1)
    network = _kind(case)[0].from_pretrained(folder / "transformer").eval()
    part = part_of(case, network)
    found: dict[str, float] = {"weights": sum(weight.nbytes for weight in network.parameters())}
    model = _timed(found, "trace", lambda: trace_part(part, folder))
    bound = PRECISIONS["fp32"].tolerance["denoiser"]
    found["off"] = _timed(found, "compare", lambda: probe(part, model, bound, folder))
    found["nodes"] = len(model.graph.node)
    _timed(found, "write", lambda: write_graph("denoiser", model, folder))
    found["disk"] = sum(file.stat().st_size for file in folder.glob("denoiser.onnx*"))
    return found


def _timed(found: dict[str, float], stage: str, call: Callable[[], T]) -> T:
    started = time.process_time()
    result = call()
    found[stage] = time.process_time() - started
    found[f"{stage} peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return result


def table(found: dict[str, dict[str, float]]) -> str:
    head = ["denoiser", "parameters", "nodes", "graph and weights, GB", "trace, s", "compare, s", "write, s"]
    rows = [[name, *_row(one)] for name, one in found.items()]
    return markdown([*head, "peak: trace, GB", "peak: compare, GB", "off by"], rows)


def _row(one: dict[str, float]) -> list[str]:
    seconds = [f"{one[stage]:.0f}" for stage in ("trace", "compare", "write")]
    peaks = [f"{one[f'{stage} peak'] / 1e9:.1f}" for stage in ("trace", "compare")]
    sizes = [f"{one['weights'] / 4e6:.0f} M", f"{one['nodes']:.0f}", f"{one['disk'] / 1e9:.2f}"]
    return [*sizes, *seconds, *peaks, f"{one['off']:.1g}"]


if __name__ == "__main__":
    main()
