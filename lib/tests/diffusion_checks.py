"""What the tests of diffusion share: streams, the network on plain products, the exact denoiser of a Gaussian."""

import math

import torch

from softpolicy import streams as rng


def streams(*seeds, tag="test"):
    return rng.generators(seeds, tag)


def plain_network(net, seed, x, t):
    """The released network on the weights of one seed, x `[B, D]`, t `[B]`, from single matrix products."""
    layer = lambda linear, x: x @ linear.weight[seed] + linear.bias[seed, 0]  # noqa: E731
    angles = 2 * math.pi * t[:, None] * net.w[seed, 0]
    code = torch.cat((t[:, None], torch.sin(angles), torch.cos(angles)), 1)
    z = layer(net.time.layers[0], code)
    h = layer(net.widen, layer(net.first, x) + layer(net.time.layers[1], z * torch.sigmoid(z)))
    for block in net.blocks:
        h = h + layer(block, h.clamp(min=0))
    return layer(net.last, h.clamp(min=0))


MU = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
LAMBDA, AXES = torch.linalg.eigh(torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.8, -0.3], [0.0, -0.3, 0.5]]).double())
C = AXES * LAMBDA @ AXES.T


def gaussian_denoiser(x, sigma):
    """`mu + C (C + sigma^2 I)^-1 (x - mu)`, the mean of clean rows of N(mu, C) given the noisy ones."""
    shrink = torch.linalg.solve(C + sigma[..., None, None] ** 2 * torch.eye(3).double(), C)  # the factors commute
    return MU + (shrink @ (x - MU)[..., None]).squeeze(-1)
