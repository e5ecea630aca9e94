"""S2AC's update: the algorithm as written, seed by seed; what it moves, and that it never waits for the device."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from agent_checks import assert_goes_on_exactly, random_batches
from torch.utils._python_dispatch import TorchDispatchMode

from softpolicy import nets
from softpolicy import streams as rng
from softpolicy.agents import s2ac, sac, sql
from softpolicy.replay import Batch
from softpolicy.svgd import pairs, velocity
from softpolicy.train import train

O, A, B, M = 5, 2, 8, 4
SMALL = dict(width=16, batch=B, particles=M)
VARIANTS = {
    "paper": {},
    "release": s2ac.RELEASE,
    "SAC": dict(svgd_steps=0, truncation="none"),
    "no start law": dict(start="none", score_at="squashed", bandwidth="median"),
    "every term": dict(start="full", hessian=True, self_kernel=True, sigma=0.7, svgd_steps=2, svgd_lr=0.3),
    "capped": dict(step_cap=0.2, sigma_floor=0.3, amortised=True),
    "amortised as released": dict(amortised=True, amortised_by="particles"),
}


def batches(seeds, n, dtype=torch.float32):
    return random_batches(seeds, n, B, dtype=dtype)


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def agent(seeds=(0,), **kw):
    return s2ac.Config(**{**SMALL, **kw}).build(O, A, list(seeds)).double()


class Plain:
    """One seed of S2AC as the algorithm is written down: autograd for every gradient, all pairs in one array."""

    def __init__(self, agent, s):
        pick = lambda net: [p[s].detach().clone() for p in net.parameters()]  # noqa: E731
        self.cfg, self.noise = agent.config, agent.noise[s]
        self.start, self.critic = ([p.requires_grad_() for p in pick(n)] for n in (agent.start, agent.critic))
        self.target, self.sampler = pick(agent.target), []
        self.opts = [torch.optim.Adam(self.critic, lr=1e-3)]
        self.opts += [torch.optim.Adam(self.start, lr=1e-3)] if self.start else []
        if agent.amortised:
            self.sampler = [p.requires_grad_() for p in pick(agent.amortised)]
            self.opts += [torch.optim.Adam(self.sampler, lr=1e-3)]

    @staticmethod
    def mlp(p, x, act=F.elu):
        for w, b in zip(p[:-2:2], p[1:-2:2], strict=True):
            x = act(x @ w + b)
        return x @ p[-2] + p[-1]

    def q(self, p, obs, action):
        x = torch.cat((obs[:, None].expand(*action.shape[:2], O), action), -1)  # [B, M, O+A]
        return torch.minimum(*(self.mlp([w[e] for w in p], x).squeeze(-1) for e in range(2)))

    def law(self, obs):
        if self.cfg.start == "none":
            return torch.zeros(len(obs), A).double(), torch.full((len(obs), A), 0.5).double(), torch.eye(A).double()
        out = self.mlp(self.start, obs)
        n = 1 if self.cfg.start == "isotropic" else A
        std = out[:, A : A + n].exp().clamp(0.1, 1.0).expand(-1, A)
        lower = torch.eye(A).double().repeat(len(obs), 1, 1)
        if self.cfg.start == "full":
            lower = lower + F.pad(out[:, -1:, None].tanh(), (0, 1, 1, 0))
        return out[:, :A], std, lower

    def log_p(self, obs, u):
        q = self.q(self.critic, obs, u if self.cfg.score_at == "raw" else u.tanh())
        q = q / (self.cfg.alpha if self.cfg.score_temp == "alpha" else 1)
        return q + torch.log(1 - u.tanh() ** 2).sum(-1) if self.cfg.score_at == "density" else q

    def sigma2(self, d):
        if self.cfg.sigma:
            return torch.full_like(d[:, :1, :1], self.cfg.sigma**2)
        flat = d.detach().flatten(1)
        size = flat.median(1).values if self.cfg.bandwidth == "median" else flat.mean(1) / 2
        return (size / (2 * math.log(M + 1))).clamp(min=self.cfg.sigma_floor**2)[:, None, None]

    def sample(self, obs):
        cfg = self.cfg
        if cfg.truncation == "none":
            z = torch.empty(B, M, A).normal_(generator=self.noise).double()
        else:
            z = nets.cut_normal(torch.empty(B, M, A).uniform_(generator=self.noise).double(), 3.0)
        mean, std, lower = self.law(obs)
        t = torch.diag_embed(std) @ lower
        u = mean[:, None] + (t[:, None] @ z[..., None]).squeeze(-1)
        log_q = torch.distributions.MultivariateNormal(mean[:, None], scale_tril=t[:, None]).log_prob(u)
        log_q = log_q - (0 if cfg.truncation == "none" else A * math.log(math.erf(3 / math.sqrt(2))))
        reach = 3 * (t @ t.mT).diagonal(dim1=1, dim2=2).sqrt()[:, None] + 1e-4
        stay = ((u - mean[:, None]).abs() <= reach).all(-1)
        others = 1 - torch.eye(M).double()
        for _ in range(cfg.svgd_steps):
            u = u if u.requires_grad else u.requires_grad_()
            (s,) = torch.autograd.grad(self.log_p(obs, u).sum(), u, create_graph=True)
            r = u[:, :, None] - u[:, None]  # [B, M, M, A]
            d = r.square().sum(-1)
            sigma2 = self.sigma2(d)
            kernel = torch.exp(-d / (2 * sigma2))
            bracket = kernel * (A - d / sigma2 - (r * s[:, None]).sum(-1)) * others / sigma2
            trace = bracket.sum(2) / (M if cfg.norm == "m" else M - 1)
            trace = trace + (A / (M * sigma2.squeeze(2)) if cfg.self_kernel else 0)
            if cfg.hessian:
                v = 2.0 * (torch.empty(B, M, A).uniform_(generator=self.noise) < 0.5) - 1
                (hv,) = torch.autograd.grad((s * v).sum(), u, create_graph=True)
                trace = trace + (hv * v).sum(-1) / M
            sigma = sigma2[:, 0, 0].sqrt()
            bound = math.exp(-0.5) * s.detach().norm(dim=-1).mean(1) / sigma + 1 / sigma**2
            eps = (cfg.step_cap / bound).clamp(max=cfg.svgd_lr) if cfg.step_cap else torch.full_like(bound, cfg.svgd_lr)
            log_q = log_q - eps[:, None] * trace
            u = u + eps[:, None, None] * (kernel[..., None] * (s[:, None] + r / sigma2[..., None])).mean(2)
            stay = stay & ((u - mean[:, None]).abs() <= reach).all(-1)
        stay = stay if cfg.truncation == "select" else torch.ones_like(stay)
        return u, log_q - torch.log(1 - u.tanh() ** 2).sum(-1), (stay | ~stay.any(1, keepdim=True)).double()

    def value(self, p, obs, u, log_pi, weight):
        return (weight * (self.q(p, obs, u.tanh()) - self.cfg.alpha * log_pi)).sum(1) / weight.sum(1)

    def step(self, opt, loss, params):
        for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
            p.grad = g
        opt.step()

    def update(self, batch):
        obs, action, reward, next_obs, terminated = batch
        opts = iter(self.opts)
        y = reward + 0.99 * (1 - terminated) * self.value(self.target, next_obs, *self.sample(next_obs)).detach()
        loss = sum(F.mse_loss(self.both(obs, action)[e], y) for e in range(2))
        self.step(next(opts), loss, self.critic)
        if self.start:
            u, log_pi, weight = self.sample(obs)
            self.step(next(opts), -self.value(self.critic, obs, u, log_pi, weight).mean(), self.start)
        if self.sampler:
            b = self.actions(obs)
            a = self.actions(obs) if self.cfg.amortised_by == "own" else self.sample(obs)[0].tanh()
            a = a.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.q(self.critic, obs, a).sum() / self.cfg.alpha, a)
            near = pairs(b.detach(), a.detach(), "half-mean", self.cfg.sigma_floor)
            phi = velocity(near, b.detach(), a.detach(), g)
            self.step(next(opts), -(b * phi).sum(-1).mean(), self.sampler)
        for t, p in zip(self.target, self.critic, strict=True):
            t.mul_(0.995).add_(0.005 * p.detach())

    def actions(self, obs):
        z = torch.empty(B, M, A).normal_(generator=self.noise)
        return self.mlp(self.sampler, torch.cat((obs[:, None].expand(B, M, O), z), -1)).tanh()

    def both(self, obs, action):
        return [self.mlp([w[e] for w in self.critic], torch.cat((obs, action), -1)).squeeze(-1) for e in range(2)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_update_is_the_algorithm_as_written_seed_by_seed(variant):
    a = agent((1, 3), **VARIANTS[variant])
    plain, data, states = [Plain(a, s) for s in range(2)], batches([1, 3], 3, torch.float64), rng.save(a.noise)
    for batch in data:
        info = a.update(batch)
    assert all(x.shape == (2,) and torch.isfinite(x).all() and not x.requires_grad for x in info.values())
    rng.restore(a.noise, states)
    for s, p in enumerate(plain):
        for batch in data:
            p.update(Batch(*(x[s] for x in batch)))
        pairs_of = [(a.critic, p.critic), (a.target, p.target), (a.start, p.start)]
        for net, mine in [*pairs_of, (a.amortised, p.sampler)] if a.amortised else pairs_of:
            for ours, theirs in zip(net.parameters(), mine, strict=True):
                torch.testing.assert_close(ours[s], theirs, atol=1e-6, rtol=1e-5)


class NothingReadBack(TorchDispatchMode):
    """Fails where a value of a tensor reaches Python, or a shape depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", [*VARIANTS, "SQL", "SQL as released"])
def test_an_update_reads_nothing_back_from_the_device(variant):
    a = agent(**VARIANTS[variant]) if variant in VARIANTS else None
    if a is None:
        a = sql.Config(width=16, batch=B, **(sql.RELEASE if "released" in variant else {})).build(O, A, [0]).double()
    batch = batches([0], 1, torch.float64)[0]
    a.opts = {name: torch.optim.SGD(opt.param_groups[0]["params"], lr=0.1) for name, opt in a.opts.items()}
    with NothingReadBack():
        a.update(batch)
        with pytest.raises(AssertionError):
            batch.reward[0, 0].item()


@pytest.mark.filterwarnings("ignore:SVGD")
@pytest.mark.parametrize("variant", ["paper", "capped"])
def test_a_seed_learns_the_same_alone_and_among_others(variant):
    alone, among = agent([3], **VARIANTS[variant]), agent([1, 3, 5], **VARIANTS[variant])
    for a, b in zip(batches([3], 3, torch.float64), batches([1, 3, 5], 3, torch.float64), strict=True):
        info_a, info_b = alone.update(a), among.update(b)
    for x, y in zip(alone.parameters(), among.parameters(), strict=True):
        torch.testing.assert_close(x[0], y[1], atol=1e-6, rtol=1e-5)
    for name in info_a:
        torch.testing.assert_close(info_a[name][0], info_b[name][1], atol=1e-5, rtol=1e-5)
    obs = numbers(0, 1, 7, O)
    torch.testing.assert_close(alone.act(obs)[0], among.act(obs.expand(3, -1, -1))[1], atol=1e-6, rtol=1e-5)


def test_restored_agent_goes_on_exactly():
    assert_goes_on_exactly(lambda: agent((0, 1), amortised=True), batches((0, 1), 4, torch.float64))


def test_without_steps_it_learns_what_sac_learns():
    """Same streams, so same weights at the start and same noise; Adam's epsilon alone tells their losses apart."""
    ours = s2ac.Config(width=16, **s2ac.AS_SAC).build(O, A, [0, 1]).double()
    theirs = sac.Config(width=16, init_alpha=0.2, learn_alpha=False).build(O, A, [0, 1]).double()
    for batch in batches((0, 1), 5, torch.float64):
        told, said = ours.update(batch), theirs.update(batch)
        torch.testing.assert_close(told["actor_loss"], said["actor_loss"], atol=1e-5, rtol=0)
        torch.testing.assert_close(told["critic_loss"], 2 * said["critic_loss"], atol=1e-5, rtol=0)
    for mine, other in ((ours.start, theirs.actor), (ours.critic, theirs.critic), (ours.target, theirs.target)):
        for p, q in zip(mine.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, atol=1e-5, rtol=0)
    assert ours.act(batch.obs, rng.generators([0, 1], "act")).shape == batch.action.shape


def test_without_steps_a_training_run_is_sacs(tmp_path):
    """Through the loop: the same exploration, so the same episodes and the same critics, to rounding."""
    kw = dict(width=8, batch=8)
    pair = s2ac.Config(**kw, **s2ac.AS_SAC), sac.Config(**kw, init_alpha=0.2, learn_alpha=False)
    given = dict(warmup=20, eval_every=40, eval_episodes=1, checkpoint_every=1000)
    ours, theirs = (train(c, "Line-v0", [0, 1, 2], 200, tmp_path / c.name, **given) for c in pair)
    for column in ("train_return", "q", "actor_loss"):
        np.testing.assert_allclose(ours[column], theirs[column], atol=1e-3, rtol=1e-3)
    assert theirs["train_return"].nunique() > 6


def test_each_optimiser_moves_its_own_network_alone():
    a, batch = agent((0,), amortised=True), batches((0,), 1, torch.float64)[0]
    nets_of = {"critic": a.critic, "start": a.start, "amortised": a.amortised}
    assert set(a.opts) == set(nets_of)
    for moving in nets_of:
        twin = copy.deepcopy(a)
        for name, opt in twin.opts.items():
            opt.param_groups[0]["lr"] = 1e-3 if name == moving else 0.0
        twin.opts = {
            name: torch.optim.SGD(getattr(twin, name).parameters(), lr=1e-2 * (name == moving)) for name in a.opts
        }
        twin.update(batch)
        for name, net in nets_of.items():
            same = [torch.equal(p, q) for p, q in zip(net.parameters(), getattr(twin, name).parameters(), strict=True)]
            assert not all(same) if name == moving else all(same)
    assert "start" not in agent(start="none").opts
