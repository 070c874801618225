"""Which checkpoints are known to be few-step models, and what is said of the rest."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill.errors import DistillError
from distill.importing import examine, import_student
from distill.releases import RELEASES, Sampling, sampling_of

from ..tiny import SIDE
from .published import Tiny, edit

NAMED = {
    "SiD-Flow-SD3-medium": ("sd3", "SiD-DiT"),
    "SiDA-Flow-SD3.5-large": ("sd3.5-large", "SiD-DiT"),
    "SiD-DiT-SD3.5-large": ("sd3.5-large", "SiD-DiT"),
    "SiD-alpha-DiT-SD3.5-large": ("sd3.5-large", "SiD-DiT"),
    "SiD-DiT-SANA-0.6B-RectifiedFlow": ("sana", "SiD-DiT"),
    "SiDA-Flow-Sana-Sprint-1.6B-1024-res": ("sana-sprint", "SiD-DiT"),
    "SiD-DiT-Flux-1024-res": ("flux", "SiD-DiT"),
    "FLUX.1-schnell": ("flux-schnell", "FLUX.1-schnell"),
    "another-name": ("flux-schnell", "FLUX.1-schnell"),
    "stable-diffusion-3.5-large-turbo": ("sd3.5-large", "SD3.5-Large-Turbo"),
    "Sana_Sprint_1.6B_1024px_diffusers": ("sana-sprint-few-step", "SANA-Sprint"),
}
TEACHERS = {
    "stable-diffusion-3.5-large": "sd3.5-large",
    "FLUX.1-dev": "flux",
    "Sana_600M_512px_diffusers": "sana",
    "Sana_Sprint_0.6B_1024px_teacher_diffusers": "sana-sprint",
    "inside-SiD-DiT-and-other": "sd3",
}


def copied(tiny: Tiny, architecture: str, folder: Path) -> str:
    return str(shutil.copytree(tiny(architecture), folder))


@pytest.mark.parametrize("name", NAMED)
def test_releases_are_recognised(tiny: Tiny, tmp_path: Path, name: str) -> None:
    architecture, expected = NAMED[name]
    found = examine(copied(tiny, architecture, tmp_path / name))
    assert [release.name for release in RELEASES if release.matches(found)] == [expected]


@pytest.mark.parametrize(
    ("architecture", "kind"), [("sd3.5", "SD3"), ("flux", "Flux"), ("sana", "Sana"), ("sana-sprint", "Sana")]
)
def test_pipeline_classes_of_sids_own_code_are_known(
    tiny: Tiny, tmp_path: Path, architecture: str, kind: str
) -> None:
    folder = copied(tiny, architecture, tmp_path / "SiD-DiT-x")
    edit(Path(folder) / "model_index.json", _class_name=f"SiD{kind}Pipeline")
    import_student(folder, tmp_path / "s")
    stock = json.loads((tmp_path / "s" / "model_index.json").read_text())["_class_name"]
    assert stock == {"SD3": "StableDiffusion3Pipeline"}.get(kind, f"{kind}Pipeline")


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_is_none(tiny: Tiny, tmp_path: Path, name: str) -> None:
    folder = copied(tiny, TEACHERS[name], tmp_path / name)
    message = rf"{name} is none of the few-step models known here \(SiD-DiT, .*--sampler.*`fewstep distill`"
    with pytest.raises(DistillError, match=message):
        import_student(folder, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_flux_with_a_shift_by_size_and_no_guidance_is_not_taken_for_schnell(
    tiny: Tiny, tmp_path: Path
) -> None:
    folder = copied(tiny, "flux-schnell", tmp_path / "schnell")
    edit(Path(folder) / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True)
    with pytest.raises(DistillError, match="none of the few-step models"):
        import_student(folder, tmp_path / "s")


def test_whoever_knows_better_says_so(tiny: Tiny, tmp_path: Path) -> None:
    spec = import_student(
        copied(tiny, "sd3", tmp_path / "mine"), tmp_path / "s", sampler="sid", text_length=9
    )
    assert (spec.sampler, spec.renoise, sorted(spec.levels)) == ("sid", "fresh", [1, 2, 4])
    assert (spec.text[-1].max_length, spec.default_size, spec.teacher) == (9, (SIDE, SIDE), "mine")


def test_wishes_come_before_what_is_published(tiny: Tiny, tmp_path: Path) -> None:
    found = examine(copied(tiny, "sana-sprint-few-step", tmp_path / "sprint"))
    assert sampling_of(found, {}) == Sampling("sid", guidance=4.5)
    wished = sampling_of(found, {"guidance": 3.0, "steps": (2,), "instruction": False})
    assert wished == Sampling("sid", steps=(2,), guidance=3.0, instruction=False)


def test_the_instruction_can_be_left_out(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny, "sana", tmp_path / "SiD-DiT-SANA-0.6B-RectifiedFlow")
    with_it = import_student(folder, tmp_path / "with").text[0]
    without = import_student(folder, tmp_path / "without", instruction=False).text[0]
    assert with_it.template != without.template == "{prompt}"
    assert with_it.kept == without.max_length
    assert "complex_human_instruction=None" in (tmp_path / "without" / "README.md").read_text()


def test_a_model_without_t5_keeps_clips_length(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny, "sd3-without-t5", tmp_path / "stable-diffusion-3.5-large-turbo")
    spec = import_student(folder, tmp_path / "s")
    assert [text.tokenizer for text in spec.text] == ["tokenizer", "tokenizer_2"]
    with pytest.raises(DistillError, match="this model has no tokenizer_3"):
        import_student(folder, tmp_path / "other", text_length=256)


@pytest.mark.parametrize(
    ("architecture", "name", "wishes", "message"),
    [
        ("flux-schnell", "s", {"steps": (8,)}, r"steps \[8\]: expected counts from 1 to 4"),
        ("flux-schnell", "s", {"steps": (1, 0)}, r"steps \[1, 0\]: expected counts from 1 to 4"),
        ("flux-schnell", "s", {"guidance": 3.5}, "its network has no such input"),
        ("flux-schnell", "s", {"size": (72, 64)}, "multiples of 16"),
        ("flux", "s", {"sampler": "euler"}, "has a guidance input: give the value"),
        ("sana-sprint-few-step", "s", {"sampler": "euler"}, "takes its levels from .* and this has a SCMSch"),
    ],
)
def test_wishes_that_cannot_be_met(
    tiny: Tiny, tmp_path: Path, architecture: str, name: str, wishes: dict[str, Any], message: str
) -> None:
    folder = copied(tiny, architecture, tmp_path / name)
    with pytest.raises(DistillError, match=message):
        import_student(folder, tmp_path / "out", **wishes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stochastic_sampling": True}, "a FlowMatchEulerDiscreteScheduler that adds no noise"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "and this has a FlowMatchHeunDiscreteScheduler"),
        ({"invert_sigmas": True}, "levels of its scheduler: .*"),
    ],
)
def test_schedulers_whose_steps_are_not_eulers(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = copied(tiny, "sd3", tmp_path / "mine")
    edit(Path(folder) / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(DistillError, match=message):
        import_student(folder, tmp_path / "s", sampler="euler")


def test_pickles_are_refused_wherever_they_lie(tiny: Tiny, tmp_path: Path) -> None:
    """They are not opened: this one would say so."""
    snapshot = tmp_path / "training" / "network-snapshot-1.000000-000061.pkl"
    snapshot.parent.mkdir()
    snapshot.write_bytes(pickle.dumps(Trap()))
    folder = Path(copied(tiny, "sd3", tmp_path / "SiD-DiT-SD3.5-medium"))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    shutil.copy(snapshot, weights.with_suffix(".bin"))
    weights.unlink()
    for source in (snapshot, snapshot.parent, folder):
        with pytest.raises(DistillError, match="is a pickle, .*: convert it to safetensors") as caught:
            import_student(str(source), tmp_path / "s")
        assert "\n" not in str(caught.value)
        assert "`ema`" in str(caught.value)


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _sprung, ("opened",)


def _sprung(what: str) -> None:
    raise AssertionError(what)


def test_other_things_that_are_no_pipeline(tiny: Tiny, tmp_path: Path) -> None:
    single = tmp_path / "flux1-schnell.safetensors"
    single.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    cases = {
        str(single): "is a file: a whole diffusers pipeline folder is needed",
        str(tmp_path / "empty"): "is not a diffusers pipeline folder",
        "nowhere": "no model 'nowhere'",
        "shapes-sana-sid": "is a student folder already",
    }
    for source, message in cases.items():
        with pytest.raises(DistillError, match=message):
            import_student(source, tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_already_stays(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    kept = out / "keep" if kind == "folder" else out
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(DistillError, match="exists and is not an empty folder"):
        import_student(str(tiny("flux-schnell")), out)
    assert kept.read_text() == "mine"
