"""Time limits, final observations, rescaling, and environments that come back exactly from plain data."""

import json
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from softpolicy import envs, train
from softpolicy.agents import sac

TASKS = ["Hopper-v5", "Ant-v4", "Humanoid-v5", "dm_control/cheetah-run", "dm_control/walker-walk"]
TASKS += ["softpolicy/PointMaze-v0", "softpolicy/AntMaze-v0"]


def walk(env, n, seed=0):
    """n random steps; the list of everything the environment said."""
    g = np.random.default_rng(seed)
    return [env.step(g.uniform(-1, 1, env.action_space.shape).astype(np.float32))[:4] for _ in range(n)]


def physics(env):
    """The full state of a MuJoCo simulation: time, positions, velocities, warm start and derived quantities."""
    base = env.unwrapped
    data = base.data if hasattr(base, "data") else base.physics.data
    return [np.array(getattr(data, k)) for k in ("time", "qpos", "qvel", "qacc_warmstart", "xpos", "cfrc_ext")]


@pytest.mark.parametrize("env_id", TASKS)
def test_environment_comes_back_exactly_with_its_physics(env_id):
    first, second = envs.make(env_id), envs.make(env_id)
    first.reset(seed=7)
    for seed in range(60):  # into a later episode where the task ends early
        (said,) = walk(first, 1, seed)
        if said[2] or said[3]:
            first.reset()
    state = json.loads(json.dumps(first.save()))  # plain data
    obs = second.restore(state)
    for a, b in zip(physics(first), physics(second), strict=True):
        assert np.array_equal(a, b)
    for (o1, r1, t1, u1), (o2, r2, t2, u2) in zip(walk(first, 20, 1), walk(second, 20, 1), strict=True):
        assert np.array_equal(o1, o2) and (r1, t1, u1) == (r2, t2, u2)
    assert obs.shape == first.observation_space.shape


@pytest.mark.parametrize(
    ("env_id", "end"),
    [
        ("HalfCheetah-v5", (False, True)),
        ("dm_control/cheetah-run", (False, True)),
        ("dm_control-terminal/cheetah-run", (True, False)),  # asked for by its name
    ],
)
def test_time_limit_truncates_and_does_not_terminate(env_id, end):
    env = envs.make(env_id)
    env.reset(seed=0)
    steps = walk(env, 1000)
    assert not any(terminated or truncated for *_, terminated, truncated in steps[:-1])
    assert steps[-1][2:] == end


@pytest.mark.parametrize(("kind", "stored"), [("dm_control", 0), ("dm_control-terminal", 1)])
def test_what_is_stored_at_the_time_limit_of_dm_control_can_be_chosen(kind, stored):
    loop = train.Loop(sac.Config(width=4, batch=4), f"{kind}/cartpole-swingup", [0], 1001, 1, "cpu")
    loop.obs, _ = loop.envs.reset(seed=[0])
    for _ in range(1001):
        loop.advance(warmup=2000)
    loop.close()
    batch = loop.replay.rows[0].split(loop.replay.widths, -1)
    assert torch.nonzero(batch[4][:, 0]).flatten().tolist() == [999] * stored
    assert not torch.equal(batch[3][999], batch[0][1000])  # the true last observation, not the next start
    assert torch.equal(batch[3][:999], batch[0][1:1000])


def test_without_dm_control_its_tasks_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(ValueError, match=r"install both.*the page Running it"):
        envs.make("dm_control/cheetah-run")


def test_falling_over_terminates():
    env = envs.make("Hopper-v5")
    env.reset(seed=0)
    ends = [(bool(t), bool(u)) for *_, t, u in walk(env, 200) if t or u]
    assert ends and ends[0] == (True, False)


def test_vector_resets_in_the_same_step_and_keeps_the_true_last_observation():
    many, one = envs.vector("Line-v0", 2), envs.make("Line-v0")
    assert many.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    many.reset(seed=[5, 6])
    one.reset(seed=5)
    for _ in range(20):
        obs, _, terminated, truncated, info = many.step(np.full((2, 1), 0.01, np.float32))
        true_obs, *_ = one.step(np.full(1, 0.01, np.float32))
        assert np.array_equal(envs.final_obs(obs, info)[0], true_obs)
    assert truncated.all() and not terminated.any()  # 20 steps: the time limit
    start, _ = one.reset()
    assert np.array_equal(obs[0], start) and not np.array_equal(obs[0], true_obs)
    assert obs[0, 1] == 0 and true_obs[1] == 1  # the clock: new episode, true last observation


def test_actions_are_rescaled_from_the_unit_box():
    env = envs.make("Line-v0")  # its own box is [-3, 3]
    assert (env.action_space.low, env.action_space.high) == (-1, 1)
    (x0, _), _ = env.reset(seed=0)
    (x1, _), *_ = env.step(np.ones(1, np.float32))
    assert x1 - x0 == pytest.approx(0.3)


def test_episodes_differ_and_repeat_with_their_seed():
    env = envs.make("Line-v0")
    starts = [env.reset(seed=3)[0][0]] + [env.reset()[0][0] for _ in range(4)]
    again = [env.reset(seed=3)[0][0]] + [env.reset()[0][0] for _ in range(4)]
    assert len(set(starts)) == 5 and starts == again


@pytest.mark.parametrize(
    ("env_id", "hint"),
    [
        ("HalfCheeta-v5", "HalfCheetah-v5"),
        ("dm_control/cheetah-rn", "dm_control/cheetah-run"),
        ("dm_control-terminal/cheetah-rn", "dm_control-terminal/cheetah-run"),
        ("no such thing", "HalfCheetah-v5"),
    ],
)
def test_unknown_environment_is_refused_with_a_suggestion(env_id, hint):
    with pytest.raises(ValueError, match="unknown environment") as e:
        envs.make(env_id)
    assert hint in str(e.value)


def test_an_environment_that_gymnasium_knows_and_cannot_make_is_not_suggested(monkeypatch):
    def withdrawn(**_):
        raise gym.error.Error("of old versions")

    monkeypatch.setitem(gym.registry, "HalfCheetah-v0", gym.envs.registration.EnvSpec("HalfCheetah-v0", withdrawn))
    with pytest.raises(ValueError, match=r"of old versions.*did you mean (?!.*HalfCheetah-v0).*HalfCheetah-v5"):
        envs.make("HalfCheetah-v0")


def test_a_task_without_an_end_is_refused():
    with pytest.raises(ValueError, match="no time limit"):
        envs.make("dm_control/lqr-lqr_2_1")


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match="bounded continuous actions"):
        envs.make("CartPole-v1")


def test_actions_bounded_on_one_side_are_refused():
    class HalfOpen(gym.Env):
        observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(0, np.inf, (2,))

    gym.register("HalfOpen-v0", HalfOpen, max_episode_steps=5)
    with pytest.raises(ValueError, match="bounded continuous actions"):
        envs.make("HalfOpen-v0")
    gym.registry.pop("HalfOpen-v0")


def test_a_simulation_that_blows_up_gives_nan_and_can_be_reset():
    env = envs.make("dm_control/cheetah-run")
    env.reset(seed=0)
    env.unwrapped.physics.data.qpos[:] = np.inf
    obs, reward, terminated, truncated, _ = env.step(np.zeros(6, np.float32))
    assert np.isnan(obs).all() and np.isnan(reward) and truncated and not terminated
    assert np.isfinite(env.reset()[0]).all()


def test_plain_gymnasium_agrees():
    """Our wrappers change neither rewards nor physics."""
    ours, plain = envs.make("HalfCheetah-v5"), gym.make("HalfCheetah-v5")
    ours.reset(seed=0)
    plain.reset(seed=ours.env.unwrapped.np_random_seed)
    action = np.linspace(-1, 1, 6, dtype=np.float32)
    for _ in range(5):
        a, b = ours.step(action), plain.step(action)
        assert np.array_equal(a[0], b[0]) and a[1] == b[1]
