"""What is optimal in the multi-goal tasks: the best straight line, and the soft-optimal policy by value iteration.

Chapter *Stein soft actor-critic*. The soft-optimal policy is `exp(Q(s, a) / alpha)` up to a factor, where
`Q(s, a) = r(s, a) + gamma V(s')` and `V(s) = alpha log integral exp(Q(s, a) / alpha) da` over a in [-1, 1]^2. Time
limits and walls are left out. All tensors are float64; a field on the grid is `[n, n]`, first axis x, second y.

How the integral is done. Positions and steps share one grid of spacing h = 1 / per_unit, on which the step cost is a
product of an x- and a y-factor, so that the integral is two sums of 2 / h + 1 terms (trapezoidal rule). It is as good
as exact for smooth integrands as soon as h is about their width `sqrt(alpha / 72)`. The edge of a goal's disc is not
smooth, and the optimum lands on it, so what the disc adds (its bonus in place of the value of going on) is integrated
over the disc itself, in polar coordinates. There remains an error of order h^2, mostly from the kink of
min_g |s - g|^2 halfway between goals. At the default h = 0.05 and alpha from 0.2 to 5 it is at most 0.03 in the value
of the start, 0.002 in shares and in the probes' entropies (by halving h and extrapolation; tests show the order). At
h = 0.1 and alpha 0.2 it is 0.02 in shares: the first steps fall on the kink.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp

from softpolicy.multigoal import BONUS, COST, RADIUS, SIZE, STEPS, goals_of, nearest


def straight_line(steps: int, distance: float = 5.0) -> np.ndarray:
    """Distances to the goal `[steps + 1]` along the best straight path that ends 0.5 from it after `steps` steps.

    The minimum of `sum_t 30 (d_t - d_{t-1})^2 + d_t^2` between fixed ends is `d_{t-1} - (2 + 1/30) d_t + d_{t+1} = 0`,
    hence a sum of two exponentials. ValueError for steps < 1 or a start within the goal.
    """
    if steps < 1 or distance <= RADIUS:
        raise ValueError(f"give at least 1 step and a distance above {RADIUS}, got {steps} and {distance}")
    k, t = math.acosh(1 + 1 / (2 * COST)), np.arange(steps + 1)
    return (distance * np.sinh(k * (steps - t)) + RADIUS * np.sinh(k * t)) / math.sinh(k * steps)


def line_return(d: np.ndarray) -> float:
    """The undiscounted return of a straight path with distances `d` `[T + 1]` to its goal, the bonus included."""
    return BONUS - COST * np.square(np.diff(d)).sum() - np.square(d[1:]).sum()


def best_line(distance: float = 5.0) -> tuple[float, np.ndarray]:
    """The best straight-line return within the time limit, undiscounted, and its distances (see `straight_line`).

    It is the supremum: the goal is reached strictly within 0.5, the line ends at 0.5.
    """
    lines = [straight_line(n, distance) for n in range(1, STEPS + 1)]
    fits = [d for d in lines if np.abs(np.diff(d)).max() <= 1 and d[:-1].min() > RADIUS]
    best = max(fits, key=line_return)
    return line_return(best), best


class Grid:
    """The grid of a layout, the quadrature of its goal discs, and the soft backup on both."""

    def __init__(self, layout: str, per_unit: int, radial: int = 48, angular: int = 128):
        self.goals, self.per_unit = torch.from_numpy(goals_of(layout)), per_unit
        n, steps = int(2 * SIZE) * per_unit + 1, torch.arange(-per_unit, per_unit + 1)
        self.x = torch.linspace(-SIZE, SIZE, n, dtype=torch.float64)
        self.near = (torch.arange(n)[:, None] + steps).clamp(0, n - 1)  # [n, K], where a step leads to
        self.squared_step = (steps.double() / per_unit).square()  # [K]
        weight = torch.full((len(steps),), 1 / per_unit, dtype=torch.float64)
        weight[[0, -1]] /= 2  # trapezoidal rule
        self.log_weight = weight.log()
        points = torch.stack(torch.meshgrid(self.x, self.x, indexing="ij"), -1)
        self.distance = torch.from_numpy(nearest(points.numpy(), goals_of(layout))[1])  # [n, n], squared
        node, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(radial))
        radius = RADIUS * (node + 1) / 2
        angle = torch.arange(angular, dtype=torch.float64) * (2 * math.pi / angular)
        disc = radius[:, None, None] * torch.stack((angle.cos(), angle.sin()), -1)  # [radial, angular, 2]
        self.nodes = self.goals[:, None] + disc.flatten(0, 1)  # [G, P, 2]
        self.area = (w * radius * RADIUS / 2 * (2 * math.pi / angular)).repeat_interleave(angular)  # [P]
        self.depth = disc.square().sum(-1).flatten()  # [P], squared distance to the goal

    def at(self, field: Tensor, points: Tensor) -> Tensor:
        """Cubic interpolation of a field `[n, n]` at points `[..., 2]` of the square: `[...]`."""
        t = (points + SIZE) * self.per_unit
        i = t.floor().clamp(1, len(self.x) - 3)
        f = (t - i)[..., None]  # [..., 2, 1]
        w = torch.cat((-f * (f - 1) * (f - 2) / 6, (f + 1) * (f - 1) * (f - 2) / 2,
                       -(f + 1) * f * (f - 2) / 2, (f + 1) * f * (f - 1) / 6), -1)  # fmt: skip # [..., 2, 4]
        i = i.long()[..., None] + torch.arange(-1, 3)
        return (w[..., 0, :, None] * field[i[..., 0, :, None], i[..., 1, None, :]] * w[..., 1, None, :]).sum((-2, -1))

    def free_energy(self, after: Tensor, bonus: Tensor, tau: Tensor) -> Tensor:
        """`tau log integral exp(q(s, a) / tau) da`, `[n, n]`: the soft maximum over actions at temperature tau.

        q is the reward's two costs plus `after(s')` `[n, n]`, or plus `bonus` `[G, P]` in the goals' discs.
        Its derivatives are what one wants to know: with respect to tau the policy's entropy, with respect to `after`
        and `bonus` the probabilities of where an action leads.
        """
        step = self.log_weight - COST * self.squared_step / tau  # [K]
        z = (after - self.distance) / tau
        z = (z[self.near] + step[:, None]).logsumexp(1)  # over a_x
        z = (z[:, self.near] + step).logsumexp(-1)  # over a_y
        extra = torch.zeros_like(z)
        for goal, nodes, b in zip(self.goals, self.nodes, bonus, strict=True):
            on = self.at(after, nodes)  # [P], the sums above took this for the disc
            w = self.area * ((b - self.depth - BONUS).div(tau).exp() - (on - self.depth - BONUS).div(tau).exp())
            i, j = ((self.x - c).abs() <= 1 + RADIUS for c in goal)
            kx, ky = (self.kernel(self.x[m], nodes[:, c], tau) for c, m in enumerate((i, j)))  # [m, P]
            at = i.nonzero(), j.nonzero().T
            extra = extra.index_put(at, (kx * w) @ ky.T * (BONUS / tau - z[at]).exp())
        return tau * (z + extra.log1p())

    def kernel(self, x: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        """`exp(-30 (x - y)^2 / tau)` within the reach of one step, else 0: `[m], [P] -> [m, P]`."""
        d = y - x[:, None]
        return torch.exp(-COST * d.square() / tau) * (d.abs() <= 1)


class Outcome(NamedTuple):
    """Where the soft-optimal policy goes from the origin, in expectation, without a time limit."""

    shares: Tensor  # [G], probability of ending at each goal
    steps: float
    value: float  # undiscounted return, entropy not included
    visits: Tensor  # [n, n], expected visits to the cell of a grid point (a quadrature: about 0 within the goals)


class SoftOptimum:
    """The soft-optimal policy of a layout: its `value` and `entropy` `[n, n]` on the grid `grid.x`; it can act.

    layout       "four" or "three"; ValueError for another
    alpha        temperature of the backup, at least 0.1
    temperature  of the policy, where another than alpha: 1 with alpha 0.2 is what S2AC's released code seeks
    per_unit     grid points on a unit of length; the spacing must resolve the policy, `1 / per_unit` at most twice
                 `sqrt(temperature / 72)`; errors: see the top of this file
    Raises ValueError for numbers outside these ranges.
    """

    def __init__(self, layout: str, alpha: float, temperature: float | None = None, gamma=0.99, per_unit: int = 20):
        temperature = alpha if temperature is None else temperature
        if not (alpha >= 0.1 and temperature >= 0.1 and 0 <= gamma < 1):
            raise ValueError(
                f"alpha and temperature must be at least 0.1 and gamma in [0, 1), got {alpha}, {temperature}, {gamma}"
            )
        if per_unit < math.sqrt(72 / temperature) / 2:
            least = math.ceil(math.sqrt(72 / temperature) / 2)
            raise ValueError(f"temperature {temperature} needs per_unit at least {least}, got {per_unit}")
        self.grid, self.alpha, self.gamma = Grid(layout, per_unit), alpha, gamma
        self.tau = torch.tensor(float(temperature), dtype=torch.float64)
        self.layout, self.bonus = layout, torch.full(self.grid.nodes.shape[:-1], BONUS, dtype=torch.float64)
        self.value = torch.zeros_like(self.grid.distance)  # [n, n], soft value V
        for self.sweeps in range(1, 301):
            new = self.soft_maximum(self.tau)
            if alpha != temperature:  # E[Q] + alpha H, where the soft maximum is E[Q] + tau H
                new = new + (alpha - self.tau) * self.policy_entropy()
            self.residual, self.value = (new - self.value).abs().max().item(), new
            if self.residual < 1e-9:
                break
        else:
            raise ValueError(f"the value at alpha {alpha} has not settled after 300 sweeps; give a lower alpha")
        self.entropy = self.policy_entropy()  # [n, n], of the policy at each position, in nats

    def soft_maximum(self, tau: Tensor) -> Tensor:
        """`tau log integral exp(Q(s, a) / tau) da` with `Q = r + gamma V`, `[n, n]`."""
        return self.grid.free_energy(self.gamma * self.value, self.bonus, tau)

    def policy_entropy(self) -> Tensor:
        """The entropy of `exp(Q / tau)`: the derivative of the soft maximum with respect to tau, `[n, n]`."""
        return jvp(self.soft_maximum, (self.tau,), (torch.ones_like(self.tau),))[1]

    def at(self, field: Tensor, points) -> Tensor:
        """A field `[n, n]`, such as `value` or `entropy`, at positions `[..., 2]`: `[...]`, by cubic interpolation."""
        return self.grid.at(field, torch.as_tensor(points, dtype=torch.float64))

    def q(self, position: Tensor, action: Tensor) -> Tensor:
        """The soft-optimal `Q(s, a)`: `[..., 2], [..., 2] -> [...]` for positions in the square and actions in
        [-1, 1]^2; without walls."""
        new = (position + action).clamp(-SIZE, SIZE)
        squared = (new[..., None, :] - self.grid.goals).square().sum(-1).amin(-1)
        after = torch.where(squared < RADIUS**2, BONUS, self.gamma * self.grid.at(self.value, new))
        return after - squared - COST * action.square().sum(-1)

    def act(self, position, generator: torch.Generator, cells: int = 50) -> np.ndarray:
        """Actions `[N, 2]` drawn from the policy at positions `[N, 2]`; a policy for `multigoal.simulate`.

        Each is drawn from a lattice of `cells` x `cells` actions that is shifted at random, which is exact where the
        spacing resolves the policy; next to a goal's edge it is good to about the spacing.
        """
        corner = torch.arange(cells, dtype=torch.float64) * (2 / cells) - 1
        lattice = torch.stack(torch.meshgrid(corner, corner, indexing="ij"), -1).flatten(0, 1)  # [L, 2]
        drawn = []
        for s in torch.as_tensor(position, dtype=torch.float64).split(32):  # [n, 2], few at a time to save memory
            action = lattice + 2 / cells * torch.rand(len(s), 1, 2, dtype=torch.float64, generator=generator)
            p = (self.q(s[:, None], action) / self.tau).softmax(-1)  # [n, L]
            k = torch.multinomial(p, 1, generator=generator)[:, 0]
            drawn.append(action[torch.arange(len(s)), k])
        return torch.cat(drawn).numpy()

    def outcome(self) -> Outcome:
        """Follow the probability mass from the origin until all of it has ended.

        One step back-propagates the mass through the soft maximum, whose gradient is the law of the next position.
        """
        moved, bonus = torch.zeros_like(self.value).requires_grad_(), self.bonus.clone().requires_grad_()
        soft = self.grid.free_energy(self.gamma * self.value + moved, bonus, self.tau)
        mean_q = soft.detach() - self.tau * self.entropy  # [n, n], of the action drawn
        mass, n = torch.zeros_like(self.value), len(self.grid.x)
        mass[n // 2, n // 2] = 1
        shares, visits, value = torch.zeros(len(self.grid.goals), dtype=torch.float64), torch.zeros_like(mass), 0.0
        while mass.sum() > 1e-9:
            visits, value = visits + mass, value + (mass * mean_q).sum().item()
            mass, arrived = torch.autograd.grad(soft, (moved, bonus), mass, retain_graph=True)
            shares, value = shares + arrived.sum(-1), value - self.gamma * (mass * self.value).sum().item()
        return Outcome(shares, visits.sum().item(), value, visits)
