"""The noise-conditioned critic: values, action gradients, codes and sizes against autograd and known numbers."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from softpolicy import nets
from softpolicy import streams as rng

O, A, B = 5, 2, 16


def critic(seeds=(0,), levels=10, hidden=(16, 16, 16), dtype=torch.float64, n_obs=O, n_act=A, **kw):
    return nets.LevelCritic(n_obs, n_act, hidden, rng.generators(seeds, "test"), levels, **kw).to(dtype)


def test_mish_and_its_slope():
    z = torch.cat((torch.linspace(-50, 50, 2001), torch.tensor([-1e4, 1e4]))).double().requires_grad_()
    (slope,) = torch.autograd.grad(F.mish(z).sum(), z)
    ours = nets.mish_and_slope(z.detach())
    torch.testing.assert_close(ours[0], F.mish(z), atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(ours[1], slope, atol=1e-14, rtol=1e-12)
    single = nets.mish_and_slope(z.detach().float())
    for a, b in zip(single, ours, strict=True):
        assert ((a - b).abs() <= 1e-6 * (1 + b.abs())).all()
    assert torch.autograd.gradcheck(nets.mish, torch.randn(7, dtype=torch.float64, requires_grad=True))


def plain_value(c, s, e, obs, action, level):
    """One critic of one seed by torch's own layers."""
    x = [obs[s], action[s]]
    if c.levels:
        h = c.codes[level[s]]
        first, second = c.embed.layers
        h = F.mish(h @ first.weight[s, e] + first.bias[s, e]) @ second.weight[s, e] + second.bias[s, e]
        x.append(F.mish(h) if c.variant == "flow-rl" else h)
    x = torch.cat(x, -1)
    for layer in c.body.layers[:-1]:
        x = F.mish(x @ layer.weight[s, e] + layer.bias[s, e])
    return (x @ c.body.layers[-1].weight[s, e] + c.body.layers[-1].bias[s, e]).squeeze(-1)


@settings(max_examples=40, deadline=None)
@given(
    s=st.integers(1, 3), b=st.integers(1, 4), n_obs=st.integers(1, 6), n_act=st.integers(1, 5), data=st.data(),
    levels=st.integers(0, 10), width=st.integers(1, 9), depth=st.integers(1, 3),
)  # fmt: skip
def test_value_and_action_gradient_agree_with_autograd_sample_by_sample(s, b, n_obs, n_act, data, levels, width, depth):
    variant = data.draw(st.sampled_from(["authors", "flow-rl"]))
    c = critic(range(s), levels, (width,) * depth, n_obs=n_obs, n_act=n_act, variant=variant)
    obs, action = torch.randn(s, b, n_obs).double(), torch.randn(s, b, n_act).double()
    gradient = c.action_gradient(obs)
    for level in data.draw(st.lists(st.integers(0, max(levels - 1, 0)), min_size=1, max_size=3)):
        number = torch.full((s, b), level)
        q = c(obs, action, number)
        torch.testing.assert_close(q, c(obs, action, level))
        fast = gradient(action, level)
        for i in range(s):
            for j in range(b):
                a = action[i, j].clone().requires_grad_()
                moved = action.clone()
                moved[i, j] = a
                values = torch.stack([plain_value(c, i, e, obs, moved, number)[j] for e in range(2)])
                torch.testing.assert_close(values, q[i, :, j])
                (slow,) = torch.autograd.grad(values.sum(), a)
                assert (fast[i, j] - slow).abs().max() < 1e-10
    assert all(p.grad is None for p in c.parameters())


@pytest.mark.parametrize("wide_cpu", [False, True])
def test_wide_layers_in_single_precision_give_the_same_gradient(monkeypatch, wide_cpu):
    """256 units and as many rows take another product (`device.affine`) than small layers do where it is faster."""
    monkeypatch.setattr("softpolicy.device.WIDE", wide_cpu)
    wide, exact = (critic((0, 1), hidden=(256, 256, 256), dtype=t) for t in (torch.float32, torch.float64))
    obs, action = torch.randn(2, 256, O).double(), torch.rand(2, 256, A).double()
    a, b = (c.action_gradient(obs.to(t))(action.to(t), 3) for c, t in ((wide, torch.float32), (exact, torch.float64)))
    torch.testing.assert_close(a.double(), b, atol=1e-5 * b.abs().max().item(), rtol=0)


def test_actions_of_another_shape_are_refused():
    c, obs = critic((0, 1)), torch.zeros(2, 3, O).double()
    for action in (torch.zeros(2, 3, A + 1), torch.zeros(2, 4, A), torch.zeros(1, 3, A)):
        with pytest.raises(ValueError, match="must have shape"):
            c(obs, action.double(), 0)
        with pytest.raises(ValueError, match="must have shape"):
            c.action_gradient(obs)(action.double(), 0)
    with pytest.raises(ValueError, match="this critic has 10 noise levels; give one, from 0 to 9"):
        c(obs, torch.zeros(2, 3, A).double())


def test_level_embedding_has_the_authors_numbers():
    e = nets.level_embedding(10)
    assert torch.equal(e[0], torch.tensor([0.0] * 8 + [0.25] * 8))
    torch.testing.assert_close(e[1, :3], torch.tensor([0.21037, 0.07775, 0.02496]), atol=6e-6, rtol=0)
    torch.testing.assert_close(e[1, 8:10], torch.tensor([0.13508, 0.23760]), atol=6e-6, rtol=0)
    torch.testing.assert_close(e.norm(dim=1), torch.full((10,), math.sqrt(0.5)), atol=1e-5, rtol=0)
    torch.testing.assert_close(nets.level_embedding(10, "flow-rl").norm(dim=1), torch.full((10,), math.sqrt(8)))


@pytest.mark.parametrize(
    ("n_obs", "n_act", "expected"),
    [(17, 6, 143_153), (105, 8, 0), (11, 3, 140_849), (376, 17, 237_873), (8, 2, 139_825), (27, 8, 146_225)],
)
def test_parameter_counts_of_one_critic(n_obs, n_act, expected):
    """HalfCheetah and Walker2d, Hopper, Humanoid-v4, Swimmer, Ant-v4; v5's Ant follows from the first layer."""
    expected = expected or 143_153 + 256 * (105 + 8 - 17 - 6)
    c = nets.LevelCritic(n_obs, n_act, (256,) * 3, rng.generators([0], "init"), levels=10)
    assert sum(p.numel() for p in c.parameters()) == 2 * expected
    plain = nets.LevelCritic(17, 6, (256,) * 3, rng.generators([0], "init"))
    assert sum(p.numel() for p in plain.parameters()) == 2 * 137_985


def test_initialisation_is_a_normal_cut_at_two_scales():
    c = nets.LevelCritic(17, 6, (256,) * 3, rng.generators([0], "init"), levels=10)
    for layer in [*c.embed.layers, *c.body.layers]:
        assert layer.weight.abs().max() <= 2 / math.sqrt(layer.weight.shape[2])
        assert (layer.bias == 0).all()
    assert c.body.layers[1].weight.std().item() == pytest.approx(0.0550, rel=0.01)
