"""The law of S2AC's particles before their first step: its density, its cut, the density of squashed actions."""

import pytest
import torch
from scipy import stats

from softpolicy import nets
from softpolicy import streams as rng

O, A, M = 5, 2, 4


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def start(covariance, n_act=A, **kw):
    return nets.StartLaw(O, n_act, (8, 8), rng.generators([0, 1], "start"), covariance, **kw).double()


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full", "none"])
def test_start_law_is_the_gaussian_it_says(covariance):
    law = start(covariance, n_act=3, std_range=(0.3, 0.9))
    obs, z = 5 * numbers(0, 2, 6, O), numbers(1, 2, 6, M, 3)
    u, log_q, (mean, spread) = law.sample(obs, z)
    mu, std, lower = law(obs)
    t = torch.diag_embed(std) @ (torch.eye(3).double() if lower is None else lower)
    exact = torch.distributions.MultivariateNormal(mu.unsqueeze(2), scale_tril=t.unsqueeze(2))
    torch.testing.assert_close(log_q, exact.log_prob(u))
    torch.testing.assert_close(u, mu.unsqueeze(2) + (t.unsqueeze(2) @ z.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(spread.squeeze(2), (t @ t.transpose(-1, -2)).diagonal(dim1=-2, dim2=-1).sqrt())
    assert torch.equal(mean.squeeze(2), mu)
    assert (std == 0.5).all() if covariance == "none" else ((0.3 <= std) & (std <= 0.9 + 1e-12)).all()
    free = {"isotropic": 1, "diagonal": 3, "full": 3, "none": 1}[covariance]
    assert len(std[0, 0].unique()) <= free and (lower is not None) == (covariance == "full")
    cut = law.sample(obs, z, 3.0)[1]
    torch.testing.assert_close(cut - log_q, torch.full_like(log_q, 3 * 0.0027037), atol=1e-6, rtol=0)


def test_standard_deviations_are_clipped_into_the_range():
    law = start("diagonal")
    law.body.layers[-1].bias.data[..., A:] = torch.tensor([-50.0, 50.0])
    std = law(numbers(0, 2, 4, O))[1]
    assert std[..., 0].unique().item() == pytest.approx(0.1) and std[..., 1].unique().item() == pytest.approx(1.0)


def test_cut_normal_numbers_have_the_law_and_stay_inside():
    u = rng.uniform(rng.generators([0], "u"), 20_000)[0]
    z = nets.cut_normal(u, 3.0)
    assert stats.kstest(z.double().numpy(), stats.truncnorm(-3, 3).cdf).pvalue > 1e-3
    edges = nets.cut_normal(torch.tensor([0.0, 0.5, 1 - 2**-24]), 3.0)
    torch.testing.assert_close(edges, torch.tensor([-3.0, 0.0, 3.0]), atol=1e-4, rtol=0)
    assert nets.cut_normal(u, 1.0).abs().max() <= 1.0001


@pytest.mark.parametrize("truncation", ["none", "initial"])
def test_the_density_of_actions_integrates_to_one(truncation):
    """pi(a) over a = tanh(u), one action coordinate, no SVGD step."""
    law = start("diagonal", n_act=1)
    cut = 3.0 if truncation == "initial" else None
    z = torch.linspace(-(cut or 8.0), cut or 8.0, 4001).double().view(1, 1, -1, 1).expand(2, 1, -1, 1)
    u, log_q, _ = law.sample(numbers(0, 2, 1, O), z, cut)
    log_pi = log_q - nets.log_det_tanh(u).sum(-1)
    mass = torch.trapezoid(log_pi.exp(), u.tanh().squeeze(-1), dim=-1)
    torch.testing.assert_close(mass, torch.ones_like(mass), atol=1e-3, rtol=0)


def test_squash_term_is_exact_and_finite():
    u = torch.linspace(-5, 5, 1001).double()
    torch.testing.assert_close(nets.log_det_tanh(u), torch.log(1 - u.tanh() ** 2), atol=1e-9, rtol=0)
    assert torch.isfinite(nets.log_det_tanh(torch.tensor([-50.0, 50.0]))).all()
