"""Optimisers for batched parameters."""

from __future__ import annotations

import torch


def adam(params, lr: float) -> torch.optim.Adam:
    """Adam in its fused form, capturable in a CUDA graph. Elementwise, so each seed's slice has its own Adam."""
    params = list(params)
    return torch.optim.Adam(params, lr=lr, fused=True, capturable=params[0].is_cuda)


def descend(opt: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One step of an optimiser; gradients are computed for its parameters alone."""
    params = opt.param_groups[0]["params"]
    for p, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
        p.grad = grad
    opt.step()


@torch.no_grad()
def polyak(targets: list[torch.Tensor], params: list[torch.Tensor], tau: float) -> None:
    """Exponential moving average, `target <- (1 - tau) target + tau param`, in place."""
    torch._foreach_lerp_(targets, params, tau)
