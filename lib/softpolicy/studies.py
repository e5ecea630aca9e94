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
from softpolicy.agents.s2ac import RELEASE
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
    common=dict(width=64, batch=100, lr=1e-3),
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

# The multi-goal tasks (chapter *Stein soft actor-critic*), one temperature for all. S2AC as the authors ran it there,
# with ten particles and ten steps from a fixed start; ours is that no step passes the bound of invertibility.
ALPHA = 0.2
START, CAP = dict(start="none"), dict(step_cap=0.9)
LEARNED = CAP | dict(std_min=0.02)
STEIN = {
    "sac": ("SAC", "sac", dict(init_alpha=ALPHA, learn_alpha=False)),
    "sql": ("SQL", "sql", dict(alpha=ALPHA)),
    "s2ac": ("S2AC", "s2ac", dict(svgd_steps=10, amortised=True, **START, **CAP)),
    "s2ac-release": ("S2AC as released", "s2ac", RELEASE | dict(svgd_steps=10, **START)),
    "s2ac-learned": ("S2AC, learned start, 3 steps", "s2ac", dict(svgd_steps=3, **LEARNED)),
}
STEIN_ABLATIONS = {
    "s2ac-3-steps": ("S2AC, 3 steps", "s2ac", dict(svgd_steps=3, **START, **CAP)),
    "s2ac-learned-0": ("S2AC, learned start, no step", "s2ac", dict(svgd_steps=0, **LEARNED)),
    "s2ac-uncapped": ("S2AC, steps not capped", "s2ac", dict(svgd_steps=10, **START)),
    "s2ac-diagonal": ("S2AC, diagonal start, 3 steps", "s2ac", dict(svgd_steps=3, start="diagonal", **LEARNED)),
    "s2ac-full": ("S2AC, full covariance, 3 steps", "s2ac", dict(svgd_steps=3, start="full", **LEARNED)),
    "s2ac-small-steps": ("S2AC, 20 steps of 0.01", "s2ac", dict(svgd_steps=20, svgd_lr=0.01, **START)),
}
MULTIGOAL = {
    layout: Study(
        protocol=dict(env_id=env_id, seeds=[0, 1, 2, 3, 4], steps=10_000, warmup=2_000, eval_every=400, eval_episodes=1,
                      checkpoint_every=100_000),
        common=dict(width=64, batch=100, lr=1e-3),
        variants=variants,
    )
    for layout, env_id, variants in (
        ("three", "softpolicy/MultiGoalMaxEntropy-v0", STEIN | STEIN_ABLATIONS),
        ("four", "softpolicy/MultiGoal-v0", STEIN),
    )
}  # fmt: skip

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
