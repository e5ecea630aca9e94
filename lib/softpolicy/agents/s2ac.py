"""Stein soft actor-critic: particles moved by SVGD from a learned Gaussian, with their entropy in closed form.

arXiv 2405.00987; chapter *Stein soft actor-critic*. The defaults are the paper's method, as far as it is known; each
point where the released code departs from it is a named setting, and `RELEASE` holds all of them. u is a particle
before the squashing, a = tanh(u) the action.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softpolicy import stein_policy as sp
from softpolicy import streams as rng
from softpolicy.nets import Critic, NoiseActor, StartLaw, cut_normal, log_det_tanh
from softpolicy.optim import adam, descend, polyak
from softpolicy.replay import Batch
from softpolicy.settings import one_of, require, setting
from softpolicy.svgd import RULES, refuse_few, refuse_single, svgd, warn_unless_invertible

SELECT = ("random", "best", "softmax", "amortised")
ACTIVATIONS = {"elu": F.elu, "relu": F.relu}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of S2AC; "code" is the authors' released code, which holds the only documented numbers."""

    name = "s2ac"
    width: int = setting(256, "units of a hidden layer; code")
    start_layers: int = setting(3, "hidden layers of start law and amortised sampler; a critic has two; code")
    activation: str = setting("elu", f"of all networks, {' or '.join(ACTIVATIONS)}; code")
    batch: int = setting(100, "transitions in an update; code")
    gamma: float = setting(0.99, "discount factor; code")
    tau: float = setting(0.005, "step of the targets towards the critics, each update; code")
    lr: float = setting(1e-3, "learning rate of start law and critics (Adam); code")
    capacity: int = setting(1_000_000, "transitions kept for each seed; code")
    alpha: float = setting(0.2, "temperature, constant; code")
    particles: int = setting(10, "particles m of a state; code")
    svgd_steps: int = setting(3, "SVGD steps L; 0 is SAC; paper, code (MuJoCo; 10 for multi-goal)")
    svgd_lr: float = setting(0.1, "step size eps; code")
    bandwidth: str = setting("half-mean", f"rule of the kernel, {', '.join(RULES)}; code")
    sigma: float = setting(0.0, "fixed bandwidth in place of the rule; 0 takes the rule; code")
    sigma_floor: float = setting(0.0, "smallest bandwidth, of the rule or sigma; code (none)")
    step_cap: float = setting(0.0, "largest eps times the Jacobian's bound, as in `svgd`; 0 for none; ours")
    score_temp: str = setting("alpha", "particles seek exp(Q / alpha) (alpha; paper) or exp(Q) (one; code)")
    score_at: str = setting("density", "Q at tanh(u) with the density's log-Jacobian (density; ours, makes a follow"
                            " exp(Q / alpha)), without it (squashed), or at u itself (raw; code)")  # fmt: skip
    norm: str = setting("m", "factor of the trace in log q: m (paper) or m-1 (code)")
    self_kernel: bool = setting(False, "keep the particle's own kernel term in the trace; paper, code False")
    hessian: bool = setting(False, "add the particle's own Hessian term by Hutchinson's estimate; paper, code False")
    start: str = setting("isotropic", "start law: isotropic (paper), diagonal (code), full covariance, or none (fixed)")
    std_min: float = setting(0.1, "smallest standard deviation of the start law; code")
    std_max: float = setting(1.0, "largest standard deviation of the start law; code")
    std_fixed: float = setting(0.5, "standard deviation of the start law none; code")
    truncation: str = setting("select", "particles within 3 sigma of the start's mean: at all steps, those that left"
                              " not counted (select; paper), at the start (initial; code), or none")  # fmt: skip
    explore: str = setting("random", "particle that acts in training: random, best, softmax; code")
    evaluate: str = setting("softmax", "the same in evaluation, or amortised, which needs that switch; code")
    amortised: bool = setting(False, "also train the sampler f(s, z) for test time; paper (works in no released code)")
    amortised_by: str = setting("own", "what moves that sampler: its own actions, as in SQL (own; ours), or the"
                                " particles (particles; code, no signal once these follow the policy)")  # fmt: skip
    latent: str = setting("normal", "noise of that sampler: normal (as SQL's code) or uniform in [0, 1) (code)")

    def __post_init__(self):
        positive = dict.fromkeys(("width", "start_layers", "batch", "capacity", "particles"), (1, math.inf))
        require(self, **positive, gamma=(0, 1), tau=(0, 1), lr=(0, 1), alpha=(1e-12, 1e12), svgd_steps=(0, math.inf))
        require(self, svgd_lr=(1e-12, 1e12), sigma=(0, 1e12), sigma_floor=(0, 1e12), step_cap=(0, 1e12))
        require(self, std_min=(1e-12, self.std_max), std_max=(1e-12, 1e12), std_fixed=(1e-12, 1e12))
        one_of(self, activation=tuple(ACTIVATIONS), bandwidth=RULES, norm=("m", "m-1"))
        one_of(self, score_temp=("alpha", "one"), score_at=("density", "squashed", "raw"))
        one_of(self, start=("isotropic", "diagonal", "full", "none"))
        one_of(self, truncation=("select", "initial", "none"), latent=("normal", "uniform"))
        one_of(self, amortised_by=("own", "particles"))
        one_of(self, explore=SELECT[:3], evaluate=SELECT if self.amortised else SELECT[:3])
        if self.svgd_steps:
            refuse_few(self.particles, self.sigma or self.bandwidth, self.sigma_floor)
            refuse_single(self.particles, self.norm, self.self_kernel, not (self.sigma or self.sigma_floor))

    def build(self, n_obs: int, n_act: int, seeds, device="cpu") -> S2AC:
        """The agent for `seeds`, on `device`."""
        return S2AC(self, n_obs, n_act, seeds, device)


# What the released code does where it departs from the paper: `sized(Config, "paper", **RELEASE)`.
RELEASE = dict(
    score_temp="one",
    score_at="raw",
    norm="m-1",
    truncation="initial",
    start="diagonal",
    latent="uniform",
    amortised_by="particles",
)
# With these S2AC is SAC at a fixed temperature, but for its evaluation, which draws an action.
AS_SAC = dict(
    svgd_steps=0,
    particles=1,
    truncation="none",
    start="diagonal",
    std_min=math.exp(-20),
    std_max=math.exp(2),
    start_layers=2,
    activation="relu",
    lr=3e-4,
)


class Sample(NamedTuple):
    """The particles of a batch of states and what the losses need of them; without density no log_pi and stein."""

    u: Tensor  # [S, B, M, A]
    log_pi: Tensor | None  # [S, B, M], the log-density of tanh(u)
    weight: Tensor  # [S, B, M], 0 for particles that do not count
    inside: Tensor  # [S, B, M], whether the particle ends within 3 sigma of the start's mean
    stein: Tensor | None  # [S, B, M], log q^L - log q^0: what SVGD adds
    sigma: Tensor  # [L, S, B], bandwidths
    bound: Tensor  # [L, S, B], from 1 on a step may not be invertible
    step: Tensor  # [L, S, B], step sizes


def soft_value(q: Tensor, log_pi: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """`mean_m (min_e Q_e(s, a_m) - alpha log pi(a_m|s))`, `[S, B]`, over the particles of weight 1; all `[S, B, M]`.

    With target critics it is the value in the backup; minus its mean over states is the loss of the start law.
    """
    return (weight * (q - alpha * log_pi)).sum(-1) / weight.sum(-1)


class S2AC(nn.Module):
    """S independent S2AC agents in one set of matrix products."""

    def __init__(self, config: Config, n_obs: int, n_act: int, seeds, device="cpu"):
        super().__init__()
        self.config, self.n_act = config, n_act
        self.temperature = config.alpha if config.score_temp == "alpha" else 1.0
        self.latent = rng.normal if config.latent == "normal" else rng.uniform
        init, w, lr, f = rng.generators(seeds, "init"), config.width, config.lr, ACTIVATIONS[config.activation]
        hidden, std_range = (w,) * config.start_layers, (config.std_min, config.std_max)
        self.start = StartLaw(n_obs, n_act, hidden, init, config.start, std_range, config.std_fixed, f)
        self.critic = Critic(n_obs, n_act, (w, w), init, activation=f)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.amortised = NoiseActor(n_obs, n_act, hidden, init, f) if config.amortised else None
        self.to(device)
        self.noise = rng.generators(seeds, "update", device=device)
        self.averages = list(self.target.parameters()), list(self.critic.parameters())
        learned = {"critic": self.critic, "start": config.start != "none" and self.start, "amortised": self.amortised}
        self.opts = {name: adam(net.parameters(), lr) for name, net in learned.items() if net}

    def score(self, landscape: sp.Landscape):
        """The score of the particles' target at u `[S, B, M, A]`, by default that of
        `min_e Q_e(s, tanh u) / alpha + sum log(1 - tanh(u)^2)`."""
        cfg = self.config
        if cfg.score_at == "raw":
            return lambda u: landscape.gradient(u) / self.temperature

        def score(u: Tensor) -> Tensor:
            a = u.tanh()
            s = landscape.gradient(a) * (1 - a**2) / self.temperature
            return s - 2 * a if cfg.score_at == "density" else s

        return score

    def begin(self, obs: Tensor, draws: sp.Draws) -> tuple[Tensor, Tensor, tuple]:
        """Particles before the first step, as `StartLaw.sample` gives them."""
        cfg, shape = self.config, (self.config.particles, self.n_act)
        if cfg.truncation == "none":
            return self.start.sample(obs, draws(rng.normal, *shape))
        return self.start.sample(obs, cut_normal(draws(rng.uniform, *shape), 3.0), 3.0)

    def sample(self, landscape: sp.Landscape, obs: Tensor, draws: sp.Draws, density=True, volume="trace") -> Sample:
        """Particles at obs `[S, B, O]`; gradients reach the start law through all SVGD steps. Without `density` no
        log pi; `volume` as in `svgd`."""
        cfg, shape = self.config, (self.config.particles, self.n_act)
        u, log_q, (mean, std) = self.begin(obs, draws)
        hessian = cfg.hessian and density and volume == "trace"
        signs = (2.0 * (draws(rng.uniform, *shape) < 0.5) - 1 for _ in range(cfg.svgd_steps))
        flow = svgd(
            self.score(landscape), u, cfg.svgd_lr, cfg.svgd_steps, bandwidth=cfg.sigma or cfg.bandwidth,
            floor=cfg.sigma_floor, log_q=log_q if density else None, norm=cfg.norm, self_kernel=cfg.self_kernel,
            probes=signs if hessian else None, volume=volume, cap=cfg.step_cap, trajectory=True, check=False,
        )  # fmt: skip
        u, path = flow.x[-1], flow.x.detach()
        inside = ((path - mean.detach()).abs() <= (3 + 1e-4) * std.detach()).all(-1)  # [1+L, S, B, M]
        stayed = inside.all(0) if cfg.truncation == "select" else torch.ones_like(inside[0])
        weight = (stayed | ~stayed.any(-1, keepdim=True)).to(u)  # where none stayed, all count
        log_pi = flow.log_q[-1] - log_det_tanh(u).sum(-1) if density else None
        stein = (flow.log_q[-1] - log_q).detach() if density else None
        return Sample(u, log_pi, weight, inside[-1], stein, flow.sigma, flow.bound, flow.step)

    @torch.no_grad()
    def act(self, obs: Tensor, streams=None, select: str | None = None) -> Tensor:
        """Actions `[S, N, A]` for observations `[S, N, O]`: a particle chosen as in training with `streams`; without,
        as in evaluation, from noise that is a function of the observation alone. `select` overrides the choice.

        In evaluation a user is warned, once, of steps that may not be invertible.
        """
        cfg, draws = self.config, sp.Draws(obs, streams)
        select = select or (cfg.evaluate if streams is None else cfg.explore)
        if select not in SELECT or (select == "amortised" and not self.amortised):
            raise ValueError(f"select must be {', '.join(SELECT[:3])} or, with that setting, amortised; got '{select}'")
        if select == "amortised":
            return self.amortised(obs, draws(self.latent, 1, self.n_act))[:, :, 0]
        landscape = sp.Landscape(self.critic, obs, cfg.particles)
        sample = self.sample(landscape, obs, draws, density=False)
        if streams is None:
            warn_unless_invertible(cfg.svgd_lr, sample.bound)
        action = sample.u.tanh()
        if cfg.particles == 1:
            return action[:, :, 0]
        q = torch.zeros_like(sample.weight) if select == "random" else landscape.value(action)
        return sp.choose(select, action, q, self.temperature, draws(rng.uniform), sample.weight)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step for the critics, one for the start law and, if asked for, one for the amortised sampler;
        metrics are `[S]` tensors.

        No shape depends on data and nothing is read back from the device.
        """
        cfg, draws = self.config, sp.Draws(batch.obs, self.noise)
        with torch.no_grad():
            landscape = sp.Landscape(self.critic, batch.next_obs, cfg.particles)
            ahead = self.sample(landscape, batch.next_obs, draws)
            q_next = sp.Landscape(self.target, batch.next_obs, cfg.particles).value(ahead.u.tanh())
            value = soft_value(q_next, ahead.log_pi, ahead.weight, cfg.alpha)
            target = sp.backup(batch, value, cfg.gamma)
        loss, info = sp.critic_loss(self.critic(batch.obs, batch.action), target)
        descend(self.opts["critic"], loss)
        info |= self.describe(ahead)

        landscape = sp.Landscape(self.critic, batch.obs, cfg.particles)
        if "start" in self.opts:
            here = self.sample(landscape, batch.obs, draws)
            loss = -soft_value(landscape.value(here.u.tanh()), here.log_pi, here.weight, cfg.alpha).mean(-1)  # [S]
            descend(self.opts["start"], loss.sum())
            info["actor_loss"] = loss.detach()
        if self.amortised:
            loss, info["stein_amortised"] = self.amortised_loss(landscape, batch.obs, draws)
            descend(self.opts["amortised"], loss)
        polyak(*self.averages, cfg.tau)
        return info

    def amortised_loss(self, landscape: sp.Landscape, obs: Tensor, draws: sp.Draws) -> tuple[Tensor, Tensor]:
        """Moves the actions f(s, z) along a Stein velocity in [-1, 1]^A: of further actions of f, SQL's equation 13, or
        of S2AC's particles.

        The latter, which the released code intends, has mean zero at *every* action once the particles follow
        exp(Q / alpha): that is Stein's identity.
        """
        cfg, shape = self.config, (self.config.particles, self.n_act)
        action = self.amortised(obs, draws(self.latent, *shape))
        with torch.no_grad():
            if cfg.amortised_by == "own":
                fixed = self.amortised(obs, draws(self.latent, *shape))
            else:
                fixed = self.sample(landscape, obs, draws, density=False).u.tanh()
            score = landscape.gradient(fixed) / self.temperature
        return sp.stein_loss(action, fixed, score, cfg.sigma or cfg.bandwidth, cfg.sigma_floor)

    def describe(self, sample: Sample) -> dict[str, Tensor]:
        """Means over states and particles, `[S]`: entropy (of those that count), SVGD's part of log pi, the share that
        ends outside 3 sigma and, with SVGD steps, bandwidth, bound and the share of states whose bound reaches 1."""
        info = {
            "entropy": soft_value(torch.zeros_like(sample.log_pi), sample.log_pi, sample.weight, 1.0).mean(-1),
            "stein": sample.stein.mean((1, 2)),
            "outside": 1 - sample.inside.float().mean((1, 2)),
        }
        if not self.config.svgd_steps:
            return info
        invalid = (sample.bound.amax(0) >= 1).float().mean(-1)
        return info | {"sigma": sample.sigma.mean((0, 2)), "bound": sample.bound.mean((0, 2)), "invalid": invalid}

    @torch.no_grad()
    def entropy(self, obs: Tensor, streams) -> Tensor:
        """The closed form of the policy's entropy, `[S, B]` in nats, from fresh particles at obs `[S, B, O]`."""
        landscape = sp.Landscape(self.critic, obs, self.config.particles)
        sample = self.sample(landscape, obs, sp.Draws(obs, streams))
        return soft_value(torch.zeros_like(sample.log_pi), sample.log_pi, sample.weight, 1.0)

    @torch.no_grad()
    def diagnose(self, obs: Tensor, streams) -> dict[str, Tensor]:
        """`describe` for fresh particles at obs `[S, B, O]`, and more means, `[S]` too. Slow.

        start             log q^0, before the squashing
        moved             the way of a particle's coordinate, in standard deviations of the start law (root mean square)
        step_over_sigma2  eps / sigma^2
        stein_size        |log q^L - log q^0| of a particle by the closed form
        log_det_gap       its distance to the exact log-determinants of the same steps, which have no Hessian term
        """
        landscape, states = sp.Landscape(self.critic, obs, self.config.particles), rng.save(streams)
        sample = self.sample(landscape, obs, sp.Draws(obs, streams))
        rng.restore(streams, states)
        exact = self.sample(landscape, obs, sp.Draws(obs, streams), volume="log_det")
        rng.restore(streams, states)
        u, log_q, (_, std) = self.begin(obs, sp.Draws(obs, streams))
        size, gap = (x.abs().mean((1, 2)) for x in (sample.stein, sample.stein - exact.stein))
        return self.describe(sample) | {
            "start": log_q.mean((1, 2)),
            "moved": ((sample.u - u) / std).square().mean((1, 2, 3)).sqrt(),
            "step_over_sigma2": (sample.step / sample.sigma**2).mean((0, 2)) if len(sample.step) else 0 * gap,
            "stein_size": size,
            "log_det_gap": gap,
        }
