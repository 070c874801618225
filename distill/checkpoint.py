"""Checkpoints: the whole state of a run in one folder that is either complete or not there.

Tensors are written by torch.distributed.checkpoint, each rank its own shards, and are read on any
number of ranks; what is not a tensor is in `state.json`.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from .errors import DistillError
from .files import full_disk_is_an_os_error
from .parallel import ALONE, Ranks
from .recipe import Recipe, load_recipe
from .state import State

KEEP = 2
FIGURES = "state.json"


class Checkpoints:
    """The last `KEEP` states of a run, as `DIR/<iteration>/`."""

    def __init__(self, folder: Path, recipe: Recipe, ranks: Ranks = ALONE) -> None:
        self.folder, self.recipe, self.ranks = folder, recipe, ranks

    def latest(self) -> Path | None:
        return max(self._kept(), key=_iteration, default=None)

    def _kept(self) -> list[Path]:
        return list(self.folder.glob("[0-9]*"))

    def save(self, state: State) -> None:
        """Written under a temporary name by all ranks, then renamed by one.

        Raises:
            OSError: a rank could not write; the older checkpoints are still there.
        """
        temporary = self.folder / self.ranks.agree(f".{state.iteration:06d}.{uuid4().hex[:8]}")
        try:
            with full_disk_is_an_os_error(self.folder.parent):
                _write(state, temporary, alone=self.ranks.size == 1)
                self.ranks.once(lambda: self._finish(state, temporary))
        finally:
            if self.ranks.first:
                shutil.rmtree(temporary, ignore_errors=True)

    def _finish(self, state: State, temporary: Path) -> None:
        content = {"recipe": self.recipe.digest, "state": state.figures()}
        (temporary / FIGURES).write_text(json.dumps(content, indent=2) + "\n")
        path = self.folder / f"{state.iteration:06d}"
        shutil.rmtree(path, ignore_errors=True)  # of a run that was killed after it and has come here again
        temporary.rename(path)
        half_written = self.folder.glob(".[0-9]*")
        for old in (*sorted(self._kept(), key=_iteration)[:-KEEP], *half_written):
            shutil.rmtree(old)

    def load(self, state: State) -> None:
        """Continues `state` from the newest checkpoint. Its index is a pickle: resume your own runs only.

        Raises:
            DistillError: it is of another recipe, or damaged.
        """
        path = self.latest()
        if path is None:
            raise DistillError(f"no checkpoint in {self.folder}")
        try:
            saved = json.loads((path / FIGURES).read_text())
            if saved["recipe"] != self.recipe.digest:
                raise DistillError(f"checkpoint {path} is of another recipe{self._what_differs(path)}")
            with _alone_is_no_mistake():
                load(state.tensors(), checkpoint_id=path, no_dist=self.ranks.size == 1)
            state.set_figures(saved["state"])
        except (CheckpointException, OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DistillError(
                f"checkpoint {path} is damaged: {reason}; delete it to use the one before"
            ) from error

    def _what_differs(self, path: Path) -> str:
        """For the message: the keys, and where the recipe is that the checkpoint was made with."""
        own = path.parents[1] / "recipe.yaml"
        if not own.is_file():
            return ""
        then = load_recipe(str(own))
        keys = [key for key in Recipe.model_fields if getattr(then, key) != getattr(self.recipe, key)]
        return f", which differs in {', '.join(keys)}; resume with {own}"


def _write(state: State, folder: Path, alone: bool) -> None:
    try:
        with _alone_is_no_mistake():
            save(state.tensors(), checkpoint_id=folder, no_dist=alone)
    except CheckpointException as error:  # not an Exception, and made of those of all ranks
        raise next(iter(error.failures.values()))[0] from error


@contextmanager
def _alone_is_no_mistake() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _iteration(path: Path) -> int:
    return int(path.stem)
