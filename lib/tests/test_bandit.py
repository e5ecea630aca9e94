"""The bandit against what is known in closed form, and against its own identities."""

import math

import pytest
import torch

from softpolicy import bandit


@pytest.fixture(scope="module")
def r():
    return bandit.reward(bandit.grid(200))


def test_reward_at_centres_and_far_away():
    at_centres = bandit.reward(bandit.CENTRES)
    torch.testing.assert_close(at_centres, bandit.HEIGHTS, atol=1e-4, rtol=0)  # bumps hardly overlap
    assert bandit.reward(torch.zeros(3, 5, 2)).shape == (3, 5)
    assert bandit.reward(torch.zeros(2)) < 1e-6


def test_reward_gradient_is_the_closed_form():
    a = bandit.CENTRES[3].clone() + torch.tensor([0.05, -0.1])
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(bandit.reward(a), a)
    by_hand = -(a - bandit.CENTRES[3]) / bandit.WIDTH**2 * bandit.reward(a)
    torch.testing.assert_close(gradient, by_hand, atol=0.05, rtol=0)  # the neighbours add a little


def test_reward_keeps_the_dtype_of_actions():
    assert bandit.reward(torch.zeros(2)).dtype == torch.float32


def test_wrong_width_is_refused():
    with pytest.raises(ValueError, match="2 coordinates"):
        bandit.reward(torch.zeros(4, 3))


def test_grid_integrates_polynomials():
    points = bandit.grid(400)
    torch.testing.assert_close(bandit.integral(torch.ones(400, 400)), torch.tensor(4.0))
    assert bandit.integral(points[..., 0] ** 2).item() == pytest.approx(4 / 3, rel=1e-5)
    assert (points[1:, :, 0] > points[:-1, :, 0]).all()  # the first axis is the first coordinate


def test_log_partition_of_a_linear_reward():
    """Z of exp((x + 2 y) / alpha) factorises into two hyperbolic sines."""
    points, alpha = bandit.grid(800), 0.5
    z = [2 * alpha / k * math.sinh(k / alpha) for k in (1, 2)]
    value = bandit.log_partition(points @ torch.tensor([1.0, 2.0], dtype=torch.float64), alpha)
    assert value.item() == pytest.approx(math.log(z[0] * z[1]), abs=1e-4)


def test_log_partition_does_not_overflow(r):
    assert 1e-4 * bandit.log_partition(r, 1e-4).item() == pytest.approx(1.0, abs=0.01)  # tends to the maximum


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(r, alpha):
    with pytest.raises(ValueError, match="positive"):
        bandit.boltzmann(r, alpha)


# Inverse temperature, mean reward, effective modes, share within two widths of a centre; 2000 x 2000 cells.
REFERENCE = [
    (1, 0.198, 7.99, 0.447),
    (5, 0.532, 7.40, 0.846),
    (10, 0.798, 5.50, 0.994),
    (20, 0.915, 2.98, 1.000),
    (50, 0.975, 1.38, 1.000),
]


@pytest.mark.parametrize("w, mean, modes, near", REFERENCE)
def test_boltzmann_against_a_finer_quadrature(r, w, mean, modes, near):
    p = bandit.boltzmann(r, 1 / w)
    assert bandit.integral(p).item() == pytest.approx(1)
    assert bandit.integral(p * r).item() == pytest.approx(mean, abs=2e-3)
    assert bandit.effective_modes(bandit.mode_masses(p)).item() == pytest.approx(modes, abs=2e-2)
    assert 1 - bandit.mode_masses(p)[-1].item() == pytest.approx(near, abs=5e-3)


def test_the_identity_behind_soft_policies(r):
    """J(pi) = alpha log Z - alpha KL(pi || pi*), for any pi."""
    alpha, generator = 0.1, torch.Generator().manual_seed(0)
    policies = bandit.boltzmann(torch.randn(5, 200, 200, dtype=torch.float64, generator=generator), 1.0)
    optimum = bandit.boltzmann(r, alpha)
    best = alpha * bandit.log_partition(r, alpha)
    value, divergence = bandit.objective(policies, r, alpha), bandit.kl(policies, optimum)
    torch.testing.assert_close(value, best - alpha * divergence)
    torch.testing.assert_close(bandit.objective(optimum, r, alpha), best)


def test_distances(r):
    p, uniform = bandit.boltzmann(r, 0.1), torch.full_like(r, 0.25)
    assert bandit.entropy(uniform).item() == pytest.approx(math.log(4))
    assert bandit.kl(p, p).item() == pytest.approx(0, abs=1e-12)
    assert bandit.kl(p, uniform).item() == pytest.approx(math.log(4) - bandit.entropy(p).item())
    left = (bandit.grid(200)[..., 0] < 0).double() / 2
    assert bandit.total_variation(left, 0.5 - left).item() == pytest.approx(1)
    assert bandit.total_variation(p, p).item() == 0
    assert bandit.kl(uniform, left).isinf()


def test_modes():
    assert bandit.mode_of(bandit.CENTRES).tolist() == list(range(8))
    assert bandit.mode_of(torch.zeros(2)).item() == 8
    uniform = torch.full((400, 400), 0.25, dtype=torch.float64)
    masses = bandit.mode_masses(uniform)
    assert masses.sum().item() == pytest.approx(1)
    disc = math.pi * (2 * bandit.WIDTH) ** 2
    assert masses[0].item() == pytest.approx(disc / 4, rel=1e-2)
    assert bandit.effective_modes(bandit.mode_masses(uniform)).item() == pytest.approx(8, rel=1e-3)


def test_samples_are_described_like_the_density_they_come_from(r):
    """400,000 draws from the grid's cells: every figure within four standard errors of the density's own."""
    w, n = 10.0, 400_000
    p = bandit.boltzmann(r, 1 / w)
    cell = torch.multinomial((p / p.sum()).flatten(), n, True, generator=torch.Generator().manual_seed(0))
    found = bandit.describe(bandit.grid(200).flatten(0, 1)[cell].expand(2, -1, -1), w)
    std = math.sqrt((bandit.integral(p * r * r) - bandit.integral(p * r) ** 2).item())
    assert found["mean"][0].item() == pytest.approx(bandit.integral(p * r).item(), abs=4 * std / math.sqrt(n))
    assert found["std"][1].item() == pytest.approx(std, rel=0.01)
    assert found["modes"][0].item() == pytest.approx(bandit.effective_modes(bandit.mode_masses(p)).item(), abs=0.02)
    assert found["near"][0].item() == pytest.approx(1 - bandit.mode_masses(p)[-1].item(), abs=1e-3)
    assert found["tv"][0].item() < 5e-3 and found["edge"][0].item() == 0


def test_edge_and_total_variation_of_actions_in_one_corner():
    found = bandit.describe(torch.ones(10, 2), 1.0)
    exact = bandit.mode_masses(bandit.boltzmann(bandit.reward(bandit.grid(400)), 1.0))
    assert found["edge"].item() == 1 and found["tv"].item() == pytest.approx(1 - exact[-1].item())


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.5])
def test_smoothed_reward_is_the_posterior_mean(r, sigma):
    """Against quadrature over the clean action, at points in the middle, at an edge and in a corner."""
    clean = bandit.grid(200)
    for a in torch.tensor([[0.0, 0.0], [0.7, 0.1], [1.0, -0.3], [-1.0, 1.0]], dtype=torch.float64):
        weight = torch.exp(-(clean - a).square().sum(-1) / (2 * sigma**2))
        by_hand = (weight * r).sum() / weight.sum()
        assert bandit.smoothed(a, sigma).item() == pytest.approx(by_hand.item(), abs=2e-3)


def test_smoothing_vanishes_with_the_noise(r):
    torch.testing.assert_close(bandit.smoothed(bandit.grid(200), 1e-3), r, atol=2e-4, rtol=0)
