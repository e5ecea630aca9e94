"""Soft actor-critic with twin critics and an automatic temperature (arXiv 1801.01290, 1812.05905).

Chapter *Soft policies*. Equation numbers are those of 1812.05905. Tensors carry the seed axis S first; each loss
is a sum over S, so every seed is trained exactly as if it were alone.
"""

from __future__ import annotations

import copy
import dataclasses
import math

import torch
from torch import Tensor, nn

from softpolicy import streams as rng
from softpolicy.nets import Critic, GaussianActor
from softpolicy.optim import adam, descend, polyak
from softpolicy.replay import Batch
from softpolicy.settings import require, setting


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of SAC. "paper" is 1812.05905, appendix D, as public implementations cite it: its own text could not be
    consulted."""

    name = "sac"
    width: int = setting(256, "units of each of the two hidden layers; paper")
    batch: int = setting(256, "transitions in an update; paper")
    gamma: float = setting(0.99, "discount factor; paper")
    tau: float = setting(0.005, "step of the targets towards the critics, each update; paper")
    lr: float = setting(3e-4, "learning rate of actor, critics and temperature (Adam); paper")
    capacity: int = setting(1_000_000, "transitions kept for each seed; paper")
    init_alpha: float = setting(1.0, "temperature at the start; released code (log alpha = 0)")
    learn_alpha: bool = setting(True, "adapt the temperature, equation 18; False keeps init_alpha; paper")
    target_entropy: float = setting(0.0, "entropy that the temperature aims at, in nats; 0 stands for -A; paper")

    def __post_init__(self):
        require(self, width=(1, math.inf), batch=(1, math.inf), capacity=(1, math.inf), gamma=(0, 1), tau=(0, 1))
        require(self, lr=(0, 1), init_alpha=(1e-12, 1e12), target_entropy=(-1e12, 1e12))

    def build(self, n_obs: int, n_act: int, seeds, device="cpu") -> SAC:
        """The agent for `seeds`, on `device`."""
        return SAC(self, n_obs, n_act, seeds, device)


def soft_target(batch: Batch, q_next: Tensor, log_pi_next: Tensor, alpha: Tensor, gamma: float) -> Tensor:
    """`r + gamma (1 - terminated) (min_e Q_e(s', a') - alpha log pi(a'|s'))`, `[S, B]`: equations 2, 3 and 5.

    q_next `[S, E, B]`, log_pi_next `[S, B]`, alpha `[S]`.
    """
    soft_value = q_next.amin(1) - alpha[:, None] * log_pi_next  # [S, B]
    return batch.reward + gamma * (1 - batch.terminated) * soft_value


def critic_loss(q: Tensor, target: Tensor) -> tuple[Tensor, dict]:
    """`sum_s sum_e mean_b (Q_e - target)^2 / 2`, equation 5; q `[S, E, B]`, target `[S, B]`."""
    loss = 0.5 * (q - target[:, None]).square().mean(-1).sum(1)  # [S]
    return loss.sum(), {"critic_loss": loss.detach(), "q": q.detach().mean((1, 2))}


def actor_loss(q: Tensor, log_pi: Tensor, alpha: Tensor) -> tuple[Tensor, dict]:
    """`sum_s mean_b (alpha log pi(a|s) - min_e Q_e(s, a))` at reparameterised actions, equation 9."""
    loss = (alpha[:, None] * log_pi - q.amin(1)).mean(-1)  # [S]
    return loss.sum(), {"actor_loss": loss.detach(), "entropy": -log_pi.detach().mean(-1)}


def temperature_loss(log_alpha: Tensor, log_pi: Tensor, target_entropy: float) -> tuple[Tensor, dict]:
    """`sum_s alpha mean_b (-log pi(a|s) - target_entropy)`, equation 18; log_alpha `[S]`, log_pi `[S, B]` constant."""
    alpha = log_alpha.exp()
    loss = alpha * (-log_pi.detach().mean(-1) - target_entropy)  # [S]
    return loss.sum(), {"alpha": alpha.detach()}


class SAC(nn.Module):
    """S independent SAC agents in one set of matrix products."""

    def __init__(self, config: Config, n_obs: int, n_act: int, seeds, device="cpu"):
        super().__init__()
        self.config, self.n_act = config, n_act
        hidden = (config.width, config.width)
        init = rng.generators(seeds, "init")
        self.actor = GaussianActor(n_obs, n_act, hidden, init)
        self.critic = Critic(n_obs, n_act, hidden, init)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.full((len(seeds),), config.init_alpha).log())
        self.to(device)
        self.noise = rng.generators(seeds, "update", device=device)
        self.averages = list(self.target.parameters()), list(self.critic.parameters())
        temperature = [self.log_alpha] if config.learn_alpha else []
        self.opts = {  # Adam works elementwise: actor and temperature share a step but no statistics
            "critic": adam(self.critic.parameters(), config.lr),
            "policy": adam([*self.actor.parameters(), *temperature], config.lr),
        }

    @torch.no_grad()
    def act(self, obs: Tensor, streams=None) -> Tensor:
        """Actions `[S, N, A]` for observations `[S, N, O]`: sampled with `streams`; without, the medians tanh(mu)."""
        return self.actor.act(obs, streams)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step for the critics, then one for actor and temperature; metrics are `[S]` tensors.

        No shape depends on data and nothing is read back from the device.
        """
        cfg, n = self.config, batch.reward.shape[1]
        alpha = self.log_alpha.detach().exp()

        with torch.no_grad():
            next_action, next_log_pi = self.actor.sample(batch.next_obs, rng.normal(self.noise, n, self.n_act))
            q_next = self.target(batch.next_obs, next_action)
            target = soft_target(batch, q_next, next_log_pi, alpha, cfg.gamma)
        loss, info = critic_loss(self.critic(batch.obs, batch.action), target)
        descend(self.opts["critic"], loss)

        action, log_pi = self.actor.sample(batch.obs, rng.normal(self.noise, n, self.n_act))
        loss, actor_info = actor_loss(self.critic(batch.obs, action), log_pi, alpha)
        alpha_loss, alpha_info = temperature_loss(self.log_alpha, log_pi, cfg.target_entropy or -float(self.n_act))
        descend(self.opts["policy"], loss + alpha_loss)  # neither loss has a gradient for the other's parameters

        polyak(*self.averages, cfg.tau)
        return info | actor_info | alpha_info
