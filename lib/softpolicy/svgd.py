"""Stein variational gradient descent (arXiv 1608.04471) and the density of its particles (S2AC, arXiv 2405.00987).

Chapter *The entropy of a sampler*. The m particles `[..., m, d]` of one set interact; all leading axes (seeds, states)
are separate sets. A score maps particles `[..., m, d]` to the gradients `[..., m, d]` of the target's log-density.
Sums over pairs are products of matrices `[m, m]`: nothing of size m x m x d is made, but by the slow `log_det`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from softpolicy.samplers import Score, draw

RULES = ("median", "quartile", "mean", "half-mean")  # S2AC's code numbers them 1 to 4


class Pairs(NamedTuple):
    """Positions y against sources x: squared distances, kernel values, squared bandwidth."""

    distance: Tensor  # [..., n, m]
    kernel: Tensor  # [..., n, m], exp(-distance / (2 sigma2))
    sigma2: Tensor  # [..., 1, 1], a constant for gradients


def squared_bandwidth(distance: Tensor, bandwidth: float | str = "half-mean", floor: float = 0.0) -> Tensor:
    """sigma^2 `[...]` of the kernel from squared distances `[..., n, m]` (S2AC, released code); no gradient.

    A number is sigma itself. The rules, with D all n m squared distances, those of particles to themselves included:
    "median" median(D) / (2 ln(m+1)), "quartile" the lower quartile in its place, "mean" mean(D) / (2 ln(m+1)),
    "half-mean" half of that, S2AC's choice. sigma is at least `floor`. ValueError unless bandwidth > 0, floor >= 0.
    """
    if bandwidth not in RULES and not (isinstance(bandwidth, int | float) and bandwidth > 0):
        raise ValueError(f"the bandwidth must be a positive number or one of {', '.join(RULES)}, got {bandwidth}")
    if not floor >= 0:
        raise ValueError(f"the floor of the bandwidth must not be negative, got {floor}")
    if not isinstance(bandwidth, str):
        return distance.new_full(distance.shape[:-2], max(bandwidth, floor) ** 2)
    d = distance.detach().flatten(-2)  # [..., n m]
    if bandwidth in ("median", "quartile"):
        k = (d.shape[-1] - 1) // (2 if bandwidth == "median" else 4)  # the lower one where two are in the middle
        size = d.sort(-1).values[..., k]
    else:
        size = d.mean(-1) / (1 if bandwidth == "mean" else 2)
    return (size / (2 * math.log(distance.shape[-1] + 1))).clamp(min=max(floor**2, 1e-12))


def pairs(y: Tensor, x: Tensor, bandwidth: float | str = "half-mean", floor: float = 0.0) -> Pairs:
    """The RBF kernel between positions y `[..., n, d]` and sources x `[..., m, d]`; options: `squared_bandwidth`.

    ValueError for positions and sources of different dimensions.
    """
    if y.shape[-1] != x.shape[-1]:
        raise ValueError(f"positions have {y.shape[-1]} dimensions and sources {x.shape[-1]}; they must agree")
    centre = x.detach().mean(-2, keepdim=True)  # distances do not change, their rounding does
    y, x = y - centre, x - centre
    squares = y.square().sum(-1)[..., :, None] + x.square().sum(-1)[..., None, :]
    distance = (squares - 2 * y @ x.transpose(-1, -2)).clamp(min=0)
    sigma2 = squared_bandwidth(distance, bandwidth, floor)[..., None, None]
    return Pairs(distance, (distance / (-2 * sigma2)).exp(), sigma2)


def velocity(near: Pairs, y: Tensor, x: Tensor, s: Tensor) -> Tensor:
    """The Stein velocity at y `[..., n, d]` for sources x and their scores s, both `[..., m, d]`:

    `phi(y_i) = (1/m) sum_j kappa(y_i, x_j) [s_j + (y_i - x_j) / sigma^2]`, j = i included where y is x.
    """
    _same(s, x)
    centre = x.detach().mean(-2, keepdim=True)
    pull = near.kernel @ (s - (x - centre) / near.sigma2)
    push = near.kernel.sum(-1, keepdim=True) * (y - centre) / near.sigma2
    return (pull + push) / x.shape[-2]


def trace(near: Pairs, x: Tensor, s: Tensor, norm: str = "m", self_kernel: bool = False) -> Tensor:
    """The trace of phi's Jacobian at each particle `[..., m]`, the other particles held fixed (S2AC):

    `Tr J_i = 1/(m sigma^2) sum_{j != i} kappa_ij [d - |x_i - x_j|^2 / sigma^2 - (x_i - x_j)^T s_j]`.

    norm         "m", or "m-1" in place of the factor 1/m, as in the released code
    self_kernel  adds the term j = i, d / (m sigma^2): the divergence of the field with all sources held fixed
    """
    _same(s, x)
    m, d = x.shape[-2:]
    centred = x - x.detach().mean(-2, keepdim=True)
    along = centred @ s.transpose(-1, -2) - (centred * s).sum(-1)[..., None, :]  # (x_i - x_j)^T s_j
    bracket = near.kernel * (d - near.distance / near.sigma2 - along)
    others = (bracket * (1 - torch.eye(m, dtype=x.dtype, device=x.device))).sum(-1)
    return (others + d * self_kernel) / (_count(m, norm) * near.sigma2.squeeze(-1))


def jacobian(field: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """`d field_k / d y_l` at each particle, `[..., m, d, d]`, by automatic differentiation; no gradient flows on.

    `field` maps `[..., m, d]` to `[..., m, d]`, each particle by itself.
    """
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        f = field(y)
        rows = [torch.autograd.grad(f[..., k].sum(), y, retain_graph=True)[0] for k in range(y.shape[-1])]
    return torch.stack(rows, -2)


def log_det(x, s, sigma2: Tensor, eps, norm: str = "m", self_kernel: bool = False) -> Tensor:
    """`log|det(I + eps J_i)|` `[..., m]`, which `eps trace` approximates: the slow, exact reference.

    sigma2 `[..., 1, 1]`, eps a number or `[..., 1]`.
    """
    x, s, m = x.detach(), s.detach(), x.shape[-2]

    def field(y):
        distance = (y.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1)
        return velocity(Pairs(distance, (distance / (-2 * sigma2)).exp(), sigma2), y, x, s)

    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    own = 0.0 if self_kernel else identity / (m * sigma2[..., None])  # a particle's share in the field at its place
    j = (jacobian(field, x) - own) * m / _count(m, norm)
    eps = torch.as_tensor(eps, dtype=x.dtype, device=x.device)[..., None, None]
    return torch.linalg.slogdet(identity + eps * j).logabsdet


def curvature(score: Score, x: Tensor, probes: Tensor) -> Tensor:
    """Hutchinson's estimate `v^T (d score / dx) v` of the trace of the log-density's Hessian, `[..., m]`.

    `probes` v are Rademacher numbers `[..., m, d]`. ValueError for another shape, or if the score cannot be
    differentiated.
    """
    if probes.shape != x.shape:
        raise ValueError(f"probes have shape {tuple(probes.shape)}, the particles {tuple(x.shape)}; they must agree")
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        s = score(x)
        if not s.requires_grad:
            raise ValueError("the Hessian term needs a score that can be differentiated; this one carries no graph")
        (hv,) = torch.autograd.grad((s * probes).sum(), x, create_graph=keep)
    return (hv * probes).sum(-1)


def jacobian_bound(s: Tensor, sigma2: Tensor) -> Tensor:
    """A bound `[...]` on the norm of phi's leave-one-out Jacobian, `e^(-1/2) S / sigma + 1 / sigma^2`, S = mean |s_j|.

    If eps times the bound is below 1, the leave-one-out step, whose density the trace follows, is invertible (ours);
    S2AC's condition, eps << sigma, does not suffice. The particle's own score also moves it, by eps s_i / m: the whole
    step is invertible if eps times (bound + |Hessian of the log-density| / m) is below 1.
    """
    sigma2 = sigma2[..., 0, 0]
    return math.exp(-0.5) * s.norm(dim=-1).mean(-1) / sigma2.sqrt() + 1 / sigma2


class Flow(NamedTuple):
    """What `svgd` returns; with `trajectory`, x and log_q carry the steps 0..L in front."""

    x: Tensor  # [..., m, d]
    log_q: Tensor | None  # [..., m]
    sigma: Tensor  # [L, ...], the bandwidth of each step
    bound: Tensor  # [L, ...], step size times `jacobian_bound`; from 1 on the leave-one-out step may not be invertible
    step: Tensor  # [L, ...], the step sizes, which a cap makes smaller


def svgd(
    score: Score,
    x: Tensor,
    step: float,
    n_steps: int,
    *,
    bandwidth: float | str = "half-mean",
    floor: float = 0.0,
    log_q: Tensor | None = None,
    norm: str = "m",
    self_kernel: bool = False,
    probes: Iterable[Tensor] | None = None,
    volume: str = "trace",
    cap: float = 0.0,
    trajectory: bool = False,
    check: bool = True,
) -> Flow:
    """L = n_steps steps `x <- x + eps phi(x)` from x `[..., m, d]` and, given the start's log-density `log_q`
    `[..., m]`, that of the end, `log q <- log q - eps Tr J` (S2AC's closed form); the entropy is `-log_q.mean(-1)`.

    bandwidth, floor   of the kernel, at each step: `squared_bandwidth`
    norm, self_kernel  of the trace: `trace`
    probes             an iterable of Rademacher numbers `[..., m, d]`, one a step, adds `(1/m) curvature` to the trace
    volume             "trace", or "log_det": `log_det` in place of eps times it (slow; without a gradient of its own)
    cap                if positive, each set's step is at most cap / `jacobian_bound`, which see; ours
    check              refuse scores that are not finite and warn, once, of steps that may not be invertible (reads
                       the device back)

    Gradients flow through everything but bandwidth and cap. ValueError for a step or bandwidth that is not positive,
    shapes that do not match, and a single particle's density unless nothing is left out or taken from distances.
    """
    _refuse(x, step, n_steps, bandwidth, floor, log_q, norm, self_kernel, probes, volume, cap)
    path, taken = [(x, log_q)], []
    probes = probes if probes is None else iter(probes)
    for _ in range(n_steps):
        s = score(x)
        _same(s, x)
        near = pairs(x, x, bandwidth, floor)
        limit = jacobian_bound(s.detach(), near.sigma2)  # [...]
        eps = (cap / limit).clamp(max=step) if cap else torch.full_like(limit, step)
        if log_q is not None and volume == "log_det":
            log_q = log_q - log_det(x, s, near.sigma2, eps[..., None], norm, self_kernel)
        elif log_q is not None:
            t = trace(near, x, s, norm, self_kernel)
            if probes is not None:
                t = t + curvature(score, x, draw(probes, x.shape)) / x.shape[-2]
            log_q = log_q - eps[..., None] * t
        x = x + eps[..., None, None] * velocity(near, x, x, s)
        taken.append((near.sigma2[..., 0, 0].sqrt(), eps * limit, eps))
        path = [*path, (x, log_q)] if trajectory else path
    told = [torch.stack(v) for v in zip(*taken, strict=True)] or [x.new_empty(0, *x.shape[:-2])] * 3
    if check:
        _check(x, step, told[1])
    if trajectory:
        x, log_q = (None if v[0] is None else torch.stack(v) for v in zip(*path, strict=True))
    return Flow(x, log_q, *told)


def _count(m: int, norm: str) -> int:
    if norm not in ("m", "m-1"):
        raise ValueError(f"norm must be m or m-1, got '{norm}'")
    if norm == "m-1" and m < 2:
        raise ValueError("norm m-1 needs at least two particles, got one; give more, or norm m")
    return m if norm == "m" else m - 1


def _same(s: Tensor, x: Tensor) -> None:
    if s.shape != x.shape:
        raise ValueError(f"the score has shape {tuple(s.shape)} at particles of shape {tuple(x.shape)}")


def _refuse(x, step, n_steps, bandwidth, floor, log_q, norm, self_kernel, probes, volume, cap) -> None:
    if x.dim() < 2 or not x.shape[-2]:
        raise ValueError(f"particles must have the shape [..., m, d] with m at least 1, got {tuple(x.shape)}")
    if not step > 0 or n_steps < 0 or not cap >= 0:
        raise ValueError(
            f"the step size must be positive, the number of steps and the cap not negative; got step {step},"
            f" {n_steps} steps, cap {cap}"
        )
    if norm not in ("m", "m-1") or volume not in ("trace", "log_det"):
        raise ValueError(f"norm must be m or m-1 and volume trace or log_det, got '{norm}' and '{volume}'")
    if n_steps:
        refuse_few(x.shape[-2], bandwidth, floor)
    if log_q is None:
        return
    if log_q.shape != x.shape[:-1]:
        raise ValueError(
            f"log_q, a number for each particle, must have shape {tuple(x.shape[:-1])}, got {tuple(log_q.shape)}"
        )
    if n_steps:
        refuse_single(x.shape[-2], norm, self_kernel, isinstance(bandwidth, str) and not floor)
    if volume == "log_det" and probes is not None:
        raise ValueError("probes belong to the trace; give volume trace, or no probes")


def refuse_single(particles: int, norm: str, self_kernel: bool, from_distances: bool) -> None:
    """ValueError for the density of one particle that would leave out its only term, or whose bandwidth is zero."""
    if particles == 1 and (norm == "m-1" or not self_kernel or from_distances):
        raise ValueError(
            "a leave-one-out density needs at least two particles, got one; give more, or norm m, self_kernel and a"
            " bandwidth that is not made from distances"
        )


def refuse_few(particles: int, rule: float | str, floor: float) -> None:
    """ValueError where the quantile that a rule takes of all distances is that of a particle to itself, zero."""
    least = {"median": 3, "quartile": 5}.get(rule, 1)
    if 1 < particles < least and not floor:
        raise ValueError(
            f"the bandwidth rule {rule} is zero for fewer than {least} particles, got {particles}; give more, another"
            " rule, or a floor"
        )


def _check(x: Tensor, step: float, bound: Tensor) -> None:
    if not torch.isfinite(x).all():
        raise ValueError("the particles are not finite; take smaller steps, or a score that is finite where they start")
    warn_unless_invertible(step, bound)


def warn_unless_invertible(step: float, bound: Tensor) -> None:
    """A warning if `Flow.bound` reaches 1 anywhere; its text names no measured number, so Python shows it once."""
    if (bound >= 1).any():
        warnings.warn(
            f"SVGD with step size {step} may not be invertible here, eps (0.607 S / sigma + 1 / sigma^2) reaches 1:"
            " log q is then not to be trusted; take smaller steps, a larger floor of the bandwidth, or a cap",
            stacklevel=1,
        )
