"""Soft Q-learning with an amortised Stein sampler (arXiv 1702.08165), the baseline that S2AC's authors compare with.

Chapter *Stein soft actor-critic*. Equation numbers are those of 1702.08165. Twin critics, Polyak targets and the
numbers are those of the code released with S2AC (arXiv 2405.00987), where SQL is one of the actors.
"""

from __future__ import annotations

import copy
import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softpolicy import stein_policy as sp
from softpolicy import streams as rng
from softpolicy.nets import Critic, NoiseActor
from softpolicy.optim import adam, descend, polyak
from softpolicy.replay import Batch
from softpolicy.settings import one_of, require, setting
from softpolicy.svgd import RULES


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of SQL; "S2AC's code" is the baseline in that release, "SQL's code" that of the method's authors."""

    name = "sql"
    width: int = setting(256, "units of the hidden layers, two of a critic and three of the actor; S2AC's code")
    batch: int = setting(100, "transitions in an update; S2AC's code")
    gamma: float = setting(0.99, "discount factor; S2AC's code")
    tau: float = setting(0.005, "step of the targets towards the critics, each update; S2AC's code")
    lr: float = setting(1e-3, "learning rate of actor and critics (Adam); S2AC's code")
    capacity: int = setting(1_000_000, "transitions kept for each seed; S2AC's code")
    alpha: float = setting(0.2, "temperature, constant; S2AC's code")
    particles: int = setting(10, "actions a state that are moved, and as many that move them; S2AC's code")
    value_particles: int = setting(10, "actions in the estimate of the soft value; S2AC's code (SQL's code: 16)")
    bandwidth: str = setting("median", f"rule of the kernel, {', '.join(RULES)}; SQL (S2AC's code: half-mean)")
    sigma_floor: float = setting(0.0, "smallest bandwidth; S2AC's code (none)")
    score_temp: str = setting("alpha", "score grad Q / alpha (alpha; paper) or grad Q (one; S2AC's code)")
    squash_term: bool = setting(False, "add sum log(1 - a^2 + 1e-6) to Q in the score; paper False, SQL's code True")
    proposals: str = setting("uniform", "actions of the value: uniform (paper) or the policy's (policy; S2AC's code)")
    latent: str = setting(
        "normal", "noise of the actor: normal (SQL's code) or uniform in [0, 1) (uniform; S2AC's code)"
    )
    evaluate: str = setting("random", "action in evaluation: random (paper), best or softmax (S2AC's code)")

    def __post_init__(self):
        positive = dict.fromkeys(("width", "batch", "capacity", "particles", "value_particles"), (1, math.inf))
        require(self, **positive, gamma=(0, 1), tau=(0, 1), lr=(0, 1), alpha=(1e-12, 1e12), sigma_floor=(0, 1e12))
        one_of(self, bandwidth=RULES, score_temp=("alpha", "one"), proposals=("uniform", "policy"))
        one_of(self, latent=("normal", "uniform"), evaluate=("random", "best", "softmax"))

    def build(self, n_obs: int, n_act: int, seeds, device="cpu") -> SQL:
        """The agent for `seeds`, on `device`."""
        return SQL(self, n_obs, n_act, seeds, device)


RELEASE = dict(bandwidth="half-mean", score_temp="one", proposals="policy", latent="uniform", evaluate="softmax")


def soft_value(q: Tensor, alpha: float, n_act: int) -> Tensor:
    """`alpha log mean_m exp(min_e Q_e / alpha) + alpha A log 2`, equation 10 with uniform proposals on [-1, 1]^A:
    q `[..., M]` -> `[...]`, an estimate (biased low) of `alpha log int exp(Q / alpha) da`. With proposals of the
    policy, as in S2AC's code, it estimates something else."""
    return alpha * (torch.logsumexp(q / alpha, -1) - math.log(q.shape[-1]) + n_act * math.log(2))


class SQL(nn.Module):
    """S independent SQL agents in one set of matrix products."""

    def __init__(self, config: Config, n_obs: int, n_act: int, seeds, device="cpu"):
        super().__init__()
        self.config, self.n_act = config, n_act
        self.temperature = config.alpha if config.score_temp == "alpha" else 1.0
        self.latent = rng.normal if config.latent == "normal" else rng.uniform
        init, w = rng.generators(seeds, "init"), config.width
        self.actor = NoiseActor(n_obs, n_act, (w, w, w), init)
        self.critic = Critic(n_obs, n_act, (w, w), init, activation=F.relu)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.to(device)
        self.noise = rng.generators(seeds, "update", device=device)
        self.averages = list(self.target.parameters()), list(self.critic.parameters())
        self.opts = {"critic": adam(self.critic.parameters(), config.lr),
                     "policy": adam(self.actor.parameters(), config.lr)}  # fmt: skip

    @torch.no_grad()
    def act(self, obs: Tensor, streams=None, select: str | None = None) -> Tensor:
        """Actions `[S, N, A]` for observations `[S, N, O]`: one draw of the actor with `streams`; without, the
        evaluation action, whose noise is a function of the observation alone. `select` overrides which particle."""
        select = select or ("random" if streams is not None else self.config.evaluate)
        if select not in ("random", "best", "softmax"):
            raise ValueError(f"select must be random, best or softmax, got '{select}'")
        draws, m = sp.Draws(obs, streams), 1 if select == "random" else self.config.particles
        action = self.actor(obs, draws(self.latent, m, self.n_act))
        if m == 1:
            return action[:, :, 0]
        q = sp.Landscape(self.critic, obs, m).value(action)
        return sp.choose(select, action, q, self.temperature, draws(rng.uniform))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step for the critics, then one for the actor; metrics are `[S]` tensors."""
        cfg, n = self.config, batch.reward.shape[1]
        with torch.no_grad():
            value = soft_value(self.next_values(batch), cfg.alpha, self.n_act)
            target = sp.backup(batch, value, cfg.gamma)
        loss, info = sp.critic_loss(self.critic(batch.obs, batch.action), target)
        descend(self.opts["critic"], loss)

        z = self.latent(self.noise, n, 2 * cfg.particles, self.n_act)
        action = self.actor(batch.obs, z[:, :, : cfg.particles])
        with torch.no_grad():
            fixed = self.actor(batch.obs, z[:, :, cfg.particles :])
            score = self.score(sp.Landscape(self.critic, batch.obs, cfg.particles), fixed)
        loss, info["stein"] = sp.stein_loss(action, fixed, score, cfg.bandwidth, cfg.sigma_floor)
        descend(self.opts["policy"], loss)
        polyak(*self.averages, cfg.tau)
        return info | {"spread": fixed.std(2).mean((1, 2)) if cfg.particles > 1 else torch.zeros_like(info["q"])}

    def next_values(self, batch: Batch) -> Tensor:
        """`min_e Q_e(s', a')` of the targets at the proposals, `[S, B, M]`."""
        cfg, shape = self.config, (batch.reward.shape[1], self.config.value_particles, self.n_act)
        if cfg.proposals == "uniform":
            action = 2 * rng.uniform(self.noise, *shape) - 1
        else:
            action = self.actor(batch.next_obs, self.latent(self.noise, *shape))
        return sp.Landscape(self.target, batch.next_obs, cfg.value_particles).value(action.to(batch.next_obs))

    def score(self, landscape: sp.Landscape, action: Tensor) -> Tensor:
        """The gradient of the target's log-density over actions, `[S, B, M, A]`: `grad min_e Q_e / alpha`."""
        s = landscape.gradient(action) / self.temperature
        return s - 2 * action / (1 - action**2 + 1e-6) if self.config.squash_term else s
