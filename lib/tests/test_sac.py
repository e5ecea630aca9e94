"""SAC against a plain single-seed implementation, its own symmetries, and closed forms."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from agent_checks import assert_goes_on_exactly, random_batches

from softpolicy import streams as rng
from softpolicy.agents import sac
from softpolicy.optim import descend, polyak
from softpolicy.replay import Batch

O, A, B = 5, 2, 16
CONFIG = sac.Config(width=32, batch=B)


batches = functools.partial(random_batches, size=B)


class PlainSAC:
    """One seed, written without the library: nn-free tensors, torch.distributions, torch.optim.Adam."""

    def __init__(self, agent, s):
        cut = lambda net: [p.detach()[s].clone().requires_grad_() for p in net.parameters()]  # noqa: E731
        self.actor, self.critic = cut(agent.actor), cut(agent.critic)
        self.target = [p.detach().clone() for p in self.critic]
        self.log_alpha = agent.log_alpha.detach()[s].clone().requires_grad_()
        groups = (self.actor, self.critic, [self.log_alpha])
        self.opt_actor, self.opt_critic, self.opt_alpha = (torch.optim.Adam(g, lr=agent.config.lr) for g in groups)
        self.cfg, self.noise = agent.config, agent.noise[s]

    @staticmethod
    def mlp(p, x):
        return (((x @ p[0] + p[1]).relu() @ p[2] + p[3]).relu() @ p[4] + p[5]).squeeze(-1)

    def q(self, p, obs, action):
        x = torch.cat([obs, action], -1)
        return [self.mlp([w[e] for w in p], x) for e in range(2)]

    def pi(self, obs):
        p = self.actor
        out = ((obs @ p[0] + p[1]).relu() @ p[2] + p[3]).relu() @ p[4] + p[5]
        mean, log_std = out[:, :A], out[:, A:].clamp(-20, 2)
        law = torch.distributions.TransformedDistribution(
            torch.distributions.Normal(mean, log_std.exp()), torch.distributions.TanhTransform(cache_size=1)
        )
        u = mean + log_std.exp() * torch.empty(len(obs), A).normal_(generator=self.noise)
        a = law.transforms[0](u)
        return a, law.log_prob(a).sum(-1)

    def update(self, batch, s):
        obs, action, reward, next_obs, terminated = (x[s] for x in batch)
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            a2, logp2 = self.pi(next_obs)
            q2 = torch.minimum(*self.q(self.target, next_obs, a2))
            y = reward + self.cfg.gamma * (1 - terminated) * (q2 - alpha * logp2)
        self.opt_critic.zero_grad()
        sum(0.5 * F.mse_loss(q, y) for q in self.q(self.critic, obs, action)).backward()
        self.opt_critic.step()
        a, logp = self.pi(obs)
        self.opt_actor.zero_grad()
        (alpha * logp - torch.minimum(*self.q(self.critic, obs, a))).mean().backward()
        self.opt_actor.step()
        self.opt_alpha.zero_grad()
        (self.log_alpha.exp() * (-logp.detach().mean() + A)).backward()
        self.opt_alpha.step()
        for t, p in zip(self.target, self.critic, strict=True):
            t.mul_(1 - self.cfg.tau).add_(self.cfg.tau * p.detach())


def test_update_is_the_plain_algorithm_seed_by_seed():
    seeds = [1, 3]
    agent = CONFIG.build(O, A, seeds)
    plain = [PlainSAC(agent, s) for s in range(2)]
    states = rng.save(agent.noise)
    data = batches(seeds, 5)
    for batch in data:
        agent.update(batch)
    rng.restore(agent.noise, states)  # the plain agents draw the same noise
    for s, p in enumerate(plain):
        for batch in data:
            p.update(batch, s)
        for mine, net in ((p.actor, agent.actor), (p.critic, agent.critic), (p.target, agent.target)):
            for a, b in zip(mine, net.parameters(), strict=True):
                torch.testing.assert_close(a, b[s], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(p.log_alpha, agent.log_alpha[s])


def test_a_seed_learns_the_same_alone_and_among_others():
    alone, among = CONFIG.build(O, A, [3]), CONFIG.build(O, A, [1, 3, 5])
    for a, b in zip(batches([3], 6), batches([1, 3, 5], 6), strict=True):
        info_a, info_b = alone.update(a), among.update(b)
    for x, y in zip(alone.parameters(), among.parameters(), strict=True):
        torch.testing.assert_close(x[0], y[1], atol=1e-5, rtol=1e-4)
    for name in info_a:
        torch.testing.assert_close(info_a[name][0], info_b[name][1], atol=1e-4, rtol=1e-4)
    obs = torch.randn(1, 7, O)
    torch.testing.assert_close(alone.act(obs)[0], among.act(obs.expand(3, -1, -1))[1], atol=1e-5, rtol=1e-4)


def test_target_is_the_reward_at_a_terminal_state_and_soft_elsewhere():
    reward, q, log_pi = torch.randn(1, 2), torch.randn(1, 2, 2), torch.randn(1, 2)
    batch = Batch(None, None, reward, None, torch.tensor([[1.0, 0.0]]))
    y = sac.soft_target(batch, q, log_pi, torch.tensor([0.3]), 0.9)
    assert y[0, 0] == reward[0, 0]
    by_hand = reward[0, 1] + 0.9 * (q[0, :, 1].min() - 0.3 * log_pi[0, 1])
    assert y[0, 1].item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_soft_target_is_the_soft_bellman_backup_under_the_soft_optimal_policy():
    """With pi = exp(Q/alpha)/Z the sampled soft value Q - alpha log pi is the log-sum-exp value at *every* action."""
    alpha, q = 0.4, torch.randn(1, 1, 50, dtype=torch.float64)
    log_z = torch.logsumexp(q / alpha, -1, keepdim=True)
    log_pi = (q / alpha - log_z)[:, 0]
    batch = Batch(None, None, torch.zeros(1, 50), None, torch.zeros(1, 50))
    y = sac.soft_target(batch, q, log_pi, torch.tensor([alpha], dtype=torch.float64), 1.0)
    torch.testing.assert_close(y, (alpha * log_z[:, 0]).expand(1, 50))


def test_temperature_gradient_has_its_closed_form():
    log_alpha = torch.tensor([0.3, -1.0], requires_grad=True)
    log_pi = torch.randn(2, 100)
    loss, _ = sac.temperature_loss(log_alpha, log_pi, -3.0)
    loss.backward()
    torch.testing.assert_close(log_alpha.grad, log_alpha.detach().exp() * (-log_pi.mean(1) + 3.0))


def test_temperature_rises_below_the_target_entropy_and_falls_above():
    for log_pi, up in ((10.0, True), (-10.0, False)):
        log_alpha = torch.zeros(1, requires_grad=True)
        sac.temperature_loss(log_alpha, torch.full((1, 4), log_pi), -2.0)[0].backward()
        assert (log_alpha.grad.item() < 0) == up


def test_actor_step_moves_no_critic_and_target_moves_by_tau_alone():
    agent = CONFIG.build(O, A, [0])
    before = [p.detach().clone() for p in agent.target.parameters()]
    agent.update(batches([0], 1)[0])
    for t, old, p in zip(agent.target.parameters(), before, agent.critic.parameters(), strict=True):
        torch.testing.assert_close(t, old + CONFIG.tau * (p.detach() - old))
    critic = [p.detach().clone() for p in agent.critic.parameters()]
    obs = torch.randn(1, B, O)
    action, log_pi = agent.actor.sample(obs, torch.randn(1, B, A))
    loss = sac.actor_loss(agent.critic(obs, action), log_pi, torch.ones(1))[0]
    descend(agent.opts["policy"], loss + 0 * agent.log_alpha.sum())
    assert all(torch.equal(a, b) for a, b in zip(critic, agent.critic.parameters(), strict=True))


def test_polyak_is_a_geometric_average():
    target, param = [torch.zeros(3)], [torch.ones(3)]
    for _ in range(50):
        polyak(target, param, 0.1)
    torch.testing.assert_close(target[0], torch.full((3,), 1 - 0.9**50))


def test_fixed_temperature_stays():
    agent = sac.Config(width=32, batch=B, init_alpha=0.2, learn_alpha=False).build(O, A, [0])
    agent.update(batches([0], 1)[0])
    assert agent.log_alpha.exp().item() == pytest.approx(0.2)


def test_restored_agent_goes_on_exactly():
    assert_goes_on_exactly(lambda: CONFIG.build(O, A, [0, 1]), batches([0, 1], 4))


def test_actor_finds_the_best_gaussian_on_a_quadratic():
    """If Q(a) = -(u(a) - m)^2 / (2 v), u = artanh a, minus the tanh term, exp(Q/alpha) is a squashed N(m, alpha v),
    and minimising equation 9 must reach it."""
    alpha, m, v = 0.5, 0.4, 0.3
    agent = sac.Config(width=32, batch=512, lr=3e-3, learn_alpha=False).build(1, 1, [0])
    obs = torch.zeros(1, 512, 1)
    for _ in range(600):
        noise = rng.normal(agent.noise, 512, 1)
        action, log_pi = agent.actor.sample(obs, noise)
        mean, log_std = agent.actor(obs)
        u = mean + log_std.exp() * noise
        q = -((u - m) ** 2) / (2 * v) - alpha * torch.log(1 - u.tanh() ** 2)
        descend(agent.opts["policy"], sac.actor_loss(q.squeeze(-1)[:, None], log_pi, torch.tensor([alpha]))[0])
    mean, log_std = agent.actor(obs[:, :1])
    assert mean.item() == pytest.approx(m, abs=0.05)
    assert log_std.exp().item() == pytest.approx(math.sqrt(alpha * v), rel=0.1)
