"""What a run on a maze explored, from its checkpoint; chapter *Langevin soft actor-critic*.

`python -m softpolicy.maze_study RUN_FOLDER` writes beside the run's rows:

`coverage.csv`  at each evaluation step and seed, the share of the free area that training visited so far
`routes.csv`    for each source, seed and route, `count` of episodes that reached its goal along it and `first`, the
                step at which the first of them ended; a row without a route counts the episodes that reached no goal.
                Sources: "warmup" and "training", whole episodes of the run (those that began in the warm-up, and
                later ones), and "policy", episodes of the final policy with its exploring actions

A checkpoint may be of a run that goes on: the tables reach to where it stands. Seeds that diverged are left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import torch

from softpolicy import envs, mazes, runs
from softpolicy import streams as rng
from softpolicy.train import agent_of


def transitions(state: dict, folder) -> np.ndarray:
    """Every transition of a run in time order, `[S, N, 2 O + A + 2]`, as `replay.Replay` keeps them, from its
    checkpoint; RunError if the replay no longer holds the first ones."""
    rows = state["replay"]["rows"].numpy()
    if rows.shape[1] < state["replay"]["added"]:
        raise runs.RunError(f"the replay of {folder} overwrote its first transitions; train with a larger capacity")
    return rows


def positions(rows: np.ndarray, n_obs: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations before and after each transition, `[..., 2 O + A + 2] -> [..., O], [..., O]`."""
    return rows[..., :n_obs], rows[..., -1 - n_obs : -1]


def whole_episodes(rows: np.ndarray, n_obs: int, n_envs: int):
    """Yields (step before, step after, path `[T + 1, 2]` in the simulator's units) of each episode of one seed's
    transitions `[N, ...]`, those of `n_envs` environments taken in turn; what was cut off at the end is left out."""
    for j in range(n_envs):
        before, after = positions(rows[j::n_envs], n_obs)
        ended = rows[j::n_envs, -1] > 0
        ended[:-1] |= (before[1:] != after[:-1]).any(-1)  # the next observation is a new start
        start = 0
        for end in np.flatnonzero(ended) + 1:
            path = np.concatenate((before[start : start + 1, :2], after[start:end, :2]))
            yield start * n_envs, end * n_envs, path
            start = end


def rollouts(agent, env_id: str, seeds, episodes: int, at_once: int = 10) -> list[list[np.ndarray]]:
    """For each seed, the paths `[T + 1, 2]` of episodes with the agent's exploring actions, at rest after their end;
    `at_once` of each seed are stepped together, since an environment takes long to make."""
    n = min(at_once, episodes)
    many, streams = envs.vector(env_id, len(seeds) * n), rng.generators(seeds, "maze study")
    found = [[] for _ in seeds]
    for first in range(0, episodes, n):
        obs, _ = many.reset(seed=[rng.derive(s, "maze study", first + k) for s in seeds for k in range(n)])
        path, alive = [obs[:, :2]], np.ones(len(obs), bool)
        while alive.any():
            batch = torch.as_tensor(obs, dtype=torch.float32).view(len(seeds), n, -1)
            action = agent.act(batch, streams).flatten(0, 1).numpy()
            obs, _, terminated, truncated, info = many.step(np.nan_to_num(action))
            path.append(np.where(alive[:, None], envs.final_obs(obs, info)[:, :2], path[-1]))
            alive &= ~(terminated | truncated)
        for i, mine in enumerate(found):
            mine += list(np.stack(path, 1)[i * n : (i + 1) * n])
    many.close()
    return [mine[:episodes] for mine in found]


def tally(source: str, seed: int, ended: list[tuple]) -> list[dict]:
    """A row for each route of the maze and one without, from the (step, route) at which episodes ended."""
    rows = []
    for label, goal in (mazes.ROUTES | {"": -1}).items():
        steps = [step for step, route in ended if route == label]
        first = None if source == "policy" else min(steps, default=None)
        rows.append({"source": source, "seed": seed, "goal": goal, "route": label or "none", "count": len(steps),
                     "first": first})  # fmt: skip
    return rows


def study(folder, episodes: int = 100) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write and return both tables of a run, with `episodes` of the final policy a seed, at least one."""
    if episodes < 1:
        raise ValueError(f"the number of episodes must be at least 1, got {episodes}")
    identity, folder = runs.manifest(folder)["identity"], Path(folder)
    env_id, seeds, n_envs, every = (identity[k] for k in ("env_id", "seeds", "n_envs", "eval_every"))
    if "Maze-v0" not in env_id:
        raise runs.RunError(f"{folder} is a run on {env_id}; give one on softpolicy/PointMaze-v0 or AntMaze-v0")
    scale, n_obs = mazes.SCALE[gym.spec(env_id).kwargs["body"]], envs.make(env_id).observation_space.shape[0]
    identity, state = runs.saved(folder)
    agent, rows = agent_of(identity, state), transitions(state, folder)
    final = rollouts(agent, env_id, seeds, episodes)
    curves, routes = [], []
    for i, seed in enumerate(seeds):
        if str(seed) in state["diverged"]:
            continue
        visited = np.stack(positions(rows[i], n_obs), 1)[..., :2].reshape(-1, 2) / scale  # [2 N, 2]
        covered = mazes.coverage_curve(visited, 2 * every)
        curves += [{"step": every * (k + 1), "seed": seed, "coverage": c} for k, c in enumerate(covered)]
        trips = [(a, b, mazes.route(path / scale)) for a, b, path in whole_episodes(rows[i], n_obs, n_envs)]
        routes += tally("warmup", seed, [(b, route) for a, b, route in trips if a < identity["warmup"]])
        routes += tally("training", seed, [(b, route) for a, b, route in trips if a >= identity["warmup"]])
        routes += tally("policy", seed, [(0, mazes.route(path / scale)) for path in final[i]])
    columns = ["source", "seed", "goal", "route", "count", "first"]
    tables = (
        pd.DataFrame(curves, columns=["step", "seed", "coverage"]),
        pd.DataFrame(routes, columns=columns).astype({"first": "Int64"}),  # may be missing
    )
    for name, table in zip(("coverage", "routes"), tables, strict=True):
        runs.write_table(folder / f"{name}.csv", table)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m softpolicy.maze_study", description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN_FOLDER")
    parser.add_argument("--episodes", type=int, default=100, help="of the final policy, a seed [100]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for folder in args.folders:
        try:
            coverage, routes = study(folder, args.episodes)
        except (ValueError, runs.RunError) as e:
            sys.exit(f"error: {e}")
        reached = routes[(routes["count"] > 0) & (routes["goal"] >= 0) & (routes["source"] == "policy")]
        last = coverage[coverage["step"] == coverage["step"].max()]["coverage"].mean()
        print(f"{folder}: coverage {last:.2f}, routes of the final policy by seed:"
              f" {reached.groupby('seed').size().to_dict()} of {len(mazes.ROUTES)}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
