"""Mazes with four goals and two equally short ways to each, so that what an agent explored can be counted.

LSAC (arXiv 2501.17827) is shown on a custom PointMaze and AntMaze of gymnasium-robotics whose layout, goals and rewards
could not be found: map, start, goals, reward, time limits and measures here are ours, the physics is the package's.
Chapter *Langevin soft actor-critic*. A ball pushed by a force, or a four-legged robot, starts in the middle of the
map; where its centre enters the cell of a goal it gets 1 and the episode ends, everywhere else 0. An action acts for
0.05 s. `softpolicy.envs` sets the time limits, 45 steps for the ball and 1,000 for the robot.

Positions are numpy arrays `[..., 2]`: (x, y) in cells, the origin in the middle of the map, y upwards. A cell of the
map is (row, column) from the upper left.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from pathlib import Path

import gymnasium as gym
import numpy as np

MAP = (  # S start, G goals, # walls; every corridor is one cell wide
    "###########",
    "#G.......G#",
    "#.###.###.#",
    "#.###.###.#",
    "#.###.###.#",
    "#....S....#",
    "#.###.###.#",
    "#.###.###.#",
    "#.###.###.#",
    "#G.......G#",
    "###########",
)
SCALE = {"point": 1.0, "ant": 4.0}  # metres a cell, fixed in gymnasium-robotics; the ball's radius is 0.1 m
REPEAT = {"point": 5, "ant": 1}  # simulator's steps an action: of 0.01 s for the ball, of 0.05 s for the robot
NOISE = 0.05  # of the start in each coordinate, uniform, in cells
BIN = 0.5  # side of the squares of `coverage`, in cells
MOVES = {"N": (-1, 0), "E": (0, 1), "S": (1, 0), "W": (0, -1)}  # to the next cell


def cells(kinds: str = "SG.", maze=MAP) -> list[tuple[int, int]]:
    """The cells of these kinds, in reading order; without arguments the free ones."""
    return [(i, j) for i, row in enumerate(maze) for j, kind in enumerate(row) if kind in kinds]


def cell_of(position: np.ndarray, maze=MAP, side: float = 1.0) -> np.ndarray:
    """The cell that a position lies in, or the square of a finer grid: `[..., 2] -> [..., 2]` integers."""
    x, y = np.moveaxis(np.asarray(position, float), -1, 0)
    return np.floor(np.stack((len(maze) / 2 - y, x + len(maze[0]) / 2), -1) / side).astype(int)


def goal_at(position: np.ndarray) -> np.ndarray:
    """The number of the goal whose cell a position lies in, -1 outside them: `[..., 2] -> [...]`."""
    inside = (cell_of(position)[..., None, :] == GOALS).all(-1)  # [..., G]
    return np.where(inside.any(-1), inside.argmax(-1), -1)


class Maze(gym.Env):
    """The maze with a body of gymnasium-robotics, "point" (version 3) or "ant" (version 5).

    Observation: position and velocity of the ball, `[4]`, or of the robot with its joints, `[29]`, in metres and
    seconds; the goals are fixed and not in it. Action: two forces or eight torques in [-1, 1]. `info["goal"]` is the
    goal reached, -1 if none. ValueError for another body or without gymnasium-robotics.
    """

    def __init__(self, body: str = "point"):
        self.body, self.simulator = body, simulator(body)
        self.action_space = self.simulator.action_space
        n = sum(self.simulator.observation_space[part].shape[0] for part in self._parts())
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (n,), np.float64)

    def _parts(self) -> tuple[str, ...]:
        return ("observation",) if self.body == "point" else ("achieved_goal", "observation")  # (x, y) comes first

    def _observe(self, found: dict) -> tuple[np.ndarray, int]:
        obs = np.concatenate([found[part] for part in self._parts()])
        return obs, int(goal_at(obs[:2] / SCALE[self.body]))

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        obs, goal = self._observe(self.simulator.reset(seed=seed)[0])
        return obs, {"goal": goal}

    def step(self, action):
        for _ in range(REPEAT[self.body]):
            obs, goal = self._observe(self.simulator.step(action)[0])
            if goal >= 0:
                break
        return obs, float(goal >= 0), goal >= 0, False, {"goal": goal}

    @property
    def data(self):
        """MuJoCo's state."""
        return self.simulator.data

    def close(self):
        self.simulator.close()


def simulator(body: str):
    """The maze in gymnasium-robotics; its own goals and rewards are not used."""
    if body not in SCALE:
        raise ValueError(f"unknown body '{body}'; give point or ant")
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the import prints a note on tasks not used here
            from gymnasium_robotics.envs.maze.ant_maze_v5 import AntMazeEnv
            from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv
    except ImportError as e:
        raise ValueError(f"the mazes need a package that is missing ({e}); install gymnasium-robotics") from None
    kinds = {"#": 1, ".": 0, "S": "r", "G": "g"}
    layout = [[kinds[kind] for kind in row] for row in MAP]
    if body == "point":
        made = PointMazeEnv(maze_map=layout)
    else:
        made = AntMazeEnv(maze_map=layout, include_cfrc_ext_in_observation=False)
    Path(made.tmp_xml_file_path).unlink(missing_ok=True)  # left behind otherwise, one an environment
    made.position_noise_range = NOISE
    return made


# ---- coverage ----


def bin_of(position: np.ndarray) -> np.ndarray:
    """The number of the square that a position lies in, -1 in walls, goals and outside: `[..., 2] -> [...]`."""
    at = cell_of(position, side=BIN)
    inside = ((at >= 0) & (at < BINS.shape)).all(-1)
    return np.where(inside, BINS[tuple(np.moveaxis(np.where(inside[..., None], at, 0), -1, 0))], -1)


def coverage_curve(positions: np.ndarray, every: int) -> np.ndarray:
    """Coverage by the first `every`, 2 `every`, ... positions, `[N, 2] -> [N // every]`.

    It is the share of the 164 squares of side 0.5 which make up the free cells, those of goals excepted, in which at
    least one position lies. (An episode ends at the border of a goal's cell, so that not all of it can be visited.)
    """
    number, first = np.unique(bin_of(positions), return_index=True)
    first = np.sort(first[number >= 0])
    return np.searchsorted(first, np.arange(every, len(positions) + 1, every)) / (BINS.max() + 1)


def coverage(positions: np.ndarray) -> float:
    """The share of the free area's squares that positions `[N, 2]` visited, in [0, 1]; see `coverage_curve`."""
    return float(coverage_curve(positions, len(positions))[0]) if len(positions) else 0.0


# ---- routes ----


def paths(maze=MAP) -> list[tuple[tuple[int, int], ...]]:
    """Every path from the start to a goal, from cell to cell, that enters no cell twice and no other goal."""
    free, goals, found = set(cells(maze=maze)), cells("G", maze), []

    def extend(path: tuple) -> None:
        if path[-1] in goals:
            found.append(path)
            return
        for di, dj in MOVES.values():
            after = (path[-1][0] + di, path[-1][1] + dj)
            if after in free and after not in path:
                extend((*path, after))

    extend(tuple(cells("S", maze)))
    return found


def name(path) -> str:
    """The directions of a path's straight pieces: "NW" goes up, then to the left."""
    compass = {move: letter for letter, move in MOVES.items()}
    moves = [compass[i1 - i0, j1 - j0] for (i0, j0), (i1, j1) in itertools.pairwise(path)]
    return "".join(letter for letter, _ in itertools.groupby(moves))


def visited(positions: np.ndarray) -> list[tuple[int, int]]:
    """The cells of an episode `[T + 1, 2]`, each a neighbour of the one before it or the same.

    Where a corner was cut between two positions, the free cell between is put in. ValueError if the first position is
    not in the start's cell, or if one lies further from the one before it.
    """
    found = [START]
    for i, j in cell_of(positions).tolist():
        (i0, j0), apart = found[-1], (abs(i - found[-1][0]), abs(j - found[-1][1]))
        if sum(apart) > 1 and apart != (1, 1) or (len(found) == 1 and (i, j) != START):
            raise ValueError("a route needs the positions of one episode, step by step from its start")
        if apart == (1, 1):
            found.append((i, j0) if MAP[i][j0] != "#" else (i0, j))
        found.append((i, j))
    return found


def route(positions: np.ndarray) -> str:
    """The route of an episode `[T + 1, 2]` from its start to the goal where it ends, "" if it ends at none.

    It is the path of the cells visited, with every loop left out as soon as it closes, so one of `ROUTES`.
    """
    path = []
    for here in visited(positions):
        if here in path:
            del path[path.index(here) + 1 :]
        else:
            path.append(here)
    return name(path) if goal_at(positions[-1]) >= 0 else ""


START, GOALS = cells("S")[0], np.array(cells("G"))  # goals 0 to 3: upper left, upper right, lower left, lower right
ROUTES = {name(path): cells("G").index(path[-1]) for path in paths()}  # eight, each with its goal
_squares = np.kron([[kind in "S." for kind in row] for row in MAP], np.ones((round(1 / BIN),) * 2, int))
BINS = np.where(_squares, np.cumsum(_squares).reshape(_squares.shape) - 1, -1)  # the free squares' numbers
