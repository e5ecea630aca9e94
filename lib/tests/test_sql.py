"""SQL: its soft value, its sampler and its update, against quadrature, known densities and a plain version."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from agent_checks import assert_goes_on_exactly, random_batches
from scipy import stats

from softpolicy import stein_policy as sp
from softpolicy import streams as rng
from softpolicy.agents import sql
from softpolicy.optim import descend
from softpolicy.replay import Batch

O, A, B, M = 5, 2, 8, 4
VARIANTS = {"paper": {}, "release": sql.RELEASE, "SQL's code": dict(squash_term=True, value_particles=6)}


batches = functools.partial(random_batches, size=B, dtype=torch.float64)


def agent(seeds=(0,), **kw):
    settings = {**dict(width=16, batch=B, particles=M), **kw}
    return sql.Config(**settings).build(O, A, list(seeds)).double()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_soft_value_is_the_log_of_an_integral(alpha):
    """Q(a) = a_1 - a_2^2 / 2 on [-1, 1]^2, whose integral of exp(Q / alpha) has a closed form."""
    a = 2 * rng.uniform(rng.generators([0], "a"), 200_000, 2, dtype=torch.float64)[0] - 1
    q = a[:, 0] - a[:, 1] ** 2 / 2
    first = math.log(2 * alpha * math.sinh(1 / alpha))
    second = math.log(math.sqrt(2 * math.pi * alpha) * math.erf(1 / math.sqrt(2 * alpha)))
    assert sql.soft_value(q, alpha, 2).item() == pytest.approx(alpha * (first + second), abs=0.01)


def test_soft_value_of_few_proposals_is_biased_low_and_bounded_by_the_best():
    q = torch.randn(5000, 10, generator=torch.Generator().manual_seed(0)).double()
    few, many = sql.soft_value(q, 0.5, 0), sql.soft_value(q.view(1, -1), 0.5, 0)
    assert few.mean() < many - 0.05
    assert (few <= q.amax(-1)).all() and (few >= q.mean(-1)).all()


def test_value_at_a_terminal_state_is_the_reward():
    batch = Batch(None, None, torch.tensor([[1.5, 1.5]]), None, torch.tensor([[1.0, 0.0]]))
    assert sp.backup(batch, torch.tensor([[7.0, 7.0]]), 0.5).tolist() == [[1.5, 5.0]]


class Hills:
    """Stands in for a landscape: exp(Q / alpha) is an equal mixture of N(+-0.5, std^2), one dimension."""

    def __init__(self, std, alpha):
        self.std, self.alpha = std, alpha

    def gradient(self, x):
        w = torch.sigmoid(x / self.std**2)  # the right hill's share at x
        return self.alpha * (w * (0.5 - x) + (1 - w) * (-0.5 - x)) / self.std**2


def test_the_sampler_learns_a_density_with_two_modes():
    """Kolmogorov-Smirnov distance to the density on [-1, 1]; one mode alone is at a distance of 0.5."""
    a, obs = sql.Config(width=32, particles=20, lr=3e-3).build(1, 1, [0]), torch.zeros(1, 32, 1)
    for _ in range(400):
        z = rng.normal(a.noise, 32, 40, 1)
        action, fixed = a.actor(obs, z[:, :, :20]), a.actor(obs, z[:, :, 20:]).detach()
        descend(a.opts["policy"], sp.stein_loss(action, fixed, a.score(Hills(0.25, 0.2), fixed), "median", 0.0)[0])
    x = a.act(torch.zeros(1, 4000, 1), rng.generators([1], "z")).flatten().double()
    raw = lambda t: sum(stats.norm.cdf((t - m) / 0.25) for m in (-0.5, 0.5))  # noqa: E731
    exact = lambda t: (raw(t) - raw(-1)) / (raw(1) - raw(-1))  # noqa: E731
    assert stats.kstest(x.numpy(), exact).statistic < 0.08


def test_stein_loss_moves_actions_along_the_velocity_as_it_is_written():
    g = rng.generators([0, 1], "x")
    b, a, s = (rng.normal(g, 3, n, A, dtype=torch.float64) for n in (2, M, M))
    b.requires_grad_()
    loss, length = sp.stein_loss(b, a, s, 0.8, 0.0)
    (gradient,) = torch.autograd.grad(loss, b)
    for i in range(2):
        for j in range(3):
            for k in range(2):
                r = b[i, j, k].detach() - a[i, j]
                kappa = torch.exp(-r.square().sum(-1, keepdim=True) / (2 * 0.64))
                phi = (kappa * (s[i, j] + r / 0.64)).mean(0)
                torch.testing.assert_close(gradient[i, j, k], -phi / (3 * 2))
    assert length.shape == (2,) and (length > 0).all()


@pytest.mark.parametrize("squash", [False, True])
def test_score_is_the_gradient_of_its_log_density(squash):
    a = agent(squash_term=squash, alpha=0.3)
    obs, action = torch.randn(1, 3, O).double(), 0.9 * torch.rand(1, 3, M, A).double().requires_grad_()
    q = a.critic(obs.repeat_interleave(M, 1), action.flatten(1, 2)).amin(1).view(1, 3, M) / 0.3
    log_p = q + torch.log(1 - action**2 + 1e-6).sum(-1) if squash else q
    (expected,) = torch.autograd.grad(log_p.sum(), action)
    torch.testing.assert_close(a.score(sp.Landscape(a.critic, obs, M), action.detach()), expected)


def mlp(p, x):
    for w, b in zip(p[:-2:2], p[1:-2:2], strict=True):
        x = F.relu(x @ w + b)
    return x @ p[-2] + p[-1]


class Plain:
    """One seed of SQL as the algorithm is written down, with autograd and all pairs of particles in one array."""

    def __init__(self, agent, s):
        pick = lambda net: [p[s].detach().clone() for p in net.parameters()]  # noqa: E731
        self.cfg, self.noise = agent.config, agent.noise[s]
        self.actor, self.critic = ([p.requires_grad_() for p in pick(n)] for n in (agent.actor, agent.critic))
        self.target = pick(agent.target)
        self.opts = [torch.optim.Adam(p, lr=1e-3) for p in (self.critic, self.actor)]

    def q(self, p, obs, action):
        x = torch.cat((obs[:, None].expand(*action.shape[:2], O), action), -1)
        return [mlp([w[e] for w in p], x).squeeze(-1) for e in range(2)]

    def latent(self, m):
        z = torch.empty(B, m, A)
        return z.normal_(generator=self.noise) if self.cfg.latent == "normal" else z.uniform_(generator=self.noise)

    def act(self, obs, z):
        return mlp(self.actor, torch.cat((obs[:, None].expand(*z.shape[:2], O), z), -1)).tanh()

    def update(self, batch):
        obs, action, reward, next_obs, terminated = batch
        alpha, m = self.cfg.alpha, self.cfg.value_particles
        if self.cfg.proposals == "uniform":
            there = 2 * torch.empty(B, m, A).uniform_(generator=self.noise) - 1
        else:
            there = self.act(next_obs, self.latent(m))
        q = torch.minimum(*self.q(self.target, next_obs, there.double()))
        value = alpha * torch.log((q / alpha).exp().mean(1) * 2**A)
        y = (reward + 0.99 * (1 - terminated) * value).detach()
        loss = sum(F.mse_loss(x[:, 0], y) for x in self.q(self.critic, obs, action[:, None]))
        self.step(0, loss, self.critic)

        b, a = self.act(obs, self.latent(2 * M)).split(M, 1)
        a = a.detach().requires_grad_()
        log_p = torch.minimum(*self.q(self.critic, obs, a)) / (alpha if self.cfg.score_temp == "alpha" else 1)
        log_p = log_p + torch.log(1 - a**2 + 1e-6).sum(-1) if self.cfg.squash_term else log_p
        (s,) = torch.autograd.grad(log_p.sum(), a)
        r = (b[:, :, None] - a[:, None]).detach()  # [B, updated, fixed, A]
        d = r.square().sum(-1)
        flat = d.flatten(1)
        size = flat.median(1).values if self.cfg.bandwidth == "median" else flat.mean(1) / 2
        sigma2 = (size / (2 * math.log(M + 1)))[:, None, None, None]
        phi = (torch.exp(-d[..., None] / (2 * sigma2)) * (s[:, None] + r / sigma2)).mean(2)
        self.step(1, -(b * phi).sum(-1).mean(), self.actor)
        for t, p in zip(self.target, self.critic, strict=True):
            t.mul_(0.995).add_(0.005 * p.detach())

    def step(self, which, loss, params):
        for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
            p.grad = g
        self.opts[which].step()


@pytest.mark.parametrize("variant", VARIANTS)
def test_update_is_the_algorithm_as_written_seed_by_seed(variant):
    a = agent((1, 3), **VARIANTS[variant])
    plain, data, states = [Plain(a, s) for s in range(2)], batches([1, 3], 3), rng.save(a.noise)
    for batch in data:
        info = a.update(batch)
    assert all(x.shape == (2,) and torch.isfinite(x).all() and not x.requires_grad for x in info.values())
    rng.restore(a.noise, states)
    for s, p in enumerate(plain):
        for batch in data:
            p.update(Batch(*(x[s] for x in batch)))
        for net, mine in ((a.critic, p.critic), (a.target, p.target), (a.actor, p.actor)):
            for ours, theirs in zip(net.parameters(), mine, strict=True):
                torch.testing.assert_close(ours[s], theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_a_seed_learns_the_same_alone_and_among_others(variant):
    alone, among = agent([3], **VARIANTS[variant]), agent([1, 3, 5], **VARIANTS[variant])
    for a, b in zip(batches([3], 3), batches([1, 3, 5], 3), strict=True):
        info_a, info_b = alone.update(a), among.update(b)
    for x, y in zip(alone.parameters(), among.parameters(), strict=True):
        torch.testing.assert_close(x[0], y[1], atol=1e-6, rtol=1e-5)
    for name in info_a:
        torch.testing.assert_close(info_a[name][0], info_b[name][1], atol=1e-5, rtol=1e-5)
    obs = torch.randn(1, 7, O).double()
    torch.testing.assert_close(alone.act(obs)[0], among.act(obs.expand(3, -1, -1))[1], atol=1e-6, rtol=1e-5)


def test_restored_agent_goes_on_exactly():
    assert_goes_on_exactly(lambda: agent((0, 1)), batches((0, 1), 4))


def test_evaluation_is_a_function_of_the_observation_and_disturbs_nothing():
    a = agent((0, 1))
    obs, states = torch.randn(2, 3, O).double(), rng.save(a.noise)
    for select in ("random", "best", "softmax"):
        first = a.act(obs, select=select)
        assert first.shape == (2, 3, A) and first.abs().max() <= 1
        assert torch.equal(first, a.act(obs, select=select))
        torch.testing.assert_close(a.act(obs[:, 1:2], select=select), first[:, 1:2])
    assert all(torch.equal(x, y) for x, y in zip(states, rng.save(a.noise), strict=True))
    g = rng.generators([0, 1], "act")
    assert not torch.equal(a.act(obs, g), a.act(obs, g))


def test_the_best_of_the_particles_is_best_by_the_smaller_critic():
    a, obs = agent((0, 1)), torch.randn(2, 6, O).double()
    actions = a.actor(obs, sp.Draws(obs)(rng.normal, M, A))
    q = torch.stack([a.critic(obs, actions[:, :, m]).amin(1) for m in range(M)], -1)
    torch.testing.assert_close(a.critic(obs, a.act(obs, select="best")).amin(1), q.amax(-1))


@pytest.mark.parametrize(
    ("kw", "says"),
    [
        (dict(particles=0), r"particles must lie in \[1, inf\], got 0"),
        (dict(alpha=0.0), "alpha must lie in"),
        (dict(alpha=float("nan")), "alpha must lie in"),
        (dict(bandwidth="0.3"), "bandwidth must be median or"),
        (dict(proposals="prior"), "proposals must be uniform or policy, got 'prior'"),
        (dict(evaluate="amortised"), "evaluate must be random or best or softmax"),
        (dict(sigma_floor=-1.0), "sigma_floor must lie in"),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(kw, says):
    with pytest.raises(ValueError, match=says) as e:
        sql.Config(**kw)
    assert "\n" not in str(e.value)


def test_an_unknown_choice_of_particle_is_refused():
    with pytest.raises(ValueError, match="select must be random, best or softmax, got 'max'"):
        agent().act(torch.randn(1, 3, O).double(), select="max")
