"""The yardsticks of the benchmark compute what the library computes."""

import sys
from pathlib import Path

import torch
from agent_checks import random_batches

from softpolicy import streams as rng
from softpolicy.agents import nclql, s2ac, sac
from softpolicy.nets import cut_normal
from softpolicy.replay import Batch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from plain_nclql import PlainNCLQL  # noqa: E402
from plain_s2ac import PlainS2AC, ReleasedS2AC  # noqa: E402
from plain_sac import PlainSAC  # noqa: E402

O, A, B, M, WIDTH = 5, 2, 16, 4, 8


def linear_layers(net):
    return [layer for layer in net if isinstance(layer, torch.nn.Linear)]


def weights(nets):
    """Pairs of ours and theirs, from pairs of an MLP of ours for one seed and the list of networks it stands for."""
    for ours, theirs in nets:
        for member, net in enumerate(theirs):
            for a, b in zip(ours.layers, linear_layers(net), strict=True):
                yield a.weight.flatten(0, -3)[member].T, b.weight
                yield a.bias.flatten(0, -3)[member, 0], b.bias


def same_weights(nets):
    """Give theirs the weights of ours."""
    with torch.no_grad():
        for a, b in weights(nets):
            b.copy_(a)


def test_plain_sac_and_the_library_agree_on_the_same_draws(monkeypatch):
    agent, plain = sac.Config(width=WIDTH, batch=B).build(O, A, [0]).double(), PlainSAC(O, A, WIDTH)
    for net in (plain.actor, plain.critics, plain.targets):
        net.double()
    plain.log_alpha.data = plain.log_alpha.data.double()
    nets = [(agent.actor.body, [plain.actor]), (agent.critic.body, plain.critics), (agent.target.body, plain.targets)]
    same_weights(nets)
    states, batches = rng.save(agent.noise), random_batches([0], 5, B, O, A, torch.float64)
    for batch in batches:
        agent.update(batch)
    rng.restore(agent.noise, states)
    monkeypatch.setattr(torch, "randn_like", lambda x: rng.normal(agent.noise, *x.shape)[0].double())
    for batch in batches:
        plain.update(*(x[0] for x in batch))
    for a, b in weights(nets):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-7)
    torch.testing.assert_close(agent.log_alpha, plain.log_alpha)
    assert agent.log_alpha != 0


def test_plain_nclql_and_the_library_agree_on_the_same_draws(monkeypatch):
    agent, plain = nclql.Config(width=WIDTH, batch=B).build(O, A, [0]).double(), PlainNCLQL(O, A, WIDTH)
    for net in (plain.critics, plain.targets):
        net.double()
    plain.sigmas = agent.sigmas
    nets = [(ours.body, [q.body for q in theirs]) for ours, theirs in
            ((agent.critic, plain.critics), (agent.target, plain.targets))]  # fmt: skip
    nets += [(ours.embed, [q.embed for q in theirs]) for ours, theirs in
             ((agent.critic, plain.critics), (agent.target, plain.targets))]  # fmt: skip
    same_weights(nets)
    states, batches = rng.save(agent.noise), random_batches([0], 4, B, O, A, torch.float64)
    for batch in batches:
        agent.update(batch)
    rng.restore(agent.noise, states)
    for batch in batches:
        start, noise = agent.training.draw(agent.noise, B, A)
        level, z = rng.uniform(agent.noise, B)[0], rng.normal(agent.noise, B, A)
        normals = iter([*noise[:, 0, :, 0], z[0]])
        monkeypatch.setattr(torch, "rand", lambda *_, x=start, **__: (x[0, :, 0].double() + 1) / 2)
        monkeypatch.setattr(torch, "randn_like", lambda _, xs=normals: next(xs).double())
        monkeypatch.setattr(torch, "randint", lambda n, *_, x=level, **__: (n * x).long())
        plain.update(*(x[0] for x in batch))
        assert next(normals, None) is None
    for a, b in weights(nets):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-7)


def test_plain_s2ac_and_the_library_agree_on_the_same_draws():
    agent = s2ac.Config(width=WIDTH, batch=B, particles=M).build(O, A, [0]).double()
    plain, states = PlainS2AC(O, A, WIDTH, particles=M), rng.save(agent.noise)
    for net in (plain.start, plain.critics, plain.targets):
        net.double()
    nets = [(agent.start.body, [plain.start]), (agent.critic.body, plain.critics), (agent.target.body, plain.targets)]
    same_weights(nets)
    g = torch.Generator().manual_seed(1)
    shapes = [(1, B, O), (1, B, A), (1, B), (1, B, O), (1, B)]
    data = [Batch(*(torch.randn(shape, generator=g).double() for shape in shapes)) for _ in range(4)]
    data = [batch._replace(terminated=(batch.terminated > 1).double()) for batch in data]
    for batch in data:
        agent.update(batch)
    rng.restore(agent.noise, states)
    plain.draw = lambda obs: cut_normal(rng.uniform(agent.noise, B, M, A), 3.0)[0].double()
    for batch in data:
        plain.update(*(x[0] for x in batch))
    for a, b in weights(nets):
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
