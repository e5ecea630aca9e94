"""Aggregates and intervals for few runs on several tasks, as arXiv 2108.13264 recommends. Chapter *Soft policies*.

Scores are arrays `[R, K]`: R runs (seeds) on each of K tasks; one task is `[R]` or `[R, 1]`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import spatial, special
from scipy import stats as scipy_stats


def iqm(scores, axis=None) -> float | np.ndarray:
    """Interquartile mean: the mean of the middle half, the lowest and highest quarter left out (section 4.2)."""
    return scipy_stats.trim_mean(scores, 0.25, axis=axis)


def stratified_bootstrap(
    scores, statistic: Callable = iqm, reps: int = 2_000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `statistic` when the runs of each task are drawn anew, task by task (section 4.1).

    `statistic(x, axis=1)` reduces `[reps, R K]`. The interval depends on `seed` alone. It is too narrow for very few
    runs: with R = 3 a task has only 10 distinct resamples.
    """
    scores = np.asarray(scores, dtype=float)
    scores = scores[:, None] if scores.ndim == 1 else scores
    if scores.ndim != 2 or scores.size == 0 or not np.isfinite(scores).all():
        raise ValueError(f"scores must be a finite array [runs] or [runs, tasks], got shape {scores.shape}")
    n_runs, n_tasks = scores.shape
    draw = np.random.default_rng(seed).integers(n_runs, size=(reps, n_runs, n_tasks))
    values = statistic(scores[draw, np.arange(n_tasks)].reshape(reps, -1), axis=1)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_difference(x, y, reps: int = 2_000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of mean(x) - mean(y) for independent runs of one task, each group drawn anew.

    With three runs a side it is too narrow, as that of `stratified_bootstrap` is.
    """
    x, y, g = np.asarray(x, dtype=float), np.asarray(y, dtype=float), np.random.default_rng(seed)
    draws = [v[g.integers(len(v), size=(reps, len(v)))].mean(1) for v in (x, y)]
    low, high = np.quantile(draws[0] - draws[1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def performance_profile(scores, thresholds) -> np.ndarray:
    """The share of runs with a score above each threshold, `[T]` (section 4.3)."""
    return (np.asarray(scores).reshape(-1, 1) > np.asarray(thresholds)).mean(0)


def neighbour_entropy(x, k: int = 3) -> np.ndarray:
    """Differential entropy in nats from the distances to k-th nearest neighbours (Kozachenko and Leonenko, 1987):
    points `[..., N, d]` -> `[...]`; N must be above k.

    `psi(N) - psi(k) + log V_d + d mean log r_k`, V_d the volume of the unit ball; equal points count as 1e-12 apart.
    """
    x = np.asarray(x, dtype=float)
    n, d = x.shape[-2:]
    if n <= k:
        raise ValueError(f"neighbour_entropy needs more than k = {k} points, got {n}")
    sets = x.reshape(-1, n, d)
    r = np.stack([spatial.KDTree(points).query(points, k + 1)[0][:, k] for points in sets])  # [..., N]
    ball = d / 2 * np.log(np.pi) - special.gammaln(d / 2 + 1)
    h = special.digamma(n) - special.digamma(k) + ball + d * np.log(np.maximum(r, 1e-12)).mean(-1)
    return h.reshape(x.shape[:-2])
