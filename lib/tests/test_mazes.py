"""The mazes against their definition: rewards and ends, coverage, routes; and the study on a short run."""

import itertools
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from softpolicy import envs, maze_study, mazes, plots, runs
from softpolicy import streams as rng
from softpolicy.agents import sac
from softpolicy.train import train

POINT, ANT = "softpolicy/PointMaze-v0", "softpolicy/AntMaze-v0"


def centre(cell):
    """Where the middle of a cell lies."""
    return np.array([cell[1] + 0.5 - len(mazes.MAP[0]) / 2, len(mazes.MAP) / 2 - cell[0] - 0.5])


def along(path, steps=20):
    """Positions on straight lines between the middles of cells."""
    ends = [centre(cell) for cell in path]
    pieces = [np.linspace(a, b, steps, endpoint=False) for a, b in itertools.pairwise(ends)]
    return np.concatenate([*pieces, ends[-1:]])


def drive(env, path):
    """Push the ball through the middle of a path to its end; everything the environment said."""
    (obs, _), said, ahead = env.reset(seed=0), [], [centre(path[4]), centre(path[-1])]
    while not (said and (said[-1][2] or said[-1][3])):
        if len(ahead) > 1 and np.abs(obs[:2] - ahead[0]).max() < 0.4:
            ahead.pop(0)
        push = np.clip(3 * (ahead[0] - obs[:2]) - 0.5 * obs[2:], -1, 1)
        said.append(env.step(push.astype(np.float32)))
        obs = said[-1][0]
    return said


# ---- the tasks ----


@pytest.mark.filterwarnings("ignore:.*A Box observation space")
@pytest.mark.parametrize(("env_id", "n_obs", "n_act"), [(POINT, 4, 2), (ANT, 29, 8)])
def test_task_follows_the_gymnasium_interface(env_id, n_obs, n_act):
    env = envs.make(env_id)
    assert env.observation_space.shape == (n_obs,) and env.action_space.shape == (n_act,)
    check_env(env.unwrapped, skip_render_check=True)
    assert not Path(env.unwrapped.simulator.tmp_xml_file_path).exists()
    starts = np.array([env.reset(seed=3)[0], *(env.reset()[0] for _ in range(20))])
    noise = np.abs(starts[:, :2] / mazes.SCALE[env.unwrapped.body] - centre(mazes.START)).max()
    assert 0.025 < noise <= 0.05 and np.ptp(starts[:, 2:], axis=0).max() == 0  # nothing else is random


@pytest.mark.parametrize("path", mazes.paths(), ids=mazes.name)
def test_a_ball_driven_along_each_route_is_paid_once_and_ends_in_its_goal(path):
    env, label = envs.make(POINT), mazes.name(path)
    said = drive(env, path)
    assert [s[1] for s in said] == [0.0] * (len(said) - 1) + [1.0]
    assert [bool(s[2]) for s in said] == [False] * (len(said) - 1) + [True] and not any(s[3] for s in said)
    assert said[-1][4]["goal"] == mazes.ROUTES[label]
    assert 0.44 < np.abs(said[-1][0][:2] - centre(path[-1])).max() < 0.5  # at its border, not some steps later
    assert mazes.route(np.stack([env.reset(seed=0)[0], *(s[0] for s in said)])[:, :2]) == label


def test_a_ball_at_rest_is_truncated_without_reward():
    env = envs.make(POINT)
    env.reset(seed=0)
    said = [env.step(np.zeros(2, np.float32)) for _ in range(45)]
    assert sum(s[1] for s in said) == 0 and not any(s[2] for s in said)
    assert [s[3] for s in said] == [False] * 44 + [True]
    assert envs.gym.spec(ANT).max_episode_steps == 1000


def test_the_robot_is_paid_in_the_cell_of_a_goal_and_nowhere_else():
    """Put into each free cell in turn; the map is four times as large."""
    env, goals = mazes.Maze("ant"), mazes.cells("G")
    env.reset(seed=0)
    for cell in mazes.cells():
        env.simulator.ant_env.set_state(np.array([*4 * centre(cell), *env.data.qpos[2:]]), 0 * env.data.qvel)
        _, reward, terminated, truncated, info = env.step(np.zeros(8))
        assert (reward, terminated, truncated) == (cell in goals, cell in goals, False)
        assert info["goal"] == (goals.index(cell) if cell in goals else -1)


def test_an_action_pushes_for_five_steps_of_the_simulator():
    ours, theirs = envs.make(POINT), mazes.simulator("point")
    ours.reset(seed=1)
    theirs.reset(seed=ours.unwrapped.np_random_seed)
    push = np.array([0.3, -1], np.float32)
    *_, said = [theirs.step(push)[0]["observation"] for _ in range(5)]
    assert np.array_equal(ours.step(push)[0], said) and said[3] == pytest.approx(-5 * 0.01 * 100 / 4.19, rel=0.02)


def test_walls_hold_the_ball():
    """Pushed at random with full force, it comes up to the walls, and its centre never into one."""
    env, g = envs.make(POINT), np.random.default_rng(0)
    env.reset(seed=0)
    walls, nearest = np.array([centre(cell) for cell in mazes.cells("#")]), []
    for _ in range(40):
        push = g.choice([-1, 1], 2).astype(np.float32)
        for _ in range(25):
            obs, _, terminated, truncated, _ = env.step(push)
            beyond = np.maximum(np.abs(obs[:2] - walls) - 0.5, 0)  # [W, 2]
            nearest.append(np.linalg.norm(beyond, axis=1).min())
            if terminated or truncated:
                env.reset()
    assert 0.01 < min(nearest) < 0.11  # the radius is 0.1, contacts are soft


def test_a_missing_package_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.maze.point_maze", None)
    with pytest.raises(ValueError, match=r"a package that is missing \(import of .*install gymnasium-robotics"):
        envs.make(POINT)
    with pytest.raises(ValueError, match="unknown body 'car'; give point or ant"):
        mazes.Maze("car")


# ---- coverage ----


def test_coverage_closed_forms():
    square = 0.25 * np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)])
    free = np.concatenate([centre(cell) + square for cell in mazes.cells("S.")])  # the middle of each square
    assert len(free) == 4 * sum(kind in "S." for row in mazes.MAP for kind in row) == 164
    assert mazes.coverage(free) == 1 and sorted(mazes.bin_of(free)) == list(range(164))
    assert mazes.coverage(free[:1]) == 1 / 164 and mazes.coverage(np.repeat(free[:2], 9, 0)) == 2 / 164
    walls = np.array([centre(cell) for cell in mazes.cells("#G")])
    outside = np.array([(9.0, 0), (0, -4.6), (-100, 100)])
    assert mazes.coverage(walls) == mazes.coverage(outside) == mazes.coverage(np.empty((0, 2))) == 0
    assert mazes.coverage(np.concatenate((walls, outside, free[:3]))) == 3 / 164


points = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=40).map(np.array)


@settings(max_examples=50, deadline=None)
@given(a=points, b=points, every=st.integers(1, 7))
def test_coverage_of_unions_and_its_curve(a, b, every):
    both = np.concatenate((a, b))
    inside = [set(mazes.bin_of(x).tolist()) - {-1} for x in (a, b)]
    assert mazes.coverage(both) == pytest.approx(len(inside[0] | inside[1]) / 164)
    assert max(map(mazes.coverage, (a, b))) <= mazes.coverage(both) <= mazes.coverage(a) + mazes.coverage(b) + 1e-12
    curve = mazes.coverage_curve(both, every)
    assert curve.tolist() == [mazes.coverage(both[:n]) for n in range(every, len(both) + 1, every)]


# ---- routes ----


def test_eight_routes_of_equal_length_two_to_each_goal():
    found = mazes.paths()
    assert len(found) == len(mazes.ROUTES) == 8 and {len(path) for path in found} == {9}
    assert sorted(mazes.ROUTES.values()) == sorted([0, 1, 2, 3] * 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 3), st.integers(2, 3), st.data())
def test_paths_by_brute_force(height, width, data):
    """On small random maps: all orders of all subsets of the free cells."""
    kinds = data.draw(st.lists(st.sampled_from("#..G"), min_size=height * width - 1, max_size=height * width - 1))
    text = "S" + "".join(kinds)
    maze = [text[i * width : (i + 1) * width] for i in range(height)]
    free, goals, expected = mazes.cells(".", maze), mazes.cells("G", maze), set()
    for n in range(len(free) + 1):
        for middle in itertools.permutations(free, n):
            for goal in goals:
                path = ((0, 0), *middle, goal)
                if all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in itertools.pairwise(path)):
                    expected.add(path)
    found = mazes.paths(maze)
    assert set(found) == expected and len(found) == len(expected)


def test_route_ignores_detours_loops_and_failures():
    path = next(p for p in mazes.paths() if mazes.name(p) == "NW")
    assert mazes.route(along(path)) == "NW"
    detour = next(p for p in mazes.paths() if mazes.name(p) == "NE")[:6]  # almost to the other goal, and back
    assert mazes.route(along((*detour, *detour[-2::-1], *path[1:]))) == "NW"
    assert mazes.route(along((*path[:4], *path[2::-1], *path[1:]))) == "NW"
    for path in mazes.paths():  # the corner is cut
        assert mazes.route(np.stack([centre(cell) for cell in path if cell != path[4]])) == mazes.name(path)
    assert mazes.route(along(path[:6])) == mazes.route(along(path[:1])) == ""
    for bad in (along(path)[30:], along(path)[::60]):
        with pytest.raises(ValueError, match="one episode, step by step"):
            mazes.route(bad)


def test_map_is_drawn_where_positions_lie():
    ax, maze = matplotlib.figure.Figure().add_subplot(), ("S#.", "..G")
    plots.maze(ax, maze)
    drawn = [np.add(patch.get_xy(), 0.5) for patch in ax.patches]
    assert mazes.cell_of(drawn, maze).tolist() == [[0, 0], [0, 1], [1, 2]]


# ---- the study ----


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of uniform actions and a few updates, two seeds, two environments each."""
    out = tmp_path_factory.mktemp("maze") / "run"
    train(sac.Config(width=8, batch=8), POINT, [0, 3], 1400, out, n_envs=2, warmup=1300, eval_every=700,
          eval_episodes=1, checkpoint_every=700)  # fmt: skip
    return out


def test_study_can_be_repeated(short):
    coverage, routes = maze_study.study(short, episodes=3)
    assert coverage["step"].tolist() == [700, 1400] * 2 and coverage["seed"].tolist() == [0, 0, 3, 3]
    assert (routes.groupby(["source", "seed"]).size() == 9).all()
    assert (routes[routes["source"] == "policy"].groupby("seed")["count"].sum() == 3).all()
    written = {name: (short / f"{name}.csv").read_bytes() for name in ("coverage", "routes")}
    assert pd.read_csv(short / "routes.csv")["count"].tolist() == routes["count"].tolist()
    maze_study.study(short, episodes=3)
    assert written == {name: (short / f"{name}.csv").read_bytes() for name in written}


def test_study_reads_what_the_environments_did(short):
    """Coverage, episodes and routes of seed 3, from the same uniform actions without the training loop."""
    warm, world = rng.generators([3], "warmup"), envs.vector(POINT, 2)
    obs, _ = world.reset(seed=[rng.derive(3, "training"), rng.derive(3, "training", 1)])
    visited, trips, begun = [*obs], [], [[obs[0]], [obs[1]]]
    for t in range(2, 1302, 2):
        obs, _, terminated, truncated, info = world.step((2 * rng.uniform(warm, 2, 2) - 1)[0].numpy())
        after = envs.final_obs(obs, info)
        for j in range(2):
            visited += [after[j], obs[j]]
            begun[j].append(after[j])
            if terminated[j] or truncated[j]:
                trips.append((t, np.stack(begun[j])[:, :2]))
                begun[j] = [obs[j]]
        if t == 700:
            by_hand = mazes.coverage(np.stack(visited)[:, :2])
    coverage, routes = maze_study.study(short, episodes=1)
    assert coverage.set_index(["seed", "step"])["coverage"][3, 700] == pytest.approx(by_hand)
    rows = maze_study.transitions(runs.saved(short)[1], short)[1]
    read = [(b, path) for _, b, path in maze_study.whole_episodes(rows, 4, 2) if b <= 1300]
    read, trips = (sorted(found, key=lambda e: e[1][0, 0]) for found in (read, trips))
    assert [b for b, _ in read] == [b for b, _ in trips]
    for (_, x), (_, y) in zip(read, trips, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
    warmup = routes[(routes["source"] == "warmup") & (routes["seed"] == 3)].set_index("route")
    assert warmup["count"].sum() == len(trips) + 2  # those begun in the warm-up end before step 1400
    for label in mazes.ROUTES:
        steps = [b for b, path in trips if mazes.route(path) == label]
        assert warmup["count"][label] in (len(steps), len(steps) + 1)
        assert not steps or warmup["first"][label] == min(steps)


def test_tally_counts_and_names_the_first():
    rows = {row["route"]: row for row in maze_study.tally("training", 7, [(9, "NE"), (4, "NE"), (6, ""), (8, "WS")])}
    assert {route: (row["count"], row["first"]) for route, row in rows.items() if row["count"]} == {
        "NE": (2, 4), "WS": (1, 8), "none": (1, 6)
    }  # fmt: skip
    assert [rows[r]["goal"] for r in ("NE", "WS", "none")] == [1, 2, -1] and len(rows) == 9


def test_other_runs_are_refused_in_a_sentence(tmp_path):
    train(sac.Config(width=4, batch=4), "Line-v0", [0], 60, tmp_path, warmup=20, eval_every=30, eval_episodes=1)
    with pytest.raises(runs.RunError, match="a run on Line-v0; give one on softpolicy/PointMaze-v0"):
        maze_study.study(tmp_path)
    with pytest.raises(runs.RunError, match="not a manifest"):
        maze_study.study(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        maze_study.study(tmp_path, episodes=0)


def test_rollouts_depend_on_their_seed_alone_and_start_apart():
    class Pusher:
        def act(self, obs, streams):
            return torch.stack([0.1 * rng.normal([g], obs.shape[1], 2)[0] for g in streams])

    both = maze_study.rollouts(Pusher(), POINT, [0, 5], 3, at_once=2)
    alone = maze_study.rollouts(Pusher(), POINT, [5], 3, at_once=2)
    assert [len(mine) for mine in both] == [3, 3]
    for a, b in zip(both[1], alone[0], strict=True):
        assert np.array_equal(a, b) and mazes.route(a) in (*mazes.ROUTES, "")
    assert len({tuple(path[0]) for path in [*both[0], *both[1]]}) == 6
