"""SVGD and its closed-form density: explicit sums, finite differences, autograd's log-determinants."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from svgd_checks import COVARIANCE, gaussian_score, gaussian_start, normal

from softpolicy import svgd as stein
from softpolicy.svgd import svgd


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


@pytest.mark.parametrize("rule", stein.RULES)
@pytest.mark.parametrize("m", range(2, 8))
def test_rules_that_take_a_particles_distance_to_itself_are_refused(m, rule):
    x = normal(0, m, 2)
    if stein.squared_bandwidth(torch.cdist(x, x) ** 2, rule) > 1e-12:
        svgd(gaussian_score, x, 0.1, 1, bandwidth=rule)
        return
    with pytest.raises(ValueError, match=f"the bandwidth rule {rule} is zero for fewer than . particles, got {m}"):
        svgd(gaussian_score, x, 0.1, 1, bandwidth=rule)
    svgd(gaussian_score, x, 0.1, 1, bandwidth=rule, floor=0.1, check=False)


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


def test_positions_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match="positions have 3 dimensions and sources 2"):
        stein.pairs(normal(0, 4, 3), normal(1, 4, 2))
