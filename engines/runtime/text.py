"""Prompts -> token ids, as in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram

from ..bundle import SamplerSpec
from ..errors import EngineError

Tokens = dict[str, np.ndarray[Any, np.dtype[np.int64]]]

CACHED_WORDS = 1000
"""Of 10,000 by default. To a tokenizer that does not split at spaces, as Gemma's, each prompt is one long word, and
prompts seldom come back: 21 MB of those of the shapes world were kept."""


class Tokenizers:
    """The tokenizers of a bundle.

    Raises:
        EngineError: the tokenizer library cannot read one.
    """

    def __init__(self, folder: Path, spec: SamplerSpec) -> None:
        self._text = spec.text
        self._tokenizers = [_tokenizer(folder / text.tokenizer / "tokenizer.json") for text in spec.text]

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Token ids and masks, int64 [B, L], as `input_ids`, `attention_mask`, `input_ids_2`, ..."""
        tokens = {}
        for number, (tokenizer, text) in enumerate(zip(self._tokenizers, self._text), start=1):
            suffix = "" if number == 1 else f"_{number}"
            # One after another: `encode_batch` wakes a pool of threads, which takes longer than a batch's prompts.
            encodings = [tokenizer.encode(text.apply(prompt)) for prompt in prompts]
            tokens["input_ids" + suffix] = np.array([one.ids for one in encodings], np.int64)
            tokens["attention_mask" + suffix] = np.array([one.attention_mask for one in encodings], np.int64)
        return tokens


def _tokenizer(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
        if isinstance(tokenizer.model, BPE | Unigram):  # the others have none
            tokenizer.model._resize_cache(CACHED_WORDS)
        return tokenizer
    except Exception as error:  # the library raises bare exceptions
        raise EngineError(f"cannot load {file}: {error}; export the student again") from error
