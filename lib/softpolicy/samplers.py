"""Samplers of a density known up to its constant: pure functions of a score, batched over any leading axes.

Chapters *Sampling from a density you can only differentiate* and, for `underdamped` and `tempering`, *Uncertainty in
the critic*. A score is a callable that maps positions `[..., d]` to gradients `[..., d]`. The last axis is the space
in which a chain moves; all others count independent chains. Randomness comes in as an iterable of standard normal
tensors of the positions' shape, one a step: a tensor `[steps, ..., d]`, or `streams.normals(...)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Score = Callable[[Tensor], Tensor]


def noise_levels(levels: int, sigma_max: float, sigma_min: float) -> list[float]:
    """Geometric noise levels from sigma_max (level 0) to sigma_min; a single level is sigma_min.

    arXiv 2602.07873, released code. ValueError unless levels >= 1 and 0 < sigma_min < sigma_max.
    """
    if levels < 1:
        raise ValueError(f"the number of noise levels must be at least 1, got {levels}")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"give 0 < sigma_min < sigma_max, got sigma_min {sigma_min} and sigma_max {sigma_max}")
    if levels == 1:
        return [sigma_min]
    ratio = (sigma_min / sigma_max) ** (1 / (levels - 1))
    return [sigma_max * ratio**level for level in range(levels)]


def step_sizes(sigmas: list[float], step_lr: float) -> list[float]:
    """`eps_l = step_lr (sigma_l / sigma_{L-1})^2`: steps that shrink with the noise; the last one is step_lr."""
    if not step_lr > 0:
        raise ValueError(f"the step size must be positive, got {step_lr}")
    return [step_lr * (sigma / sigmas[-1]) ** 2 for sigma in sigmas]


def annealed_langevin(
    score: Callable[[Tensor, int], Tensor],
    x: Tensor,
    steps: list[float],
    per_level: int,
    noise: Iterable[Tensor],
    *,
    w: float = 1.0,
    normalise: bool = False,
    clip: float | None = None,
    trajectory: bool = False,
    check: bool = True,
) -> Tensor:
    """Langevin dynamics with the step sizes eps_l of L levels, `per_level` steps at each (arXiv 2602.07873, Def. 2).

    `x <- x + (eps_l / 2) w score(x, l) + sqrt(eps_l) z`, from start `x` `[..., d]`; returns the end, or with
    `trajectory` all positions `[1 + L per_level, ..., d]`.

    w          factor of the score: with a score of Q it is an inverse temperature, the target being exp(w Q)
    normalise  divide the score by its length first (per chain; plus 1e-8), as NC-LQL's released code does
    clip       keep every coordinate within +-clip after each step
    check      refuse a score of the wrong shape or not finite (reads the device back at each step)

    ValueError for w, a step size, per_level or clip that is not positive, and for noise of another shape.
    """
    if not 0 < w < math.inf or per_level < 1 or not steps or not all(0 < eps < math.inf for eps in steps):
        raise ValueError(
            f"w and step sizes must be positive numbers and there must be a step, got w = {w}, step sizes {steps},"
            f" {per_level} steps a level"
        )
    if clip is not None and not clip > 0:
        raise ValueError(f"clip bounds every coordinate by +-clip and must be positive, got {clip}")
    path, noise = [x], iter(noise)
    for level, eps in enumerate(steps):
        for _ in range(per_level):
            gradient = score(x, level)
            if check:
                _check(gradient, x)
            if normalise:
                gradient = gradient / (gradient.norm(dim=-1, keepdim=True) + 1e-8)
            x = x + 0.5 * eps * w * gradient + math.sqrt(eps) * draw(noise, x.shape)
            if clip is not None:
                x = x.clamp(-clip, clip)
            if trajectory:
                path.append(x)
    return torch.stack(path) if trajectory else x


def draw(numbers, shape) -> Tensor:
    """The random numbers of the next step. ValueError if there are none left, or if they are not of `shape`."""
    try:
        z = next(numbers)
    except StopIteration:
        raise ValueError("there are fewer random numbers than steps; give one tensor a step") from None
    if z.shape != shape:
        raise ValueError(f"random numbers of a step must have shape {tuple(shape)}, got {tuple(z.shape)}")
    return z


def langevin(score: Score, x: Tensor, step: float, n_steps: int, noise: Iterable[Tensor], **options) -> Tensor:
    """Unadjusted Langevin dynamics, `x <- x + (step / 2) w score(x) + sqrt(step) z`, n_steps times.

    Samples exp(w Q) for score = grad Q as step -> 0 and n_steps -> infinity (arXiv 2602.07873, Def. 1). Options and
    errors are those of `annealed_langevin`.
    """
    return annealed_langevin(lambda x, _: score(x), x, [step], n_steps, noise, **options)


def _check(gradient: Tensor, x: Tensor) -> None:
    if gradient.shape != x.shape:
        raise ValueError(f"the score has shape {tuple(gradient.shape)} at positions of shape {tuple(x.shape)}")
    if not torch.isfinite(gradient).all():
        bad = int((~torch.isfinite(gradient)).any(-1).sum())
        raise ValueError(
            f"the score is not finite for {bad} of {x[..., 0].numel()} chains; take smaller steps, or clip positions"
        )


def with_gradient(log_density: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """`log_density(x)` `[...]` and its gradient `[..., d]`, by automatic differentiation."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = log_density(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def log_acceptance(x: Tensor, at_x, y: Tensor, at_y, step: float | Tensor) -> Tensor:
    """Metropolis-Hastings' log ratio `[...]` of a Langevin move from x to y `[..., d]` (Roberts and Tweedie 1996).

    `log p(y) + log q(x | y) - log p(x) - log q(y | x)` with `q(y | x) = N(y; x + (step / 2) grad log p(x), step I)`;
    at_x and at_y are `with_gradient(log_density, .)` there.
    """
    there = (y - x - 0.5 * step * at_x[1]).square() / (2 * step)
    back = (x - y - 0.5 * step * at_y[1]).square() / (2 * step)
    return at_y[0] - at_x[0] + (there - back).sum(-1)


def mala(log_density, x: Tensor, step: float | Tensor, n_steps: int, noise, uniforms, trajectory: bool = False):
    """Metropolis-adjusted Langevin: a Langevin move, taken with probability min(1, exp(`log_acceptance`)).

    Its stationary law is the density itself at every step size. `log_density` `[..., d] -> [...]` may be -inf outside
    the support, but not at the start; `uniforms` is an iterable of numbers in [0, 1) of shape `[...]`; `step` may
    be a tensor of shape `[..., 1]`. Returns the positions (all of them with `trajectory`) and each chain's share of
    accepted moves `[...]`.
    """
    if not torch.as_tensor(step).min() > 0 or n_steps < 1:
        raise ValueError(f"step size and number of steps must be positive, got {step} and {n_steps}")
    here = with_gradient(log_density, x)
    if here[0].shape != x.shape[:-1]:
        raise ValueError(f"the log-density has shape {tuple(here[0].shape)} at positions of shape {tuple(x.shape)}")
    if not (torch.isfinite(here[0]).all() and torch.isfinite(here[1]).all()):
        raise ValueError(
            "the log-density or its gradient is not finite at some starting points; start within the support"
        )
    path, taken = [x], torch.zeros_like(here[0])
    noise, uniforms = iter(noise), iter(uniforms)
    for _ in range(n_steps):
        z, u = draw(noise, x.shape), draw(uniforms, x.shape[:-1])
        y = x + 0.5 * step * here[1] + step**0.5 * z
        there = with_gradient(log_density, y)
        accept = u.log() < log_acceptance(x, here, y, there, step)  # false for NaN, so outside the support
        x = torch.where(accept[..., None], y, x)
        here = torch.where(accept, there[0], here[0]), torch.where(accept[..., None], there[1], here[1])
        taken += accept
        if trajectory:
            path.append(x)
    return torch.stack(path) if trajectory else x, taken / n_steps


def underdamped(
    score: Score, x: Tensor, v: Tensor, step: float, n_steps: int, noise: Iterable[Tensor], friction: float = 1.0,
    trajectory: bool = False, check: bool = True,
):  # fmt: skip
    """Underdamped Langevin dynamics by the splitting BAOAB (Leimkuhler and Matthews 2013): positions and velocities.

    `dx = v dt, dv = (score(x) - friction v) dt + sqrt(2 friction) dW` leaves `p(x) Normal(v; 0, I)` as it is. One step
    h: half a kick, half a drift, friction and noise exactly, half a drift, half a kick,

        v += (h/2) score(x);  x += (h/2) v;  v <- c v + sqrt(1 - c^2) z;  x += (h/2) v;  v += (h/2) score(x)

    with c = exp(-friction h): one new score a step. On a Gaussian the positions have exactly the right variance at
    every stable step (h times the largest frequency below 2). With friction 0 it is the leapfrog; with infinite
    friction it is Langevin dynamics of step h^2, each noise spread over two steps. x and v are `[..., d]`; with
    `trajectory` all positions `[1 + n_steps, ..., d]` come back. ValueError for a step that is not positive and finite,
    for negative friction, or for velocities of another shape than the positions.
    """
    if not 0 < step < math.inf or not friction >= 0 or n_steps < 1:
        raise ValueError(f"step and n_steps must be positive, friction not negative; got {step}, {n_steps}, {friction}")
    if v.shape != x.shape:
        raise ValueError(f"each position needs a velocity: shape {tuple(x.shape)}, got {tuple(v.shape)}")
    c, path, noise = math.exp(-friction * step), [x], iter(noise)
    gradient = score(x)
    for _ in range(n_steps):
        v = v + 0.5 * step * gradient
        x = x + 0.5 * step * v
        v = c * v + math.sqrt(1 - c**2) * draw(noise, x.shape)
        x = x + 0.5 * step * v
        gradient = score(x)
        if check:
            _check(gradient, x)
        v = v + 0.5 * step * gradient
        if trajectory:
            path.append(x)
    return torch.stack(path) if trajectory else x, v


class Tempered(NamedTuple):
    """What `tempering` gives back, for K temperatures."""

    x: Tensor  # [..., K, d]: the last positions
    cold: Tensor  # [1 + rounds, ..., d]: positions at betas[0], the start first
    moves: Tensor  # [..., K]: share of moves taken at each temperature
    swaps: Tensor  # [..., K - 1]: share of offers taken to swap k and k + 1


def exchange(log_p: Tensor, betas: Tensor, coin: Tensor, odd: bool) -> tuple[Tensor, Tensor]:
    """Where each temperature takes its position from, `[..., K]` (integers), and which neighbours swap `[..., K - 1]`.

    Temperatures k and k + 1, k even or `odd`, swap with probability
    `min(1, exp((beta_k - beta_{k+1}) (log p(x_{k+1}) - log p(x_k))))`, which is in detailed balance with the product of
    p(x_k)^beta_k. log_p `[..., K]`, betas `[K]`, coin uniform `[..., K - 1]`.
    """
    ratio = (betas[:-1] - betas[1:]) * log_p.diff(dim=-1)
    offered = torch.arange(len(betas) - 1, device=betas.device) % 2 == odd
    swap = (coin.log() < ratio) & offered  # false for NaN
    up, down = F.pad(swap.long(), (0, 1)), F.pad(swap.long(), (1, 0))
    return torch.arange(len(betas), device=betas.device) + up - down, swap


def tempering(log_density, x: Tensor, betas: Tensor, step: float, rounds: int, per_round: int, noise, uniforms):
    """Parallel tempering with replica exchange (Earl and Deem 2005): chains on p^beta_k that swap positions.

    A round is `per_round` moves of `mala` on `betas[k] log p` with step size `step / betas[k]`, so that all
    temperatures have one drift, then `exchange` between every second pair of neighbours, even and odd pairs in turn.
    Both leave the product of the p^beta_k as it is, at every step size.

    x          start `[..., K, d]`; betas `[K]`, falling from that of interest, usually 1
    noise      iterable of `[..., K, d]`, one a move; uniforms: of `[..., K]`, one a move and one a round

    A round costs each chain `per_round` + 1 gradients and a value. ValueError unless there are K betas, positive and
    falling, and a round.
    """
    betas = torch.as_tensor(betas, dtype=x.dtype, device=x.device)
    if betas.shape != x.shape[-2:-1] or not (betas > 0).all() or not (betas.diff() < 0).all() or rounds < 1:
        raise ValueError(
            f"give {x.shape[-2]} inverse temperatures, positive and falling, and at least one round;"
            f" got {betas.tolist()} and {rounds}"
        )
    noise, uniforms, path, moves, swaps = iter(noise), iter(uniforms), [x[..., 0, :]], 0.0, 0.0
    for t in range(rounds):
        x, taken = mala(lambda x: betas * log_density(x), x, step / betas[:, None], per_round, noise, uniforms)
        index, swap = exchange(log_density(x), betas, draw(uniforms, x.shape[:-1])[..., :-1], t % 2 == 1)
        x = x.gather(-2, index[..., None].expand_as(x))
        moves, swaps = moves + taken, swaps + swap
        path.append(x[..., 0, :])
    offers = torch.tensor([(rounds + 1 - k % 2) // 2 for k in range(len(betas) - 1)]).to(betas)
    return Tempered(x, torch.stack(path), moves / rounds, swaps / offers.clamp(min=1))
