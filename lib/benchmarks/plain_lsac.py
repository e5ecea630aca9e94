"""The yardstick for LSAC: one seed in plain PyTorch, twenty critic networks one after the other."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(n_in: int, width: int, n_out: int) -> nn.Sequential:
    """Three hidden layers with GELU."""
    sizes = (n_in, width, width, width)
    hidden = [layer for a, b in zip(sizes[:-1], sizes[1:], strict=True) for layer in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*hidden, nn.Linear(width, n_out))


class Langevin:
    """aSGLD for one network: clip at 0.7, moments, gradient and bias term, noise."""

    def __init__(self, net: nn.Module, noise: float, lr=1e-3):
        self.params, self.noise, self.lr = list(net.parameters()), noise, lr
        self.m, self.v = ([torch.zeros_like(p) for p in self.params] for _ in range(2))

    @torch.no_grad()
    def step(self) -> None:
        nn.utils.clip_grad_norm_(self.params, 0.7)
        for p, m, v in zip(self.params, self.m, self.v, strict=True):
            m.mul_(0.9).add_(p.grad, alpha=0.1)
            v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            p.add_(p.grad, alpha=-self.lr).addcdiv_(m, v.sqrt().add_(1e-8), value=-self.lr)
            p.add_(torch.randn_like(p), alpha=self.noise * math.sqrt(2 * self.lr))


class PlainLSAC:
    """LSAC as one would write it for one seed: the same algorithm and settings as `softpolicy.agents.lsac`."""

    def __init__(self, n_obs, n_act, width=256, replicas=10, noise=1e-2, device="cpu"):
        self.n, self.n_act, self.updates = replicas, n_act, 0
        self.actor = mlp(n_obs, width, 2 * n_act).to(device)
        self.target_actor = copy.deepcopy(self.actor)
        self.critics = [[mlp(n_obs + n_act, width, 2).to(device) for _ in range(2)] for _ in range(replicas)]
        self.targets = copy.deepcopy(self.critics)
        self.log_alpha = torch.ones((), device=device, requires_grad=True)
        self.b = [[None, None] for _ in range(replicas)]
        self.opts = [[Langevin(q, noise) for q in twins] for twins in self.critics]
        self.opt_policy = torch.optim.Adam(self.actor.parameters(), lr=1e-4, fused=True)
        self.opt_alpha = torch.optim.Adam([self.log_alpha], lr=3e-4)

    def draw(self, size: int, count: int, rows: int, device) -> dict:
        """The random numbers of an update: synthetic rows, next actions, return samples, replica, policy actions."""
        normal = lambda *shape: torch.randn(*shape, device=device)  # noqa: E731
        return {"rows": torch.randint(rows, (self.n, count), device=device), "next": normal(self.n, size, self.n_act),
                "z": normal(self.n, 2, size).clamp(-3, 3), "replica": int(torch.randint(self.n, ())),
                "action": normal(size, self.n_act)}  # fmt: skip

    @staticmethod
    def policy(net, obs: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and their log-density."""
        mean, log_std = net(obs).chunk(2, -1)
        log_std = log_std.clamp(-20, 0.5)
        u = mean + log_std.exp() * eps
        log_pi = -0.5 * eps**2 - log_std - 0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - u - F.softplus(-2 * u))
        return u.tanh(), log_pi.sum(-1)

    @staticmethod
    def law(net, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the return."""
        mean, raw = net(torch.cat((obs, action), -1)).unbind(-1)
        return mean, F.softplus(raw)

    def refined(self, twins, obs: Tensor, action: Tensor, lr=3e-5) -> Tensor:
        """One step along the gradient of the smaller twin."""
        action = action.clone().requires_grad_()
        value = torch.minimum(*(self.law(q, obs, action)[0] for q in twins)).sum()
        return (action + lr * torch.autograd.grad(value, action)[0]).detach().clamp(-1, 1)

    def critic_step(self, i: int, rows: tuple, eps: Tensor, z: Tensor) -> None:
        """Both twins of replica i."""
        obs, action, reward, next_obs, terminated = rows
        with torch.no_grad():
            next_action, log_pi = self.policy(self.target_actor, next_obs, eps)
            laws = [self.law(q, next_obs, next_action) for q in self.targets[i]]
            value = torch.minimum(laws[0][0], laws[1][0])
            samples = [m + zj * s for (m, s), zj in zip(laws, z, strict=True)]
            sample = torch.where(laws[0][0] < laws[1][0], *samples)
            bonus = self.log_alpha.exp() * log_pi
            y, y_z = (reward + 0.99 * (1 - terminated) * (v - bonus) for v in (value, sample))
        for j, (q, opt) in enumerate(zip(self.critics[i], self.opts[i], strict=True)):
            mean, std = self.law(q, obs, action)
            m, s = mean.detach(), std.detach()
            b = self.b[i][j] = s.mean() if self.b[i][j] is None else 0.995 * self.b[i][j] + 0.005 * s.mean()
            cut = torch.maximum(torch.minimum(y_z - m, 3 * b), -3 * b)
            weight = b**2 + 0.1
            loss = -weight * ((y - m) / (s**2 + 0.1) * mean + (cut**2 - s**2) / (s**3 + 0.1) * std)
            q.zero_grad()
            loss.mean().backward()
            opt.step()

    def policy_step(self, i: int, obs: Tensor, eps: Tensor) -> None:
        """Policy and temperature, with the critics of replica i."""
        action, log_pi = self.policy(self.actor, obs, eps)
        value = torch.minimum(*(self.law(q, obs, action)[0] for q in self.critics[i]))
        self.opt_policy.zero_grad()
        (self.log_alpha.exp().detach() * log_pi - value).mean().backward()
        self.opt_policy.step()
        self.opt_alpha.zero_grad()
        (-self.log_alpha * (log_pi.detach().mean() - self.n_act)).backward()
        self.opt_alpha.step()

    @torch.no_grad()
    def follow(self, tau=0.005) -> None:
        """Targets towards the networks."""
        nets = [(self.target_actor, self.actor)]
        nets += [pair for a, b in zip(self.targets, self.critics, strict=True) for pair in zip(a, b, strict=True)]
        for target, net in nets:
            for p, q in zip(target.parameters(), net.parameters(), strict=True):
                p.lerp_(q, tau)

    def update(self, real: tuple, synthetic: tuple, mix=0.5, draws=None) -> None:
        """One update: real holds rows `[n, B, ...]`, synthetic the whole second buffer `[N, ...]`."""
        size, self.updates = real[0].shape[1], self.updates + 1
        count = round(mix * size)
        draws = draws or self.draw(size, count, len(synthetic[0]), real[0].device)
        drawn = [[x[rows] for x in synthetic] for rows in draws["rows"]]  # before any of them is written back
        for i, (obs, action, *rest) in enumerate(drawn):
            action = self.refined(self.critics[i], obs, action)
            synthetic[1][draws["rows"][i]] = action
            rows = [torch.cat((x, y[i, : size - count])) for x, y in zip((obs, action, *rest), real, strict=True)]
            self.critic_step(i, rows, draws["next"][i], draws["z"][i])
        if self.updates % 2 == 1:
            self.policy_step(draws["replica"], real[0][draws["replica"]], draws["action"])
            self.follow()
