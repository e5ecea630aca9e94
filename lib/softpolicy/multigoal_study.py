"""What agents do in the multi-goal tasks, while they learn and when a wall is put in: the recorded study of chapter
*Stein soft actor-critic*.

`python -m softpolicy.multigoal_study --out data/runs/multigoal` trains the variants of `studies.MULTIGOAL`, each in
slices, in folders TASK/VARIANT, and puts beside the rows of each run

`progress.csv`  after each slice and for each seed: where 100 sampled episodes end, their return and length
`final.csv`     at the end: the same for 300 episodes, for each way of choosing the action, without and with the wall
`entropy.csv`   at the end: the policy's entropy along sampled paths and at the probes of S2AC's released code, and the
                soft return
`paths.csv`     at the end: sampled paths to draw, without and with the wall

and TASK/exact.json, the same numbers of the soft-optimal policy (`three-long` is the task `three`, trained longer).

Everything is measured on actions that the policy draws. Only the rows `own` of `entropy.csv` hold an agent's own
estimate of its entropy, at the probes, where it has one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from softpolicy import multigoal, runs, stats, studies
from softpolicy import streams as rng
from softpolicy.multigoal_exact import SoftOptimum
from softpolicy.studies import ALPHA
from softpolicy.train import trained

SLICES = 10  # of the training after the warm-up; progress.csv has a row a seed after each


def layout_of(task: str) -> str:
    """The layout of a study's task: `three` of `three-long`."""
    return task.removesuffix("-long")


def policy(agent, seeds, name: str, select: str | None = None):
    """The agent as a policy of `multigoal.simulate` for positions `[S, N, 2]`, with random numbers of its own."""
    streams, choice = rng.generators(seeds, name), {} if select is None else {"select": select}
    return lambda position: agent.act(torch.as_tensor(position, dtype=torch.float32), streams, **choice).numpy()


def ends(agent, seeds, layout: str, episodes: int, walls=(), select: str | None = None) -> pd.DataFrame:
    """A row a seed about sampled episodes: the share that ends at each goal, g0, g1, ..., and at none, mean return and
    length, the share that hits a wall, and of these the share that still reaches a goal (NaN if none does)."""
    found = multigoal.simulate(policy(agent, seeds, "episodes", select), layout, (len(seeds), episodes), walls)
    table = {"seed": list(seeds)}
    table |= {f"g{i}": (found.goal == i).mean(1) for i in range(len(multigoal.GOALS[layout]))}
    table |= {"none": (found.goal < 0).mean(1), "return": found.value.mean(1), "steps": found.steps.mean(1)}
    hit = found.collided.sum(1)
    recovered = (found.collided & (found.goal >= 0)).sum(1) / np.where(hit, hit, np.nan)
    return pd.DataFrame(table | {"collided": found.collided.mean(1), "recovered": recovered})


def entropies(agent, seeds, position: np.ndarray, draws: int, name: str) -> np.ndarray:
    """The policy's entropy at positions `[S, N, 2]`, `[S, N]` in nats, from nearest neighbours among its actions."""
    act, found = policy(agent, seeds, name), []
    for part in np.array_split(position, -(-position.shape[1] // 8), axis=1):  # few states at a time to save memory
        actions = np.nan_to_num(act(np.repeat(part, draws, 1))).reshape(len(part), -1, draws, 2)  # of diverged seeds
        found.append(stats.neighbour_entropy(actions))
    return np.concatenate(found, 1)


def along_paths(agent, seeds, layout: str, gamma: float, alpha: float, episodes: int = 16, draws: int = 64):
    """Rows about the entropy of the policy before step t of sampled episodes, and at the probes, there also the agent's
    own estimate if it has one; and, a row a seed, `soft`: the mean of `sum_t gamma^t (r_t + alpha H_t)`, what a
    maximum-entropy policy maximises."""
    found = multigoal.simulate(policy(agent, seeds, "paths"), layout, (len(seeds), episodes))
    rows, soft = [], np.zeros(len(seeds))
    for t in range(multigoal.STEPS):
        here, alive = found.path[t], found.steps > t  # [S, N]
        if not alive.any():
            break
        h = entropies(agent, seeds, here, draws, f"entropy {t}")
        soft += gamma**t * (found.rewards[t] + alpha * np.where(alive, h, 0)).mean(1)
        mean = np.where(alive, h, 0).sum(1) / alive.sum(1).clip(1)
        rows += [{"where": "path", "at": t, "seed": s, "entropy": mean[i], "n": alive[i].sum()}
                 for i, s in enumerate(seeds) if alive[i].any()]  # fmt: skip
    probes = np.tile(multigoal.PROBES[layout], (len(seeds), 1, 1))
    h = entropies(agent, seeds, probes, 4 * draws, "probes")
    rows += [{"where": "probe", "at": k, "seed": s, "entropy": h[i, k], "n": 4 * draws}
             for i, s in enumerate(seeds) for k in range(h.shape[1])]  # fmt: skip
    if hasattr(agent, "entropy"):
        obs = torch.as_tensor(np.repeat(probes, draws, 1), dtype=torch.float32)
        own = agent.entropy(obs, rng.generators(seeds, "own")).unflatten(1, (-1, draws)).mean(-1)  # [S, probes]
        rows += [{"where": "own", "at": k, "seed": s, "entropy": own[i, k].item(), "n": draws}
                 for i, s in enumerate(seeds) for k in range(own.shape[1])]  # fmt: skip
    rows += [{"where": "soft", "at": 0, "seed": s, "entropy": soft[i], "n": episodes} for i, s in enumerate(seeds)]
    return pd.DataFrame(rows)


def follow(task: str, variant: str, out, **changes) -> None:
    """Train a variant in slices and describe it after each and at the end; what is there is not made again.

    `changes` replace arguments of the study's protocol. Seeds that diverged are left out. Raises `studies.Stopped` as
    `studies.run` does.
    """
    study, place, layout = studies.MULTIGOAL[task], Path(out) / task, layout_of(task)
    protocol = study.protocol | changes
    seeds, warmup, steps, folder = protocol["seeds"], protocol["warmup"], protocol["steps"], place / variant

    def write(name: str, table: pd.DataFrame) -> None:
        diverged = map(int, runs.manifest(folder)["diverged"])
        runs.write_table(folder / f"{name}.csv", table[~table["seed"].isin(list(diverged))])

    done = pd.read_csv(folder / "progress.csv") if (folder / "progress.csv").exists() else pd.DataFrame({"step": []})
    for until in [warmup + (steps - warmup) * k // SLICES for k in range(1, SLICES + 1)]:
        if (done["step"] >= until).any():
            continue
        studies.run(study, variant, place, **(changes | {"steps": until}))
        rows = ends(trained(folder), seeds, layout, 100)
        done = pd.concat([done, rows.assign(step=until)], ignore_index=True)
        write("progress", done)
        print(f"{task} {variant}, step {until}: mean return {rows['return'].mean():.1f}", flush=True)
    if not (folder / "paths.csv").exists():
        agent, gamma = trained(folder), studies.config(study, variant).gamma
        write("final", final(agent, seeds, layout))
        write("entropy", along_paths(agent, seeds, layout, gamma, ALPHA))
        write("paths", paths(agent, seeds, layout))


def final(agent, seeds, layout: str) -> pd.DataFrame:
    """`ends` for each action selection that the agent has, without and with the task's wall."""
    selects = ["random", "best", "softmax"] if "evaluate" in vars(agent.config) else ["random"]
    selects += ["amortised"] if getattr(agent.config, "amortised", False) else []
    tables = []
    for select in selects:
        for walls in ((), True):
            rows = ends(agent, seeds, layout, 300, walls, select if len(selects) > 1 else None)
            tables.append(rows.assign(select=select, walls=bool(walls)))
    return pd.concat(tables, ignore_index=True)


def paths(agent, seeds, layout: str, episodes: int = 20) -> pd.DataFrame:
    """Positions of a few sampled episodes of each seed, to the end of each."""
    rows = []
    for walls in ((), True):
        found = multigoal.simulate(policy(agent, seeds, "pictures"), layout, (len(seeds), episodes), walls)
        for i, e in np.ndindex(found.steps.shape):
            rows += [{"walls": bool(walls), "seed": seeds[i], "episode": e, "t": t, "x": x, "y": y}
                     for t, (x, y) in enumerate(found.path[: found.steps[i, e] + 1, i, e])]  # fmt: skip
    return pd.DataFrame(rows)


def exact(layout: str, episodes: int = 200) -> dict:
    """The soft-optimal policy at the study's temperature: shares of the goals, undiscounted return, steps and soft
    return in expectation; its entropy at the probes and before step t of sampled episodes."""
    optimum, generator = SoftOptimum(layout, ALPHA), torch.Generator().manual_seed(0)
    end = optimum.outcome()
    found = multigoal.simulate(lambda position: optimum.act(position, generator), layout, episodes)
    path = [optimum.at(optimum.entropy, found.path[t, found.steps > t]).mean().item() for t in range(found.steps.max())]
    return {
        "shares": end.shares.tolist(),
        "return": end.value,
        "steps": end.steps,
        "soft": optimum.at(optimum.value, np.zeros(2)).item(),
        "probes": optimum.at(optimum.entropy, multigoal.PROBES[layout]).tolist(),
        "path": path,
    }


def shares(place: Path, task: str, label: str) -> pd.DataFrame:
    """Recorded shares of the goals and of none, a row for each selection and seed, the index; empty if not run."""
    folder = next(place / task / k for k, v in studies.MULTIGOAL[task].variants.items() if v[0] == label)
    if not (folder / "final.csv").exists():
        return pd.DataFrame()
    rows = pd.read_csv(folder / "final.csv")
    rows = rows[~rows["walls"]].set_index(["select", "seed"])
    return rows[[f"g{i}" for i in range(len(multigoal.GOALS[layout_of(task)]))] + ["none"]]


def summary(place: Path, task: str) -> pd.DataFrame:
    """One row a recorded variant and seed, for sampled actions without the wall: the columns of `ends` and

    goals     those reached in more than 5 % of the episodes
    distance  the total variation between where episodes end and where those of the soft-optimal policy do
    soft      the soft return
    walled    the share of episodes that reach a goal with the wall
    elsewhere the share that ends at another goal than the seed's favourite: what a wall before that one would leave
    """
    best, tables = json.loads((place / layout_of(task) / "exact.json").read_text()), []
    for variant, (label, *_) in studies.MULTIGOAL[task].variants.items():
        if not (place / task / variant / "entropy.csv").exists():
            continue
        final, entropy = (pd.read_csv(place / task / variant / f"{name}.csv") for name in ("final", "entropy"))
        final = final[final["select"] == "random"].set_index("seed")
        free, goals = final[~final["walls"]], [f"g{i}" for i in range(len(best["shares"]))]
        table = free.assign(
            variant=label,
            goals=(free[goals] > 0.05).sum(axis=1),
            distance=((free[goals] - best["shares"]).abs().sum(axis=1) + free["none"]) / 2,
            soft=entropy[entropy["where"] == "soft"].set_index("seed")["entropy"],
            walled=1 - final[final["walls"]]["none"],
            elsewhere=free[goals].sum(axis=1) - free[goals].max(axis=1),
        )
        tables.append(table.reset_index())
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m softpolicy.multigoal_study", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs, TASK/VARIANT below it")
    parser.add_argument("--tasks", nargs="+", choices=studies.MULTIGOAL, default=list(studies.MULTIGOAL))
    parser.add_argument("--variants", nargs="+", help="only these")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for task in args.tasks:
        studies.check_variants(parser, studies.MULTIGOAL[task], args.variants)
    for task in args.tasks:
        layout = layout_of(task)
        if not (reference := args.out / layout / "exact.json").exists():
            reference.parent.mkdir(parents=True, exist_ok=True)
            runs.write_json(reference, exact(layout))
        for variant in args.variants or studies.MULTIGOAL[task].variants:
            try:
                follow(task, variant, args.out)
            except runs.RunError as e:
                sys.exit(f"error: {e}")
            except studies.Stopped as e:
                print(e)
                sys.exit(75)


if __name__ == "__main__":
    main()
