"""Environments: one constructor for gymnasium and DeepMind Control tasks, and a vector of them for S seeds.

Actions are rescaled to [-1, 1]^A, observations are flat vectors. Every episode is seeded by (seed, its
number), and its actions are kept: replaying them rebuilds the environment exactly, physics, warm start, counters
and random state included, whatever the simulator. That is how a checkpoint holds an environment.
"""

from __future__ import annotations

import difflib
import warnings

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from softpolicy import streams as rng

for _name, _layout in {"MultiGoal": "four", "MultiGoalMaxEntropy": "three"}.items():
    for _end, _walls in {"": (), "Walls": True}.items():
        gym.register(f"softpolicy/{_name}{_end}-v0", "softpolicy.multigoal:MultiGoal", max_episode_steps=30,
                     kwargs={"layout": _layout, "walls": _walls})  # fmt: skip
for _name, _body, _steps in (("PointMaze", "point", 45), ("AntMaze", "ant", 1_000)):
    gym.register(f"softpolicy/{_name}-v0", "softpolicy.mazes:Maze", max_episode_steps=_steps, kwargs={"body": _body})

DMC, DMC_TERMINAL = "dm_control/", "dm_control-terminal/"  # what stands before DOMAIN-TASK


class Unstable(gym.Wrapper):
    """Turns the exception of a DeepMind Control simulation that blew up into NaN, so that one seed ends and not all."""

    def step(self, action):
        from dm_control.rl.control import PhysicsError

        try:
            return self.env.step(action)
        except PhysicsError:
            obs = np.full(self.observation_space.shape, np.nan)
            return obs, float("nan"), False, True, {}


class TimeLimitTerminates(gym.Wrapper):
    """Reports the end of the time as the end of the task, as dmc2gym does, so that it stops the bootstrap."""

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated or truncated, False, info


class Episodes(gym.Wrapper):
    """Seeds each episode from (seed, number of the episode), records its actions and can rebuild its present state."""

    seed, episode = 0, -1

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """A given `seed` starts anew at episode 0; without one the next episode of the same seed begins."""
        if seed is not None:
            self.seed, self.episode = seed, -1
        return self._begin(self.episode + 1, options)

    def _begin(self, episode: int, options: dict | None = None):
        self.episode, self.actions = episode, []
        return self.env.reset(seed=rng.derive(self.seed, "episode", episode), options=options)

    def step(self, action):
        self.actions.append(np.array(action))
        return self.env.step(action)

    def save(self) -> dict:
        """Plain data from which `restore` rebuilds the environment: seed, episode, the actions since its start."""
        return {"seed": self.seed, "episode": self.episode, "actions": [a.tolist() for a in self.actions]}

    def restore(self, state: dict) -> np.ndarray:
        """Replay a saved episode and return the present observation `[O]`."""
        self.seed = state["seed"]
        obs, _ = self._begin(state["episode"])
        for action in state["actions"]:
            obs, *_ = self.step(np.array(action, dtype=self.action_space.dtype))
        return obs


def make(env_id: str) -> gym.Env:
    """The task `env_id`: a gymnasium id (`HalfCheetah-v5`) or `dm_control/DOMAIN-TASK` (`dm_control/cheetah-run`).

    With `dm_control-terminal/` instead of `dm_control/` the time limit counts as termination, as in dmc2gym, which
    the released code of LSAC trains on. Raises ValueError for an unknown id, and for tasks whose actions are not a
    bounded box.
    """
    dmc = env_id.startswith((DMC, DMC_TERMINAL))
    env = _dm_control(env_id) if dmc else _gymnasium(env_id)
    if not isinstance(env.action_space, gym.spaces.Box) or not env.action_space.is_bounded():
        raise ValueError(
            f"{env_id} has the action space {env.action_space}; only bounded continuous actions are accepted"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # infinite bounds of observation spaces are cast
        env = gym.wrappers.FlattenObservation(env)
        env = Unstable(env) if dmc else env
        return Episodes(gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)))


def vector(env_id: str, n: int) -> SyncVectorEnv:
    """`n` copies of a task, stepped one after the other. At an episode's end the next begins in the same step:
    the observation returned is the new one, the true last one is in `info["final_obs"]` (see `final_obs`)."""
    return SyncVectorEnv([lambda: make(env_id)] * n, autoreset_mode=AutoresetMode.SAME_STEP)


def final_obs(obs: np.ndarray, info: dict) -> np.ndarray:
    """The observations that the actions led to, `[S N, O]`: `obs`, but the true last one where an episode ended."""
    if "final_obs" not in info:
        return obs
    obs = obs.copy()
    for i in np.flatnonzero(info["_final_obs"]):
        obs[i] = info["final_obs"][i]
    return obs


def _gymnasium(env_id: str) -> gym.Env:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of ids that cannot be made any more: told below
            return gym.make(env_id, disable_env_checker=True)
    except gym.error.DependencyNotInstalled as e:
        raise ValueError(f"{env_id} needs a package that is missing: {e}") from None
    except (gym.error.Error, ImportError) as e:
        left = lambda spec: "mujoco_py" in str(spec.entry_point)  # noqa: E731  gymnasium, but for their names
        known = [k for k, spec in gym.registry.items() if k != env_id and not left(spec)]
        close = difflib.get_close_matches(env_id, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "give a gymnasium id such as HalfCheetah-v5"
        raise ValueError(f"unknown environment '{env_id}' ({e}); {hint}") from None


def _dm_control(env_id: str) -> gym.Env:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing dm_control without a display warns; nothing is rendered here
            from dm_control import suite
            from shimmy.dm_control_compatibility import DmControlCompatibilityV0
    except ImportError as e:
        raise ValueError(
            f"{env_id} needs dm-control and shimmy ({e}); install both; from Python 3.13 on, where pip"
            " cannot install dm-control, do as the page Running it says"
        ) from None
    names = [f"{kind}{domain}-{task}" for kind in (DMC, DMC_TERMINAL) for domain, task in suite.ALL_TASKS]
    if env_id not in names:
        close = difflib.get_close_matches(env_id, names, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "give an id such as dm_control/cheetah-run"
        raise ValueError(f"unknown environment '{env_id}'; {hint}")
    domain, task = env_id.split("/")[1].split("-", 1)
    # The bridge reports the end of the 1,000 steps as truncated and a task's own end (discount 0) as terminated.
    loaded = suite.load(domain, task, environment_kwargs={"flat_observation": True})
    if not np.isfinite(loaded._step_limit):
        raise ValueError(f"{env_id} has no time limit, so that an evaluation might not end; give another task")
    env = DmControlCompatibilityV0(loaded)
    return TimeLimitTerminates(env) if env_id.startswith(DMC_TERMINAL) else env
