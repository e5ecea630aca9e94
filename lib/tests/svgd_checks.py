"""What tests of SVGD share: the Gaussian of S2AC's Figure 4a, its score and entropy, and Gaussian starts."""

import math

import torch

MEAN = torch.tensor([-0.6871, 0.8010]).double()
COVARIANCE = 5 * torch.tensor([[0.2260, 0.1652], [0.1652, 0.6779]]).double()  # the Gaussian of S2AC's Figure 4a


def gaussian_score(x):
    return -(x - MEAN) @ torch.linalg.inv(COVARIANCE)


def gaussian_entropy(covariance):
    return 0.5 * torch.logdet(2 * math.pi * math.e * covariance).item()


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def gaussian_start(seed, *m, d=2, variance=6.0, mean=0.0):
    z = normal(seed, *m, d)
    return mean + math.sqrt(variance) * z, -0.5 * (z**2).sum(-1) - 0.5 * d * math.log(2 * math.pi * variance)
