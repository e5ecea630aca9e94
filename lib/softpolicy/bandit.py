"""A one-step problem with a known multimodal reward, where a soft policy can be computed exactly.

Actions lie in [-1, 1]^2, an episode is one action, and the reward is a ring of eight bumps of unequal height.
The landscape is ours; chapters *Soft policies*, *Sampling from a density you can only differentiate* and *Langevin
Q-learning* share it. Densities are tables on a grid of cell midpoints, with respect to area: their sum times the cell's
area is 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WIDTH = 0.12  # standard deviation of a bump
HEIGHTS = torch.tensor([1.00, 0.95, 0.90, 0.85, 0.80, 0.75, 0.70, 0.65], dtype=torch.float64)  # [K]
_ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
CENTRES = 0.7 * torch.stack((_ANGLES.cos(), _ANGLES.sin()), -1)  # [K, 2], anticlockwise from the right


def reward(a: Tensor) -> Tensor:
    """`R(a) = sum_k h_k exp(-|a - c_k|^2 / (2 WIDTH^2))`: `[..., 2] -> [...]`, differentiable.

    The bumps hardly overlap, so values run from 0 to about 1. ValueError unless the last axis has length 2.
    """
    if a.shape[-1] != 2:
        raise ValueError(f"actions of the bandit have 2 coordinates, got shape {tuple(a.shape)}")
    squared = (a.unsqueeze(-2) - CENTRES.to(a)).square().sum(-1)  # [..., K]
    return (HEIGHTS.to(a) * torch.exp(-squared / (2 * WIDTH**2))).sum(-1)


def mode_of(a: Tensor) -> Tensor:
    """The bump within two widths of an action, 0 to 7, or 8 if none is: `[..., 2] -> [...]`, integers."""
    distance, k = (a.unsqueeze(-2) - CENTRES.to(a)).norm(dim=-1).min(-1)
    return torch.where(distance < 2 * WIDTH, k, len(CENTRES))


def grid(n: int) -> Tensor:
    """Midpoints of n x n equal cells of [-1, 1]^2, `[n, n, 2]` in float64; the first axis is `a_1`'s."""
    if n < 1:
        raise ValueError(f"a grid needs at least 1 cell a side, got {n}")
    x = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 / n) - 1
    return torch.stack(torch.meshgrid(x, x, indexing="ij"), -1)


def integral(values: Tensor) -> Tensor:
    """Midpoint rule over [-1, 1]^2: `[..., n, n] -> [...]`."""
    return values.sum((-2, -1)) * (4 / values.shape[-1] ** 2)


def log_partition(r: Tensor, alpha: float) -> Tensor:
    """`log Z = log integral exp(r(a) / alpha) da`: `[..., n, n] -> [...]`; `alpha log Z` is the soft value.

    ValueError for alpha <= 0.
    """
    if not alpha > 0:
        raise ValueError(f"the temperature alpha must be positive, got {alpha}")
    return torch.logsumexp((r / alpha).flatten(-2), -1) + math.log(4 / r.shape[-1] ** 2)


def boltzmann(r: Tensor, alpha: float) -> Tensor:
    """The soft policy `exp(r / alpha) / Z` as a density, same shape as r; ValueError for alpha <= 0."""
    return torch.exp(r / alpha - log_partition(r, alpha)[..., None, None])


def entropy(p: Tensor) -> Tensor:
    """Differential entropy `-integral p log p` in nats: `[..., n, n] -> [...]`; at most log 4 (uniform)."""
    return -integral(torch.xlogy(p, p))


def objective(p: Tensor, r: Tensor, alpha: float) -> Tensor:
    """What a soft policy maximises, `integral p r + alpha entropy(p)`: `[..., n, n], [n, n] -> [...]`."""
    return integral(p * r) + alpha * entropy(p)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """`KL(p || q) = integral p log(p / q)` in nats: `[..., n, n] -> [...]`; infinite if q misses mass."""
    return integral(torch.xlogy(p, p) - torch.xlogy(p, q))


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the integral of `|p - q|`, from 0 (equal) to 1 (disjoint): `[..., n, n] -> [...]`."""
    return 0.5 * integral((p - q).abs())


def mode_masses(p: Tensor) -> Tensor:
    """Probability of each bump's disc (see `mode_of`), the rest last: `[..., n, n] -> [..., 9]`."""
    where = mode_of(grid(p.shape[-1]).to(p))  # [n, n]
    return torch.stack([integral(p * (where == k)) for k in range(len(CENTRES) + 1)], -1)


def sample_masses(a: Tensor) -> Tensor:
    """Share of actions in each bump's disc, elsewhere last: `[..., N, 2] -> [..., 9]`; see `mode_masses`."""
    return (mode_of(a)[..., None] == torch.arange(len(CENTRES) + 1, device=a.device)).double().mean(-2)


def effective_modes(masses: Tensor) -> Tensor:
    """`exp` of the entropy of the shares of the eight bumps, `[..., 9] -> [...]`: 8 if all weigh the same, 1 for one
    alone, NaN if no action is at any. `masses` are those of `mode_masses` or `sample_masses`."""
    share = masses[..., :-1]
    share = share / share.sum(-1, keepdim=True)
    return torch.exp(-torch.xlogy(share, share).sum(-1))


def describe(a: Tensor, w: float) -> dict[str, Tensor]:
    """What actions `[..., N, 2]` are worth, each `[...]`, beside the soft policy exp(w R) / Z.

    Mean and standard deviation of the reward, `near`: share within two widths of a centre, `modes`: effective number
    of bumps, `edge`: share with a coordinate at the edge of the box (beyond 0.999), `tv`: total variation between the
    nine masses of the actions and of the soft policy.
    """
    r, masses = reward(a), sample_masses(a)
    exact = mode_masses(boltzmann(reward(grid(400)), 1 / w)).to(a.device)
    return {
        "mean": r.mean(-1),
        "std": r.std(-1),
        "near": 1 - masses[..., -1],
        "modes": effective_modes(masses),
        "edge": (a.abs() > 0.999).any(-1).double().mean(-1),
        "tv": 0.5 * (masses - exact).abs().sum(-1),
    }


def smoothed(a: Tensor, sigma: float) -> Tensor:
    """`E[R(a') | a]` for a' uniform in the box and `a = a' + sigma z` seen: `[..., 2] -> [...]`, a in the box.

    What a noise-conditioned critic learns at noise sigma from uniform actions: a bump stays Gaussian, wider
    (variance WIDTH^2 + sigma^2), and the box enters through normal distribution functions.
    """
    v = WIDTH**2 + sigma**2
    spread = WIDTH * sigma / math.sqrt(v)  # of a' given a and the bump
    x, centre = a.unsqueeze(-2), CENTRES.to(a)  # [..., 1, 2], [K, 2]
    m = (WIDTH**2 * x + sigma**2 * centre) / v
    inside = torch.special.ndtr((1 - m) / spread) - torch.special.ndtr((-1 - m) / spread)
    seen = torch.special.ndtr((1 - x) / sigma) - torch.special.ndtr((-1 - x) / sigma)
    bump = torch.exp(-(x - centre).square() / (2 * v)) * (spread / sigma) * inside / seen  # [..., K, 2]
    return (HEIGHTS.to(a) * bump.prod(-1)).sum(-1)
