"""Diffusion models of rows: a denoiser learnt from a table, and new rows drawn with it.

Chapter *Langevin soft actor-critic*. A row is a vector of D numbers; there it is a whole transition, laid out as in
`replay.Replay`: observation, action, reward, next observation, terminated. Everything is batched over S seeds, each
with a network, a table `[S, N, D]` and a random stream of its own, and no seed sees another: values that are not
finite in one seed's rows spoil the samples of that seed alone.

The model is EDM (Karras et al. 2022, arXiv 2206.00364, whose tables and equations are named), as used by the code
released with LSAC (arXiv 2501.17827), which took it from SynthER (arXiv 2303.06614).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softpolicy import streams as rng
from softpolicy.device import Product
from softpolicy.nets import MLP, Linear
from softpolicy.optim import clipped, follow, polyak
from softpolicy.settings import require, setting

Denoise = Callable[[Tensor, Tensor], Tensor]  # noisy rows [S, B, D], noise levels [S, B] or [S, 1] -> clean rows


@dataclasses.dataclass(frozen=True)
class EDM:
    """Noise levels of EDM, in units of the normalised rows."""

    name = "edm"
    sigma_min: float = setting(0.002, "smallest noise level; EDM, table 1")
    sigma_max: float = setting(80.0, "largest noise level, where sampling starts; EDM, table 1")
    sigma_data: float = setting(1.0, "standard deviation of the rows; released code (EDM's images: 0.5)")
    rho: float = setting(7.0, "how strongly the levels crowd at the low end; EDM, table 1")
    p_mean: float = setting(-1.2, "mean of log sigma in training; EDM, table 1")
    p_std: float = setting(1.2, "standard deviation of log sigma in training; EDM, table 1")
    s_churn: float = setting(80.0, "noise put back while sampling; 0 makes the sampler deterministic; released code")
    s_tmin: float = setting(0.05, "noise is put back at levels from here; released code")
    s_tmax: float = setting(50.0, "noise is put back at levels up to here; released code")
    s_noise: float = setting(1.003, "factor of the noise put back; released code")

    def __post_init__(self):
        require(self, sigma_max=(1e-12, 1e12), sigma_min=(1e-12, self.sigma_max), sigma_data=(1e-12, 1e12))
        require(self, rho=(1e-3, 1e3), p_mean=(-1e3, 1e3), p_std=(0, 1e3), s_noise=(0, 1e3))
        require(self, **dict.fromkeys(("s_churn", "s_tmin", "s_tmax"), (0, math.inf)))


@dataclasses.dataclass(frozen=True)
class Training:
    """How a denoiser is trained; the defaults are those of LSAC's released code."""

    name = "diffusion"
    width: int = setting(2048, "units of each residual block; released code")
    blocks: int = setting(6, "residual blocks; released code")
    steps: int = setting(100_000, "gradient steps, over which the learning rate falls to 0 as a cosine; released code")
    batch: int = setting(256, "rows in a step, drawn with replacement; released code")
    lr: float = setting(3e-4, "learning rate at the start (AdamW without decay, betas 0.9 and 0.99); released code")
    clip: float = setting(1.0, "largest norm of a seed's gradient; released code")
    average: float = setting(0.995, "largest decay of the averaged weights, which make the samples; released code")
    average_every: int = setting(10, "steps between two updates of the average; released code")

    def __post_init__(self):
        require(self, width=(1, math.inf), blocks=(0, math.inf), steps=(1, math.inf), batch=(1, math.inf))
        require(self, lr=(0, 1), clip=(1e-12, math.inf), average=(0, 1), average_every=(1, math.inf))


def product(layer: Linear, x: Tensor) -> Tensor:
    """The layer's output by `Product`, whatever its size: on a CPU training and sampling are mostly this."""
    return Product.apply(x, layer.weight, layer.bias)


class Denoiser(nn.Module):
    """The residual network F of LSAC's released code, S of them: `F(x [S, B, D], t [S, B]) -> [S, B, D]`.

    The time t enters as `[t, sin(2 pi w t), cos(2 pi w t)]`, with `frequencies` numbers w drawn from N(0, 1) and never
    trained, through two layers; rows through one; their sum through `blocks` residual blocks `h + W relu(h) + b`. With
    t `[S, 1]` one time serves all rows. `streams` holds one CPU generator a seed.
    """

    def __init__(self, n_dims: int, width: int, blocks: int, streams, embed: int = 128, frequencies: int = 8):
        super().__init__()
        lead = (len(streams),)
        self.register_buffer("w", rng.normal(streams, 1, frequencies))  # [S, 1, frequencies]
        self.time = MLP(lead, (1 + 2 * frequencies, embed, embed), streams, F.silu)
        self.first = Linear(lead, n_dims, embed, streams)
        self.widen = Linear(lead, embed, width, streams)
        self.blocks = nn.ModuleList(Linear(lead, width, width, streams) for _ in range(blocks))
        self.last = Linear(lead, width, n_dims, streams)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t[..., None]
        angle = 2 * math.pi * t * self.w  # [S, B, frequencies]
        h = product(self.first, x) + self.time(torch.cat((t, angle.sin(), angle.cos()), -1))
        h = product(self.widen, h)
        for block in self.blocks:
            h = h + product(block, h.relu())
        return product(self.last, h.relu())


def precondition(sigma: Tensor, edm: EDM) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in and c_noise at levels `sigma` of any shape: EDM, table 1."""
    both = (sigma.square() + edm.sigma_data**2).sqrt()
    c_skip, c_out = (edm.sigma_data / both).square(), sigma * edm.sigma_data / both
    return c_skip, c_out, 1 / both, sigma.clamp(min=1e-20).log() / 4


def denoise(net: nn.Module, x: Tensor, sigma: Tensor, edm: EDM) -> Tensor:
    """`D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)`, equation 7: x `[S, B, D]`, sigma `[S, B]` or `[S, 1]`."""
    c_skip, c_out, c_in, c_noise = precondition(sigma[..., None], edm)
    return c_skip * x + c_out * net(c_in * x, c_noise.squeeze(-1))


def loss(denoiser: Denoise, x: Tensor, sigma: Tensor, noise: Tensor, edm: EDM) -> tuple[Tensor, dict]:
    """`sum_s mean_b lambda(sigma) mean_d (D(x + sigma n; sigma) - x)^2`, equations 2 and 8 and table 1.

    x and noise `[S, B, D]`, sigma `[S, B]`; lambda is `(sigma^2 + sigma_data^2) / (sigma sigma_data)^2`.
    """
    error = denoiser(x + sigma[..., None] * noise, sigma) - x
    weight = (sigma.square() + edm.sigma_data**2) / (sigma * edm.sigma_data).square()  # [S, B]
    value = (weight * error.square().mean(-1)).mean(-1)  # [S]
    return value.sum(), {"diffusion_loss": value.detach()}


def training_levels(streams, batch: int, edm: EDM) -> Tensor:
    """Noise levels `[S, B]` for training, log-normal: table 1."""
    return (edm.p_mean + edm.p_std * rng.normal(streams, batch)).exp()


def levels(steps: int, edm: EDM) -> list[float]:
    """The noise levels of the sampler, sigma_max to sigma_min (`steps` of them), then 0: equation 5."""
    if steps < 2:
        raise ValueError(f"the sampler needs at least 2 steps, got {steps}")
    high, low = edm.sigma_max ** (1 / edm.rho), edm.sigma_min ** (1 / edm.rho)
    return [(high + i / (steps - 1) * (low - high)) ** edm.rho for i in range(steps)] + [0.0]


def churn(sigma: float, steps: int, edm: EDM) -> float:
    """gamma: the share by which the sampler raises the noise level sigma before a step, algorithm 2."""
    return min(edm.s_churn / steps, math.sqrt(2) - 1) if edm.s_tmin <= sigma <= edm.s_tmax else 0.0


@torch.no_grad()
def sample(denoiser: Denoise, noise: Iterable[Tensor], edm: EDM, steps: int = 128) -> Tensor:
    """Rows `[S, n, D]` by the stochastic Heun sampler, algorithm 2; the denoiser is called `2 steps - 1` times.

    `noise` gives standard normal tensors `[S, n, D]`, such as `streams.normals(streams, n, D)`: the first is the start,
    and each level that is churned takes one more. The denoiser gets levels `[S, 1]`.
    """
    sigmas, noise = levels(steps, edm), iter(noise)
    x = sigmas[0] * next(noise)
    at = lambda sigma: x.new_full((len(x), 1), sigma)  # noqa: E731
    for sigma, lower in zip(sigmas[:-1], sigmas[1:], strict=True):
        raised = sigma * (1 + churn(sigma, steps, edm))
        if raised > sigma:
            x = x + math.sqrt(raised**2 - sigma**2) * edm.s_noise * next(noise)
        slope = (x - denoiser(x, at(raised))) / raised
        euler = x + (lower - raised) * slope
        if lower == 0:
            return euler
        there = (euler - denoiser(euler, at(lower))) / lower
        x = x + (lower - raised) * (slope + there) / 2


@dataclasses.dataclass(frozen=True)
class Normaliser:
    """Standardises the columns of each seed's rows: `(rows - mean) / std`."""

    mean: Tensor  # [S, 1, D]
    std: Tensor  # [S, 1, D], plus 1e-5

    @classmethod
    def of(cls, rows: Tensor, keep=()) -> Normaliser:
        """For rows `[S, N, D]`; the columns whose numbers are in `keep` stay as they are."""
        std, mean = torch.std_mean(rows, 1, keepdim=True)
        std += 1e-5
        mean[..., list(keep)], std[..., list(keep)] = 0, 1
        return cls(mean, std)

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.std

    def invert(self, rows: Tensor) -> Tensor:
        return rows * self.std + self.mean


def average_decay(step: int, largest: float) -> float:
    """Decay of the averaged weights after gradient step 0, 1, ...: 0 at first, then rising to `largest`.

    The schedule of the package that the released code averages with (ema-pytorch 0.6.2, its defaults), which looks
    every tenth step: a copy up to step 110, then `1 - (step - 99)^(-2/3)`.
    """
    return 0.0 if step <= 110 else min(largest, 1 - (step - 99) ** (-2 / 3))


@dataclasses.dataclass(frozen=True)
class Model:
    """What `fit` learnt."""

    net: Denoiser  # with the averaged weights
    normaliser: Normaliser
    edm: EDM
    losses: Tensor  # [steps, S]


def cpu_streams(streams) -> list[torch.Generator]:
    """A new CPU generator for each stream, seeded by one number drawn from it."""
    seeds = [torch.randint(2**62, (), generator=g, device=g.device) for g in streams]
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def fit(rows: Tensor, streams, config: Training, edm: EDM, keep=()) -> Model:
    """A new denoiser for each seed, trained on its rows `[S, N, D]`; columns whose numbers are in `keep` are not
    normalised.

    `streams` holds one generator a seed, on the rows' device; rows and streams determine the result. Nothing is read
    back from the device once training has begun. ValueError for fewer than 2 rows, or not one stream a seed.
    """
    if rows.dim() != 3 or rows.shape[1] < 2 or rows.shape[0] != len(streams):
        raise ValueError(
            f"give rows [seeds, rows, columns] with at least 2 rows a seed and one stream a seed, got shape"
            f" {tuple(rows.shape)} and {len(streams)} streams"
        )
    n_seeds, n_rows, n_dims = rows.shape
    net = Denoiser(n_dims, config.width, config.blocks, cpu_streams(streams)).to(rows.device)
    averaged = copy.deepcopy(net).requires_grad_(False)
    params, averages, denoiser = list(net.parameters()), list(averaged.parameters()), partial(denoise, net, edm=edm)
    opt = torch.optim.AdamW(params, config.lr, (0.9, 0.99), weight_decay=0, fused=True)
    normaliser, seed = Normaliser.of(rows, keep), torch.arange(n_seeds, device=rows.device)[:, None]
    losses = rows.new_empty(config.steps, n_seeds)
    for step in range(config.steps):
        row = (rng.uniform(streams, config.batch, dtype=torch.float64) * n_rows).long()  # [S, B]
        sigma, noise = training_levels(streams, config.batch, edm), rng.normal(streams, config.batch, n_dims)
        total, info = loss(denoiser, normaliser(rows[seed, row]), sigma, noise, edm)
        opt.param_groups[0]["lr"] = config.lr * (1 + math.cos(math.pi * step / config.steps)) / 2
        follow(opt, clipped(torch.autograd.grad(total, params), 1, config.clip))
        losses[step] = info["diffusion_loss"]
        if step % config.average_every == 0:
            polyak(averages, params, 1 - average_decay(step, config.average))
    return Model(averaged, normaliser, edm, losses)


def generate(model: Model, n: int, streams, steps: int = 128, chunk: int = 1024) -> Tensor:
    """n new rows a seed, `[S, n, D]`, in the units of the rows of `fit`; `chunk` at a time, to bound memory.

    ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"the number of rows to generate must be at least 1, got {n}")
    denoiser, n_dims = partial(denoise, model.net, edm=model.edm), model.normaliser.mean.shape[-1]
    sizes = [min(chunk, n - done) for done in range(0, n, chunk)]
    parts = [sample(denoiser, rng.normals(streams, size, n_dims), model.edm, steps) for size in sizes]
    return model.normaliser.invert(torch.cat(parts, 1))


def transitions(rows: Tensor, widths) -> tuple[Tensor, ...]:
    """Generated rows as `Replay.add` takes them: actions clipped to [-1, 1], terminated 1 above 0.5 and else 0.

    `widths` are those of `Replay.widths`; returns obs, action, reward, next_obs, terminated, each `[S, N, width]`.
    """
    obs, action, reward, next_obs, terminated = rows.split(widths, -1)
    return obs, action.clamp(-1, 1), reward, next_obs, (terminated > 0.5).to(rows.dtype)
