"""The update of `lsac.RELEASE`, all of its departures at once, against plain code: a loop over networks. (The order of
the steps is ours: the policy climbs critics that have made theirs.)"""

import math

import pytest
import torch
import torch.nn.functional as F
from agent_checks import random_batches

from softpolicy import streams as rng
from softpolicy.agents import lsac
from softpolicy.replay import Replay

N, B, O, A, PULL = 3, 8, 5, 2, 0.1


def forward(weights, x):
    """A network `[w, b, w, b, ...]` with GELU between its layers."""
    for k in range(0, len(weights), 2):
        x = (F.gelu(x) if k else x) @ weights[k] + weights[k + 1]
    return x


def law(weights, obs, action):
    mean, raw = forward(weights, torch.cat((obs, action), -1)).unbind(-1)
    return mean, F.softplus(raw)


def policy(weights, obs, eps):
    mean, log_std = forward(weights, obs).chunk(2, -1)
    std = log_std.clamp(-20, 0.5).exp()
    u = mean + std * eps
    log_pi = torch.distributions.Normal(mean, std).log_prob(u) - 2 * (math.log(2) - u - F.softplus(-2 * u))
    return u.tanh(), log_pi.sum(-1)


class Plain:
    """One seed of the released update, from the weights of an agent."""

    def __init__(self, agent):
        own = lambda net, *at: [p[at].detach().clone().requires_grad_() for p in net.parameters()]  # noqa: E731
        self.critic, self.target = (
            [[own(net, 0, i, j) for j in range(2)] for i in range(N)] for net in (agent.critic, agent.target)
        )
        self.actor, self.target_actor = own(agent.actor, 0), own(agent.target_actor, 0)
        self.log_alpha = agent.log_alpha[0].detach().clone().requires_grad_()
        self.b, self.moments = [None, None], {}
        rates = [dict(params=self.actor, lr=1e-4), dict(params=[self.log_alpha], lr=3e-4)]
        self.opt = torch.optim.Adam(rates)

    def update(self, real, synthetic, draws):
        """real and synthetic rows `[N, B, ...]` each."""
        values = [self.critic_step(i, [x[i] for x in real], [x[i] for x in synthetic], draws) for i in range(N)]
        i = max(range(N), key=values.__getitem__)  # far from 88 the released rule is an argmax
        obs = real[0][i]
        action, log_pi = policy(self.actor, obs, draws["action"])
        value = torch.minimum(*(law(w, obs, action)[0] for w in self.critic[i]))
        loss = (self.log_alpha.exp().detach() * log_pi - value).mean()
        self.opt.zero_grad()
        (loss - self.log_alpha * (log_pi.detach().mean() - A)).backward()
        self.opt.step()
        nets = [(self.target_actor, self.actor)]
        nets += [(self.target[i][j], self.critic[i][j]) for i in range(N) for j in range(2)]
        for old, new in nets:
            for p, q in zip(old, new, strict=True):
                p.data += 0.005 * (q.data - p.data)

    def critic_step(self, i, real, synthetic, draws):
        """Both twins of replica i; the smaller of the means of their values."""
        obs, action, reward, next_obs, terminated = real
        with torch.no_grad():
            ahead, log_pi = policy(self.target_actor, next_obs, draws["next"][i])
            value = torch.minimum(*(law(w, next_obs, ahead)[0] for w in self.target[i]))
            y = reward + 0.99 * (1 - terminated) * (value - self.log_alpha.exp() * log_pi)
        laws, loss = [law(w, obs, action) for w in self.critic[i]], 0.0
        for j, (m, s) in enumerate(laws):
            old, batch_mean = self.b[j], s.mean().item()
            self.b[j] = b = batch_mean if old is None else 0.995 * old + 0.005 * batch_mean  # one for all replicas
            weight = (b**2 + 0.1) / (s.detach() ** 2 + 0.1)
            loss = loss - (weight * (y - m.detach()) * m).mean()
        loss = loss - torch.minimum(*(law(w, *synthetic[:2])[0] for w in self.critic[i])).sum()  # the leak
        for j, weights in enumerate(self.critic[i]):
            grads = torch.autograd.grad(loss, weights, retain_graph=True)
            jittered = [w.detach() + 1e-4 * x[i, j] for w, x in zip(weights, draws["jitter"], strict=True)]
            grads = [g + PULL * w / w.norm() for g, w in zip(grads, jittered, strict=True)]
            length = math.sqrt(sum(g.square().sum().item() for g in grads))
            for k, (w, g) in enumerate(zip(weights, grads, strict=True)):
                g = g * min(1.0, 0.7 / (length + 1e-6))
                m, v = self.moments.get((i, j, k), (0.0, 0.0))
                self.moments[i, j, k] = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                w.data -= 1e-3 * (g + m / (v.sqrt() + 1e-8))
        return min(m.mean().item() for m, _ in laws)


def test_the_released_update_is_that_of_plain_code():
    """Shared boundary, detached standard deviation, leak, argmax, copies; a larger pull, to be seen, and no noise (it
    would be rounded away)."""
    changes = lsac.RELEASE | dict(
        l2_norm=PULL, noise_scale=0.0, n_synth=5, synthetic_capacity=100, refit_every=10**6, delay=1
    )
    agent = lsac.Config(width=8, batch=B, replicas=N, **changes).build(O, A, [0]).double()
    replay, plain = Replay(100, 1, O, A), Plain(agent)
    (stored,) = random_batches([0], 1, 40, O, A)
    replay.add(*(x if x.dim() == 3 else x[..., None] for x in stored))
    kept = [x[0].double() for x in stored]
    agent.synthetic.data.rows = agent.synthetic.data.rows.double()
    for batch in random_batches([0], 4, N * B, O, A, torch.float64):
        states = rng.save(agent.noise)
        agent.prepare(replay)  # copies the real rows, and generates none
        agent.update(batch)
        rng.restore(agent.noise, states)
        slots = agent.synthetic.data.slots(N * B, agent.noise)[0].view(N, B)
        draws = {"next": rng.normal(agent.noise, N * B, A)[0].view(N, B, A)}
        rng.normal(agent.noise, N, 2, B)  # the return samples, which only the standard deviation would learn
        draws["jitter"] = [rng.normal(agent.noise, *p.shape[1:])[0] for p in agent.critic.parameters()]
        rng.uniform(agent.noise, N)
        draws["action"] = rng.normal(agent.noise, B, A)[0]
        plain.update([x[0].unflatten(0, (N, B)) for x in batch], [x[slots] for x in kept], draws)
    for net, mine in ((agent.critic, plain.critic), (agent.target, plain.target)):
        for k, p in enumerate(net.parameters()):
            same = torch.stack([torch.stack([twin[k] for twin in twins]) for twins in mine])
            torch.testing.assert_close(p[0], same, atol=1e-7, rtol=1e-6)  # the step size is a float32
    for p, q in zip(agent.actor.parameters(), plain.actor, strict=True):
        torch.testing.assert_close(p[0], q, atol=1e-9, rtol=1e-7)
    assert agent.boundary[0].amax(0).tolist() != agent.boundary[0].amin(0).tolist()  # each as it stands after its move
    assert agent.boundary[0, -1].tolist() == pytest.approx(plain.b)
    torch.testing.assert_close(agent.log_alpha[0], plain.log_alpha)
