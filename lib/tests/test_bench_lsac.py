"""LSAC's yardstick, one network after the other, computes what the library computes."""

import sys
from pathlib import Path

import torch
from agent_checks import random_batches

from softpolicy import streams as rng
from softpolicy.agents import lsac
from softpolicy.replay import Batch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from plain_lsac import PlainLSAC  # noqa: E402

O, A, B, N, WIDTH, ROWS = 5, 2, 8, 3, 8, 50


def linear_layers(net):
    return [layer for layer in net if isinstance(layer, torch.nn.Linear)]


def weights(agent, plain):
    """Pairs of ours and theirs."""
    nets = [(agent.actor.body, [plain.actor]), (agent.target_actor.body, [plain.target_actor])]
    nets += [(agent.critic.body, sum(plain.critics, [])), (agent.target.body, sum(plain.targets, []))]
    for ours, theirs in nets:
        for member, net in enumerate(theirs):
            for a, b in zip(ours.layers, linear_layers(net), strict=True):
                yield a.weight.flatten(0, -3)[member].T, b.weight
                yield a.bias.flatten(0, -3)[member, 0], b.bias


def test_plain_lsac_and_the_library_agree_on_the_same_draws():
    config = lsac.Config(width=WIDTH, batch=B, replicas=N, noise_scale=0.0, synthetic_capacity=ROWS, diffusion=False)
    agent, plain = config.build(O, A, [0]).double(), PlainLSAC(O, A, WIDTH, N, noise=0.0)
    plain.log_alpha = plain.log_alpha.detach().double().requires_grad_()
    plain.opt_alpha = torch.optim.Adam([plain.log_alpha], lr=3e-4)
    with torch.no_grad():
        for a, b in weights(agent, plain):
            b.data = a.clone()
    for twins, opts in zip(plain.critics, plain.opts, strict=True):
        for q, opt in zip(twins, opts, strict=True):
            opt.__init__(q, 0.0)
    stored = random_batches([0], 1, ROWS, O, A)[0]
    agent.synthetic.data.add(*(x if x.dim() == 3 else x[..., None] for x in stored))
    agent.synthetic.data.rows = agent.synthetic.data.rows.double()
    agent.synthetic.follow = lambda *_: None
    synthetic = tuple(x[0].double() for x in stored)
    for batch in random_batches([0], 5, N * B, O, A, torch.float64):
        states = rng.save(agent.noise)
        agent.prepare(None)
        agent.update(batch)
        rng.restore(agent.noise, states)
        draws = {
            "rows": agent.synthetic.data.slots(N * B // 2, agent.noise)[0].view(N, -1),
            "next": rng.normal(agent.noise, N * B, A)[0].view(N, B, A),
            "z": rng.normal(agent.noise, N, 2, B)[0].clamp(-3, 3).double(),
        }
        if agent.phase[0]:
            draws |= {"replica": int(rng.uniform(agent.noise, N)[0].argmax()),
                      "action": rng.normal(agent.noise, B, A)[0]}  # fmt: skip
        plain.update(tuple(x[0].unflatten(0, (N, B)) for x in batch), synthetic, draws=draws)
    for a, b in weights(agent, plain):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-7)  # the step size is a float32
    torch.testing.assert_close(Batch(*agent.synthetic.data.take(torch.arange(ROWS)[None])).action[0], synthetic[1])
    torch.testing.assert_close(agent.log_alpha[0], plain.log_alpha)
