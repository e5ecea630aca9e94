"""The yardsticks of the benchmark compute what the library computes."""

import sys
from pathlib import Path

import torch

from softpolicy import stein_policy as sp
from softpolicy import streams as rng
from softpolicy.agents import s2ac
from softpolicy.replay import Batch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from plain_s2ac import PlainS2AC, ReleasedS2AC  # noqa: E402

O, A, B, M, WIDTH = 5, 2, 16, 4, 8


def linear_layers(net):
    return [layer for layer in net if isinstance(layer, torch.nn.Linear)]


def test_plain_s2ac_and_the_library_agree_on_the_same_draws():
    agent = s2ac.Config(width=WIDTH, batch=B, particles=M).build(O, A, [0]).double()
    plain, states = PlainS2AC(O, A, WIDTH, particles=M), rng.save(agent.noise)
    for net in (plain.start, plain.critics, plain.targets):
        net.double()
    nets = [(agent.start.body, [plain.start]), (agent.critic.body, plain.critics), (agent.target.body, plain.targets)]

    def weights():
        for ours, theirs in nets:
            for member, net in enumerate(theirs):
                for a, b in zip(ours.layers, linear_layers(net), strict=True):
                    yield a.weight.flatten(0, -3)[member].T, b.weight
                    yield a.bias.flatten(0, -3)[member, 0], b.bias

    with torch.no_grad():
        for a, b in weights():
            b.copy_(a)
    g = torch.Generator().manual_seed(1)
    shapes = [(1, B, O), (1, B, A), (1, B), (1, B, O), (1, B)]
    data = [Batch(*(torch.randn(shape, generator=g).double() for shape in shapes)) for _ in range(4)]
    data = [batch._replace(terminated=(batch.terminated > 1).double()) for batch in data]
    for batch in data:
        agent.update(batch)
    rng.restore(agent.noise, states)
    plain.draw = lambda obs: sp.cut_normal(rng.uniform(agent.noise, B, M, A), 3.0)[0].double()
    for batch in data:
        plain.update(*(x[0] for x in batch))
    for a, b in weights():
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_the_released_way_starts_within_three_deviations_and_learns():
    torch.manual_seed(0)
    plain, obs = ReleasedS2AC(O, A, WIDTH, particles=M), torch.randn(B, O)
    u, log_q, mean, std = plain.begin(obs)
    assert u.shape == (B, M, A) and ((u - mean).abs() < 3 * std).all()
    torch.testing.assert_close(log_q, torch.distributions.Normal(mean, std).log_prob(u).sum(-1))
    before = [p.detach().clone() for p in [*plain.start.parameters(), *plain.critics.parameters()]]
    plain.update(obs, torch.zeros(B, A), torch.ones(B), obs, torch.zeros(B))
    assert all(
        (a != b).any() for a, b in zip(before, [*plain.start.parameters(), *plain.critics.parameters()], strict=True)
    )
