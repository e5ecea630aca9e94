"""What the tests of several agents share: random batches, and the check that a restored agent goes on exactly."""

import copy

import torch

from softpolicy import agents
from softpolicy import streams as rng
from softpolicy.replay import Batch


def random_batches(seeds, n, size, n_obs=5, n_act=2, dtype=torch.float32):
    """n random batches `[S, size, ...]`; a seed's slice depends on the seed alone."""
    g = rng.generators(seeds, "batches")
    return [
        Batch(*(x.to(dtype) for x in (rng.normal(g, size, n_obs), 2 * rng.uniform(g, size, n_act) - 1,
                                      rng.normal(g, size), rng.normal(g, size, n_obs), rng.uniform(g, size) < 0.2)))
        for _ in range(n)
    ]  # fmt: skip


def assert_goes_on_exactly(make, batches):
    """An agent saved after one batch, restored into a new one of `make()`, learns exactly what the old one does."""
    first, second = make(), make()
    first.update(batches[0])
    saved = copy.deepcopy(agents.save(first))
    for batch in batches[1:]:
        first.update(batch)
    agents.restore(second, saved)
    for batch in batches[1:]:
        second.update(batch)
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), second.parameters(), strict=True))
