"""Samplers against closed forms: stationary laws, the exact bias of the step, stability, detailed balance."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softpolicy import samplers
from softpolicy import streams as rng


def noise(*shape, seed=0, dtype=torch.float32):
    return rng.normals(rng.generators([seed], "noise"), *shape, dtype=dtype)


def gaussian(n, step, steps, w=1.0, s=0.1, d=2, seed=0, **kw):
    """Chains `[n, d]` on Q = -|a|^2 / (2 s^2)."""
    x = torch.zeros(1, n, d)
    return samplers.langevin(lambda x: -x / s**2, x, step, steps, noise(n, d, seed=seed), w=w, **kw)


# The released numbers at ten levels: noise, step size, length of a unit drift step with w = 500, noise of a step.
SCHEDULE = """
0.1000 1.0 250 1.0
0.05995 0.3594 89.84 0.5995
0.03594 0.1292 32.29 0.3594
0.02154 0.04642 11.60 0.2154
0.01292 0.01668 4.170 0.1292
0.007743 0.005995 1.499 0.07743
0.004642 0.002154 0.5386 0.04642
0.002783 0.0007743 0.1936 0.02783
0.001668 0.0002783 0.06957 0.01668
0.001000 0.0001 0.025 0.01"""


def test_schedule_of_the_released_code():
    sigmas = samplers.noise_levels(10, 0.1, 0.001)
    steps = samplers.step_sizes(sigmas, 1e-4)
    table = [[float(v) for v in line.split()] for line in SCHEDULE.split("\n")[1:]]
    for (sigma, eps), row in zip(zip(sigmas, steps, strict=True), table, strict=True):
        assert [sigma, eps, 0.5 * eps * 500, math.sqrt(eps)] == pytest.approx(row, rel=5e-4)


@settings(deadline=None)
@given(levels=st.integers(2, 30), low=st.floats(1e-4, 0.5), factor=st.floats(1.5, 1e4), step=st.floats(1e-6, 1))
def test_levels_are_geometric_and_steps_go_with_their_square(levels, low, factor, step):
    sigmas = samplers.noise_levels(levels, low * factor, low)
    assert (sigmas[0], sigmas[-1]) == pytest.approx((low * factor, low))
    ratios = [a / b for a, b in zip(sigmas[1:], sigmas[:-1], strict=True)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    steps = samplers.step_sizes(sigmas, step)
    assert [e / s**2 for e, s in zip(steps, sigmas, strict=True)] == pytest.approx([step / low**2] * levels)


@pytest.mark.parametrize(("levels", "high", "low"), [(0, 1, 0.1), (3, 0.1, 0.1), (3, 0.1, 0.2), (1, 1, 0), (2, 1, -1)])
def test_impossible_levels_are_refused(levels, high, low):
    with pytest.raises(ValueError, match="at least 1|0 < sigma_min < sigma_max"):
        samplers.noise_levels(levels, high, low)


@pytest.mark.parametrize(("w", "step", "steps"), [(1, 1e-4, 3000), (4, 1e-4, 1500), (1, 1e-2, 200), (1, 3e-2, 300)])
def test_stationary_variance_has_the_exact_bias_of_the_step(w, step, steps):
    """AR(1): variance (s^2 / w) / (1 - step w / (4 s^2)); the last two steps are a quarter and three quarters of the
    way to the stability limit. 16,384 coordinates give the variance to 4 standard errors = 4.4 %."""
    x = gaussian(8192, step, steps, w=w)
    assert x.var().item() == pytest.approx(0.01 / w / (1 - step * w / 0.04), rel=4 * math.sqrt(2 / x.numel()))
    assert x.mean().item() == pytest.approx(0, abs=4 * x.std().item() / math.sqrt(x.numel()))


def test_mean_and_variance_follow_the_recursion_of_an_ar_1_process():
    s, step, n = 0.5, 0.1, 100_000
    rho = 1 - step / (2 * s**2)
    path = samplers.langevin(lambda x: -x / s**2, torch.full((1, n, 1), 2.0), step, 6, noise(n, 1), trajectory=True)
    for t, x in enumerate(path):
        variance = step * (1 - rho ** (2 * t)) / (1 - rho**2)
        assert x.mean().item() == pytest.approx(2 * rho**t, abs=4 * math.sqrt(variance / n) + 1e-6)
        assert x.var(correction=0).item() == pytest.approx(variance, rel=4 * math.sqrt(2 / n), abs=1e-9)


def test_stability_edge():
    """Step times w times curvature must stay below 4."""
    assert gaussian(64, 3.9 * 0.01, 2000).square().mean().sqrt() < 2
    assert gaussian(64, 4.1 * 0.01, 300).abs().max() > 1e3  # 1.05^300 = 2e6 times the start


@pytest.mark.parametrize(("d", "seed"), [(2, 0), (3, 1)])
def test_unit_gradients_sample_an_exponential_of_the_distance_whatever_the_peak(d, seed):
    """Q = -|a|^2 with unit gradients and w = 50: density exp(-w |a|), so the mean of |a| is d / w."""
    start, kw = torch.full((1, 8192, d), 1e-3), dict(w=50.0, normalise=True)
    x = samplers.langevin(lambda x: -2 * x, start, 4e-6, 8000, noise(8192, d, seed=seed), **kw)
    assert x.norm(dim=-1).mean().item() == pytest.approx(d / 50, rel=0.03)


def test_unit_gradients_do_not_see_the_scale_of_q():
    start = torch.randn(1, 500, 2, dtype=torch.float64)
    run = lambda c: samplers.langevin(  # noqa: E731
        lambda x: -2 * c * x, start, 1e-3, 200, noise(500, 2, dtype=torch.float64), w=50.0, normalise=True
    )
    assert (run(1.0) - run(7.0)).abs().max() < 1e-4


@settings(max_examples=30, deadline=None)
@given(data=st.data(), lead=st.lists(st.integers(1, 3), min_size=1, max_size=3), d=st.integers(1, 4))
def test_annealed_chains_are_the_loop_as_written_for_any_leading_axes(data, lead, d):
    levels, per_level = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    w, normalise = data.draw(st.floats(0.1, 10)), data.draw(st.booleans())
    clip = data.draw(st.sampled_from([None, 0.7]))
    steps = samplers.step_sizes(samplers.noise_levels(levels, 0.5, 0.05), 1e-3)
    x = torch.rand(*lead, d, dtype=torch.float64) - 0.5
    z = torch.randn(levels * per_level, *lead, d, dtype=torch.float64)
    score = lambda x, level: torch.sin(3 * x) * (level + 1) - x  # noqa: E731
    kw = dict(w=w, normalise=normalise, clip=clip)
    path = samplers.annealed_langevin(score, x, steps, per_level, z, trajectory=True, **kw)
    assert path.shape == (levels * per_level + 1, *lead, d)
    assert torch.equal(samplers.annealed_langevin(score, x, steps, per_level, z, **kw), path[-1])
    chains, zs = x.reshape(-1, d), z.reshape(len(z), -1, d)
    for i, a in enumerate(chains):
        for t in range(len(z)):
            level = t // per_level
            g = score(a, level)
            g = g / (math.sqrt(float((g * g).sum())) + 1e-8) if normalise else g
            a = a + steps[level] / 2 * w * g + steps[level] ** 0.5 * zs[t, i]
            a = a if clip is None else a.clamp(-clip, clip)
        torch.testing.assert_close(path[-1].reshape(-1, d)[i], a)
    assert clip is None or path[1:].abs().max() <= clip


def test_annealing_leaves_the_law_of_the_last_level():
    """A Gaussian seen at noise sigma has variance s^2 + sigma^2; enough steps at each level end near s^2."""
    s, sigmas = 0.1, samplers.noise_levels(5, 0.5, 0.02)
    steps = [0.1 * (s**2 + sigma**2) for sigma in sigmas]
    score = lambda x, level: -x / (s**2 + sigmas[level] ** 2)  # noqa: E731
    x = samplers.annealed_langevin(score, torch.zeros(1, 8192, 2), steps, 80, noise(8192, 2))
    v = s**2 + sigmas[-1] ** 2
    assert x.var().item() == pytest.approx(v / (1 - steps[-1] / (4 * v)), rel=4 * math.sqrt(2 / x.numel()))


@pytest.mark.parametrize(
    ("change", "match"),
    [(dict(w=0.0), "positive"), (dict(w=float("nan")), "positive"), (dict(step=0.0), "positive"),
     (dict(n_steps=0), "positive"), (dict(score=lambda x: x[..., :1]), "shape"),
     (dict(score=lambda x: x / 0), "not finite for 3 of 3 chains"),
     (dict(score=lambda x: x * torch.tensor([[1.0], [torch.nan], [1.0]])), "not finite for 1 of 3 chains"),
     (dict(step=math.inf), "positive"), (dict(clip=-1.0), "clip .* must be positive"),
     (dict(noise=torch.zeros(2, 2)), r"must have shape \(1, 3, 2\), got \(2,\)"),
     (dict(noise=torch.zeros(1, 1, 3, 2)), "fewer random numbers than steps")],
)  # fmt: skip
def test_bad_input_is_refused(change, match):
    kw = dict(score=lambda x: -x, x=torch.ones(1, 3, 2), step=0.1, n_steps=2, noise=noise(3, 2)) | change
    with pytest.raises(ValueError, match=match):
        samplers.langevin(**kw)


# --- MALA


def log_mixture(x):
    """Unequal two-mode density on the line, not normalised: `[..., 1] -> [...]`."""
    a, b = -2 * (x[..., 0] + 1) ** 2, -4 * (x[..., 0] - 0.8) ** 2 - 0.5
    return torch.logaddexp(a, b)


@pytest.mark.parametrize("step", [0.02, 0.3, 1.5])
def test_mala_is_in_detailed_balance_on_a_grid(step):
    """p(x) K(x, y) = p(y) K(y, x) for all pairs of a grid, and p K = p with the rejected mass on the diagonal."""
    x = torch.linspace(-4, 4, 801, dtype=torch.float64)[:, None]
    cell, at = 8 / 800, samplers.with_gradient(log_mixture, x)
    p = torch.softmax(at[0], 0)
    mean = x + 0.5 * step * at[1]
    q = torch.exp(-((x.T - mean) ** 2) / (2 * step)) / math.sqrt(2 * math.pi * step) * cell  # from row to column
    rows, columns = ((v[:, None].expand(801, 801, *v.shape[1:]), v.expand(801, 801, *v.shape[1:])) for v in (x, at[0]))
    grads = at[1][:, None].expand(801, 801, 1), at[1].expand(801, 801, 1)
    ratio = samplers.log_acceptance(rows[0], (columns[0], grads[0]), rows[1], (columns[1], grads[1]), step)
    move = q * ratio.clamp(max=0).exp()
    torch.testing.assert_close(p[:, None] * move, (p[:, None] * move).T, atol=1e-14, rtol=1e-8)
    kernel = move + torch.diag(1 - move.sum(1))
    torch.testing.assert_close(p @ kernel, p, atol=1e-10, rtol=1e-8)
    assert (ratio < -0.01).any() and (kernel.diagonal() > -1e-9).all()


def test_mala_has_no_bias_where_langevin_has_one():
    """Standard normal in three dimensions at step 1.2: Langevin's variance is 1 / (1 - 0.3), MALA's is 1."""
    n, step = 20_000, 1.2
    start = torch.zeros(1, n, 3)
    uniforms = rng.uniforms(rng.generators([0], "uniform"), n)
    x, accepted = samplers.mala(lambda x: -0.5 * x.square().sum(-1), start, step, 60, noise(n, 3), uniforms)
    band = 4 * math.sqrt(2 / x.numel())
    assert x.var().item() == pytest.approx(1, rel=band)
    biased = samplers.langevin(lambda x: -x, start, step, 60, noise(n, 3))
    assert biased.var().item() == pytest.approx(1 / (1 - step / 4), rel=band)
    assert accepted.shape == (1, n) and 0.3 < accepted.mean() < 0.95


def test_mala_stays_within_the_support():
    def triangle(x):  # density 2 x on [0, 1]
        inside = (x[..., 0] > 0) & (x[..., 0] < 1)
        return torch.where(inside, x[..., 0].clamp(min=1e-9).log(), -math.inf)

    n = 20_000
    uniforms = rng.uniforms(rng.generators([1], "uniform"), n)
    path, _ = samplers.mala(triangle, torch.full((1, n, 1), 0.5), 0.05, 200, noise(n, 1), uniforms, trajectory=True)
    assert path.shape == (201, 1, n, 1) and 0 < path.min() and path.max() < 1
    assert path[-1].mean().item() == pytest.approx(2 / 3, abs=4 * math.sqrt(1 / 18 / n))


def test_mala_refuses_a_start_outside_the_support():
    with pytest.raises(ValueError, match="within the support"):
        samplers.mala(lambda x: torch.where(x[..., 0] > 0, 0.0, -math.inf) + 0 * x[..., 0], -torch.ones(1, 2, 1), 0.1,
                      1, noise(2, 1), iter([torch.rand(1, 2)]))  # fmt: skip
    with pytest.raises(ValueError, match="gradient is not finite"):
        samplers.mala(lambda x: x[..., 0].sqrt(), torch.zeros(1, 2, 1), 0.1, 1, noise(2, 1), iter([torch.rand(1, 2)]))
    with pytest.raises(ValueError, match="log-density has shape"):
        samplers.mala(lambda x: x.sum(), torch.ones(1, 2, 1), 0.1, 1, noise(2, 1), iter([torch.rand(1, 2)]))
    with pytest.raises(ValueError, match="positive"):
        samplers.mala(lambda x: x[..., 0], torch.ones(1, 2, 1), 0.0, 1, noise(2, 1), iter([torch.rand(1, 2)]))
