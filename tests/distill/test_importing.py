"""Few-step checkpoints become student folders: ours, stock diffusers and the original draw the same."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from distill.errors import DistillError
from distill.families.flux import pack, unpack
from distill.importing import import_student, sprint_levels
from distill.pipeline import Pipeline, folder_digest, load_pipeline
from distill.sampler import guided_network, rollout, sample_student
from distill.spec import GeneratorSpec

from ..tiny import SIDE
from .published import Tiny, published

SIZE = (SIDE, SIDE)
PROMPT = "a red circle on a white background"
LATENT_TOLERANCE = 2e-4
"""Of float32 latents of size about 1 to 4; the loops round differently."""

Import = Callable[..., Path]

KINDS = {
    "SiD-Flow-SD3-medium": "sd3",
    "SiD-DiT-SD3.5-medium": "sd3.5",
    "SiDA-Flow-SD3.5-large": "sd3.5-large",
    "SiD-Flow-Sana-0.6B-512-res": "sana",
    "SiDA-Flow-Sana-Sprint-0.6B-1024-res": "sana-sprint",
    "SiD-Flow-Flux-512-res": "flux",
    "FLUX.1-schnell": "flux-schnell",
    "stable-diffusion-3.5-large-turbo": "sd3.5-large",
    "Sana_Sprint_0.6B_1024px_diffusers": "sana-sprint-few-step",
}
ORIGINALS = ("FLUX.1-schnell", "stable-diffusion-3.5-large-turbo", "Sana_Sprint_0.6B_1024px_diffusers")


@pytest.fixture(scope="module")
def original(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a release -> a tiny folder of its layout."""
    home, made = tmp_path_factory.mktemp("hub"), {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = published(tiny, KINDS[name], home / name)
        return made[name]

    return folder


@pytest.fixture(scope="module")
def imported(original: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Import:
    """Name of a release -> the student folder made of it, small enough to sample."""
    home, made = tmp_path_factory.mktemp("students"), {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = home / name
            import_student(str(original(name)), made[name], size=SIZE)
        return made[name]

    return folder


def loaded(folder: Path) -> tuple[Pipeline, GeneratorSpec]:
    student = load_pipeline(str(folder))
    assert student.spec is not None
    return student, student.spec


def card_call(folder: Path) -> tuple[str, dict[str, Any]]:
    """Pipeline class and arguments of the call that a student's README shows."""
    code = ast.parse((folder / "README.md").read_text().split("```python")[1].split("```")[0])
    (call,) = [node for node in ast.walk(code) if isinstance(node, ast.Call) and node.keywords]
    arguments = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
    return code.body[0].names[0].name, {"prompt": ast.literal_eval(call.args[0]), **arguments}  # type: ignore[attr-defined]


@torch.no_grad()
def stock_latents(folder: Path, **call: Any) -> Tensor:
    stock = DiffusionPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        latents: Tensor = stock(**call, output_type="latent").images
    return latents


@torch.no_grad()
def our_latents(student: Pipeline, steps: int) -> Tensor:
    """With the noises that a stock pipeline draws; FLUX's scheduler sees packed ones."""
    assert student.spec is not None
    spec, source = student.spec, torch.Generator().manual_seed(7)
    first = torch.randn(1, *student.latent_shape(), generator=source)
    packed = student.family.packing > 1
    later = [
        torch.randn((pack(first) if packed else first).shape, generator=source) for _ in range(steps - 1)
    ]
    noises = [first, *(unpack(noise, first) if packed else noise for noise in later)]
    network = guided_network(
        student.transformer,
        student.family,
        spec.time_scale,
        student.embed([PROMPT]),
        embed=spec.guidance_embedding,
    )
    latents = rollout(network, spec.levels[steps], noises.__getitem__, spec.renoise)
    return pack(latents) if packed else latents


@pytest.mark.parametrize("name", KINDS)
def test_stock_diffusers_draws_what_we_draw_by_the_call_in_the_card(imported: Import, name: str) -> None:
    student, spec = loaded(imported(name))
    stock, call = card_call(student.folder)
    assert json.loads((student.folder / "model_index.json").read_text())["_class_name"] == stock
    assert call["prompt"] == PROMPT
    found = our_latents(student, max(spec.levels))
    assert_close(stock_latents(student.folder, **call), found, atol=LATENT_TOLERANCE, rtol=0)
    assert float(found.std()) > 0.1
    if 1 in spec.levels:
        assert float((found - our_latents(student, 1)).abs().max()) > 0.05, "the steps matter"


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ORIGINALS)
def test_the_original_draws_what_we_draw(
    original: Callable[[str], Path], tmp_path: Path, name: str, steps: int
) -> None:
    """By its own pipeline, scheduler and published settings, the scheduler's shift included."""
    import_student(str(original(name)), tmp_path / "s", steps=(steps,), size=SIZE)
    student, spec = loaded(tmp_path / "s")
    call = {"prompt": PROMPT, "height": SIDE, "width": SIDE, "num_inference_steps": steps}
    if "Sprint" in name:
        middle = {} if steps == 2 else {"intermediate_timesteps": None}
        call |= {"use_resolution_binning": False, **middle}
    else:
        call |= {"guidance_scale": 0.0, "max_sequence_length": 256}
    expected = stock_latents(original(name), **call)
    assert_close(our_latents(student, steps), expected, atol=LATENT_TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", KINDS)
def test_not_one_weight_changes(original: Callable[[str], Path], imported: Import, name: str) -> None:
    for part in ("transformer", "vae", "text_encoder"):
        (source,) = (original(name) / part).glob("*.safetensors")
        assert (imported(name) / part / source.name).read_bytes() == source.read_bytes()
    spec = GeneratorSpec.load(imported(name))
    assert (spec.teacher, spec.teacher_digest) == (name, folder_digest(original(name)))


@pytest.mark.parametrize("name", KINDS)
def test_it_is_a_student_like_any_other(imported: Import, name: str) -> None:
    student, spec = loaded(imported(name))
    steps = max(spec.levels)
    pictures = sample_student(student, [PROMPT, "blue"], [0, 1], steps)
    assert pictures.shape == (2, 3, SIDE, SIDE)
    assert torch.isfinite(pictures).all()
    for path in student.folder.rglob("*.json"):
        assert str(student.folder.parent.parent) not in path.read_text(), path


def test_schedulers_are_those_that_sample_it(imported: Import) -> None:
    kinds = {name: type(load_scheduler(imported(name))).__name__ for name in KINDS}
    assert {kinds[name] for name in KINDS if name.startswith("SiD")} == {"FlowMatchLCMScheduler"}
    assert [kinds[name] for name in ORIGINALS] == ["FlowMatchEulerDiscreteScheduler"] * 2 + ["SCMScheduler"]
    assert load_scheduler(imported("stable-diffusion-3.5-large-turbo")).config.shift == 1


def load_scheduler(folder: Path) -> Any:
    kind = json.loads((folder / "model_index.json").read_text())["scheduler"][1]
    return getattr(diffusers, kind).from_pretrained(folder, subfolder="scheduler")


def test_sids_networks_are_told_what_they_were_trained_on(imported: Import) -> None:
    """The traps of the released pipelines (`sid.md` 4.3)."""
    specs = {name: GeneratorSpec.load(imported(name)) for name in KINDS if name.startswith("SiD")}
    for spec in specs.values():
        assert spec.levels == {1: (1,), 2: (1, 0.5), 4: (1, 0.75, 0.5, 0.25)}
        assert (spec.sampler, spec.renoise) == ("sid", "fresh")
    sd3, sana = specs["SiD-DiT-SD3.5-medium"], specs["SiD-Flow-Sana-0.6B-512-res"]
    sprint, flux = specs["SiDA-Flow-Sana-Sprint-0.6B-1024-res"], specs["SiD-Flow-Flux-512-res"]
    assert (sd3.text[-1].max_length, flux.text[-1].max_length) == (77, 512)
    for spec in (sana, sprint):
        assert spec.text[0].template.endswith("\nUser Prompt: {prompt}")
    assert [spec.time_scale for spec in (sd3, sana, sprint, flux)] == [1000, 1000, 1, 1]
    assert [spec.guidance_embedding for spec in (sd3, sana, sprint, flux)] == [None, None, None, 1]


@pytest.mark.parametrize(
    ("name", "size"),
    [("SiD-Flow-Flux-512-res", 512), ("SiD-DiT-Flux-1024-res", 1024), ("FLUX.1-schnell", SIDE)],
)
def test_the_size_is_that_of_the_name(
    original: Callable[[str], Path], tmp_path: Path, name: str, size: int
) -> None:
    source = original(name if name in KINDS else "SiD-Flow-Flux-512-res")
    folder = shutil.copytree(source, tmp_path / name)
    assert import_student(str(folder), tmp_path / "s").default_size == (size, size)


def test_the_levels_of_sana_sprint_are_its_angles() -> None:
    assert sprint_levels(1) == (1.0,)
    assert sprint_levels(2) == pytest.approx((1.0, 1 / (1 + 1 / torch.tensor(1.3).tan().item())), abs=1e-6)
    thirds = torch.tensor([1.0, 2 / 3, 1 / 3]) * 1.5708
    assert sprint_levels(3) == pytest.approx(
        (thirds.sin() / (thirds.sin() + thirds.cos())).tolist(), abs=1e-5
    )
    assert sprint_levels(4)[2] == pytest.approx(0.5, abs=1e-5)


def test_levels_carry_the_shift_of_the_scheduler(imported: Import, original: Callable[[str], Path]) -> None:
    """Stock diffusers shifts twice: its last level is shifted before it is spaced, and again after."""
    levels = GeneratorSpec.load(imported("stable-diffusion-3.5-large-turbo")).levels
    last = 3 * 0.001 / (1 + 2 * 0.001)
    spaced = [1 - k / 3 * (1 - last) for k in range(4)]
    assert levels == {4: pytest.approx([3 * t / (1 + 2 * t) for t in spaced], abs=1e-6)}


def test_a_shift_by_size_is_that_of_the_students_size(tiny: Tiny, tmp_path: Path) -> None:
    """A few-step model on FLUX.1-dev's scheduler, by hand: mu is a line through (256, 0.5), (4096, 1.15)."""
    folder = published(tiny, "flux", tmp_path / "flux-turbo")
    spec = import_student(
        str(folder), tmp_path / "s", sampler="euler", guidance=3.5, steps=(2,), size=(512, 512)
    )
    shift = torch.tensor(0.5 + (1.15 - 0.5) / (4096 - 256) * (1024 - 256)).exp().item()
    assert spec.levels == {2: pytest.approx([1, shift / (shift + 1)], abs=1e-6)}
    assert spec.guidance_embedding == 3.5


@pytest.mark.parametrize("damage", ["part", "config", "tensor", "file", "torn"])
def test_incomplete_folders_are_refused(original: Callable[[str], Path], tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(original("FLUX.1-schnell"), tmp_path / "FLUX.1-schnell"))
    (weights,) = (folder / "transformer").glob("*.safetensors")
    if damage == "part":
        shutil.rmtree(folder / "vae")
    elif damage == "config":
        (folder / "transformer" / "config.json").unlink()
    elif damage == "tensor":
        tensors = load_file(weights)
        del tensors["proj_out.bias"]
        save_file(tensors, weights, {"format": "pt"})
    elif damage == "file":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-1000])
    message = {
        "part": "no vae, which model_index.json names; is the download complete",
        "config": "there is no .*transformer/config.json; is the download complete",
        "tensor": "transformer: weights are missing: proj_out.bias; is the",
    }.get(damage, "cannot be loaded")
    with pytest.raises(DistillError, match=message):
        import_student(str(folder), tmp_path / "s")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FLUX.1-schnell"]


def test_a_full_disk_leaves_nothing(
    original: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GeneratorSpec, "save", full)
    with pytest.raises(OSError, match="No space left"):
        import_student(str(original("FLUX.1-schnell")), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(original: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    import_student(str(original("FLUX.1-schnell")), tmp_path / "s", steps=(1,))
    assert GeneratorSpec.load(tmp_path / "s").levels == {1: (1.0,)}


def test_a_time_scale_can_be_in_the_name_alone(original: Callable[[str], Path], tmp_path: Path) -> None:
    """A student of a Sprint teacher that was saved with SANA's own scheduler."""
    name = "SiD-DiT-SANA-Sprint-1.6B"
    folder = Path(shutil.copytree(original("SiD-Flow-Sana-0.6B-512-res"), tmp_path / name))
    assert import_student(str(folder), tmp_path / "s", size=SIZE).time_scale == 1
    config = json.loads((tmp_path / "s" / "transformer" / "config.json").read_text())
    assert config["timestep_scale"] == 0.001


def test_pickles_beside_safetensors_stay_behind(original: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original("FLUX.1-schnell"), tmp_path / "FLUX.1-schnell"))
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    import_student(str(folder), tmp_path / "s")
    assert not list((tmp_path / "s").rglob("*.bin"))


def test_a_hub_id_names_the_student(
    original: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--black-forest-labs--FLUX.1-schnell" / "snapshots" / "0123abcd"
    shutil.copytree(original("FLUX.1-schnell"), cached)
    monkeypatch.setattr(DiffusionPipeline, "download", lambda repository, **_: str(cached))
    spec = import_student("black-forest-labs/FLUX.1-schnell", tmp_path / "s")
    assert (spec.teacher, spec.sampler) == ("black-forest-labs/FLUX.1-schnell", "euler")
    assert "# black-forest-labs/FLUX.1-schnell in 4 steps" in (tmp_path / "s" / "README.md").read_text()
