"""One tiny student with random weights, exported once for the whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchLCMScheduler, SanaPipeline

from distill.shapes.architectures import new_transformer
from distill.shapes.autoencoder import new_autoencoder
from distill.shapes.text import new_text_encoder, new_tokenizer
from distill.spec import GeneratorSpec, TextSpec
from engines.bundle import Bundle
from engines.export import export_student
from engines.runtime.onnx import OnnxRuntime

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
