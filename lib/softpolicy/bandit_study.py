"""Critics fitted to the bandit, and what samplers make of them: the recorded study of chapter *Langevin Q-learning*.

`python -m softpolicy.bandit_study --out data/bandit` writes tables and, for each part, what it was made with; two
hours on one core. Parts: `critics` (fit.csv, samplers.csv), `loops` (closed_loop.csv), `pictures` (landscapes.csv,
gallery.csv, points.csv).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from softpolicy import bandit, runs
from softpolicy import streams as rng
from softpolicy.agents import nclql, sac
from softpolicy.device import keep_memory
from softpolicy.replay import Batch, Replay
from softpolicy.samplers import annealed_langevin, noise_levels, step_sizes, with_gradient

SIZE = dict(width=128, batch=256, reward_scale=1.0)
NARROW = dict(sigma_max=0.1, sigma_min=0.001)  # the noise of NC-LQL's released code
WIDE = dict(sigma_max=0.5, sigma_min=0.02)  # a range comparable to the box; ours
LONG_FIT, SAC_FIT = 40_000, 16_000  # updates of the critic and the actor that the pictures show
TOP = 1e-4  # step size at the last level of the normalised samplers, as in the released code


def annealed(noise: dict, per_level: int, w: float, normalise: bool, step_lr: float = TOP, levels: int = 10) -> dict:
    """An annealed sampler over `levels` noise levels."""
    steps = step_sizes(noise_levels(levels, **noise), step_lr)
    return dict(steps=steps, per_level=per_level, w=w, normalise=normalise, finest=False)


def plain(n_steps: int, w: float, normalise: bool = False, step: float = 0) -> dict:
    """LQL's sampler: constant steps, by default of 1e-4 for unit and 1e-3 for raw gradients, on the finest level."""
    step = step or (TOP if normalise else 1e-3)
    return dict(steps=[step], per_level=n_steps, w=w, normalise=normalise, finest=True)


def draw(gradient, n_seeds: int, n: int, finest_level: int, sampler: dict) -> Tensor:
    """n actions a seed, `[S, n, 2]`, from `gradient(a [S, n, 2], level)` of the critics' mean."""
    streams = rng.generators(range(n_seeds), "draw", 0)
    score = (lambda a, _: gradient(a, finest_level)) if sampler["finest"] else gradient
    start = 2 * rng.uniform(streams, n, 2) - 1
    return annealed_langevin(
        score, start, sampler["steps"], sampler["per_level"], rng.normals(streams, n, 2),
        w=sampler["w"], normalise=sampler["normalise"], clip=1.0, check=False,
    )  # fmt: skip


def of_critic(agent: nclql.NCLQL, n: int):
    """The gradient of the mean of an agent's two critics, for n actions a seed."""
    gradient = agent.critic.action_gradient(torch.zeros(len(agent.noise), n, 1))
    return lambda a, level: gradient(a, level) / agent.critic.members


def ideal(sigmas: list[float]):
    """The gradient of what a perfect noise-conditioned critic learns from uniform actions (`bandit.smoothed`)."""
    return lambda a, level: with_gradient(lambda x: bandit.smoothed(x, sigmas[level]), a)[1]


def transitions(a: Tensor) -> Batch:
    """Actions `[S, B, 2]` of the bandit as transitions: one state, reward R(a), the end."""
    state, r = torch.zeros(*a.shape[:2], 1), bandit.reward(a)
    return Batch(state, a, r, state, torch.ones_like(r))


def fit_uniform(config: nclql.Config, seeds, updates: int, cosine: bool = True) -> nclql.NCLQL:
    """Critics fitted to uniform actions; the learning rate falls to 5 % along a cosine, or stays."""
    agent, streams = config.build(1, 2, list(seeds)), rng.generators(seeds, "bandit")
    for i in range(updates):
        if cosine:
            share = 0.5 * (1 + math.cos(math.pi * i / updates))
            agent.opts["critic"].param_groups[0]["lr"] = config.lr * (0.05 + 0.95 * share)
        batch = transitions(2 * rng.uniform(streams, config.batch, 2) - 1)
        agent.fit(batch, batch.reward)
    return agent


def fit_error(agent: nclql.NCLQL, n: int = 4_000) -> list[dict]:
    """Root mean square distance of the critics' mean from `bandit.smoothed` over uniform actions, seed by level, with
    the spread of the learned landscape."""
    cfg, rows = agent.config, []
    a = 2 * rng.uniform(rng.generators([0], "error"), n, 2) - 1
    for level, sigma in enumerate(noise_levels(cfg.levels, cfg.sigma_max, cfg.sigma_min)):
        with torch.no_grad():
            q = agent.critic(torch.zeros(len(agent.noise), n, 1), a.expand(len(agent.noise), -1, -1), level).mean(1)
        exact = bandit.reward(a) if level == cfg.levels - 1 else bandit.smoothed(a, sigma)
        rmse = (q - exact).square().mean(-1).sqrt()  # [S]
        rows += [{"level": level, "seed": s, "rmse": rmse[s].item(), "spread": q[s].std().item()}
                 for s in range(len(rmse))]  # fmt: skip
    return rows


def closed_loop(config: nclql.Config, seeds, updates: int, every: int, warmup: int = 2_000) -> list[dict]:
    """Critics that learn from the actions they choose: five actions an update after uniform ones; rows every so often
    describe 1,000 actions a seed."""
    agent, n = config.build(1, 2, list(seeds)), len(seeds)
    collect, sample = rng.generators(seeds, "collect"), rng.generators(seeds, "sample")
    replay, rows = Replay(warmup + 5 * updates, n, 1, 2), []

    def add(a):
        batch = transitions(a)
        replay.add(batch.obs, a, batch.reward[..., None], batch.next_obs, batch.terminated[..., None])

    add(2 * rng.uniform(collect, warmup, 2) - 1)
    for i in range(1, updates + 1):
        add(agent.act(torch.zeros(n, 5, 1), collect))
        batch = replay.sample(config.batch, sample)
        agent.fit(batch, batch.reward)
        if i % every == 0:
            found = bandit.describe(agent.act(torch.zeros(n, 1_000, 1), collect), config.w)
            rows += [{"update": i, "seed": s, **{k: v[s].item() for k, v in found.items()}} for s in range(n)]
    return rows


def described(a: Tensor, soft_w: float, **labels) -> list[dict]:
    """One row a seed about actions `[S, n, 2]`, beside the soft policy of inverse temperature `soft_w`."""
    found = bandit.describe(a, soft_w)
    return [{**labels, "seed": s, **{k: v[s].item() for k, v in found.items()}} for s in range(len(a))]


def gradients(sampler: dict) -> int:
    """How many gradients a chain takes."""
    return len(sampler["steps"]) * sampler["per_level"]


# Critics by name, with their training seeds and updates, and the samplers that are applied to them.
CRITICS = {
    "narrow": (dict(SIZE, lr=1e-3, **NARROW), 6, 16_000),
    "wide": (dict(SIZE, lr=1e-3, **WIDE), 6, 16_000),
    "wide, 5 levels": (dict(SIZE, lr=1e-3, levels=5, **WIDE), 3, 16_000),
    "wide, 20 levels": (dict(SIZE, lr=1e-3, levels=20, **WIDE), 3, 16_000),
    "poor": (dict(SIZE, width=256, lr=1e-4, **NARROW), 3, 5_000),
}
LQL = {
    "LQL, 20 unit steps": plain(20, 500, True),
    "LQL, 20 unit steps of 0.0003": plain(20, 500, True, 3e-4),
    "LQL, 20 unit steps of 0.001": plain(20, 500, True, 1e-3),
    "LQL, 20 steps": plain(20, 10),
    "LQL, 20 steps of 0.003": plain(20, 10, step=3e-3),
    "LQL, 20 steps of 0.005": plain(20, 10, step=5e-3),
    "LQL, 20 steps, w 50": plain(20, 50),
    "LQL, 200 steps": plain(200, 10),
    "LQL, 200 steps, w 50": plain(200, 50),
    "LQL, 2000 steps": plain(2_000, 10),
}
RELEASED = {f"NC-LQL as released, w {w}": annealed(NARROW, 2, w, True) for w in (500, 100, 50, 10)}
SAMPLERS = {
    "narrow": LQL | RELEASED
    | {f"NC-LQL raw, T {t}, w {w}": annealed(NARROW, t, w, False) for t in (2, 10) for w in (10, 50)}
    | {"annealed steps, not conditioned": dict(annealed(NARROW, 2, 500, True), finest=True)},
    "wide": LQL
    | {f"NC-LQL unit, w {w}": annealed(WIDE, 2, w, True) for w in (50, 100, 500)}
    | {f"NC-LQL unit, w 100, T {t}": annealed(WIDE, t, 100, True) for t in (1, 5)}
    | {f"NC-LQL raw, T {t}, w {w}": annealed(WIDE, t, w, False, 1e-3) for t in (2, 10) for w in (10, 20)}
    | {"annealed steps, not conditioned": dict(annealed(WIDE, 2, 100, True), finest=True)},
    "wide, 5 levels": {"NC-LQL unit, w 100, T 4": annealed(WIDE, 4, 100, True, levels=5)},
    "wide, 20 levels": {"NC-LQL unit, w 100, T 1": annealed(WIDE, 1, 100, True, levels=20)},
    "poor": RELEASED | {"NC-LQL raw, T 2, w 10": annealed(NARROW, 2, 10, False), "LQL, 20 steps": plain(20, 10)},
}  # fmt: skip
LOOP = SIZE | dict(batch=128, lr=3e-4)
LOOPS = {
    "as released": LOOP | NARROW,
    "unit gradients, wide noise": LOOP | WIDE | dict(w=100.0),
    "raw gradients, wide noise": LOOP | WIDE | dict(w=20.0, step_lr=1e-3, normalise=False, reduction="mean"),
}


def critics(out: Path, n: int = 4_000) -> int:
    """Fit every kind of critic, apply its samplers, n actions a seed; tables are written as they grow."""
    fits, samples = [], []
    for name, (config, n_seeds, updates) in CRITICS.items():
        agent = fit_uniform(nclql.Config(**config), range(n_seeds), updates, cosine=name != "poor")
        fits += [{"critic": name, "updates": updates, **row} for row in fit_error(agent)]
        for label, sampler in SAMPLERS[name].items():
            a = draw(of_critic(agent, n), n_seeds, n, agent.finest, sampler)
            labels = {"critic": name, "sampler": label, "gradients": gradients(sampler), "w": sampler["w"]}
            samples += described(a, sampler["w"], **labels)
        print(f"{name}: {updates} updates of {n_seeds} critics", flush=True)
        write(out, "fit", fits), write(out, "samplers", samples)
    return n


def loops(out: Path) -> int:
    """Every closed loop, three seeds, 10,000 updates, described by 1,000 actions a seed."""
    rows = []
    for name, config in LOOPS.items():
        rows += [{"loop": name, **row} for row in closed_loop(nclql.Config(**config), range(3), 10_000, 500)]
        print(f"closed loop, {name}", flush=True)
        write(out, "closed_loop", rows)
    return 1_000


def sac_actions(w: float, updates: int, n: int, batch: int = 128) -> Tensor:
    """`[1, n, 2]` actions of SAC's Gaussian with temperature 1 / w, trained on uniform actions of the bandit."""
    config = sac.Config(width=128, batch=batch, lr=1e-3, init_alpha=1 / w, learn_alpha=False)
    agent, streams = config.build(1, 2, [0]), rng.generators([0], "bandit")
    for _ in range(updates):
        agent.update(transitions(2 * rng.uniform(streams, batch, 2) - 1))
    return agent.act(torch.zeros(1, n, 1), streams)


def exact_actions(w: float, n: int) -> Tensor:
    """`[1, n, 2]` draws from the cells of the exact soft policy."""
    points = bandit.grid(400)
    p = bandit.boltzmann(bandit.reward(points), 1 / w).flatten()
    return points.flatten(0, 1)[torch.multinomial(p, n, True, generator=torch.Generator().manual_seed(0))][None]


def pictures(out: Path, n: int = 10_000, updates: int = LONG_FIT, shown: int = 150, cells: int = 60) -> int:
    """One wide critic, fitted longer (`LONG_FIT` updates): its landscape at four levels, and where several
    algorithms' actions end.

    landscapes.csv: level, row, column, q on a grid; gallery.csv: `bandit.describe` of n actions beside the
    soft policy of w = 10; points.csv: start and end of some of them.
    """
    agent = fit_uniform(nclql.Config(**CRITICS["wide"][0]), [0], updates)
    flat = bandit.grid(cells).reshape(1, -1, 2).float()
    levels = []
    for level in (0, 3, 6, 9):
        with torch.no_grad():
            q = agent.critic(torch.zeros(1, cells**2, 1), flat, level).mean((0, 1))
        levels += [{"level": level, "row": i // cells, "column": i % cells, "q": v} for i, v in enumerate(q.tolist())]
    write(out, "landscapes", levels)
    ends = {"SAC": (sac_actions(10.0, min(updates, SAC_FIT), n), 10.0)}
    for name in ("LQL, 20 steps", "LQL, 200 steps", "LQL, 2000 steps", "NC-LQL raw, T 2, w 10", "NC-LQL unit, w 100"):
        sampler = SAMPLERS["wide"][name]
        ends[name] = draw(of_critic(agent, n), 1, n, agent.finest, sampler), sampler["w"]
    ends["exact soft policy"] = exact_actions(10.0, n), 10.0
    start = 2 * rng.uniform(rng.generators([0], "draw", 0), n, 2)[0] - 1  # as in `draw`
    table, points = [], []
    for name, (a, w) in ends.items():
        table += described(a, 10.0, name=name, w=w)
        points += [{"name": name, "x0": x, "y0": y, "x": u, "y": v}
                   for (x, y), (u, v) in zip(start[:shown].tolist(), a[0, :shown].tolist(), strict=True)]  # fmt: skip
    write(out, "gallery", table), write(out, "points", points)
    return n


def write(out: Path, name: str, rows: list[dict]) -> None:
    """A table as CSV."""
    runs.write_table(out / f"{name}.csv", pd.DataFrame(rows))


PARTS = {"critics": critics, "loops": loops, "pictures": pictures}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m softpolicy.bandit_study", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS), help="what to make [all]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        started = runs.now()
        actions = PARTS[part](args.out)
        about = {"started": started, "ended": runs.now(), "actions": actions, **runs.provenance("cpu")}
        runs.write_json(args.out / f"{part}.json", about)


if __name__ == "__main__":
    main()
