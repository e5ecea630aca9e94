"""EDM against what is known without it: Gaussians and two points, whose optimal denoisers have closed forms, plain
single-seed versions of network, training and sampler, and the numbers of the specification."""

import math

import pytest
import torch
from diffusion_checks import AXES, LAMBDA, MU, gaussian_denoiser, plain_network, streams
from hypothesis import given, settings
from hypothesis import strategies as st

from softpolicy import diffusion
from softpolicy import streams as rng
from softpolicy.diffusion import EDM, Denoiser, Training, denoise, loss, sample

SMALL = Training(width=16, blocks=1, steps=30, batch=32)
PLAIN = EDM(s_churn=0)


# --- the network and its preconditioning


def parameters(n_dims, width, blocks, embed=128, frequencies=8):
    pairs = [(n_dims, embed), (1 + 2 * frequencies, embed), (embed, embed), (embed, width), (width, n_dims)]
    return sum((a + 1) * b for a, b in [*pairs, *[(width, width)] * blocks])


def test_parameter_counts_are_those_of_the_released_network():
    """Hopper, Swimmer, HalfCheetah and Walker2d, Ant, Humanoid: rows of 2 O + A + 2 numbers."""
    small = Denoiser(5, 12, 3, streams(0, 1))
    assert sum(p.numel() for p in small.parameters()) == 2 * parameters(5, 12, 3)
    shapes = [(11, 3), (8, 2), (17, 6), (111, 8), (376, 17)]
    counts = [parameters(2 * o + a + 2, Training().width, Training().blocks) for o, a in shapes]
    assert counts == [25_520_027, 25_504_788, 25_552_682, 25_966_312, 27_139_715]


def test_denoiser_is_the_released_network_of_each_seed():
    net = Denoiser(3, 10, 2, streams(0, 1))
    x, t = torch.randn(2, 200, 3), torch.randn(2, 200)
    out = net(x, t)
    for s in range(2):
        torch.testing.assert_close(out[s], plain_network(net, s, x[s], t[s]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net(x, t[:, :1]), net(x, t[:, :1].expand(2, 200)))
    assert not net.w.requires_grad and not torch.equal(net.w[0], net.w[1])


@pytest.mark.parametrize(("rows", "dtype"), [(3, torch.float64), (130, torch.float32)])  # by torch; by oneDNN
def test_the_networks_gradients_are_those_of_autograd(rows, dtype):
    net = Denoiser(3, 130, 2, streams(0), embed=6).to(dtype)
    x, t = torch.randn(1, rows, 3, dtype=dtype, requires_grad=True), torch.randn(1, rows, dtype=dtype)
    inputs = [x, *net.parameters()]
    fast = torch.autograd.grad(net(x, t).square().mean(), inputs)
    slow = torch.autograd.grad(plain_network(net, 0, x[0], t[0]).square().mean(), inputs)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@given(sigma=st.floats(1e-3, 100), sd=st.floats(0.1, 10))
def test_preconditioning_gives_input_and_target_unit_variance_and_every_level_the_same_weight(sigma, sd):
    """What the four factors and the loss weight are chosen for: EDM, appendix B.6."""
    edm, s = EDM(sigma_data=sd), torch.tensor(sigma, dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = diffusion.precondition(s, edm)
    assert c_in**2 * (sd**2 + sigma**2) == pytest.approx(1)
    assert ((1 - c_skip) ** 2 * sd**2 + c_skip**2 * sigma**2) / c_out**2 == pytest.approx(1)
    assert c_noise == pytest.approx(math.log(sigma) / 4)
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)  # error of a network F = 1 that should have been 0: c_out
    one_off = loss(lambda x, sigma: zero + c_out, zero, s.view(1, 1), zero, edm)[0]
    assert one_off.item() == pytest.approx(1)


def test_at_the_smallest_noise_the_denoiser_hardly_moves_a_row():
    net, x, edm = Denoiser(4, 16, 2, streams(0)).double(), 3 * torch.randn(1, 50, 4, dtype=torch.float64), EDM()
    sigma = torch.full((1, 1), edm.sigma_min).double()
    moved = (denoise(net, x, sigma, edm) - x).abs()
    f = net(x / math.sqrt(1 + 0.002**2), sigma.log() / 4)
    assert (moved <= 0.002 * f.abs() + 4e-6 * x.abs() + 1e-12).all() and moved.max() > 1e-4


# --- levels and sampler


def test_levels_and_churn_of_the_specification():
    sigmas = diffusion.levels(128, EDM())
    assert len(sigmas) == 129 and sigmas[-1] == 0
    assert (sigmas[0], sigmas[127]) == pytest.approx((80, 0.002))
    assert all(a > b for a, b in zip(sigmas[:-1], sigmas[1:], strict=True))
    roots = [s ** (1 / 7) for s in sigmas[:-1]]
    gaps = [a - b for a, b in zip(roots[:-1], roots[1:], strict=True)]
    assert gaps == pytest.approx([gaps[0]] * 127)
    assert [diffusion.churn(s, 128, EDM()) for s in (50.01, 50, 0.05, 0.049)] == pytest.approx(
        [0, 0.4142, 0.4142, 0], abs=1e-4
    )
    assert diffusion.churn(1, 1000, EDM()) == pytest.approx(0.08)
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        diffusion.levels(1, EDM())


def plain_sampler(denoiser, noise, edm, steps):
    """Algorithm 2 for one row `[D]`, written out; noise `[1 + steps, D]`, of which unchurned levels use none."""
    t = [(edm.sigma_max ** (1 / 7) + i / (steps - 1) * (edm.sigma_min ** (1 / 7) - edm.sigma_max ** (1 / 7))) ** 7
         for i in range(steps)] + [0]  # fmt: skip
    noise = iter(noise)
    x = next(noise) * t[0]
    for i in range(steps):
        gamma = min(edm.s_churn / steps, 2**0.5 - 1) if edm.s_tmin <= t[i] <= edm.s_tmax else 0
        t_hat = t[i] + gamma * t[i]
        x_hat = x + (t_hat**2 - t[i] ** 2) ** 0.5 * edm.s_noise * next(noise) if gamma else x
        d = (x_hat - denoiser(x_hat, t_hat)) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            x = x_hat + (t[i + 1] - t_hat) * (0.5 * d + 0.5 * (x - denoiser(x, t[i + 1])) / t[i + 1])
    return x


@settings(max_examples=15, deadline=None)
@given(s=st.integers(1, 2), n=st.integers(1, 3), d=st.integers(1, 3), steps=st.integers(2, 20), churn=st.booleans())
def test_sampler_is_algorithm_2_row_by_row(s, n, d, steps, churn):
    edm, noise = EDM() if churn else PLAIN, torch.randn(1 + steps, s, n, d, dtype=torch.float64)
    denoiser = lambda x, sigma: (x / (1 + sigma**2)).sin()  # noqa: E731
    rows = sample(lambda x, sigma: denoiser(x, sigma[..., None]), noise, edm, steps)
    for i in range(s):
        for j in range(n):
            torch.testing.assert_close(rows[i, j], plain_sampler(denoiser, noise[:, i, j], edm, steps))


def test_sampler_calls_the_network_255_times():
    calls = []
    sample(lambda x, sigma: calls.append(sigma) or x, rng.normals(streams(0), 2, 1), EDM())
    assert len(calls) == 255 and {tuple(sigma.shape) for sigma in calls} == {(1, 1)}


def test_the_sampler_without_churn_follows_the_flow_of_a_gaussian_to_second_order():
    """The flow scales each principal axis by sqrt(lambda / (lambda + 80^2)) from the start to the end."""
    noise = AXES.T[None, None]
    end = MU + ((80 * AXES.T - MU) @ AXES * (LAMBDA / (LAMBDA + 80**2)).sqrt()) @ AXES.T
    errors = [(sample(gaussian_denoiser, noise, PLAIN, n) - end).abs().max().item() for n in (32, 64, 128)]
    assert errors[2] < 1e-3
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([4, 4], rel=0.1)


def sampled_variance(steps, edm):
    """Variances along the axes of what the sampler makes with `gaussian_denoiser`, under which its steps are linear."""
    variance, sigmas = torch.full((3,), edm.sigma_max**2).double(), diffusion.levels(steps, edm)
    for sigma, lower in zip(sigmas[:-1], sigmas[1:], strict=True):
        raised = sigma * (1 + diffusion.churn(sigma, steps, edm))
        variance = variance + (raised**2 - sigma**2) * edm.s_noise**2
        slope = raised / (LAMBDA + raised**2)
        there = lower / (LAMBDA + lower**2) * (1 + (lower - raised) * slope) if lower else slope
        variance = variance * (1 + (lower - raised) * (slope + there) / 2) ** 2
    return variance


@pytest.mark.parametrize(("edm", "steps", "excess"), [(EDM(), 128, 0.03), (EDM(), 32, 0.13), (PLAIN, 32, 0.04)])
def test_the_sampler_makes_the_gaussian_whose_denoiser_it_is_given(edm, steps, excess):
    """Up to the error of its steps, known from a linear recursion: all variances come out a little too large."""
    n = 20_000
    variance = sampled_variance(steps, edm)
    assert (variance / LAMBDA - 1).abs().max() < excess
    rows = sample(gaussian_denoiser, rng.normals(streams(0), n, 3, dtype=torch.float64), edm, steps)[0]
    along = (rows - MU) @ AXES
    start = -(MU @ AXES) * (LAMBDA / (LAMBDA + 80**2)).sqrt()  # the start is centred on 0 and not on mu
    assert ((along.mean(0) - (0 if edm.s_churn else start)).abs() < 4 * (variance / n).sqrt()).all()
    assert (along.var(0) / variance - 1).abs().max() < 4 * math.sqrt(2 / n)
    assert torch.corrcoef(along.T).triu(1).abs().max() < 4 / math.sqrt(n)


@pytest.mark.parametrize("edm", [EDM(), PLAIN])
def test_the_sampler_returns_the_two_points_of_a_two_point_table(edm):
    points = torch.tensor([[1.0, 0.0], [-0.5, 0.7]]).double()

    def denoiser(x, sigma):
        return torch.softmax(-torch.cdist(x, points[None]).square() / (2 * sigma[..., None] ** 2), -1) @ points

    rows = sample(denoiser, rng.normals(streams(0), 4000, 2, dtype=torch.float64), edm, 64)
    distance, which = torch.cdist(rows, points[None]).min(-1)
    assert distance.max() < 1e-3
    assert which.double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))


# --- the loss


def test_the_loss_of_a_gaussian_is_smallest_at_its_optimal_denoiser_and_has_the_closed_form_value():
    n, edm, g = 100_000, EDM(), streams(0)
    x = MU + rng.normal(g, n, 3, dtype=torch.float64) * LAMBDA.sqrt() @ AXES.T
    sigma, noise = diffusion.training_levels(g, n, edm).double(), rng.normal(g, n, 3, dtype=torch.float64)
    value = lambda denoiser: loss(denoiser, x, sigma, noise, edm)[0].item()  # noqa: E731
    s = sigma[..., None]
    left = (1 + s**2) / s**2 * (LAMBDA * s**2 / (LAMBDA + s**2))  # weight times the variance that no denoiser removes
    best = value(gaussian_denoiser)
    assert best == pytest.approx(left.mean().item(), rel=0.01)
    for other in (lambda x, s: gaussian_denoiser(x, 1.1 * s), lambda x, s: gaussian_denoiser(x, 0.9 * s),
                  lambda x, s: gaussian_denoiser(x, s) + 0.05 * s[..., None], lambda x, s: x):  # fmt: skip
        assert value(other) > best + 0.001


def test_the_loss_is_a_sum_over_seeds_of_means_and_its_noise_levels_are_log_normal():
    edm, x, noise = EDM(), torch.randn(3, 7, 2), torch.randn(3, 7, 2)
    sigma = diffusion.training_levels(streams(0, 1, 2), 7, edm)
    total, info = loss(lambda x, sigma: 0 * x, x, sigma, noise, edm)
    alone = [loss(lambda x, sigma: 0 * x, *(v[i : i + 1] for v in (x, sigma, noise)), edm)[0] for i in range(3)]
    torch.testing.assert_close(info["diffusion_loss"], torch.stack(alone))
    torch.testing.assert_close(total, sum(alone))
    many = diffusion.training_levels(streams(0), 40_000, edm).log()
    assert many.mean().item() == pytest.approx(-1.2, abs=4 * 1.2 / 200)
    assert many.std().item() == pytest.approx(1.2, rel=4 / math.sqrt(2 * 40_000))
