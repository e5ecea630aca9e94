"""DSAC-T, the distributional soft actor-critic that LSAC is built on (arXiv 2310.05858): one pair of Gaussian return
critics, trained with Adam, on real transitions only.

It is LSAC's agent (`agents.lsac`, an exception to the rule that agents do not import each other: they differ in
nothing but these settings); chapter *Langevin soft actor-critic*.
"""

from __future__ import annotations

import dataclasses
import math

from softpolicy.agents import lsac
from softpolicy.settings import require, setting


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of DSAC-T; "code" is its authors' public code in the form that LSAC's code contains."""

    name = "dsact"
    width: int = setting(256, "units of each of the three hidden layers; code")
    batch: int = setting(256, "transitions in an update; code")
    gamma: float = setting(0.99, "discount factor; code")
    tau: float = setting(0.005, "step of target critics and target policy, each time they move; code")
    capacity: int = setting(1_000_000, "transitions kept for each seed; code")
    lr: float = setting(1e-4, "learning rate of the critics (Adam); code")
    policy_lr: float = setting(1e-4, "learning rate of the policy (Adam); code")
    alpha_lr: float = setting(3e-4, "learning rate of the temperature (Adam); code")
    delay: int = setting(2, "updates for one step of policy, temperature and targets; code")
    init_log_alpha: float = setting(1.0, "log temperature at the start; code")
    target_entropy: float = setting(0.0, "entropy that the temperature aims at, in nats; 0 stands for -A; code")
    xi: float = setting(3.0, "bound on return samples, in standard deviations; code")
    tau_b: float = setting(0.005, "step of the running standard deviation; code")

    def __post_init__(self):
        require(self, width=(1, math.inf), batch=(1, math.inf), capacity=(1, math.inf), delay=(1, math.inf))
        require(self, **dict.fromkeys(("gamma", "tau", "tau_b", "lr", "policy_lr", "alpha_lr"), (0, 1)))
        require(self, init_log_alpha=(-80, 80), target_entropy=(-1e6, 1e6), xi=(1e-12, 1e12))

    def build(self, n_obs: int, n_act: int, seeds, device="cpu") -> lsac.LSAC:
        """The agent for `seeds`, on `device`."""
        config = lsac.Config(
            **dataclasses.asdict(self), replicas=1, optimizer="adam", decay=False, mix=0, diffusion=False, refine="off"
        )
        return lsac.LSAC(config, n_obs, n_act, seeds, device)
