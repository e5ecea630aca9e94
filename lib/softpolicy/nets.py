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

from softpolicy import streams as rng
from softpolicy.device import affine

Init = Callable[[Tensor, torch.Generator], object]  # fills a weight [out, in] in place


def torch_default(weight: Tensor, generator: torch.Generator) -> None:
    """`nn.Linear`'s own law: uniform on +-1/sqrt(fan_in)."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)


def truncated_normal(weight: Tensor, generator: torch.Generator) -> None:
    """Normal with scale 1/sqrt(fan_in), cut at two scales: the default of Haiku, with which NC-LQL was released."""
    scale = 1 / math.sqrt(weight.shape[1])
    nn.init.trunc_normal_(weight, 0, scale, -2 * scale, 2 * scale, generator=generator)  # bounds are absolute


def orthogonal(weight: Tensor, generator: torch.Generator) -> None:
    """Orthogonal rows or columns, gain sqrt(2)."""
    nn.init.orthogonal_(weight, math.sqrt(2), generator=generator)


class Linear(nn.Module):
    """`y = x W + b` for every leading index: `[*lead, ..., n_in] -> [*lead, ..., n_out]`.

    `streams` holds one CPU generator a seed (`lead[0]` of them); `init` fills each `[n_out, n_in]` weight.
    Biases are zero, or uniform on +-1/sqrt(n_in) with `torch_default`, as in `nn.Linear`.
    """

    def __init__(self, lead: Sequence[int], n_in: int, n_out: int, streams, init: Init = torch_default):
        super().__init__()
        weight, bias = torch.empty(*lead, n_out, n_in), torch.zeros(*lead, 1, n_out)
        for w, b, stream in zip(weight, bias, streams, strict=True):
            for member in w.view(-1, n_out, n_in):
                init(member, stream)
            if init is torch_default:
                b.uniform_(-1 / math.sqrt(n_in), 1 / math.sqrt(n_in), generator=stream)
        self.weight = nn.Parameter(weight.transpose(-1, -2).contiguous())  # [*lead, n_in, n_out]
        self.bias = nn.Parameter(bias)  # [*lead, 1, n_out]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == self.weight.dim() == 3:
            return affine(x, self.weight, self.bias)
        weight, bias = self.weight.flatten(0, -3), self.bias.flatten(0, -3)
        rows = x.reshape(weight.shape[0], -1, x.shape[-1])
        y = affine(rows, weight, bias)
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
        activation = torch.relu_ if self.activation is F.relu else self.activation  # nobody else holds a layer's output
        shape, x = x.shape[:-1], x.reshape(self.layers[0].weight.shape[:-2].numel(), -1, x.shape[-1])
        for k, layer in enumerate(self.layers):
            x = affine(activation(x) if k else x, layer.weight.flatten(0, -3), layer.bias.flatten(0, -3))
        return x.view(*shape, -1)


def mish_and_slope(z: Tensor) -> tuple[Tensor, Tensor]:
    """`mish(z) = z t` with `t = tanh(softplus(z))`, and its derivative, elementwise.

    With s = sigmoid(z), which is the derivative of softplus, t = s (2 - s) / (2 - s (2 - s)) and t' = s (1 - t^2).
    """
    s = z.sigmoid()
    half = torch.addcmul(s, s, s, value=-0.5)  # s (2 - s) / 2
    rest = 1 - half
    t = half.div_(rest)
    value = z * t
    slope = s.addcmul_(torch.mul(s, t, out=rest), t, value=-1)
    return value, t.addcmul_(z, slope)


class _Mish(torch.autograd.Function):
    """Mish whose backward pass is one product: the slope is computed along with the value."""

    @staticmethod
    def forward(ctx, z):
        value, slope = mish_and_slope(z)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        return grad * slope


def mish(z: Tensor) -> Tensor:
    """`z tanh(softplus(z))` (arXiv 1908.08681), differentiable once."""
    return _Mish.apply(z)


class EluBack(torch.autograd.Function):
    """`g elu'(z)` from h = elu(z), as torch's `elu_backward`, whose own derivative takes five passes over memory."""

    @staticmethod
    def forward(ctx, g: Tensor, h: Tensor) -> Tensor:
        ctx.save_for_backward(g, h)
        return torch.ops.aten.elu_backward(g, 1, 1, 1, True, h)

    @staticmethod
    def backward(ctx, grad: Tensor):
        g, h = ctx.saved_tensors
        to_g = EluBack.apply(grad, h) if ctx.needs_input_grad[0] else None
        return to_g, torch.ops.aten.hardtanh_backward(grad * g, h, -math.inf, 0)  # grad g where h < 0


class Elu(torch.autograd.Function):
    """`max(z, e^min(z, 0) - 1)`: elu, on a CPU by exp2, which is faster there than what torch's elu calls."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        if z.is_cuda:
            h = F.elu(z)
        else:
            h = z.clamp(max=0).mul_(math.log2(math.e)).exp2_().sub_(1)
            torch.maximum(z, h, out=h)
        ctx.save_for_backward(h)
        return h

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return EluBack.apply(grad, *ctx.saved_tensors)


def log_det_tanh(u: Tensor) -> Tensor:
    """`log(1 - tanh(u)^2)`, elementwise, to rounding for every u: `2 (log 2 - |u| - softplus(-2|u|))`."""
    u = u.abs()  # the function is even, and torch's softplus is exact for negative arguments only
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


class GaussianActor(nn.Module):
    """A Gaussian squashed by tanh, `a = tanh(mu(s) + sigma(s) eps)`: SAC's policy (arXiv 1812.05905, appendix C).

    `log_std` is clipped to the range of that name, [-20, 2] as in the authors' code. Actions lie in [-1, 1]^A.
    """

    def __init__(
        self, n_obs: int, n_act: int, hidden, streams, activation=F.relu, init: Init = torch_default, log_std=(-20, 2)
    ):
        super().__init__()
        self.log_std = log_std
        self.body = MLP((len(streams),), (n_obs, *hidden, 2 * n_act), streams, activation, init)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before squashing: `[S, B, O] -> [S, B, A], [S, B, A]`."""
        mean, log_std = self.body(obs).chunk(2, -1)
        return mean, log_std.clamp(*self.log_std)

    def act(self, obs: Tensor, streams=None) -> Tensor:
        """Actions `[S, N, A]` for observations `[S, N, O]`: sampled with `streams`; without, the medians tanh(mu)."""
        mean, log_std = self(obs)
        noise = 0 if streams is None else rng.normal(streams, *mean.shape[1:])
        return (mean + log_std.exp() * noise).tanh()

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Action `[S, B, A]` and its log-density `[S, B]` for standard normal `noise` `[S, B, A]`.

        Change of variables, equation 26 of the paper: log N(u; mu, sigma) - sum log(1 - tanh(u)^2).
        """
        mean, log_std = self(obs)
        u = mean + log_std.exp() * noise
        log_gauss = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        return u.tanh(), (log_gauss - log_det_tanh(u)).sum(-1)


def log_mass(t: float) -> float:
    """log of the probability that a standard normal number lies within +-t."""
    return math.log(math.erf(t / math.sqrt(2)))


def cut_normal(u: Tensor, t: float) -> Tensor:
    """Normal numbers cut at +-t, exactly, from uniform u in [0, 1): the inverse of their distribution function."""
    return math.sqrt(2) * torch.erfinv((2 * u - 1) * math.erf(t / math.sqrt(2)))


class StartLaw(nn.Module):
    """The law q^0(.|s) of S2AC's particles before the first step: a Gaussian N(mu(s), C(s) C(s)^T).

    covariance  "isotropic": one sigma(s) (paper); "diagonal": one each coordinate (released code); "full":
                C = diag(sigma) L with L unit lower triangular, its entries in [-1, 1]; "none": N(0, fixed^2 I),
                nothing is learned
    std_range   sigma is clipped into it, which stops its gradient outside
    """

    def __init__(
        self, n_obs, n_act, hidden, streams, covariance="isotropic", std_range=(0.1, 1.0), fixed=0.5, activation=F.elu
    ):
        super().__init__()
        self.n_act, self.covariance, self.std_range, self.fixed = n_act, covariance, std_range, fixed
        below = n_act * (n_act - 1) // 2
        out = {"isotropic": n_act + 1, "diagonal": 2 * n_act, "full": 2 * n_act + below, "none": 0}[covariance]
        if out:
            self.body = MLP((len(streams),), (n_obs, *hidden, out), streams, activation)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """mu, sigma `[S, B, A]` and L `[S, B, A, A]`, None where that is the identity, for obs `[S, B, O]`."""
        a = self.n_act
        if self.covariance == "none":
            mean = obs.new_zeros(*obs.shape[:2], a)
            return mean, mean + self.fixed, None
        out = self.body(obs)
        log_std = out[..., a:] if self.covariance == "isotropic" else out[..., a : 2 * a]
        low, high = self.std_range
        std = log_std.clamp(math.log(low), math.log(high)).exp().expand(*out.shape[:-1], a)
        if self.covariance != "full":
            return out[..., :a], std, None
        row, column = torch.tril_indices(a, a, -1, device=obs.device)
        lower = torch.eye(a, dtype=out.dtype, device=obs.device).repeat(*out.shape[:-1], 1, 1)
        lower[..., row, column] = out[..., 2 * a :].tanh()
        return out[..., :a], std, lower

    def sample(self, obs: Tensor, z: Tensor, cut: float | None = None) -> tuple[Tensor, Tensor, tuple]:
        """Particles `mu + C z` and their log-density `[S, B, M]` for standard normal z `[S, B, M, A]`.

        `cut` says that z was cut at +-cut (`cut_normal`). The third result are mu and each coordinate's standard
        deviation, `[S, B, 1, A]`.
        """
        mean, std, lower = (x if x is None else x.unsqueeze(2) for x in self(obs))
        moved = z if lower is None else (lower @ z.unsqueeze(-1)).squeeze(-1)
        log_q = (-0.5 * z**2 - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
        log_q = log_q - (self.n_act * log_mass(cut) if cut else 0.0)
        spread = std if lower is None else std * lower.norm(dim=-1)
        return mean + std * moved, log_q, (mean, spread)


class NoiseActor(nn.Module):
    """The amortised sampler `a = tanh f(s, z)` of SQL, and of S2AC at test time."""

    def __init__(self, n_obs: int, n_act: int, hidden, streams, activation=F.relu):
        super().__init__()
        self.body = MLP((len(streams),), (n_obs + n_act, *hidden, n_act), streams, activation)

    def forward(self, obs: Tensor, z: Tensor) -> Tensor:
        """Actions `[S, B, M, A]` for obs `[S, B, O]` and noise z `[S, B, M, A]`."""
        obs = obs.unsqueeze(2).expand(-1, -1, z.shape[2], -1)
        return self.body(torch.cat((obs, z), -1).flatten(1, 2)).tanh().view_as(z)


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


class GaussianCritic(nn.Module):
    """Critics of the law of the return, Normal(mean, std^2): n replicas of twins for each seed (LSAC, DSAC-T).

    Each network has two outputs, the mean and what softplus turns into the standard deviation. Replica i has
    observations `[S, n, B, O]` and actions `[S, n, B, A]` of its own, shared by its twins; mean and std are
    `[S, n, 2, B]`.
    """

    def __init__(self, n_obs: int, n_act: int, hidden, streams, replicas=1, activation=F.gelu, init=torch_default):
        super().__init__()
        self.body = MLP((len(streams), replicas, 2), (n_obs + n_act, *hidden, 2), streams, activation, init)

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat((obs, action), -1).unsqueeze(2)  # [S, n, 1, B, O+A]
        mean, raw = self.body(x.expand(-1, -1, 2, -1, -1)).unbind(-1)
        return mean, F.softplus(raw)

    def mean_of(self, replica: Tensor, obs: Tensor, action: Tensor) -> Tensor:
        """The means of one replica a seed, `[S, 2, B]`, its weights constants: replica `[S]` (integers), obs
        `[S, B, O]`, action `[S, B, A]`."""
        seeds = torch.arange(len(replica), device=replica.device)
        x = torch.cat((obs, action), -1).repeat_interleave(2, 0)  # [2 S, B, O+A]
        for k, layer in enumerate(self.body.layers):
            w, b = (p.detach()[seeds, replica].flatten(0, 1) for p in (layer.weight, layer.bias))
            x = affine(self.body.activation(x) if k else x, w, b)
        return x[..., 0].view(-1, 2, x.shape[1])


def level_embedding(levels: int, variant: str = "authors") -> Tensor:
    """Sinusoidal codes `[L, 16]` of the level numbers 0..L-1 (the *number* is coded, not the noise it stands for).

    "authors": `(sin(l f_j), cos(l f_j)) / 4` with `f_j = 10000^(-j/8)`, j = 0..7, as in NC-LQL's released code;
    "flow-rl": cosines first, `f_j = 10000^(-j/7)`, not scaled.
    """
    if variant == "flow-rl":
        angle = torch.arange(levels)[:, None] * 10_000 ** (-torch.arange(8) / 7)
        return torch.cat((angle.cos(), angle.sin()), -1)
    angle = torch.arange(levels)[:, None] * 10_000 ** (-torch.arange(8) / 8)
    return torch.cat((angle.sin(), angle.cos()), -1) / 4


class LevelCritic(nn.Module):
    """NC-LQL's noise-conditioned critic (arXiv 2602.07873), E networks a seed: `Q(obs, action, level)` is `[S, E, B]`.

    Each network embeds the level (codes of 16 numbers, 16 -> 32 -> 16 with Mish), puts it beside observation and
    action, and maps the three through `hidden` layers with Mish to one number. With `levels` = 0 there is no level
    input: LQL's critic. `variant` "authors" or "flow-rl" chooses codes, initialisation and the embedding's last
    activation (none; Mish).
    """

    def __init__(self, n_obs, n_act, hidden, streams, levels=0, members=2, variant="authors"):
        super().__init__()
        self.n_obs, self.n_act, self.levels, self.members, self.variant = n_obs, n_act, levels, members, variant
        lead, init = (len(streams), members), orthogonal if variant == "flow-rl" else truncated_normal
        if levels:
            self.register_buffer("codes", level_embedding(levels, variant))
            self.embed = MLP(lead, (16, 32, 16), streams, mish, init)
        self.body = MLP(lead, (n_obs + n_act + 16 * bool(levels), *hidden, 1), streams, mish, init)

    def embedding(self, level: int | Tensor) -> Tensor:
        """`[S, E, B, 16]` for levels `[S, B]`, `[S, E, 1, 16]` for one number."""
        code = self.codes[level] if isinstance(level, Tensor) else self.codes[level].expand(1, 1, -1)
        lead = self.body.layers[0].weight.shape[:2]
        h = self.embed(code.unsqueeze(1).expand(*lead, -1, -1))
        return mish(h) if self.variant == "flow-rl" else h

    def forward(self, obs: Tensor, action: Tensor, level: int | Tensor | None = None) -> Tensor:
        """obs `[S, B, O]`, action `[S, B, A]` (it may lie outside the box), level `[S, B]` or one number.

        ValueError for an action of another shape, and without the level that a critic with levels needs.
        """
        self._check(action, obs)
        if self.levels and level is None:
            raise ValueError(f"this critic has {self.levels} noise levels; give one, from 0 to {self.levels - 1}")
        x = torch.cat((obs, action), -1).unsqueeze(1).expand(-1, self.members, -1, -1)  # [S, E, B, O+A]
        if self.levels:
            h = self.embedding(level)
            x = torch.cat((x, h.expand(*x.shape[:3], 16)), -1)
        return self.body(x).squeeze(-1)

    def _check(self, action: Tensor, obs: Tensor) -> None:
        expected = (*obs.shape[:2], self.n_act)
        if action.shape != expected:
            raise ValueError(f"actions for these observations must have shape {expected}, got {tuple(action.shape)}")

    @torch.no_grad()
    def action_gradient(self, obs: Tensor) -> Callable[[Tensor, int], Tensor]:
        """The function `(action [S, B, A], level) -> sum_e grad_a Q_e(obs, action, level)`, `[S, B, A]`.

        The chain rule by hand, for sampling: no graph, no gradient of weights, both critics in one product, and what
        the first layer makes of the observation (and of a level) is computed once for all steps of a chain. The
        weights must not change while the function is in use.
        """
        first, *rest = self.body.layers
        flat = lambda x: x.flatten(0, -3)  # noqa: E731
        sizes = (self.n_obs, self.n_act, first.weight.shape[2] - self.n_obs - self.n_act)
        w_obs, w_act, w_level = first.weight.split(sizes, 2)
        pairs = lambda x: flat(x.unsqueeze(1).expand(-1, self.members, -1, -1))  # noqa: E731  [S, B, .] -> [S E, B, .]
        base = torch.baddbmm(flat(first.bias), pairs(obs), flat(w_obs))  # [S E, B, W]
        w_act, back = flat(w_act).contiguous(), [flat(layer.weight).transpose(1, 2) for layer in rest]
        shifted = {}  # level -> base with the level's part

        @torch.no_grad()
        def gradient(action: Tensor, level: int = 0) -> Tensor:
            self._check(action, obs)
            if level not in shifted:
                shifted.clear()
                shifted[level] = base + flat(self.embedding(level) @ w_level) if self.levels else base
            a, d = mish_and_slope(torch.baddbmm(shifted[level], pairs(action), w_act))
            slopes = [d]
            for layer in rest[:-1]:
                a, d = mish_and_slope(affine(a, flat(layer.weight), flat(layer.bias)))
                slopes.append(d)
            g = slopes.pop().mul_(back[-1])  # dQ / d(input of the last hidden activation)
            for w in reversed(back[:-1]):
                g = affine(g, w).mul_(slopes.pop())
            g = g @ w_act.transpose(1, 2)  # [S E, B, A]
            return g.view(-1, self.members, *g.shape[1:]).sum(1)

        return gradient
