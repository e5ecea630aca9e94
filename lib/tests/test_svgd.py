"""SVGD and its closed-form density: explicit sums, finite differences, autograd's log-determinants and closed forms."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softpolicy import entropy_chains as chains
from softpolicy import svgd as stein
from softpolicy.svgd import svgd

MEAN = torch.tensor([-0.6871, 0.8010]).double()
COVARIANCE = 5 * torch.tensor([[0.2260, 0.1652], [0.1652, 0.6779]]).double()  # the Gaussian of S2AC's Figure 4a


def gaussian_score(x):
    return -(x - MEAN) @ torch.linalg.inv(COVARIANCE)


def gaussian_entropy(covariance):
    return 0.5 * torch.logdet(2 * math.pi * math.e * covariance).item()


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def gaussian_start(seed, *m, d=2, variance=6.0, mean=0.0):
    z = normal(seed, *m, d)
    return mean + math.sqrt(variance) * z, -0.5 * (z**2).sum(-1) - 0.5 * d * math.log(2 * math.pi * variance)


def warped(x):
    """A score that is no gradient of a quadratic; each particle by itself."""
    return x.sin() - 0.3 * x**3 + x.cos().sum(-1, keepdim=True)


def loo_field(y, i, x, s, sigma):
    """The velocity at y from all particles but i, as the sum is written."""
    total = torch.zeros_like(y)
    for j in range(len(x)):
        if j != i:
            r = y - x[j]
            total = total + torch.exp(-r @ r / (2 * sigma**2)) * (s[j] + r / sigma**2)
    return total / len(x)


sets = given(
    seed=st.integers(0, 10**6), m=st.integers(2, 7), d=st.integers(1, 5), sigma=st.floats(0.3, 5.0),
    shift=st.floats(-50, 50),
)  # fmt: skip
few = settings(max_examples=25, deadline=None)


@few
@sets
def test_velocity_is_the_double_sum(seed, m, d, sigma, shift):
    x = normal(seed, m, d) + shift
    s = normal(seed + 1, m, d)
    fast = stein.velocity(stein.pairs(x, x, sigma), x, x, s)
    for i in range(m):
        slow = loo_field(x[i], None, x, s, sigma)  # j = i included
        torch.testing.assert_close(fast[i], slow, atol=1e-8, rtol=1e-8)


@few
@given(seed=st.integers(0, 10**6), n=st.integers(1, 5), m=st.integers(1, 5), d=st.integers(1, 4))
def test_velocity_between_two_sets_is_the_double_sum(seed, n, m, d):
    y, x, s = normal(seed, 2, 3, n, d), normal(seed + 1, 2, 3, m, d), normal(seed + 2, 2, 3, m, d)
    fast = stein.velocity(stein.pairs(y, x, 0.8), y, x, s)
    for a in range(2):
        for b in range(3):
            for i in range(n):
                slow = loo_field(y[a, b, i], None, x[a, b], s[a, b], 0.8)
                torch.testing.assert_close(fast[a, b, i], slow, atol=1e-9, rtol=1e-9)


@few
@sets
def test_trace_is_that_of_the_leave_one_out_map_by_finite_differences_and_of_its_jacobian(seed, m, d, sigma, shift):
    x, h = normal(seed, m, d) + shift, 1e-5
    s = normal(seed + 1, m, d)
    fast = stein.trace(stein.pairs(x, x, sigma), x, s)
    sigma2 = torch.full((1, 1), sigma**2, dtype=torch.float64)
    exact = stein.log_det(x, s, sigma2, 0.01)
    for i in range(m):
        slow = 0.0
        for k in range(d):
            e = torch.zeros(d).double()
            e[k] = h
            up, down = (loo_field(x[i] + step, i, x, s, sigma)[k] for step in (e, -e))
            slow += (up - down) / (2 * h)
        assert fast[i].item() == pytest.approx(slow.item(), abs=1e-8)
        j = torch.zeros(d, d).double()
        for r, score in ((x[i] - x[k], s[k]) for k in range(m) if k != i):
            kappa = torch.exp(-r @ r / (2 * sigma**2)) / (m * sigma**2)
            j += kappa * (torch.eye(d) - torch.outer(score, r) - torch.outer(r, r) / sigma**2)
        assert fast[i].item() == pytest.approx(j.trace().item(), abs=1e-9)
        assert exact[i].item() == pytest.approx(torch.logdet(torch.eye(d) + 0.01 * j).item(), abs=1e-9)


@pytest.mark.parametrize(
    ("norm", "volume", "increment"),
    [("m", "trace", 0.033834), ("m-1", "trace", 0.067668), ("m", "log_det", 0.034419), ("m-1", "log_det", 0.070066)],
)
def test_two_particles_by_hand(norm, volume, increment):
    x = torch.tensor([[1.0], [-1.0]]).double()
    flow = svgd(lambda x: -x, x, 0.1, 1, bandwidth=1.0, log_q=torch.zeros(2).double(), norm=norm, volume=volume,
                check=False)  # fmt: skip
    torch.testing.assert_close(flow.x, 0.97030 * x, atol=1e-5, rtol=0)
    torch.testing.assert_close(flow.log_q, torch.full((2,), increment).double(), atol=1e-6, rtol=0)


@few
@given(
    seed=st.integers(0, 10**6), m=st.integers(2, 7), d=st.integers(1, 5), volume=st.sampled_from(["trace", "log_det"])
)
def test_a_flow_that_contracts_raises_log_q(seed, m, d, volume):
    """Attraction -40 x beats the kernels' repulsion for particles at least 1 apart (sigma = 3), +40 x adds to it."""
    x = normal(seed, m, d)
    x[:, 0] = torch.randperm(7, generator=torch.Generator().manual_seed(seed))[:m] - 3
    for sign in (1, -1):
        flow = svgd(lambda x, k=sign: -40 * k * x, x, 1e-4, 3, bandwidth=3.0, log_q=torch.zeros(m).double(),
                    volume=volume, check=False)  # fmt: skip
        assert sign * (flow.x - flow.x.mean(0)).norm() < sign * (x - x.mean(0)).norm()
        assert sign * flow.log_q.mean() > 0


def test_the_trace_is_first_order():
    """Halving the step divides |trace - log-det| of a step by four."""
    x, gaps = normal(0, 20, 3), []
    for eps in (0.2, 0.1, 0.05, 0.025):
        start = torch.zeros(20).double()
        one, two = (svgd(lambda x: -x, x, eps, 1, bandwidth=1.0, log_q=start, volume=v) for v in ("trace", "log_det"))
        gaps.append((one.log_q - two.log_q).abs().mean().item())
    assert 1e-4 < gaps[0] < 1e-2
    for coarse, fine in zip(gaps, gaps[1:], strict=False):
        assert 3.5 < coarse / fine < 4.5


@pytest.mark.parametrize(("eps", "low", "high"), [(0.1, 0.3, 2.0), (0.01, 3e-3, 3e-2), (0.001, 3e-5, 3e-4)])
def test_without_a_floor_the_density_breaks_and_a_user_is_warned(eps, low, high):
    x, log_q = 0.1 * normal(0, 50, 10, 6), torch.zeros(50, 10).double()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        one = svgd(lambda x: -x, x, eps, 1, log_q=log_q)
    two = svgd(lambda x: -x, x, eps, 1, log_q=log_q, volume="log_det", check=False)
    assert low < (one.log_q - two.log_q).abs().mean() < high
    assert ("may not be invertible" in str([w.message for w in seen])) == bool((one.bound >= 1).any())
    assert (one.bound >= 1).all() if eps == 0.1 else (one.bound < 0.2).all() if eps == 0.001 else True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svgd(lambda x: -x, x, eps, 1, log_q=log_q, floor=1.5)
        svgd(lambda x: -x, x, eps, 1, log_q=log_q, cap=0.9)


def test_the_warning_comes_once():
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        for seed in range(5):
            svgd(lambda x: -x, 0.1 * normal(seed, 10, 6), 0.123, 1)
    assert len(seen) == 1


@few
@sets
def test_the_bound_holds_for_every_particle_and_a_cap_keeps_it(seed, m, d, sigma, shift):
    x = normal(seed, m, d) + shift
    s = 3 * normal(seed + 1, m, d)
    near = stein.pairs(x, x, sigma)
    sigma2 = near.sigma2

    def field(y):
        distance = (y[:, None] - x).square().sum(-1)
        return stein.velocity(stein.Pairs(distance, (distance / (-2 * sigma2)).exp(), sigma2), y, x, s)

    j = stein.jacobian(field, x) - torch.eye(d) / (m * sigma2)
    assert (torch.linalg.matrix_norm(j, 2) <= stein.jacobian_bound(s, sigma2)).all()
    flow = svgd(lambda x: -x, x - shift, 5.0, 3, cap=0.7)
    assert flow.bound.max() <= 0.7 + 1e-12
    free = svgd(lambda x: -x, x - shift, 1e-6, 3, cap=1e6)
    torch.testing.assert_close(free.x, svgd(lambda x: -x, x - shift, 1e-6, 3, check=False).x)


# --- the bandwidth


@few
@given(seed=st.integers(0, 10**6), m=st.integers(2, 9), d=st.integers(1, 4))
def test_bandwidth_rules_are_their_formulas(seed, m, d):
    x = normal(seed, m, d)
    distance = torch.cdist(x, x) ** 2
    flat, scale = distance.flatten(), 2 * math.log(m + 1)
    expected = {"median": flat.median() / scale, "mean": flat.mean() / scale, "half-mean": flat.mean() / (2 * scale),
                "quartile": torch.quantile(flat, 0.25, interpolation="lower") / scale}  # fmt: skip
    for rule, value in expected.items():
        got = stein.squared_bandwidth(distance, rule)
        assert got.item() == pytest.approx(max(value.item(), 1e-12), rel=1e-9)
        assert stein.squared_bandwidth(distance, rule, floor=7.0).item() == pytest.approx(49.0)
    assert stein.squared_bandwidth(distance, 0.5).item() == 0.25


@pytest.mark.parametrize(("m", "sets", "expected", "error"), [(10, 200, 0.185, 0.01), (200, 20, 0.093, 0.002)])
def test_the_half_mean_of_a_standard_normal(m, sets, expected, error):
    near = stein.pairs(*[normal(3, sets, m, 6)] * 2, "half-mean")
    assert near.sigma2.mean().item() / 6 == pytest.approx(expected, abs=error)


def test_no_gradient_through_the_bandwidth():
    x = normal(0, 5, 3).requires_grad_()
    near = stein.pairs(x, x, "half-mean")
    assert near.distance.requires_grad and not near.sigma2.requires_grad


# --- the chain


@few
@given(seed=st.integers(0, 10**6), data=st.data(), rule=st.sampled_from([*stein.RULES, 0.7]))
def test_permuting_particles_permutes_the_outputs_and_sets_do_not_mix(seed, data, rule):
    m = data.draw(st.integers(2, 8))
    order = torch.tensor(data.draw(st.permutations(range(m))))
    x, log_q = normal(seed, 2, 3, m, 2), normal(seed + 1, 2, 3, m)
    run = lambda x, log_q: svgd(warped, x, 0.01, 4, bandwidth=rule, floor=0.2, log_q=log_q, check=False)  # noqa: E731
    whole = run(x, log_q)
    moved = run(x[:, :, order], log_q[:, :, order])
    torch.testing.assert_close(whole.x[:, :, order], moved.x)
    torch.testing.assert_close(whole.log_q[:, :, order], moved.log_q)
    alone = run(x[1, 2], log_q[1, 2])
    torch.testing.assert_close(whole.x[1, 2], alone.x)
    torch.testing.assert_close(whole.log_q[1, 2], alone.log_q)


def test_a_trajectory_holds_every_step_and_its_density():
    x, log_q = gaussian_start(0, 20)
    path = svgd(gaussian_score, x, 0.1, 5, log_q=log_q, trajectory=True, check=False)
    assert path.x.shape == (6, 20, 2) and path.sigma.shape == path.bound.shape == (5,)
    for n in range(6):
        flow = svgd(gaussian_score, x, 0.1, n, log_q=log_q, check=False)
        torch.testing.assert_close(path.x[n], flow.x)
        torch.testing.assert_close(path.log_q[n], flow.log_q)


def test_without_log_q_the_particles_are_the_same():
    x, log_q = gaussian_start(0, 20)
    bare = svgd(gaussian_score, x, 0.1, 5, check=False)
    assert bare.log_q is None
    assert torch.equal(bare.x, svgd(gaussian_score, x, 0.1, 5, log_q=log_q, check=False).x)


def test_options_of_the_trace_add_what_they_say():
    x, log_q, eps, m, d = *gaussian_start(0, 10), 0.1, 10, 2
    run = lambda **kw: svgd(gaussian_score, x, eps, 1, bandwidth=2.0, log_q=log_q, check=False, **kw).log_q  # noqa: E731
    loo = run()
    torch.testing.assert_close(run(self_kernel=True), loo - eps * d / (m * 4.0))
    torch.testing.assert_close(run(norm="m-1") - log_q, (loo - log_q) * m / (m - 1))
    signs = torch.tensor([1.0, -1.0]).expand(10, 2).double()
    precision = torch.linalg.inv(COVARIANCE)
    quadratic = signs[0] @ precision @ signs[0]
    torch.testing.assert_close(run(probes=[signs]), loo + eps * quadratic / m)
    exact = run(self_kernel=True, volume="log_det") - run(volume="log_det")
    assert (exact < 0).all()  # the self-kernel term is in the log-determinant too


def test_hutchinson_is_unbiased_and_differentiable():
    x = normal(0, 3, 2)
    probes = 2.0 * (torch.rand(4000, 3, 2, generator=torch.Generator().manual_seed(0)) < 0.5).double() - 1
    estimate = stein.curvature(warped, x.expand(4000, 3, 2), probes).mean(0)
    exact = stein.jacobian(warped, x).diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(estimate, exact, atol=0.1, rtol=0)
    assert torch.autograd.gradcheck(lambda x: stein.curvature(warped, x, probes[0]), x.requires_grad_())


def test_the_density_can_be_differentiated_through_all_steps():
    def end(x):
        flow = svgd(warped, x, 0.05, 3, bandwidth=1.0, log_q=x.sum(-1), check=False)
        return flow.x, flow.log_q

    assert torch.autograd.gradcheck(end, normal(0, 2, 4, 3).requires_grad_())


# --- entropies


@pytest.mark.parametrize(("volume", "sets"), [("trace", 10), ("log_det", 3)])
def test_entropy_of_the_gaussian_of_figure_4a(volume, sets):
    """Also its particles' mean and, over ten sets of 200, their covariance."""
    x, log_q = gaussian_start(0, sets, 200)
    flow = svgd(gaussian_score, x, 0.5, 200, bandwidth=5.0, log_q=log_q, norm="m-1", volume=volume)
    assert -flow.log_q.mean().item() == pytest.approx(3.41, abs=0.05)
    assert gaussian_entropy(COVARIANCE) == pytest.approx(3.4112, abs=1e-4)
    assert (flow.x.mean(1) - MEAN).abs().max() < 0.03
    covariance = torch.stack([torch.cov(x.T) for x in flow.x]).mean(0)
    assert sets < 10 or (covariance - COVARIANCE).norm() < 0.07 * COVARIANCE.norm()


@pytest.mark.parametrize(("sigma", "entropy"), [(5.0, 2.81), (2.83, 2.84)])
def test_entropy_of_a_standard_normal(sigma, entropy):
    x, log_q = gaussian_start(1, 200)
    flow = svgd(lambda x: -x, x, 0.5, 200, bandwidth=sigma, log_q=log_q, norm="m-1")
    assert -flow.log_q.mean().item() == pytest.approx(entropy, abs=0.05)


def estimated(score, bandwidth, *, mean=0.0, variance=6.0, d=2, sets=8):
    """The closed form of the entropy after 200 steps of 0.5 with 200 particles, mean over a few sets."""
    x, log_q = gaussian_start(0, sets, 200, d=d, variance=variance, mean=mean)
    return -svgd(score, x, 0.5, 200, bandwidth=bandwidth, log_q=log_q, norm="m-1", check=False).log_q.mean().item()


@pytest.mark.parametrize(("sigma", "entropy"), [(1.0, 2.83), (3.0, 3.41), (5.0, 3.42), (7.0, 3.44), (10.0, 3.53)])
def test_entropy_against_the_width_of_the_kernel(sigma, entropy):
    """Figure 4c, m = L = 200; the true entropy is 3.411."""
    assert estimated(gaussian_score, sigma) == pytest.approx(entropy, abs=0.1)


@pytest.mark.parametrize(("sigma", "entropy"), [(3.0, 3.31), (5.0, 3.38), (7.0, 3.21), (100.0, 1.19)])
def test_a_start_far_away_needs_the_right_width(sigma, entropy):
    assert estimated(gaussian_score, sigma, mean=4.0, variance=0.2) == pytest.approx(entropy, abs=0.1)


@pytest.mark.parametrize(("sigma", "low", "high"), [(0.1, -math.inf, 1.5), (100.0, 4.3, math.inf)])
def test_a_kernel_far_too_narrow_or_wide_gives_a_wrong_entropy(sigma, low, high):
    assert low < estimated(gaussian_score, sigma) < high


@pytest.mark.parametrize(
    ("n", "entropy", "true"), [(1, 1.59, 2.838), (2, 3.24, 3.53), (4, 3.89, 4.21), (6, 4.15, 4.51)]
)
def test_with_the_rule_the_entropy_of_mixtures_is_underestimated(n, entropy, true):
    """Figure 4b: n unit Gaussians on a circle of radius 4."""
    angle = torch.arange(n).double() * 2 * math.pi / n
    centres = 4 * torch.stack((angle.sin(), angle.cos()), -1)

    def score(x):
        away = centres - x.unsqueeze(-2)
        return ((-0.5 * away.square().sum(-1)).softmax(-1).unsqueeze(-1) * away).sum(-2)

    found = estimated(score, "half-mean")
    assert found == pytest.approx(entropy, abs=0.1) and found < true - 0.2


@pytest.mark.parametrize(
    ("bandwidth", "self_kernel", "at_250", "at_2000"),
    [("half-mean", False, 3.55, -3.39), (5.0, False, 3.58, 3.28), (5.0, True, 3.61, 3.45)],
)
def test_the_estimate_drifts_after_the_particles_have_settled_unless_the_self_kernel_stays(
    bandwidth, self_kernel, at_250, at_2000
):
    """Steps of 0.1, 100 particles; the figures are those of one set, so within three deviations of a few."""
    x, log_q = gaussian_start(0, 6, 100)
    kw = dict(bandwidth=bandwidth, norm="m" if self_kernel else "m-1", self_kernel=self_kernel)
    flow = svgd(gaussian_score, x, 0.1, 2000, log_q=log_q, check=False, trajectory=True, **kw)
    entropy = -flow.log_q.mean(-1)  # [1 + L, sets]
    for step, expected in ((250, at_250), (2000, at_2000)):
        assert (entropy[step].mean() - expected).abs() < 3 * entropy[step].std()
    drift = (entropy[1000] - entropy[2000]).mean()
    assert drift.abs() < 0.02 if self_kernel else drift > 0.05


def test_in_ten_dimensions_the_rule_gives_the_entropy_of_the_start_and_a_wide_kernel_that_of_the_target():
    """The start's is 23.15, the target's 14.19."""
    mean = torch.zeros(10).double()
    mean[1] = 4.0
    rule, wide = (estimated(lambda x: mean - x, b, d=10) for b in ("half-mean", 2 * math.sqrt(10)))
    assert rule == pytest.approx(22.3, abs=0.1)
    assert wide == pytest.approx(14.77, abs=0.1)


@pytest.mark.parametrize(("mean", "variance", "expected"), [(0.0, 6.0, (-15.72, -9.73)), (4.0, 0.2, (-19.12, -13.13))])
def test_deterministic_langevin_has_the_entropy_of_an_affine_flow(mean, variance, expected):
    """Exact: H_0 + 20 log|det(I - eps P)|, with the particles' own densities N(A mu_0 + b, variance A A^T)."""
    x, log_q = gaussian_start(0, 200, variance=variance, mean=mean)
    end, exact = chains.deterministic_langevin(gaussian_score, x, log_q, 0.5, 20)
    step = torch.eye(2).double() - 0.5 * torch.linalg.inv(COVARIANCE)
    a = torch.linalg.matrix_power(step, 20)
    law = torch.distributions.MultivariateNormal(MEAN + a @ (mean - MEAN), variance * a @ a.T)
    torch.testing.assert_close(exact, law.log_prob(end), atol=1e-3, rtol=1e-4)
    assert gaussian_entropy(variance * a @ a.T) == pytest.approx(expected[0], abs=0.01)
    naive = chains.deterministic_langevin(gaussian_score, x, log_q, 0.5, 20, "trace")[1]
    assert (naive - log_q).mean().item() == pytest.approx(0.5 * 20 * torch.linalg.inv(COVARIANCE).trace().item())
    assert -naive.mean().item() == pytest.approx(expected[1], abs=0.2)


def test_langevin_reports_the_entropy_of_the_noise_free_chain_whatever_its_noise():
    x, log_q = gaussian_start(0, 2000)
    noise = normal(5, 20, 2000, 2)
    still = chains.deterministic_langevin(gaussian_score, x, log_q, 0.5, 20)
    for variance, true in ((None, 3.62), (0.1, 1.33)):
        end, naive = chains.langevin(gaussian_score, x, log_q, 0.5, 20, noise, variance)
        torch.testing.assert_close(naive, still[1])
        step = torch.eye(2).double() - 0.5 * torch.linalg.inv(COVARIANCE)
        c = 6 * torch.eye(2).double()
        for _ in range(20):
            c = step @ c @ step.T + (1.0 if variance is None else variance) * torch.eye(2)
        assert gaussian_entropy(c) == pytest.approx(true, abs=0.01)
        assert gaussian_entropy(torch.cov(end.T)) == pytest.approx(true, abs=0.1)


@pytest.mark.parametrize(("volume", "expected"), [("log_det", -5.09), ("trace", -3.09)])
def test_entropy_that_the_notebook_gives_hmc(volume, expected):
    x, log_q = gaussian_start(0, 200)
    v = normal(1, 200, 2)
    for _ in range(2):  # nothing is carried over from one call to the next
        end = chains.hamiltonian(gaussian_score, x, v, log_q, 0.5, 15, volume)
    assert -end[1].mean().item() == pytest.approx(expected, abs=0.2)
    s = gaussian_score(x)
    first = chains.hamiltonian(gaussian_score, x, v, log_q, 0.5, 2)[0]
    middle = x + 0.5 * (v + 0.25 * s)
    torch.testing.assert_close(first, middle + 0.5 * (v + 0.5 * s + 0.75 * gaussian_score(middle)))


# --- bad input


@pytest.mark.parametrize(
    ("kw", "says"),
    [
        (dict(step=0.0), "step size must be positive"),
        (dict(step=float("nan")), "step size must be positive"),
        (dict(n_steps=-1), "not negative"),
        (dict(cap=-1.0), "cap not negative"),
        (dict(bandwidth=0.0), "bandwidth must be a positive number or one of"),
        (dict(bandwidth=-2.0), "bandwidth must be a positive number or one of"),
        (dict(bandwidth="forth"), "one of median, quartile, mean, half-mean, got forth"),
        (dict(floor=-1.0), "must not be negative"),
        (dict(norm="n"), "norm must be m or m-1"),
        (dict(volume="det"), "volume trace or log_det"),
        (dict(log_q=torch.zeros(3)), r"must have shape \(4,\), got \(3,\)"),
        (dict(x=torch.zeros(4)), r"shape \[..., m, d\]"),
        (dict(score=lambda x: x[..., :1]), r"score has shape \(4, 1\) at particles of shape \(4, 2\)"),
        (dict(score=lambda x: x / 0), "not finite"),
        (dict(score=lambda x: torch.ones_like(x), probes=[torch.ones(4, 2)]), "carries no graph"),
        (dict(volume="log_det", probes=[torch.ones(4, 2)]), "probes belong to the trace"),
        (dict(x=torch.zeros(1, 2), log_q=torch.zeros(1)), "at least two particles, got one"),
        (dict(x=torch.zeros(1, 2), log_q=torch.zeros(1), self_kernel=True, norm="m-1"), "at least two particles"),
        (dict(x=torch.zeros(1, 2), log_q=torch.zeros(1), self_kernel=True), "not made from distances"),
        (dict(x=torch.zeros(0, 2), log_q=torch.zeros(0)), "m at least 1"),
        (dict(bandwidth=None), "bandwidth must be a positive number or one of"),
        (dict(score=lambda x: -x, n_steps=2, probes=[torch.ones(4, 2)]), "fewer random numbers than steps"),
        (dict(score=lambda x: -x, probes=[torch.ones(1)]), r"must have shape \(4, 2\), got \(1,\)"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(kw, says):
    call = dict(score=lambda x: -x, x=torch.ones(4, 2), step=0.1, n_steps=1, log_q=torch.zeros(4)) | kw
    with pytest.raises(ValueError, match=says) as e:
        svgd(call.pop("score"), call.pop("x"), call.pop("step"), call.pop("n_steps"), **call)
    assert "\n" not in str(e.value)


def test_one_particle_moves_along_its_score_and_has_a_density_with_its_own_terms():
    x = normal(0, 5, 1, 2)
    flow = svgd(warped, x, 0.1, 1, bandwidth=1.0, log_q=torch.zeros(5, 1).double(), self_kernel=True, check=False)
    torch.testing.assert_close(flow.x, x + 0.1 * warped(x))
    torch.testing.assert_close(flow.log_q, torch.full((5, 1), -0.2).double())


@pytest.mark.parametrize("bad", [(0.0, 1, "trace"), (0.1, 0, "trace"), (0.1, 1, "det")])
def test_chains_refuse_bad_input(bad):
    x, log_q = gaussian_start(0, 3)
    with pytest.raises(ValueError, match="must be"):
        chains.deterministic_langevin(gaussian_score, x, log_q, *bad)


def test_positions_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match="positions have 3 dimensions and sources 2"):
        stein.pairs(normal(0, 4, 3), normal(1, 4, 2))


def test_chains_refuse_what_would_broadcast():
    x, log_q = gaussian_start(0, 3)
    ones = torch.ones_like(x)
    with pytest.raises(ValueError, match="a number a position"):
        chains.langevin(gaussian_score, x, log_q[:1], 0.1, 1, [ones])
    with pytest.raises(ValueError, match="random numbers of a step must have shape"):
        chains.langevin(gaussian_score, x, log_q, 0.1, 1, [ones[:1]])
    with pytest.raises(ValueError, match="fewer random numbers"):
        chains.langevin(gaussian_score, x, log_q, 0.1, 2, [ones])
    with pytest.raises(ValueError, match="not negative, and numbers; got variance"):
        chains.langevin(gaussian_score, x, log_q, 0.1, 1, None)
    with pytest.raises(ValueError, match="velocity has shape"):
        chains.hamiltonian(gaussian_score, x, ones[:1], log_q, 0.1, 1)
