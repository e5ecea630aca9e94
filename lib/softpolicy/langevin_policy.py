"""Acting by Langevin dynamics on a critic: what LQL and NC-LQL share (arXiv 2602.07873).

There is no actor: an action is the end of a chain that climbs `Q(s, .)` with noise. Chapter *Langevin Q-learning*.
"""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor

from softpolicy import streams as rng
from softpolicy.nets import LevelCritic
from softpolicy.replay import Batch
from softpolicy.samplers import annealed_langevin


@dataclasses.dataclass(frozen=True)
class LangevinPolicy:
    """The law of an action: the end of a chain in [-1, 1]^A, the best of `chains` chains if there are several."""

    steps: list[float]  # step size eps_l of each level, coarse to fine
    per_level: int  # Langevin steps at each level
    w: float  # inverse temperature of exp(w Q); a drift-to-noise ratio with a normalised gradient
    normalise: bool  # unit gradients
    reduction: str  # "sum" or "mean" of the critics' gradients
    chains: int = 1

    def __post_init__(self):
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be sum or mean, got '{self.reduction}'")

    def draw(self, streams, n: int, n_act: int) -> tuple[Tensor, Tensor]:
        """Start `[S, n, K, A]`, uniform in the box, and noise `[steps, S, n, K, A]` of the chains for n states."""
        shape, total = (n, self.chains, n_act), len(self.steps) * self.per_level
        start = 2 * rng.uniform(streams, *shape) - 1
        return start, rng.normal(streams, total, *shape).transpose(0, 1)

    def draw_from(self, obs: Tensor, n_act: int) -> tuple[Tensor, Tensor]:
        """`draw` for observations `[S, n, O]`, each row's numbers a function of the row alone."""
        start, noise = self.draw(rng.of_rows(obs), 1, n_act)  # [S n, 1, K, A], [steps, S n, 1, K, A]
        shape = (*obs.shape[:2], self.chains, n_act)
        return start.view(shape).to(obs.device), noise.reshape(-1, *shape).to(obs.device)

    def sample(self, critic: LevelCritic, obs: Tensor, start: Tensor, noise: Tensor) -> Tensor:
        """Actions `[S, n, A]` for observations `[S, n, O]` and what `draw` gave; no gradient reaches the critic.

        Of several chains the one with the largest minimum over critics at the last level is taken.
        """
        obs = obs.repeat_interleave(self.chains, 1)  # [S, n K, O]
        halve = self.reduction == "mean" and not self.normalise  # a unit gradient is the same either way
        w = self.w / critic.members if halve else self.w
        x = annealed_langevin(
            critic.action_gradient(obs), start.flatten(1, 2).to(obs), self.steps, self.per_level, noise.flatten(2, 3),
            w=w, normalise=self.normalise, clip=1.0, check=False,
        )  # fmt: skip
        if self.chains == 1:
            return x
        with torch.no_grad():
            q = critic(obs, x, len(self.steps) - 1).amin(1).unflatten(1, (-1, self.chains))  # [S, n, K]
        best = q.argmax(-1)[..., None, None].expand(-1, -1, 1, x.shape[-1])
        return x.unflatten(1, (-1, self.chains)).gather(2, best).squeeze(2)


def td_target(batch: Batch, q_next: Tensor, gamma: float, reward_scale: float) -> Tensor:
    """`c r + gamma (1 - terminated) min_e Q_e(s', a')`, `[S, B]`, for q_next `[S, E, B]`: no entropy, no soft value."""
    return reward_scale * batch.reward + gamma * (1 - batch.terminated) * q_next.amin(1)


def regression(q: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the batch, summed over critics: `[S, E, B], [S, B] -> [S]`."""
    return (q - target[:, None]).square().mean(-1).sum(1)


def saturated(action: Tensor) -> Tensor:
    """The share of action coordinates at the edge of the box, |a_i| > 0.999: `[S, B, A] -> [S]`."""
    return (action.abs() > 0.999).float().mean((1, 2))


@dataclasses.dataclass
class EdgeWatch:
    """Warns when two evaluations in a row find most of a seed's proposed actions at the edge of the box.

    One is common after the warm-up, where the critic is flat. Called with the metrics of an update, as lists.
    """

    before: list[bool] = dataclasses.field(default_factory=list)

    def __call__(self, metrics: dict[str, list[float]]) -> None:
        now = [share > 0.5 for share in metrics["saturated"]]
        if any(a and b for a, b in zip(self.before, now, strict=False)):
            warnings.warn(
                "more than half of the coordinates of the proposed actions lie at the edge of the box, and have before:"
                " where a critic is flat the chain follows its errors there. If the return stays flat too, take a"
                " smaller w, or raw gradients (normalise False)",
                stacklevel=2,
            )
        self.before = now
