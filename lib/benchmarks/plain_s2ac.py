"""The yardsticks for S2AC: one seed in plain PyTorch, and the way in which the released code goes about it."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(n_in: int, hidden: int, width: int, n_out: int) -> nn.Sequential:
    """`hidden` layers with ELU."""
    layers = [nn.Linear(n_in, width), nn.ELU()]
    for _ in range(hidden - 1):
        layers += [nn.Linear(width, width), nn.ELU()]
    return nn.Sequential(*layers, nn.Linear(width, n_out))


def squash_term(u: Tensor) -> Tensor:
    """`sum log(1 - tanh(u)^2)` over coordinates."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u)).sum(-1)


class PlainS2AC:
    """S2AC as one would write it for one seed: nn.Linear, autograd for the score with a graph only where the start
    law needs it, differences of all pairs; the same algorithm and settings as `softpolicy.agents.s2ac`."""

    start_outputs = staticmethod(lambda n_act: n_act + 1)  # mu and one log sigma
    graph_for_target = False

    def __init__(self, n_obs, n_act, width=256, particles=10, steps=3, device="cpu"):
        self.n_act, self.m, self.steps, self.eps, self.alpha = n_act, particles, steps, 0.1, 0.2
        self.start = mlp(n_obs, 3, width, self.start_outputs(n_act)).to(device)
        self.critics = nn.ModuleList(mlp(n_obs + n_act, 2, width, 1) for _ in range(2)).to(device)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.opt_start = torch.optim.Adam(self.start.parameters(), lr=1e-3, fused=True)
        self.opt_critic = torch.optim.Adam(self.critics.parameters(), lr=1e-3, fused=True)

    def min_q(self, critics, obs: Tensor, action: Tensor) -> Tensor:
        """`min_e Q_e` `[B, m]` at actions `[B, m, A]`."""
        x = torch.cat((obs[:, None].expand(-1, self.m, -1), action), -1)  # [B, m, O+A]
        return torch.minimum(*(q(x).squeeze(-1) for q in critics))

    def log_p(self, obs: Tensor, u: Tensor) -> Tensor:
        """The log-density that particles u follow, up to a constant."""
        return self.min_q(self.critics, obs, u.tanh()) / self.alpha + squash_term(u)

    def draw(self, obs: Tensor) -> Tensor:
        """Standard normal numbers cut at 3, `[B, m, A]`."""
        z = torch.empty(len(obs), self.m, self.n_act, device=obs.device)
        return nn.init.trunc_normal_(z, a=-3, b=3)

    def law(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the start law, `[B, A]`."""
        out = self.start(obs)
        std = out[:, self.n_act :].clamp(math.log(0.1), 0).exp()
        return out[:, : self.n_act], std.expand(-1, self.n_act)

    def begin(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Particles `[B, m, A]`, their log-density `[B, m]`, the start law's mean and deviation `[B, 1, A]`."""
        z, (mean, std) = self.draw(obs), (x[:, None] for x in self.law(obs))
        log_q = (-0.5 * z**2 - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
        return mean + std * z, log_q - self.n_act * math.log(math.erf(3 / math.sqrt(2))), mean, std

    def score(self, obs: Tensor, u: Tensor, graph: bool) -> Tensor:
        """The gradient of `log_p` at u, with a graph of its own if the caller goes on differentiating."""
        with torch.enable_grad():
            u = u if u.requires_grad else u.detach().requires_grad_()
            return torch.autograd.grad(self.log_p(obs, u).sum(), u, create_graph=graph)[0]

    def step(self, u: Tensor, s: Tensor, norm: int) -> tuple[Tensor, Tensor]:
        """Stein velocity `[B, m, A]` and the trace of its Jacobian `[B, m]`, the latter times m / norm."""
        r = u[:, :, None] - u[:, None]  # [B, m, m, A]
        d = r.square().sum(-1)
        sigma2 = (d.detach().mean((1, 2), keepdim=True) / (4 * math.log(self.m + 1))).clamp(min=1e-12)
        kernel = torch.exp(-d / (2 * sigma2))
        phi = (kernel[..., None] * (s[:, None] + r / sigma2[..., None])).mean(2)
        others = 1 - torch.eye(self.m, dtype=u.dtype, device=u.device)
        bracket = self.n_act - d / sigma2 - (r * s[:, None]).sum(-1)
        return phi, (others * kernel * bracket / sigma2).sum(-1) / norm

    def sample(self, obs: Tensor, graph: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Particles `[B, m, A]` before tanh, log pi of their actions and which of them count, `[B, m]`."""
        u, log_q, mean, std = self.begin(obs)
        stay = ((u - mean).abs() <= (3 + 1e-4) * std).all(-1)
        for _ in range(self.steps):
            phi, trace = self.step(u, self.score(obs, u, graph), self.m)
            u, log_q = u + self.eps * phi, log_q - self.eps * trace
            stay = stay & ((u - mean).abs() <= (3 + 1e-4) * std).all(-1)
        return u, log_q - squash_term(u), (stay | ~stay.any(-1, keepdim=True)).to(u)

    def value(self, critics, obs: Tensor, graph: bool) -> Tensor:
        """`mean_m (min_e Q_e - alpha log pi)` over the particles that count, `[B]`."""
        u, log_pi, weight = self.sample(obs, graph)
        return (weight * (self.min_q(critics, obs, u.tanh()) - self.alpha * log_pi)).sum(-1) / weight.sum(-1)

    def update(self, obs, action, reward, next_obs, terminated):
        """One step of the critics, one of the start law; obs `[B, O]`, action `[B, A]`, reward, terminated `[B]`."""
        self.critics.requires_grad_(self.graph_for_target)  # a score needs no gradient of critic weights
        with torch.set_grad_enabled(self.graph_for_target):
            value = self.value(self.targets, next_obs, self.graph_for_target)
            target = (reward + 0.99 * (1 - terminated) * value).detach()
        self.critics.requires_grad_(True)
        x = torch.cat((obs, action), -1)
        loss = sum(F.mse_loss(q(x).squeeze(-1), target) for q in self.critics)
        self.opt_critic.zero_grad()
        loss.backward()
        self.opt_critic.step()

        self.critics.requires_grad_(self.graph_for_target)
        loss = -self.value(self.critics, obs, graph=True).mean()
        self.opt_start.zero_grad()
        loss.backward()
        self.opt_start.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.parameters()), list(self.critics.parameters()), 0.005)


class ReleasedS2AC(PlainS2AC):
    """The same cost as the released code, with its settings (specification, 3.1, 3.2, 8): the start network is
    evaluated on 2,000 draws a state, of which the first m within 3 sigma are kept; the graph is kept for the critics'
    target as well and runs through the critics' weights. Particles follow exp(Q), Q taken at u itself."""

    start_outputs = staticmethod(lambda n_act: 2 * n_act)  # diagonal
    graph_for_target = True
    oversampling = 2000

    def log_p(self, obs, u):
        return self.min_q(self.critics, obs, u)

    def begin(self, obs):
        rows = obs.repeat_interleave(self.oversampling, 0)
        mean, std = (x.view(len(obs), self.oversampling, self.n_act) for x in self.law(rows))
        u = mean + std * torch.randn_like(mean)
        inside = ((u - mean).abs() < 3 * std).all(-1)  # [B, 2000]
        kept = inside.byte().argsort(dim=1, descending=True, stable=True)[:, : self.m, None].expand(-1, -1, self.n_act)
        u, mean, std = (x.gather(1, kept) for x in (u, mean, std))
        return u, torch.distributions.Normal(mean, std).log_prob(u).sum(-1), mean, std

    def sample(self, obs, graph):
        u, log_q, _, _ = self.begin(obs)
        for _ in range(self.steps):
            phi, trace = self.step(u, self.score(obs, u, graph), self.m - 1)
            u, log_q = u + self.eps * phi, log_q - self.eps * trace
        return u, log_q - squash_term(u), torch.ones_like(log_q)
