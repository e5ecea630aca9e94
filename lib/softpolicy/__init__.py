"""Reinforcement learning that acts by sampling: the library behind *Sampling Soft Policies*."""

__version__ = "0.1.0"
