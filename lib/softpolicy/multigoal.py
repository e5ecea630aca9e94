"""Multi-goal tasks: a point in the plane reaches one of several equally good goals, so that a soft policy must split.

The tasks of S2AC (arXiv 2405.00987), as its released code defines them; chapter *Stein soft actor-critic*. A position
s in [-7, 7]^2 moves by an action a in [-1, 1]^2 without noise, from the origin, with the reward
`-30 |a|^2 - min_g |s' - g|^2`, plus 10 within 0.5 of a goal g, where the episode ends; otherwise it lasts 30 steps.
Positions, actions and rewards are numpy arrays with any leading axes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import gymnasium as gym
import numpy as np

SIZE, RADIUS = 7.0, 0.5  # half the side of the square; distance at which a goal is reached
COST, BONUS = 30.0, 10.0  # of a squared step; of reaching a goal
STEPS = 30  # time limit
GOALS = {  # the second is the "max-entropy" task: two goals on the left, one on the right, all 5 from the start
    "four": np.array([(5.0, 0.0), (-5.0, 0.0), (0.0, 5.0), (0.0, -5.0)]),
    "three": np.array([(5.0, 0.0), (-4.0, 3.0), (-4.0, -3.0)]),
}
WALLS = {  # [W, 2, 2]: both ends of each wall; for tests of policies that were trained without
    "four": np.array([[(-1.5, 3.0), (1.5, 3.0)]]),
    "three": np.array([[(-2.0, 0.0), (0.0, 2.0)]]),
}
PROBES = {  # positions at which the released code measures the policy's entropy
    "four": np.array([(0, 0), (1, 0), (2, 0), (2.5, 2.5), (4, 0), (2.5, -2.5)], float),
    "three": np.array([(-3.5, -2.5), (-2.5, 0.5), (-1, 0), (0, 0), (1, 0), (4, 0)], float),
}


def goals_of(layout: str) -> np.ndarray:
    """The goals `[G, 2]` of a layout, "four" or "three"; ValueError for another name."""
    if layout not in GOALS:
        raise ValueError(f"unknown layout '{layout}'; give four or three")
    return GOALS[layout]


def walls_of(layout: str, walls) -> np.ndarray:
    """Walls `[W, 2, 2]`, both ends of each: those given, or for True the layout's own; ValueError for other shapes."""
    walls = WALLS[layout] if walls is True else np.asarray(walls, float)
    if walls.size and walls.shape[1:] != (2, 2):
        raise ValueError(f"walls are True or both ends of each, an array [W, 2, 2], got the shape {walls.shape}")
    return walls.reshape(-1, 2, 2)


def nearest(position: np.ndarray, goals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest goal and the squared distance to it: `[..., 2], [G, 2] -> [...] integers, [...]`."""
    squared = np.square(position[..., None, :] - goals).sum(-1)  # [..., G]
    return squared.argmin(-1), squared.min(-1)


def goal_reached(position: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """The goal less than 0.5 away, -1 if none is: `[..., 2], [G, 2] -> [...]`, integers."""
    goal, squared = nearest(position, goals)
    return np.where(squared < RADIUS**2, goal, -1)


def reward(position: np.ndarray, action: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """`-30 |a|^2 - min_g |s' - g|^2 + 10 [goal reached]` for the new position s': `[..., 2], [..., 2] -> [...]`."""
    _, squared = nearest(position, goals)
    return -COST * np.square(action).sum(-1) - squared + BONUS * (squared < RADIUS**2)


def side(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Twice the signed area of the triangle p q r: positive where r lies to the left of p -> q; `[..., 2] -> [...]`."""
    (px, py), (qx, qy), (rx, ry) = (np.moveaxis(v, -1, 0) for v in (p, q, r))
    return (qx - px) * (ry - py) - (qy - py) * (rx - px)


def crosses(start: np.ndarray, end: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """Whether the segment start -> end meets a wall, ends included: `[..., 2], [..., 2], [W, 2, 2] -> [...]`."""
    p, q, v, w = start[..., None, :], end[..., None, :], walls[:, 0], walls[:, 1]
    apart = (np.maximum(p, q) < np.minimum(v, w)) | (np.minimum(p, q) > np.maximum(v, w))  # [..., W, 2]
    divided = (side(p, q, v) * side(p, q, w) <= 0) & (side(v, w, p) * side(v, w, q) <= 0)
    return (divided & ~apart.any(-1)).any(-1)


def move(position: np.ndarray, action: np.ndarray, walls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`s' = clip(s + a)`, or s where a wall is in the way, and whether one is: `[..., 2], [..., 2] -> [..., 2], [...]`.

    Actions are taken as they are; clip them first.
    """
    hit = crosses(position, position + action, walls)
    return np.where(hit[..., None], position, np.clip(position + action, -SIZE, SIZE)), hit


class MultiGoal(gym.Env):
    """One multi-goal task; `softpolicy.envs` registers it with its time limit.

    layout  "four" or "three" goals
    walls   True for the authors' wall, or any walls `[W, 2, 2]`, both ends of each; may be set at any time between
            two steps, e.g. `env.unwrapped.walls = True` after training; `()` takes them away

    The observation is the position `[2]`, float32; actions are clipped to [-1, 1]^2. Every reset starts at the
    origin: the seed changes nothing. `info` holds the goal reached (-1: none) and whether a wall was hit. ValueError
    for an unknown layout, walls of another shape, or an action that is not two numbers.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(self, layout: str = "four", walls=(), render_mode: str | None = None):
        self.layout, self.goals, self.walls, self.render_mode = layout, goals_of(layout), walls, render_mode
        self.observation_space = gym.spaces.Box(-SIZE, SIZE, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.path = [np.zeros(2)]

    @property
    def walls(self) -> np.ndarray:
        return self._walls

    @walls.setter
    def walls(self, walls) -> None:
        self._walls = walls_of(self.layout, walls)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.path = [np.zeros(2)]
        return np.zeros(2, np.float32), {}

    def step(self, action):
        action = np.clip(np.asarray(action, float), -1, 1)
        if action.shape != (2,):
            raise ValueError(f"an action of the multi-goal tasks is two numbers, got the shape {action.shape}")
        position, hit = move(self.path[-1], action, self.walls)
        self.path.append(position)
        goal = int(goal_reached(position, self.goals))
        gained = float(reward(position, action, self.goals))
        return position.astype(np.float32), gained, goal >= 0, False, {"goal": goal, "collision": bool(hit)}

    def render(self) -> np.ndarray | None:
        """The landscape and the episode's path so far, `[400, 400, 3]` bytes; needs no display."""
        if self.render_mode != "rgb_array":
            return None
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        canvas = FigureCanvasAgg(Figure(figsize=(4, 4), dpi=100, layout="constrained"))
        ax = canvas.figure.add_subplot()
        draw_landscape(ax, self.layout, self.walls)
        draw_paths(ax, np.stack(self.path)[:, None])
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class Rollout(NamedTuple):
    """Episodes of `simulate`; `[...]` is its `shape`."""

    path: np.ndarray  # [T + 1, ..., 2], positions from the origin on; at rest after the end of an episode
    rewards: np.ndarray  # [T, ...], 0 after the end of an episode
    value: np.ndarray  # [...], their sum: the undiscounted return
    steps: np.ndarray  # [...], 1 to T
    goal: np.ndarray  # [...], the goal reached, -1 if none
    collided: np.ndarray  # [...], whether a wall was hit at least once


def simulate(
    policy: Callable[[np.ndarray], np.ndarray], layout: str, shape: int | tuple, walls=(), steps: int = STEPS
) -> Rollout:
    """Many episodes at once, step by step what `MultiGoal` does: `policy` maps positions `[..., 2]`, float32, to
    actions `[..., 2]`, which are clipped; `shape` is `[...]`, the number of episodes or several axes. Until all have
    ended it is asked for actions at every position, those where an episode has ended included.

    ValueError for an unknown layout or walls of another shape.
    """
    goals, walls = goals_of(layout), walls_of(layout, walls)
    position = np.zeros((*np.atleast_1d(shape), 2))
    rewards, length = np.zeros((steps, *position.shape[:-1])), np.zeros(position.shape[:-1], int)
    goal, collided, path = length - 1, np.zeros(length.shape, bool), [position]
    for t in range(steps):
        alive = goal < 0
        action = np.clip(np.asarray(policy(position.astype(np.float32)), float), -1, 1)
        new, hit = move(position, action, walls)
        position = np.where(alive[..., None], new, position)
        rewards[t] = np.where(alive, reward(position, action, goals), 0)
        length += alive
        collided |= alive & hit
        goal = np.where(alive, goal_reached(position, goals), goal)
        path.append(position)
        if (goal >= 0).all():
            break
    path += [position] * (steps + 1 - len(path))
    return Rollout(np.stack(path), rewards, rewards.sum(0), length, goal, collided)


def draw_landscape(ax, layout: str, walls=()) -> None:
    """Contours of the distance to the nearest goal, the goals as discs and the walls, on the given axes."""
    x = np.linspace(-SIZE, SIZE, 141)
    points = np.stack(np.meshgrid(x, x), -1)  # rows are y's, as matplotlib has it
    distance = np.sqrt(nearest(points, goals_of(layout))[1])
    ax.contour(x, x, distance, levels=np.arange(1, 10), colors="grey", linewidths=0.6, alpha=0.6)
    angle = np.linspace(0, 2 * np.pi, 61)
    for i, (gx, gy) in enumerate(goals_of(layout)):
        ax.fill(gx + RADIUS * np.cos(angle), gy + RADIUS * np.sin(angle), color=f"C{i}", alpha=0.6)
    for (x0, y0), (x1, y1) in walls_of(layout, walls):
        ax.plot((x0, x1), (y0, y1), color="black", lw=3, solid_capstyle="butt")
    ax.set(xlim=(-SIZE, SIZE), ylim=(-SIZE, SIZE), aspect="equal")


def draw_paths(ax, path: np.ndarray, **style) -> None:
    """Paths `[T + 1, N, 2]` as thin lines, their last positions as dots; `style` goes to `ax.plot`."""
    style = {"color": "black", "lw": 0.8, "alpha": 0.6} | style
    ax.plot(path[..., 0], path[..., 1], **style)
    ax.plot(path[-1, :, 0], path[-1, :, 1], ".", ms=5, color=style["color"], alpha=style["alpha"])
