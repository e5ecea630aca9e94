"""Langevin and Hamiltonian chains with the entropy formula that S2AC's Figure 4 gives them (arXiv 2405.00987).

Chapter *The entropy of a sampler*; for comparison only. Each chain treats its noise or velocity as a constant and adds
up `log|det(I + eps J)|`, J the Jacobian of its drift, or the trace `eps Tr J`. Positions are `[..., d]`, their
log-density log_q `[...]`, the score a differentiable function of positions. All return positions and log q.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from softpolicy.samplers import Score, draw
from softpolicy.svgd import jacobian


def log_volume(hessian: Tensor, eps: float, volume: str) -> Tensor:
    """`log|det(I + eps H)|` for volume "log_det", `eps Tr H` for "trace": `[..., d, d] -> [...]`."""
    if volume == "trace":
        return eps * hessian.diagonal(dim1=-2, dim2=-1).sum(-1)
    if volume == "log_det":
        identity = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
        return torch.linalg.slogdet(identity + eps * hessian).logabsdet
    raise ValueError(f"volume must be trace or log_det, got '{volume}'")


def deterministic_langevin(score: Score, x: Tensor, log_q: Tensor, step: float, n_steps: int, volume="log_det"):
    """`x <- x + eps score(x)`: invertible for small eps, and its density is exact, but it ends in the mode."""
    return langevin(score, x, log_q, step, n_steps, None, 0.0, volume)


def langevin(score: Score, x, log_q, step, n_steps, noise: Iterable[Tensor] | None, variance=None, volume="log_det"):
    """`x <- x + eps score(x) + sqrt(variance) z`; the density ignores the noise, so it is that of no distribution.

    `variance` of the noise of a step: 2 eps is Langevin dynamics (None), 0.2 eps is what the authors' notebook adds.
    """
    _check(x, log_q, step, n_steps)
    variance = 2 * step if variance is None else variance
    if not variance >= 0 or (variance and noise is None):
        raise ValueError(f"the noise needs a variance that is not negative, and numbers; got variance {variance}")
    noise = iter(()) if noise is None else iter(noise)
    for _ in range(n_steps):
        log_q = log_q - log_volume(jacobian(score, x), step, volume)
        x = x + step * score(x)
        if variance:
            x = x + math.sqrt(variance) * draw(noise, x.shape)
    return x, log_q


def hamiltonian(score: Score, x: Tensor, v: Tensor, log_q: Tensor, step: float, n_steps: int, volume="log_det"):
    """The notebook's HMC, `x <- x + eps (v + k (eps/2) score(x))`, `v <- v + eps score(x)`, both at the old x.

    k is 1 at the first step and 3 later; it is no leapfrog. v `[..., d]` is the velocity at the start.
    """
    _check(x, log_q, step, n_steps)
    if v.shape != x.shape:
        raise ValueError(f"the velocity has shape {tuple(v.shape)}, positions {tuple(x.shape)}; they must agree")
    for i in range(n_steps):
        s, k = score(x), 1 if i == 0 else 3
        log_q = log_q - log_volume(jacobian(score, x), step * k * step / 2, volume)
        x, v = x + step * (v + k * step / 2 * s), v + step * s
    return x, log_q


def _check(x: Tensor, log_q: Tensor, step: float, n_steps: int) -> None:
    if not step > 0 or n_steps < 1:
        raise ValueError(f"step size and number of steps must be positive, got {step} and {n_steps}")
    if log_q.shape != x.shape[:-1]:
        raise ValueError(f"log_q must have shape {tuple(x.shape[:-1])}, a number a position; got {tuple(log_q.shape)}")
