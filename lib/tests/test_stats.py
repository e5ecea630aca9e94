import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats as scipy_stats

from softpolicy import stats

values = hnp.arrays(float, st.integers(1, 12), elements=st.floats(-100, 100))


def test_iqm_of_four_is_the_mean_of_the_middle_two():
    assert stats.iqm([1000.0, 2.0, 4.0, -1000.0]) == 3.0


@given(values, st.floats(-10, 10), st.floats(0.1, 10))
def test_iqm_moves_and_scales_with_the_scores(x, shift, scale):
    assert stats.iqm(scale * x + shift) == pytest.approx(scale * stats.iqm(x) + shift, abs=1e-6)


@given(values)
def test_iqm_ignores_outliers_and_order(x):
    assert stats.iqm(x) == pytest.approx(stats.iqm(np.sort(x)[::-1]), abs=1e-9)
    padded = np.concatenate([np.full(len(x), 1e9), x, x, np.full(len(x), -1e9)])
    assert stats.iqm(padded) == pytest.approx(np.mean(x), abs=1e-6)


def test_bootstrap_interval_matches_the_normal_theory():
    """For the mean of many normal scores the interval tends to mean +- 1.96 std / sqrt(n)."""
    x = np.random.default_rng(1).normal(5, 2, (400, 1))
    low, high = stats.stratified_bootstrap(x, np.mean, reps=8_000)
    half = 1.96 * x.std() / 20
    assert low == pytest.approx(x.mean() - half, abs=0.03)
    assert high == pytest.approx(x.mean() + half, abs=0.03)


def test_bootstrap_of_three_runs_is_that_of_all_27_resamples():
    x = np.array([0.0, 1.0, 5.0])
    means = [np.mean(r) for r in itertools.product(x, repeat=3)]
    low, high = stats.stratified_bootstrap(x, np.mean, reps=50_000, level=0.8)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])), abs=1e-9)


def test_bootstrap_of_one_task_is_scipys():
    x = np.random.default_rng(2).normal(size=40)
    theirs = scipy_stats.bootstrap((x,), stats.iqm, n_resamples=20_000, method="percentile", rng=0)
    ours = stats.stratified_bootstrap(x, reps=20_000)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.03)  # two draws differ by 0.01


def test_bootstrap_draws_within_tasks_only():
    x = np.array([[0.0, 100.0], [0.0, 100.0], [0.0, 100.0]])  # no spread within a task
    assert stats.stratified_bootstrap(x, np.mean) == (50.0, 50.0)


def test_bootstrap_is_repeatable_and_refuses_bad_scores():
    x = np.random.default_rng(0).normal(size=(5, 2))
    assert stats.stratified_bootstrap(x) == stats.stratified_bootstrap(x)
    for bad in (np.array([1.0, np.nan]), np.zeros((0, 2)), np.zeros((2, 2, 2))):
        with pytest.raises(ValueError, match="finite array"):
            stats.stratified_bootstrap(bad)


@given(values)
def test_performance_profile_falls_from_one_to_zero(x):
    profile = stats.performance_profile(x, np.sort(np.r_[x.min() - 1, x, x.max() + 1]))
    assert profile[0] == 1 and profile[-1] == 0
    assert (np.diff(profile) <= 0).all()


def test_interval_of_a_difference():
    """For many runs it is that of the normal approximation; swapped groups mirror it."""
    g = np.random.default_rng(0)
    x, y = g.normal(3, 1, 400), g.normal(1, 2, 400)
    low, high = stats.bootstrap_difference(x, y)
    half = 1.96 * np.sqrt(x.var() / 400 + y.var() / 400)
    centre = x.mean() - y.mean()
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=0.03)
    mirrored = stats.bootstrap_difference(-x, -y)
    assert (-mirrored[1], -mirrored[0]) == pytest.approx((low, high), abs=1e-9)
    assert stats.bootstrap_difference([2.0], [0.5]) == (1.5, 1.5)


@pytest.mark.parametrize("d", [1, 2])
def test_neighbour_entropy_of_gaussians_and_boxes(d):
    """Of N(0, 0.1^2 I) it is d (1 + log(2 pi 0.01)) / 2, of the unit box 0, up to effects of the box's edge."""
    g = np.random.default_rng(d)
    normal = stats.neighbour_entropy(0.1 * g.normal(size=(20, 400, d)))
    assert normal.shape == (20,)
    assert normal.mean() == pytest.approx(d / 2 * (1 + np.log(2 * np.pi * 0.01)), abs=0.03 * d)
    assert stats.neighbour_entropy(g.uniform(size=(20, 400, d))).mean() == pytest.approx(0, abs=0.05 * d)


@given(hnp.arrays(float, (12, 2), elements=st.floats(-1, 1), unique=True), st.floats(0.1, 10), st.floats(-3, 3))
def test_neighbour_entropy_follows_shifts_turns_and_scales(x, scale, angle):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    x = x + 1e-3 * np.arange(12)[:, None]  # no three points the same
    moved = stats.neighbour_entropy(scale * x @ turn + 1.0)
    assert moved == pytest.approx(stats.neighbour_entropy(x) + 2 * np.log(scale), abs=1e-4)


def test_neighbour_entropy_wants_more_points_than_neighbours():
    with pytest.raises(ValueError, match="more than k = 3 points, got 3"):
        stats.neighbour_entropy(np.zeros((3, 2)))
