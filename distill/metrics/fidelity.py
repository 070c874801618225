"""Fidelity of pictures at real size: Fréchet distance to real pictures (FID) and CLIP score.

Both sets are files, so that a measurement can be repeated, and thousands of large pictures need no
memory. On shapes, `evaluation.py` judges exactly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import DistillError
from ..pictures import find_pictures, open_picture
from ..progress import progress
from .clip_score import ClipScorer
from .features import FeatureNetwork
from .frechet import Gaussian, frechet_distance
from .tables import cell, markdown, summary

BATCH = 32
MEASURES = {"fid": ("FID", 2), "clip_score": ("CLIP score", 2), "clip_cosine": ("CLIP cosine", 4)}


@dataclass(frozen=True)
class Reference:
    """Real pictures, as a feature network sees them."""

    network: FeatureNetwork
    gaussian: Gaussian

    def distance(self, files: Sequence[Path], label: str) -> float:
        """Fréchet distance of pictures to these, in squared units of the features."""
        return frechet_distance(_gaussian(files, self.network, f"features of {label}"), self.gaussian)


def open_reference(network: FeatureNetwork, pictures: Path | None, statistics: Path | None) -> Reference:
    """The reference set: from the file `statistics` if it is there, else measured from `pictures`.

    What is measured is written to `statistics`, if that is given, for the next time.

    Raises:
        DistillError: neither is there, or the file is of another network or another number of pictures.
    """
    if statistics is not None and (statistics.is_file() or pictures is None):
        return Reference(network, _stored(network, pictures, statistics))
    if pictures is None:
        raise DistillError("a Fréchet distance needs reference pictures, or statistics of them")
    gaussian = _gaussian(find_pictures(pictures), network, "features of the reference pictures")
    if statistics is not None:
        gaussian.save(statistics, network=network.name, digest=network.digest, side=str(network.side))
    return Reference(network, gaussian)


def _stored(network: FeatureNetwork, pictures: Path | None, statistics: Path) -> Gaussian:
    gaussian, made_with = Gaussian.load(statistics)
    if made_with.get("digest") != network.digest:
        theirs, side = made_with.get("network"), made_with.get("side")
        raise DistillError(
            f"{statistics} was measured with {theirs} at {side} pixels, not with this {network.name} at "
            f"{network.side}: their digests differ; measure the reference pictures again into another file"
        )
    if pictures is not None and len(find_pictures(pictures)) != gaussian.count:
        raise DistillError(
            f"{statistics} was measured from {gaussian.count} pictures and {pictures} holds "
            f"{len(find_pictures(pictures))}; delete the file to measure again"
        )
    _warn(gaussian, str(statistics))
    return gaussian


def _gaussian(files: Sequence[Path], network: FeatureNetwork, label: str) -> Gaussian:
    gaussian = Gaussian.of(_over(files, lambda pictures, _: network(pictures), label))
    _warn(gaussian, label)
    return gaussian


def _warn(gaussian: Gaussian, label: str) -> None:
    if gaussian.singular:
        dimensions = len(gaussian.mean)
        print(
            f"warning: {label}: {gaussian.count} pictures for {dimensions} dimensions leave the covariance "
            f"singular and bias the distance upwards; take more than {dimensions}, usual are 10000",
            file=sys.stderr,
        )


@dataclass(frozen=True)
class Yardsticks:
    """What pictures are measured with; either may be absent."""

    reference: Reference | None
    scorer: ClipScorer | None

    def measure(self, files: Sequence[Path], prompts: Sequence[str], label: str = "") -> dict[str, float]:
        """`fid` if there is a reference; `clip_cosine` and `clip_score` (100 times it) if there is a CLIP."""
        figures, scorer = {}, self.scorer
        if self.reference is not None:
            figures["fid"] = self.reference.distance(files, label)
        if scorer is not None:

            def cosines(pictures: Sequence[Image.Image], batch: slice) -> npt.NDArray[np.float64]:
                return scorer.cosines(pictures, prompts[batch])

            figures["clip_cosine"] = float(_over(files, cosines, f"CLIP score of {label}").mean())
            figures["clip_score"] = 100 * figures["clip_cosine"]
        return figures

    def describe(self) -> dict[str, Any]:
        """What figures depend on: those with another description cannot be compared."""
        described: dict[str, Any] = {}
        if self.reference is not None:
            network = self.reference.network
            described["fid_network"] = {"name": network.name, "digest": network.digest, "size": network.side}
            described["fid_reference_images"] = self.reference.gaussian.count
        if self.scorer is not None:
            encoder = self.scorer.encoder
            described["clip"] = {"name": encoder.name, "digest": encoder.digest()}
        return described


def _over(
    files: Sequence[Path],
    function: Callable[[Sequence[Image.Image], slice], npt.NDArray[Any]],
    label: str,
) -> npt.NDArray[Any]:
    """`function` of the pictures in `files`, batch by batch."""
    results = []
    with progress(label, len(files)) as shown:
        for start in range(0, len(files), BATCH):
            batch = slice(start, start + BATCH)
            results.append(function([open_picture(file) for file in files[batch]], batch))
            shown.update(min(start + BATCH, len(files)))
    return np.concatenate(results)


def summarise(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean and spread of each figure of `Yardsticks.measure` over several seeds."""
    return {name: summary([run[name] for run in runs]) for name in MEASURES if name in runs[0]}


def fidelity_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of `summarise` results, one named row each."""
    shown = {name: MEASURES[name] for name in MEASURES if any(name in row for row in rows.values())}
    head = ["model", *(title for title, _ in shown.values())]
    lines = [[label, *(cell(row[name], shown[name][1]) for name in shown)] for label, row in rows.items()]
    return markdown(head, lines)
