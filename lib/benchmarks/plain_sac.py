"""The yardstick: a well-written single-seed SAC in plain PyTorch (nn.Linear, two critics, torch.optim.Adam)."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn


def mlp(n_in: int, width: int, n_out: int) -> nn.Sequential:
    """Two hidden layers with ReLU."""
    return nn.Sequential(nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_out))


class PlainSAC:
    """SAC as one would write it for one seed; the same algorithm and settings as `softpolicy.agents.sac`."""

    def __init__(self, n_obs, n_act, width=256, lr=3e-4, gamma=0.99, tau=0.005, device="cpu"):
        self.actor = mlp(n_obs, width, 2 * n_act).to(device)
        self.critics = nn.ModuleList(mlp(n_obs + n_act, width, 1) for _ in range(2)).to(device)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = torch.zeros(1, requires_grad=True, device=device)
        self.opt_actor = torch.optim.Adam(self.actor.parameters(), lr=lr, fused=True)
        self.opt_critic = torch.optim.Adam(self.critics.parameters(), lr=lr, fused=True)
        self.opt_alpha = torch.optim.Adam([self.log_alpha], lr=lr, fused=True)
        self.gamma, self.tau, self.n_act = gamma, tau, n_act

    def pi(self, obs):
        mean, log_std = self.actor(obs).chunk(2, -1)
        log_std = log_std.clamp(-20, 2)
        eps = torch.randn_like(mean)
        u = mean + log_std.exp() * eps
        log_det = 2 * (math.log(2) - u - F.softplus(-2 * u))
        log_pi = -0.5 * eps**2 - log_std - 0.5 * math.log(2 * math.pi) - log_det
        return u.tanh(), log_pi.sum(-1)

    def update(self, obs, action, reward, next_obs, terminated):
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_action, next_log_pi = self.pi(next_obs)
            x = torch.cat([next_obs, next_action], -1)
            q_next = torch.minimum(*(q(x).squeeze(-1) for q in self.targets))
            target = reward + self.gamma * (1 - terminated) * (q_next - alpha * next_log_pi)
        x = torch.cat([obs, action], -1)
        loss = sum(0.5 * F.mse_loss(q(x).squeeze(-1), target) for q in self.critics)
        self.opt_critic.zero_grad()
        loss.backward()
        self.opt_critic.step()

        self.critics.requires_grad_(False)  # the actor's gradient needs no gradient of critic weights
        action, log_pi = self.pi(obs)
        x = torch.cat([obs, action], -1)
        loss = (alpha * log_pi - torch.minimum(*(q(x).squeeze(-1) for q in self.critics))).mean()
        self.opt_actor.zero_grad()
        loss.backward()
        self.opt_actor.step()
        self.critics.requires_grad_(True)

        loss = (self.log_alpha.exp() * (-log_pi.detach() + self.n_act)).mean()
        self.opt_alpha.zero_grad()
        loss.backward()
        self.opt_alpha.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.parameters()), list(self.critics.parameters()), self.tau)
