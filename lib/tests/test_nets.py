import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from softpolicy import nets
from softpolicy import streams as rng


def one(seeds, *lead_sizes, **kw):
    return nets.MLP((len(seeds),), lead_sizes, rng.generators(seeds, "test"), **kw)


@settings(max_examples=25, deadline=None)
@given(s=st.integers(1, 3), e=st.integers(1, 3), b=st.integers(1, 5), n_in=st.integers(1, 6), n_out=st.integers(1, 6))
def test_linear_is_a_loop_of_plain_linears(s, e, b, n_in, n_out):
    layer = nets.Linear((s, e), n_in, n_out, rng.generators(range(s), "test")).double()
    x = torch.randn(s, e, b, n_in, dtype=torch.float64)
    for i in range(s):
        for j in range(e):
            plain = x[i, j] @ layer.weight[i, j] + layer.bias[i, j]
            torch.testing.assert_close(layer(x)[i, j], plain)


def test_linear_takes_further_axes():
    layer = nets.Linear((2,), 3, 4, rng.generators([0, 1], "test"))
    x = torch.randn(2, 5, 6, 3)
    torch.testing.assert_close(layer(x), layer(x.flatten(1, 2)).unflatten(1, (5, 6)))


@settings(max_examples=15, deadline=None)
@given(s=st.integers(1, 2), e=st.integers(1, 2), b=st.integers(1, 5), n_out=st.integers(1, 3), hidden=st.integers(0, 2))
def test_mlp_is_a_loop_of_plain_networks_with_their_gradients(s, e, b, n_out, hidden):
    """ReLU is applied in place: neither the input nor what the backward pass needs may be overwritten."""
    sizes = (3, *[4] * hidden, n_out)
    net = nets.MLP((s, e), sizes, rng.generators(range(s), "test")).double()
    x = torch.randn(s, e, b, 3, dtype=torch.float64, requires_grad=True)
    weights, before = torch.randn(s, e, b, n_out, dtype=torch.float64), x.detach().clone()
    inputs = [x, *net.parameters()]

    def plain(i, j):
        y = x[i, j]
        for k, layer in enumerate(net.layers):
            y = (y.relu() if k else y) @ layer.weight[i, j] + layer.bias[i, j]
        return y

    loop = torch.stack([torch.stack([plain(i, j) for j in range(e)]) for i in range(s)])
    y = net(x)
    torch.testing.assert_close(y, loop)
    for fast, slow in zip(*(torch.autograd.grad((z * weights).sum(), inputs) for z in (y, loop)), strict=True):
        torch.testing.assert_close(fast, slow)
    assert torch.equal(x.detach(), before)


def test_a_seeds_weights_do_not_depend_on_the_other_seeds():
    alone, among = one([3], 4, 8, 2), one([1, 3, 5], 4, 8, 2)
    for a, b in zip(alone.parameters(), among.parameters(), strict=True):
        assert torch.equal(a[0], b[1])
        assert not torch.equal(b[0], b[1])


def test_default_initialisation_is_that_of_torch():
    big = nets.Linear((1,), 400, 300, rng.generators([0], "test"))
    bound = 1 / math.sqrt(400)
    for p in (big.weight, big.bias):
        assert p.abs().max() <= bound
        assert abs(p.std() - bound / math.sqrt(3)) < 0.05 * bound


def test_initialisation_is_the_callers_choice_and_sees_out_by_in():
    shapes = []
    orthogonal = nn.init.orthogonal_

    def init(weight, stream):
        shapes.append(tuple(weight.shape))
        orthogonal(weight, generator=stream)

    layer = nets.Linear((1, 2), 3, 7, rng.generators([0], "test"), init)
    assert shapes == [(7, 3)] * 2
    gram = layer.weight @ layer.weight.transpose(-1, -2)  # [1, 2, 3, 3]
    torch.testing.assert_close(gram, torch.eye(3).expand(1, 2, 3, 3), atol=1e-5, rtol=0)


def test_gradients_never_mix_between_seeds():
    net = one([0, 1, 2], 3, 5, 1)
    net(torch.randn(3, 4, 3))[1].sum().backward()
    for p in net.parameters():
        assert p.grad[1].abs().sum() > 0
        assert p.grad[0].abs().sum() == p.grad[2].abs().sum() == 0


@given(st.floats(-30, 30))
def test_log_det_tanh_is_the_logarithm_of_the_derivative(u):
    exact = float(2 * mpmath.log(mpmath.sech(u)))
    assert nets.log_det_tanh(torch.tensor(u, dtype=torch.float64)).item() == pytest.approx(exact, rel=1e-14, abs=1e-14)


def test_log_det_tanh_is_exact_far_out():
    u = torch.tensor([-50.0, 50.0])  # log(4 e^(-2|u|)): the naive form is -inf here
    torch.testing.assert_close(nets.log_det_tanh(u), torch.full((2,), math.log(4) - 100.0))


@settings(max_examples=10, deadline=None)
@given(mean=st.floats(-1.5, 1.5), log_std=st.floats(-2, 0.5))
def test_squashed_density_integrates_to_one(mean, log_std):
    """Quadrature of exp(log pi) over (-1, 1): the normalisation that only the right change of variables gives."""
    actor = nets.GaussianActor(1, 1, (4,), rng.generators([0], "test")).double()
    actor.forward = lambda obs: (torch.full_like(obs, mean), torch.full_like(obs, log_std))
    u = torch.linspace(-14, 14, 40_001, dtype=torch.float64)[None, :, None]
    noise = (u - mean) / math.exp(log_std)
    action, log_pi = actor.sample(torch.zeros_like(u), noise)
    assert torch.trapezoid(log_pi.exp().squeeze(), action.squeeze()).item() == pytest.approx(1, abs=1e-3)


def test_log_density_is_the_change_of_variables_of_autograd():
    actor = nets.GaussianActor(3, 2, (8,), rng.generators([0, 1], "test")).double()
    obs, noise = torch.randn(2, 4, 3).double(), torch.randn(2, 4, 2).double()
    action, log_pi = actor.sample(obs, noise)
    for s in range(2):
        for b in range(4):

            def squash(eps, s=s, b=b):
                full = noise.clone()
                full[s, b] = eps
                return actor.sample(obs, full)[0][s, b]

            jacobian = torch.autograd.functional.jacobian(squash, noise[s, b])
            base = torch.distributions.Normal(0.0, 1.0).log_prob(noise[s, b]).sum()
            torch.testing.assert_close(log_pi[s, b], base - torch.linalg.slogdet(jacobian)[1])
    assert action.abs().max() < 1


def test_critic_gives_every_member_its_own_value():
    critic = nets.Critic(3, 2, (8,), rng.generators([0, 1], "test"), members=4)
    obs, action = torch.randn(2, 5, 3), torch.randn(2, 5, 2)
    q = critic(obs, action)
    assert q.shape == (2, 4, 5)
    x = torch.cat([obs, action], -1)
    layers = critic.body.layers
    by_hand = (
        torch.relu(x[1] @ layers[0].weight[1, 3] + layers[0].bias[1, 3]) @ layers[1].weight[1, 3] + layers[1].bias[1, 3]
    )
    torch.testing.assert_close(q[1, 3], by_hand.squeeze(-1))


def test_activation_is_the_callers_choice():
    relu, mish = (one([0], 2, 4, 1, activation=f) for f in (torch.relu, nn.functional.mish))
    x = torch.randn(1, 3, 2)
    layer = relu.layers
    assert not torch.allclose(relu(x), mish(x))
    torch.testing.assert_close(mish(x), layer[1](nn.functional.mish(layer[0](x))))
    assert np.isfinite(mish(x).detach().numpy()).all()


def test_elu_and_its_slope_are_torchs_and_can_be_differentiated_again():
    z, g = 3 * torch.randn(50).double(), torch.randn(50).double()
    assert torch.allclose(nets.Elu.apply(z), F.elu(z), rtol=0, atol=1e-15)
    torch.testing.assert_close(nets.Elu.apply(z.float()), F.elu(z.float()), rtol=0, atol=2e-7)
    extremes = torch.tensor([-1e30, -1e3, 0.0, 1e-30, 1e3, 1e30])
    assert torch.equal(nets.Elu.apply(extremes), F.elu(extremes)) and nets.Elu.apply(torch.tensor(torch.nan)).isnan()
    z, g = z.requires_grad_(), g.requires_grad_()
    both = lambda z, g: nets.EluBack.apply(g, nets.Elu.apply(z))  # noqa: E731
    assert torch.autograd.gradcheck(both, (z, g)) and torch.autograd.gradgradcheck(both, (z, g))


def test_actions_of_the_gaussian_actor_are_its_medians_or_drawn_from_its_law():
    actor = nets.GaussianActor(3, 2, (8,), rng.generators([0, 1], "test")).double()
    obs = rng.normal(rng.generators([0, 1], "obs"), 6, 3).double()
    mean, log_std = actor(obs)
    torch.testing.assert_close(actor.act(obs), mean.tanh())
    z = rng.normal(rng.generators([0, 1], "act"), 6, 2)
    torch.testing.assert_close(actor.act(obs, rng.generators([0, 1], "act")), (mean + log_std.exp() * z).tanh())
