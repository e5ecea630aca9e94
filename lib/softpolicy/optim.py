"""Optimisers for batched parameters: Adam, and Langevin steps that sample parameters instead of fitting them."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from softpolicy import streams as rng


def adam(params, lr: float) -> torch.optim.Adam:
    """Adam in its fused form, capturable in a CUDA graph. Elementwise, so each seed's slice has its own Adam."""
    params = list(params)
    rate = torch.tensor(lr, device=params[0].device) if params[0].is_cuda else lr  # a graph reads it at each replay
    opt = torch.optim.Adam(params, lr=rate, fused=True, capturable=params[0].is_cuda)
    opt.register_load_state_dict_post_hook(_rate_to_device)
    return opt


def _rate_to_device(opt: torch.optim.Optimizer) -> None:
    """Put a learning rate that came with a loaded state where the weights are; torch moves only the moments."""
    for group in opt.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].to(group["params"][0].device)


def descend(opt: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimiser; gradients are computed for its parameters alone."""
    params = opt.param_groups[0]["params"]
    follow(opt, torch.autograd.grad(loss, params))


def follow(opt: torch.optim.Optimizer, grads) -> None:
    """One step of an optimiser along given gradients, one for each of its parameters."""
    for p, grad in zip(opt.param_groups[0]["params"], grads, strict=True):
        p.grad = grad
    opt.step()


@torch.no_grad()
def polyak(targets: list[Tensor], params: list[Tensor], tau: float) -> None:
    """Exponential moving average, `target <- (1 - tau) target + tau param`, in place."""
    torch._foreach_lerp_(targets, params, tau)


def set_rate(opt: torch.optim.Optimizer, lr: float) -> None:
    """Change the learning rate, in place where it is a tensor (a CUDA graph reads it there)."""
    for group in opt.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def clip_factors(grads, lead: int, bound: float) -> Tensor:
    """`min(1, bound / (|g| + 1e-6))` for each network, |g| over all of its gradients: `[*lead axes]`.

    `grads` are tensors whose first `lead` axes number the networks.
    """
    norms = [torch.linalg.vector_norm(g.flatten(lead), dim=-1) for g in grads]
    return (bound / (torch.linalg.vector_norm(torch.stack(norms), dim=0) + 1e-6)).clamp(max=1)


def clipped(grads, lead: int, bound: float) -> list[Tensor]:
    """Gradients with each network's scaled down to the length `bound` where it is longer: see `clip_factors`."""
    factors = clip_factors(grads, lead, bound)
    return [g * factors.view(*factors.shape, *[1] * (g.dim() - lead)) for g in grads]


class AdaptiveLangevin(torch.optim.Optimizer):
    """aSGLD, the adaptive Langevin steps of LSAC's critics (arXiv 2501.17827), for many networks at once.

        g = clipped gradient;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  zeta = m / (sqrt(v) + eps)
        psi <- psi - lr (g + bias zeta) + noise sqrt(2 lr) xi,   xi ~ Normal(0, I)

    With `bias` 0 this is SGLD: if nothing is clipped, exp(-U / noise^2) is stationary for small steps, so `noise` is
    1/sqrt(beta) for the inverse temperature beta. There is no bias correction, as in the released code. Chapter
    *Uncertainty in the critic*.

    params     tensors whose first `lead` axes number the networks; axis 0 is the seed
    streams    one generator a seed, for the noise
    clip       bound on the length of each network's gradient; 0: none
    inside     eps under the root, `m / sqrt(v + eps)`, as the papers print it; released code: outside
    preconditioned   instead of the step above `psi <- psi - lr G g + noise sqrt(2 lr G) xi` with
               G = 1 / (sqrt(v) + eps), v with bias correction: pSGLD (arXiv 1512.07666, without its divergence term).
               Drift and noise are scaled alike, so noise is not lost where gradients are small

    Warns if the noise of a step is less than half the spacing of floats at the median weight: most of it would be
    rounded away. With `preconditioned` its size depends on gradients: it is looked at in the first step, and on a CPU
    only, since a GPU would have to be waited for. Raises ValueError for settings outside their range, without
    parameters, for a number of streams that is not S, and in a step for a parameter without gradient.
    """

    def __init__(
        self, params, streams, *, lead=1, lr=1e-3, bias=1.0, noise=1e-2, betas=(0.9, 0.999), eps=1e-8, clip=0.7,
        inside=False, preconditioned=False,
    ):  # fmt: skip
        if not all(x >= 0 for x in (lr, bias, noise, clip)) or not eps > 0 or not all(0 <= b < 1 for b in betas):
            raise ValueError(
                "AdaptiveLangevin needs lr, bias, noise and clip not negative, eps positive and betas in [0, 1);"
                f" got {lr}, {bias}, {noise}, {clip}, {eps} and {betas}"
            )
        params = list(params)
        if not params:
            raise ValueError("AdaptiveLangevin got no parameter to move; give at least one tensor")
        if any(len(p) != len(streams) for p in params):
            raise ValueError(f"give one stream a seed: {len(streams)} for tensors of {[len(p) for p in params]} seeds")
        if not preconditioned:
            _warn_if_lost(noise, noise * math.sqrt(2 * lr), params)
        lr = torch.tensor(lr, dtype=params[0].dtype, device=params[0].device)  # a CUDA graph reads it at each replay
        defaults = dict(lr=lr, bias=bias, noise=noise, betas=betas, eps=eps, clip=clip, inside=inside, lead=lead)
        super().__init__(params, defaults | {"preconditioned": preconditioned})
        self.register_load_state_dict_post_hook(_rate_to_device)
        self.streams = streams

    @torch.no_grad()
    def step(self, closure=None):
        """One step for every network; gradients are in `p.grad`."""
        (group,) = self.param_groups
        params, lead = group["params"], group["lead"]
        grads = [p.grad for p in params]
        if any(g is None for g in grads):
            missing = sum(g is None for g in grads)
            raise ValueError(f"{missing} of {len(grads)} parameters have no gradient; give every one before a step")
        if group["clip"]:
            grads = clipped(grads, lead, group["clip"])
        if group["preconditioned"] and not self.state and not params[0].is_cuda:
            size = torch.cat([g.flatten() for g in grads]).abs().median().item() + group["eps"]  # of 1 / G, this once
            _warn_if_lost(group["noise"], group["noise"] * math.sqrt(2 * group["lr"].item() / size), params)
        for p, g in zip(params, grads, strict=True):
            self._move(p, g, group)

    def _move(self, p: Tensor, g: Tensor, group: dict) -> None:
        state, (b1, b2), eps, lr = self.state[p], group["betas"], group["eps"], group["lr"]
        if not state:
            state["v"] = torch.zeros_like(p)
            state |= {"seen": torch.zeros_like(lr)} if group["preconditioned"] else {"m": torch.zeros_like(p)}
        v = state["v"].mul_(b2).addcmul_(g, g, value=1 - b2)
        xi = rng.normal(self.streams, *p.shape[1:], dtype=p.dtype) if group["noise"] else None
        if group["preconditioned"]:
            seen = state["seen"].mul_(b2).add_(1 - b2)  # 1 - b2^t: the same average, of ones
            stiffness = (v / seen).sqrt_().add_(eps).div_(lr)  # 1 / (lr G)
            p.addcdiv_(g, stiffness, value=-1)
            if xi is not None:
                p.addcdiv_(xi, stiffness.sqrt_(), value=math.sqrt(2) * group["noise"])
        else:
            m = state["m"].lerp_(g, 1 - b1)
            root = (v + eps).sqrt_() if group["inside"] else v.sqrt().add_(eps)
            drift = torch.addcdiv(g, m, root, value=group["bias"], out=root)  # g + bias zeta
            p.addcmul_(drift, lr, value=-1)
            if xi is not None:
                p.addcmul_(xi, (2 * lr).sqrt(), value=group["noise"])


def _warn_if_lost(noise: float, step: float, params: list[Tensor]) -> None:
    """Warn if a step of the noise, of standard deviation `step`, is lost to rounding."""
    if 0 < step < 0.5 * _spacing(params):
        warnings.warn(
            f"Langevin noise of {noise:g} moves a weight by {step:.1e} a step, less than half"
            " the spacing of floats at the median weight: most of it is rounded away; give a larger noise",
            stacklevel=3,
        )


def _spacing(params: list[Tensor]) -> float:
    """The distance from the median size of the numbers to the next float of their type."""
    x = torch.cat([p.detach().flatten() for p in params]).abs().median()
    return (torch.nextafter(x, torch.full_like(x, math.inf)) - x).item()
