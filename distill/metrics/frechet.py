"""Fréchet distance between sets of features taken as Gaussians, and the file that keeps such a Gaussian."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import DistillError, RunFailed
from ..files import atomic_file

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """What a Fréchet distance knows about a set of features.

    Attributes:
        mean: [D].
        covariance: [D, D], with the divisor `count - 1`.
        count: How many features it was measured from.
    """

    mean: Array
    covariance: Array
    count: int

    @classmethod
    def of(cls, features: npt.NDArray[np.floating]) -> Gaussian:
        """The Gaussian of features [N, D].

        Raises:
            DistillError: fewer than two, which have no covariance.
            RunFailed: some are not finite.
        """
        if len(features) < 2:
            raise DistillError(
                f"a Fréchet distance needs at least 2 pictures in each set, got {len(features)}"
            )
        if not np.isfinite(features).all():
            raise RunFailed("features are not finite: the feature network cannot read these pictures")
        exact = features.astype(np.float64)
        return cls(exact.mean(0), np.atleast_2d(np.cov(exact, rowvar=False)), len(exact))

    @property
    def singular(self) -> bool:
        """Too few features to fill all dimensions: distances are then biased upwards."""
        return self.count <= len(self.mean)

    def save(self, path: Path, **made_with: str) -> None:
        """Writes a safetensors file with `mean`, `covariance` and, as metadata, `count` and `made_with`."""
        with atomic_file(path) as temporary:
            tensors = {"mean": self.mean, "covariance": self.covariance}
            save_file(tensors, temporary, {"count": str(self.count), **made_with})

    @classmethod
    def load(cls, path: Path) -> tuple[Gaussian, dict[str, str]]:
        """What `save` wrote: the Gaussian and what it was made with.

        Raises:
            DistillError: there is no such file, or it holds something else.
        """
        if not path.is_file():
            raise DistillError(f"no statistics file {path}; one is written when reference images are given")
        try:
            with safe_open(path, framework="numpy") as stored:
                made_with = dict(stored.metadata() or {})
                mean, covariance = stored.get_tensor("mean"), stored.get_tensor("covariance")
            return cls(mean, covariance, int(made_with.pop("count"))), made_with
        except (SafetensorError, KeyError, ValueError) as error:
            raise DistillError(f"{path} is not a statistics file of fewstep ({error})") from error


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|² + tr(A + B - 2 (AB)^½), in squared units of the features (Heusel et al. 2017, eq. 6).

    tr (AB)^½ is the sum of the singular values of A^½ B^½. With roots from symmetric eigenvalues it is
    exact to rounding even where a covariance is singular, as with fewer pictures than dimensions; the
    eigenvalues of AB itself are not.

    Raises:
        DistillError: the features have different dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise DistillError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions cannot be compared")
    shared = np.linalg.norm(_root(a.covariance).T @ _root(b.covariance), "nuc")
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared
    return max(float(np.sum((a.mean - b.mean) ** 2) + spread), 0.0)


def _root(covariance: Array) -> Array:
    """R [D, rank] with R Rᵀ = covariance; eigenvalues that are rounding errors are left out."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    root: Array = vectors[:, kept] * np.sqrt(values[kept])
    return root
