"""What holds of every agent: its settings reach its update, its random streams differ, it acts as it is told."""

import dataclasses
import importlib
import math
import pkgutil

import pytest
import torch
from agent_checks import random_batches

from softpolicy import agents
from softpolicy import streams as rng
from softpolicy.agents import lsac, s2ac, sql
from softpolicy.replay import Replay
from softpolicy.train.loop import Loop

AGENTS = [module.name for module in pkgutil.iter_modules(agents.__path__)]


@pytest.mark.parametrize("name", AGENTS)
def test_no_two_streams_of_a_run_are_the_same_numbers(name, monkeypatch):
    config = importlib.import_module(f"softpolicy.agents.{name}").Config(width=8, batch=4)
    seen, make = [], rng.generators

    def note(seeds, *tags, device="cpu"):
        seen.extend((s, *tags) for s in seeds)
        return make(seeds, *tags, device=device)

    monkeypatch.setattr(rng, "generators", note)
    Loop(config, "Line-v0", [0, 1], 500, 1, "cpu").close()
    states = {rng.derive(*key) for key in seen}
    assert len(states) == len(seen) >= 10


@pytest.mark.parametrize("agent", [s2ac, sql])
def test_training_takes_a_random_particle_and_evaluation_the_chosen_one(agent):
    more = dict(explore="random") if agent is s2ac else {}
    a = agent.Config(width=16, batch=8, particles=6, evaluate="best", **more).build(5, 2, [0, 1])
    obs = rng.normal(rng.generators([0, 1], "obs"), 7, 5)
    assert torch.equal(a.act(obs), a.act(obs, select="best")) and not torch.equal(
        a.act(obs), a.act(obs, select="random")
    )
    drawn = [a.act(obs, rng.generators([0, 1], "act"), select) for select in (None, "random", "best")]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", ["sac", "dsact", "lsac"])
@pytest.mark.parametrize("log_std", [-4.0, -3.0])
def test_the_entropy_that_is_reported_is_the_policys(name, log_std):
    """In nats: of narrow Gaussians around 0, where tanh is the identity, A (log sigma + log(2 pi e) / 2)."""
    (batch,) = random_batches([0], 1, 2_000)
    a = importlib.import_module(f"softpolicy.agents.{name}").Config(width=8, batch=2_000)
    a = (dataclasses.replace(a, replicas=1, diffusion=False, mix=0.0) if name == "lsac" else a).build(5, 2, [0])
    last = a.actor.body.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 0.0, log_std, log_std]))
    info = a.update(batch)
    assert info["entropy"].item() == pytest.approx(2 * (log_std + 0.5 * math.log(2 * math.pi * math.e)), abs=0.1)


@pytest.mark.parametrize("kind", ["asgld", "sgld", "psgld"])
def test_the_critics_optimiser_is_the_one_that_the_settings_name(kind):
    config = lsac.Config(width=8, batch=4, replicas=2, optimizer=kind, lr=2e-3, bias=0.7, noise_scale=0.03, clip=0.4)
    a = config.build(5, 2, [0])
    (group,) = a.opts["critic"].param_groups
    found = [float(group[k]) for k in ("lr", "bias", "noise", "clip")] + [group["preconditioned"], group["lead"]]
    assert found == pytest.approx([2e-3, 0.7 * (kind == "asgld"), 0.03, 0.4, kind == "psgld", 3])


# Another value of each setting that an update has to notice within eight updates.
COMMON = dict(gamma=0.5, tau=0.3, lr=1e-2)
LQL = COMMON | dict(reward_scale=3.0, w=5.0, langevin_steps=3, step_lr=1e-2, levels=3, normalise=False, chains=3)
DSACT = COMMON | dict(policy_lr=1e-2, alpha_lr=1e-2, delay=1, init_log_alpha=-2.0, target_entropy=-7.0, xi=0.1,
                      tau_b=0.9)  # fmt: skip
OTHER = {
    "sac": COMMON | dict(init_alpha=0.3, learn_alpha=False, target_entropy=-7.0),
    "sql": COMMON | dict(alpha=2.0, particles=3, value_particles=3, bandwidth="mean", sigma_floor=2.0, score_temp="one",
                         squash_term=True, proposals="policy", latent="uniform"),
    "lql": LQL,
    "nclql": LQL | dict(sigma_max=0.5, sigma_min=0.01, optimiser_steps="joint", smoothing_target="after",
                        network="flow-rl"),
    "s2ac": COMMON | dict(start_layers=1, activation="relu", alpha=2.0, particles=3, svgd_steps=1, svgd_lr=0.3,
                          bandwidth="mean", sigma=2.0, sigma_floor=3.0, step_cap=1e-3, score_temp="one", score_at="raw",
                          norm="m-1", self_kernel=True, hessian=True, start="full", std_min=0.99, std_max=5.0,
                          truncation="none", amortised=True),
    "dsact": DSACT,
    "lsac": DSACT | dict(replicas=3, optimizer="sgld", bias=0.1, noise_scale=0.1, clip=0.01, share_b=True,
                         sigma_grad=False, select="argmax_safe", l2_norm=1.0, mix=0.25, copies=True, refit_every=3,
                         n_synth=9, diffusion_width=12, diffusion_blocks=2, diffusion_steps=9, diffusion_lr=0.1,
                         average_every=2, sampler_steps=7, churn=50.0, synthetic_capacity=33, refine="off",
                         refine_lr=0.1, writeback=False),
}  # fmt: skip
BRIEF = dict(replicas=2, refit_every=2, n_synth=30, diffusion_width=8, diffusion_blocks=1, diffusion_steps=4,
             sampler_steps=3)  # fmt: skip


def learnt(name, **changes):
    """The weights of three seeds after eight updates on a replay of random transitions."""
    seeds, settings = [0, 1, 2], dict(width=8, batch=4) | (BRIEF if name == "lsac" else {}) | changes
    config = importlib.import_module(f"softpolicy.agents.{name}").Config(**settings)
    agent, replay, streams = config.build(5, 2, seeds), Replay(100, 3, 5, 2), rng.generators(seeds, "sample")
    (b,) = random_batches(seeds, 1, 40)
    replay.add(b.obs, b.action, b.reward[..., None], b.next_obs, b.terminated[..., None])
    for _ in range(8):
        if hasattr(agent, "prepare"):
            agent.prepare(replay)
        agent.update(replay.sample(getattr(config, "transitions", config.batch), streams))
    return [p.detach().clone() for p in agent.parameters()]


def same(a, b):
    return [x.shape for x in a] == [x.shape for x in b] and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", AGENTS)
def test_every_setting_reaches_the_update(name):
    usual = learnt(name)
    assert same(usual, learnt(name))
    dead = [k for k, value in OTHER[name].items() if same(usual, learnt(name, **{k: value}))]
    assert not dead
