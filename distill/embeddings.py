"""Embeddings of prompts on disk, so that the text encoders can leave the GPU before training starts.

One safetensors file a prompt, mapped into memory when read, under the digest of all that makes it:
the files of text encoders and tokenizers, how they are fed, and the prompt. A filling that was
stopped goes on where it was, and runs on the same teacher can share a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .families import Conditioning, concat
from .files import atomic_file
from .parallel import Ranks
from .pipeline import Pipeline
from .progress import progress

AT_ONCE = 16  # prompts


class EmbeddingCache:
    """Conditioning of prompts, encoded when first asked for.

    Attributes:
        teacher: Whose encoders are used.
        folder: Where files are kept.
        ranks: Who shares the work of `fill`.
    """

    def __init__(self, teacher: Pipeline, folder: Path, ranks: Ranks) -> None:
        self.teacher, self.folder, self.ranks = teacher, folder, ranks
        feeding = json.dumps([spec.model_dump() for spec in teacher.text])
        parts = [*teacher.family.text_encoders, *(spec.tokenizer for spec in teacher.text)]
        encoders = ranks.once(lambda: [teacher.digest(part) for part in parts])
        self.key = f"{encoders} {feeding} "

    def path(self, prompt: str) -> Path:
        digest = hashlib.sha256((self.key + prompt).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def fill(self, prompts: Sequence[str], until: Callable[[], bool] = lambda: False) -> None:
        """Encodes what is missing, each rank its share, and takes the encoders off the GPU.

        Args:
            prompts: All that will be asked for.
            until: Whether to leave the rest for another time.
        """
        own = list(dict.fromkeys(prompts))[self.ranks.rank :: self.ranks.size]
        missing = self._missing(own)
        with progress("encoding prompts" if self.ranks.first and missing else "", len(missing)) as bar:
            for start in range(0, len(missing), AT_ONCE):
                if until():
                    break
                self._encode(missing[start : start + AT_ONCE])
                bar.update(min(start + AT_ONCE, len(missing)))
        self.ranks.wait()
        for encoder in self.teacher.family.encoders(self.teacher.modules):
            encoder.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of `prompts` on the teacher's device; what is not there is encoded."""
        self._encode(self._missing(dict.fromkeys(prompts)))
        batch = concat(*(load_file(self.path(prompt)) for prompt in prompts))
        return {name: value.to(self.teacher.device) for name, value in batch.items()}

    def _missing(self, prompts: Iterable[str]) -> list[str]:
        return [prompt for prompt in prompts if not self.path(prompt).exists()]

    def _encode(self, prompts: Sequence[str]) -> None:
        if not prompts:
            return
        conditioning = self.teacher.embed(prompts)
        for number, prompt in enumerate(prompts):
            one = {
                name: value[number : number + 1].contiguous().cpu() for name, value in conditioning.items()
            }
            with atomic_file(self.path(prompt)) as temporary:
                save_file(one, temporary)
