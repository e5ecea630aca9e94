"""Acting by Stein particles on a critic: what SQL (arXiv 1702.08165) and S2AC (arXiv 2405.00987) share.

Chapter *Stein soft actor-critic*. A state has M particles, `[S, B, M, A]`; actions lie in [-1, 1]^A.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from softpolicy import streams as rng
from softpolicy.device import Product
from softpolicy.nets import Critic, Elu, EluBack
from softpolicy.replay import Batch
from softpolicy.svgd import pairs, velocity

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
