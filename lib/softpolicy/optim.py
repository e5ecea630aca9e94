"""Optimisers for batched parameters."""

from __future__ import annotations

import torch


def adam(params, lr: float) -> torch.optim.Adam:
    """Adam in its fused form, capturable in a CUDA graph. Elementwise, so each seed's slice has its own Adam."""
    params = list(params)
    return torch.optim.Adam(params, lr=lr, fused=True, capturable=params[0].is_cuda)


@torch.no_grad()
def polyak(targets: list[torch.Tensor], params: list[torch.Tensor], tau: float) -> None:
    """Exponential moving average, `target <- (1 - tau) target + tau param`, in place."""
    torch._foreach_lerp_(targets, params, tau)
