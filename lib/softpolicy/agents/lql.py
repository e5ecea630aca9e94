"""Langevin Q-learning: actions by Langevin dynamics on an ordinary twin critic (arXiv 2602.07873).

Chapter *Langevin Q-learning*. The paper's numbers for LQL could not be consulted and its code has none: the defaults
give LQL the critic and the number of gradients of NC-LQL (20), and the step size of NC-LQL's last level.
"""

from __future__ import annotations

import copy
import dataclasses
import math

import torch
from torch import Tensor, nn

from softpolicy import langevin_policy as lp
from softpolicy import streams as rng
from softpolicy.nets import LevelCritic
from softpolicy.optim import adam, descend, polyak
from softpolicy.replay import Batch
from softpolicy.samplers import noise_levels, step_sizes
from softpolicy.settings import one_of, require, setting


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of LQL; "as NC-LQL" means the value of NC-LQL's released code."""

    name = "lql"
    width: int = setting(256, "units of each of the three hidden layers; as NC-LQL")
    batch: int = setting(256, "transitions in an update; as NC-LQL")
    gamma: float = setting(0.99, "discount factor; as NC-LQL")
    tau: float = setting(0.005, "step of the targets towards the critics, each update; as NC-LQL")
    lr: float = setting(1e-4, "learning rate of the critics (Adam); as NC-LQL")
    capacity: int = setting(1_000_000, "transitions kept for each seed; as NC-LQL")
    reward_scale: float = setting(0.2, "factor of the reward in the target; as NC-LQL")
    w: float = setting(500.0, "inverse temperature (a drift-to-noise ratio with unit gradients); as NC-LQL")
    langevin_steps: int = setting(20, "Langevin steps at each level of the schedule; ours: as many gradients as NC-LQL")
    step_lr: float = setting(1e-4, "step size, the last one if there are levels; as NC-LQL")
    levels: int = setting(1, "levels of an annealed schedule on the same critic; 1: constant steps (LQL); ours")
    sigma_max: float = setting(0.1, "with levels: step sizes go down as (sigma / sigma_min)^2 from here; as NC-LQL")
    sigma_min: float = setting(0.001, "with levels: to here; as NC-LQL")
    normalise: bool = setting(True, "divide the critics' gradient by its length; as NC-LQL")
    reduction: str = setting("sum", "sum or mean of the critics' gradients; as NC-LQL")
    chains: int = setting(1, "chains for an action, of which the best by the smaller critic is taken; as NC-LQL")
    evaluation: str = setting(
        "repeatable", "noise in evaluation: repeatable (from the observation) or fresh; as NC-LQL"
    )

    def __post_init__(self):
        require(self, width=(1, math.inf), batch=(1, math.inf), capacity=(1, math.inf), gamma=(0, 1), tau=(0, 1))
        require(self, lr=(0, 1), w=(1e-12, 1e12), langevin_steps=(1, math.inf), reward_scale=(1e-12, 1e12))
        require(self, chains=(1, math.inf))
        one_of(self, reduction=("sum", "mean"), evaluation=("repeatable", "fresh"))
        step_sizes(noise_levels(self.levels, self.sigma_max, self.sigma_min), self.step_lr)

    def build(self, n_obs: int, n_act: int, seeds, device="cpu") -> LQL:
        """The agent for `seeds`, on `device`."""
        return LQL(self, n_obs, n_act, seeds, device)


class LQL(nn.Module):
    """S independent LQL agents in one set of matrix products."""

    def __init__(self, config: Config, n_obs: int, n_act: int, seeds, device="cpu"):
        super().__init__()
        self.config, self.n_act = config, n_act
        steps = step_sizes(noise_levels(config.levels, config.sigma_max, config.sigma_min), config.step_lr)
        self.policy = lp.LangevinPolicy(
            steps, config.langevin_steps, config.w, config.normalise, config.reduction, config.chains
        )
        self.critic = LevelCritic(n_obs, n_act, (config.width,) * 3, rng.generators(seeds, "init"))
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.to(device)
        self.noise = rng.generators(seeds, "update", device=device)
        self.notice = lp.EdgeWatch()
        self.averages = list(self.target.parameters()), list(self.critic.parameters())
        self.opts = {"critic": adam(self.critic.parameters(), config.lr)}

    def act(self, obs: Tensor, streams=None) -> Tensor:
        """Actions `[S, N, A]` for observations `[S, N, O]`, drawn with `streams`; without, the evaluation action.

        That is the same sampler with noise that depends on the observation alone ("repeatable") or comes from the
        update's streams ("fresh").
        """
        if streams is None and self.config.evaluation == "repeatable":
            return self.policy.sample(self.critic, obs, *self.policy.draw_from(obs, self.n_act))
        return self.policy.sample(self.critic, obs, *self.policy.draw(streams or self.noise, obs.shape[1], self.n_act))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step for the critics; metrics are `[S]` tensors. The next action is sampled with the online
        critics and valued by the targets."""
        cfg = self.config
        with torch.no_grad():
            next_action = self.act(batch.next_obs, self.noise)
            target = lp.td_target(batch, self.target(batch.next_obs, next_action), cfg.gamma, cfg.reward_scale)
        info = self.fit(batch, target)
        polyak(*self.averages, cfg.tau)
        return info | {"saturated": lp.saturated(next_action)}

    def fit(self, batch: Batch, target: Tensor) -> dict[str, Tensor]:
        """The regression of an update: an Adam step of the critics towards `target` `[S, B]`."""
        q = self.critic(batch.obs, batch.action)
        loss = lp.regression(q, target)
        descend(self.opts["critic"], loss.sum())
        return {"critic_loss": loss.detach(), "q": q.detach().mean((1, 2))}
