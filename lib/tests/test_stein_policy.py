"""What SQL and S2AC share: the critics as a landscape and the start law, against autograd and closed forms."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

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
