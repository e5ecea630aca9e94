"""Entropies from SVGD's closed form and from chains, against closed forms and the figures of S2AC's notebook."""

import math

import pytest
import torch
from svgd_checks import COVARIANCE, MEAN, gaussian_entropy, gaussian_score, gaussian_start, normal

from softpolicy import entropy_chains as chains
from softpolicy.svgd import svgd


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


@pytest.mark.parametrize("bad", [(0.0, 1, "trace"), (0.1, 0, "trace"), (0.1, 1, "det")])
def test_chains_refuse_bad_input(bad):
    x, log_q = gaussian_start(0, 3)
    with pytest.raises(ValueError, match="must be"):
        chains.deterministic_langevin(gaussian_score, x, log_q, *bad)


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
