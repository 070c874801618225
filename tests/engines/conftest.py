"""One tiny student with random weights, exported once for the whole run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchLCMScheduler, SanaPipeline

from distill.pipeline import load_pipeline
from distill.recipe import Recipe
from distill.shapes.architectures import new_transformer
from distill.shapes.autoencoder import new_autoencoder
from distill.shapes.text import new_text_encoder, new_tokenizer
from distill.spec import GeneratorSpec, TextSpec
from distill.student import new_spec, save_student
from engines.bundle import SHIPPED, Bundle
from engines.export import export_student
from engines.runtime.onnx import OnnxRuntime
from engines.tensorrt.build import build_plans
from engines.tensorrt.cuda import Gpu
from engines.tensorrt.kit import Kit, new_kit
from engines.tensorrt.plans import PlanFolder

from .fake_gpu import FakeCuda, FakeTensorRT

HEAD = 32
MAX_LENGTH = 32
QUALITY = {"prompt_accuracy": 0.5}


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SANA-family student, half-precision weights, whose first attention heads have zero queries."""
    torch.manual_seed(0)
    transformer, vae = new_transformer(width=64, layers=1), new_autoencoder()
    with torch.no_grad():
        transformer.transformer_blocks[0].attn1.to_q.weight[:HEAD] = 0
        for part in vae.decoder.modules():
            if hasattr(part, "to_qkv_multiscale"):
                part.to_q.weight[:HEAD] = 0
    folder = tmp_path_factory.mktemp("students") / "tiny-sana-sid"
    SanaPipeline(
        tokenizer=new_tokenizer(),
        text_encoder=new_text_encoder(layers=1).half(),
        vae=vae.half(),
        transformer=transformer.half(),
        scheduler=FlowMatchLCMScheduler(shift=1.0),
    ).save_pretrained(folder)
    GeneratorSpec(
        family="sana",
        levels={1: (1.0,), 2: (1.0, 0.5), 4: (1.0, 0.75, 0.5, 0.25)},
        text=(TextSpec(max_length=MAX_LENGTH, lowercase=True),),
        latent_channels=8,
        downsampling=8,
        default_size=(64, 64),
        teacher="tiny-sana",
        teacher_digest="sha256:0",
    ).save(folder)
    (folder / "quality.json").write_text(json.dumps(QUALITY))
    return folder


@pytest.fixture(scope="session")
def bundle(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The student's bundle, certified at a second, oblong size too."""
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    return export_student(student, out, sizes=[(64, 64), (96, 64)], say=lambda line: None)


@pytest.fixture(scope="session")
def runtime(bundle: Bundle) -> OnnxRuntime:
    return OnnxRuntime(bundle, threads=1)


def student_of(tiny: Callable[[str], Path], name: str, out: Path) -> Path:
    text = {"instruction": "Say what it is:\nPrompt: ", "length": 12} if name == "sana" else {}
    recipe = Recipe.model_validate({"teacher": "t", "text": text, "guidance": {"student_embed": 2.0}})
    teacher = load_pipeline(str(tiny(name)), text=recipe.text)
    save_student(teacher, teacher.transformer.state_dict(), new_spec(teacher, recipe), out)
    return out


@pytest.fixture(scope="session")
def family_bundle(
    tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Bundle]]:
    """Name of a tiny architecture -> a student of it and its bundle, made when first asked for: minutes."""

    @cache
    def made(name: str) -> tuple[Path, Bundle]:
        folder = tmp_path_factory.mktemp(name)
        student = student_of(tiny, name, folder / "student")
        return student, export_student(student, folder / "bundle", batch_sizes=(2,), say=lambda line: None)

    return made


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A copy of the shipped bundle that plans can be added to."""
    folder = tmp_path_factory.mktemp("plans") / "bundle"
    shutil.copytree(SHIPPED / "shapes-sana-sid", folder)
    return Bundle.load(folder)


@pytest.fixture(scope="session")
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture(scope="session")
def kit(cuda: FakeCuda) -> Kit:
    return new_kit("tensorrt", FakeTensorRT(cuda))


@pytest.fixture(scope="session")
def plans(shipped: Bundle, kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> PlanFolder:
    """Plans of the fake TensorRT."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return build_plans(shipped, kit, Gpu("Fake GPU", "9.0"), refittable=True, say=lambda line: None)
