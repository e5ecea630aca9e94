"""Acting by Stein particles on a critic: what SQL (arXiv 1702.08165) and S2AC (arXiv 2405.00987) share.

Chapter *Stein soft actor-critic*. A state has M particles, `[S, B, M, A]`; actions lie in [-1, 1]^A.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softpolicy import streams as rng
from softpolicy.device import Product
from softpolicy.nets import MLP, Critic
from softpolicy.replay import Batch
from softpolicy.svgd import pairs, velocity


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


# An activation (it may overwrite z) and the product of g with its slope, from its value; both can be differentiated
# again.
ACTIVATIONS = {
    F.elu: (Elu.apply, EluBack.apply),
    F.relu: (F.relu_, lambda g, h: torch.ops.aten.threshold_backward(g, h, 0)),
}


class Landscape:
    """`min_e Q_e(s, a)` of a critic at fixed states, as a function of M actions a state, and its gradient.

    Weights are constants here and must not change while it is in use; actions are not: both functions can be
    differentiated in them, any number of times. What the first layer makes of a state is computed once for all
    particles and calls. The critic's activation must be one of `ACTIVATIONS`.
    """

    def __init__(self, critic: Critic, obs: Tensor, particles: int):
        self.members, (self.activation, self.back) = critic.members, ACTIVATIONS[critic.body.activation]
        self.member = torch.arange(self.members, device=obs.device).view(-1, 1, 1)
        weights = [layer.weight.detach().flatten(0, 1) for layer in critic.body.layers]  # [S E, in, out]
        self.biases = [layer.bias.detach().flatten(0, 1) for layer in critic.body.layers[1:]]  # [S E, 1, out]
        w_obs, self.w_act = weights[0].split((obs.shape[-1], weights[0].shape[1] - obs.shape[-1]), 1)
        base = torch.baddbmm(critic.body.layers[0].bias.detach().flatten(0, 1), self.pairs(obs), w_obs)
        self.base, self.weights = base.repeat_interleave(particles, 1), weights[1:]  # [S E, B M, W]

    def pairs(self, x: Tensor) -> Tensor:
        """Each seed's rows for each member: `[S, n, k] -> [S E, n, k]`."""
        return x.unsqueeze(1).expand(-1, self.members, -1, -1).flatten(0, 1)

    def evaluate(self, action: Tensor) -> tuple[list[Tensor], Tensor]:
        """Values of the hidden layers `[S E, B M, W]` and of the critics `[S, E, B, M]` at actions `[S, B, M, A]`."""
        h = [self.activation(torch.baddbmm(self.base, self.pairs(action.flatten(1, 2)), self.w_act))]
        for w, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h.append(self.activation(Product.apply(h[-1], w, b)))
        q = torch.baddbmm(self.biases[-1], h[-1], self.weights[-1])
        return h, q.view(-1, self.members, *action.shape[1:3])

    def value(self, action: Tensor) -> Tensor:
        """`min_e Q_e`, `[S, B, M]`, at actions `[S, B, M, A]`."""
        return self.evaluate(action)[1].amin(1)

    def gradient(self, action: Tensor) -> Tensor:
        """The gradient of `value`, `[S, B, M, A]`, by the chain rule written out."""
        h, q = self.evaluate(action)
        g = self.back(self.weights[-1].transpose(1, 2).expand_as(h[-1]), h[-1])
        for w, value in zip(self.weights[-2::-1], h[-2::-1], strict=True):
            g = self.back(Product.apply(g, w.transpose(1, 2)), value)
        g = Product.apply(g, self.w_act.transpose(1, 2)).view(*q.shape, -1)  # [S, E, B, M, A]
        smaller = q.min(1, keepdim=True).indices == self.member  # [S, E, B, M]: each action follows one critic
        return (g * smaller[..., None]).sum(1)


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

    def __init__(self, n_obs, n_act, hidden, streams, covariance="isotropic", std_range=(0.1, 1.0), fixed=0.5):
        super().__init__()
        self.n_act, self.covariance, self.std_range, self.fixed = n_act, covariance, std_range, fixed
        below = n_act * (n_act - 1) // 2
        out = {"isotropic": n_act + 1, "diagonal": 2 * n_act, "full": 2 * n_act + below, "none": 0}[covariance]
        if out:
            self.body = MLP((len(streams),), (n_obs, *hidden, out), streams, F.elu)

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


def stein_loss(action: Tensor, fixed: Tensor, score: Tensor, bandwidth, floor: float) -> tuple[Tensor, Tensor]:
    """A loss whose gradient moves `action` `[S, B, N, A]` along the Stein velocity (SQL, equations 13 and 14).

    `- sum_s mean <a, phi(a)>` with phi a constant, made by the particles `fixed` and their scores `[S, B, M, A]`.
    Second result: the mean length of phi, `[S]`. ValueError unless both have particles at the same states.
    """
    if action.shape[:2] != fixed.shape[:2]:
        raise ValueError(f"actions at {tuple(action.shape[:2])} seeds and states, fixed at {tuple(fixed.shape[:2])}")
    with torch.no_grad():
        a, x = action.detach(), fixed.detach()
        phi = velocity(pairs(a, x, bandwidth, floor), a, x, score)
    loss = -(action * phi).sum(-1).mean((1, 2))  # [S]
    return loss.sum(), phi.norm(dim=-1).mean((1, 2))


def critic_loss(q: Tensor, target: Tensor) -> tuple[Tensor, dict]:
    """`sum_s sum_e mean_b (Q_e - target)^2`, as in S2AC's code; q `[S, E, B]`, target `[S, B]`."""
    loss = (q - target[:, None]).square().mean(-1).sum(1)  # [S]
    return loss.sum(), {"critic_loss": loss.detach(), "q": q.detach().mean((1, 2))}


def backup(batch: Batch, value: Tensor, gamma: float) -> Tensor:
    """`r + gamma (1 - terminated) V(s')`, `[S, B]`, for soft values `[S, B]`."""
    return batch.reward + gamma * (1 - batch.terminated) * value


def choose(select: str, particles: Tensor, q: Tensor, temperature: float, u: Tensor, weight=None) -> Tensor:
    """One particle of each state, `[S, N, M, A] -> [S, N, A]` (S2AC, released code, here for batches of states).

    select  "random"; "best", by its value q `[S, N, M]`; or "softmax", in proportion to exp(q / temperature)
    u       uniform numbers `[S, N]`
    weight  0 for particles that must not be taken, `[S, N, M]`
    """
    if select not in ("random", "best", "softmax"):
        raise ValueError(f"select must be random, best or softmax, got '{select}'")
    weight = torch.ones_like(q) if weight is None else weight
    q = q.masked_fill(weight == 0, -torch.inf)
    if select == "best":
        index = q.argmax(-1)
    else:
        total = (weight if select == "random" else (q / temperature).softmax(-1)).cumsum(-1)
        index = (total <= u[..., None] * total[..., -1:]).sum(-1).clamp(max=q.shape[-1] - 1)
    return particles.gather(2, index[..., None, None].expand(-1, -1, 1, particles.shape[-1])).squeeze(2)


class Draws:
    """Random numbers `[S, N, *shape]` for observations `[S, N, O]`: from S streams, or, without, each observation's
    own, a function of its numbers alone, so that an evaluation repeats and disturbs nothing."""

    def __init__(self, obs: Tensor, streams=None):
        self.obs, self.own = obs, streams is None
        self.streams = rng.of_rows(obs) if self.own else streams

    def __call__(self, law, *shape: int) -> Tensor:
        """`law` is `streams.normal` or `streams.uniform`."""
        n = self.obs.shape[:2]
        numbers = law(self.streams, 1 if self.own else n[1], *shape)
        return numbers.view(*n, *shape).to(self.obs)
