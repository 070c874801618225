"""ONNX Runtime on the CPU: needs `onnxruntime` and `tokenizers`, nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from ..bundle import Bundle, SamplerSpec
from ..errors import EngineError
from .base import Conditioning, Floats, Images

MAX_DEFAULT_THREADS = 8
BATCH_DEPENDENT = ["TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider"]
"""Rewrites that move a mean to another axis, where one image is summed in another order than several:
without them a picture is the same, bit for bit, in every batch. They gain nothing measurable here."""


class OnnxNetworks:
    """The three graphs in `folder`, and the tokenizers beside them.

    Args:
        folder: Where `text_encoder.onnx`, `denoiser.onnx`, `decoder.onnx` and the tokenizers lie.
        spec: The sampler's settings.
        threads: Threads one call may use; by default the usable cores, at most eight.

    Raises:
        EngineError: ONNX Runtime or the tokenizer library cannot read a file.
    """

    def __init__(self, folder: Path, spec: SamplerSpec, threads: int | None = None) -> None:
        threads = threads or default_threads()
        self._spec = spec
        self._tokenizers = [_tokenizer(folder / text.tokenizer / "tokenizer.json") for text in spec.text]
        self._text_encoder = OnnxGraph(folder / "text_encoder.onnx", threads)
        self._denoiser = OnnxGraph(folder / "denoiser.onnx", threads)
        self._decoder = OnnxGraph(folder / "decoder.onnx", threads)

    def tokenize(self, prompts: Sequence[str]) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
        """Token ids and masks, int64 [B, L], as `input_ids`, `attention_mask`, `input_ids_2`, ..."""
        tokens = {}
        for number, (tokenizer, text) in enumerate(zip(self._tokenizers, self._spec.text), start=1):
            suffix = "" if number == 1 else f"_{number}"
            encodings = tokenizer.encode_batch([text.apply(prompt) for prompt in prompts])
            tokens["input_ids" + suffix] = np.array([one.ids for one in encodings], np.int64)
            tokens["attention_mask" + suffix] = np.array([one.attention_mask for one in encodings], np.int64)
        return tokens

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self._text_encoder(self.tokenize(prompts))

    def velocity(self, x_BCHW: Floats, t_B: Floats, conditioning: Conditioning) -> Floats:
        outputs = self._denoiser({"latents": x_BCHW, "timestep": t_B, **conditioning})
        velocity: Floats = outputs["velocity"]
        return velocity

    def decode(self, x0_BCHW: Floats) -> Images:
        return to_images(self.decode_floats(x0_BCHW))

    def decode_floats(self, x0_BCHW: Floats) -> Floats:
        """Clean latents -> pictures [B, 3, H, W] in -1 ... 1, not clipped."""
        pictures: Floats = self._decoder({"latents": x0_BCHW})["pictures"]
        return pictures


class OnnxRuntime(OnnxNetworks):
    """`Runtime` of one bundle on ONNX Runtime's CPU provider."""

    backend = "onnxruntime-cpu"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        super().__init__(bundle.path, bundle.spec, threads)
        self.bundle = bundle


def to_images(pictures_BCHW: Floats) -> Images:
    """float [B, 3, H, W] in -1 ... 1 -> uint8 [B, H, W, 3]; values outside are clipped."""
    scaled = np.rint((np.clip(pictures_BCHW, -1, 1) + np.float32(1)) * np.float32(127.5))
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 1))


def default_threads() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MAX_DEFAULT_THREADS)


class OnnxGraph:
    """One ONNX file, called with named arrays; names it does not know are left out."""

    def __init__(self, file: Path, threads: int) -> None:
        try:
            self._session = ort.InferenceSession(
                file, _options(threads), ["CPUExecutionProvider"], disabled_optimizers=BATCH_DEPENDENT
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this one
            raise EngineError(
                f"ONNX Runtime cannot load {file}: {error}; export the student again"
            ) from error
        self._inputs = {entry.name for entry in self._session.get_inputs()}
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def __call__(self, arrays: Conditioning) -> dict[str, Any]:
        feed = {name: array for name, array in arrays.items() if name in self._inputs}
        return dict(zip(self._outputs, self._session.run(self._outputs, feed)))


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leaves idle cores to others
    options.log_severity_level = 3
    return options


def _tokenizer(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare exceptions
        raise EngineError(f"cannot load {file}: {error}; export the student again") from error
