"""What the closed form of S2AC's density is worth in a trained run, from its checkpoint; chapter *Stein soft
actor-critic*.

`python -m softpolicy.stein_study RUN_FOLDER` writes `diagnosis.csv` beside the run's rows: for each seed, the means of
`S2AC.diagnose` over states of its replay.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from softpolicy import envs, runs
from softpolicy import streams as rng
from softpolicy.train import agent_of


def study(folder, states: int = 200) -> pd.DataFrame:
    """Write and return the table of the seeds that have not diverged, from `states` equally spaced states of the
    replay's second half.

    ValueError for less than one state; `runs.RunError` for a run of another agent or without a checkpoint.
    """
    if states < 1:
        raise ValueError(f"the number of states must be at least 1, got {states}")
    agent_name, folder = runs.manifest(folder)["identity"]["agent"], Path(folder)
    if agent_name != "s2ac":
        raise runs.RunError(f"{folder} is a run of {agent_name}; give one of s2ac")
    identity, state = runs.saved(folder)
    agent, n_obs = agent_of(identity, state), envs.make(identity["env_id"]).observation_space.shape[0]
    rows = state["replay"]["rows"]  # [S, N, ...], observations first
    if rows.shape[1] == 0:
        raise runs.RunError(f"the checkpoint of {folder} holds no transitions yet; train on")
    some = np.linspace(rows.shape[1] // 2, rows.shape[1] - 1, states).astype(int)
    told = agent.diagnose(rows[:, some, :n_obs], rng.generators(identity["seeds"], "diagnosis"))
    table = pd.DataFrame({"seed": identity["seeds"], "step": state["step"], "states": states}
                         | {name: x.tolist() for name, x in told.items()})  # fmt: skip
    table = table[~table["seed"].astype(str).isin(state["diverged"])]
    runs.write_table(folder / "diagnosis.csv", table)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m softpolicy.stein_study", description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN_FOLDER")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for folder in args.folders:
        try:
            table = study(folder)
        except runs.RunError as e:
            sys.exit(f"error: {e}")
        print(f"{folder}: |closed form - log-determinant| {table['log_det_gap'].mean():.2f} nats", flush=True)


if __name__ == "__main__":
    main()
