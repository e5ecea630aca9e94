"""Two problems whose posterior is known exactly, for samplers of parameters: a regression, and the place of a goal.

Chapter *Uncertainty in the critic*. Data and models are ours. Parameters theta are `[..., d]` in float64; the energy U
is minus the log-posterior up to a constant.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softpolicy import bandit

BUMPS, WIDTH = torch.linspace(-1, 1, 8, dtype=torch.float64), 0.25  # centres and standard deviation of the features
NOISE = 0.3  # standard deviation of the regression's observations
PROBES = torch.tensor([[-0.4, 0.0], [0.4, 0.1], [0.0, 0.15]], dtype=torch.float64)  # actions tried, [3, 2]
READINGS = torch.tensor([0.10, 0.57, 0.50], dtype=torch.float64)  # rewards seen there
REACH, READING_NOISE, SPREAD = 0.4, 0.07, 0.6  # standard deviations: of the goal's bump, of a reading, of the prior


def features(x: Tensor) -> Tensor:
    """Eight Gaussian bumps on [-1, 1]: `[...] -> [..., 8]`."""
    return torch.exp(-((x[..., None] - BUMPS.to(x)) ** 2) / (2 * WIDTH**2))


class Regression(NamedTuple):
    """`y = Phi theta + Normal(0, NOISE^2)` with the prior theta ~ Normal(0, I): the posterior is Gaussian.

    `U = |y - Phi theta|^2 / (2 NOISE^2) + |theta|^2 / 2`; its second derivative is the precision H.
    """

    x: Tensor  # inputs, [N]
    phi: Tensor  # Phi, their features, [N, d]
    y: Tensor  # observations, [N]

    @property
    def precision(self) -> Tensor:
        """H, the inverse of the posterior's covariance, `[d, d]`."""
        return self.phi.T @ self.phi / NOISE**2 + torch.eye(self.phi.shape[1]).to(self.phi)

    @property
    def mean(self) -> Tensor:
        """The posterior's mean, `[d]`."""
        return torch.linalg.solve(self.precision, self.phi.T @ self.y) / NOISE**2

    def gradient(self, theta: Tensor, rows: Tensor) -> Tensor:
        """Gradient of U `[..., d]` from the observations `rows` `[..., B]` (integers) alone, scaled up by N / B."""
        phi, y = self.phi[rows], self.y[rows]  # [..., B, d], [..., B]
        error = (phi @ theta[..., None])[..., 0] - y
        return theta + (error[..., None] * phi).sum(-2) * len(self.y) / (rows.shape[-1] * NOISE**2)

    def batch_covariance(self, sigma: Tensor, batch: int) -> Tensor:
        """Covariance of `gradient` for `batch` rows drawn with replacement, averaged over theta of the posterior's mean
        and covariance `sigma`: `[d, d]`."""
        n, phi, mean = len(self.y), self.phi, self.mean
        squared = (self.y - phi @ mean) ** 2 + ((phi @ sigma) * phi).sum(-1)  # E (y_i - phi_i theta)^2
        each = (phi.T * squared) @ phi / (n * NOISE**4)
        average = phi.T @ phi / (n * NOISE**2)  # the mean gradient is `average` (theta - mean) - mean / n
        return n**2 / batch * (each - average @ sigma @ average - torch.outer(mean, mean) / n**2)


def gap_data(stream: torch.Generator, n: int = 40) -> Regression:
    """n observations of sin(3 x), half of them on [-1, -0.35] and half on [0.35, 1], with a gap between."""
    u = torch.linspace(0, 1, n // 2, dtype=torch.float64)
    x = torch.cat((-1 + 0.65 * u, 0.35 + 0.65 * u))
    noise = torch.randn(len(x), generator=stream, dtype=torch.float64)
    return Regression(x, features(x), torch.sin(3 * x) + NOISE * noise)


def langevin_covariance(precision: Tensor, lr: float, extra: Tensor | None = None) -> Tensor:
    """Stationary covariance of `theta <- theta - lr (H theta + e) + sqrt(2 lr) xi`, Cov(e) being `extra`: `[d, d]`.

    The solution of `Sigma = (I - lr H) Sigma (I - lr H) + 2 lr I + lr^2 extra`; without e it is H^-1 (I - lr H / 2)^-1.
    ValueError unless lr times H's largest eigenvalue is between 0 and 2.
    """
    h, v = torch.linalg.eigh(precision)
    if not 0 < lr * h[-1] < 2:
        raise ValueError(f"lr must be between 0 and {2 / h[-1].item():.3g} for a stationary law, got {lr}")
    driven = 2 * lr * torch.eye(len(h)).to(h) + (0 if extra is None else lr**2 * v.T @ extra @ v)
    keep = 1 - lr * h
    return v @ (driven / (1 - keep[:, None] * keep)) @ v.T


def sgld_covariance(problem: Regression, lr: float, batch: int) -> Tensor:
    """The same for SGLD with `batch` rows a step, drawn with replacement: the noise of the gradient depends on Sigma.

    ValueError where it grows without bound.
    """
    sigma = langevin_covariance(problem.precision, lr)
    for _ in range(1000):
        last, sigma = sigma, langevin_covariance(problem.precision, lr, problem.batch_covariance(sigma, batch))
        if (sigma - last).norm() < 1e-12 * sigma.norm():
            return sigma
    raise ValueError(f"SGLD with lr {lr} and batches of {batch} has no stationary covariance; take a smaller lr")


def goal_value(theta: Tensor, a: Tensor) -> Tensor:
    """A critic with two parameters, the place of a goal: `exp(-|a - theta|^2 / (2 REACH^2))`, `[..., 2] -> [...]`."""
    return torch.exp(-(a - theta).square().sum(-1) / (2 * REACH**2))


def log_goal(theta: Tensor) -> Tensor:
    """Log-posterior of the goal's place up to a constant, `[..., 2] -> [...]`.

    The prior is Normal(0, SPREAD^2 I), the errors of the three readings are Normal(0, READING_NOISE^2). The probes lie
    almost on a line, and nearly all of the mass is in two modes, one on each side of it (`upper`).
    """
    error = goal_value(theta[..., None, :], PROBES.to(theta)) - READINGS.to(theta)
    return -error.square().sum(-1) / (2 * READING_NOISE**2) - theta.square().sum(-1) / (2 * SPREAD**2)


def upper(theta: Tensor) -> Tensor:
    """Whether a goal is in the upper mode's half of the plane, `[..., 2] -> [...]`."""
    return theta[..., 1] > 0.1


def goal_grid(n: int = 400) -> tuple[Tensor, Tensor]:
    """Points `[n, n, 2]` of a grid over [-2, 2]^2 and their posterior probabilities `[n, n]`, by quadrature."""
    theta = 2 * bandit.grid(n)
    return theta, torch.softmax(log_goal(theta).flatten(), 0).view(n, n)
