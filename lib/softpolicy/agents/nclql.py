"""Noise-conditioned Langevin Q-learning: a critic smoothed at every noise level, sampled coarse to fine.

arXiv 2602.07873, in the form and with the numbers of the authors' code; chapter *Langevin Q-learning*. Levels count
from 0 (largest noise) to L-1 (smallest), as in the code; the paper counts from 1.
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
    """Settings of NC-LQL; "code" is the authors' released code, which runs every task with these numbers."""

    name = "nclql"
    width: int = setting(256, "units of each of the three hidden layers; code")
    batch: int = setting(256, "transitions in an update; code")
    gamma: float = setting(0.99, "discount factor; code")
    tau: float = setting(0.005, "step of the targets towards the critics, each update; code")
    lr: float = setting(1e-4, "learning rate of the critics (Adam); code")
    capacity: int = setting(1_000_000, "transitions kept for each seed; code")
    reward_scale: float = setting(0.2, "factor of the reward in the target; code")
    w: float = setting(500.0, "inverse temperature (a drift-to-noise ratio with unit gradients); code")
    levels: int = setting(10, "noise levels L; paper, code")
    langevin_steps: int = setting(2, "Langevin steps at each level; code")
    step_lr: float = setting(1e-4, "step size at the last level; code")
    sigma_max: float = setting(0.1, "noise of level 0; code")
    sigma_min: float = setting(0.001, "noise of level L-1; code")
    normalise: bool = setting(True, "divide the critics' gradient by its length; code")
    reduction: str = setting("sum", "sum or mean of the critics' gradients; code")
    chains: int = setting(1, "chains for an action, of which the best by the smaller critic is taken; code")
    chains_in: str = setting("all", "several chains everywhere (all; code) or in evaluation only (evaluation; flow-rl)")
    optimiser_steps: str = setting("two", "TD and smoothing in two Adam steps with one state, or joint; code")
    smoothing_target: str = setting("before", "mean online critic before or after the TD step, or target; code")
    network: str = setting("authors", "level codes and initialisation of authors or flow-rl; code")
    evaluation: str = setting("repeatable", "noise in evaluation: repeatable (from the observation) or fresh; code")

    def __post_init__(self):
        require(self, width=(1, math.inf), batch=(1, math.inf), capacity=(1, math.inf), gamma=(0, 1), tau=(0, 1))
        require(
            self,
            lr=(0, 1),
            w=(1e-12, 1e12),
            langevin_steps=(1, math.inf),
            reward_scale=(1e-12, 1e12),
            chains=(1, math.inf),
        )
        one_of(self, reduction=("sum", "mean"), evaluation=("repeatable", "fresh"), chains_in=("all", "evaluation"))
        one_of(self, optimiser_steps=("two", "joint"), smoothing_target=("before", "after", "target"))
        one_of(self, network=("authors", "flow-rl"))
        if (self.optimiser_steps, self.smoothing_target) == ("joint", "after"):
            raise ValueError("nclql: with optimiser_steps joint there is no parameter after the TD step; give two")
        step_sizes(noise_levels(self.levels, self.sigma_max, self.sigma_min), self.step_lr)

    def build(self, n_obs: int, n_act: int, seeds, device="cpu") -> NCLQL:
        """The agent for `seeds`, on `device`."""
        return NCLQL(self, n_obs, n_act, seeds, device)


class NCLQL(nn.Module):
    """S independent NC-LQL agents in one set of matrix products."""

    def __init__(self, config: Config, n_obs: int, n_act: int, seeds, device="cpu"):
        super().__init__()
        self.config, self.n_act, self.finest = config, n_act, config.levels - 1
        sigmas = noise_levels(config.levels, config.sigma_max, config.sigma_min)
        self.evaluation = lp.LangevinPolicy(
            step_sizes(sigmas, config.step_lr),
            config.langevin_steps,
            config.w,
            config.normalise,
            config.reduction,
            config.chains,
        )
        chains = config.chains if config.chains_in == "all" else 1
        self.training = dataclasses.replace(self.evaluation, chains=chains)
        self.critic = LevelCritic(
            n_obs, n_act, (config.width,) * 3, rng.generators(seeds, "init"), config.levels, variant=config.network
        )
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("sigmas", torch.tensor(sigmas), persistent=False)
        self.to(device)
        self.noise = rng.generators(seeds, "update", device=device)
        self.notice = lp.EdgeWatch()
        self.averages = list(self.target.parameters()), list(self.critic.parameters())
        self.opts = {"critic": adam(self.critic.parameters(), config.lr)}

    def act(self, obs: Tensor, streams=None) -> Tensor:
        """Actions `[S, N, A]` for observations `[S, N, O]`, drawn with `streams`; without, the evaluation action.

        That is the same sampler, not a maximum, with noise that depends on the observation alone ("repeatable") or
        comes from the update's streams ("fresh").
        """
        policy = self.evaluation if streams is None else self.training
        if streams is None and self.config.evaluation == "repeatable":
            return policy.sample(self.critic, obs, *policy.draw_from(obs, self.n_act))
        return policy.sample(self.critic, obs, *policy.draw(streams or self.noise, obs.shape[1], self.n_act))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """A temporal-difference step at the finest level, then a smoothing step at the others; `[S]` metrics.

        The next action is sampled with the online critics and valued by the targets.
        """
        cfg = self.config
        with torch.no_grad():
            next_action = self.act(batch.next_obs, self.noise)
            q_next = self.target(batch.next_obs, next_action, self.finest)
            target = lp.td_target(batch, q_next, cfg.gamma, cfg.reward_scale)
        info = self.fit(batch, target)
        polyak(*self.averages, cfg.tau)
        return info | {"saturated": lp.saturated(next_action)}

    def fit(self, batch: Batch, target: Tensor) -> dict[str, Tensor]:
        """The two regressions of an update: the finest level to `target` `[S, B]`, the others to the finest.

        With a single level there is nothing to smooth.
        """
        cfg, opt = self.config, self.opts["critic"]
        q = self.critic(batch.obs, batch.action, self.finest)
        td_loss, clean = lp.regression(q, target), self.clean_value(batch, q)
        info = {"critic_loss": td_loss.detach(), "q": q.detach().mean((1, 2))}
        if cfg.levels == 1:
            descend(opt, td_loss.sum())
            return info
        if cfg.optimiser_steps == "joint":
            smoothing = self.smoothing_loss(batch, clean)
            descend(opt, (td_loss + smoothing).sum())
        else:
            descend(opt, td_loss.sum())
            if cfg.smoothing_target == "after":
                clean = self.clean_value(batch, self.critic(batch.obs, batch.action, self.finest))
            smoothing = self.smoothing_loss(batch, clean)
            descend(opt, smoothing.sum())  # the same optimiser: its moments see both losses in turn
        return info | {"smoothing_loss": smoothing.detach()}

    def clean_value(self, batch: Batch, q: Tensor) -> Tensor:
        """What the coarse levels are fitted to, `[S, B]`, a constant: the mean of the critics' `q` `[S, E, B]` at the
        clean action and the finest level (of the targets with smoothing_target "target")."""
        with torch.no_grad():
            if self.config.smoothing_target == "target":
                q = self.target(batch.obs, batch.action, self.finest)
            return q.detach().mean(1)

    def smoothing_loss(self, batch: Batch, clean: Tensor) -> Tensor:
        """`mean_b (Q_e(s, a + sigma_l z, l) - clean)^2` summed over e, `[S]`, l uniform on 0..L-2 for each sample.

        The noisy action is not clipped. Minimised by the posterior mean `E[Q(s, a) | s, a + sigma_l z]` under the
        actions in the replay.
        """
        n = batch.reward.shape[1]
        level = (rng.uniform(self.noise, n) * self.finest).long().clamp(max=self.finest - 1)  # [S, B]
        z = rng.normal(self.noise, n, self.n_act)
        noisy = batch.action + self.sigmas[level][..., None] * z
        return lp.regression(self.critic(batch.obs, noisy, level), clean)
