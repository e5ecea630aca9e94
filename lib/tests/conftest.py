"""Small tasks on which tests run fast, and the one thread that makes CPU results repeatable."""

import gymnasium as gym
import hypothesis
import numpy as np
import pytest
import torch

from softpolicy import streams as rng

torch.set_num_threads(1)
hypothesis.settings.register_profile("book", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("book")  # no test is timed


class Line(gym.Env):
    """A point on a line, pushed by the action; the episode ends by itself beyond +-2, by time after 20 steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-3, 3, (1,), np.float32)
    poison: tuple[int, ...] = ()  # reset seeds whose episodes turn NaN at step 5
    poisoned_part = "reward"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t, self.bad = self.np_random.uniform(-1, 1), 0, seed in self.poison
        return np.array([self.x, 0.0]), {}

    def step(self, action):
        self.t += 1
        self.x += 0.1 * float(action[0])
        bad = float("nan") if self.bad and self.t >= 5 else 0.0
        obs = np.array([self.x, self.t / 20 + (bad if self.poisoned_part == "obs" else 0)])
        reward = -abs(self.x) + (bad if self.poisoned_part == "reward" else 0)
        return obs, reward, abs(self.x) > 2, False, {}


gym.register("Line-v0", Line, max_episode_steps=20)


@pytest.fixture
def poisoned_seed():
    """Makes the first training episode of one seed turn NaN; a function of the seed and the part that is poisoned."""

    def poison(seed: int, part: str) -> None:
        Line.poison, Line.poisoned_part = (rng.derive(rng.derive(seed, "training"), "episode", 0),), part

    yield poison
    Line.poison = ()
