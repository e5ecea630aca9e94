"""LQL and NC-LQL: their critic, their policy and their updates, against plain versions and closed forms."""

import copy
import dataclasses
import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from agent_checks import random_batches
from hypothesis import given, settings
from hypothesis import strategies as st

from softpolicy import langevin_policy as lp
from softpolicy import nets
from softpolicy import streams as rng
from softpolicy.agents import lql, nclql
from softpolicy.replay import Batch
from softpolicy.train import train

O, A, B = 5, 2, 16
METHODS = [lql.Config(width=32, batch=B), lql.Config(width=32, batch=B, levels=10, langevin_steps=2)]
METHODS += [lql.Config(width=32, batch=B, chains=3), nclql.Config(width=32, batch=B)]


def batches(seeds, n, dtype=torch.float32):
    return random_batches(seeds, n, B, dtype=dtype)


def critic(seeds=(0,), levels=10, hidden=(16, 16, 16), dtype=torch.float64, n_obs=O, n_act=A, **kw):
    return nets.LevelCritic(n_obs, n_act, hidden, rng.generators(seeds, "test"), levels, **kw).to(dtype)


# --- the policy


def bowl_policy(**kw):
    return nclql.Config(**kw).build(1, 1, [0]).training


class Landscape:
    """Stands in for a critic: sum over two members of a given gradient."""

    members = 2

    def __init__(self, gradient):
        self.gradient = gradient

    def action_gradient(self, obs):
        return lambda x, level: 2 * self.gradient(x)


def run(policy, gradient, n, d, seed=0):
    start, noise = policy.draw(rng.generators([seed], "chain"), n, d)
    return policy.sample(Landscape(gradient), torch.zeros(1, n, 1), start, noise)


def test_after_level_0_every_chain_of_a_linear_critic_is_in_the_corner():
    slope = torch.tensor([1.0, -0.5, 0.2])
    policy = bowl_policy()
    first = lp.LangevinPolicy(policy.steps[:1], 2, policy.w, True, "sum")
    assert (run(first, lambda x: slope.expand_as(x), 20_000, 3) == slope.sign()).all()


@pytest.mark.parametrize(("d", "expected"), [(1, 0.017), (2, 0.019), (6, 0.028), (8, 0.033), (17, 0.057)])
def test_jitter_around_the_maximum_of_a_bowl(d, expected):
    x = run(bowl_policy(), lambda x: 0.3 - x, 20_000, d)
    assert (x - 0.3).norm(dim=-1).mean().item() == pytest.approx(expected, rel=0.05)


def sampled(policy, c, n=50):
    obs = torch.randn(1, n, O, generator=torch.Generator().manual_seed(0)).double()
    start, noise = policy.draw(rng.generators([0], "chain"), n, A)
    return policy.sample(c, obs, start.double(), noise.double())


def test_sum_and_mean_of_gradients_differ_by_two_in_w_and_not_at_all_when_normalised():
    c, policy = critic(), bowl_policy()
    make = lambda **kw: lp.LangevinPolicy(**(vars(policy) | kw))  # noqa: E731
    halved = copy.deepcopy(c)
    with torch.no_grad():
        halved.body.layers[-1].weight.mul_(0.5)  # every gradient is half as long
    torch.testing.assert_close(sampled(policy, halved), sampled(policy, c), atol=1e-4, rtol=0)
    torch.testing.assert_close(sampled(make(reduction="mean"), c), sampled(policy, c), atol=1e-4, rtol=0)
    raw = sampled(make(normalise=False, w=3.0), c)
    torch.testing.assert_close(sampled(make(normalise=False, w=6.0, reduction="mean"), c), raw, atol=1e-6, rtol=0)


def test_permuting_states_and_noise_permutes_actions_and_stays_in_the_box():
    c, policy, order = critic((0, 1)), bowl_policy(), torch.randperm(30)
    obs = torch.randn(2, 30, O).double()
    start, noise = (x.double() for x in policy.draw(rng.generators([0, 1], "chain"), 30, A))
    a = policy.sample(c, obs, start, noise)
    b = policy.sample(c, obs[:, order], start[:, order], noise[:, :, order])
    torch.testing.assert_close(a[:, order], b)
    assert a.abs().max() <= 1 and all(p.grad is None for p in c.parameters()) and not a.requires_grad


def test_twenty_gradients_an_action():
    for config in METHODS:
        agent, calls = config.build(O, A, [0]), []
        gradient = agent.critic.action_gradient
        agent.critic.action_gradient = lambda obs, g=gradient, c=calls: (
            lambda f: lambda x, k: (c.append(k), f(x, k))[1]
        )(g(obs))
        agent.act(torch.randn(1, 3, O), rng.generators([0], "act"))
        assert len(calls) == 20


def test_of_several_chains_the_best_by_the_smaller_critic_is_taken():
    c = critic((0, 1), dtype=torch.float32)
    policy = bowl_policy(chains=7)
    obs = torch.randn(2, 4, O)
    start, noise = policy.draw(rng.generators([0, 1], "chain"), 4, A)
    best = policy.sample(c, obs, start, noise)
    single = lp.LangevinPolicy(**(vars(policy) | {"chains": 1}))
    each = torch.stack([single.sample(c, obs, start[:, :, [k]], noise[..., [k], :]) for k in range(7)])  # [K, S, B, A]
    q = torch.stack([c(obs, a, 9).amin(1) for a in each])
    torch.testing.assert_close(c(obs, best, 9).amin(1), q.amax(0))


@pytest.mark.parametrize("config", METHODS)
def test_evaluation_noise_is_a_function_of_the_observation(config):
    agent = config.build(O, A, [0, 1])
    obs = torch.randn(2, 3, O)
    first = agent.act(obs)
    assert torch.equal(first, agent.act(obs))
    policy = agent.policy if config.name == "lql" else agent.evaluation
    for many, one in zip(policy.draw_from(obs, A), policy.draw_from(obs[:1, 1:2], A), strict=True):
        assert torch.equal(many[..., :1, 1:2, :, :], one)  # whatever stands beside it
    before = policy.draw_from(obs, A)[0]
    obs[0, 0, 0] += 1e-6
    changed = (policy.draw_from(obs, A)[0] != before).flatten(2).any(-1)
    assert changed.flatten().tolist() == [True] + [False] * 5


@pytest.mark.parametrize("config", METHODS)
def test_fresh_evaluation_noise_differs_from_call_to_call(config):
    agent = dataclasses.replace(config, evaluation="fresh").build(O, A, [0])
    obs = torch.randn(1, 3, O)
    assert not torch.equal(agent.act(obs), agent.act(obs))


# --- the updates


class PlainAgent:
    """One seed of LQL or NC-LQL as the algorithm is written down, with autograd and torch's Adam."""

    def __init__(self, agent, s):
        self.c, self.cfg, self.s = agent.critic, agent.config, s
        pick = lambda net: [p[s].detach().clone() for p in net.parameters()]  # noqa: E731
        self.params, self.target = [p.requires_grad_() for p in pick(agent.critic)], pick(agent.target)
        self.opt = torch.optim.Adam(self.params, lr=self.cfg.lr)
        self.policy = agent.policy if self.cfg.name == "lql" else agent.training
        self.levels = self.cfg.levels if self.cfg.name == "nclql" else 0

    def q(self, params, obs, action, level):
        params, x = iter(params), torch.cat((obs, action), -1)
        x = x.expand(2, *x.shape)
        if self.levels:
            h = self.c.codes[level].expand(2, len(obs), 16)
            h = F.mish(h @ next(params) + next(params)) @ next(params) + next(params)
            h = F.mish(h) if self.c.variant == "flow-rl" else h
            x = torch.cat((x, h), -1)
        for _ in range(3):
            x = F.mish(x @ next(params) + next(params))
        return (x @ next(params) + next(params)).squeeze(-1)  # [2, B]

    def sample(self, obs, start, noise):
        each = [self.chain(obs, start[:, k], noise[:, :, k]) for k in range(start.shape[1])]
        value = [self.q(self.params, obs, x, self.cfg.levels - 1).amin(0) for x in each]  # [K][B]
        best = torch.stack(value).argmax(0)
        return torch.stack([each[k][i] for i, k in enumerate(best)])

    def chain(self, obs, x, noise):
        z = iter(noise)
        for level, eps in enumerate(self.policy.steps):
            for _ in range(self.policy.per_level):
                x = x.detach().requires_grad_()
                (g,) = torch.autograd.grad(self.q(self.params, obs, x, level).sum(), x)
                if self.cfg.normalise:
                    g = g / (g.norm(dim=-1, keepdim=True) + 1e-8)
                elif self.cfg.reduction == "mean":
                    g = g / 2
                x = (x + 0.5 * eps * self.cfg.w * g + math.sqrt(eps) * next(z)).clamp(-1, 1)
        return x.detach()

    def step(self, *losses):
        self.opt.zero_grad()
        sum(losses).backward()
        self.opt.step()

    def loss(self, q, target):
        return sum(F.mse_loss(one, target) for one in q)

    def update(self, batch, noise, level, z):
        obs, action, reward, next_obs, terminated = (x[self.s] for x in batch)
        next_action, last = self.sample(next_obs, *noise), self.cfg.levels - 1
        q_next = self.q(self.target, next_obs, next_action, last).detach()
        y = 0.2 * reward + 0.99 * (1 - terminated) * torch.minimum(*q_next)
        clean = lambda params: self.q(params, obs, action, last).mean(0).detach()  # noqa: E731
        td = lambda: self.loss(self.q(self.params, obs, action, last), y)  # noqa: E731
        if self.levels < 2:
            self.step(td())
        else:
            which = self.cfg.smoothing_target
            aim = clean(self.target if which == "target" else self.params)
            sigma = torch.linspace(math.log(0.1), math.log(0.001), self.levels, dtype=torch.float64).exp()[level]
            smooth = lambda: self.loss(self.q(self.params, obs, action + sigma[:, None] * z, level), aim)  # noqa: E731
            if self.cfg.optimiser_steps == "joint":
                self.step(td(), smooth())
            else:
                self.step(td())
                aim = clean(self.params) if which == "after" else aim
                self.step(smooth())
        for t, p in zip(self.target, self.params, strict=True):
            t.mul_(0.995).add_(0.005 * p.detach())


UPDATES = [
    *METHODS,
    *(lql.Config(width=32, **kw) for kw in (dict(normalise=False, w=20.0), dict(normalise=False, reduction="mean"))),
]
UPDATES += [
    nclql.Config(width=32, **kw)
    for kw in (dict(chains=3), dict(chains=3, chains_in="evaluation"), dict(normalise=False, reduction="mean", w=20.0),
               dict(levels=1, langevin_steps=5), dict(levels=4, langevin_steps=3), dict(optimiser_steps="joint"),
               dict(smoothing_target="after"), dict(smoothing_target="target"), dict(network="flow-rl"))
]  # fmt: skip


@pytest.mark.parametrize("config", UPDATES)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True), b=st.integers(4, 9),
       n_obs=st.integers(1, 5), n_act=st.integers(1, 4))  # fmt: skip
def test_update_is_the_algorithm_as_written_seed_by_seed(config, seeds, b, n_obs, n_act):
    config = dataclasses.replace(config, batch=b)
    agent = config.build(n_obs, n_act, seeds).double()
    plain = [PlainAgent(agent, s) for s in range(len(seeds))]
    twin = rng.generators(seeds, "update")
    rng.restore(twin, copy.deepcopy(rng.save(agent.noise)))
    for batch in random_batches(seeds, 4, b, n_obs, n_act, torch.float64):
        agent.update(batch)
        start, z = (agent.policy if config.name == "lql" else agent.training).draw(twin, b, n_act)
        level = smooth = [None] * len(seeds)
        if plain[0].levels > 1:
            level = (rng.uniform(twin, b) * (config.levels - 1)).long()
            smooth = rng.normal(twin, b, n_act)
        for s, p in enumerate(plain):
            p.update(batch, (start[s].double(), z[:, s].double()), level[s], smooth[s])
    for s, p in enumerate(plain):
        for net, mine in ((agent.critic, p.params), (agent.target, p.target)):
            for a, b in zip(mine, net.parameters(), strict=True):
                torch.testing.assert_close(a, b[s], atol=1e-6, rtol=1e-5)
    steps = {int(state["step"]) for state in agent.opts["critic"].state.values()}
    two = plain[0].levels > 1 and config.optimiser_steps == "two"
    assert max(steps) == 4 * (2 if two else 1)


@pytest.mark.parametrize("config", METHODS)
def test_a_seed_learns_the_same_alone_and_among_others(config):
    alone, among = config.build(O, A, [3]).double(), config.build(O, A, [1, 3, 5]).double()
    for a, b in zip(batches([3], 3, torch.float64), batches([1, 3, 5], 3, torch.float64), strict=True):
        info_a, info_b = alone.update(a), among.update(b)
    for x, y in zip(alone.parameters(), among.parameters(), strict=True):
        torch.testing.assert_close(x[0], y[1], atol=1e-6, rtol=1e-5)
    for name in info_a:
        torch.testing.assert_close(info_a[name][0], info_b[name][1], atol=1e-4, rtol=1e-4)


# --- one thing at a time


def test_without_learning_rate_nothing_moves_and_targets_follow_by_tau():
    agent = nclql.Config(width=32, batch=B, lr=0.0).build(O, A, [0])
    before = copy.deepcopy(agent.state_dict())
    agent.update(batches([0], 1)[0])
    assert all(torch.equal(a, before[k]) for k, a in agent.state_dict().items())
    agent = nclql.Config(width=32, batch=B, lr=1e-2).build(O, A, [0])
    old = [p.clone() for p in agent.target.parameters()]
    agent.update(batches([0], 1)[0])
    for t, o, p in zip(agent.target.parameters(), old, agent.critic.parameters(), strict=True):
        torch.testing.assert_close(t - o, 0.005 * (p.detach() - o), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("which", "moves"), [("before", False), ("after", True), ("target", False)])
def test_when_the_smoothing_target_is_computed(which, moves):
    """Before the TD step it does not depend on that step's learning rate; after it, it does. It has no gradient."""
    cleans = []
    for lr in (0.0, 1e-2):
        agent = nclql.Config(width=32, batch=B, lr=lr, smoothing_target=which).build(O, A, [0])
        with torch.no_grad():
            for p in agent.target.parameters():
                p.mul_(1.5)
        smoothing = agent.smoothing_loss
        agent.smoothing_loss = lambda batch, clean, s=smoothing: (cleans.append(clean), s(batch, clean))[1]
        agent.update(batches([0], 1)[0])
    assert not torch.equal(*cleans) == moves
    assert not any(c.requires_grad for c in cleans)
    if not moves:
        agent = nclql.Config(width=32, batch=B).build(O, A, [0])
        obs, action = (batches([0], 1)[0][i] for i in (0, 1))
        with torch.no_grad():
            for p in agent.target.parameters():
                p.mul_(1.5)
            torch.testing.assert_close(
                cleans[0], getattr(agent, {"before": "critic"}.get(which, which))(obs, action, 9).mean(1)
            )


def test_levels_are_uniform_without_the_finest_and_noisy_actions_are_not_clipped():
    n, seen = 20_000, []
    agent = nclql.Config(width=8, batch=n).build(1, A, [0])
    agent.critic.forward = lambda obs, action, level: (seen.append((action, level)), torch.zeros(1, 2, n))[1]
    batch = Batch(torch.zeros(1, n, 1), torch.ones(1, n, A), torch.zeros(1, n), None, None)
    for _ in range(5):
        agent.smoothing_loss(batch, torch.zeros(1, n))
    action, level = (torch.cat([s[i] for s in seen], 1) for i in range(2))
    share = torch.bincount(level.flatten(), minlength=10) / level.numel()
    torch.testing.assert_close(share[:9], torch.full((9,), 1 / 9), atol=5e-3, rtol=0)
    assert share[9] == 0
    assert (action > 1).float().mean().item() == pytest.approx(0.5, abs=0.01)
    for k, sigma in enumerate(agent.sigmas[:9].tolist()):
        z = (action[level == k] - 1) / sigma
        assert z.std().item() == pytest.approx(1, rel=0.03) and z.mean().abs() < 0.05


def test_target_of_a_terminal_transition_is_the_scaled_reward():
    reward, q = torch.randn(1, 2), torch.randn(1, 2, 2)
    y = lp.td_target(Batch(None, None, reward, None, torch.tensor([[1.0, 0.0]])), q, 0.99, 0.2)
    assert y[0, 0].item() == pytest.approx(0.2 * reward[0, 0].item())
    assert y[0, 1].item() == pytest.approx(0.2 * reward[0, 1].item() + 0.99 * q[0, :, 1].min().item(), abs=1e-6)


@pytest.mark.parametrize("config", METHODS)
def test_next_actions_come_from_the_online_critics_and_values_from_the_targets(config, monkeypatch):
    actions, targets = [], []
    for change in (None, "target", "critic"):
        agent = config.build(O, A, [0])
        if change:
            with torch.no_grad():
                for p in getattr(agent, change).parameters():
                    p.mul_(1.5)
        fit = agent.fit
        agent.fit = lambda batch, y, f=fit: (targets.append(y), f(batch, y))[1]
        target = agent.target.forward
        agent.target.forward = lambda o, a, *level, f=target: (actions.append(a), f(o, a, *level))[1]
        agent.update(batches([0], 1)[0])
    assert torch.equal(actions[0], actions[1]) and not torch.equal(targets[0], targets[1])
    assert not torch.equal(actions[0], actions[2])


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=2), max_size=5))
def test_warning_of_actions_at_the_edge_comes_at_the_second_evaluation_in_a_row(shares):
    crowded = [[s > 0.5 for s in pair] for pair in shares]
    expected = any(a and b for x, y in itertools.pairwise(crowded) for a, b in zip(x, y, strict=True))
    watch = lp.EdgeWatch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for pair in shares:
            watch({"saturated": pair})
    assert bool(caught) == expected


@pytest.mark.parametrize("method", [lql, nclql])
def test_a_run_whose_chains_end_in_the_corners_says_so(method, tmp_path):
    kw = dict(warmup=20, eval_every=10, eval_episodes=1)
    corner = method.Config(width=8, batch=4, langevin_steps=2, w=1e9)
    with pytest.warns(UserWarning, match="at the edge of the box"):
        rows = train(corner, "Line-v0", [0, 1], 40, tmp_path / "corner", **kw)
    assert (rows["saturated"] == 1).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(dataclasses.replace(corner, w=1.0), "Line-v0", [0, 1], 40, tmp_path / "free", **kw)


@pytest.mark.parametrize(
    ("config", "settings", "match"),
    [(lql.Config, dict(w=0.0), "w must lie"), (nclql.Config, dict(w=-1.0), "w must lie"),
     (nclql.Config, dict(levels=0), "at least 1"), (lql.Config, dict(sigma_min=0.1), "sigma_min < sigma_max"),
     (nclql.Config, dict(sigma_max=0.001), "sigma_min < sigma_max"), (lql.Config, dict(reduction="max"), "sum or mean"),
     (nclql.Config, dict(network="haiku"), "authors or flow-rl"), (nclql.Config, dict(step_lr=0.0), "positive"),
     (nclql.Config, dict(optimiser_steps="joint", smoothing_target="after"), "give two")],
)  # fmt: skip
def test_bad_settings_are_refused(config, settings, match):
    with pytest.raises(ValueError, match=match):
        config(**settings)
