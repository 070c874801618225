"""Checkpoints: the whole state of a run in one file that is either complete or not there."""

from __future__ import annotations

from pathlib import Path

import torch

from .errors import DistillError
from .files import atomic_file
from .recipe import Recipe
from .state import State

KEEP = 2


class Checkpoints:
    """The last `KEEP` states of a run, as `DIR/<iteration>.pt`."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe

    def latest(self) -> Path | None:
        return max(self.folder.glob("[0-9]*.pt"), key=_iteration, default=None)

    def save(self, state: State) -> None:
        path = self.folder / f"{state.iteration:06d}.pt"
        with atomic_file(path) as temporary:
            torch.save({"recipe": self.recipe.digest, "state": state.state_dict()}, temporary)
        for old in sorted(self.folder.glob("[0-9]*.pt"), key=_iteration)[:-KEEP]:
            old.unlink()

    def load(self, state: State) -> None:
        """Continues `state` from the newest checkpoint.

        Raises:
            DistillError: it is of another recipe, or damaged.
        """
        path = self.latest()
        if path is None:
            raise DistillError(f"no checkpoint in {self.folder}")
        try:
            saved = torch.load(path, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, OSError) as error:
            raise DistillError(
                f"checkpoint {path} is damaged: {error}; delete it to use the one before"
            ) from error
        if saved["recipe"] != self.recipe.digest:
            raise DistillError(
                f"checkpoint {path} is of another recipe; resume with the one in {path.parents[1]}"
            )
        state.load_state_dict(saved["state"])


def _iteration(path: Path) -> int:
    return int(path.stem)
