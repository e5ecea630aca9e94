"""The multi-goal tasks against their definition, and their references against closed forms and simulation."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy.stats import ncx2

from softpolicy import envs, train
from softpolicy import multigoal as mg
from softpolicy import multigoal_exact as exact
from softpolicy.agents import s2ac, sac

IDS = [f"softpolicy/MultiGoal{name}-v0" for name in ("", "Walls", "MaxEntropy", "MaxEntropyWalls")]


def run(env_id, actions):
    """Everything a task says to a list of actions, from its start on."""
    env = envs.make(env_id)
    env.reset(seed=0)
    return [env.step(np.array(a, np.float32)) for a in actions]


def line_actions(direction):
    """The steps of the best straight line, the last one a little longer, so that the goal is reached."""
    lengths = -np.diff(exact.best_line()[1])
    lengths[-1] += 1e-6
    return lengths[:, None] * direction


# ---- the tasks ----


@pytest.mark.parametrize("env_id", IDS)
def test_task_follows_the_gymnasium_interface(env_id):
    env = gym.make(env_id).unwrapped
    check_env(env, skip_render_check=True)
    assert env.walls.shape == ((1, 2, 2) if "Walls" in env_id else (0, 2, 2))
    ours = envs.make(env_id)
    assert ours.action_space.shape == (2,) and ours.observation_space.dtype == np.float32
    assert ours.reset(seed=4)[0].tolist() == [0, 0] == ours.reset()[0].tolist()


@pytest.mark.parametrize("layout", ["four", "three"])
def test_reward_and_dynamics_by_hand(layout):
    env = mg.MultiGoal(layout)
    env.reset()
    obs, reward, *end, info = env.step(np.array([0.3, 0.4]))
    squared = min((gx - 0.3) ** 2 + (gy - 0.4) ** 2 for gx, gy in mg.GOALS[layout])
    np.testing.assert_allclose(obs, [0.3, 0.4], rtol=1e-6)
    assert reward == pytest.approx(-30 * 0.25 - squared) and end == [False, False]
    assert info == {"goal": -1, "collision": False}
    assert env.step(np.array([5.0, 0.0]))[1] == pytest.approx(-30 - mg.nearest(env.path[-1], env.goals)[1])  # clipped


def test_positions_stay_in_the_square():
    *_, last = run(IDS[0], [(1, 1)] * 9)
    assert last[0].tolist() == [7, 7] and last[1] == pytest.approx(-60 - 4 - 49) and last[4]["collision"] is False


def test_idle_episode_is_truncated_after_30_steps():
    said = run(IDS[0], [(0, 0)] * 30)
    assert sum(s[1] for s in said) == -750
    assert [s[2:4] for s in said[:-1]] == [(False, False)] * 29 and said[-1][2:4] == (False, True)


@pytest.mark.parametrize(("env_id", "layout"), [(IDS[0], "four"), (IDS[2], "three")])
def test_best_straight_line_in_the_task(env_id, layout):
    """Specification, item 21: -113.76 in 13 steps to every goal; a goal reached at step 30 is terminal."""
    best, d = exact.best_line()
    assert best == pytest.approx(-113.76, abs=0.01) and len(d) == 14 and d[0] - d[1] == pytest.approx(0.83, abs=5e-3)
    for k, goal in enumerate(mg.GOALS[layout]):
        said = run(env_id, line_actions(goal / 5))
        assert sum(s[1] for s in said) == pytest.approx(best, abs=1e-3)
        assert [bool(s[2]) for s in said] == [False] * 12 + [True] and said[-1][4]["goal"] == k
    late = run(env_id, np.concatenate((np.zeros((17, 2)), line_actions(goal / 5))))
    assert len(late) == 30 and late[-1][2] is True


def test_best_straight_line_by_dynamic_programming():
    """Distances in steps of 0.01, 30 steps left, no formula: a lower bound that comes close."""
    d = 0.5 + 0.01 * np.arange(451)
    step = d[:, None] - d  # [from, to]
    gain = np.where((step >= 0) & (step <= 1), -30 * step**2 - d**2, -np.inf)
    value = np.full(len(d), -np.inf)
    for _ in range(30):
        value = (gain + np.where(np.arange(len(d)) == 0, 10, value)).max(1)
    assert -0.02 < value[-1] - exact.best_line()[0] <= 1e-9


def test_line_of_many_steps_is_the_riccati_solution():
    """Without an end the cost to go is 5 d^2 (c^2 + c = 30): the action curvature of Q is 2 (30 + 1 + 5) = 72."""
    d = exact.straight_line(200, 500.0)  # so far away that the end does not matter
    np.testing.assert_allclose(d[1:20] / d[:19], 30 / 36, rtol=1e-9)
    assert exact.line_return(d) == pytest.approx(-5 * 500.0**2, rel=1e-5)


@pytest.mark.parametrize("layout", ["four", "three"])
def test_wall_blocks_and_can_be_put_in_at_any_time(layout):
    before, inside = {"four": ((0.0, 2.5), (0.0, 1.0)), "three": ((-0.5, 0.5), (-1.0, 0.75))}[layout]
    before, inside = np.array(before), np.array(inside)
    env = mg.MultiGoal(layout)
    env.reset()
    env.path[-1] = before
    env.walls = True
    obs, reward, *_, info = env.step(inside)
    assert info["collision"] and obs.tolist() == before.tolist()
    assert reward == pytest.approx(-30 * np.square(inside).sum() - mg.nearest(before, env.goals)[1])
    assert not env.step(-inside)[-1]["collision"]
    env.path[-1] = before
    env.walls = ()
    assert not env.step(inside)[-1]["collision"]


def test_crossings_of_segments():
    wall = np.array([[(-1.5, 3.0), (1.5, 3.0)]])
    cases = {  # start, end: does it meet the wall?
        ((0, 2.5), (0, 3.5)): True,
        ((0, 3.5), (0, 2.5)): True,
        ((0, 2.5), (0, 3.0)): True,  # ends on it
        ((0, 2.5), (0, 2.9)): False,
        ((1.6, 2.5), (1.6, 3.5)): False,  # passes by
        ((1.0, 2.5), (2.0, 3.5)): True,  # through its end
        ((-3, 3), (-2, 3)): False,  # on its line, before it
        ((-3, 3), (-1, 3)): True,  # along it
        ((0, 2.5), (0, 2.5)): False,
    }
    start, end = (np.array(p, float) for p in zip(*cases, strict=True))
    assert mg.crosses(start, end, wall).tolist() == list(cases.values())
    assert mg.crosses(start, end, np.empty((0, 2, 2))).tolist() == [False] * len(cases)


@pytest.mark.parametrize("env_id", [IDS[1], IDS[3]])
def test_simulation_is_the_task(env_id):
    """Noisy walks, each towards one of the goals: same path, return, length, goal and collisions."""
    layout, g, actions = "three" if "Max" in env_id else "four", np.random.default_rng(0), []
    goal = mg.GOALS[layout][np.arange(6).reshape(2, 3) % 3]

    def policy(position):
        assert position.dtype == np.float32 and position.shape == (2, 3, 2)
        actions.append(0.3 * (goal - position) + g.uniform(-0.3, 0.3, position.shape))
        return actions[-1]

    many = mg.simulate(policy, layout, (2, 3), True)
    assert many.path.shape == (31, 2, 3, 2)
    for j in range(6):
        env, total, hit, each = gym.make(env_id), 0.0, False, np.zeros(30)
        env.reset()
        for t in range(30):
            obs, reward, terminated, truncated, info = env.step(actions[t].reshape(6, 2)[j])
            total, hit, each[t] = total + reward, hit | info["collision"], reward
            if terminated or truncated:
                break
        value, steps, goal, collided = (x.flat[j] for x in many[2:])
        np.testing.assert_allclose(many.rewards.reshape(30, 6)[:, j], each)
        assert (value, steps, goal, collided) == (pytest.approx(total), t + 1, info["goal"], hit)
        np.testing.assert_allclose(many.path[-1].reshape(6, 2)[j], obs, rtol=1e-6)
    assert 0 < many.collided.sum() < 6 and (many.goal >= 0).any()


def test_steps_against_the_border_are_paid_for():
    """At (7, 7) an action of length sqrt(2) leads nowhere and costs 60."""
    found = mg.simulate(lambda s: np.ones(s.shape), "four", 1)
    assert found.path[10, 0].tolist() == [7, 7]
    away = 49 + 4  # the squared distance to the goal at (5, 0) or (0, 5)
    np.testing.assert_allclose(found.rewards[10:, 0], -60 - away)


def test_picture_shows_path_and_walls():
    env = gym.make(IDS[0], render_mode="rgb_array")
    env.reset()
    start = env.render()
    env.step(np.ones(2, np.float32))
    moved = env.render()
    env.unwrapped.walls = True
    assert start.shape == (400, 400, 3) and start.dtype == np.uint8
    assert (start != moved).any() and (moved != env.render()).any()
    assert np.array_equal(env.render(), env.render())
    assert gym.make(IDS[0]).unwrapped.render() is None


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="unknown layout 'five'"):
        mg.MultiGoal("five")
    with pytest.raises(ValueError, match=r"\[W, 2, 2\]"):
        mg.MultiGoal("four", walls=[(0, 1), (2, 3)])
    with pytest.raises(ValueError, match="two numbers"):
        mg.MultiGoal("four").step(np.zeros(3))
    with pytest.raises(ValueError, match="at least 1 step"):
        exact.straight_line(0)
    with pytest.raises(ValueError, match="at least 0.1"):
        exact.SoftOptimum("four", 0.0)
    with pytest.raises(ValueError, match="per_unit at least 10"):
        exact.SoftOptimum("four", 0.2, per_unit=5)


@pytest.mark.parametrize(
    ("agent", "env_id"), [(sac.Config, IDS[2]), (lambda **kw: s2ac.Config(particles=3, **kw), IDS[1])]
)
def test_task_goes_through_the_training_loop(agent, env_id, tmp_path):
    rows = train.train(agent(width=4, batch=4), env_id, [0, 1], 80, str(tmp_path), warmup=40, eval_every=40,
                       eval_episodes=2, checkpoint_every=40)  # fmt: skip
    assert len(rows) == 2 and np.isfinite(rows["return"]).all() and (rows["length"] <= 30).all()


# ---- the soft optimum ----


@pytest.fixture(scope="module")
def optima():
    """At temperature 1, where a coarse grid suffices."""
    return {layout: exact.SoftOptimum(layout, 1.0, per_unit=10) for layout in ("three", "four")}


def field(grid, f):
    """A function of positions on the grid and on the nodes of the goals' discs."""
    points = torch.stack(torch.meshgrid(grid.x, grid.x, indexing="ij"), -1)
    return f(points), f(grid.nodes)


def test_soft_maximum_of_a_quadratic_is_the_gaussian_integral():
    """q = -30 |a|^2 - c |s + a - p|^2 everywhere: known integral, and an entropy of 1 + log(pi tau / (30 + c))."""
    grid, c, p = exact.Grid("three", 10), 6.0, torch.tensor([0.3, -0.4], dtype=torch.float64)
    on, inside = field(grid, lambda s: -c * (s - p).square().sum(-1))
    tau = torch.tensor(0.5, dtype=torch.float64)
    soft, entropy = torch.func.jvp(
        lambda t: grid.free_energy(on + grid.distance, inside + grid.depth, t), (tau,), (torch.ones_like(tau),)
    )
    by_hand = field(grid, lambda s: -30 * c / (30 + c) * (s - p).square().sum(-1))[0]
    by_hand = by_hand + tau * torch.log(math.pi * tau / (30 + c))
    near = (field(grid, lambda s: (s - p).abs().amax(-1))[0] < 3) & (grid.x.abs() < 6)  # actions well within the box
    torch.testing.assert_close(soft[near], by_hand[near], atol=1e-3, rtol=0)
    assert (entropy[near] - (1 + math.log(math.pi * 0.5 / (30 + c)))).abs().max() < 5e-3


def test_discs_are_integrated_exactly():
    """One more in the discs adds (e^(1/tau) - 1) times the Gaussian mass of a disc (noncentral chi-square)."""
    grid, tau = exact.Grid("three", 10), torch.tensor(0.2, dtype=torch.float64)
    zero, flat = field(grid, lambda s: torch.zeros(s.shape[:-1], dtype=torch.float64))
    z = [(grid.free_energy(zero + grid.distance, flat + grid.depth + b, tau) / tau).exp() for b in (0, 1)]
    variance = 0.2 / 60
    for shift in [(0.0, 0.0), (0.3, 0.2), (0.6, 0.0), (0.5, 0.5), (-0.7, 0.1)]:
        i, j = ((grid.x - c - s).abs().argmin() for c, s in zip(grid.goals[1], shift, strict=True))
        mass = ncx2.cdf(0.25 / variance, 2, np.square(shift).sum() / variance) if any(shift) else 1 - np.exp(-37.5)
        by_hand = 2 * math.pi * variance * mass * math.expm1(5)
        assert (z[1] - z[0])[i, j].item() == pytest.approx(by_hand, rel=1e-6)


def test_soft_bellman_equation_by_brute_force(optima):
    """At probes: V(s) and the entropy from 600 x 600 actions, without product form, discs or derivatives."""
    o = optima["three"]
    assert o.residual < 1e-9
    a = (torch.arange(600, dtype=torch.float64) + 0.5) / 300 - 1
    a = torch.stack(torch.meshgrid(a, a, indexing="ij"), -1).flatten(0, 1)
    for s in torch.from_numpy(mg.PROBES["three"]):
        q = o.q(s, a)
        soft = q.logsumexp(0) + math.log(4 / 600**2)
        entropy = soft - (q.softmax(0) * q).sum()
        assert o.at(o.value, s).item() == pytest.approx(soft.item(), abs=0.01)
        assert o.at(o.entropy, s).item() == pytest.approx(entropy.item(), abs=0.01)


def test_value_converges_with_the_square_of_the_spacing():
    """Errors against spacing 1/20 of the value and the entropy at the start, temperature 5."""
    found = [exact.SoftOptimum("three", 5.0, per_unit=n) for n in (4, 8, 16)]
    v = [o.at(o.value, (0.0, 0.0)).item() for o in found]
    assert 3 < (v[1] - v[0]) / (v[2] - v[1]) < 5 and abs(v[2] - v[1]) < 0.1
    h = [o.at(o.entropy, mg.PROBES["three"]) for o in found]
    assert (h[2] - h[1]).abs().max() < 0.01 < (h[1] - h[0]).abs().max()


def test_symmetries(optima):
    value, entropy = optima["four"].value, optima["four"].entropy
    for f in (value, entropy):
        for g in (f.T, f.flip(0), f.flip(1)):
            torch.testing.assert_close(f, g, atol=1e-6, rtol=0)
    three = optima["three"].value
    torch.testing.assert_close(three, three.flip(1), atol=1e-6, rtol=0)  # up and down; not left and right
    assert (three - three.flip(0)).abs().max() > 1


def test_shares_and_entropies_are_the_known_ones(optima):
    """Specification, section 5 (within its own error), and the closed form 1 + log(2 pi alpha / 72) between goals."""
    four, three = (optima[k].outcome() for k in ("four", "three"))
    torch.testing.assert_close(four.shares, torch.full((4,), 0.25, dtype=torch.float64), atol=1e-6, rtol=0)
    assert three.shares.sum().item() == pytest.approx(1)
    np.testing.assert_allclose(three.shares, [0.31, 0.345, 0.345], atol=0.012)
    assert (three.value, three.steps) == (pytest.approx(-126.1, abs=0.4), pytest.approx(9.2, abs=0.2))
    found = optima["three"].at(optima["three"].entropy, mg.PROBES["three"])
    np.testing.assert_allclose(found[1:], [-1.44, -0.74, -0.40, -1.45, -1.48], atol=0.1)
    assert found[1].item() == pytest.approx(1 + math.log(2 * math.pi / 72), abs=0.01)
    assert found[2].item() - found[1].item() == pytest.approx(math.log(2), abs=0.01)  # two equally good goals


def test_low_temperature_splits_evenly_and_high_goes_left():
    low, high = exact.SoftOptimum("three", 0.2, per_unit=16), exact.SoftOptimum("three", 5.0, per_unit=8)
    np.testing.assert_allclose(low.outcome().shares, 1 / 3, atol=3e-3)
    assert low.outcome().value == pytest.approx(-116.7, abs=0.1)
    assert low.at(low.entropy, (-2.5, 0.5)).item() == pytest.approx(1 + math.log(2 * math.pi * 0.2 / 72), abs=0.01)
    assert high.outcome().shares[1:].sum().item() == pytest.approx(0.76, abs=0.015)


def test_released_temperature():
    """Policy exp(Q) with entropy weighted 0.2: V = E[Q] + 0.2 H, checked at a probe from Q itself."""
    o = exact.SoftOptimum("four", 0.2, temperature=1.0, per_unit=8)
    a = (torch.arange(600, dtype=torch.float64) + 0.5) / 300 - 1
    q = o.q(torch.tensor([1.0, 0.0]).double(), torch.stack(torch.meshgrid(a, a, indexing="ij"), -1).flatten(0, 1))
    p = q.softmax(0)
    entropy = q.logsumexp(0) + math.log(4 / 600**2) - (p * q).sum()
    assert o.at(o.value, (1.0, 0.0)).item() == pytest.approx(((p * q).sum() + 0.2 * entropy).item(), abs=0.01)
    np.testing.assert_allclose(o.at(o.entropy, mg.PROBES["four"])[1:], [-1.44, -1.43, -0.74, -1.46, -0.74], atol=0.05)


def test_simulated_soft_optimum_agrees_with_the_grid(optima):
    """200 episodes of the policy in the task itself: shares, steps and return within four standard errors."""
    o, n, g = optima["three"], 200, torch.Generator().manual_seed(0)
    said, grid = mg.simulate(lambda s: o.act(s, g, cells=40), "three", n, steps=40), o.outcome()
    shares = np.bincount(said.goal, minlength=3) / n
    np.testing.assert_allclose(shares, grid.shares, atol=4 * 0.5 / math.sqrt(n))
    for sample, mean in ((said.value, grid.value), (said.steps, grid.steps)):
        assert sample.mean() == pytest.approx(mean, abs=4 * sample.std() / math.sqrt(n))
    blocked = mg.simulate(lambda s: o.act(s, g, cells=40), "three", 60, walls=True)
    assert 0 < blocked.collided.mean() < 1 and (blocked.goal >= 0).mean() > 0.3
