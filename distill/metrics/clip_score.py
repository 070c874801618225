"""CLIP score: how well pictures go with their prompts, in the eyes of a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ..errors import DistillError
from .encoders import Encoder, load_encoder, load_tokenizer


@dataclass(frozen=True)
class ClipScorer:
    """A CLIP, or another model of `transformers` with `get_image_features` and `get_text_features`."""

    encoder: Encoder
    tokenizer: Any

    @torch.no_grad()
    def cosines(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Cosine [N] of each picture's embedding and its prompt's, in -1 ... 1.

        It is what all CLIP scores are made of. Hessel et al. (2021, arXiv 2104.08718) define theirs as
        2.5 max(cosine, 0); most papers since give 100 cosine, which is `clip_score` here; those of SiD
        give the mean cosine itself, of OpenCLIP ViT-g/14, in 0 ... 1, which is `clip_cosine` here.
        Nothing is clipped at 0. Figures of different CLIPs cannot be compared.

        Pictures are prepared as the CLIP's folder says; prompts longer than it can read are cut.
        """
        model = self.encoder.model
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(model.device)
        texts = model.get_text_features(**tokens).pooler_output
        cosines = torch.cosine_similarity(self.encoder.pictures(pictures), texts)
        return cosines.double().cpu().numpy()


def load_scorer(source: str, device: str = "cpu") -> ClipScorer:
    """The CLIP of a `transformers` folder, or of an id on the hub.

    Raises:
        DistillError: as `load_encoder`, or it does not read texts.
    """
    encoder = load_encoder(source, device)
    if not hasattr(encoder.model, "get_text_features"):
        kind = type(encoder.model).__name__
        raise DistillError(f"{source} is a {kind}, which reads no text; --clip needs a CLIP")
    return ClipScorer(encoder, load_tokenizer(source))
