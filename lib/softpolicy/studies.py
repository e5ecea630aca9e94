"""Recorded studies: named sets of runs of one protocol that differ in a setting or two.

`python -m softpolicy.studies langevin --out data/runs/langevin-ablations` makes or resumes the runs of a study, a
folder each. Studies never count in verdicts between agents (`report.main_runs`).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from softpolicy import runs
from softpolicy.train import train


class Study(NamedTuple):
    """One protocol, and the variants by folder name: what the page calls it, its agent, its settings."""

    protocol: dict  # arguments of `train`
    common: dict  # settings of every variant
    variants: dict[str, tuple[str, str, dict]]


# Ablations of NC-LQL (chapter *Langevin Q-learning*) on a task that small networks learn within minutes.
LANGEVIN = Study(
    protocol=dict(env_id="Reacher-v5", seeds=[0, 1, 2, 3, 4], steps=30_000, n_envs=5, warmup=1_000, eval_every=2_500,
                  eval_episodes=10, checkpoint_every=10_000),
    common=dict(width=64, batch=64, lr=1e-3),
    variants={
        "nclql": ("NC-LQL", "nclql", {}),
        "lql": ("LQL", "lql", {}),
        "lql-large-steps": ("LQL, steps of 0.001", "lql", dict(step_lr=1e-3)),
        "lql-annealed": ("LQL, annealed steps", "lql", dict(levels=10, langevin_steps=2)),
        "levels-5": ("5 levels, 4 steps each", "nclql", dict(levels=5, langevin_steps=4)),
        "levels-20": ("20 levels, 1 step each", "nclql", dict(levels=20, langevin_steps=1)),
        "steps-1": ("1 step a level", "nclql", dict(langevin_steps=1)),
        "steps-5": ("5 steps a level", "nclql", dict(langevin_steps=5)),
        "w-50": ("w = 50", "nclql", dict(w=50.0)),
        "w-1000": ("w = 1000", "nclql", dict(w=1000.0)),
        "raw-w-50": ("raw gradients, w = 50", "nclql", dict(normalise=False, reduction="mean", w=50.0)),
        "raw-w-500": ("raw gradients, w = 500", "nclql", dict(normalise=False, reduction="mean", w=500.0)),
        "joint": ("one joint Adam step", "nclql", dict(optimiser_steps="joint")),
        "smoothing-target": ("smoothing towards targets", "nclql", dict(smoothing_target="target")),
        "flow-rl": ("network of flow-rl", "nclql", dict(network="flow-rl")),
    },
)  # fmt: skip

STUDIES = {"langevin": LANGEVIN}


def config(study: Study, variant: str):
    """The agent's settings of a variant."""
    _, agent, changes = study.variants[variant]
    return importlib.import_module(f"softpolicy.agents.{agent}").Config(**study.common, **changes)


def run(study: Study, variant: str, out, **changes) -> pd.DataFrame:
    """Make or resume the runs of a variant in a folder below `out`; `changes` replace arguments of the protocol."""
    return train(config(study, variant), out=Path(out) / variant, **(study.protocol | changes))


def load(study: Study, root) -> pd.DataFrame:
    """The rows of those variants that are there, with a column `variant` as pages call it."""
    tables = []
    for variant, (label, *_) in study.variants.items():
        rows = runs.load(Path(root) / variant)
        tables += [rows.assign(variant=label)] if len(rows) else []
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m softpolicy.studies", description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs, one below it for each variant")
    parser.add_argument("--variants", nargs="+", help="only these")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = STUDIES[args.study]
    for variant in args.variants or study.variants:
        if variant not in study.variants:
            parser.error(f"unknown variant '{variant}'; accepted are {', '.join(study.variants)}")
        try:
            rows = run(study, variant, args.out)
        except runs.RunError as e:
            sys.exit(f"error: {e}")
        last = rows[rows["step"] == rows["step"].max()]["return"]
        print(f"{variant}: {last.mean():.1f} at the last evaluation", flush=True)


if __name__ == "__main__":
    main()
