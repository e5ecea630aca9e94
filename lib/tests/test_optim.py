"""aSGLD, SGLD and pSGLD against a loop from the equations and closed forms; their laws are in test_posterior."""

import copy
import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softpolicy import nets, optim
from softpolicy import streams as rng
from softpolicy.optim import AdaptiveLangevin


def streams(seeds=(0,), tag="noise"):
    return rng.generators(seeds, tag)


def parameter(*shape, value=0.0, dtype=torch.float64):
    return torch.full(shape, value, dtype=dtype)


def move(opt, *grads):
    """One step along the gradients; returns how far the first parameter went."""
    (group,) = opt.param_groups
    before = group["params"][0].detach().clone()
    optim.follow(opt, [g.to(p) for g, p in zip(grads, group["params"], strict=True)])
    return group["params"][0].detach() - before


def test_a_loaded_learning_rate_goes_to_the_weights():
    """Checkpoints are read on a CPU; torch by itself would leave a rate that is a tensor there."""
    for opt in (optim.adam([torch.zeros(2, device="meta")], 1e-3), AdaptiveLangevin([parameter(1, 2)], streams())):
        state = opt.state_dict()
        state["param_groups"][0]["lr"] = torch.tensor(1e-3)
        opt.load_state_dict(state)
        (group,) = opt.param_groups
        assert group["lr"].device == group["params"][0].device


# --- the update


def test_first_step_clips_first_has_eps_outside_and_no_bias_correction():
    opt = AdaptiveLangevin([parameter(1, 2)], streams(), noise=0)
    expected = torch.tensor([[-3.58228e-3, -3.72228e-3]], dtype=torch.float64)
    torch.testing.assert_close(move(opt, torch.tensor([[3.0, 4.0]])), expected, atol=1e-7, rtol=0)


def test_constant_gradient_gives_oversized_steps_for_hundreds_of_updates():
    opt = AdaptiveLangevin([parameter(1, 1)], streams(), noise=0, clip=0)
    zeta = [0.0] + [-move(opt, torch.ones(1, 1)).item() / 1e-3 - 1 for _ in range(5_000)]
    for t in (1, 2, 7, 12, 100, 1_000, 5_000):
        assert zeta[t] == pytest.approx((1 - 0.9**t) / math.sqrt(1 - 0.999**t), rel=1e-6)
    assert [zeta[t] for t in (1, 2, 3, 4, 5)] == pytest.approx([3.162, 4.250, 4.950, 5.442, 5.797], abs=1e-3)
    assert [zeta[1_000], max(zeta), zeta.index(max(zeta))] == pytest.approx([1.258, 6.57, 12], abs=2e-3)


def plain_step(psi, grads, state, xi, t, kw):
    """One network: its tensors, gradients, moments and noise, straight from the equations; t counts from 1."""
    length = math.sqrt(sum(float((g * g).sum()) for g in grads))
    factor = min(1, kw["clip"] / (length + 1e-6)) if kw["clip"] else 1
    (b1, b2), eps, eta = kw["betas"], kw["eps"], kw["lr"]
    for k, g in enumerate(grads):
        g = g * factor
        m, v = state[k]
        state[k] = m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        if kw["preconditioned"]:
            gain = 1 / (torch.sqrt(v / (1 - b2**t)) + eps)
            psi[k] = psi[k] - eta * gain * g + kw["noise"] * torch.sqrt(2 * eta * gain) * xi[k]
        else:
            zeta = m / (torch.sqrt(v + eps) if kw["inside"] else torch.sqrt(v) + eps)
            psi[k] = psi[k] - eta * g - eta * kw["bias"] * zeta + kw["noise"] * math.sqrt(2 * eta) * xi[k]


@settings(max_examples=60, deadline=None)
@given(
    lead=st.lists(st.integers(1, 3), min_size=1, max_size=3), data=st.data(), bias=st.sampled_from([0.0, 0.3, 1.0]),
    noise=st.sampled_from([0.0, 0.5]), clip=st.sampled_from([0.0, 0.7, 5.0]), inside=st.booleans(),
    preconditioned=st.booleans(), size=st.sampled_from([1e-3, 1.0, 30.0]), eps=st.sampled_from([1e-8, 1e-2]),
)  # fmt: skip
def test_step_is_a_loop_over_networks(lead, data, bias, noise, clip, inside, preconditioned, size, eps):
    kw = dict(lr=0.1, bias=bias, noise=noise, betas=(0.8, 0.95), eps=eps, clip=clip)
    kw |= dict(inside=inside, preconditioned=preconditioned)
    shapes = data.draw(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    random = lambda: [torch.randn(*lead, *s, dtype=torch.float64, generator=generator) for s in shapes]  # noqa: E731
    networks = list(itertools.product(*map(range, lead)))
    params, copies = random(), streams(range(lead[0]))
    psi = {i: [p[i].clone() for p in params] for i in networks}
    state = {i: [(0.0, 0.0)] * len(shapes) for i in networks}
    opt = AdaptiveLangevin(params, streams(range(lead[0])), lead=len(lead), **kw)
    for t in range(1, 4):
        grads = [size * g for g in random()]
        optim.follow(opt, grads)
        xi = [rng.normal(copies, *p.shape[1:], dtype=torch.float64) for p in params] if noise else grads
        for i in networks:
            plain_step(psi[i], [g[i] for g in grads], state[i], [x[i] for x in xi], t, kw)
    for i in networks:
        for p, x in zip(params, psi[i], strict=True):
            torch.testing.assert_close(p[i], x, atol=1e-12, rtol=1e-10)


def test_clipping_bounds_each_network_by_the_length_of_all_its_gradients():
    g = torch.Generator().manual_seed(0)
    grads = [torch.randn(2, 3, *shape, dtype=torch.float64, generator=g) for shape in ((4, 5), (6,))]
    grads[0][0, 1] *= 1e-3
    grads[1][0, 1] *= 1e-3
    factors = optim.clip_factors(grads, 2, 0.7)
    lengths = torch.cat([x.flatten(2) for x in grads], -1).norm(dim=-1)
    torch.testing.assert_close(factors, (0.7 / (lengths + 1e-6)).clamp(max=1))
    assert factors[0, 1] == 1 and (factors < 1).sum() == 5

    def moved(grads):
        params = [torch.zeros_like(x) for x in grads]
        optim.follow(AdaptiveLangevin(params, streams((0, 1)), lead=2, lr=1.0, bias=0.0, noise=0), grads)
        return params

    once = moved(grads)
    assert torch.cat([x.flatten(2) for x in once], -1).norm(dim=-1).max() <= 0.7
    grads[0][1, 2] *= 100  # another network's gradient
    again = moved(grads)
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1, :2], b[1, :2])


def test_a_seed_moves_as_it_does_alone():
    def trained(seeds, **kw):
        net = nets.MLP((len(seeds), 2), (3, 8, 1), rng.generators(seeds, "init"))
        opt, data = AdaptiveLangevin(net.parameters(), streams(seeds), lead=2, lr=0.01, **kw), streams(seeds, "data")
        for _ in range(5):
            x = rng.normal(data, 1, 6, 3).expand(-1, 2, -1, -1)
            optim.descend(opt, (net(x)[..., 0] - x.sum(-1)).square().mean(-1).sum())
        return list(net.parameters())

    for kw in (dict(noise=0.1), dict(noise=0.1, preconditioned=True)):
        for one, three in zip(trained([3], **kw), trained([1, 3, 5], **kw), strict=True):
            torch.testing.assert_close(one[0], three[1], atol=1e-5, rtol=1e-4)
            assert not torch.allclose(three[0], three[1], atol=1e-2)


def test_a_saved_optimiser_goes_on_as_if_never_stopped():
    grads = torch.randn(8, 1, 5, generator=torch.Generator().manual_seed(0))
    for kw in (dict(noise=0.1), dict(noise=0.1, preconditioned=True)):
        p = parameter(1, 5, value=0.3, dtype=torch.float32)
        opt = AdaptiveLangevin([p], streams(), **kw)
        optim.set_rate(opt, 2e-3)
        for g in grads[:4]:
            move(opt, g)
        q = p.clone()
        other = AdaptiveLangevin([q], streams(), **kw)
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
        rng.restore(other.streams, rng.save(opt.streams))
        for g in grads[4:]:
            move(opt, g), move(other, g)
        assert torch.equal(p, q)


def test_preconditioning_by_a_constant_is_sgld_at_another_rate():
    """With eps far above sqrt(v), G is 1 / eps."""
    g = torch.randn(4, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = AdaptiveLangevin([parameter(1, 6)], streams(), lr=1e5, noise=0.3, clip=0, eps=1e8, preconditioned=True)
    two = AdaptiveLangevin([parameter(1, 6)], streams(), lr=1e-3, noise=0.3, clip=0, bias=0.0)
    for x in g:
        torch.testing.assert_close(move(one, x), move(two, x), atol=1e-9, rtol=1e-6)


# --- the noise


def test_noise_has_the_right_size():
    p = parameter(1, 1_000_000)
    step = move(AdaptiveLangevin([p], streams(), noise=0.02, lr=3e-3, clip=0), torch.zeros_like(p))
    assert step.std().item() == pytest.approx(0.02 * math.sqrt(2 * 3e-3), rel=0.01)


@pytest.mark.filterwarnings("ignore:Langevin noise")
@pytest.mark.parametrize(
    ("noise", "share"),
    [(1e-9, 0.014), (1e-8, 0.13), (1e-7, 0.77), (1e-6, 0.98), (1e-5, 0.997), (1e-4, 1), (1e-2, 1)],
)
def test_share_of_float32_weights_that_feel_the_noise(noise, share):
    net = critic()
    opt = AdaptiveLangevin(net, streams(), noise=noise)
    before = [p.detach().clone() for p in net]
    optim.follow(opt, [torch.zeros_like(p) for p in net])
    changed = sum((p != b).sum().item() for p, b in zip(net, before, strict=True)) / sum(p.numel() for p in net)
    assert changed == pytest.approx(share, abs=0.02 if noise < 1e-7 else 0.01)


def critic():
    """The parameters of one of LSAC's networks, as initialised."""
    return list(nets.MLP((1,), (14, 256, 256, 256, 2), rng.generators([0], "init")).parameters())


def test_noise_below_the_resolution_of_weights_is_reported():
    with pytest.warns(UserWarning, match="rounded away; give a larger noise"):
        AdaptiveLangevin(critic(), streams(), noise=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kw in (dict(noise=1e-3), dict(noise=0), dict(noise=1e-8, preconditioned=True)):
            AdaptiveLangevin(critic(), streams(), **kw)
        AdaptiveLangevin([p.detach().double() for p in critic()], streams(), noise=1e-8)


@pytest.mark.parametrize(("noise", "size", "lost"), [(1e-8, 1.0, True), (1e-8, 1e-6, False), (1e-2, 1.0, False)])
def test_preconditioned_noise_is_looked_at_in_the_first_step(noise, size, lost):
    """Its size is noise sqrt(2 lr / |g|): it is lost to rounding where gradients are large. Later steps say nothing."""
    net = critic()
    opt = AdaptiveLangevin(net, streams(), noise=noise, clip=0, preconditioned=True)
    for k in range(2):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            optim.follow(opt, [torch.full_like(p, size) for p in net])
        assert ["rounded away" in str(w.message) for w in said] == [True] * (lost and k == 0)


# --- helpers and errors


def test_follow_descend_set_rate_and_polyak():
    p, q = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    opt = torch.optim.SGD([p], lr=0.1)
    optim.descend(opt, (3 * p * q).sum())
    assert torch.allclose(p, torch.tensor(0.7)) and q.grad is None
    optim.set_rate(opt, 1.0)
    optim.follow(opt, [torch.full((2,), 0.2)])
    assert torch.allclose(p, torch.tensor(0.5))
    langevin = AdaptiveLangevin([parameter(1, 1)], streams(), noise=0, bias=0.0, clip=0)
    optim.set_rate(langevin, 0.25)
    assert move(langevin, torch.ones(1, 1)).item() == -0.25
    target = [torch.zeros(3)]
    optim.polyak(target, [torch.ones(3)], 0.1)
    optim.polyak(target, [torch.ones(3)], 0.1)
    assert torch.allclose(target[0], torch.tensor(0.19))


@pytest.mark.parametrize(
    "wrong",
    [dict(lr=-1e-3), dict(bias=-1), dict(noise=float("nan")), dict(clip=-0.7), dict(eps=0), dict(betas=(0.9, 1))],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="not negative, eps positive and betas in"):
        AdaptiveLangevin([parameter(1, 1)], streams(), **wrong)


def test_a_step_needs_parameters_and_their_gradients():
    with pytest.raises(ValueError, match="no parameter to move; give at least one"):
        AdaptiveLangevin([], streams())
    p, q = parameter(1, 2), parameter(1, 3)
    opt = AdaptiveLangevin([p, q], streams())
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="1 of 2 parameters have no gradient"):
        opt.step()
    assert not p.any()


def test_each_seed_needs_its_stream():
    with pytest.raises(ValueError, match="one stream a seed"):
        AdaptiveLangevin([parameter(3, 1)], streams())
