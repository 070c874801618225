"""`python -m benchmarks.peers.stock teacher|student`: pipelines of stock diffusers behind the plain endpoint.

The teacher is what is served without distillation; the student shows what of the rest is the engine's.
"""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

import torch
from diffusers import DiffusionPipeline

from benchmarks.peers.plain import Request, serve
from benchmarks.peers.work import STEPS, THREADS
from distill.pipeline import find_pipeline
from distill.spec import GeneratorSpec

TEACHER, STUDENT = "shapes-sana", "shapes-sana-sid"
TEACHER_CALL = {"num_inference_steps": 28, "guidance_scale": 1.5}
"""With which the teacher is nearest to the renders (docs/quality.md)."""


class Stock:
    """One pipeline, told what the shapes world's prompts and size need and nothing else."""

    def __init__(self, model: str) -> None:
        folder = find_pipeline({"teacher": TEACHER, "student": STUDENT}[model])
        self.pipeline = DiffusionPipeline.from_pretrained(folder)
        self.pipeline.set_progress_bar_config(disable=True)
        self.call = TEACHER_CALL if model == "teacher" else _student_call(GeneratorSpec.load(folder))

    def __call__(self, request: Request) -> dict[str, Any]:
        picture = self.pipeline(
            [request.prompt],
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(request.seed),
            max_sequence_length=self.pipeline.tokenizer.model_max_length,
            complex_human_instruction=None,
            use_resolution_binning=False,
            **self.call,
        ).images[0]
        file = io.BytesIO()
        picture.save(file, "PNG")
        answer = {"b64_json": base64.b64encode(file.getvalue()).decode(), "seed": request.seed}
        return {"data": [answer], "num_inference_steps": self.call["num_inference_steps"]}


def _student_call(spec: GeneratorSpec) -> dict[str, Any]:
    return {"sigmas": list(spec.levels[STEPS]), "num_inference_steps": STEPS, "guidance_scale": 1}


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    serve(Stock(sys.argv[1]))
