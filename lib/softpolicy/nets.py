"""Networks whose weights carry leading axes: `[S]` for seeds, `[S, E]` for an ensemble in every seed.

All S (times E) copies are evaluated in one batched matrix product. Slices never mix, so the gradient of a sum
over S is the S separate gradients. Chapter *Soft policies*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Init = Callable[[Tensor, torch.Generator], object]  # fills a weight [out, in] in place


def torch_default(weight: Tensor, generator: torch.Generator) -> None:
    """`nn.Linear`'s own law: uniform on +-1/sqrt(fan_in)."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)


class Linear(nn.Module):
    """`y = x W + b` for every leading index: `[*lead, ..., n_in] -> [*lead, ..., n_out]`.

    `streams` holds one CPU generator a seed (`lead[0]` of them); `init` fills each `[n_out, n_in]` weight.
    Biases are uniform on +-1/sqrt(n_in), as in `nn.Linear`.
    """

    def __init__(self, lead: Sequence[int], n_in: int, n_out: int, streams, init: Init = torch_default):
        super().__init__()
        weight, bias = torch.empty(*lead, n_out, n_in), torch.empty(*lead, 1, n_out)
        for w, b, stream in zip(weight, bias, streams, strict=True):
            for member in w.view(-1, n_out, n_in):
                init(member, stream)
            b.uniform_(-1 / math.sqrt(n_in), 1 / math.sqrt(n_in), generator=stream)
        self.weight = nn.Parameter(weight.transpose(-1, -2).contiguous())  # [*lead, n_in, n_out]
        self.bias = nn.Parameter(bias)  # [*lead, 1, n_out]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == self.weight.dim() == 3:
            return torch.baddbmm(self.bias, x, self.weight)
        weight, bias = self.weight.flatten(0, -3), self.bias.flatten(0, -3)
        rows = x.reshape(weight.shape[0], -1, x.shape[-1])
        y = torch.baddbmm(bias, rows, weight)
        return y.view(*x.shape[:-1], -1)


class MLP(nn.Module):
    """Linear layers `sizes[0] -> ... -> sizes[-1]`, `activation` between: `[*lead, ..., in] -> [*lead, ..., out]`."""

    def __init__(self, lead, sizes: Sequence[int], streams, activation=F.relu, init: Init = torch_default):
        super().__init__()
        self.layers = nn.ModuleList(
            Linear(lead, a, b, streams, init) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def log_det_tanh(u: Tensor) -> Tensor:
    """`log(1 - tanh(u)^2)`, elementwise, to rounding for every u: `2 (log 2 - |u| - softplus(-2|u|))`."""
    u = u.abs()  # the function is even, and torch's softplus is exact for negative arguments only
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


class GaussianActor(nn.Module):
    """A Gaussian squashed by tanh, `a = tanh(mu(s) + sigma(s) eps)`: SAC's policy (arXiv 1812.05905, appendix C).

    `log_std` is clipped to [-20, 2], the range of the authors' code. Actions lie in [-1, 1]^A.
    """

    LOG_STD = (-20.0, 2.0)

    def __init__(self, n_obs: int, n_act: int, hidden, streams, activation=F.relu, init: Init = torch_default):
        super().__init__()
        self.body = MLP((len(streams),), (n_obs, *hidden, 2 * n_act), streams, activation, init)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before squashing: `[S, B, O] -> [S, B, A], [S, B, A]`."""
        mean, log_std = self.body(obs).chunk(2, -1)
        return mean, log_std.clamp(*self.LOG_STD)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Action `[S, B, A]` and its log-density `[S, B]` for standard normal `noise` `[S, B, A]`.

        Change of variables, equation 26 of the paper: log N(u; mu, sigma) - sum log(1 - tanh(u)^2).
        """
        mean, log_std = self(obs)
        u = mean + log_std.exp() * noise
        log_gauss = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        return u.tanh(), (log_gauss - log_det_tanh(u)).sum(-1)


class Critic(nn.Module):
    """An ensemble of E action-value networks a seed (E = 2: SAC's twins): `Q(obs, action)` is `[S, E, B]`."""

    def __init__(
        self, n_obs: int, n_act: int, hidden, streams, members=2, activation=F.relu, init: Init = torch_default
    ):
        super().__init__()
        self.members = members
        self.body = MLP((len(streams), members), (n_obs + n_act, *hidden, 1), streams, activation, init)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat((obs, action), -1).unsqueeze(1)  # [S, 1, B, O+A]
        return self.body(x.expand(-1, self.members, -1, -1)).squeeze(-1)  # [S, E, B]
