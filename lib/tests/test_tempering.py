"""Underdamped Langevin and parallel tempering: loops, exact linear algebra, detailed balance, known weights."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softpolicy import posterior as po
from softpolicy import samplers
from softpolicy import streams as rng


def normals(seeds, tag, *shape):
    return rng.normals(rng.generators(seeds, tag), *shape, dtype=torch.float64)


def uniforms(seeds, tag, *shape):
    return rng.uniforms(rng.generators(seeds, tag), *shape, dtype=torch.float64)


# --- underdamped Langevin


@settings(max_examples=30, deadline=None)
@given(
    lead=st.lists(st.integers(1, 3), min_size=1, max_size=2), d=st.integers(1, 3), steps=st.integers(1, 4),
    h=st.floats(0.01, 1), friction=st.floats(0, 50), seed=st.integers(0, 1000),
)  # fmt: skip
def test_underdamped_is_the_loop_as_written(lead, d, steps, h, friction, seed):
    g = torch.Generator().manual_seed(seed)
    x, v = torch.randn(2, *lead, d, dtype=torch.float64, generator=g)
    z = torch.randn(steps, *lead, d, dtype=torch.float64, generator=g)
    calls = []
    score = lambda x: calls.append(1) or torch.sin(2 * x) - x  # noqa: E731
    path, last = samplers.underdamped(score, x, v, h, steps, z, friction, trajectory=True)
    assert path.shape == (steps + 1, *lead, d) and len(calls) == steps + 1
    for t in range(steps):
        v = v + h / 2 * (torch.sin(2 * x) - x)
        x = x + h / 2 * v
        v = math.exp(-friction * h) * v + math.sqrt(1 - math.exp(-2 * friction * h)) * z[t]
        x = x + h / 2 * v
        v = v + h / 2 * (torch.sin(2 * x) - x)
        torch.testing.assert_close(path[t + 1], x)
    torch.testing.assert_close(last, v)


@pytest.mark.parametrize("friction", [0.1, 1.0, 10.0, math.inf])
@pytest.mark.parametrize("h", [0.1, 1.0, 1.9])
def test_positions_are_exact_on_a_gaussian_at_every_stable_step(h, friction):
    """On a quadratic a step is linear, (x, v) -> A (x, v) + B z: its stationary covariance is known without chains."""
    unit = torch.eye(3, dtype=torch.float64)[:, :, None]  # rows: start in x, start in v, noise
    x, v = samplers.underdamped(torch.neg, unit[:, 0], unit[:, 1], h, 1, unit[None, :, 2], friction)
    image = torch.cat((x, v), 1)  # [3, 2]
    a, b = image[:2].T, image[2:].T
    pairs = torch.eye(4, dtype=torch.float64) - torch.kron(a, a)
    covariance = torch.linalg.solve(pairs, (b @ b.T).flatten()).view(2, 2)
    exact = torch.tensor([[1, 0], [0, 1 - h**2 / 4]], dtype=torch.float64)
    torch.testing.assert_close(covariance, exact, atol=1e-9, rtol=1e-9)
    assert torch.linalg.eigvals(a).abs().max() < 1


def test_stability_edge():
    edge = [samplers.underdamped(torch.neg, torch.ones(1, 1), torch.zeros(1, 1), h, 400, normals([0], "edge", 1))[0]
            for h in (1.95, 2.05)]  # fmt: skip
    assert edge[0].abs() < 20 and not edge[1].abs() < 1e4


def test_without_friction_it_is_reversible_and_keeps_the_energy():
    g = torch.Generator().manual_seed(0)
    x0, v0 = torch.randn(2, 50, 2, dtype=torch.float64, generator=g)
    none = itertools.repeat(torch.zeros(50, 2, dtype=torch.float64))
    energy = lambda x, v: v.square().sum(-1) / 2 + (x**4).sum(-1) / 4  # noqa: E731
    errors = []
    for h, n in ((0.04, 100), (0.02, 200)):
        x, v = samplers.underdamped(lambda x: -(x**3), x0, v0, h, n, none, friction=0.0)
        back, turned = samplers.underdamped(lambda x: -(x**3), x, -v, h, n, none, friction=0.0)
        torch.testing.assert_close(torch.cat((back, -turned)), torch.cat((x0, v0)), atol=1e-9, rtol=0)
        errors.append((energy(x, v) - energy(x0, v0)).abs().max())
    assert errors[1] < errors[0] / 3 and (x - x0).norm(dim=-1).min() > 0.01


def test_with_infinite_friction_it_is_langevin_with_averaged_noise():
    z = torch.randn(6, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    score, h, x = (lambda x: torch.sin(2 * x) - x), 0.3, torch.zeros(5, 2, dtype=torch.float64)
    path, _ = samplers.underdamped(score, x, z[0] + h / 2 * score(x), h, 5, z[1:], math.inf, trajectory=True)
    for t in range(5):
        x = samplers.langevin(score, x, h**2, 1, (z[t] + z[t + 1])[None] / 2)
        torch.testing.assert_close(path[t + 1], x)


def test_impossible_input_of_underdamped():
    x = torch.zeros(3, 2)
    for kw in (dict(step=0.0), dict(step=math.inf), dict(n_steps=0), dict(friction=-1.0), dict(friction=math.nan)):
        with pytest.raises(ValueError, match="friction not negative"):
            samplers.underdamped(**dict(score=torch.neg, x=x, v=x, step=0.1, n_steps=1, noise=iter([x])) | kw)
    with pytest.raises(ValueError, match="not finite"):
        samplers.underdamped(lambda x: x / 0, x, x, 0.1, 1, iter([x]))
    with pytest.raises(ValueError, match=r"needs a velocity: shape \(3, 2\), got \(2,\)"):
        samplers.underdamped(torch.neg, x, x[0], 0.1, 1, iter([x]))


# --- exchange


BETAS = torch.tensor([1.0, 0.4, 0.1], dtype=torch.float64)


def test_exchange_swaps_offered_pairs_below_the_metropolis_ratio():
    log_p = torch.tensor([[-3.0, -1.0, -9.0], [-1.0, -3.0, -2.5]], dtype=torch.float64)
    ratio = torch.exp((BETAS[:-1] - BETAS[1:]) * (log_p[:, 1:] - log_p[:, :-1]))
    for coin, inside in ((ratio.clamp(max=1) * 0.999, True), (ratio * 1.001, False)):
        for odd in (False, True):
            index, swap = samplers.exchange(log_p, BETAS, coin, odd)
            assert (swap[:, int(odd)] == inside).all() and not swap[:, 1 - int(odd)].any()
            moved = [0, 2, 1] if odd else [1, 0, 2]
            assert (index == torch.tensor(moved if inside else [0, 1, 2])).all()
    assert not samplers.exchange(log_p * math.nan, BETAS, torch.zeros(2, 2), False)[1].any()


@pytest.mark.parametrize("odd", [False, True])
def test_exchange_is_in_detailed_balance_on_three_states(odd):
    """The chain on the 27 joint states of three temperatures, its probabilities counted over a fine grid of coins."""
    log_p = torch.tensor([0.0, -1.3, 0.7], dtype=torch.float64)  # of the three states
    joint = torch.cartesian_prod(*[torch.arange(3)] * 3)  # [27, K]
    law = torch.softmax((BETAS * log_p[joint]).sum(1), 0)
    coins = ((torch.arange(4000) + 0.5) / 4000).double()[:, None, None].expand(-1, 27, 2)
    index, _ = samplers.exchange(log_p[joint], BETAS, coins, odd)  # [coins, 27, K]
    after = joint.expand(4000, -1, -1).gather(-1, index) @ torch.tensor([9, 3, 1])
    kernel = torch.zeros(27, 27, dtype=torch.float64)
    for column in after:
        kernel[torch.arange(27), column] += 1 / 4000
    flow = law[:, None] * kernel
    assert (flow - flow.T).abs().max() < 1e-4
    torch.testing.assert_close(law @ kernel, law, atol=1e-4, rtol=0)
    assert (kernel.diagonal() < 0.9).any()


@settings(max_examples=50, deadline=None)
@given(k=st.integers(1, 7), odd=st.booleans(), seed=st.integers(0, 1000))
def test_exchange_permutes(k, odd, seed):
    g = torch.Generator().manual_seed(seed)
    index, swap = samplers.exchange(
        torch.randn(4, k, generator=g), 0.7 ** torch.arange(k), torch.rand(4, k - 1, generator=g), odd
    )
    assert (index.sort(-1)[0] == torch.arange(k)).all() and ((index - torch.arange(k)).abs() <= 1).all()
    assert swap.shape == (4, k - 1) and not swap[:, int(not odd) :: 2].any()


# --- tempering


def test_tempering_is_the_loop_as_written():
    rounds, per, step = 5, 3, 0.3
    z = torch.randn(rounds * per, 2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = torch.rand(rounds * (per + 1), 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    log_p = lambda x: -((x**2 - 1) ** 2).sum(-1)  # noqa: E731
    start = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    result = samplers.tempering(log_p, start, BETAS, step, rounds, per, z, u)
    swaps, x = torch.zeros(2, 2), start.clone()
    for t in range(rounds):
        for k, beta in enumerate(BETAS.tolist()):
            noise, coins = z[t * per : t * per + per, :, k], u[t * (per + 1) : t * (per + 1) + per, :, k]
            x[:, k], _ = samplers.mala(lambda x, b=beta: b * log_p(x), x[:, k], step / beta, per, noise, coins)
        for s in range(2):
            k = t % 2
            ratio = (BETAS[k] - BETAS[k + 1]) * (log_p(x[s, k + 1]) - log_p(x[s, k]))
            if u[t * (per + 1) + per, s, k] < math.exp(min(ratio, 0)):
                x[s, [k, k + 1]] = x[s, [k + 1, k]]
                swaps[s, k] += 1 / (3 - k)  # of three offers to the even pair, two to the odd one
        torch.testing.assert_close(result.cold[t + 1], x[:, 0])
    torch.testing.assert_close(result.x, x)
    torch.testing.assert_close(result.swaps.float(), swaps)
    assert 0 < swaps.mean() < 1 and result.moves.shape == (2, 3) and result.cold.shape == (rounds + 1, 2, 2)


def test_every_temperature_keeps_its_gaussian_at_a_large_step():
    n = 4_000
    start = torch.zeros(1, n, 3, 2, dtype=torch.float64)
    coins = uniforms([0], "coins", n, 3)
    result = samplers.tempering(
        lambda x: -x.square().sum(-1) / 2, start, BETAS, 1.0, 20, 3, normals([0], "z", n, 3, 2), coins
    )
    variance = result.x.var((0, 1, 3), correction=0)
    assert ((variance * BETAS - 1).abs() < 4 * math.sqrt(2 / (2 * n))).all()
    assert (result.x.mean((0, 1)).abs() * BETAS.sqrt()[:, None] < 4 / math.sqrt(n)).all()
    assert torch.equal(result.cold[-1], result.x[..., 0, :])


def test_tempering_finds_the_weights_that_a_single_chain_misses():
    """The goal's two modes, all chains started in the upper one: MALA stays there, tempering finds the weights."""
    n = 64
    theta, p = po.goal_grid(200)
    exact = p[po.upper(theta)].sum().item()
    top = torch.tensor([0.3, 0.5], dtype=torch.float64)
    stuck, _ = samplers.mala(
        po.log_goal, top.expand(1, n, 2), 1e-3, 600, normals([0], "z", n, 2), uniforms([0], "u", n)
    )
    assert po.upper(stuck).all()
    betas = 0.03 ** (torch.arange(5, dtype=torch.float64) / 4)
    result = samplers.tempering(po.log_goal, top.expand(1, n, 5, 2), betas, 2e-3, 600, 2,
                                normals([0], "z", n, 5, 2), uniforms([0], "u", n, 5))  # fmt: skip
    share = po.upper(result.cold[200:]).double().mean((0, 1))  # of each run
    assert share.mean().item() == pytest.approx(exact, abs=4 * share.std().item() / math.sqrt(n))
    assert share.std() < 0.25 and 0.1 < result.swaps.mean() < 0.9


def test_a_seed_samples_as_it_does_alone():
    def run(seeds):
        start = torch.zeros(len(seeds), 3, 2, dtype=torch.float64)
        return samplers.tempering(
            po.log_goal, start, BETAS, 1e-3, 10, 2, normals(seeds, "z", 3, 2), uniforms(seeds, "u", 3)
        )

    torch.testing.assert_close(run([3]).cold[:, 0], run([1, 3, 5]).cold[:, 1])


def test_one_temperature_is_mala():
    start, noise = torch.zeros(2, 1, 2, dtype=torch.float64), lambda: normals([0, 1], "z", 1, 2)
    one = samplers.tempering(po.log_goal, start, [1.0], 1e-3, 3, 1, noise(), uniforms([0, 1], "u", 1))
    coins = itertools.islice(uniforms([0, 1], "u", 1), 0, None, 2)  # every second one is a round's
    x, taken = samplers.mala(po.log_goal, start, 1e-3, 3, noise(), coins)
    assert torch.equal(one.x, x) and torch.equal(one.moves, taken) and one.swaps.shape == (2, 0)


@pytest.mark.parametrize(
    ("betas", "rounds"), [([1.0, 0.5], 2), ([0.1, 0.4, 1.0], 2), ([1.0, 0.4, 0.0], 2), ([1.0, 0.4, 0.1], 0)]
)
def test_impossible_ladders_are_refused(betas, rounds):
    noise, coins = normals([0], "z", 3, 2), uniforms([0], "u", 3)
    with pytest.raises(ValueError, match="give 3 inverse temperatures, positive and falling"):
        samplers.tempering(po.log_goal, torch.zeros(1, 3, 2, dtype=torch.float64), betas, 0.1, rounds, 1, noise, coins)
