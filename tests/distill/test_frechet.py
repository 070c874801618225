"""Fréchet distance: the closed form, where covariances are singular too, and the file of statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

from distill.errors import DistillError, RunFailed
from distill.metrics.frechet import Gaussian, frechet_distance

seeds = st.integers(0, 2**32 - 1)
dimensions = st.integers(1, 12)


def features(seed: int, count: int, size: int) -> np.ndarray:
    """Correlated, of unlike scales, away from zero."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + rng.normal(size=size)


@given(
    arrays(float, (4, 5), elements=st.floats(0, 100)),
    seeds,
)
def test_of_commuting_gaussians_it_is_the_closed_form(numbers: np.ndarray, seed: int) -> None:
    """With a common basis it is the distance of means plus that of standard deviations."""
    mean_a, mean_b, deviation_a, deviation_b = numbers
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]
    a = Gaussian(mean_a, basis @ np.diag(deviation_a**2) @ basis.T, 10)
    b = Gaussian(mean_b, basis @ np.diag(deviation_b**2) @ basis.T, 10)
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((deviation_a - deviation_b) ** 2)
    # An eigenvalue below rounding of the largest has no digit of its root left.
    rounding = 1e-6 * numbers.max() ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6, abs=rounding + 1e-300)


@given(seeds)
def test_of_two_by_two_it_is_the_textbook_root(seed: int) -> None:
    """tr √M of a 2 x 2 matrix is √(tr M + 2 √det M)."""
    a, b = (Gaussian.of(features(seed + i, 50, 2)) for i in (0, 1))
    product = a.covariance @ b.covariance
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(max(np.linalg.det(product), 0)))
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance) - 2 * root
    scale = np.trace(a.covariance + b.covariance)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-7 * scale)


@given(seeds, st.integers(2, 30), dimensions)
def test_a_set_has_no_distance_to_itself_and_the_same_both_ways(seed: int, count: int, size: int) -> None:
    a, b = Gaussian.of(features(seed, count, size)), Gaussian.of(features(seed + 1, count, size))
    scale = np.trace(a.covariance) + np.trace(b.covariance)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12 * scale)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-7 * scale)
    assert frechet_distance(a, b) >= 0


@given(seeds, dimensions)
def test_moving_all_features_adds_the_square_of_the_way(seed: int, size: int) -> None:
    a = features(seed, 60, size)
    away = np.random.default_rng(seed).normal(size=size)
    moved = frechet_distance(Gaussian.of(a), Gaussian.of(a + away))
    assert moved == pytest.approx(np.sum(away**2), rel=1e-6, abs=1e-9)


def test_samples_of_known_gaussians_come_near_it() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50_000, 3)), 3 * rng.normal(size=(50_000, 3)) + 1
    assert frechet_distance(Gaussian.of(a), Gaussian.of(b)) == pytest.approx(3 + 3 * 2**2, rel=0.03)


def test_singular_covariances_are_exact() -> None:
    """20 pictures in 300 dimensions; the eigenvalues of the product would miss zero by far more."""
    a = Gaussian.of(features(0, 20, 300))
    assert frechet_distance(a, a) <= 1e-12 * np.trace(a.covariance)
    still = Gaussian.of(np.ones((5, 300)))
    assert frechet_distance(a, still) == pytest.approx(
        np.sum((a.mean - 1) ** 2) + np.trace(a.covariance), rel=1e-12
    )


@pytest.mark.parametrize(("count", "singular"), [(2, True), (8, True), (9, False)])
def test_too_few_pictures_are_noticed(count: int, singular: bool) -> None:
    gaussian = Gaussian.of(features(0, count, 8))
    assert gaussian.singular is singular
    assert bool(np.linalg.matrix_rank(gaussian.covariance) < 8) == singular


def test_half_precision_features_are_measured_in_double() -> None:
    a = (1000 + features(0, 500, 4)).astype(np.float32)
    gaussian = Gaussian.of(a)
    assert gaussian.covariance.dtype == gaussian.mean.dtype == np.float64
    np.testing.assert_allclose(gaussian.covariance, np.cov(a.astype(float).T), rtol=1e-12)


@pytest.mark.parametrize("count", [0, 1])
def test_one_picture_is_no_set(count: int) -> None:
    with pytest.raises(DistillError, match=f"at least 2 pictures in each set, got {count}"):
        Gaussian.of(np.zeros((count, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers_fail(bad: float) -> None:
    with pytest.raises(RunFailed, match="not finite"):
        Gaussian.of(np.array([[0.0, 1.0], [bad, 2.0]]))


def test_other_dimensions_cannot_be_compared() -> None:
    with pytest.raises(DistillError, match="features of 3 and of 4 dimensions"):
        frechet_distance(Gaussian.of(np.zeros((2, 3))), Gaussian.of(np.zeros((2, 4))))


def test_statistics_come_back_exactly(tmp_path: Path) -> None:
    kept = Gaussian.of(features(0, 30, 6))
    kept.save(tmp_path / "new" / "s.safetensors", network="inception", digest="sha256:1")
    found, made_with = Gaussian.load(tmp_path / "new" / "s.safetensors")
    np.testing.assert_array_equal(found.mean, kept.mean)
    np.testing.assert_array_equal(found.covariance, kept.covariance)
    assert (found.count, made_with) == (30, {"network": "inception", "digest": "sha256:1"})
    assert frechet_distance(found, kept) == pytest.approx(0, abs=1e-10)


def test_other_files_are_not_statistics(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    with pytest.raises(DistillError, match="no statistics file"):
        Gaussian.load(path)
    path.write_bytes(b"junk")
    with pytest.raises(DistillError, match="is not a statistics file"):
        Gaussian.load(path)
    save_file({"mean": np.zeros(3)}, path)
    with pytest.raises(DistillError, match="is not a statistics file"):
        Gaussian.load(path)
    save_file({"mean": np.zeros(3), "covariance": np.eye(3)}, path)
    with pytest.raises(DistillError, match="is not a statistics file"):
        Gaussian.load(path)
