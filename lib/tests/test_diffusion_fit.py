"""Training diffusion models: against a plain loop of one seed, and what training leads to."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from diffusion_checks import AXES, LAMBDA, MU, gaussian_denoiser, plain_network, streams
from hypothesis import given, settings
from hypothesis import strategies as st

from softpolicy import diffusion
from softpolicy import streams as rng
from softpolicy.diffusion import EDM, Denoiser, Training, denoise, fit, generate
from softpolicy.optim import clipped
from softpolicy.replay import Replay

SMALL = Training(width=16, blocks=1, steps=30, batch=32)
PLAIN = EDM(s_churn=0)


def table(seeds, n=300, d=3):
    """Rows that differ between seeds, of scales 1, 5, ..., and a flag as the last column."""
    g = rng.generators(seeds, "rows")
    scale = torch.tensor([5.0**i for i in range(d - 1)])
    return torch.cat((rng.normal(g, n, d - 1) * scale + scale, rng.uniform(g, n, 1).round()), -1)


def plain_fit(rows, stream, config, edm):
    """`fit` on one seed's rows `[N, D]`, flag kept, by torch's own tools: the losses, and the weights of every step."""
    g, n = [stream], len(rows)
    net = Denoiser(rows.shape[1], config.width, config.blocks, diffusion.cpu_streams(g))
    opt = torch.optim.AdamW(net.parameters(), config.lr, (0.9, 0.99), weight_decay=0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(opt, config.steps)
    mean, std = F.pad(rows.mean(0)[:-1], (0, 1)), F.pad(rows.std(0)[:-1] + 1e-5, (0, 1), value=1)
    losses, weights = [], []
    for _ in range(config.steps):
        x = ((rows - mean) / std)[(rng.uniform(g, config.batch, dtype=torch.float64)[0] * n).long()]
        sigma = (edm.p_mean + edm.p_std * rng.normal(g, config.batch)[0]).exp()
        s = sigma[:, None]
        y = x + s * rng.normal(g, *x.shape)[0]
        f = plain_network(net, 0, y / (1 + s**2).sqrt(), sigma.log() / 4)
        d = y / (1 + s**2) + s / (1 + s**2).sqrt() * f
        value = ((1 + sigma**2) / sigma**2 * (d - x).square().mean(1)).mean()
        opt.zero_grad()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip)
        opt.step()
        cosine.step()
        losses.append(value.item())
        weights.append([p.detach().clone() for p in net.parameters()])
    return losses, weights, norm


def test_fit_is_a_plain_training_loop_for_each_seed_and_averages_as_the_released_code():
    """The average holds a copy up to step 110 and is updated at 120 and 130: its closed form has three terms."""
    config, seeds = Training(width=16, blocks=1, steps=140, batch=32, lr=1e-3, clip=0.3), (1, 2)
    model = fit(table(seeds), streams(*seeds), config, EDM(), keep=[-1])
    first, second = 1 - 21 ** (-2 / 3), 1 - 31 ** (-2 / 3)
    for i, seed in enumerate(seeds):
        losses, weights, norm = plain_fit(table(seeds)[i], streams(seed)[0], config, EDM())
        assert norm > config.clip  # else the clipping is not tried
        torch.testing.assert_close(model.losses[:, i], torch.tensor(losses), atol=1e-3, rtol=1e-3)
        for p, *path in zip(model.net.parameters(), *(weights[k] for k in (110, 120, 130)), strict=True):
            expected = second * (first * path[0] + (1 - first) * path[1]) + (1 - second) * path[2]
            torch.testing.assert_close(p[i : i + 1], expected, atol=2e-4, rtol=1e-3)
    assert diffusion.average_decay(2927, 0.995) < diffusion.average_decay(2928, 0.995) == 0.995


def test_a_seed_is_trained_and_sampled_as_if_it_were_alone():
    def rows(*seeds):
        model = fit(table(seeds), streams(*seeds), SMALL, EDM())
        return generate(model, 50, streams(*seeds, tag="new"), 8, chunk=20)

    alone, among = rows(3), rows(1, 3, 5)
    assert among.shape == (3, 50, 3)
    torch.testing.assert_close(alone[0], among[1], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(among[0], among[1], atol=0.1)


@pytest.mark.parametrize("factor", [1e6, math.nan])
def test_what_one_seeds_rows_hold_changes_no_other_seed(factor):
    """With columns as they are, so that one seed's gradients are huge, or not finite, before they are clipped."""

    def outcome(factor):
        rows = table((0, 1)) * torch.tensor([1, factor])[:, None, None]
        model = fit(rows, streams(0, 1), SMALL, EDM(), keep=range(3))
        return model.losses, generate(model, 10, streams(0, 1), 8)

    (losses, rows), (other_losses, other_rows) = outcome(1), outcome(factor)
    assert rows.isfinite().all() and torch.equal(losses[:, 0], other_losses[:, 0])
    assert torch.equal(rows[0], other_rows[0]) and not torch.equal(rows[1], other_rows[1])
    assert other_rows[1].isnan().all() == math.isnan(factor)


def test_rows_and_streams_determine_the_fit():
    losses = [fit(table((0,)), streams(0, tag=tag), SMALL, EDM()).losses for tag in ("a", "a", "b")]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_clipping_is_that_of_torch_seed_by_seed():
    grads = [torch.randn(3, 4, 5) * torch.tensor([0.01, 1, 30])[:, None, None], torch.randn(3, 1, 5)]
    grads[1][0] *= 0.01
    for s, *parts in zip(range(3), *clipped(grads, 1, 1.0), strict=True):
        params = [torch.nn.Parameter(g[s]) for g in grads]
        for p, g in zip(params, grads, strict=True):
            p.grad = g[s].clone()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for p, part in zip(params, parts, strict=True):
            torch.testing.assert_close(part, p.grad)
    assert torch.equal(clipped(grads, 1, 1.0)[0][0], grads[0][0])


@pytest.mark.parametrize(("shape", "n_streams"), [((1, 1, 4), 1), ((2, 10, 4), 1), ((10, 4), 10)])
def test_a_table_that_cannot_be_learnt_is_refused(shape, n_streams):
    with pytest.raises(ValueError, match="at least 2 rows a seed and one stream a seed"):
        fit(torch.zeros(shape), streams(*range(n_streams)), SMALL, EDM())


def test_impossible_settings_are_refused():
    for make in (lambda: Training(steps=0), lambda: Training(clip=0), lambda: EDM(sigma_min=90), lambda: EDM(p_std=-1)):
        with pytest.raises(ValueError, match="must lie in"):
            make()
    for name in (f.name for f in dataclasses.fields(EDM)):
        with pytest.raises(ValueError, match="must lie in"):
            EDM(**{name: math.nan})
    with pytest.raises(ValueError, match="rows to generate must be at least 1, got 0"):
        diffusion.generate(None, 0, streams(0))


@settings(max_examples=15, deadline=None)
@given(n=st.integers(2, 30), shift=st.floats(-100, 100), scale=st.floats(0, 100), seed=st.integers(0, 99))
def test_normaliser_standardises_and_goes_back_also_where_a_column_is_constant(n, shift, scale, seed):
    rows = rng.normal(streams(seed, seed + 1), n, 4) * scale + shift
    rows[..., 1], rows[..., 3] = 7.7, (rows[..., 3] > shift).float()
    normalise = diffusion.Normaliser.of(rows, keep=[-1])
    x, plain = normalise(rows), rows.double()
    torch.testing.assert_close(normalise.invert(x), rows, atol=1e-4, rtol=1e-5)
    assert torch.equal(x[..., 3], rows[..., 3])
    assert x[..., 1].abs().max() < 0.2  # what rounding leaves of 0 / 1e-5
    for s in range(2) if scale > 0.1 else ():
        for column in (0, 2):
            c = plain[s, :, column]
            expected = (c - c.mean()) / (c.std() + 1e-5)
            torch.testing.assert_close(x[s, :, column].double(), expected, atol=5e-3, rtol=5e-3)


def test_generated_rows_become_transitions_that_a_replay_takes():
    rows = torch.tensor([[[7.0, -8.0, 1.5, -2.0, 0.3, 9.0, 5.0, 6.0, 0.51], [0, 0, 0, 0, 0, 0, 0, 0, 0.5]]])
    replay = Replay(2, 1, 2, 3)
    replay.add(*diffusion.transitions(rows, replay.widths))
    expected = torch.tensor([[[7.0, -8.0, 1.0, -1.0, 0.3, 9.0, 5.0, 6.0, 1.0], [0] * 9]])
    assert torch.equal(replay.rows, expected)


# --- what training leads to


def test_a_trained_denoiser_comes_near_the_optimal_one():
    """Distance in the weights of the loss; `D = x / (1 + sigma^2)`, right for a standard normal, is at about 0.17."""
    g, edm = streams(0), EDM()
    rows = (MU + rng.normal(g, 5000, 3, dtype=torch.float64) * LAMBDA.sqrt() @ AXES.T).float()
    model = fit(rows, g, Training(width=32, blocks=2, steps=300, lr=5e-3, average_every=1), edm, keep=range(3))
    sigma = diffusion.training_levels(g, 5000, edm)
    y = rows + sigma[..., None] * rng.normal(g, 5000, 3)
    best = gaussian_denoiser(y.double(), sigma.double()).float()
    distance = lambda d: ((1 + sigma**2) / sigma**2 * (d - best).square().mean(-1)).mean().item()  # noqa: E731
    with torch.no_grad():
        assert distance(denoise(model.net, y, sigma, edm)) < 0.01 < 0.15 < distance(y / (1 + sigma[..., None] ** 2))


def test_generated_transitions_of_a_linear_system_are_distributed_as_the_real_ones():
    """Mean and standard deviation of each column to 10 % of the latter, the share of ends to 2 points."""
    g, replay, obs = torch.Generator().manual_seed(0), Replay(4000, 1, 2, 1), torch.zeros(1, 2)
    for _ in range(replay.capacity):
        action = torch.rand(1, 1, generator=g) * 2 - 1
        after = obs @ torch.tensor([[0.9, -0.3], [0.3, 0.9]]) + torch.tensor([[0.0, 3.0]]) * action
        after = after + 0.3 * torch.randn(1, 2, generator=g)
        size = after.norm(dim=-1, keepdim=True)
        terminated = (size > 5).float()
        replay.add(*(x[None] for x in (obs, action, -size, after, terminated)))
        obs = after * (1 - terminated)
    config = Training(width=64, blocks=2, steps=800, lr=5e-3, average_every=1)
    model = fit(replay.rows, streams(0), config, EDM(), keep=[-1])
    new = diffusion.transitions(generate(model, 3000, streams(1), 32), replay.widths)
    columns, real = torch.cat(new[:4], -1)[0], replay.rows[0, :, :6]
    assert ((columns.mean(0) - real.mean(0)) / real.std(0)).abs().max() < 0.1
    assert (columns.std(0) / real.std(0) - 1).abs().max() < 0.1
    ends = replay.rows[..., -1].mean().item()
    assert ends > 0.05 and new[4].mean().item() == pytest.approx(ends, abs=0.02)
    assert (new[2] + new[3].norm(dim=-1, keepdim=True)).square().mean().sqrt() < 0.2 * real[:, 3].std()  # -size
