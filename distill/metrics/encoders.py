"""Published encoders of pictures and texts: any of `transformers`, by folder or by id on the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from .. import hub
from ..errors import DistillError
from ..pipeline import quiet


@dataclass(frozen=True)
class Encoder:
    """A model and its own way of preparing pictures.

    Attributes:
        name: Its folder's name or its id on the hub.
        model: In evaluation mode, in float32.
        processor: What prepares pictures for it, by the settings in its folder.
    """

    name: str
    model: Any
    processor: Any

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pooled features [N, D]: of a CLIP the projected ones, else the model's pooled output.

        Raises:
            DistillError: the model has no pooled output.
        """
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.model.device)
        encode = getattr(self.model, "get_image_features", self.model)
        pooled = getattr(encode(**inputs), "pooler_output", None)
        if pooled is None:
            raise DistillError(f"{self.name}: a {type(self.model).__name__} has no pooled output to compare")
        return torch.as_tensor(pooled).flatten(1)

    def digest(self) -> str:
        """SHA-256 over the weights and the preparation of pictures."""
        total = hashlib.sha256(self.processor.to_json_string().encode())
        for name, weight in sorted(self.model.state_dict().items()):
            total.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
            total.update(weight.detach().cpu().contiguous().numpy())
        return f"sha256:{total.hexdigest()}"


def load_encoder(source: str, device: str = "cpu") -> Encoder:
    """The encoder of a `transformers` folder, or of an id on the hub.

    Raises:
        DistillError: there is none, the hub does not give it, it takes no pictures, it lacks weights
            (which `transformers` would fill with random ones), or there is no such device.
    """
    from transformers import AutoModel

    quiet()
    check_device(device)
    model, loading = _from(source, AutoModel, dtype=torch.float32, output_loading_info=True)
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise DistillError(f"{source} lacks weights of a {type(model).__name__}: {missing}, ...")
    return Encoder(_name(source), model.eval().to(device), _processor(source))


def check_device(device: str) -> None:
    """Raises DistillError if there is no such device here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DistillError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def load_tokenizer(source: str) -> Any:
    """The tokenizer in an encoder's folder or repository."""
    from transformers import AutoTokenizer

    return _from(source, AutoTokenizer)


def _processor(source: str) -> Any:
    """Prepares pictures with Pillow, also where torchvision is installed: figures must not depend on it."""
    from transformers import AutoImageProcessor

    return _from(source, AutoImageProcessor, backend="pil")


def _from(source: str, kind: Any, **settings: Any) -> Any:
    from httpx import HTTPError

    local = Path(source).is_dir()
    if not local and not hub.is_repository(source):
        raise DistillError(
            f"no encoder {source!r}: give a folder of a transformers model or its id on the hub"
        )
    try:
        return kind.from_pretrained(source, **settings)
    except (OSError, HTTPError) as error:
        raise DistillError(_unreadable(source, error) if local else hub.explain(source, error)) from error
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DistillError(_unreadable(source, error)) from error


def _unreadable(source: str, error: Exception) -> str:
    return f"{source} cannot be loaded as an encoder of pictures: {' '.join(str(error).split())}"


def _name(source: str) -> str:
    folder = Path(source)
    return hub.name_of(folder.resolve()) if folder.is_dir() else source
