"""What SQL and S2AC share: the critics as a landscape and the start law, against autograd and closed forms."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from softpolicy import nets
from softpolicy import stein_policy as sp
from softpolicy import streams as rng

O, A, B, M = 5, 2, 8, 4


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def critic(seeds=(0,), n_obs=O, n_act=A, width=8, activation=F.elu, members=2):
    streams = rng.generators(seeds, "test")
    return nets.Critic(n_obs, n_act, (width, width), streams, members, activation).double()


@settings(max_examples=20, deadline=None)
@given(s=st.integers(1, 3), e=st.integers(1, 3), b=st.integers(1, 3), m=st.integers(1, 4), n_act=st.integers(1, 4),
       activation=st.sampled_from([F.elu, F.relu]))  # fmt: skip
def test_landscape_is_the_smallest_critic_and_its_gradient(s, e, b, m, n_act, activation):
    c = critic(range(s), n_act=n_act, activation=activation, members=e)
    obs, action = numbers(s, s, b, O), numbers(b, s, b, m, n_act).requires_grad_()
    q = c(obs.repeat_interleave(m, 1), action.flatten(1, 2)).amin(1).view(s, b, m)
    (slow,) = torch.autograd.grad(q.sum(), action)
    landscape = sp.Landscape(c, obs, m)
    torch.testing.assert_close(landscape.value(action), q)
    torch.testing.assert_close(landscape.gradient(action), slow)
    still = action.detach()  # the weights are constants: no graph without a moving action
    assert not landscape.value(still).requires_grad and not landscape.gradient(still).requires_grad


def test_landscape_can_be_differentiated_twice_more_with_elu_and_is_piecewise_linear_with_relu():
    obs, action = numbers(0, 1, 3, O), numbers(1, 1, 3, M, A).requires_grad_()
    smooth, kinked = (sp.Landscape(critic(activation=f), obs, M) for f in (F.elu, F.relu))
    assert torch.autograd.gradcheck(smooth.value, action)
    assert torch.autograd.gradcheck(smooth.gradient, action)
    assert torch.autograd.gradgradcheck(smooth.gradient, action)
    hessian = [torch.autograd.grad(f.gradient(action).square().sum(), action)[0] for f in (smooth, kinked)]
    assert (hessian[0] != 0).all() and (hessian[1] == 0).all()


def test_elu_and_its_slope_are_torchs_and_can_be_differentiated_again():
    z, g = 3 * numbers(0, 50), numbers(1, 50)
    assert torch.allclose(sp.Elu.apply(z), F.elu(z), rtol=0, atol=1e-15)
    torch.testing.assert_close(sp.Elu.apply(z.float()), F.elu(z.float()), rtol=0, atol=2e-7)
    extremes = torch.tensor([-1e30, -1e3, 0.0, 1e-30, 1e3, 1e30])
    assert torch.equal(sp.Elu.apply(extremes), F.elu(extremes)) and sp.Elu.apply(torch.tensor(torch.nan)).isnan()
    z, g = z.requires_grad_(), g.requires_grad_()
    both = lambda z, g: sp.EluBack.apply(g, sp.Elu.apply(z))  # noqa: E731
    assert torch.autograd.gradcheck(both, (z, g)) and torch.autograd.gradgradcheck(both, (z, g))


@pytest.mark.parametrize("activation", [F.elu, F.relu])
def test_landscape_in_single_precision_agrees_with_double_to_rounding(activation):
    """In single precision and with so many rows, on a CPU, the products are oneDNN's."""
    c = critic((0, 1), width=32, activation=activation)
    obs, action, v = numbers(0, 2, 40, O), numbers(1, 2, 40, M, A), numbers(2, 2, 40, M, A)
    results = []
    for dtype in (torch.float64, torch.float32):
        a = action.to(dtype).requires_grad_()
        landscape = sp.Landscape(c.to(dtype), obs.to(dtype), M)
        g = landscape.gradient(a)
        (hv,) = torch.autograd.grad((g * v.to(dtype)).sum() + landscape.value(a).sum(), a)
        results.append([x.double() for x in (landscape.value(a), g, hv)])
    for double, single in zip(*results, strict=True):
        torch.testing.assert_close(single, double, atol=1e-5, rtol=1e-4)


# --- the start law


def start(covariance, n_act=A, **kw):
    return sp.StartLaw(O, n_act, (8, 8), rng.generators([0, 1], "start"), covariance, **kw).double()


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
    z = sp.cut_normal(u, 3.0)
    assert stats.kstest(z.double().numpy(), stats.truncnorm(-3, 3).cdf).pvalue > 1e-3
    edges = sp.cut_normal(torch.tensor([0.0, 0.5, 1 - 2**-24]), 3.0)
    torch.testing.assert_close(edges, torch.tensor([-3.0, 0.0, 3.0]), atol=1e-4, rtol=0)
    assert sp.cut_normal(u, 1.0).abs().max() <= 1.0001


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
