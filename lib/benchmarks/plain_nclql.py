"""The yardstick for NC-LQL: one seed in plain PyTorch (nn.Linear, F.mish, autograd for every step of the chain)."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn


class PlainCritic(nn.Module):
    """One noise-conditioned critic."""

    def __init__(self, n_obs, n_act, width):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16))
        n_in, act = n_obs + n_act + 16, nn.Mish()
        hidden = nn.Linear(n_in, width), act, nn.Linear(width, width), act, nn.Linear(width, width), act
        self.body = nn.Sequential(*hidden, nn.Linear(width, 1))
        angle = torch.arange(10)[:, None] * 10_000 ** (-torch.arange(8) / 8)
        self.register_buffer("codes", torch.cat((angle.sin(), angle.cos()), -1) / 4)

    def forward(self, obs, action, level):
        h = self.embed(self.codes[level]).expand(len(obs), -1)
        return self.body(torch.cat((obs, action, h), -1)).squeeze(-1)


class PlainNCLQL:
    """NC-LQL as one would write it for one seed; the same algorithm and settings as `softpolicy.agents.nclql`."""

    def __init__(self, n_obs, n_act, width=256, device="cpu"):
        self.critics = nn.ModuleList(PlainCritic(n_obs, n_act, width) for _ in range(2)).to(device)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.opt = torch.optim.Adam(self.critics.parameters(), lr=1e-4, fused=True)
        self.sigmas = torch.exp(torch.linspace(math.log(0.1), math.log(0.001), 10)).to(device)
        self.n_act = n_act

    def sample(self, obs):
        x = 2 * torch.rand(len(obs), self.n_act, device=obs.device) - 1
        self.critics.requires_grad_(False)  # the chain needs no gradient of critic weights
        for level in range(10):
            eps = 1e-4 * float(self.sigmas[level] / self.sigmas[-1]) ** 2
            for _ in range(2):
                x.requires_grad_()
                (g,) = torch.autograd.grad(sum(q(obs, x, level).sum() for q in self.critics), x)
                g = g / (g.norm(dim=-1, keepdim=True) + 1e-8)
                x = (x.detach() + 0.5 * eps * 500 * g + math.sqrt(eps) * torch.randn_like(x)).clamp(-1, 1)
        self.critics.requires_grad_(True)
        return x

    def fit(self, values, target):
        self.opt.zero_grad()
        sum(F.mse_loss(q, target) for q in values).backward()
        self.opt.step()

    def update(self, obs, action, reward, next_obs, terminated):
        next_action = self.sample(next_obs)
        with torch.no_grad():
            q_next = torch.minimum(*(q(next_obs, next_action, 9) for q in self.targets))
            target = 0.2 * reward + 0.99 * (1 - terminated) * q_next
        values = [q(obs, action, 9) for q in self.critics]
        clean = sum(values).detach() / 2
        self.fit(values, target)
        level = torch.randint(9, (len(obs),), device=obs.device)
        noisy = action + self.sigmas[level][:, None] * torch.randn_like(action)
        self.fit([q(obs, noisy, level) for q in self.critics], clean)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.parameters()), list(self.critics.parameters()), 0.005)
